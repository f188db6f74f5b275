"""What is laid out as a release is on the list, unchanged, and named with its checksum."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny_release import write_model

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
    (staging.folder / "config.json").write_text("{}")
    with pytest.raises(StagingError, match=r"config\.json is no longer what release\.json says"):
        read_staging(staging.folder)
    (staging.folder / "config.json").unlink()
    with pytest.raises(StagingError, match=r"config\.json is missing"):
        read_staging(staging.folder)


def test_large_files_are_linked_and_small_ones_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maws_hf.hub.staging._LINKED", 300)
    model = write_model(tmp_path / "model")
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


@pytest.mark.parametrize(
    "name", ["images/a\nb.png", "images/<b>.png", "model-.. -of-x.safetensors", "images/a b.png", "images/ä.png"]
)
def test_names_are_plain(name: str):
    assert not is_allowed(name)
