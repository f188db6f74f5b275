"""`examples/run_lit.py` as a user runs it: trained, killed, resumed, and its output used."""

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from runs import assert_same_run, finish, kill_after, leave_out_training, load_script, script, start, steps_logged
from safetensors.torch import load_file
from tiny import draw_image, tiny_config
from tiny_two_towers import BEGIN, END, PAD, tiny_tokenizer
from transformers import AutoModel, AutoProcessor, XLMRobertaConfig, XLMRobertaModel

from maws_hf import MawsLiTModel, MawsViTModel
from maws_hf.evaluation.flops import image_tower_flops, lit_training_flops
from maws_hf.evaluation.retrieval import caption_retrieval
from maws_hf.models.configuration_maws_lit import MAX_LOGIT_SCALE
from maws_hf.training.ledger import Stage, read_ledger, write_ledger

STEPS, BATCH = 80, 16
KILLS = int(os.environ.get("MAWS_HF_KILLS", "2"))
WORDS = ["red", "blue", "green", "small", "large", "disc", "bar", "on", "under", "bright", "dark", "field"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def caption_of(index: int) -> str:
    """Three words that no other of 216 pictures has in this order."""
    return f"{WORDS[index % 6]} {WORDS[6 + index // 6 % 6]} {WORDS[index // 36 % 6]}"


def write_pairs(folder: Path, split: str, first: int, count: int, shards: int, broken: int | None = None) -> None:
    kinds = {"image": Image(), "captions": List({"language": Value("string"), "text": Value("string")})}
    rows = {
        "image": [
            {"bytes": b"no picture" if i == broken else draw_image(i), "path": f"{i}.png"}
            for i in range(first, first + count)
        ],
        "captions": [
            [{"language": "en", "text": caption_of(i)}, {"language": "de", "text": caption_of(i)[::-1]}]
            for i in range(first, first + count)
        ],
    }
    rows["captions"][1] = []
    dataset = Dataset.from_dict(rows, features=Features(kinds))
    for shard in range(shards):
        dataset.shard(shards, shard).to_parquet(folder / f"{split}-{shard:05d}.parquet")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in two shards, one of them broken and one without a caption; 12 more to test."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, "train", 0, 60, shards=2, broken=41)
    write_pairs(folder, "test", 60, 12, shards=1)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vision`, whose features tell pictures apart, with its ledger; `text` with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    vision = MawsViTModel(tiny_config())
    for parameter in vision.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    vision.save_pretrained(folder / "vision")
    write_ledger(folder / "vision", [Stage("mae", 100, 1000), Stage("wsp", 200, 3000)])
    text = XLMRobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=106,
        initializer_range=0.2,  # first tokens of different captions differ
        hidden_dropout_prob=0.02,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    XLMRobertaModel(text).save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    return folder


def command(pairs: Path, towers: Path, output_dir: Path, *flags: str, **options: object) -> list[str]:
    defaults = {
        "vision_model_name_or_path": towers / "vision",
        "text_model_name_or_path": towers / "text",
        "dataset_name": pairs,
        "eval_split": "test",
        "output_dir": output_dir,
        "feature_views": 3,
        "crop_scale": 0.7,
        "max_steps": STEPS,
        "warmup_steps": 3,
        "per_device_train_batch_size": BATCH,
        "shuffle_block_size": 7,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 7,
        "dataloader_num_workers": 0,
    }
    options = {name: value for name, value in {**defaults, **options}.items() if value is not None}
    return [*script("run_lit.py", **options), *flags]


# ----------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def straight_run(pairs: Path, towers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("straight")
    output = finish(start(command(pairs, towers, output_dir, "--retrieval_splits", "train", "test")))
    assert f"LiT from {towers / 'vision'}: {STEPS} steps done" in output
    assert "1 images could not be read and are left out, among them 41.png" in output
    assert str(output_dir / "retrieval.json") in output
    return output_dir


def logged(output_dir: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_which_caption_belongs_to_which_picture(straight_run: Path):
    assert steps_logged(straight_run) == list(range(1, STEPS + 1))
    losses = logged(straight_run, "loss")
    assert losses[0] > 0.8 * math.log(BATCH)
    assert sum(losses[-5:]) / 5 < 0.92 * math.log(BATCH)
    assert (straight_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((straight_run / "retrieval.json").read_text())
    assert content.keys() == {"results"}
    assert [(result["split"], result["language"]) for result in content["results"]] == [
        ("train", "en"),
        ("test", "en"),
    ]
    for result, images in zip(content["results"], (58, 11), strict=True):
        assert result.keys() == {
            "split", "language", "pairs", "captions", "image_to_text", "text_to_image", "chance@1"
        }  # fmt: skip
        assert (result["pairs"], result["captions"], result["chance@1"]) == (images, images, 1 / images)
        assert result["image_to_text"].keys() == result["text_to_image"].keys() == {"recall@1", "recall@5"}
    assert content["results"][0]["image_to_text"]["recall@5"] > 2.5 * 5 / 58


def test_the_ledger_goes_on_from_the_image_tower(straight_run: Path):
    stages = json.loads((straight_run / "training.json").read_text())["stages"]
    assert [(stage["name"], stage["images"]) for stage in stages] == [
        ("mae", 100),
        ("wsp", 200),
        ("lit", STEPS * BATCH),
    ]
    assert stages[-1]["flops"] > logged(straight_run, "training_flops")[-1] > 0  # the features are in it, too


def test_the_image_tower_is_the_one_that_came(straight_run: Path, towers: Path):
    before, after = (load_file(folder / "model.safetensors") for folder in (towers / "vision", straight_run))
    tower = {name.removeprefix("vision_model."): after[name] for name in after if name.startswith("vision_model.")}
    assert tower.keys() == before.keys()
    for name in before:
        assert torch.equal(tower[name], before[name]), name
    assert not any(name.startswith("text_model.pooler") for name in after)


def test_the_saved_model_is_used_without_a_word(straight_run: Path):
    code = f"""
import maws_hf
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder = {str(straight_run)!r}
inputs = AutoProcessor.from_pretrained(folder)(text=["a cat", "ein Hund im Garten"], images=Image.new("RGB", (40, 30)))
inputs = inputs.convert_to_tensors("pt")
assert AutoModel.from_pretrained(folder)(**inputs).logits_per_image.shape == (1, 2)
classify = pipeline("zero-shot-image-classification", folder, device="cpu")
scores = classify(Image.new("RGB", (40, 30), "red"), candidate_labels=["red disc", "blue bar", "a"])
assert len(scores) == 3 and abs(sum(score["score"] for score in scores) - 1) < 1e-5
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    said = [line for line in process.stderr.replace("\r", "\n").splitlines() if line and "Loading weights" not in line]
    assert said == []
    assert process.stdout == ""


def test_the_saved_model_and_its_processor_fit(straight_run: Path):
    model, processor = AutoModel.from_pretrained(straight_run), AutoProcessor.from_pretrained(straight_run)
    assert isinstance(model, MawsLiTModel)
    assert processor.tokenizer.model_max_length == model.config.max_text_length == 102
    assert processor(text=["word " * 500], return_tensors="pt")["input_ids"].shape == (1, 102)


@pytest.mark.parametrize("views", [0, 1, 3])
def test_kills_change_nothing(views: int, straight_run: Path, pairs: Path, towers: Path, tmp_path: Path, prepare):
    reference, killed = straight_run, tmp_path / "killed"
    options = {"feature_views": views, "max_steps": STEPS if views == 3 else 20}
    if views != 3:
        reference = tmp_path / "straight"
        finish(prepare(command(pairs, towers, reference, **options)))
    arguments = command(pairs, towers, killed, **options)
    kills = KILLS if views == 3 else 1
    for step in sorted(random.SystemRandom().sample(range(2, options["max_steps"] - 4), kills)):
        print(f"killing after step {step}")
        kill_after(prepare(arguments), killed, step)
    finish(prepare(arguments))
    assert_same_run(reference, killed)


def test_features_are_shared_and_computed_once(straight_run: Path, pairs: Path, towers: Path, tmp_path, prepare):
    (folder,) = (straight_run / "features").iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    options = {"feature_cache": straight_run / "features", "max_steps": 2, "warmup_steps": 0, "seed": 0}
    finish(prepare(command(pairs, towers, tmp_path, **options)))
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert not (tmp_path / "features").exists()


def test_a_batch_in_parts_is_the_same_batch(straight_run: Path, pairs: Path, towers: Path, tmp_path: Path, prepare):
    silent = tmp_path / "text"
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "add_pooling_layer": False}
    XLMRobertaModel.from_pretrained(towers / "text", **no_dropout).save_pretrained(silent)
    tiny_tokenizer().save_pretrained(silent)
    options = {"text_model_name_or_path": silent, "feature_cache": straight_run / "features"}
    losses = []
    for chunks in (1, 4):
        output_dir = tmp_path / f"chunks-{chunks}"
        options |= {"gradient_cache_chunks": chunks, "max_steps": 1, "warmup_steps": 0}
        finish(prepare(command(pairs, towers, output_dir, **options)))
        losses += logged(output_dir, "loss")
    compiled = options | {"torch_compile": True}
    finish(prepare(command(pairs, towers, tmp_path / "compiled", **compiled)))
    losses += logged(tmp_path / "compiled", "loss")
    assert losses == pytest.approx(3 * losses[:1], abs=1e-5)


def test_the_towers_are_compiled_each_by_itself(towers: Path, tmp_path: Path, monkeypatch):
    run = load_script("run_lit.py", monkeypatch)
    recipe = SimpleNamespace(
        seed=0, attn_implementation="sdpa", model_name_or_path=None, projection_dim=None, gradient_checkpointing=False
    )
    recipe.vision_model_name_or_path, recipe.text_model_name_or_path = towers / "vision", towers / "text"
    for recipe.torch_compile in (False, True):
        model, _ = run.build_model(recipe)
        compiled = [part._compiled_call_impl is not None for part in (model, model.vision_model, model.text_model)]
        assert compiled == [False, recipe.torch_compile, recipe.torch_compile]


def test_a_batch_of_more_pairs_than_there_are_is_told(
    straight_run: Path, pairs: Path, towers: Path, tmp_path: Path, prepare
):
    options = {"feature_cache": straight_run / "features", "max_steps": 1, "warmup_steps": 0}
    output = finish(prepare(command(pairs, towers, tmp_path, per_device_train_batch_size=60, **options)))
    assert re.search(r"warning: an update has 60 pairs, more than the \d+ images of the data set", output)


def test_a_lit_model_is_trained_on_with_other_captions(straight_run: Path, pairs: Path, tmp_path: Path, prepare):
    options = {"vision_model_name_or_path": None, "text_model_name_or_path": None, "model_name_or_path": straight_run}
    options |= {"caption_weights": "de=1", "feature_views": 1, "max_steps": 2, "warmup_steps": 0, "learning_rate": 0}
    finish(prepare(command(pairs, Path(), tmp_path, "--retrieval_languages", "en", "de", **options)))
    stages = json.loads((tmp_path / "training.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["mae", "wsp", "lit", "lit"]
    results = json.loads((tmp_path / "retrieval.json").read_text())["results"]
    assert [result["language"] for result in results] == ["en", "de"]
    before = json.loads((straight_run / "retrieval.json").read_text())["results"][1]
    assert results[0] == before  # nothing was learned, and the same pictures were found again


def test_two_processes_share_the_images_and_their_candidates(pairs: Path, towers: Path, tmp_path: Path):
    launch = script("run_lit.py")[:1] + ["-m", "accelerate.commands.launch", "--num_processes=2", "--cpu"]
    finish(start(launch + command(pairs, towers, tmp_path, max_steps=4, warmup_steps=0)[1:]))
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    assert logged(tmp_path, "loss")[0] > 0.8 * math.log(2 * BATCH)  # so many captions to choose from
    assert len(list((tmp_path / "features").glob("*/*.parquet"))) == 2
    assert MawsLiTModel.from_pretrained(tmp_path).config.projection_dim == 32


ERRORS = {
    "one tower": ({"text_model_name_or_path": None}, [], 2, "give --vision_model_name_or_path and --text_model_name"),
    "towers and a model": ({"model_name_or_path": "x"}, [], 2, "or a LiT model alone: --model_name_or_path"),
    "accumulation": ({"gradient_accumulation_steps": 2}, [], 2, "--gradient_accumulation_steps 2 is not possible: it"),
    "chunks": ({"gradient_cache_chunks": 17}, [], 2, "it must be from 1 to the batch size, 16"),
    "weights": ({"caption_weights": "en=much"}, [], 2, "caption weight 'en=much' must be SOURCE=NUMBER"),
    "language": (
        {},
        ["--retrieval_languages", "fr"],
        1,
        "fr: no image of the split test of .* there are de, en",
    ),
    "trained language": (
        {"caption_weights": "fr=1"},
        [],
        1,
        "no image of the split train of .* in captions: choose",
    ),
    "column": ({}, ["--caption_column_name", "alt"], 1, "no column alt among image, captions: name the captions with"),
    "split": ({"eval_split": "validation"}, [], 1, "has no split 'validation', there are test, train"),
    "no tokenizer": ({"text_model_name_or_path": "{vision}"}, [], 1, "comes without a tokenizer that can be loaded"),
}


@pytest.mark.parametrize(("options", "flags", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_what_cannot_be_is_one_line_before_anything_is_computed(
    options, flags, code, message, pairs: Path, towers: Path, tmp_path: Path, prepare
):
    options = {name: value and str(value).format(vision=towers / "vision") for name, value in options.items()}
    output = finish(prepare(command(pairs, towers, tmp_path / "run", *flags, **options)), expected=code)
    last = output.splitlines()[-1]
    assert re.search(f"error: .*{message}", last), output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "features").exists()


def test_captions_are_cut_to_the_positions_that_there_are(pairs: Path, towers: Path, tmp_path: Path, prepare):
    config = XLMRobertaConfig.from_pretrained(towers / "text", max_position_embeddings=8)
    XLMRobertaModel(config).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    options = {"text_model_name_or_path": tmp_path / "text", "max_steps": 1, "warmup_steps": 0, "feature_views": 1}
    finish(prepare(command(pairs, towers, tmp_path / "run", **options)))
    ids = AutoProcessor.from_pretrained(tmp_path / "run")(text=["red disc under"], return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 7)  # the padding token is number 0, and the positions after it are 1 to 7


def test_a_foreign_tokenizer_is_refused(pairs: Path, towers: Path, tmp_path: Path, prepare):
    config = XLMRobertaConfig.from_pretrained(towers / "text", vocab_size=100)
    XLMRobertaModel(config).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    options = {"text_model_name_or_path": tmp_path / "text"}
    output = finish(prepare(command(pairs, towers, tmp_path / "run", **options)), expected=1)
    assert re.search(r"error: the tokenizer of .*text has \d+ pieces and its text tower 100", output.splitlines()[-1])


def test_captions_are_wanted(image_shards: Path, towers: Path, tmp_path: Path, prepare):
    output = finish(prepare(command(image_shards, towers, tmp_path, eval_split=None)), expected=1)
    assert "no column captions, caption, text, txt among image: name the captions with" in output.splitlines()[-1]


def test_what_the_recipe_says_of_model_and_batch_reaches_them(pairs: Path, towers: Path, tmp_path: Path, monkeypatch):
    run = load_script("run_lit.py", monkeypatch)
    options = {"feature_views": 0, "gradient_cache_chunks": 4, "gradient_checkpointing": True, "projection_dim": 24}
    options |= {"bf16": True, "attn_implementation": "eager"}
    given = leave_out_training(run, command(pairs, towers, tmp_path, **options), monkeypatch, exit_code=143)
    assert len(next(iter(given.loader))["text_batches"]) == 4
    assert any(getattr(part, "gradient_checkpointing", False) for part in given.model.text_model.modules())
    assert given.model.visual_projection.weight.shape == (24, 32)
    assert given.model.config._attn_implementation == "eager"
    assert given.batch_loss.keywords["encode"].keywords["bf16"] is True


@pytest.mark.parametrize("views", [0, 3])
def test_the_cost_has_the_features_of_every_view(views: int, pairs: Path, towers: Path, tmp_path: Path, monkeypatch):
    run = load_script("run_lit.py", monkeypatch)
    given = leave_out_training(run, command(pairs, towers, tmp_path, feature_views=views), monkeypatch)
    config = given.model.config
    tokens = run.mean_caption_tokens(given.recipe, run.load_tokenizer_of(str(towers / "text"), given.model))
    sizes = {"text_tokens": tokens, "projection_dim": 32, "cached_features": views > 0}
    each = lit_training_flops(config.vision_config, config.text_config, **sizes)
    assert given.flops_per_image == each
    spent = 7 * each + views * 59 * image_tower_flops(config.vision_config)  # one of 60 images is broken
    assert read_ledger(str(tmp_path))[-1] == Stage("lit", images=7, flops=spent)


def test_projections_are_of_the_seed(towers: Path, tmp_path: Path, monkeypatch):
    run = load_script("run_lit.py", monkeypatch)
    options = {"vision_model_name_or_path": str(towers / "vision"), "text_model_name_or_path": str(towers / "text")}
    projections = [
        run.build_model(run.LiTRecipe(dataset_name="x", output_dir=str(tmp_path), seed=seed, **options))[0]
        .text_projection.weight.detach()
        .clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(projections[0], projections[1])
    assert not torch.equal(projections[0], projections[2])


def test_the_saved_model_is_bounded_and_asked_without_dropout(pairs: Path, towers: Path, tmp_path: Path, monkeypatch):
    config = XLMRobertaConfig.from_pretrained(towers / "text", hidden_dropout_prob=0.5)
    XLMRobertaModel(config).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    run, modes = load_script("run_lit.py", monkeypatch), []

    def look(model, features, captions) -> dict:
        modes.append(model.text_model.training)
        return caption_retrieval(model, features, captions)

    build = run.build_model

    def build_beyond_the_bound(recipe):
        model, tokenizer = build(recipe)
        model.logit_scale.data.fill_(9)
        return model, tokenizer

    monkeypatch.setattr(run, "caption_retrieval", look)
    monkeypatch.setattr(run, "build_model", build_beyond_the_bound)
    options = {"feature_views": 0, "text_model_name_or_path": tmp_path / "text"}
    leave_out_training(run, command(pairs, towers, tmp_path / "run", **options), monkeypatch)
    assert modes == [False]
    assert float(load_file(tmp_path / "run" / "model.safetensors")["logit_scale"]) == pytest.approx(MAX_LOGIT_SCALE)
    (result,) = json.loads((tmp_path / "run" / "retrieval.json").read_text())["results"]
    assert result["split"] == "test", "the evaluation split is asked unless others are named"


def test_the_report_has_each_direction_in_its_column(tmp_path: Path, monkeypatch, capsys):
    run = load_script("run_lit.py", monkeypatch)
    recipe = SimpleNamespace(output_dir=str(tmp_path), model_name_or_path="lit", vision_model_name_or_path=None)
    result = {"split": "test", "language": "ja", "pairs": 8, "captions": 9, "chance@1": 0.125}
    result |= {
        "image_to_text": {"recall@1": 0.1, "recall@5": 0.2},
        "text_to_image": {"recall@1": 0.3, "recall@5": 0.4},
    }
    run.report(recipe, SimpleNamespace(logit_scale=torch.tensor(0.0)), 5, [Stage("lit", 1, 1)], [result])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "test, ja" in line]
    assert line.split()[2:] == ["8", "9", "10.0", "20.0", "30.0", "40.0", "12.50"]
