"""`examples/run_low_shot.py` as a user runs it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from runs import finish, load_script, script, start
from tiny import draw_image, tiny_config

from maws_hf import MawsViTModel
from maws_hf.evaluation.features import encode_images
from maws_hf.training.few_shot_adapters import RECIPES
from maws_hf.training.frozen_prefix import first_weights
from maws_hf.training.seeding import seed_for

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


class DoneError(Exception):
    """What was to be seen has been seen."""


def a_task(run, **options: object):
    """Options, an encoder, and noise to learn from: four images in two classes, chosen by two seeds."""
    torch.manual_seed(0)
    model = MawsViTModel(tiny_config()).eval()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels, rows = torch.tensor([0, 1, 0, 1]), torch.arange(4)
    features = encode_images(model, pixels)
    splits, skipped = {(2, 5): rows, (2, 6): rows}, {"train": [], "test": []}
    data = {"model_name_or_path": "m", "dataset_name": "d", "shots": [2], "num_splits": 2, "seed": 5}
    settings = run.LowShotOptions(**{**data, "output_dir": "o", **options})
    return settings, model, run.Task(pixels, labels, pixels, labels, features, features, ["a", "b"], splits, skipped)


def test_each_choice_has_its_own_decay_first_weights_and_order_and_mirror_images(tmp_path, monkeypatch):
    run, given = load_script("run_low_shot.py", monkeypatch), {}
    options, model, task = a_task(run, output_dir=str(tmp_path), methods=["lora"])
    grid = run.Grid(options, model, task)

    def adapt(tail, tokens, labels, classes, choices, recipe):
        given.update(tokens=tokens, choices=choices, recipe=recipe, first=tail.first)
        raise DoneError

    monkeypatch.setattr(run, "adapt", adapt)
    monkeypatch.setattr(grid, "probe", lambda shots, seed: SimpleNamespace(decay=seed / 10))
    with pytest.raises(DoneError):
        list(grid.adapters("lora"))
    assert [(choice.seed, choice.decay) for choice in given["choices"]] == [(5, 0.5), (6, 0.6)]
    config = RECIPES["lora"].config(2)
    for choice in given["choices"]:
        expected = first_weights(model, config, seed_for("weights", choice.seed))
        assert all(torch.equal(choice.adapter[name], weight) for name, weight in expected.items())
    assert given["recipe"] == run.long_enough(RECIPES["lora"], 4)
    for place, pixels in enumerate((task.train_pixels, task.train_pixels.flip(-1))):
        with torch.no_grad():
            tokens = model.embeddings(pixels)
            for layer in model.layers[: given["first"]]:
                tokens = layer(tokens)
        torch.testing.assert_close(given["tokens"][:, place], tokens)


def test_what_is_missing_of_a_group_gets_its_own_result(tmp_path, monkeypatch):
    run, lengths = load_script("run_low_shot.py", monkeypatch), []
    options, model, task = a_task(run, output_dir=str(tmp_path), methods=["lora"])
    grid = run.Grid(options, model, task)
    found = [run.Adapted({}, rate, {rate: 0.5}) for rate in (0.1, 0.2)]
    right = torch.nn.functional.one_hot(task.test_labels, 2).float()
    monkeypatch.setattr(run, "choices_at_once", lambda *_: 2)
    monkeypatch.setattr(run, "long_enough", lambda recipe, images: lengths.append(images) or recipe)
    monkeypatch.setattr(run, "adapt", lambda *_: found)
    monkeypatch.setattr(run, "predict", lambda *_: [1 - right, right])
    assert list(grid.adapters("lora")) == [5, 6]
    grid.file("lora", 2, 6).unlink()  # as if it had been stopped before
    assert list(grid.adapters("lora")) == [5, 6]
    cells = [json.loads(grid.file("lora", 2, seed).read_text()) for seed in (5, 6)]
    assert [(cell["seed"], cell["learning_rate"], cell["top1"]) for cell in cells] == [(5, 0.1, 0.0), (6, 0.2, 1.0)]
    assert set(lengths) == {4}, "as long as the images of the largest choice ask for"


def test_cells_are_kept_for_the_same_images_labels_and_precision_only(monkeypatch):
    run = load_script("run_low_shot.py", monkeypatch)
    options, model, task = a_task(run)
    other = torch.tensor([1, 0, 1, 0])
    settings = [
        json.dumps(run.settings_of(*arguments))
        for arguments in (
            (options, model, task),
            (replace(options, bf16=True), model, task),
            (options, model, replace(task, train_labels=other)),
            (options, model, replace(task, test_labels=other)),
            (options, model, replace(task, train_pixels=task.train_pixels.flip(0))),
            (options, model, replace(task, test_pixels=task.test_pixels.flip(0))),
        )
    ]
    assert len(set(settings)) == len(settings)
    assert json.dumps(run.settings_of(replace(options, num_splits=9, shots=[1]), model, task)) == settings[0]


def test_features_are_kept_for_each_precision(tmp_path, monkeypatch):
    run = load_script("run_low_shot.py", monkeypatch)
    options, model, task = a_task(run, output_dir=str(tmp_path))
    plain = run.encode(options, model, task.train_pixels)
    rounded = run.encode(replace(options, bf16=True), model, task.train_pixels)
    expected = encode_images(model, task.train_pixels)
    torch.testing.assert_close(plain, expected)
    assert 1e-4 * expected.norm() < (rounded - expected).norm() < 0.1 * expected.norm()


def test_choices_are_of_the_seeds_from_the_first_on(monkeypatch):
    run = load_script("run_low_shot.py", monkeypatch)
    labels = torch.arange(40) % 2

    def draw(seed: int, num_splits: int) -> dict:
        options = SimpleNamespace(shots=[3], num_splits=num_splits, seed=seed)
        return run.draw_images(
            options, labels, lambda rows: SimpleNamespace(places=range(len(rows)), pixels=rows, skipped=[])
        )[0]

    three = draw(4, 3)
    assert list(three) == [(3, 4), (3, 5), (3, 6)]
    assert len({tuple(rows.tolist()) for rows in three.values()}) == 3
    assert torch.equal(draw(5, 1)[3, 5], three[3, 5])


def test_the_table_says_how_much_better_than_linear_a_method_is(tmp_path, monkeypatch, capsys):
    run = load_script("run_low_shot.py", monkeypatch)
    options, _, task = a_task(run, output_dir=str(tmp_path), methods=["linear", "lora"], shots=[1, 2])
    accuracies = {
        ("linear", 1): (0.5, 0.6),
        ("lora", 1): (0.6, 0.9),
        ("linear", 2): (0.75, 0.75),
        ("lora", 2): (0.5, 0.5),
    }
    cells = [
        {"method": method, "shots": shots, "seed": 5 + place, "top1": top1}
        for (method, shots), values in accuracies.items()
        for place, top1 in enumerate(values)
    ]
    run.report(options, task, cells)
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line[:4] in ("line", "lora")]
    table = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert table == [
        ["linear", "55.0 ± 7.1", "75.0 ± 0.0"],
        ["lora", "75.0 ± 21.2", "50.0 ± 0.0"],
        ["lora", "+20.0 ± 14.1", "-25.0 ± 0.0"],
    ]
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["cells"], content["classes"]) == (cells, ["a", "b"])
