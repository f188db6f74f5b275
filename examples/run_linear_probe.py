r"""Which encoder has the better features? Linear probes (paper section 4) and nearest neighbours on frozen features.

    python examples/run_linear_probe.py --model_name_or_path runs/mae runs/wsp facebook/dinov2-small \
        --dataset_name FOLDER_OR_HUB_ID --train_split train --eval_split test --output_dir runs/probe

Each encoder sees every image once; its features stay in `output_dir/features`, and another probe of the same encoder
starts from there. What was found about each stays in `output_dir/encoders`: the same command goes on where it was
stopped. `output_dir` ends up with `results.json` and `results.png`.

Of several encoders there is also the paper's Table 9, model sizes by kinds of pretraining: `table.md` and, with more
than one size, `table.png`. Kinds are known for runs of this package and for converted weights of the paper; others are
named with their encoder, `--model_name_or_path runs/mae DINOv2=facebook/dinov2-small`.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from maws_hf.evaluation.encoders import load_encoder
from maws_hf.evaluation.feature_cache import digest_of
from maws_hf.evaluation.features import LabelledFeatures
from maws_hf.evaluation.knn import knn_classify
from maws_hf.evaluation.linear_heads import Protocol
from maws_hf.evaluation.linear_probe import PROTOCOLS, linear_probe
from maws_hf.evaluation.size_table import Entry, SizeTable, size_name, training_name
from maws_hf.hub.released_models import RELEASED_MODELS
from maws_hf.models.loading import refuse_missing_folder
from maws_hf.training.arguments import option, parse_recipe
from maws_hf.training.entry_point import run_script
from maws_hf.training.labelled_images import LabelledImageOptions, build_transform, read_features
from maws_hf.training.ledger import read_ledger
from maws_hf.training.records import make_output_dir, write_json
from maws_hf.visualization import plot_bars, plot_scaling
from maws_hf.whole_files import write_atomically

# What the paper's released weights went through, by their kind.
RELEASED_STAGES = {
    "mae": ["mae"],
    "maws": ["mae", "wsp"],
    "classifier": ["mae", "wsp", "finetune"],
    "clip": ["mae", "wsp", "lit"],
}

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class ProbeOptions(LabelledImageOptions):
    """Encoders, labelled images and how to probe."""

    model_name_or_path: list[str] = field(
        metadata={
            "help": "Encoders: folders with models of this package or of transformers, or ids on the Hub. "
            "NAME=ENCODER says which row of the table one is in, where that is not known or should be another."
        }
    )
    train_split: str = option("train", "Split to learn from; the learning rate is chosen on a part of it.")
    eval_split: str = option("test", "Split to score on.")
    protocol: str = option("sgd", f"How the linear heads are trained: {', '.join(PROTOCOLS)}.")
    objective: str = option("softmax", "softmax, or binary: a sigmoid for each class, for several labels an image.")
    learning_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Peak learning rates to choose from, not scaled by the batch; the protocol's if unset."},
    )
    num_train_epochs: int | None = option(None, "Epochs of the linear heads; the protocol's if unset.")
    validation_share: float = option(0.1, "Share of the training images to choose the learning rate on.")
    k: list[int] = field(
        default_factory=lambda: [20], metadata={"help": "Numbers of neighbours; a column of the table for each."}
    )
    seed: int = option(0, "Decides the validation images, the heads' first weights and their order of images.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.protocol in PROTOCOLS, "protocol", f"one of {', '.join(PROTOCOLS)}")
        self._require(self.objective in ("softmax", "binary"), "objective", "softmax or binary")
        self._require(self.eval_split != self.train_split, "eval_split", "another split than --train_split")
        self._require(0 < self.validation_share < 1, "validation_share", "between 0 and 1")
        self._require(min(self.k, default=0) >= 1, "k", "at least 1")
        rates_are_possible = self.learning_rates is None or all(0 < rate < math.inf for rate in self.learning_rates)
        self._require(rates_are_possible, "learning_rates", "positive numbers")
        epochs = self.num_train_epochs
        self._require(epochs is None or epochs >= 1, "num_train_epochs", "at least 1")
        self._require(self.seed >= 0, "seed", "0 or more")
        names = [encoder for _, encoder in map(split_name, self.model_name_or_path)]
        different = len(set(names)) == len(names) and all(names)
        self._require(different, "model_name_or_path", "a list of different encoders, each as ENCODER or NAME=ENCODER")


def split_name(argument: str) -> tuple[str | None, str]:
    """`(None, "runs/mae")` of `runs/mae`, `("MAE", "runs/1")` of `MAE=runs/1`; a folder's name may hold a sign."""
    name, sign, encoder = argument.partition("=")
    return (None, argument) if not sign or Path(argument).is_dir() else (name, encoder)


def build_protocol(options: ProbeOptions) -> Protocol:
    protocol = replace(PROTOCOLS[options.protocol], objective=options.objective)
    if options.num_train_epochs is None:
        return protocol
    share = protocol.warmup_epochs / protocol.epochs
    return replace(protocol, epochs=options.num_train_epochs, warmup_epochs=share * options.num_train_epochs)


# ---------------------------------------------------------------- probe


def probe(options: ProbeOptions, argument: str) -> dict[str, Any]:
    """All about one encoder: what it is, and what was found."""
    row, name = split_name(argument)
    encoder = load_encoder(name)
    parameters = sum(weight.numel() for weight in encoder.parameters())
    return {
        "encoder": name,
        "row": row or training_name(stages_of(name)),
        "size": size_name(encoder.config, parameters),
        "parameters": parameters,
        "training": [asdict(stage) for stage in read_ledger(name)],
        "transform": asdict(build_transform(options, encoder)),
        **score(options, name, encoder),
    }


def stages_of(name: str) -> list[str]:
    """Names of what a model in a local folder went through; none if nobody tells."""
    conversion = Path(name, "conversion.json")
    if not (stages := [stage.name for stage in read_ledger(name)]) and conversion.is_file():
        released = RELEASED_MODELS.get(json.loads(conversion.read_text(encoding="utf-8")).get("released_model"))
        stages = [] if released is None else RELEASED_STAGES[released.kind]
    return stages


def score(options: ProbeOptions, name: str, encoder: PreTrainedModel) -> dict[str, Any]:
    """Scores on frozen features; read, if the same features were probed in the same way before.

    The classes are those of the training split.
    """
    train_features = read_features(options, name, encoder, options.train_split)
    classes = train_features.classes()
    train = train_features.with_classes(classes)
    if max(options.k) > len(train.features):
        raise ValueError(
            f"--k {max(options.k)} is more than the {len(train.features)} training images in {options.train_split}"
        )
    test_features = read_features(options, name, encoder, options.eval_split)
    test = test_features.with_classes(classes, train_features.class_names)
    warn_of_unseen_classes(options, train, test, train_features.class_names or classes)
    protocol = build_protocol(options)
    same = [train_features.digest, test_features.digest, asdict(protocol)]
    same += [options.learning_rates, options.validation_share, options.seed, options.k]
    file = Path(options.output_dir, "encoders", f"{digest_of(same)[:16]}.json")
    if file.is_file():
        print(f"{name}: probed before, result in {file}")
        return json.loads(file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    linear = linear_probe(
        train,
        test,
        protocol,
        learning_rates=options.learning_rates,
        validation_share=options.validation_share,
        seed=options.seed,
        device=encoder.device,
    )
    linear_seconds, start = time.perf_counter() - start, time.perf_counter()
    neighbours = knn_classify(train, test, options.k, device=encoder.device)
    print(f"{name}: linear probe in {linear_seconds:.1f} s, nearest neighbours in {time.perf_counter() - start:.1f} s")
    result = {
        "images": {"train": len(train.features), "test": len(test.features)},
        "classes": train.num_classes,
        "width": train.features.shape[1],
        "features": {"train": train_features.digest, "test": test_features.digest},
        "skipped": {"train": train_features.skipped, "test": test_features.skipped},
        "linear": linear.test,
        "knn": {str(k): scores for k, scores in neighbours.items()},
        "learning_rate": linear.learning_rate,
        "validation": linear.validation,
        "settings": linear.settings,
    }
    write_json(result, file)
    return result


def warn_of_unseen_classes(
    options: ProbeOptions, train: LabelledFeatures, test: LabelledFeatures, names: list[Any]
) -> None:
    """A column may declare classes of which the training split shows no image: they count, and are never right."""
    seen, asked = (set(split.labels[split.labels >= 0].tolist()) for split in (train, test))
    if unseen := sorted(asked - seen):
        first = ", ".join(str(names[number]) for number in unseen[:3])
        print(
            f"warning: no training image in {options.train_split} shows {len(unseen)} of the {len(asked)} classes in "
            f"{options.eval_split} ({first}{', ...' if len(unseen) > 3 else ''}): their images count as wrong"
        )


# ---------------------------------------------------------------- main


def main() -> int:
    options = parse_recipe(ProbeOptions, __doc__)
    output_dir = make_output_dir(options.output_dir)
    logging.disable_progress_bar()  # one bar is enough
    logging.set_verbosity_error()  # of weights, load_encoder says what matters
    for argument in options.model_name_or_path:  # the last one too, before the first costs an hour
        refuse_missing_folder(split_name(argument)[1])
    for split in (options.train_split, options.eval_split):
        options.open(split)
    results = [probe(options, argument) for argument in options.model_name_or_path]
    table = table_of(results)
    write_results(options, results, table, output_dir / "results.json")
    columns = {result["encoder"]: scores_of(result) for result in results}
    ranked = dict(sorted(columns.items(), key=lambda item: -next(iter(item[1].values()))))
    plot_bars(ranked, output_dir / "results.png", xlabel=f"% on {options.eval_split} of {options.dataset_name}")
    report(options, results, ranked, output_dir)
    if len(results) > 1:
        report_table(options, table, next(iter(results[0]["linear"])), output_dir)
    return 0


def table_of(results: list[dict[str, Any]]) -> SizeTable:
    """Of the linear probes."""
    return SizeTable.of(
        [
            Entry(
                result["encoder"],
                result["row"],
                result["size"],
                result["parameters"],
                100 * next(iter(result["linear"].values())),
            )
            for result in results
        ]
    )


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    """`{"linear top1": 71.2, ..., "kNN-20 top1": 65.0}`, in per cent."""
    scores = {f"linear {metric}": 100 * value for metric, value in result["linear"].items()}
    for k, values in result["knn"].items():
        scores |= {f"kNN-{k} {metric}": 100 * value for metric, value in values.items()}
    return scores


def write_results(options: ProbeOptions, results: list[dict[str, Any]], table: SizeTable, file: Path) -> None:
    """Everything that decided the numbers: options, seeds, digests of encoders and rows, versions."""
    packages = ("maws_hf", "torch", "transformers", "datasets", "numpy", "pillow")
    content = {
        "options": asdict(options),
        "versions": {package: version(package) for package in packages},
        "results": results,
        "table": table.to_json(),
    }
    write_json(content, file)


def report(options: ProbeOptions, results: list[dict[str, Any]], ranked: dict[str, Any], output_dir: Path) -> None:
    """The table, best linear probe first."""
    rates = {result["encoder"]: result["learning_rate"] for result in results}
    spent = {result["encoder"]: sum(stage["flops"] for stage in result["training"]) for result in results}
    width = max(map(len, [*ranked, "encoder"]))
    names = list(next(iter(ranked.values())))
    print()
    print("  ".join(["encoder".ljust(width), *(name.rjust(12) for name in names), "learning rate", "operations"]))
    for encoder, scores in ranked.items():
        numbers = [f"{scores[name]:.2f}".rjust(max(12, len(name))) for name in names]
        cost = f"{spent[encoder]:.2e}" if spent[encoder] else "unknown"
        print("  ".join([encoder.ljust(width), *numbers, f"{rates[encoder]:.4g}".rjust(13), cost.rjust(10)]))
    print()
    for result in results:
        sweep = [head["learning_rate"] for head in result["validation"]]
        if sweep and result["learning_rate"] in (min(sweep), max(sweep)):
            edge = "highest" if result["learning_rate"] == max(sweep) else "lowest"
            print(f"{result['encoder']}: the {edge} learning rate did best; --learning_rates can reach further")
    first = results[0]
    print(
        f"{first['classes']} classes, {first['images']['train']} training and {first['images']['test']} test images; "
        f"protocol {options.protocol}, learning rates chosen on training images\n"
        f"  numbers and settings  {output_dir / 'results.json'}\n"
        f"  bars                  {output_dir / 'results.png'}"
    )


def report_table(options: ProbeOptions, table: SizeTable, metric: str, output_dir: Path) -> None:
    """Sizes by pretrainings: on the screen, for a README, and as a picture."""
    markdown = table.markdown(f"linear {metric} (%)")
    notes = [f"{note}." for note in table.shared_cells()]
    what = f"Linear probes (protocol {options.protocol}) on {options.eval_split} of {options.dataset_name}."
    write_atomically(output_dir / "table.md", ("\n".join([markdown, " ".join([what, *notes])]) + "\n").encode())
    print("\n".join(["", markdown, *notes]))
    print(f"  table                 {output_dir / 'table.md'}")
    if len(table.sizes) > 1:
        panels = {f"{options.eval_split} of {Path(options.dataset_name).name}": table.curves()}
        picture = output_dir / "table.png"
        plot_scaling(panels, picture, xlabel="parameters of the encoder", ylabel=f"linear {metric} (%)", highest=100)
        print(f"  curves over size      {picture}")


if __name__ == "__main__":
    run_script(main)
