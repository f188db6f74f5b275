"""The page of the demo: what it says, what it survives, and that it is one file."""

import base64
import hashlib
import io
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from demo_runs import CLASSES, HOSTILE, make_demo_runs
from PIL import Image

from maws_hf.cli import main
from maws_hf.reporting.demo_report import build_report
from maws_hf.reporting.demo_steps import demo_steps
from maws_hf.reporting.pictures import embed_picture

REPOSITORY = Path(__file__).parents[2]


class Page(HTMLParser):
    """The parts of a page that the tests ask about."""

    def __init__(self, file: Path):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        within = self.tags[-1][0] if self.tags else ""
        (self.scripts if within == "script" else self.texts).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    return make_demo_runs(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory) -> Page:
    return Page(build_report(*folders, tmp_path_factory.mktemp("page") / "new" / "report.html"))


def test_the_page_tells_the_numbers_of_every_step(page):
    assert "15.6 %" in page.text  # zero-shot in English, split unseen
    assert "of 190 pictures get the right one of 190 English names. Chance: 0.53 %, untrained: 0.27 %." in page.text
    assert "62.1 %" in page.text  # split test
    assert "63.0 % of new concepts" in page.text  # the best of three encoders
    assert "204,800 images, 4.9 × 10 13 operations" in page.text  # four runs of 800 steps and 64 images
    assert page.text.count("800 steps, 3 min") == 4  # 51,200 images at 320 a second
    assert "Of 40,212 tags, 32,624 name WordNet synsets" in page.text
    assert "619 not words (<3, 30 …)" in page.text
    assert "6,991 train, 1,674 test, 931 unseen" in page.text
    assert "86.8" in page.text  # recall@5 from picture to text, in English
    assert "Nothing to show yet" not in page.text


def test_an_interval_without_a_loss_is_no_point_of_the_curve(page):
    hovered = re.findall(r"<title>step ([\d,]+) ·", page.source)
    assert len(hovered) == 4 * 15
    assert "400" not in hovered


def test_names_cannot_become_markup(page):
    assert HOSTILE not in page.source
    assert HOSTILE in page.text
    assert len(page.all("script")) == 1
    assert "Noto <Emoji>, Google Inc" in page.text


def test_words_are_text_in_their_language(page):
    spoken = {attributes["lang"] for attributes in page.all("bdi")}
    assert {"ja", "ar", "zh"} <= spoken
    assert CLASSES["ja"][0] in page.text
    assert page.all("html")[0]["lang"] == "en"


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            address = attributes.get(name) or "#"
            link = tag == "a" and address.startswith("https://")
            assert link or address.startswith(("#", "data:")), f"<{tag} {name}={address[:60]}>"
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL).group(1)
    assert not re.search(r"url\(|@import", style)


def test_the_policy_allows_this_script_and_no_other(page):
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_headings_are_in_order_and_pictures_have_words(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= set(ids)


def test_without_any_run_every_section_names_the_command_that_fills_it(tmp_path):
    nothing = [tmp_path / name for name in ("runs", "data", "labels")]
    page = Page(build_report(*nothing, tmp_path / "report.html"))
    assert page.text.count("Nothing to show yet.") == 11
    for step in demo_steps(*nothing).values():
        assert step.command in page.text.replace("\xa0", " ")
    assert not page.all("img")


@pytest.mark.parametrize(
    "damaged",
    [
        "runs/zero-shot/results.json",
        "runs/evaluation/results.json",
        "runs/lit/retrieval.json",
        "runs/mae/training.json",
        "runs/wsp/metrics.jsonl",
        "runs/mae/reconstruction.png",
        "data/manifest.json",
        "labels/vocabulary.json",
    ],
)
@pytest.mark.parametrize(
    "content", ['{"torn": ', "[]", '{"results": []}', '{"results": [{"model": 3}], "classes": {}, "counts": []}']
)
def test_a_damaged_file_costs_one_part_and_is_named(tmp_path, damaged, content):
    folders = make_demo_runs(tmp_path)
    (tmp_path / damaged).write_text(content)
    page = Page(build_report(*folders, tmp_path / "report.html"))
    assert page.text.count("Nothing to show yet.") == 1
    name = damaged.replace("training.json", "metrics.jsonl")  # they are read together
    assert str(tmp_path / name) in page.text


def test_a_result_that_is_no_share_is_not_shown(tmp_path):
    folders = make_demo_runs(tmp_path)
    file = tmp_path / "runs" / "zero-shot" / "results.json"
    content = json.loads(file.read_text())
    content["results"][0]["top1"] = 62.1  # per cent
    file.write_text(json.dumps(content))
    page = Page(build_report(*folders, tmp_path / "report.html"))
    assert "62.1 is no share between 0 and 1" in page.text


@pytest.mark.slow
def test_large_pictures_do_not_make_a_large_page(tmp_path):
    folders = make_demo_runs(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 640, 3), dtype=np.uint8))
    content = tmp_path / "noise.png"
    noise.save(content, compress_level=1)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(content.read_bytes() + file.name.encode())  # each a file of its own
    report = build_report(*folders, tmp_path / "report.html")
    assert report.stat().st_size < 4_000_000
    assert "more lie beside the results" in Page(report).text


def test_a_picture_that_stays_large_becomes_narrower(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=1)
    picture = embed_picture(tmp_path / "noise.png", "noise")
    content = base64.b64decode(picture.uri.removeprefix("data:image/webp;base64,"))
    assert len(content) <= 250_000
    assert Image.open(io.BytesIO(content)).size == (picture.width, picture.height)
    assert picture.width == 2 * picture.height < 1000


def test_a_small_picture_keeps_every_pixel(folders):
    file = folders[0] / "mae" / "reconstruction.png"
    content = base64.b64decode(embed_picture(file, "").uri.removeprefix("data:image/webp;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(file)))


def test_the_commands_are_those_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    for name, value in reversed(re.findall(r"^([A-Z_]+) = (.*)$", makefile, re.MULTILINE)):
        demo = demo.replace(f"$({name})", value)
    demo = re.sub(r"--num_cpu_threads_per_process \S+", "", demo)  # of the machine
    typed = [shlex.split(line.replace("$(VENV)/bin/", "")) for line in demo.splitlines()]
    steps = demo_steps(Path("runs/demo"), Path("data/emoji"), Path("data/emoji-synsets"))
    shown = [shlex.split(step.command) for step in steps.values()]
    for command in typed:
        if "demo-report" not in command:
            assert sorted(command) in [sorted(words) for words in shown]


def test_the_command_writes_the_page(folders, tmp_path, capsys):
    runs, data, labels = map(str, folders)
    output = tmp_path / "page.html"
    options = ["--runs_dir", runs, "--data_dir", data, "--labels_dir", labels, "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(["demo-report", *options])
    assert ended.value.code == 0
    assert output.as_uri() in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
