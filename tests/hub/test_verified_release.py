"""`maws-hf verify` of a release: nothing is missing, and nothing was added."""

from pathlib import Path

import pytest
from tiny_release import write_model

from maws_hf.hub.staging import build_staging
from maws_hf.training.verification import verify_folder


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify_folder(folder) for fault in verdict.faults]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_staging(write_model(tmp_path / "model"), tmp_path / "release").folder


def test_a_file_that_a_release_does_not_list_is_a_fault(release: Path):
    assert faults_of(release) == []
    (release / "training.json").write_text("{}")  # which might be part of a release
    assert faults_of(release) == [f"{release}/training.json is not in release.json"]


@pytest.mark.parametrize("manifest", ["[" * 100_000, "[]", "{}", '{"files": {"config.json": 3}}', '{"files": {}}'])
def test_a_release_whose_manifest_says_nothing_is_a_fault_and_no_traceback(release: Path, manifest: str):
    (release / "release.json").write_text(manifest)
    told = faults_of(release)
    assert told
    assert all("release.json" in fault for fault in told)
