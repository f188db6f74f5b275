from pathlib import Path

import pytest

from maws_hf.training import records
from maws_hf.training.records import make_output_dir


def test_an_output_folder_is_made_and_left_empty(tmp_path: Path):
    assert make_output_dir(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_takes_no_file_is_an_impossible_one(tmp_path: Path, monkeypatch):
    def refuse(dir: str) -> None:
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(records.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=rf"--output_dir {tmp_path} cannot be written to \(Permission denied\)"):
        make_output_dir(str(tmp_path))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_impossible_output_folder_is_named_with_its_option(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"--output_dir {tmp_path / place} cannot be written to \(.*\): choose"):
        make_output_dir(str(tmp_path / place))
