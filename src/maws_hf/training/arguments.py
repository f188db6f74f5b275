"""What every training script can be told: one typed recipe, from flags, from a YAML file, or from both."""

import argparse
import difflib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

Recipe = TypeVar("Recipe", bound="Options")


def option(default: Any, help: str) -> Any:
    """A recipe field with the sentence that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class Options:
    """What all groups of options have: a recipe inherits from several, and each checks its own."""

    # Flags and what followed each, without what a recipe file says; set by `parse_recipe`, and no option itself.
    typed = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the option that is impossible and what would do."""

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ValueError(f"--{name} {getattr(self, name)} is not possible: it must be {wanted}")


@dataclass(kw_only=True)
class TrainingArguments(Options):
    """Options shared by all training scripts; names follow transformers' `TrainingArguments` where it has them."""

    output_dir: str = field(
        metadata={"help": "Folder of the run: checkpoints, metrics, pictures, the model. The same command resumes."}
    )
    max_steps: int = option(500_000, "Updates in all; the learning rate schedule ends here.")
    per_device_train_batch_size: int = option(64, "Images a device and forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes an update; gradients are averaged over them.")
    base_learning_rate: float = option(1.5e-4, "Peak learning rate for 256 images an update; scaled linearly.")
    learning_rate: float | None = option(None, "Peak learning rate itself, not scaled by the batch.")
    min_learning_rate: float = option(0.0, "Learning rate that the cosine ends at.")
    weight_decay: float = option(0.05, "AdamW weight decay, on matrices only.")
    adam_beta1: float = option(0.9, "AdamW beta1.")
    adam_beta2: float = option(0.95, "AdamW beta2.")
    adam_epsilon: float = option(1e-8, "AdamW epsilon.")
    warmup_steps: int = option(0, "Updates over which the learning rate rises from 0.")
    ema_decay: float = option(
        0.0,
        "Train on, but keep and save a float32 average of the weights, after t updates with this decay or "
        "(1 + t) / (10 + t), whichever is less; 0: none.",
    )
    max_grad_norm: float = option(0.0, "Clip gradients to this global norm; 0 does not clip.")
    max_nonfinite_steps: int = option(
        3, "Updates with a NaN or infinite loss or gradient are refused; so many in a row end the run."
    )
    loss_spike_factor: float = option(
        3.0, "A loss so many times above the median of the last 100 is told with its images in spikes.jsonl; 0: none."
    )
    skip_loss_spikes: bool = option(False, "Leave such an update out, at most 3 in a row.")
    max_skip_rate: float = option(
        0.01, "Share of bad images among the last 10,000, or of damaged shards, above which the run ends."
    )
    seed: int = option(0, "Decides initial weights, data order, crops and masks.")
    bf16: bool = option(False, "bfloat16 autocast; weights, losses and optimizer stay in float32.")
    tf32: bool = option(
        False,
        "On NVIDIA GPUs since Ampere multiply float32 matrices as TF32, faster and with 10 bits of mantissa. Without "
        "--bf16 that is every product, with it those that stay in float32.",
    )
    attn_implementation: str = option(
        "sdpa",
        "Attention backend: eager, sdpa, flash_attention_2, flex_attention, ...; torch_sdpa is sdpa without our own "
        "products, which are faster in bfloat16 on CPUs and round scores.",
    )
    gradient_checkpointing: bool = option(False, "Recompute blocks in the backward pass: less memory, more time.")
    torch_compile: bool = option(
        False, "Compile the model with torch.compile; meant for GPUs: on CPUs steps of MAE took longer compiled."
    )
    logging_steps: int = option(50, "Updates between two lines of metrics.jsonl.")
    save_steps: int = option(1000, "Updates between two checkpoints.")
    save_total_limit: int = option(2, "Checkpoints kept, at least 2.")
    dataloader_num_workers: int = option(2, "Processes a device that read and decode images; 0 reads in the main one.")
    report_to: str = option("none", "Accelerate tracker besides metrics.jsonl: none, tensorboard, wandb, trackio, ...")
    resume_from_checkpoint: str = option(
        "auto",
        "auto: the newest whole checkpoint in output_dir, if any; or the path of a step-00001000 folder.",
    )
    strict_resume: bool = option(
        False, "A damaged newest checkpoint ends the run with its name, instead of falling back to the one before."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("save_steps", "max_nonfinite_steps"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("warmup_steps", "dataloader_num_workers", "seed"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        rates = ("base_learning_rate", "learning_rate", "min_learning_rate")
        for name in (*rates, "weight_decay", "max_grad_norm", "adam_epsilon", "loss_spike_factor"):
            value = getattr(self, name)
            self._require(value is None or 0 <= value < math.inf, name, "a finite number, 0 or more")
        for name in ("adam_beta1", "adam_beta2", "ema_decay", "max_skip_rate"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self._require(self.save_total_limit >= 2, "save_total_limit", "at least 2: the newest may be damaged")
        self._require(self.warmup_steps < self.max_steps, "warmup_steps", f"smaller than --max_steps {self.max_steps}")


def parse_recipe(recipe_class: type[Recipe], description: str, argv: list[str] | None = None) -> Recipe:
    """Reads a recipe from `--config recipe.yaml` and flags; flags win.

    Exits with one line on standard error for an unknown flag or key, a value of the wrong type or an impossible one.
    """
    argv = sys.argv[1:] if argv is None else argv
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", metavar="RECIPE.yaml", help="YAML file of the options below; flags win.")
    parser = _Parser(
        recipe_class,
        usage="%(prog)s [--config RECIPE.yaml] [--OPTION VALUE ...]",
        description=description,
        parents=[config_parser],
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    config, _ = config_parser.parse_known_args(argv)
    try:
        from_file = _values_from_yaml(recipe_class, config.config) if config.config else {}
        flags = [part for name, value in from_file.items() for part in _as_flag(name, value)]
        parser.given = flags + argv
        values = vars(parser.parse_args(parser.given))
        del values["config"]
        typed = _typed(recipe_class, argv)
        for name, value in from_file.items():
            if isinstance(value, dict) and name in typed:
                values[name] = f"{_as_text(value)},{values[name]}"  # a mapping is extended by its flag, not replaced
        recipe = recipe_class(**values)
        recipe.typed = typed
        return recipe
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


class _Parser(HfArgumentParser):
    """Says of a wrong command what is wrong, in one line, and not all its options before that."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        flags = [word.partition("=")[0] for word in self.given if word.startswith("--")]
        # Also where a required one is said to be missing.
        guesses = [guess for flag in flags if flag not in known for guess in difflib.get_close_matches(flag, known, 1)]
        hint = f"; did you mean {' '.join(guesses)}?" if guesses else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (--help explains the options)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the example command in the description as it is."""


def _values_from_yaml(recipe_class: type[Recipe], path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        name = f"{Path(path).name.removesuffix('.yaml')}.yaml"
        recipe = Path(sys.argv[0]).parent / "recipes" / name  # of the script that runs
        hint = f"; did you mean {recipe}?" if recipe.is_file() else ""
        raise ValueError(f"--config {path} cannot be read: {error.strerror}{hint}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `option: value` lines, got a {type(values).__name__}")
    known = {item.name for item in fields(recipe_class)}
    for name in values:
        if name not in known:
            guess = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"{path}: unknown option {name!r}" + (f"; did you mean {guess[0]!r}?" if guess else ""))
    return {name: value for name, value in values.items() if value is not None}


def _typed(recipe_class: type[Options], argv: Sequence[str]) -> dict[str, list[str]]:
    """The options in a command that was found to be right."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for item in fields(recipe_class):
        parser.add_argument(f"--{item.name}", nargs="*")
    return vars(parser.parse_known_args(argv)[0])


def _as_flag(name: str, value: Any) -> list[str]:
    """What would be typed for it, so that the file's values pass the same checks as flags."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", _as_text(value) if isinstance(value, dict) else str(value)]


def _as_text(mapping: dict[str, Any]) -> str:
    return ",".join(f"{key}={json.dumps(value)}" for key, value in mapping.items())


__all__ = ["Options", "TrainingArguments", "option", "parse_recipe"]
