"""`examples/run_wsp.py` as a user runs it."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from runs import assert_same_run, finish, kill_after, leave_out_training, load_script, script, start, steps_logged
from safetensors.torch import load_file
from tiny import draw_image
from transformers import AutoImageProcessor

from maws_hf import MawsViTForImageClassification
from maws_hf.data.vocabulary import LabelClass, Vocabulary
from maws_hf.evaluation.weak_labels import WeakLabelScores
from maws_hf.training.ledger import Stage, read_ledger

STEPS = 30
KILLS = int(os.environ.get("MAWS_HF_KILLS", "2"))
TINY = (
    "image_size=16,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "drop_path_rate=0.1"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
IDS = ["n00000001", "n00000002", "n00000003"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 40 pictures with 0 to 3 labels, as `scripts/build_wsp_labels.py` writes them."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    features = Features({"image": Image(), "synsets": List(Value("string"))})
    counts, rarest, images = np.zeros(3, int), np.zeros(3, int), 0
    for shard in range(2):
        chosen = [np.flatnonzero(rng.random(3) < (0.7, 0.4, 0.1)) for _ in range(40)]
        for labels in filter(len, chosen):
            counts[labels] += 1
            rarest[labels.max()] += 1
            images += 1
        rows = {
            "image": [{"bytes": draw_image(40 * shard + i), "path": f"{shard}/{i}.png"} for i in range(40)],
            "synsets": [[*(IDS[label] for label in labels), "n00000009"] for labels in chosen],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    classes = tuple(
        LabelClass(id=IDS[c], name=f"thing {c}", gloss="", count=int(counts[c]), rarest=int(rarest[c]))
        for c in range(3)
    )
    Vocabulary(images=images, min_count=1, classes=classes).save(folder / "vocabulary.json")
    return folder


def command(data: Path, output_dir: Path, **options: object) -> list[str]:
    defaults = {
        "dataset_name": data,
        "output_dir": output_dir,
        "config_overrides": TINY,
        "max_steps": STEPS,
        "warmup_steps": 3,
        "per_device_train_batch_size": 8,
        "shuffle_block_size": 7,
        "learning_rate": 1e-3,
        "resampling_ratio": 1.3,
        "ema_decay": 0.9,
        "logging_steps": 1,
        "save_steps": 7,
        "dataloader_num_workers": 0,
    }
    return script("run_wsp.py", **{**defaults, **options})


@pytest.fixture(scope="module")
def straight_run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("straight")
    output = finish(start(command(labelled, output_dir)))
    assert "WSP from new weights: 30 steps done" in output
    assert str(output_dir / "predictions.png") in output
    return output_dir


def test_a_run_leaves_a_classifier_with_names_pictures_and_its_cost(straight_run: Path):
    assert steps_logged(straight_run) == list(range(1, STEPS + 1))
    for picture in ("predictions.png", "loss.png"):
        assert (straight_run / picture).read_bytes().startswith(b"\x89PNG"), picture
    model, report = MawsViTForImageClassification.from_pretrained(straight_run, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.id2label == {0: "thing 0", 1: "thing 1", 2: "thing 2"}
    processor = AutoImageProcessor.from_pretrained(straight_run)
    image = torch.zeros(3, 30, 20, dtype=torch.uint8)
    assert model(**processor(image, return_tensors="pt")).logits.shape == (1, 3)
    (stage,) = json.loads((straight_run / "training.json").read_text())["stages"]
    assert (stage["name"], stage["images"]) == ("wsp", STEPS * 8)
    last = json.loads((straight_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert stage["flops"] == last["training_flops"] > 0


def test_images_are_scored_with_all_their_labels_by_their_own_splits_classes(monkeypatch, tmp_path):
    run = load_script("run_wsp.py", monkeypatch)
    for split, names in (("train", ["apple", "bus", "cat"]), ("test", ["bus", "cat", "apple"])):
        features = Features({"image": Image(), "labels": List(ClassLabel(names=names))})
        rows = [
            {"image": {"bytes": draw_image(number)}, "labels": [[1], [0, 1, 2], []][number]} for number in range(3)
        ]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{split}-0.parquet")
    options = {"dataset_name": str(tmp_path), "output_dir": f"{tmp_path}-out", "max_labels_per_image": 1}
    for split, expected in (("train", [[0, 1, 2], [1, -100, -100]]), ("test", [[0, 1, 2], [2, -100, -100]])):
        recipe = run.WSPRecipe(**options, eval_split=split)
        images, labels = run.read_eval_images(recipe, run.read_labels(recipe)[0], 16)
        assert images.shape == (2, 3, 16, 16)
        assert sorted(labels.tolist()) == expected


def test_the_saved_model_is_the_average_and_the_checkpoint_is_not(straight_run: Path):
    checkpoint = straight_run / "checkpoints" / f"step-{STEPS:08d}"
    saved, raw = (load_file(folder / "model.safetensors") for folder in (straight_run, checkpoint))
    average = load_file(checkpoint / "average.safetensors")
    name = "vit.layers.0.mlp.fc1.weight"
    assert torch.equal(saved[name], average[name])
    assert not torch.equal(saved[name], raw[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_change_nothing_with_resampling_and_average(
    prepare, workers: int, straight_run: Path, labelled: Path, tmp_path: Path
):
    reference = straight_run
    if workers:
        reference = tmp_path / "straight"
        finish(prepare(command(labelled, reference, dataloader_num_workers=workers)))
    killed = tmp_path / "killed"
    arguments = command(labelled, killed, dataloader_num_workers=workers)
    for step in sorted(random.SystemRandom().sample(range(2, STEPS - 4), min(KILLS, 20))):
        print(f"killing after step {step}")
        kill_after(prepare(arguments), killed, step)
    finish(prepare(arguments))
    assert_same_run(reference, killed)


def test_another_order_of_classes_cannot_continue_a_run(prepare, straight_run: Path, labelled: Path, tmp_path: Path):
    content = json.loads((labelled / "vocabulary.json").read_text())
    for label, id in zip(content["classes"], reversed(IDS), strict=True):
        label["id"] = id
    other = tmp_path / "vocabulary.json"
    other.write_text(json.dumps(content))
    options = {"vocabulary_file": other, "max_steps": STEPS + 1}
    output = finish(prepare(command(labelled, straight_run, **options)), expected=1)
    assert "the classes, or their order, or the column of labels, are not those that" in output.splitlines()[-1]


def test_another_resampling_cannot_continue_a_run(prepare, straight_run: Path, labelled: Path):
    options = {"resampling_ratio": 1.2, "max_steps": STEPS + 1}
    output = finish(prepare(command(labelled, straight_run, **options)), expected=1)
    option = (
        "--resampling_ratio was 1.3 in the checkpoint, now 1.2; the saved position belongs to a stream with repeats"
    )
    assert option in output.splitlines()[-1]


def test_a_mae_run_is_continued_and_the_ledger_adds_up(prepare, labelled: Path, tmp_path: Path):
    mae = tmp_path / "mae"
    options = {"dataset_name": labelled, "max_steps": 2, "per_device_train_batch_size": 8, "dataloader_num_workers": 0}
    decoder = (
        "decoder_hidden_size=8,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
    )
    finish(prepare(script("run_mae.py", output_dir=mae, config_overrides=f"{TINY},{decoder}", **options)))
    maws = tmp_path / "maws"
    arguments = {"model_name_or_path": mae, "config_overrides": "", "max_steps": 1, "learning_rate": 0, "ema_decay": 0}
    output = finish(prepare(command(labelled, maws, warmup_steps=0, **arguments)))
    stages = json.loads((maws / "training.json").read_text())["stages"]
    assert [(stage["name"], stage["images"]) for stage in stages] == [("mae", 16), ("wsp", 8)]
    assert f"= {sum(stage['flops'] for stage in stages):.3g}" in output
    before, after = (load_file(folder / "model.safetensors") for folder in (mae, maws))
    for name in after:
        if name.startswith("vit."):
            assert torch.equal(after[name], before[name]), name


def test_a_start_is_trained_at_another_size_with_its_own_shape(
    prepare, straight_run: Path, labelled: Path, tmp_path: Path
):
    options = {"model_name_or_path": straight_run, "max_steps": 1, "warmup_steps": 0, "learning_rate": 0}
    options |= {"config": "examples/recipes/wsp_laptop.yaml", "config_overrides": "image_size=24", "ema_decay": 0}
    output = finish(prepare(command(labelled, tmp_path, **options)))
    assert (
        f"the recipe file give way to {straight_run}: patch_size=8 (it has 4), hidden_size=128 (it has 16)" in output
    )
    assert f"{straight_run} is of 16 px: its positions are made to fit 24 px\n" in output
    model = MawsViTForImageClassification.from_pretrained(tmp_path)
    expected = MawsViTForImageClassification.from_pretrained(straight_run)
    expected.set_image_size(24)
    assert model.config.image_size == 24
    assert model.config.id2label == expected.config.id2label
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size == {"height": 24, "width": 24}
    options |= {"config_overrides": "hidden_size=32"}
    output = finish(prepare(command(labelled, tmp_path / "other", **options)), expected=1)
    contradiction = f"{straight_run} is contradicted by hidden_size=32 of --config_overrides (it has 16); leave out"
    assert contradiction in output.rstrip().splitlines()[-1]


def test_a_head_is_kept_for_the_same_classes_only(prepare, straight_run: Path, labelled: Path, tmp_path: Path):
    content = json.loads((labelled / "vocabulary.json").read_text())
    options = {"model_name_or_path": straight_run, "config_overrides": "", "max_steps": 1, "learning_rate": 0}
    options |= {"warmup_steps": 0, "ema_decay": 0, "resampling_ratio": 1}
    finish(prepare(command(labelled, tmp_path / "same", **options)))
    for label in content["classes"]:
        label["name"] = f"other {label['name']}"
    (tmp_path / "names.json").write_text(json.dumps(content))
    finish(prepare(command(labelled, tmp_path / "names", vocabulary_file=tmp_path / "names.json", **options)))
    content["images"] -= content["classes"].pop()["rarest"]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    finish(prepare(command(labelled, tmp_path / "fewer", vocabulary_file=tmp_path / "fewer.json", **options)))
    heads = {
        folder.name: load_file(folder / "model.safetensors")["classifier.weight"]
        for folder in (straight_run, tmp_path / "same", tmp_path / "names", tmp_path / "fewer")
    }
    before = heads.pop(straight_run.name)
    assert torch.equal(heads["same"], before)
    assert not torch.equal(heads["names"], before)
    assert heads["fewer"].shape == (2, 16)


def test_a_run_cannot_start_from_its_own_folder(prepare, straight_run: Path, labelled: Path):
    output = finish(prepare(command(labelled, straight_run, model_name_or_path=straight_run)), expected=2)
    assert "another folder than --output_dir" in output.splitlines()[-1]


def test_plain_class_indices_and_the_sigmoid_loss(prepare, image_shards: Path, tmp_path: Path):
    features = Features({"image": Image(), "label": Value("int64")})
    images = [{"bytes": draw_image(i), "path": None} for i in range(20)]
    data = Dataset.from_dict({"image": images, "label": [0] * 16 + [0, 1, 2, 3]}, features=features)
    data.to_parquet(tmp_path / "data" / "train.parquet")
    options = {"num_labels": 4, "loss": "sigmoid", "ema_decay": 0, "max_steps": 4}
    finish(prepare(command(tmp_path / "data", tmp_path / "run", **options)))
    model = MawsViTForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == "multi_label_classification"
    assert (model.classifier.bias < -9).all()
    fewer = options | {"num_labels": 3}
    output = finish(prepare(command(tmp_path / "data", tmp_path / "other", **fewer)), expected=1)
    # A prepared process clears its progress bar after that line.
    assert "label 3 in label is not in 0..2" in output.rstrip().splitlines()[-1]
    output = finish(prepare(command(image_shards, tmp_path / "none", **options)), expected=1)
    assert "scripts/build_wsp_labels.py" in output.splitlines()[-1]


def test_two_processes_share_the_resampled_data(labelled: Path, tmp_path: Path):
    launch = script("run_wsp.py")[:1] + ["-m", "accelerate.commands.launch", "--num_processes=2", "--cpu"]
    finish(start(launch + command(labelled, tmp_path, max_steps=4)[1:]))
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    assert MawsViTForImageClassification.from_pretrained(tmp_path).config.hidden_size == 16


def test_labels_are_as_many_as_asked_and_images_without_one_never_come(labelled: Path, tmp_path: Path, monkeypatch):
    run = load_script("run_wsp.py", monkeypatch)
    given = leave_out_training(run, command(labelled, tmp_path, max_labels_per_image=2), monkeypatch)
    batches = [batch["labels"] for _, batch in zip(range(9), given.loader, strict=False)]
    labels = torch.cat(batches)
    assert labels.shape == (72, 2)
    assert (labels >= 0).any(dim=1).all()
    assert read_ledger(str(tmp_path)) == [Stage("wsp", images=7, flops=7 * given.flops_per_image)]


def test_a_column_of_integers_is_counted_in_the_training_split(tmp_path: Path, monkeypatch):
    """Of twenty images one has the label 1; the split to score on has it the other way round."""
    run = load_script("run_wsp.py", monkeypatch)
    features = Features({"image": Image(), "label": Value("int64")})
    for split, labels in (("train", [0] * 19 + [1]), ("test", [1] * 19 + [0])):
        images = [{"bytes": draw_image(number)} for number in range(20)]
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    options = {"dataset_name": str(tmp_path), "output_dir": f"{tmp_path}-out", "num_labels": 2, "eval_split": "test"}
    recipe = run.WSPRecipe(**options, resampling_ratio=1.1)
    repeats = run.build_repeats(recipe, run.read_labels(recipe)[0])
    assert repeats.factors.of([0]) == 1
    assert repeats.factors.of([1]) == pytest.approx(3)  # 19 + 3 = 1.1 x 20
    assert run.build_repeats(run.WSPRecipe(**options), repeats.labels_of).factors.of([1]) == 1


def test_a_new_head_is_of_the_seed(labelled: Path, tmp_path: Path, monkeypatch):
    run, heads = load_script("run_wsp.py", monkeypatch), []
    for seed in (0, 0, 1):
        options = {"dataset_name": str(labelled), "output_dir": str(tmp_path), "config_overrides": TINY, "seed": seed}
        recipe = run.WSPRecipe(**options)
        heads.append(run.build_classifier(recipe, run.read_labels(recipe)[0]).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_report_has_each_score_in_its_line(tmp_path: Path, monkeypatch, capsys):
    run = load_script("run_wsp.py", monkeypatch)
    recipe = SimpleNamespace(output_dir=str(tmp_path), eval_split=None, dataset_split="all", model_name_or_path=None)
    run.report(recipe, 5, [Stage("wsp", 1, 1)], 8, WeakLabelScores(1.5, 0.25, 0.5, 0.125, torch.zeros(1, 1)))
    shown = capsys.readouterr().out
    assert "on 8 images of the split all (trained on):" in shown
    for line in (
        "loss 1.5000",
        "the first prediction is a label 25.0%",
        "one of the first five is 50.0%",
        "always the most frequent label 12.5%",
    ):
        assert line in [" ".join(each.split()) for each in shown.splitlines()]
