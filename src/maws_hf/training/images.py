"""The images of a run: what a script can be told about them, and the streams that follow from it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from accelerate import Accelerator
from datasets import IterableDataset, Value

from ..data.loader import build_loader
from ..data.samples import KEY_COLUMNS, Sample, prepare_image, random_rows
from ..data.sources import DataSourceError, find_image_column, open_stream, refuse_output_within
from ..data.streaming import ImageStream
from ..data.tolerance import innermost_layer, name_of
from ..processing.decode import ImageDecodeError
from ..processing.rand_augment import RandAugment
from ..processing.transforms import EvalTransform, TrainTransform
from .arguments import Options, TrainingArguments, option
from .skips import most_in_a_row

if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

Extra = Callable[[Sample, np.random.Generator], Sample]


@dataclass(kw_only=True)
class ImageOptions(Options):
    """Options of scripts that train on images."""

    dataset_name: str = field(
        metadata={"help": "Folder of parquet shards, tar shards or images, or a data set id on the Hub."}
    )
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set that has several.")
    dataset_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(
        None, "Split of the pictures and of the final numbers; the training split if unset."
    )
    image_column_name: str | None = option(None, "Column of the images; found by itself if there is just one.")
    shuffle_block_size: int = option(1024, "Images each reader holds as bytes and shuffles; shards are shuffled too.")
    crop_scale: float = option(0.2, "Smallest area of a random crop, as a share of the image.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.shuffle_block_size >= 1, "shuffle_block_size", "at least 1")
        self._require(0 < self.crop_scale <= 1, "crop_scale", "in (0, 1]")


@dataclass(kw_only=True)
class ImageRecipe(ImageOptions, TrainingArguments):
    """What a script needs to be told to train on images at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_output_within(self.dataset_name, output_dir=self.output_dir)


def open_images(options: ImageOptions, split: str, columns: Sequence[str] | None = ()) -> tuple[IterableDataset, str]:
    """The rows of a split and the name of their image column.

    Args:
        columns: what is needed besides images and their names; the rest is dropped, for captions in a hundred
            languages take time. None keeps everything.
    """
    open_split = partial(
        open_stream,
        options.dataset_name,
        split=split,
        name=options.dataset_config_name,
        image_column=options.image_column_name,
    )
    dataset = open_split()
    image_column = find_image_column(dataset, options.image_column_name)
    if columns is None:
        return dataset, image_column
    if absent := [name for name in columns if name not in dataset.features]:
        raise DataSourceError(f"the split {split} of {options.dataset_name} has no column {absent[0]}")
    names = [name for name in KEY_COLUMNS if name in dataset.features]
    wanted = list(dict.fromkeys([image_column, *names, *columns]))
    if dataset.info.builder_name == "parquet":
        dataset = open_split(columns=wanted)  # else the others are read, and a run ends where the types of one differ
    return dataset.select_columns(wanted), image_column


@contextmanager
def naming_empty_shard(dataset: IterableDataset) -> Iterator[None]:
    """While columns are looked for: a refusal says which of them have no type, and because of which shard."""
    try:
        yield
    except DataSourceError as error:
        untyped = [name for name, kind in dataset.features.items() if kind == Value("null")]
        if not untyped:
            raise
        shard = name_of(innermost_layer(dataset).kwargs)
        raise DataSourceError(
            f"{error}; there is no value of {', '.join(untyped)} in {shard}, from which types of columns are learnt: "
            "rename that shard so that it is not the first"
        ) from error


def build_training_loader(
    recipe: ImageRecipe,
    image_size: int | tuple[int, int],
    accelerator: Accelerator,
    *,
    columns: Sequence[str] = (),
    extra: Extra | None = None,
    repeats: Callable[[Sample], float] | None = None,
    hflip: float = 0.5,
    augment: RandAugment | None = None,
    collate_fn: Callable[[Sequence[Sample]], dict[str, Any]] | None = None,
) -> "StatefulDataLoader":
    """This rank's endless batches: random resized crops and flips, as uint8 (MAE, appendix A.1).

    Args:
        columns, extra: further columns to read, and what to make of a row besides its image.
        repeats: copies of a row in an epoch; see [`ImageStream`].
        hflip: share of mirrored images.
        augment: what else is done to a crop.
        collate_fn: what makes a batch of samples.
    """
    dataset, image_column = open_images(recipe, recipe.dataset_split, columns)
    transform = TrainTransform(image_size, scale=(recipe.crop_scale, 1.0), hflip=hflip, augment=augment)
    stream = ImageStream(
        dataset,
        partial(prepare_image, image_column=image_column, transform=transform, extra=extra),
        seed=recipe.seed,
        block_size=recipe.shuffle_block_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.dataloader_num_workers,
        max_consecutive_skips=most_in_a_row(recipe.max_skip_rate),
        max_lost_shards=recipe.max_skip_rate,
        repeats=repeats,
    )
    return build_loader(stream, batch_size=recipe.per_device_train_batch_size, collate_fn=collate_fn)


def read_eval_samples(
    recipe: ImageRecipe,
    image_size: int | tuple[int, int],
    count: int,
    *,
    resize: int | Literal["square"] | None = None,
    columns: Sequence[str] = (),
    extra: Extra | None = None,
    keep: Callable[[Sample], bool] | None = None,
    split: str | None = None,
) -> list[Sample]:
    """A fixed random sample of the evaluation split, resized and centre-cropped; `count` of them or fewer.

    Args:
        resize: as [`EvalTransform`] has it.
        keep: which rows count.
        split: another one than the recipe's evaluation split.

    Raises:
        DataSourceError: there is none.
    """
    split = split or recipe.eval_split or recipe.dataset_split
    dataset, image_column = open_images(recipe, split, columns)
    evaluate = EvalTransform(image_size, resize)
    rng = np.random.default_rng(recipe.seed)
    samples = []
    for row in random_rows(dataset, count, seed=recipe.seed, among=20 * count, keep=keep):
        try:
            samples.append(
                prepare_image(
                    row, rng, image_column=image_column, transform=lambda image, _: evaluate(image), extra=extra
                )
            )
        except ImageDecodeError:
            continue  # training counts them
    if not samples:
        raise DataSourceError(
            f"the split {split} of {recipe.dataset_name} has no image{' with labels or captions' if keep else ''} to "
            "look at: choose another --eval_split"
        )
    return samples


__all__ = [
    "ImageOptions",
    "ImageRecipe",
    "build_training_loader",
    "naming_empty_shard",
    "open_images",
    "read_eval_samples",
]
