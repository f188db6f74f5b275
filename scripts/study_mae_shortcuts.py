r"""What do cheaper objectives than MAE's cost? The laptop recipe with each of them, for equally many steps.

    python scripts/study_mae_shortcuts.py --dataset_name data/emoji --output_dir runs/study-shortcuts

The paper's objective predicts every hidden patch with a decoder of self-attention. `prediction_ratio` and
`decoder_attention` change that, and are off unless asked for. Here each trains the small ViT of
`examples/recipes/mae_laptop.yaml` on the emoji corpus of `make demo`, with the recipe's steps and learning rate, and
frozen features are judged by linear probe and kNN on the Unicode group of concepts never trained on. Beside the
accuracies: training operations, and CPU time of a training step measured in turns on one thread, both relative to the
paper's objective. About 8 minutes of one core a run; killed, the same command goes on. Ends in a table,
`shortcuts.json` and `shortcuts.png`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from side_by_side import describe_machine, markdown_table, positive, ratio, take_turns
from study_runs import ROOT, as_flags, call, read_scores, spread
from tqdm.auto import tqdm

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.evaluation.flops import mae_training_flops
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.entry_point import run_script
from maws_hf.training.ledger import LEDGER
from maws_hf.visualization import plot_scaling

RECIPE = ROOT / "examples" / "recipes" / "mae_laptop.yaml"
PLAIN = "every hidden patch, self-attention (MAE)"
ARMS: dict[str, dict[str, object]] = {
    PLAIN: {},
    "half of them, self-attention": {"prediction_ratio": 0.5},
    "all, cross-attention": {"decoder_attention": "cross"},
    "a third, cross-attention": {"decoder_attention": "cross", "prediction_ratio": 0.3333},
    # With 12 decoder blocks, this is how CrossMAE's authors train.
    "a third, inter-block cross-attention": {
        "decoder_attention": "cross",
        "decoder_inter_block_attention": True,
        "prediction_ratio": 0.3333,
    },
}


@dataclass(frozen=True)
class Run:
    arm: str
    seed: int

    def folder(self, output_dir: Path) -> Path:
        words = "".join(letter if letter.isalnum() else " " for letter in self.arm.lower()).split()
        return output_dir / "runs" / f"{'-'.join(words)}-seed{self.seed}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset_name", type=Path, required=True, help="the emoji corpus, as `make demo` builds it")
    parser.add_argument("--output_dir", type=Path, required=True, help="runs, table and figure")
    parser.add_argument("--max_steps", type=positive, help="of each run (default: the recipe's)")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=positive, default=2, help="runs at once, one thread each (default: 2)")
    parser.add_argument("--rounds", type=positive, default=20, help="of the timing (default: 20)")
    parser.add_argument(
        "--timed_sizes", nargs="*", choices=SIZES, default=[], help="count and time steps of these sizes as well"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    arguments.dataset_name, arguments.output_dir = arguments.dataset_name.resolve(), arguments.output_dir.resolve()
    torch.set_num_threads(1)
    runs = [Run(arm, seed) for seed in range(arguments.seeds) for arm in ARMS]
    with tqdm(total=len(runs), unit="run") as bar, ThreadPoolExecutor(arguments.jobs) as pool:
        for run in pool.map(lambda run: train_and_probe(run, arguments), runs):
            bar.set_postfix_str(run.arm)
            bar.update()
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    laptop = costs_of(recipe["config_overrides"], recipe["per_device_train_batch_size"], arguments.rounds)
    report(runs, laptop, arguments.output_dir)
    for size in arguments.timed_sizes:
        print_costs(size, costs_of(SIZES[size], 8, max(1, arguments.rounds // 4)))
    return 0


# ---------------------------------------------------------------- runs


def train_and_probe(run: Run, arguments: argparse.Namespace) -> Run:
    """What is complete is left alone."""
    folder = run.folder(arguments.output_dir)
    if not (folder / LEDGER).exists():
        call([sys.executable, *training_command(run, arguments)], folder / "train")
    if not (folder / "probe" / "results.json").exists():
        options = {
            "model_name_or_path": folder,
            "dataset_name": arguments.dataset_name,
            "eval_split": "unseen",
            "label_column_name": "group",
            "output_dir": folder / "probe",
            "dataloader_num_workers": 0,
        }
        call([sys.executable, "examples/run_linear_probe.py", *as_flags(options)], folder / "probe")
    return run


def training_command(run: Run, arguments: argparse.Namespace) -> list[str]:
    options = {
        "config": RECIPE,
        "dataset_name": arguments.dataset_name,
        "eval_split": "unseen",
        "output_dir": run.folder(arguments.output_dir),
        "seed": run.seed,
        "dataloader_num_workers": 0,
    }
    if ARMS[run.arm]:
        fields = ARMS[run.arm].items()
        options["config_overrides"] = ",".join(f"{name}={json.dumps(value)}" for name, value in fields)
    if arguments.max_steps:
        options |= {"max_steps": arguments.max_steps, "warmup_steps": arguments.max_steps // 20}
    return ["examples/run_mae.py", *as_flags(options)]


# ---------------------------------------------------------------- costs


def costs_of(fields: dict[str, object], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Operations and time of a training step of each arm, relative to the paper's objective."""
    configs = {arm: MawsViTConfig(**fields, **changes) for arm, changes in ARMS.items()}
    seconds, _ = take_turns({arm: training_step(config, batch) for arm, config in configs.items()}, rounds)
    plain = mae_training_flops(configs[PLAIN])
    return {
        arm: {"operations": mae_training_flops(config) / plain, "time": 1 / ratio(seconds, arm, PLAIN)}
        for arm, config in configs.items()
    }


def training_step(config: MawsViTConfig, batch: int) -> Callable[[], float]:
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)
    images = torch.randint(0, 256, (batch, 3, config.image_size, config.image_size), dtype=torch.uint8)

    def step() -> float:
        loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


# ---------------------------------------------------------------- results


def report(runs: list[Run], costs: dict[str, dict[str, float]], output_dir: Path) -> None:
    """Table and figure: mean and standard deviation over the seeds."""
    scores: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in read_scores(run.folder(output_dir)).items():
            scores.setdefault(metric, {}).setdefault(run.arm, []).append(value)
    panels = {
        metric: {short_name(arm): {costs[arm]["time"]: values} for arm, values in by_arm.items()}
        for metric, by_arm in scores.items()
    }
    xlabel = "CPU time of a training step, relative to MAE"
    plot_scaling(panels, output_dir / "shortcuts.png", xlabel=xlabel, ylabel="accuracy")
    found = {"machine": describe_machine(), "costs": costs, "scores": scores}
    (output_dir / "shortcuts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [[*cost_cells(arm, costs), *(spread(by_arm[arm]) for by_arm in scores.values())] for arm in ARMS]
    print(f"\n{describe_machine()}\n\n{markdown_table(['predicted', 'operations', 'time', *scores], rows)}")
    print(f"\n{output_dir / 'shortcuts.png'}\n{output_dir / 'shortcuts.json'}")


def short_name(arm: str) -> str:
    """For a legend."""
    return "MAE" if arm == PLAIN else arm.replace("-attention", "")


def print_costs(size: str, costs: dict[str, dict[str, float]]) -> None:
    rows = [cost_cells(arm, costs) for arm in ARMS]
    print(f"\n{size}, 8 images a step, float32:\n\n{markdown_table(['predicted', 'operations', 'time'], rows)}")


def cost_cells(arm: str, costs: dict[str, dict[str, float]]) -> list[str]:
    return [arm, f"{costs[arm]['operations']:.2f}", f"{costs[arm]['time']:.2f}"]


if __name__ == "__main__":
    run_script(main)
