"""The steps of `make demo`, as commands to type; a test holds them against the Makefile."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Step", "demo_steps"]

LAUNCH = "accelerate launch --config_file examples/accelerate/single_process.yaml --cpu"
MAE = "examples/run_mae.py --config examples/recipes/mae_laptop.yaml"
WSP = "examples/run_wsp.py --config examples/recipes/wsp_laptop.yaml"
LIT = (
    "examples/run_lit.py --config examples/recipes/lit_laptop.yaml --vision_model_name_or_path {runs}/mae-wsp "
    "--text_model_name_or_path {runs}/text-tower --dataset_name {data} --retrieval_splits test unseen "
    "--feature_cache {runs}/features"
)

COMMANDS = {
    "data": ("Pictures and names", "maws-hf demo-data emoji --output_dir {data}"),
    "labels": (
        "Weak labels",
        "python scripts/build_wsp_labels.py --dataset_name {data} --dataset_split train unseen "
        "--tags_column_name tags --output_dir {labels}",
    ),
    "mae": ("MAE", f"{LAUNCH} {MAE} --dataset_name {{data}} --eval_split unseen --output_dir {{runs}}/mae"),
    "wsp": ("WSP", f"{LAUNCH} {WSP} --dataset_name {{labels}} --eval_split unseen --output_dir {{runs}}/wsp"),
    "mae-wsp": (
        "MAE→WSP",
        f"{LAUNCH} {WSP} --model_name_or_path {{runs}}/mae --dataset_name {{labels}} --eval_split unseen "
        "--output_dir {runs}/mae-wsp",
    ),
    "evaluation": (
        "Probes of the encoders",
        "python examples/run_linear_probe.py --dataset_name {data} --label_column_name group --eval_split unseen "
        "--model_name_or_path {runs}/mae {runs}/wsp {runs}/mae-wsp --output_dir {runs}/evaluation",
    ),
    "text-tower": (
        "Text tower",
        "maws-hf text-tower --output_dir {runs}/text-tower --dataset_name {data} --dataset_split train test unseen "
        "--languages en de es fr ja zh",
    ),
    "lit": (
        "LiT",
        f"{LAUNCH} {LIT} --output_dir {{runs}}/lit",
    ),
    "lit-untrained": (
        "An untrained model to compare with",
        f"{LAUNCH} {LIT} --output_dir {{runs}}/lit-untrained --max_steps 1 --warmup_steps 0 --learning_rate 0",
    ),
    "zero-shot": (
        "Zero-shot",
        "python examples/run_zero_shot.py --model_name_or_path {runs}/lit {runs}/lit-untrained --dataset_name {data} "
        "--eval_split test unseen --label_column_name concept --prompts captions --languages en de es fr ja zh "
        "--bf16 --output_dir {runs}/zero-shot",
    ),
}


@dataclass(frozen=True)
class Step:
    """One step: what it is called and what to type."""

    title: str
    command: str

    @property
    def pieces(self) -> list[str]:
        """The command, cut before every option: where a line may break."""
        return self.command.replace(" --", "\n--").split("\n")


def demo_steps(runs_dir: Path, data_dir: Path, labels_dir: Path) -> Mapping[str, Step]:
    """All steps in their order; those that fill a folder of `runs_dir` go by its name."""
    folders = {"runs": runs_dir, "data": data_dir, "labels": labels_dir}
    places = {name: shlex.quote(str(folder)) for name, folder in folders.items()}
    return {key: Step(title, command.format(**places)) for key, (title, command) in COMMANDS.items()}
