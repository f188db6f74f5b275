"""The labels of a run's images: what a script can be told about them, and how they are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Features
from tqdm.auto import tqdm

from ..data.samples import KEY, KEY_COLUMNS, sample_key
from ..data.sources import open_stream, why_no_labels
from ..data.targets import LabelReader, find_labels
from ..data.tolerance import read_on
from .arguments import option
from .images import ImageRecipe, naming_empty_shard, open_images


@dataclass(kw_only=True)
class LabelRecipe(ImageRecipe):
    """What a script needs to be told to train on the labels of images."""

    label_column_name: str | None = option(
        None,
        "Column of class indices or synset ids, in fine-tuning also of names of classes, or of lists of them; "
        "synsets, labels or label if unset.",
    )
    vocabulary_file: str | None = option(
        None, "Vocabulary of a column of synset ids; vocabulary.json in the folder of the data if unset."
    )
    num_labels: int | None = option(None, "Classes, where the labels are plain integers.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.num_labels is None or self.num_labels >= 1, "num_labels", "at least 1")


def read_labels(recipe: LabelRecipe, texts_are_classes: bool = False) -> tuple[LabelReader, Features]:
    """How to read the labels of the training split, and the columns that it has.

    Args:
        texts_are_classes: of a column of texts without a vocabulary, which then is read once for what there is in it.

    Raises:
        DataSourceError: there are none, or nothing says what their classes are.
    """
    dataset, _ = open_images(recipe, recipe.dataset_split, columns=None)
    data = Path(recipe.dataset_name)  # a folder, one shard, or a glob of shards
    places = [Path(recipe.vocabulary_file)] if recipe.vocabulary_file else [data, data.parent, data.parent.parent]
    files = [place if recipe.vocabulary_file else place / "vocabulary.json" for place in places]
    with naming_empty_shard(dataset):
        reader = find_labels(
            dataset.features,
            recipe.label_column_name,
            vocabulary_file=next((file for file in files if file.is_file()), files[0]),
            num_labels=recipe.num_labels,
            why_none=why_no_labels(dataset),
            texts_in=partial(_texts_in, recipe) if texts_are_classes and not recipe.vocabulary_file else None,
        )
    return reader, dataset.features


def _texts_in(recipe: LabelRecipe, column: str) -> Iterator[str]:
    for row in _rows_without_images(recipe, recipe.dataset_split, [column], "looking for classes"):
        texts = row[column] if isinstance(row[column], list) else [row[column]]
        yield from (text for text in texts if text is not None)


def read_all_labels(recipe: LabelRecipe, split: str, labels: LabelReader, task: str) -> Iterator[list[int]]:
    """The class indices of every row of a split, under a bar; without the images where the format allows that.

    Args:
        labels: of the training split.
        task: that the bar is about.

    Raises:
        ValueError: a label is no class; names the image, or its row.
    """
    features = open_images(recipe, split, [labels.column])[0].features
    labels = labels.of_split(features)
    columns = [name for name in features if name in (labels.column, *KEY_COLUMNS)]
    for number, row in enumerate(_rows_without_images(recipe, split, columns, task)):
        yield labels({**row, KEY: sample_key(row) or f"row {number} of the split {split}"})


def _rows_without_images(recipe: LabelRecipe, split: str, columns: list[str], task: str) -> Iterator[dict[str, Any]]:
    dataset = open_stream(
        recipe.dataset_name, split=split, name=recipe.dataset_config_name, require_image=False, columns=columns
    )
    yield from tqdm(read_on(dataset), desc=task, unit="image", mininterval=1, leave=False)


__all__ = ["LabelRecipe", "read_all_labels", "read_labels"]
