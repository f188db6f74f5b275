"""The runs of `scripts/study_mae_shortcuts.py` differ in what they are named after, and in nothing else."""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from maws_hf import MawsViTConfig
from maws_hf.training.arguments import parse_recipe
from maws_hf.training.model import build_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("examples", "scripts"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield importlib.import_module("study_mae_shortcuts")
    for name in ("study_mae_shortcuts", "study_runs", "run_mae"):
        sys.modules.pop(name, None)


def test_each_arm_changes_its_own_fields_of_the_recipe_and_no_other(study: ModuleType, tmp_path: Path):
    run_mae = importlib.import_module("run_mae")
    arguments = argparse.Namespace(dataset_name=tmp_path / "data", output_dir=tmp_path / "study", max_steps=40)
    recipes, configs = {}, {}
    for arm in study.ARMS:
        _, *flags = study.training_command(study.Run(arm, seed=3), arguments)
        recipes[arm] = parse_recipe(run_mae.MAERecipe, "", flags)
        configs[arm] = build_config(recipes[arm])
    assert len({recipe.output_dir for recipe in recipes.values()}) == len(study.ARMS)
    for arm, changes in study.ARMS.items():
        expected = {**configs[study.PLAIN].to_dict(), **changes}
        assert configs[arm].to_dict() == MawsViTConfig(**expected).to_dict()
        assert configs[arm].hidden_size == 128, "the laptop recipe's"
        same = asdict(recipes[study.PLAIN]) | {"output_dir": None, "config_overrides": None}
        assert asdict(recipes[arm]) | {"output_dir": None, "config_overrides": None} == same
        assert (recipes[arm].seed, recipes[arm].max_steps, recipes[arm].warmup_steps) == (3, 40, 2)


def test_costs_are_relative_to_the_papers_objective(study: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def timed(forms: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], None]:
        assert all(form() > 0 for form in forms.values())
        return {name: [3.0 if name == study.PLAIN else 2.0] * rounds for name in forms}, None

    monkeypatch.setattr(study, "take_turns", timed)
    fields = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "decoder_hidden_size": 64,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 256,
    }
    costs = study.costs_of(fields, batch=8, rounds=2)
    assert costs[study.PLAIN] == {"operations": 1.0, "time": 1.0}
    assert costs["a third, cross-attention"]["operations"] < costs["all, cross-attention"]["operations"] < 1
    assert costs["a third, cross-attention"]["time"] == pytest.approx(2 / 3)
