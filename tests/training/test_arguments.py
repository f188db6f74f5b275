from dataclasses import dataclass
from pathlib import Path

import pytest

from maws_hf.training.arguments import TrainingArguments, option, parse_recipe
from maws_hf.training.images import ImageRecipe
from maws_hf.training.labelled_images import LabelledImageOptions
from maws_hf.training.pairs import PairRecipe


@dataclass(kw_only=True)
class Recipe(TrainingArguments):
    crop_scale: float = option(0.2, "Smallest crop.")
    config_overrides: str = option("", "Fields.")


def parse(*argv: str) -> Recipe:
    return parse_recipe(Recipe, "a test", list(argv))


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("max_steps: 7\nbf16: true\nbase_learning_rate: 1.5e-3\nconfig_overrides: {a: 1, b: x}\n")
    recipe = parse("--config", str(file), "--output_dir", "runs/x", "--max_steps", "9")
    assert recipe.max_steps == 9
    assert recipe.bf16 is True
    assert recipe.base_learning_rate == 1.5e-3
    assert recipe.config_overrides == 'a=1,b="x"'
    assert recipe.crop_scale == 0.2
    assert parse("--config", str(file), "--output_dir", "runs/x", "--bf16", "false").bf16 is False
    extended = parse("--config", str(file), "--output_dir", "runs/x", "--config_overrides", "b=2,c=[3,4]")
    assert extended.config_overrides == 'a=1,b="x",b=2,c=[3,4]'


def test_what_was_typed_is_known_apart_from_the_file_whose_empty_options_are_none(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rate:\nbf16: true\nwarmup_steps: 3\n")
    recipe = parse("--config", str(file), "--output_dir", "runs/x", "--warmup_steps=4")
    assert (recipe.learning_rate, recipe.bf16, recipe.warmup_steps) == (None, True, 4)
    assert recipe.typed == {"output_dir": ["runs/x"], "warmup_steps": ["4"]}


def test_a_list_in_a_file_is_whole(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("caption_column_name: [title, alt text]\n")
    argv = ["--config", str(file), "--output_dir", "runs/x", "--dataset_name", "data"]
    assert parse_recipe(PairRecipe, "a test", argv).caption_column_name == ["title", "alt text"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output_dir", "x", "--max_stps", "3"], "--max_stps"),
        (["--output_dir", "x", "--max", "3"], "--max"),
        (["--output_dir", "x", "--maxx_steps=3"], "arguments: --maxx_steps=3; did you mean --max_steps? (--help"),
        (["--output_dir", "x", "--max_steps", "three"], "--max_steps/--max-steps: invalid int value: 'three'"),
        (["--output_dir", "x", "--bf16", "maybe"], "maybe"),
        (["--max_steps", "3"], "--output_dir"),
        (["--outptu_dir", "x"], "required: --output_dir/--output-dir; did you mean --output_dir? (--help"),
        (["--output_dir", "x", "--save_total_limit", "1"], "--save_total_limit 1 is not possible"),
        (["--output_dir", "x", "--max_steps", "5", "--warmup_steps", "5"], "smaller than --max_steps 5"),
        (["--output_dir", "x", "--adam_beta2", "1.0"], "--adam_beta2 1.0"),
        (["--output_dir", "x", "--ema_decay", "1"], "--ema_decay 1.0 is not possible: it must be in [0, 1)"),
        (["--output_dir", "x", "--max_skip_rate", "2"], "--max_skip_rate 2.0 is not possible: it must be in [0, 1)"),
        (["--output_dir", "x", "--max_grad_norm", "-1"], "--max_grad_norm -1.0 is not possible"),
        (["--output_dir", "x", "--seed", "-1"], "--seed -1 is not possible: it must be 0 or more"),
        (["--output_dir", "x", "--dataloader_num_workers", "-1"], "--dataloader_num_workers -1 is not possible"),
        *(
            (["--output_dir", "x", f"--{name}", "0"], f"--{name} 0 is not possible: it must be at least 1")
            for name in (
                "max_steps",
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "logging_steps",
                "save_steps",
                "max_nonfinite_steps",
            )
        ),
        (["--output_dir", "x", "--learning_rate", "-1"], "--learning_rate -1.0"),
        (["--output_dir", "x", "--weight_decay", "inf"], "--weight_decay inf"),
        (["--output_dir", "x", "--base_learning_rate", "nan"], "--base_learning_rate nan"),
        (
            ["--config", "nowhere.yaml", "--output_dir", "x"],
            "--config nowhere.yaml cannot be read: No such file or directory",
        ),
    ],
)
def test_a_bad_command_exits_with_its_name(argv: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_stps: 3", "unknown option 'max_stps'; did you mean 'max_steps'"),
        ("- a\n- b", "got a list"),
        ("a: [", "is not YAML"),
        ("max_steps: many", "invalid int value: 'many'"),
    ],
)
def test_a_bad_file_exits_with_its_name(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        parse("--config", str(file), "--output_dir", "x")
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", "recipe/tiny.yaml"])
def test_a_recipe_of_the_examples_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").touch()
    monkeypatch.setattr("sys.argv", [str(tmp_path / "run_mae.py")])
    with pytest.raises(SystemExit):
        parse("--config", name, "--output_dir", "x")
    there = tmp_path / "recipes" / "tiny.yaml"
    message = f"--config {name} cannot be read: No such file or directory; did you mean {there}?"
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_help_explains_every_option(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name, item in Recipe.__dataclass_fields__.items():
        assert f"--{name}" in shown
        assert item.metadata["help"].split(".")[0] in shown


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        (ImageRecipe, "output_dir"),
        (PairRecipe, "output_dir"),
        (PairRecipe, "feature_cache"),
        (LabelledImageOptions, "output_dir"),
        (LabelledImageOptions, "feature_cache"),
    ],
)
def test_nothing_is_written_into_the_images_that_are_read(recipe: type, option: str, tmp_path: Path, capsys):
    (photos := tmp_path / "photos").mkdir()
    folders = {"output_dir": tmp_path / "runs", option: photos / "runs"}
    argv = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
    with pytest.raises(SystemExit) as stopped:
        parse_recipe(recipe, "a test", [*argv, "--dataset_name", str(photos)])
    assert stopped.value.code == 2
    assert f"--{option} {photos / 'runs'} lies in {photos}, the data set" in capsys.readouterr().err
    assert list(photos.iterdir()) == []
