"""`examples/run_low_shot.py` as a user runs it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from runs import finish, load_script, script, start
from tiny import draw_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that return: a class has four images to learn from, the last only one, and one has no label.

    The test split numbers the classes from behind, and one of its images is none.
    """
    folder = tmp_path_factory.mktemp("corpus")
    for split, labels, names in (("train", [0, 1] * 4 + [2, -1], "abc"), ("test", [0, 1, 2] * 3, "cba")):
        columns = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
        shown = labels if split == "train" else [2 - label for label in labels]
        images = [{"bytes": draw_image(abs(label)), "path": f"{split}-{n}.png"} for n, label in enumerate(shown)]
        if split == "test":
            images[-1]["bytes"] = b"no image"
        Dataset.from_dict({"image": images, "label": labels}, features=columns).to_parquet(
            folder / f"{split}-0.parquet"
        )
    return folder


def command(corpus: Path, encoder: Path, output_dir: Path) -> list[str]:
    options = {"dataset_name": corpus, "model_name_or_path": encoder, "output_dir": output_dir, "num_splits": 2}
    return [*script("run_low_shot.py", **options, dataloader_num_workers=0), "--shots", "1", "2"]


def test_the_grid_is_scored_and_goes_on_where_it_was_stopped(prepare, corpus, encoder, tmp_path):
    output = finish(start(command(corpus, encoder, tmp_path)))
    rows = {line.split()[0]: line for line in output.splitlines() if " ± " in line}
    assert {"linear", "lora", "adaptformer", "vpt"} <= set(rows)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {split: [record["key"] for record in records] for split, records in results["skipped"].items()} == {
        "train": [],
        "test": ["test-8.png"],
    }
    assert "test: 1 bad images skipped: test-8.png (" in output
    assert len(results["cells"]) == 4 * 2 * 2
    by_shots = {cell["shots"]: cell["images"] for cell in results["cells"]}
    assert by_shots == {1: 3, 2: 5}  # the third class has one image
    assert {cell["top1"] for cell in results["cells"] if cell["method"] == "linear"} == {1.0}
    for cell in results["cells"]:  # with one image a class there is nothing to choose by
        assert bool(cell["validation"]) == (cell["shots"] == 2)
    assert (tmp_path / "results.png").is_file()
    features = {file: file.stat().st_mtime_ns for file in tmp_path.glob("features/*.safetensors")}
    assert len(features) == 2

    cells = sorted(tmp_path.glob("cells/*/*.json"))
    assert len(cells) == 16
    cells[0].unlink()
    before = {cell: cell.stat().st_mtime_ns for cell in cells[1:]}
    finish(prepare(command(corpus, encoder, tmp_path)))
    assert {cell: cell.stat().st_mtime_ns for cell in cells[1:]} == before
    assert json.loads((tmp_path / "results.json").read_text())["cells"] == results["cells"]
    assert all(file.stat().st_mtime_ns == time for file, time in features.items())


def damaged_copy(corpus: Path, folder: Path, rows: set[int]) -> Path:
    """With these training images damaged."""
    folder.mkdir()
    shutil.copy(corpus / "test-0.parquet", folder)
    train = Dataset.from_parquet(str(corpus / "train-0.parquet"), cache_dir=str(folder / ".arrow"))
    images = [
        {"bytes": b"no image" if row in rows else draw_image(abs(label)), "path": f"train-{row}.png"}
        for row, label in enumerate(train["label"])
    ]
    columns = {"image": images, "label": train["label"]}
    Dataset.from_dict(columns, features=train.features).to_parquet(folder / "train-0.parquet")
    return folder


def test_images_of_the_same_class_stand_in_for_damaged_ones(prepare, corpus, encoder, tmp_path):
    folder = damaged_copy(corpus, tmp_path / "damaged", {0, 2, 4, 1})  # three of four of class 0, one of class 1
    output = finish(prepare([*command(folder, encoder, tmp_path / "run"), "--methods", "linear"]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {cell["shots"]: cell["images"] for cell in results["cells"]} == {1: 3, 2: 4}
    assert {cell["top1"] for cell in results["cells"]} == {1.0}
    skipped = [record["key"] for record in results["skipped"]["train"]]
    assert {"train-0.png", "train-2.png", "train-4.png"} <= set(skipped)  # with two shots all of class 0 are tried
    assert f"train: {len(skipped)} bad images skipped: train-0.png (" in output
    assert "2 of 3 classes have fewer than 2 images" in output


def test_a_class_of_damaged_images_ends_after_few_readings(monkeypatch):
    run = load_script("run_low_shot.py", monkeypatch)
    readings = []

    def read(rows: list[int]) -> SimpleNamespace:
        readings.append(rows)
        skipped = [{"key": str(row), "reason": "damaged"} for row in rows if row != 99]
        return SimpleNamespace(
            places=[rows.index(99)] if 99 in rows else [], pixels=[99] * (99 in rows), skipped=skipped
        )

    options = SimpleNamespace(shots=[1], num_splits=1, seed=0)
    chosen, images, damaged = run.draw_images(options, torch.zeros(100, dtype=torch.int64), read)
    assert chosen[1, 0].tolist() == list(images) == [99]
    assert 99 not in damaged
    assert len(readings) <= 8  # each goes through all files


def test_a_class_without_an_image_is_named(prepare, corpus, encoder, tmp_path):
    folder = damaged_copy(corpus, tmp_path / "damaged", {1, 3, 5, 7})
    said = finish(prepare(command(folder, encoder, tmp_path / "run")), expected=1).splitlines()[-1]
    assert "error: no image of the class 'b' in the split train can be decoded (train-" in said


def test_wrong_options_are_one_sentence(prepare, corpus, encoder, tmp_path):
    wrong = [*command(corpus, encoder, tmp_path), "--methods", "linear", "prefix"]
    assert "--methods" in finish(prepare(wrong), expected=2).splitlines()[-1]
    twice = [*command(corpus, encoder, tmp_path), "--methods", "linear", "linear"]
    assert "each once" in finish(prepare(twice), expected=2).splitlines()[-1]
    same = [*command(corpus, encoder, tmp_path), "--eval_split=train"]
    assert "another split than --train_split" in finish(prepare(same), expected=2).splitlines()[-1]
    nowhere = [*command(corpus, tmp_path / "no encoder", tmp_path), f"--output_dir={__file__}/run"]
    assert f"--output_dir {__file__}/run cannot be written" in finish(prepare(nowhere), expected=1).splitlines()[-1]
    negative = [*command(corpus, encoder, tmp_path), "--seed=-1"]
    assert "--seed -1 is not possible" in finish(prepare(negative), expected=2).splitlines()[-1]


def test_a_split_without_labels_is_refused_before_an_image_is_decoded(prepare, corpus, encoder, tmp_path):
    (tmp_path / "hidden").mkdir()
    rows = Dataset.from_parquet(str(corpus / "test-0.parquet"), cache_dir=str(tmp_path / "arrow"))
    hidden = rows.map(lambda row: {"image": {"bytes": b"no image", "path": None}, "label": -1}, features=rows.features)
    hidden.to_parquet(tmp_path / "hidden" / "test-0.parquet")
    shutil.copy(corpus / "train-0.parquet", tmp_path / "hidden")
    said = finish(prepare(command(tmp_path / "hidden", encoder, tmp_path)), expected=1).splitlines()[-1]
    assert "error: no image of the split test has a label in label: choose a labelled one" in said


def test_one_choice_has_no_spread(monkeypatch):
    run = load_script("run_low_shot.py", monkeypatch)
    assert run.mean_and_spread([50.0]) == "50.0"
    assert run.mean_and_spread([1.0, 3.0], sign="+") == "+2.0 ± 1.4"
