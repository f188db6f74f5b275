"""`examples/run_finetune.py` as a user runs it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List
from datasets import Image as ImageFeature
from peft import LoraConfig, get_peft_model
from PIL import Image
from runs import assert_same_run, finish, kill_after, leave_out_training, load_script, script, start, steps_logged
from safetensors.torch import load_file
from tiny import draw_image, tiny_config
from transformers import AutoImageProcessor, pipeline

from maws_hf import MawsViTForImageClassification, MawsViTModel
from maws_hf.processing import EvalTransform
from maws_hf.processing.decode import decode_image
from maws_hf.processing.mixing import Mixing
from maws_hf.training.ledger import Stage, read_ledger, write_ledger

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


def test_what_the_recipe_says_of_the_update_reaches_it(corpus, encoder, tmp_path, monkeypatch):
    options = {"layer_decay": 0.5, "weight_decay": 0.3, "drop_path_rate": 0.25, "mixup": 0.3, "cutmix": 0.6}
    options |= {"label_smoothing": 0.2, "random_erasing": 0.4}
    run = load_script("run_finetune.py", monkeypatch)
    given = leave_out_training(run, command(corpus, encoder, tmp_path, **options), monkeypatch, exit_code=143)
    assert {group["lr_scale"] for group in given.groups} == {1, 1 / 2, 1 / 4, 1 / 8}  # head, two layers, embeddings
    assert {(group["name"].endswith("no_decay"), group["weight_decay"]) for group in given.groups} == {
        (True, 0.0),
        (False, 0.3),
    }
    assert given.model.config.drop_path_rate == 0.25
    assert given.batch_loss.mixing == Mixing(0.3, 0.6, 0.2)
    assert given.batch_loss.erased == 0.4


def training_images(corpus, encoder, folder, monkeypatch, **options) -> dict[str, torch.Tensor]:
    """The images of some batches by name, and what the whole picture of each is at the model's size."""
    options = {"crop_scale": 1.0, "rand_augment": 0, "hflip": 0, **options}
    run = load_script("run_finetune.py", monkeypatch)
    given = leave_out_training(run, command(corpus, encoder, folder, **options), monkeypatch, exit_code=143)
    batches = [batch for _, batch in zip(range(6), given.loader, strict=False)]
    return {key: image for batch in batches for key, image in zip(batch["keys"], batch["pixel_values"], strict=True)}


def test_training_images_are_labelled_mirrored_and_augmented_as_asked(corpus, encoder, tmp_path, monkeypatch):
    plain = training_images(corpus, encoder, tmp_path / "0", monkeypatch)
    assert not {"0-0.png", "1-0.png"} & plain.keys(), "images without a label teach nothing"
    mirrored = training_images(corpus, encoder, tmp_path / "1", monkeypatch, hflip=1)
    changed = training_images(corpus, encoder, tmp_path / "2", monkeypatch, rand_augment=10)
    assert plain.keys() == mirrored.keys() == changed.keys()
    assert all(torch.equal(mirrored[key], image.flip(-1)) for key, image in plain.items())
    assert any(not torch.equal(changed[key], image) for key, image in plain.items())


def test_the_objective_shows_normalised_images_and_smoothed_targets(monkeypatch):
    run = load_script("run_finetune.py", monkeypatch)
    options = {"mixup": 0, "cutmix": 0, "random_erasing": 0, "label_smoothing": 0.2}
    recipe = run.FinetuneRecipe(dataset_name="x", output_dir="y", **options)
    classifier = MawsViTForImageClassification(tiny_config(num_labels=4, image_mean=[0.4, 0.5, 0.6]))
    batch = {"pixel_values": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)}
    batch["labels"] = torch.eye(4, dtype=torch.bool)[:3]
    model = SimpleNamespace()

    def look(pixels: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        model.pixels, model.labels = pixels, labels
        return SimpleNamespace(loss=pixels.sum())

    run.MixedObjective(recipe, classifier)(look, batch)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(model.pixels, (batch["pixel_values"] / 255 - mean) / deviation)
    torch.testing.assert_close(model.labels, 0.8 * torch.eye(4)[:3] + 0.05)


def test_watched_images_are_labelled_ones_as_the_final_evaluation_sees_them(corpus, encoder, tmp_path, monkeypatch):
    run = load_script("run_finetune.py", monkeypatch)
    for resize, as_transform in (("square", "square"), ("crop", None), (40, 40)):
        options = {"eval_resize": resize, "drop_path_rate": 0.9}
        given = leave_out_training(run, command(corpus, encoder, tmp_path, **options), monkeypatch, exit_code=143)
        watch = given.after_step
        assert watch.targets.sum(dim=1).tolist() == [1] * 10
        for image, target in zip(watch.images, watch.targets.int().argmax(dim=1).tolist(), strict=True):
            assert torch.equal(image, EvalTransform(32, as_transform)(decode_image(draw_image(target))))
    model = given.model.train()
    logits = watch.logits(model)
    assert model.training, "training goes on with drop path"
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.eval()(watch.images).logits)


def test_the_end_of_a_run_is_evaluated_and_written_down_as_asked(corpus, encoder, tmp_path, monkeypatch):
    run, asked = load_script("run_finetune.py", monkeypatch), {}

    def classify(model, part, transform, labels, **options):
        asked.update(options, transform=transform, training=model.training)
        return really(model, part, transform, labels, **options)

    really, start = run.classify, tmp_path / "start"
    monkeypatch.setattr(run, "classify", classify)
    shutil.copytree(encoder, start)
    write_ledger(start, [Stage("mae", images=3, flops=5)])
    options = {"eval_resize": 40, "bf16": True, "layer_decay": 0.5}
    given = leave_out_training(run, command(corpus, start, tmp_path / "run", **options), monkeypatch)
    assert (asked["transform"], asked["bf16"]) == (EvalTransform(32, 40), True)
    spent = Stage("finetune", images=7, flops=7 * given.flops_per_image)
    assert read_ledger(str(tmp_path / "run")) == [Stage("mae", images=3, flops=5), spent]
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["classes"] == ["a", "b", "c", "d"]
    assert (content["options"]["layer_decay"], content["results"]["images"]) == (0.5, 10)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    assert (dict(processor.size), dict(processor.crop_size)) == ({"shortest_edge": 40}, {"height": 32, "width": 32})


def test_an_evaluation_label_that_is_no_class_is_told_before_training(corpus, encoder, tmp_path, monkeypatch):
    shutil.copy(corpus / "train-00000-of-00002.parquet", tmp_path / "train-0.parquet")
    columns = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "newt"])})
    images = [{"bytes": draw_image(0), "path": f"{number}.png"} for number in range(2)]
    rows = Dataset.from_dict({"image": images, "label": [0, 1]}, features=columns)
    rows.to_parquet(tmp_path / "test-0.parquet")
    run = load_script("run_finetune.py", monkeypatch)
    monkeypatch.setattr(run, "Watch", lambda *_: None)
    with pytest.raises(ValueError, match=r"its class newt in label is none of the 4 of the training split"):
        leave_out_training(run, command(tmp_path, encoder, f"{tmp_path}-out"), monkeypatch, exit_code=143)


def test_a_new_head_is_of_the_seed_and_next_to_nothing(corpus, encoder, tmp_path, monkeypatch):
    run = load_script("run_finetune.py", monkeypatch)
    heads = []
    for seed in (0, 0, 1):
        options = {"dataset_name": str(corpus), "label_column_name": "label", "model_name_or_path": str(encoder)}
        recipe = run.FinetuneRecipe(output_dir=str(tmp_path), seed=seed, **options)
        heads.append(run.build_classifier(recipe, run.read_labels(recipe)[0], multi_label=False).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 1e-5 < heads[0].std() < 4e-5  # 2e-5 in the parent recipe
