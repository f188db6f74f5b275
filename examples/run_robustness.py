r"""How do ImageNet classifiers do on other test sets? Those of the paper (Table 3), and three that are usual besides.

    python examples/run_robustness.py --model_name_or_path MODEL [MODEL ...] --output_dir runs/robustness \
        --imagenet_val ILSVRC/val --real_labels_file real.json --imagenet_v2 imagenetv2 --objectnet objectnet-1.0 \
        --imagenet_a imagenet-a --imagenet_r imagenet-r --imagenet_sketch sketch

Each test set is a folder as its authors' archive unpacks, shards, or a data set on the Hub (`user/name`, or
`user/name:configuration`); those not given are left out. A label is the folder's name, or on the Hub the label
column's: WordNet ids (n01440764), class numbers from 0 in ImageNet's order, or 1000 class names in that order.

    ImageNet, -V2, -Sketch    the best of 1000 classes
    ReaL                      right if the best class is among all those that the picture shows
    ImageNet-A, -R            the best of their 200 classes
    ObjectNet                 the best of 113 objects, each of one or several classes; 2 pixels of border are cut

A model has ImageNet's 1000 classes in their order, or WordNet ids or class numbers in its config's id2label. Every
result is kept in `output_dir/cells`; the same command goes on where it was stopped. `output_dir` ends up with
`results.json` and `results.png`.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from maws_hf.data.sources import refuse_output_within
from maws_hf.evaluation.benchmark_images import BenchmarkImages, Outputs, classify_images, fingerprint, open_benchmark
from maws_hf.evaluation.classifiers import RESIZES, Preprocessing, load_classifier, logits_of, preprocessing_of
from maws_hf.evaluation.feature_cache import digest_of
from maws_hf.evaluation.features import model_digest
from maws_hf.evaluation.label_maps import LabelMapError, model_columns
from maws_hf.evaluation.real_labels import REAL_SHA256, fetch_real_labels, load_real_labels, validation_number
from maws_hf.evaluation.robustness import IMAGENET_V2_FOLDERS, Benchmark, benchmark_of, score_real
from maws_hf.training.arguments import Options, option, parse_recipe
from maws_hf.training.entry_point import run_script
from maws_hf.training.records import make_output_dir, write_json
from maws_hf.visualization import plot_bars

SETS = ("imagenet_val", "imagenet_v2", "objectnet", "imagenet_a", "imagenet_r", "imagenet_sketch")
FROM_TIMM = "timm"

# ---------------------------------------------------------------- arguments


@dataclass(kw_only=True)
class RobustnessOptions(Options):
    """Classifiers, test sets, and how to look at them."""

    model_name_or_path: list[str] = field(
        metadata={"help": "Classifiers: folders with models of this package or of transformers, or ids on the Hub."}
    )
    output_dir: str = field(metadata={"help": "Folder of results and the picture."})
    imagenet_val: str | None = option(None, "ImageNet's validation images: class folders, or flat if only for ReaL.")
    real_labels_file: str | None = option(
        None,
        f"real.json of ReaL, to score --imagenet_val with; {FROM_TIMM}: from timm's wheel on PyPI (3 MB, cached).",
    )
    imagenet_v2: str | None = option(None, "ImageNetV2: the folder of its variants' folders, or one variant.")
    imagenet_v2_variants: list[str] | None = field(
        default=None,
        metadata={"help": f"Of {', '.join(IMAGENET_V2_FOLDERS)}; those in the folder if unset."},
    )
    objectnet: str | None = option(None, "ObjectNet: the folder of its 313 folders, or one above.")
    imagenet_a: str | None = option(None, "ImageNet-A.")
    imagenet_r: str | None = option(None, "ImageNet-R.")
    imagenet_sketch: str | None = option(None, "ImageNet-Sketch.")
    eval_split: str | None = option(None, "Split of the test sets; if unset test, validation or train, as there is.")
    image_column_name: str | None = option(None, "Column of the images; found by itself if there is just one.")
    label_column_name: str | None = option(None, "Column of the labels; the declared classes if unset.")
    resize: str | None = option(
        None,
        "square: the whole picture, whatever its aspect, as the released MAWS classifiers are evaluated; crop: the "
        "shortest side, then the centre. If unset, what each model's preprocessor_config.json says.",
    )
    image_size: int | None = option(None, "Side in pixels, for --resize; each model's own if unset.")
    per_device_eval_batch_size: int = option(64, "Images a forward pass.")
    bf16: bool = option(False, "bfloat16 autocast of the model, scores included: of equal ones the first wins.")
    dataloader_num_workers: int = option(2, "Processes that read and decode images; 0 does it in the main one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        models, variants = self.model_name_or_path, self.imagenet_v2_variants
        self._require(len(set(models)) == len(models) > 0, "model_name_or_path", "one or several, each once")
        if not any(getattr(self, name) for name in SETS):
            raise ValueError(
                f"there is nothing to score on: give one or several of {', '.join(f'--{n}' for n in SETS)}"
            )
        known = variants is None or (
            0 < len(set(variants)) == len(variants) and set(variants) <= set(IMAGENET_V2_FOLDERS)
        )
        self._require(known, "imagenet_v2_variants", f"some of {', '.join(IMAGENET_V2_FOLDERS)}, each once")
        self._require(not variants or self.imagenet_v2 is not None, "imagenet_v2_variants", "with --imagenet_v2")
        alone = self.real_labels_file is not None and self.imagenet_val is None
        self._require(not alone, "real_labels_file", "with --imagenet_val, whose images it labels")
        self._require(self.resize in (None, *RESIZES), "resize", " or ".join(RESIZES))
        self._require(self.image_size is None or self.resize is not None, "image_size", "with --resize")
        for name in ("image_size", "per_device_eval_batch_size"):
            self._require((value := getattr(self, name)) is None or value >= 1, name, "at least 1")
        self._require(self.dataloader_num_workers >= 0, "dataloader_num_workers", "0 or more")
        for source in filter(None, (getattr(self, name) for name in SETS)):
            refuse_output_within(source, output_dir=self.output_dir)


# ---------------------------------------------------------------- test sets


@dataclass(frozen=True)
class OpenSet:
    """A test set, opened; `real` are ReaL's labels, if they are to be used."""

    name: str
    source: str
    benchmark: Benchmark
    images: BenchmarkImages
    real: list[list[int]] | None


def open_sets(options: RobustnessOptions) -> list[OpenSet]:
    """All of them, so that what is wrong with the last is known before hours are spent on the first."""
    sources = {name: getattr(options, name) for name in SETS if name != "imagenet_v2" and getattr(options, name)}
    if options.imagenet_v2:
        sources |= imagenet_v2_sources(options.imagenet_v2, options.imagenet_v2_variants)
    opened = []
    for name, source in sources.items():
        usual = ("validation", "train") if name == "imagenet_val" else ("test", "validation", "train")
        real = read_real_labels(options.real_labels_file) if name == "imagenet_val" else None
        benchmark = benchmark_of(name)
        images = open_benchmark(
            source,
            benchmark,
            splits=(options.eval_split,) if options.eval_split else usual,
            image_column=options.image_column_name,
            label_column=options.label_column_name,
            may_lack_labels=real is not None,
        )
        opened.append(OpenSet(name, source, benchmark, images, real))
    return opened


def imagenet_v2_sources(source: str, variants: list[str] | None) -> dict[str, str]:
    """Of each variant its folder: in `source`, under the name of its archive or of itself, or `source` itself.

    Raises:
        ValueError: a variant is not there, or it is not said which one `source` is.
    """
    found = {}
    for variant, folder in IMAGENET_V2_FOLDERS.items():
        candidates = [Path(source, name) for name in (folder, variant)]
        if Path(source).name in (folder, variant):
            candidates.append(Path(source))
        found |= {f"imagenet_v2/{variant}": str(path) for path in candidates[::-1] if path.is_dir()}
    if not found and len(variants or ()) == 1:
        return {f"imagenet_v2/{variants[0]}": source}
    if not found:
        raise ValueError(
            f"--imagenet_v2 {source} holds none of {', '.join(IMAGENET_V2_FOLDERS.values())}: if it is one of them "
            "under another name, or a data set on the Hub, say which with --imagenet_v2_variants"
        )
    if missing := [variant for variant in variants or () if f"imagenet_v2/{variant}" not in found]:
        raise ValueError(f"--imagenet_v2 {source} does not hold {IMAGENET_V2_FOLDERS[missing[0]]}")
    return {name: path for name, path in found.items() if not variants or name.partition("/")[2] in variants}


def read_real_labels(file: str | None) -> list[list[int]] | None:
    if file is None:
        return None
    return fetch_real_labels() if file == FROM_TIMM else load_real_labels(file)


# ---------------------------------------------------------------- cells


def run_cell(options: RobustnessOptions, model: PreTrainedModel, preprocessing: Preprocessing, test: OpenSet) -> Any:
    """What a classifier gets on a test set, by one rule or, for ImageNet and ReaL, by two."""
    classes = test.benchmark.needed
    outputs = classify_images(
        test.images,
        partial(logits_of, model, bf16=options.bf16),
        preprocessing,
        classes,
        model_columns(model.config.id2label, classes, model.name_or_path),
        batch_size=options.per_device_eval_batch_size,
        num_workers=options.dataloader_num_workers,
    )
    results = []
    if outputs.labels is not None:
        scores = test.benchmark.score(outputs.logits, outputs.labels)
        results.append(
            {"test_set": test.benchmark.title, "published_images": test.benchmark.published_images, **scores}
        )
    if test.real is not None:
        results.append({"test_set": "ImageNet-ReaL", **score_real(outputs.logits, real_labels_of(outputs, test.real))})
    return [{**result, "skipped": outputs.skipped} for result in results]


def real_labels_of(outputs: Outputs, real: list[list[int]]) -> list[list[int]]:
    numbers = [validation_number(path) for path in outputs.paths]
    if outside := [number for number in numbers if not 1 <= number <= len(real)]:
        raise LabelMapError(f"there is no validation image {outside[0]}: ReaL has labels of {len(real)}")
    return [real[number - 1] for number in numbers]


def run_model(options: RobustnessOptions, name: str, tests: list[OpenSet]) -> list[dict[str, Any]]:
    """All test sets; those that an earlier call with the same settings has finished are read."""
    model = load_classifier(name)
    for test in tests:
        model_columns(model.config.id2label, test.benchmark.needed, f"{name}, for {test.benchmark.title},")
    whole = preprocessing_of(name, model, options.resize, options.image_size)
    digest, results = model_digest(model), []
    for test in tqdm(tests, unit="test set", desc=Path(name).name, leave=False):
        preprocessing = replace(whole, border=test.benchmark.border)
        settings = {
            "model": digest,
            "preprocessing": preprocessing.description(),
            "bf16": options.bf16,
            "source": fingerprint(test.source),
            "columns": [options.eval_split, options.image_column_name, options.label_column_name],
            "real": REAL_SHA256 if test.real else None,
            "maws_hf": version("maws_hf"),
        }
        same = digest_of(settings)[:16]
        file = Path(options.output_dir, "cells", f"{test.name.replace('/', '-')}-{same}.json")
        if not file.is_file():
            write_json(run_cell(options, model, preprocessing, test), file)
        how = {"model": name, "digest": digest, "source": test.source, "preprocessing": preprocessing.description()}
        results += [{**how, **result} for result in json.loads(file.read_text(encoding="utf-8"))]
    return results


# ---------------------------------------------------------------- main


def main() -> int:
    options = parse_recipe(RobustnessOptions, __doc__)
    output_dir = make_output_dir(options.output_dir)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of weights, load_classifier says what matters
    tests = open_sets(options)
    results = [result for name in options.model_name_or_path for result in run_model(options, name, tests)]
    versions = {package: version(package) for package in ("maws_hf", "torch", "transformers", "datasets", "pillow")}
    write_json({"options": asdict(options), "versions": versions, "results": results}, output_dir / "results.json")
    bars: dict[str, dict[str, float]] = {}
    for result in results:
        bars.setdefault(result["test_set"], {})[result["model"]] = 100 * result["top1"]
    plot_bars(bars, output_dir / "results.png", xlabel="top-1 (%)")
    report(options, results, output_dir)
    return 0


def report(options: RobustnessOptions, results: list[dict[str, Any]], output_dir: Path) -> None:
    """A table for each classifier, and what is to be known about it."""
    for name in options.model_name_or_path:
        print(
            f"\n{name}\n  {'test set':30}{'top-1 (%)':>10}{'top-5 (%)':>10}{'images':>9}{'skipped':>9}{'classes':>9}"
        )
        for result in (result for result in results if result["model"] == name):
            top5 = f"{100 * result['top5']:.2f}" if "top5" in result else "-"
            counts = (result["images"], len(result["skipped"]), result["classes"])
            print(
                f"  {result['test_set']:30}{100 * result['top1']:10.2f}{top5:>10}"
                + "".join(f"{count:9}" for count in counts)
            )
    print()
    for result in (result for result in results if result["model"] == options.model_name_or_path[0]):
        if result["skipped"]:
            first = result["skipped"][0]
            print(f"{result['test_set']}: skipped, as they cannot be decoded: {first['key']} ({first['reason']}), ...")
        seen, whole = result["images"] + len(result["skipped"]), result.get("published_images")
        if whole not in (None, seen):
            print(f"{result['test_set']}: {seen} images are not the {whole} of the published test set")
        if result.get("without_label"):
            print(f"{result['test_set']}: {result['without_label']} images have no label in ReaL and do not count")
    print(
        f"  numbers and settings  {output_dir / 'results.json'}\n  bars                  {output_dir / 'results.png'}"
    )


if __name__ == "__main__":
    run_script(main)
