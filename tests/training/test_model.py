"""The model of a run, and the recipes that ship with the scripts."""

import importlib
from pathlib import Path

import pytest
from tiny import tiny_config

from maws_hf import MawsLiTConfig, MawsViTForImageClassification
from maws_hf.training.arguments import parse_recipe
from maws_hf.training.model import ModelRecipe, build_config, build_model, parse_overrides

ROOT = Path(__file__).parents[2]
ALL_RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
LIT_RECIPES = [file for file in ALL_RECIPES if file.stem.startswith("lit_")]
RECIPES = [file for file in ALL_RECIPES if file not in LIT_RECIPES]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("image_size=96, patch_size=8", {"image_size": 96, "patch_size": 8}),
        ("image_size=[16,24],norm_pix_loss=false", {"image_size": [16, 24], "norm_pix_loss": False}),
        ("layer_norm_eps=1e-6,hidden_act=relu", {"layer_norm_eps": 1e-6, "hidden_act": "relu"}),
    ],
)
def test_config_overrides_are_json_values(text: str, fields: dict):
    assert parse_overrides(text) == fields


def test_overrides_that_contradict_the_start_are_named_and_others_are_not(tmp_path: Path):
    MawsViTForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "start")
    options = {"model_name_or_path": str(tmp_path / "start"), "output_dir": str(tmp_path / "run")}
    recipe = ModelRecipe(**options, config_overrides="drop_path_rate=0.1,patch_size=8")
    assert build_model(MawsViTForImageClassification, recipe).config.drop_path_rate == 0.1
    for overrides, named, reason in (
        ("hidden_size=64,patch_size=8", r"hidden_size=64 \(it has 32\)", "another shape"),
        ("patch_size=8,num_hidden_layers=1", r"num_hidden_layers=1 \(it has 2\)", "not possible"),
    ):
        recipe = ModelRecipe(**options, config_overrides=overrides)
        with pytest.raises(ValueError, match=rf"contradict .*start: {named}; leave out .* {reason}"):
            build_model(MawsViTForImageClassification, recipe)


@pytest.fixture
def recipe_class(file: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.syspath_prepend(ROOT / "examples")
    stage = file.stem.split("_")[0]
    name = {"finetune": "Finetune"}.get(stage, stage.upper())
    return getattr(importlib.import_module(f"run_{stage}"), f"{name}Recipe")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_are_valid_and_scale_to_the_batch_of_their_stage(file: Path, recipe_class: type):
    recipe = parse_recipe(recipe_class, "", ["--config", str(file), "--output_dir", "x", "--dataset_name", "y"])
    config = build_config(recipe)
    assert recipe.bf16 is (recipe.model_size != "vit_6.5b14" and "laptop" not in file.stem)
    if "laptop" in file.stem:
        return
    images, seen = {"mae": (4096, 5e9), "wsp": (8192, 5e9), "finetune": (1024, None)}[file.stem.split("_")[0]]
    assert recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * 8 == images
    if seen is not None:
        assert recipe.max_steps == round(seen / images)
    assert config.decoder_hidden_size == 512


@pytest.mark.parametrize("file", [file for file in RECIPES if "mae_vit" in file.stem], ids=lambda file: file.stem)
def test_the_papers_mae_recipes_are_the_parents(file: Path, recipe_class: type):
    recipe = parse_recipe(recipe_class, "", ["--config", str(file), "--output_dir", "x", "--dataset_name", "y"])
    assert recipe.base_learning_rate == 1.5e-4
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.weight_decay) == (0.9, 0.95, 0.05)


PARENT_FINETUNING = {  # epochs, base learning rate, layer decay, drop path: MAE's FINETUNE.md
    "finetune_vit_b16": (100, 5e-4, 0.65, 0.1),
    "finetune_vit_l16": (50, 1e-3, 0.75, 0.2),
    "finetune_vit_h14": (50, 1e-3, 0.75, 0.3),
}


@pytest.mark.parametrize("name", PARENT_FINETUNING)
def test_fine_tuning_recipes_are_the_parents(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    recipe_class = importlib.import_module("run_finetune").FinetuneRecipe
    file = ROOT / "examples" / "recipes" / f"{name}.yaml"
    recipe = parse_recipe(recipe_class, "", ["--config", str(file), "--output_dir", "x", "--dataset_name", "y"])
    epochs, *values = PARENT_FINETUNING[name]
    assert recipe.max_steps == round(epochs * 1_281_167 / 1024)
    assert recipe.warmup_steps == round(5 * 1_281_167 / 1024)
    assert [recipe.base_learning_rate, recipe.layer_decay, recipe.drop_path_rate] == values
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.weight_decay) == (0.9, 0.999, 0.05)
    defaults = recipe_class(output_dir="x", dataset_name="y")
    for option in ("rand_augment", "random_erasing", "mixup", "cutmix", "label_smoothing", "crop_scale"):
        assert getattr(recipe, option) == getattr(defaults, option), option


@pytest.mark.parametrize("file", LIT_RECIPES, ids=lambda file: file.stem)
def test_shipped_lit_recipes_have_the_released_towers_and_one_batch(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    lit_recipe = importlib.import_module("run_lit").LiTRecipe
    towers = [
        "--vision_model_name_or_path",
        "v",
        *(["--text_model_name_or_path", "t"] if "laptop" in file.stem else []),
    ]
    recipe = parse_recipe(lit_recipe, "", ["--config", str(file), "--output_dir", "x", "--dataset_name", "y", *towers])
    if "laptop" in file.stem:
        return
    released = MawsLiTConfig.from_size(file.stem.removeprefix("lit_"))
    size = "base" if released.text_config.num_hidden_layers == 12 else "large"
    assert recipe.text_model_name_or_path == f"FacebookAI/xlm-roberta-{size}"
    assert recipe.projection_dim == released.projection_dim
    assert recipe.per_device_train_batch_size * 8 == 32768
    assert recipe.max_steps == round(5e9 / 32768)
    assert recipe.base_learning_rate * 32768 / 256 == pytest.approx(5e-4, rel=0.01)


def test_the_sizes_of_the_paper_share_one_wsp_recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    wsp_recipe = importlib.import_module("run_wsp").WSPRecipe
    recipes = [
        parse_recipe(wsp_recipe, "", ["--config", str(file), "--output_dir", "x", "--dataset_name", "y"])
        for file in RECIPES
        if "wsp_vit" in file.stem
    ]
    assert len(recipes) == 5
    shared = ("base_learning_rate", "weight_decay", "adam_beta2", "max_grad_norm", "crop_scale", "resampling_ratio")
    assert len({tuple(getattr(recipe, name) for name in shared) for recipe in recipes}) == 1
