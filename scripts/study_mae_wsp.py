r"""Does pre-pretraining pay? MAE->WSP, WSP and MAE at equal training operations, on a laptop.

    python scripts/study_mae_wsp.py --output_dir runs/study

The paper's Figures 4 and 5 in small: on the emoji corpus and on Fashion-MNIST, at several budgets of training
operations, with three seeds, a small ViT is trained by MAE alone, by WSP alone, and by MAE and then WSP on equally
many images, as the paper's main models are (an epoch of each). A fourth arm spends the largest budget on MAE and the
smallest on WSP: beside WSP alone at the smallest, it shows the head start; beside all others, whether it was worth its
price. Frozen features are judged by linear probe and kNN: on emoji, the Unicode group of concepts never trained on; on
Fashion-MNIST, its classes. Under an hour on two cores; killed, the same command goes on. Ends in a table, `study.json`
and `study.png`.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from side_by_side import positive
from study_runs import as_flags, call, read_scores, spread
from tqdm.auto import tqdm

from maws_hf import MawsViTConfig
from maws_hf.evaluation.flops import mae_training_flops, wsp_training_flops
from maws_hf.training.entry_point import run_script
from maws_hf.training.ledger import LEDGER
from maws_hf.visualization import plot_scaling

BATCH = 64
ARMS = ("MAE", "WSP", "MAE->WSP", "long MAE->WSP")
MODEL = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256,
}


@dataclass(frozen=True)
class Corpus:
    """A data set of the study, the operations to spend on it, and what is asked of the features."""

    name: str
    image_size: int
    patch_size: int
    resampling_ratio: float
    budgets: tuple[float, ...]
    label_column: str
    eval_split: str

    @property
    def config(self) -> MawsViTConfig:
        return MawsViTConfig(**MODEL, image_size=self.image_size, patch_size=self.patch_size)


CORPORA = {
    # 48 px in patches of 8: with more tokens a laptop sees too few images.
    "emoji": Corpus("emoji", 48, 8, 5 / 3, (5e12, 1e13), "group", "unseen"),
    # Its classes are equally frequent: to repeat all of them alike would change nothing.
    "fashion-mnist": Corpus("fashion-mnist", 28, 4, 1.0, (2e12,), "label", "test"),
}


@dataclass(frozen=True)
class Run:
    """One training run: `budget` operations in all, those of the MAE run that it starts from included."""

    corpus: Corpus
    arm: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        arm = self.arm.lower().replace("->", "-").replace(" ", "-")
        return f"{self.corpus.name}-{arm}-{self.budget:.2e}-seed{self.seed}"

    @property
    def start(self) -> "Run | None":
        """The MAE run that WSP goes on from: for MAE->WSP, one that has seen as many images as will follow."""
        budgets, mae = self.corpus.budgets, mae_training_flops(self.corpus.config)
        wsp = wsp_training_flops(self.corpus.config, num_labels=0)
        shares = {"MAE->WSP": mae / (mae + wsp), "long MAE->WSP": budgets[-1] / (budgets[0] + budgets[-1])}
        if self.arm not in shares:
            return None
        return Run(self.corpus, "MAE", round(self.budget * shares[self.arm]), self.seed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="data, runs, table and figure")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA), help="default: both")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every budget of operations (default: 1)")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=positive, default=2, help="runs at once, one thread each (default: 2)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    corpora = [CORPORA[name] for name in arguments.corpora]
    for corpus in corpora:
        prepare_data(corpus, arguments.output_dir)
    points = [
        Run(corpus, arm, round(budget * arguments.scale), seed)
        for corpus in corpora
        for arm in ARMS
        for budget in budgets_of(corpus, arm)
        for seed in range(arguments.seeds)
    ]
    from_scratch = dict.fromkeys(
        [*(run for run in points if not run.start), *(run.start for run in points if run.start)]
    )
    waves = [list(from_scratch), [run for run in points if run.start]]
    with tqdm(total=sum(map(len, waves)), unit="run") as bar, ThreadPoolExecutor(arguments.jobs) as pool:
        for wave in waves:
            longest_first = sorted(wave, key=lambda run: -run.budget)
            for run in pool.map(lambda run: train_and_probe(run, run in points, arguments.output_dir), longest_first):
                bar.set_postfix_str(run.name)
                bar.update()
    report(points, arguments.output_dir)
    return 0


def budgets_of(corpus: Corpus, arm: str) -> tuple[float, ...]:
    return (corpus.budgets[0] + corpus.budgets[-1],) if arm == "long MAE->WSP" else corpus.budgets


# ---------------------------------------------------------------- data and runs


def prepare_data(corpus: Corpus, output_dir: Path) -> None:
    """The corpus, and the same with synsets for labels: both complete folders verify and are left alone."""
    source = source_of(corpus, output_dir)
    call([sys.executable, "-m", "maws_hf.cli", "demo-data", corpus.name, "--output_dir", source], source)
    labelled = labels_of(corpus, output_dir)
    options = {"dataset_name": source, "output_dir": labelled, "tags_column_name": "tags"}
    call([sys.executable, "scripts/build_wsp_labels.py", *as_flags(options)], labelled)


def source_of(corpus: Corpus, output_dir: Path) -> Path:
    return output_dir / "data" / corpus.name


def labels_of(corpus: Corpus, output_dir: Path) -> Path:
    return output_dir / "data" / f"{corpus.name}-synsets"


def train_and_probe(run: Run, is_point: bool, output_dir: Path) -> Run:
    """What is complete is left alone; a run that is not a point of the figure is only trained."""
    folder = output_dir / "runs" / run.name
    if not (folder / LEDGER).exists():
        call([sys.executable, *training_command(run, output_dir)], folder / "train")
    if is_point and not (folder / "probe" / "results.json").exists():
        call([sys.executable, *probe_command(run, output_dir)], folder / "probe")
    return run


def training_command(run: Run, output_dir: Path) -> list[str]:
    corpus = run.corpus
    stage = "mae" if run.arm == "MAE" else "wsp"
    if stage == "mae":
        operations = mae_training_flops(corpus.config)
    else:
        vocabulary = json.loads((labels_of(corpus, output_dir) / "vocabulary.json").read_text(encoding="utf-8"))
        operations = wsp_training_flops(corpus.config, len(vocabulary["classes"]))
    spent = run.start.budget if run.start else 0
    steps = round((run.budget - spent) / (BATCH * operations))
    options = {
        "dataset_name": source_of(corpus, output_dir) if stage == "mae" else labels_of(corpus, output_dir),
        "output_dir": output_dir / "runs" / run.name,
        "max_steps": steps,
        "warmup_steps": steps // 20,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "crop_scale": 0.5,
        "seed": run.seed,
        "save_steps": 500,
        "dataloader_num_workers": 0,
    }
    if run.start:
        options["model_name_or_path"] = output_dir / "runs" / run.start.name
    else:
        fields = {**MODEL, "image_size": corpus.image_size, "patch_size": corpus.patch_size}
        options["config_overrides"] = ",".join(f"{name}={value}" for name, value in fields.items())
    if stage == "wsp":
        options |= {"weight_decay": 0.1, "resampling_ratio": corpus.resampling_ratio}
    else:
        options["picture_steps"] = steps
    return [f"examples/run_{stage}.py", *as_flags(options)]


def probe_command(run: Run, output_dir: Path) -> list[str]:
    options = {
        "model_name_or_path": output_dir / "runs" / run.name,
        "dataset_name": source_of(run.corpus, output_dir),
        "eval_split": run.corpus.eval_split,
        "label_column_name": run.corpus.label_column,
        "output_dir": output_dir / "runs" / run.name / "probe",
        "dataloader_num_workers": 0,
    }
    return ["examples/run_linear_probe.py", *as_flags(options)]


# ---------------------------------------------------------------- results


def report(points: list[Run], output_dir: Path) -> None:
    """Table and figure of all points: mean and standard deviation over the seeds."""
    scores = {run: read_scores(output_dir / "runs" / run.name) for run in points}
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for run in points:
        for metric, value in scores[run].items():
            methods = panels.setdefault(f"{run.corpus.name}, {metric}", {arm: {} for arm in ARMS})
            methods[run.arm].setdefault(run.budget, []).append(value)
    plot_scaling(panels, output_dir / "study.png", xlabel="training operations", ylabel="accuracy")
    (output_dir / "study.json").write_text(json.dumps(panels, indent=1) + "\n", encoding="utf-8")
    for title, methods in panels.items():
        budgets = sorted({budget for by_budget in methods.values() for budget in by_budget})
        print(f"\n{title:<34}" + "".join(f"{budget:>18.2g}" for budget in budgets))
        for arm, by_budget in methods.items():
            print(f"  {arm:<32}" + "".join(f"{spread(by_budget.get(budget)):>18}" for budget in budgets))
    print(f"\n{output_dir / 'study.png'}\n{output_dir / 'study.json'}")


if __name__ == "__main__":
    run_script(main)
