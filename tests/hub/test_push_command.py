"""`maws-hf push`: with --dry_run everything but the network, otherwise a release from a folder to the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, Hub
from tiny import tiny_config
from tiny_release import CARD

from maws_hf import MawsViTModel
from maws_hf.cli import main
from maws_hf.hub.prepare import prepare_release
from maws_hf.hub.proof import ProofError
from maws_hf.hub.staging import StagingError
from maws_hf.processing.image_processors import image_processor_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """As a training run leaves it."""
    model = MawsViTModel(tiny_config())
    model.save_pretrained(tmp_path / "run")
    image_processor_of(model.config).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "card.md").write_text(CARD)
    return tmp_path / "run"


def command(run_folder: Path, *options: str) -> list[str]:
    card = str(run_folder.parent / "card.md")
    return ["push", str(run_folder), "--repo_id", "org/tiny", "--card", card, "--tag", "v1.0", *options]


@pytest.mark.slow
def test_a_dry_run_prints_what_would_happen_and_leaves_nothing(run_folder, hub: Hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        main(["push", str(run_folder), "--repo_id", "org/tiny", "--tag", "v1.0", "--license", "mit", "--dry_run"])
    output = capsys.readouterr().out
    assert ended.value.code == 0
    assert "largest difference of pooler_output in a process without maws_hf: 0" in output
    assert "not part of a release: metrics.jsonl" in output
    rows = [line.split() for line in output.splitlines() if line.endswith(("  main", "  native"))]
    assert {(row[0], row[3]) for row in rows} == {
        *((name, "main") for name in ("README.md", "release.json")),
        *((name, "native") for name in ("README.md", "release.json", "maws_hf_stub.py")),
        *(
            (name, branch)
            for name in ("config.json", "model.safetensors", "preprocessor_config.json")
            for branch in ("main", "native")
        ),
    }
    assert output.rstrip().endswith("nothing was sent")
    assert sorted(path.name for path in run_folder.parent.iterdir()) == ["card.md", "run"]


@pytest.mark.slow
def test_the_script_releases_a_run_and_once_more_changes_nothing(run_folder: Path, hub: Hub, tmp_path: Path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "scripts/push_to_hub.py", *command(run_folder, "--staging_dir", f"{tmp_path}/s")[1:]]
    for outcome in ("merged into main by pull request 1", "was there already"):
        finished = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, finished.stderr
        assert outcome in finished.stdout
        assert TOKEN not in finished.stdout + finished.stderr
    repository = hub.repository("org/tiny")
    assert {*repository.tags} == {"v1.0", "v1.0-native"}
    assert len(repository.pulls) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"HF_HUB_OFFLINE": True}, "unset HF_HUB_OFFLINE"),
        ({"HF_HUB_OFFLINE": False}, "hf auth login"),
    ],
)
def test_nothing_is_exported_where_nothing_can_be_sent(run_folder, monkeypatch, spoil, message):
    import huggingface_hub

    for name, value in spoil.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr("maws_hf.hub.export.export_model", lambda *_: pytest.fail("work before the refusal"))
    with pytest.raises(SystemExit, match=message):
        main(command(run_folder))


def test_a_model_without_a_card_or_a_license_is_refused_before_it_is_exported(run_folder: Path, monkeypatch):
    monkeypatch.setattr("maws_hf.hub.prepare.export_model", lambda *_: pytest.fail("work before the refusal"))
    arguments = ["push", str(run_folder), "--repo_id", "org/tiny", "--dry_run"]
    with pytest.raises(SystemExit, match="under which licence is it released"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"nowhere\.md is missing"):
        main([*arguments, "--card", "nowhere.md"])


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"---\ntags: [a: b: c\n---\n# hi\n", "its metadata is not YAML"),
        (b"---\n- a list\n---\n# hi\n", "has no metadata"),
        (
            CARD.replace("model_name: tiny", "model-index:\n- name: tiny\n  results: foo").encode(),
            "its model-index is not",
        ),
        (CARD.replace("no use", "no use (TODO)").encode(), "still holds 'TODO'"),
        (b"\xff", "is no UTF-8 text"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--license", "mit"]])
def test_a_card_that_is_none_is_refused_before_the_model_is_exported(run_folder, monkeypatch, card, message, options):
    monkeypatch.setattr("maws_hf.hub.prepare.export_model", lambda *_: pytest.fail("work before the refusal"))
    (run_folder.parent / "card.md").write_bytes(card)
    with pytest.raises(SystemExit, match=rf"error: .*card\.md.*{message}"):
        main([*command(run_folder, *options), "--dry_run"])


def test_a_released_model_keeps_its_licence_and_a_missing_folder_is_named(run_folder: Path, tmp_path: Path):
    record = {"released_model": "maws-vit-b", "source": {"sha256": "0" * 64}, "differences": {}, "versions": {}}
    (run_folder / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(StagingError, match=r"which is Meta's, under cc-by-nc-4\.0"):
        prepare_release(run_folder, tmp_path / "staging", repo_id="org/tiny", license="mit")
    with pytest.raises(StagingError, match=r"nothere holds no model: config\.json is missing"):
        prepare_release(tmp_path / "nothere", tmp_path / "staging", repo_id="org/tiny")


def test_an_export_that_is_not_the_model_is_not_laid_out(run_folder: Path, tmp_path: Path, monkeypatch):
    def differs(model_dir: Path, export_dir: Path):
        raise ProofError("last_hidden_state differs")

    monkeypatch.setattr("maws_hf.hub.prepare.prove_export", differs)
    with pytest.raises(ProofError, match="last_hidden_state differs"):
        prepare_release(run_folder, tmp_path / "staging", repo_id="org/tiny", license="mit")
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_licence_that_is_given_stands_in_the_card(run_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("maws_hf.hub.prepare.prove_export", lambda *_: {})
    options = {"card": tmp_path / "card.md", "license": "apache-2.0", "native": False}
    prepared = prepare_release(run_folder, tmp_path / "staging", repo_id="org/tiny", **options)
    assert ModelCard.load(prepared.main.folder / "README.md").data.license == "apache-2.0"
