import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from maws_hf.training import records
from maws_hf.training.records import JsonLines, Progress, cut_back_ranks, make_output_dir, write_json


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


def steps_in(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_lines_after_a_checkpoint_go_and_a_torn_one_stops_nothing(tmp_path: Path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.cut_back(3)  # where there is no file there is nothing to cut
    for step in range(1, 6):
        lines.append({"step": step, "loss": step / 8})
    with lines.path.open("a") as file:
        file.write('{"step": 6, "lo')
    lines.cut_back(3)
    assert lines.path.read_text() == "".join(f'{{"step": {step}, "loss": {step / 8}}}\n' for step in (1, 2, 3))


def test_what_json_does_not_have_is_refused_and_a_folder_is_made(tmp_path: Path):
    write_json({"top1": 0.5}, tmp_path / "cells" / "one.json")
    assert json.loads((tmp_path / "cells" / "one.json").read_text()) == {"top1": 0.5}
    for write in (lambda line: write_json(line, tmp_path / "one.json"), JsonLines(tmp_path / "two.jsonl").append):
        with pytest.raises(ValueError, match="JSON"):
            write({"step": 1, "loss": float("nan")})
    assert not (tmp_path / "one.json").exists()


def test_ranks_that_are_no_more_lose_what_comes_after_the_checkpoint(tmp_path: Path):
    for name in ("skipped-rank00001", "skipped-rank00002", "metrics"):
        for step in (1, 2, 3):
            JsonLines(tmp_path / f"{name}.jsonl").append({"step": step})
    cut_back_ranks(tmp_path, world_size=2, step=2)
    assert steps_in(tmp_path / "skipped-rank00002.jsonl") == [1, 2]
    assert steps_in(tmp_path / "skipped-rank00001.jsonl") == steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]


@pytest.mark.parametrize("main", [True, False])
def test_metrics_are_of_the_main_process_from_the_checkpoint_on(main: bool, tmp_path: Path):
    JsonLines(tmp_path / "metrics.jsonl").append({"step": 1})
    JsonLines(tmp_path / "metrics.jsonl").append({"step": 3})
    tracked = []
    accelerator = SimpleNamespace(is_main_process=main, log=lambda values, step: tracked.append((step, values)))
    progress = Progress(accelerator, tmp_path, first_step=2, max_steps=9)
    progress.log(4, {"loss": None, "images_per_second": 5.0})
    progress.close()
    assert steps_in(tmp_path / "metrics.jsonl") == ([1, 4] if main else [1, 3])
    assert tracked == ([(4, {"images_per_second": 5.0})] if main else []), (
        "a tracker is told nothing of a loss of None"
    )
