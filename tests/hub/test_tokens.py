"""A token of the Hub is used and never written: not printed, not in a file, not in an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from loopback_hub import TOKEN, Hub
from tiny_release import write_model

from maws_hf.hub.release import ReleaseError, push_release
from maws_hf.hub.staging import build_staging
from maws_hf.training import health_hub

STRANGE = "hf_" + "Zq7" * 12  # that no Hub knows
BOTH = """
import sys
from maws_hf.cli import main
for command in ([{doctor}], [{push}]):
    try:
        main(command)
    except SystemExit as ended:
        print("ended with", ended.code)
"""


def files_with(folder: Path, token: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


@pytest.mark.parametrize(("token", "status"), [(TOKEN, "ok"), (STRANGE, "warning")])
def test_the_doctor_says_whether_a_token_is_good_and_not_what_it_is(hub: Hub, token: str, status: str, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(health_hub, "HfApi", lambda token: HfApi(endpoint=hub.url, token=token))
    (finding,) = health_hub.check_hub()
    assert finding.status == status
    assert "no answer" not in finding.found
    assert token not in repr(finding)


def test_a_push_that_is_refused_does_not_say_the_token(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    build_staging(write_model(tmp_path / "model"), tmp_path / "staging")
    with pytest.raises(ReleaseError) as refused:
        push_release(tmp_path / "staging", "org/tiny", api=HfApi(endpoint=hub.url, token=STRANGE))
    assert STRANGE not in str(refused.value)
    assert files_with(tmp_path, STRANGE) == []


@pytest.mark.slow
def test_neither_the_commands_nor_their_files_hold_the_token(runs, tmp_path: Path):
    options = ["--repo_id", "org/tiny", "--license", "mit", "--staging_dir", str(tmp_path / "staging"), "--dry_run"]
    push = ", ".join(map(repr, ["push", str(runs["maws"]), *options]))
    program = BOTH.format(doctor=f"'doctor', '--json', '--output_dir', {str(tmp_path / 'run')!r}", push=push)
    environment = {**os.environ, "HF_TOKEN": STRANGE, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "MAWS_HF_TRACEBACK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "dry run: nothing was sent" in done.stdout
    assert '"Hub"' in done.stdout
    assert STRANGE not in done.stdout + done.stderr
    assert (tmp_path / "staging" / "main" / "config.json").is_file()
    assert files_with(tmp_path, STRANGE) == []
