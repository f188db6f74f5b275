"""`examples/run_zero_shot.py` as a user runs it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from runs import called_with, load_script
from tiny import draw_image, tiny_config
from tiny_two_towers import tiny_tokenizer, tiny_two_towers
from torch import nn
from transformers import CLIPImageProcessorPil

from maws_hf import MawsViTModel
from maws_hf.data.prompts import prompts_from_names
from maws_hf.evaluation.features import Features as Found
from maws_hf.evaluation.features import encode_images
from maws_hf.evaluation.zero_shot import class_embeddings, zero_shot_scores
from maws_hf.processing.decode import decode_image
from maws_hf.processing.transforms import EvalTransform

ROOT = Path(__file__).parents[2]
NAMES = ["red_disc", "blue_bar", "green_field"]
WORDS = {"en": NAMES, "ru": ["красный диск", "синяя полоса", "зелёное поле"], "ja": ["赤い円盤", "青い棒", "緑の野原"]}
CONCEPTS = ["r", "b", "g"]
MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that return, 30 rows to test, one of them broken; the last concept has no Russian name."""
    folder = tmp_path_factory.mktemp("corpus")
    caption = {"language": Value("string"), "text": Value("string")}
    kinds = Features(
        {
            "image": ImageFeature(),
            "label": ClassLabel(names=NAMES),
            "concept": Value("string"),
            "name": Value("string"),
            "number": Value("int64"),
            "tags": List(Value("string")),
            "captions": List(caption),
        }
    )
    labels = [number % 3 for number in range(30)]
    rows = {
        "image": [{"bytes": draw_image(label), "path": f"test-{i}.png"} for i, label in enumerate(labels)],
        "label": labels,
        "concept": [CONCEPTS[label] for label in labels],
        "name": [NAMES[label] for label in labels],
        "number": labels,
        "tags": [[NAMES[label]] for label in labels],
        "captions": [
            [
                {"language": language, "text": words[label]}
                for language, words in WORDS.items()
                if (language, label) != ("ru", 2)
            ]
            for label in labels
        ],
    }
    rows["image"][7]["bytes"] = b"no picture"
    dataset = Dataset.from_dict(rows, features=kinds)
    for shard in range(2):
        dataset.shard(2, shard).to_parquet(folder / f"test-{shard:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP that knows the three pictures: its image projection is solved for them."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(0)
    model, tokenizer = tiny_two_towers("clip"), tiny_tokenizer()
    classes = class_embeddings(model, tokenizer, prompts_from_names(NAMES))
    projection, model.visual_projection = model.visual_projection, nn.Identity()
    pixels = torch.stack([EvalTransform(16)(decode_image(draw_image(index))) for index in range(3)])
    hidden = encode_images(model, pixels, image_mean=tuple(MEAN), image_std=tuple(DEVIATION))
    projection.weight.data = torch.linalg.lstsq(hidden.double(), classes.double()).solution.T.float().contiguous()
    model.visual_projection = projection
    features = encode_images(model, pixels, image_mean=tuple(MEAN), image_std=tuple(DEVIATION))
    assert zero_shot_scores(features, classes).argmax(dim=1).tolist() == [0, 1, 2]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=DEVIATION).save_pretrained(folder)
    return folder


def run(corpus: Path, output_dir: Path, models: list[Path], *flags: object, expected: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "examples/run_zero_shot.py", "--model_name_or_path", *models, "--dataset_name", corpus]
    command += ["--output_dir", output_dir, "--dataloader_num_workers", 0, *flags]
    process = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, text=True, capture_output=True, timeout=200
    )
    output = process.stdout + process.stderr
    assert process.returncode == expected, output
    return output


def run_here(monkeypatch: pytest.MonkeyPatch, *flags: object) -> str | int:
    """In this process, where nothing needs to be imported again. Gives the code or message that it ends with."""
    script = load_script("run_zero_shot.py", monkeypatch)
    with called_with(flags, script, monkeypatch), pytest.raises(SystemExit) as ended:
        script.run_script(script.main)
    return ended.value.code


@pytest.fixture(scope="module")
def first_run(corpus: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict]:
    output_dir = tmp_path_factory.mktemp("first")
    output = run(corpus, output_dir, [model_folder], "--dataloader_num_workers", 2)
    return output_dir, output, json.loads((output_dir / "results.json").read_text(encoding="utf-8"))


def test_the_model_that_knows_the_pictures_names_them_all(first_run: tuple[Path, str, dict], model_folder: Path):
    output_dir, output, content = first_run
    (result,) = content["results"]
    assert {"torch", "transformers", "tokenizers", "maws_hf"} <= content["versions"].keys()
    assert content["options"]["prompts"] == ["labels"]
    expected = {"model": str(model_folder), "split": "test", "prompts": "labels", "language": "en"}
    expected |= {"classes": 3, "images": 29, "top1": 1.0, "top5": None, "mean_per_class": 1.0, "chance": 1 / 3}
    assert {name: result[name] for name in expected} == expected
    assert [record["key"] for record in result["skipped"]] == ["test-7.png"]
    shares = {"red disc": 10, "blue bar": 9, "green field": 10}
    assert result["per_class"] == {name: {"images": count, "top1": 1.0} for name, count in shares.items()}
    row = next(line for line in output.splitlines() if line.startswith(f"{model_folder} "))
    assert row.split()[1:] == ["test", "labels", "en", "3", "29", "100.00", "-", "100.00", "33.33"]
    with (output_dir / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["images"], row["top1"]) for row in rows] == [
        (name, str(count), "1.0") for name, count in shares.items()
    ]
    assert not list(output_dir.rglob("*.part"))


def test_right_names_are_green_below_the_examples(first_run: tuple[Path, str, dict]):
    output_dir, _, content = first_run
    (result,) = content["results"]
    with Image.open(output_dir / result["examples"]) as picture:
        red, green, _ = np.asarray(picture.convert("RGB")).astype(int).transpose(2, 0, 1)
    text = slice(8 + 160, 8 + 160 + 13)  # the first line below the first row of pictures of 16 pixels
    assert (green - red)[text].max() > 50
    with Image.open(output_dir / result["bars"]) as picture:
        assert (np.asarray(picture.convert("RGB")) == (31, 119, 180)).all(axis=2).any()


def test_captions_in_several_languages_and_files_of_prompts(corpus: Path, model_folder: Path, tmp_path: Path):
    prompts = {"language": "de", "source": "a test", "templates": ["ein Bild: {}"]}
    prompts["classes"] = {"r": ["rote Scheibe"], "g": ["grünes Feld", "Wiese"], "b": ["blauer Balken"]}
    (tmp_path / "german.json").write_text(json.dumps(prompts))
    flags = ["--label_column_name", "concept", "--prompts", "captions", tmp_path / "german.json"]
    output = run(corpus, tmp_path / "run", [model_folder], *flags, "--languages", "en", "ru", "ja", "--bf16", "True")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [result["language"] for result in results] == ["en", "ru", "ja", "de"]
    assert [result["classes"] for result in results] == [3, 2, 3, 3]
    assert [result["images"] for result in results] == [29, 19, 29, 29]
    assert [result["chance"] for result in results] == [1 / 3, 1 / 2, 1 / 3, 1 / 3]
    assert set(results[1]["per_class"]) == set(WORDS["ru"][:2])
    assert set(results[2]["per_class"]) == set(WORDS["ja"])
    assert results[3]["per_class"].keys() == {"rote Scheibe", "grünes Feld", "blauer Balken"}
    assert "test: for want of a caption in ru, 1 of 3 classes and its images (10) are left out" in output
    assert output.count("features computed") == 1
    for result in results:
        assert (tmp_path / "run" / result["examples"]).is_file()
        assert (tmp_path / "run" / result["bars"]).is_file()


def test_labels_that_are_texts_are_names(first_run, corpus, model_folder, tmp_path, monkeypatch):
    usual = ["--model_name_or_path", model_folder, "--dataset_name", corpus, "--output_dir", tmp_path]
    assert run_here(monkeypatch, *usual, "--label_column_name", "name", "--dataloader_num_workers", 0) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
    (expected,) = first_run[2]["results"]
    assert result["top1"] == 1.0
    assert (result["classes"], result["per_class"]) == (3, expected["per_class"])


def found(labels: list[int], names: list[str]) -> Found:
    """Four images, the third of which is most like the second class."""
    rows = torch.eye(2)[[0, 0, 1, 0]]
    return Found(rows, labels, [f"{number}.png" for number in range(4)], [], names, "digest")


def test_a_class_counts_by_its_images_or_as_much_as_any_other(monkeypatch):
    run, names = load_script("run_zero_shot.py", monkeypatch), ["cat", "dog"]
    split = run.Split("test", "image", "label", names, {}, [])
    prompts = prompts_from_names(names).select([0, 1], names)
    result = run.score("m", split, found([0, 0, 0, 1], names), prompts, "labels", torch.eye(2), names)
    assert result["top1"] == 2 / 4
    assert result["mean_per_class"] == pytest.approx((2 / 3 + 0) / 2)
    assert (result["images"], result["classes"], result["left_out"]) == (4, 2, {"classes": 0, "images": 0})


def test_an_image_without_a_class_is_named(monkeypatch):
    run = load_script("run_zero_shot.py", monkeypatch)
    monkeypatch.setattr(run, "read_features", lambda *_: found([0, 1, -1, 0], ["cat", "dog"]))
    split = run.Split("test", "image", "kind", ["cat", "dog"], {}, [])
    with pytest.raises(ValueError, match=r"^2.png: its label -1 in kind is no class: choose a labelled split"):
        run.read_labelled(None, "m", None, split)


def options_of(run, folder: Path, **options: object):
    return run.ZeroShotOptions(
        **{
            "model_name_or_path": ["a/lit", "b/lit"],
            "dataset_name": str(folder),
            "output_dir": f"{folder}-out",
            **options,
        }
    )


def test_every_split_is_scored_with_the_precision_and_batch_asked_for(tmp_path, monkeypatch):
    run, asked = load_script("run_zero_shot.py", monkeypatch), []
    monkeypatch.setattr(run, "load_two_towers", lambda name: ("model", "tokenizer"))
    monkeypatch.setattr(run, "read_labelled", lambda *_: found([0, 0, 0, 1], ["cat", "dog"]))
    monkeypatch.setattr(run, "read_examples", lambda *_: None)
    monkeypatch.setattr(run, "class_embeddings", lambda *_, **how: asked.append(how) or torch.eye(2))
    monkeypatch.setattr(run, "draw", lambda *_: {})
    monkeypatch.setattr(run, "open_split", lambda _, name: run.Split(name, "i", "l", ["cat", "dog"], {}, []))
    flags = [
        "--model_name_or_path",
        "m",
        "--dataset_name",
        str(tmp_path / "data"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    flags += ["--eval_split", "test", "unseen", "--per_device_text_batch_size", "5", "--bf16", "true"]
    with called_with(flags, run, monkeypatch):
        assert run.main() == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())["results"]
    assert [result["split"] for result in results] == ["test", "unseen"]
    assert asked == [{"batch_size": 5, "bf16": True}] * 2
    with (tmp_path / "o" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = [tuple(row.values())[1:] for row in csv.DictReader(file)]
    assert rows[0] == ("test", "labels", "en", "cat", "3", str(2 / 3))
    assert [row[0] for row in rows] == ["test", "test", "unseen", "unseen"]


def test_models_of_one_name_have_pictures_of_their_own(tmp_path, monkeypatch):
    run = load_script("run_zero_shot.py", monkeypatch)
    monkeypatch.setattr(run, "plot_extremes", lambda *_, **__: None)
    options, none = options_of(run, tmp_path), run.Examples(torch.empty(0), torch.empty(0), [])
    prompts = prompts_from_names(["cat"])
    drawn = [
        run.draw(
            options,
            {"model": name, "split": "t", "prompts": "p", "language": "en", "per_class": {}},
            prompts,
            None,
            none,
            [],
        )
        for name in options.model_name_or_path
    ]
    assert len({files["bars"] for files in drawn}) == 2


def test_examples_are_of_the_seed_and_captions_of_the_column(corpus, tmp_path, monkeypatch):
    run, columns = load_script("run_zero_shot.py", monkeypatch), []
    monkeypatch.setattr(run, "read_captions", lambda *_, caption_column, **__: columns.append(caption_column) or {})
    monkeypatch.setattr(run, "EXAMPLES", 5)
    rows = []
    for seed in (0, 0, 1):
        how = {"seed": seed, "prompts": ["captions"], "caption_column_name": "tags", "label_column_name": "label"}
        split = run.open_split(options_of(run, corpus, **how), "test")
        rows.append([row["image"]["path"] for row in split.examples])
    assert rows[0] == rows[1] != rows[2]
    assert columns == ["tags"] * 3


def test_pictures_name_classes_in_letters_that_they_have(monkeypatch):
    run = load_script("run_zero_shot.py", monkeypatch)
    prompts = prompts_from_names(["x", "y"]).select([0, 1])
    shown = run.names_to_show(prompts, ["красный диск", "赤い円盤"], {0: "a disc", 1: "a disc"})
    assert shown == ["красный диск", "a disc"]


def test_what_is_no_two_tower_model_is_one_line(corpus: Path, tmp_path: Path):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path / "vit")
    output = run(corpus, tmp_path / "run", [tmp_path / "vit"], expected=1)
    assert "vit is a MawsViTModel, which has no get_image_features" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "code", "wanted"),
    [
        (["--prompts", "imagenet"], 1, "--prompts imagenet does not fit label in test: classes: 1000, but the label"),
        (["--prompts", "nowhere.json"], 1, "nowhere.json: prompts cannot be read"),
        (["--label_column_name", "number"], 1, "the labels in number have no names: give --prompts"),
        (["--label_column_name", "tags"], 1, "tags holds lists of labels: zero-shot needs one label an image"),
        (
            ["--languages", "fr"],
            2,
            "--languages ['fr'] is not possible: it must be left out without --prompts captions",
        ),
        (
            ["--prompts", "captions", "--languages", "fr"],
            1,
            "no caption is in the language 'fr': there are en, ja, ru",
        ),
        (["--prompts", "captions", "--caption_column_name", "texts"], 1, "no caption column 'texts'"),
        (
            ["--output_dir", f"{__file__}/run", "--dataset_name", "no"],
            1,
            f"--output_dir {__file__}/run cannot be written",
        ),
        (["--eval_split", "validation"], 1, "no split 'validation'"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    flags: list,
    code: int,
    wanted: str,
    first_run: tuple[Path, str, dict],
    corpus: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    usual = ["--model_name_or_path", model_folder, "--dataset_name", corpus, "--output_dir", tmp_path]
    cache = ["--feature_cache", first_run[0] / "features", "--dataloader_num_workers", 0]
    message = run_here(monkeypatch, *usual, *cache, *flags)
    if code == 2:
        assert message == 2
        message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("run_zero_shot.py: error: ")
    assert wanted in message
    assert "\n" not in message
