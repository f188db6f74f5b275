"""What is laid out as a release is on the list, unchanged, and named with its checksum."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import transformers
from leftovers import temporary_of
from tiny_release import write_model

from maws_hf import MawsLiTConfig, MawsLiTProcessor, MawsViTConfig
from maws_hf.hub.staging import STUB, StagingError, build_staging, files_below, is_allowed, read_staging


def test_only_files_on_the_list_are_taken_and_the_rest_is_named(tmp_path: Path):
    model = write_model(tmp_path / "model")
    for name in ("metrics.jsonl", ".env", "checkpoints/step-1/model.safetensors", "images/a.png", "images/b.psd"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"x")
    staging = build_staging(model, tmp_path / "staging")
    expected = {"README.md", "config.json", "images/a.png", "model.safetensors"}
    assert {*staging.files} == expected
    assert {*files_below(staging.folder)} == {*expected, "release.json"}
    assert staging.left_out == (".env", "checkpoints", "images/b.psd", "metrics.jsonl")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("preprocessor_config.json", True),
        ("special_tokens_map.json", True),
        ("conversion.json", True),
        ("training.json", True),
        ("images/a.jpg", True),
        ("model-00001.safetensors", False),
        ("model-1/x-of-2.safetensors", False),
        ("sub/config.json", False),
        ("images/sub/a.png", False),
        ("optimizer.bin", False),
        ("adapter_model.safetensors", False),
        (STUB, False),
    ],
)
def test_names_are_allowed_at_their_place_only(name: str, allowed: bool):
    assert is_allowed(name) is allowed
    assert is_allowed(name, native=True) is (allowed or name == STUB)


def test_the_manifest_has_the_checksums_and_a_later_change_is_noticed(tmp_path: Path):
    staging = build_staging(write_model(tmp_path / "model"), tmp_path / "staging")
    record = json.loads((staging.folder / "release.json").read_text())["files"]["model.safetensors"]
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert read_staging(staging.folder) == staging
    assert staging.everything == {**staging.files, "release.json": staging.manifest}
    assert staging.digest == hashlib.sha256((staging.folder / "release.json").read_bytes()).hexdigest()[:12]
    changed = bytearray(content)
    changed[-1] ^= 1
    (staging.folder / "model.safetensors").write_bytes(changed)
    with pytest.raises(StagingError, match=r"model\.safetensors is no longer what release\.json says"):
        read_staging(staging.folder)
    (staging.folder / "model.safetensors").write_bytes(content)
    (staging.folder / "config.json").write_text("{}")
    with pytest.raises(StagingError, match=r"config\.json is no longer what release\.json says"):
        read_staging(staging.folder)
    (staging.folder / "config.json").unlink()
    with pytest.raises(StagingError, match=r"config\.json is missing"):
        read_staging(staging.folder)


def test_large_files_are_linked_and_small_ones_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = write_model(tmp_path / "model")
    monkeypatch.setattr("maws_hf.hub.staging._LINKED", (model / "model.safetensors").stat().st_size)
    staging = build_staging(model, tmp_path / "staging").folder
    assert (staging / "model.safetensors").samefile(model / "model.safetensors")
    assert not (staging / "config.json").samefile(model / "config.json")
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    staging = build_staging(model, tmp_path / "staging").folder
    assert not (staging / "model.safetensors").samefile(model / "model.safetensors")


def test_a_link_is_refused_and_a_strange_folder_is_not_replaced(tmp_path: Path):
    model = write_model(tmp_path / "model")
    (model / "handler.py").symlink_to("/etc/hostname")
    with pytest.raises(StagingError, match=r"handler\.py is a link"):
        build_staging(model, tmp_path / "staging")
    assert not (tmp_path / "staging").exists()
    (model / "handler.py").unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StagingError, match="holds something else"):
        build_staging(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_native_folder_gets_a_stub_and_forgets_where_its_towers_came_from(tmp_path: Path):
    model = write_model(tmp_path / "model", model_type="maws_lit")
    config = json.loads((model / "config.json").read_text())
    towers = {name: {"_name_or_path": f"/home/me/{name}"} for name in ("vision_config", "text_config")}
    config |= {**towers, "_name_or_path": "/home/me"}
    (model / "config.json").write_text(json.dumps(config))
    staging = build_staging(model, tmp_path / "staging", native=True)
    made = json.loads((staging.folder / "config.json").read_text())
    assert made["auto_map"]["AutoModel"] == "maws_hf_stub.MawsLiTModel"
    assert "/home/me" not in json.dumps(made)
    scope: dict = {}
    exec(compile((staging.folder / STUB).read_text(), STUB, "exec"), scope)
    assert all(name.split(".")[1] in scope for name in made["auto_map"].values())
    with pytest.raises(StagingError, match="'pixio' is not our own format"):
        build_staging(write_model(tmp_path / "other"), tmp_path / "third", native=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other", "staging"}


@pytest.mark.parametrize("config_class", [MawsViTConfig, MawsLiTConfig])
def test_the_stub_names_the_classes_that_are_registered_here(tmp_path: Path, config_class: type):
    model = write_model(tmp_path / "model", model_type=config_class.model_type)
    staging = build_staging(model, tmp_path / "staging", native=True)
    named = json.loads((staging.folder / "config.json").read_text())["auto_map"]
    found = {"AutoConfig": config_class}
    for auto in named.keys() - {"AutoConfig", "AutoProcessor"}:
        found[auto] = getattr(transformers, auto)._model_mapping[config_class]
    if "AutoProcessor" in named:
        found["AutoProcessor"] = MawsLiTProcessor
    assert named == {auto: f"maws_hf_stub.{each.__name__}" for auto, each in found.items()}


def test_the_card_is_the_text_that_is_given(tmp_path: Path):
    staging = build_staging(write_model(tmp_path / "model"), tmp_path / "new" / "staging", card="# 犬\n")
    assert (staging.folder / "README.md").read_bytes() == "# 犬\n".encode()
    assert staging.files["README.md"].bytes == 6


def test_a_folder_without_a_model_and_one_that_is_the_model_by_another_name_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StagingError, match=r"empty holds no model: config\.json is missing"):
        build_staging(tmp_path / "empty", tmp_path / "staging")
    model = write_model(tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(StagingError, match="lie in each other"):
        build_staging(model, tmp_path / "link")


def test_a_model_is_read_through_a_link_to_its_folder(tmp_path: Path):
    model = write_model(tmp_path / "model")
    (tmp_path / "latest").symlink_to(model)
    through = build_staging(tmp_path / "latest", tmp_path / "staging")
    assert through.files == build_staging(model, tmp_path / "other").files


def test_a_linked_folder_of_images_is_not_entered(tmp_path: Path):
    model = write_model(tmp_path / "model")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.png").write_bytes(b"x")
    (model / "images").symlink_to(tmp_path / "private")
    staging = build_staging(model, tmp_path / "staging")
    assert staging.left_out == ("images",)
    assert "images/a.png" not in staging.files


def test_a_release_of_a_release_has_a_manifest_of_its_own(tmp_path: Path):
    first = build_staging(write_model(tmp_path / "model"), tmp_path / "first")
    again = build_staging(first.folder, tmp_path / "again", card="# another\n")
    assert (again.left_out, again.files.keys()) == ((), first.files.keys())
    assert read_staging(again.folder) == again


def test_what_a_killed_command_has_left_is_removed(tmp_path: Path):
    temporary_of(tmp_path / "staging").mkdir()
    build_staging(write_model(tmp_path / "model"), tmp_path / "staging")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "staging"}


def test_a_file_of_several_blocks_has_the_checksum_of_all(tmp_path: Path, capsys: pytest.CaptureFixture):
    content = bytes(range(256)) * (9 << 12)
    model = write_model(tmp_path / "model")
    (model / "images").mkdir()
    (model / "images" / "a.png").write_bytes(content)
    record = build_staging(model, tmp_path / "staging").files["images/a.png"]
    assert (record.bytes, record.sha256) == (9 << 20, hashlib.sha256(content).hexdigest())
    assert "Checksums" not in capsys.readouterr().err  # that is done at once


def test_all_that_is_no_folder_is_below_one(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "d")
    assert list(files_below(tmp_path)) == ["a", "b/file", "c", "d"]


@pytest.mark.parametrize("place", [".", "native", ".."])
def test_the_model_s_own_folder_is_never_replaced(tmp_path: Path, place: str):
    model = write_model(tmp_path / "above" / "model")
    (model / "checkpoint.safetensors").write_bytes(b"days of work")
    with pytest.raises(StagingError, match="lie in each other"):
        build_staging(model, model / place)
    assert (model / "checkpoint.safetensors").is_file()


def test_what_somebody_has_put_into_a_staging_folder_is_not_thrown_away(tmp_path: Path):
    model = write_model(tmp_path / "model")
    staging = build_staging(model, tmp_path / "staging").folder
    build_staging(model, staging)
    (staging / "notes.md").write_text("mine")
    with pytest.raises(StagingError, match=r"holds something else \(notes\.md\)"):
        build_staging(model, staging)


@pytest.mark.parametrize("manifest", ["{", "{}", "[]", '{"files": 3}', '{"files": []}', "[" * 100_000])
def test_a_folder_with_another_release_json_is_neither_read_nor_replaced(tmp_path: Path, manifest: str):
    model = write_model(tmp_path / "model")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "release.json").write_text(manifest)
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(StagingError, match=r"release\.json is no manifest"):
        read_staging(theirs)
    with pytest.raises(StagingError, match="holds something else"):
        build_staging(model, theirs)
    assert (theirs / "thesis.txt").is_file()


def test_a_manifest_with_another_size_is_noticed(tmp_path: Path):
    folder = build_staging(write_model(tmp_path / "model"), tmp_path / "staging").folder
    content = json.loads((folder / "release.json").read_text())
    content["files"]["config.json"]["bytes"] += 1
    (folder / "release.json").write_text(json.dumps(content))
    with pytest.raises(StagingError, match=r"config\.json is no longer what release\.json says"):
        read_staging(folder)


@pytest.mark.parametrize(
    "name", ["images/a\nb.png", "images/<b>.png", "model-.. -of-x.safetensors", "images/a b.png", "images/ä.png"]
)
def test_names_are_plain(name: str):
    assert not is_allowed(name)
