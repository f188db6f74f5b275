"""`examples/run_finetune.py` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List
from datasets import Image as ImageFeature
from peft import LoraConfig, get_peft_model
from PIL import Image
from runs import assert_same_run, finish, kill_after, script, start, steps_logged
from safetensors.torch import load_file
from tiny import draw_image
from transformers import pipeline

from maws_hf import MawsViTForImageClassification, MawsViTModel
from maws_hf.processing import EvalTransform

STEPS = 24
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, each a class, that return; one without a label, one that is none. Two shards a split.

    The test split numbers the classes from behind.
    """
    folder = tmp_path_factory.mktemp("corpus")
    for split, count, names in (("train", 20, "abcd"), ("test", 7, "dcba")):
        columns = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
        columns["tags"] = List(columns["label"])
        for shard in range(2):
            labels = [index % 4 for index in range(count)]
            images = [{"bytes": draw_image(label), "path": f"{shard}-{n}.png"} for n, label in enumerate(labels)]
            images[-1]["bytes"], labels[0] = b"no image", -1
            labels = [label if label < 0 or names == "abcd" else 3 - label for label in labels]
            tags = [[] if label < 0 else sorted({label, 3}) for label in labels]
            rows = Dataset.from_dict({"image": images, "label": labels, "tags": tags}, features=columns)
            rows.to_parquet(folder / f"{split}-{shard:05d}-of-00002.parquet")
    return folder


def command(corpus: Path, encoder: Path, output_dir: Path, **options: object) -> list[str]:
    defaults = {
        "model_name_or_path": encoder,
        "dataset_name": corpus,
        "label_column_name": "label",
        "eval_split": "test",
        "output_dir": output_dir,
        "max_steps": STEPS,
        "warmup_steps": 3,
        "per_device_train_batch_size": 8,
        "shuffle_block_size": 7,
        "learning_rate": 3e-3,
        "max_skip_rate": 0.5,
        "ema_decay": 0.5,
        "logging_steps": 1,
        "save_steps": 6,
        "eval_steps": 8,
        "dataloader_num_workers": 0,
    }
    return script("run_finetune.py", **{**defaults, **options})


@pytest.fixture(scope="module")
def straight_run(corpus: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output_dir = tmp_path_factory.mktemp("straight")
    return output_dir, finish(start(command(corpus, encoder, output_dir)))


def test_a_run_leaves_a_classifier_its_scores_and_pictures(straight_run):
    output_dir, output = straight_run
    assert f"{STEPS} steps done" in output
    results = json.loads((output_dir / "results.json").read_text())["results"]
    assert (results["images"], results["skipped"]) == (10, 2)
    assert f"on 10 images of the split test, 2 could not be read:\n  {'top1':<39} {results['top1']:.2%}" in output
    for picture in ("predictions.png", "loss.png"):
        assert (output_dir / picture).read_bytes().startswith(b"\x89PNG"), picture
    watched = [json.loads(line) for line in (output_dir / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in watched] == [8, 16, 24]
    stages = json.loads((output_dir / "training.json").read_text())["stages"]
    assert [(stage["name"], stage["images"]) for stage in stages] == [("finetune", STEPS * 8)]


def test_the_pipeline_sees_pictures_as_the_evaluation_did(straight_run, tmp_path):
    output_dir, _ = straight_run
    model = MawsViTForImageClassification.from_pretrained(output_dir).eval()
    assert model.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    wide = Image.effect_mandelbrot((90, 40), (-2, -1, 1, 1), 30).convert("RGB")
    found = pipeline("image-classification", str(output_dir), top_k=4)(wide)
    pixels = EvalTransform(32, "square")(np.asarray(wide))[None]
    expected = model(pixels).logits.softmax(dim=1)[0]
    scores = {entry["label"]: entry["score"] for entry in found}
    assert [scores[name] for name in "abcd"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_killed_run_ends_as_the_straight_one(prepare, straight_run, corpus, encoder, tmp_path):
    arguments = command(corpus, encoder, tmp_path)
    kill_after(prepare(arguments), tmp_path, 9)
    finish(prepare(arguments))
    assert_same_run(straight_run[0], tmp_path)
    assert (tmp_path / "results.json").read_text().replace(str(tmp_path), "X") == (
        straight_run[0] / "results.json"
    ).read_text().replace(str(straight_run[0]), "X")


def test_lists_of_labels_larger_images_and_two_processes(corpus, encoder, tmp_path):
    launch = [*script("run_finetune.py")[:1], "-m", "accelerate.commands.launch", "--num_processes=2", "--cpu"]
    options = {"label_column_name": "tags", "image_size": 48, "max_steps": 4, "warmup_steps": 0, "ema_decay": 0}
    output = finish(start(launch + command(corpus, encoder, tmp_path, **options)[1:]))
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["vit.embeddings.position_embeddings"].shape == (1, 1 + 6 * 6, 32)
    model = MawsViTForImageClassification.from_pretrained(tmp_path)
    assert (model.config.problem_type, model.config.image_size) == ("multi_label_classification", 48)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert (results["images"], results["skipped"]) == (10, 2)  # each process has scored one shard
    assert f"  {'mAP':<39} {results['mAP']:.2%}" in output


def test_a_head_is_kept_for_the_same_classes_only(prepare, straight_run, corpus, tmp_path):
    options = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 0, "min_learning_rate": 0, "ema_decay": 0}
    finish(prepare(command(corpus, straight_run[0], tmp_path, **options)))
    before, after = (load_file(folder / "model.safetensors") for folder in (straight_run[0], tmp_path))
    for name in before:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_resize": 20}, "--eval_resize 20 is less than the 32 pixels of the model"),
        ({"model_name_or_path": "adapter"}, "is an adapter, and whole models are wanted here"),
    ],
)
def test_a_start_or_size_that_would_waste_the_run_is_refused(prepare, corpus, encoder, tmp_path, options, message):
    adapted = get_peft_model(MawsViTModel.from_pretrained(encoder), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    if "model_name_or_path" in options:
        options = {"model_name_or_path": tmp_path / "adapter"}
    output = finish(prepare(command(corpus, encoder, tmp_path / "run", **options)), expected=1)
    assert message in output.splitlines()[-1]


def test_an_impossible_option_is_one_line(prepare, corpus, encoder, tmp_path):
    output = finish(prepare(command(corpus, encoder, tmp_path, layer_decay=0)), expected=2)
    assert output.splitlines()[-1].endswith("--layer_decay 0.0 is not possible: it must be in (0, 1]")
