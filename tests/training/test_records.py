from pathlib import Path

import pytest

from maws_hf.training.records import make_output_dir


def test_an_output_folder_is_made_and_left_empty(tmp_path: Path):
    assert make_output_dir(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_impossible_output_folder_is_named_with_its_option(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"--output_dir {tmp_path / place} cannot be written to \(.*\): choose"):
        make_output_dir(str(tmp_path / place))
