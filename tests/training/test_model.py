"""The model of a run, and the recipes that ship with the scripts."""

import importlib
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from maws_hf import MawsLiTConfig, MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.models.weight_files import ModelLoadingError
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.arguments import parse_recipe
from maws_hf.training.initial_weights import new_model
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


@pytest.fixture
def start(tmp_path: Path) -> Path:
    new_model(MawsMAEForPreTraining, tiny_config(), 1).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def parse_vision(*argv: object) -> ModelRecipe:
    return parse_recipe(ModelRecipe, "", ["--output_dir", "x", *map(str, argv)])


@pytest.mark.parametrize("model_class", [MawsMAEForPreTraining, MawsViTForImageClassification])
def test_a_start_may_be_trained_at_another_size(model_class: type, start: Path, capsys: pytest.CaptureFixture):
    recipe = ModelRecipe(
        output_dir="x", model_name_or_path=str(start), config_overrides="image_size=[48,32],drop_path_rate=0.1"
    )
    model = build_model(model_class, recipe)
    assert capsys.readouterr().out == f"{start} is of 32 px: its positions are made to fit (48, 32) px\n"
    expected = model_class.from_pretrained(start)
    expected.set_image_size((48, 32))
    for name, value in expected.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(model.state_dict()[name], value), name
    assert model.config.drop_path_rate == 0.1
    assert image_processor_of(model.config).crop_size == {"height": 48, "width": 32}
    same = ModelRecipe(output_dir="x", model_name_or_path=str(start), config_overrides="image_size=[32,32]")
    build_model(model_class, same)
    assert capsys.readouterr().out == ""


def test_a_start_that_is_read_by_rows_gets_the_same_tables(start: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = ModelRecipe(output_dir="x", model_name_or_path=str(start), config_overrides="image_size=64")
    for model_class in (MawsMAEForPreTraining, MawsViTForImageClassification):
        whole = build_model(model_class, recipe).state_dict()
        with monkeypatch.context() as patch:
            patch.setattr("maws_hf.training.model.sharding_wanted", lambda: True)
            parts = build_model(model_class, recipe).state_dict()
        given = {name for name, tensor in parts.items() if not tensor.is_meta}
        assert given == {name for name in whole if name.endswith("position_embeddings")}
        assert all(torch.equal(parts[name], whole[name]) for name in given)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_start_without_a_decoder_says_that_it_gets_one(sharded: bool, tmp_path: Path, monkeypatch, capsys):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path)
    recipe = ModelRecipe(
        output_dir="x", model_name_or_path=str(tmp_path), config_overrides="image_size=64,decoder_hidden_size=768"
    )
    monkeypatch.setattr("maws_hf.training.model.sharding_wanted", lambda: sharded)
    model = build_model(MawsMAEForPreTraining, recipe)
    parameters = sum(parameter.numel() for parameter in model.decoder.parameters()) / 1e6
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path} has no decoder: it gets a new one of {parameters:.1f} M parameters"
    assert lines[1].endswith("made to fit 64 px")
    table = model.decoder.position_embeddings
    assert table.shape == (1, 1 + 8 * 8, 768)
    made = MawsMAEForPreTraining(model.config).decoder.position_embeddings
    assert table.is_meta if sharded else torch.equal(table, made)


def test_the_decoder_of_a_start_in_the_format_of_vit_mae_is_known(tmp_path: Path):
    fields = {f"{part}{name}": 2 for part in ("", "decoder_") for name in ("num_hidden_layers", "num_attention_heads")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "decoder_hidden_size": 24, "decoder_intermediate_size": 48}
    config = ViTMAEConfig(image_size=32, patch_size=8, **fields, **sizes)
    ViTMAEForPreTraining(config).save_pretrained(tmp_path / "vit_mae")
    file = tmp_path / "recipe.yaml"
    file.write_text("config_overrides: {decoder_hidden_size: 12}\n")
    recipe = parse_vision("--config", file, "--model_name_or_path", tmp_path / "vit_mae")
    assert build_model(MawsMAEForPreTraining, recipe).config.decoder_hidden_size == 24


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("hidden_size=64,patch_size=8", "hidden_size=64 of --config_overrides (it has 32)"),
        ("patch_size=[8,8],num_hidden_layers=1", "num_hidden_layers=1 of --config_overrides (it has 2)"),
        ("decoder_hidden_size=12,image_size=64", "decoder_hidden_size=12 of --config_overrides (it has 24)"),
    ],
)
def test_what_contradicts_the_start_is_named_before_weights_are_read(
    overrides: str, named: str, start: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MawsMAEForPreTraining, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelLoadingError) as raised:
        build_model(
            MawsMAEForPreTraining, parse_vision("--model_name_or_path", start, "--config_overrides", overrides)
        )
    assert str(raised.value) == f"{start} is contradicted by {named}; leave out what a start brings along"


def test_the_shape_in_a_recipe_file_gives_way_to_the_start_unless_the_file_names_it(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    file = tmp_path / "recipe.yaml"
    overrides = "config_overrides: {image_size: 64, hidden_size: 48, decoder_hidden_size: 12, mask_ratio: 0.5}\n"
    file.write_text(overrides)
    arguments = ("--config", file, "--model_name_or_path", start)
    config = build_model(MawsMAEForPreTraining, parse_vision(*arguments)).config
    assert (config.image_size, config.hidden_size, config.mask_ratio) == (32, 32, 0.5)
    assert capsys.readouterr().out == (
        f"config_overrides of the recipe file give way to {start}: image_size=64 (it has 32), hidden_size=48 (it has "
        "32), decoder_hidden_size=12 (it has 24)\n"
    )
    typed = parse_vision(*arguments, "--config_overrides", "image_size=48")
    assert build_model(MawsMAEForPreTraining, typed).config.image_size == 48
    file.write_text("config_overrides: {image_size: 64}\n")
    for same in ("image_size=64", "image_size=64,drop_path_rate=0.1"):  # what is typed holds, also if the file says so
        assert build_config(parse_vision(*arguments, f"--config_overrides={same}")).image_size == 64
    file.write_text("config_overrides: image_size=4\n")  # a text is replaced by its flag
    assert build_config(parse_vision(*arguments, "--config_overrides", "image_size=48")).image_size == 48
    file.write_text(overrides)
    with pytest.raises(ModelLoadingError, match=r"by hidden_size=64 of --config_overrides \(it has 32\); leave"):
        build_config(parse_vision(*arguments, "--config_overrides", "hidden_size=64"))

    file.write_text(f"model_name_or_path: {start}\nconfig_overrides: {{image_size: 64}}\n")
    assert build_config(parse_vision("--config", file)).image_size == 64
    file.write_text(f"model_name_or_path: {start}\n{overrides}")
    with pytest.raises(ModelLoadingError, match=r"by hidden_size=48 of the recipe file \(it has 32\), decoder_hidden"):
        build_config(parse_vision("--config", file))


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


DEFAULTS = {  # of the parents, or ours where the recipe files have "ours"
    "mae": {"base_learning_rate": 1.5e-4, "weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.95}
    | {"crop_scale": 0.2, "min_learning_rate": 0, "max_grad_norm": 0, "ema_decay": 0, "warmup_steps": 0},
    "wsp": {"base_learning_rate": 4e-4 * 256 / 8192, "weight_decay": 0.1, "adam_beta2": 0.999, "max_grad_norm": 1}
    | {"resampling_ratio": 1, "loss": "softmax", "max_labels_per_image": 16},
    "lit": {"base_learning_rate": 3.9e-6, "weight_decay": 0.2, "adam_beta1": 0.9, "adam_beta2": 0.98}
    | {"adam_epsilon": 1e-6, "max_grad_norm": 1, "feature_views": 1},
    "finetune": {"base_learning_rate": 5e-4, "min_learning_rate": 1e-6, "weight_decay": 0.05, "adam_beta2": 0.999}
    | {"layer_decay": 0.65, "drop_path_rate": 0.1, "rand_augment": 9, "random_erasing": 0.25, "mixup": 0.8}
    | {"cutmix": 1, "label_smoothing": 0.1, "hflip": 0.5, "crop_scale": 0.08, "eval_resize": "square"}
    | {"max_steps": round(100 * 1_281_167 / 1024), "warmup_steps": round(5 * 1_281_167 / 1024)},
}


@pytest.mark.parametrize("stage", DEFAULTS)
def test_a_run_without_a_recipe_file_has_the_settings_of_its_stage(stage: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    name = {"finetune": "Finetune", "lit": "LiT"}.get(stage, stage.upper())
    recipe_class = getattr(importlib.import_module(f"run_{stage}"), f"{name}Recipe")
    towers = {"model_name_or_path": "m"} if stage == "lit" else {}
    recipe = recipe_class(output_dir="x", dataset_name="y", **towers)
    assert {option: getattr(recipe, option) for option in DEFAULTS[stage]} == DEFAULTS[stage]
    assert (recipe.save_total_limit, recipe.max_nonfinite_steps, recipe.max_skip_rate, recipe.seed) == (2, 3, 0.01, 0)
