"""Labelled images to score encoders on: what an evaluation script can be told about them, and their features."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from datasets import IterableDataset
from transformers import PreTrainedModel

from ..data.sources import open_stream, refuse_output_within
from ..evaluation.features import Features, extract_features, find_label_column
from ..evaluation.two_towers import pixel_statistics
from ..models.configuration_maws_vit import as_pair
from ..models.modeling_maws_vit import MawsViTModel
from ..processing.transforms import EvalTransform
from .arguments import Options, option


@dataclass(kw_only=True)
class LabelledImageOptions(Options):
    """Options of scripts that read the features of labelled images."""

    dataset_name: str = field(
        metadata={
            "help": "Folder of parquet shards, tar shards or class folders of images, or a data set id on the Hub."
        }
    )
    output_dir: str = field(metadata={"help": "Folder of results, pictures and features."})
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set that has several.")
    image_column_name: str | None = option(None, "Column of the images; found by itself if there is just one.")
    label_column_name: str | None = option(
        None, "Column of the labels: integers, strings or, for probes, lists of either; the declared classes if unset."
    )
    image_size: int | None = option(None, "Side of the images in pixels; each model's own if unset.")
    resize_size: int | None = option(None, "Shortest side before the centre crop, as MAE's 256; image_size if unset.")
    per_device_eval_batch_size: int = option(64, "Images a forward pass.")
    bf16: bool = option(False, "bfloat16 autocast of the model; scores are float32.")
    dataloader_num_workers: int = option(2, "Processes that read and decode images; 0 does it in the main one.")
    feature_cache: str | None = option(None, "Folder of computed features; output_dir/features if unset.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "resize_size", "per_device_eval_batch_size"):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, "at least 1")
        self._require(self.dataloader_num_workers >= 0, "dataloader_num_workers", "0 or more")
        refuse_output_within(self.dataset_name, output_dir=self.output_dir, feature_cache=self.feature_cache)

    def open(self, split: str) -> IterableDataset:
        return open_stream(
            self.dataset_name, split=split, name=self.dataset_config_name, image_column=self.image_column_name
        )


def build_transform(options: LabelledImageOptions, model: PreTrainedModel) -> EvalTransform:
    """To the size asked for, else the model's own.

    Raises:
        ValueError: nobody names a size, it is no multiple of the patch, or pictures would be resized to less than it,
            and framed in black.
    """
    vision_config = getattr(model.config, "vision_config", model.config)
    size = options.image_size or getattr(vision_config, "image_size", None)
    if size is None:
        raise ValueError(f"{type(model).__name__} names no image size: give --image_size")
    size = size if isinstance(size, int) else tuple(size)
    side = size if isinstance(size, int) else max(size)
    patch = max(as_pair(vision_config.patch_size)) if isinstance(model, MawsViTModel) else 1  # others round down
    if options.image_size and options.image_size % patch:
        raise ValueError(
            f"--image_size {options.image_size} is no multiple of {patch}, the side of a patch of "
            f"{model.name_or_path}: give {patch * max(1, round(options.image_size / patch))}"
        )
    if options.resize_size is not None and options.resize_size < side:
        raise ValueError(
            f"--resize_size {options.resize_size} is less than the {side} pixels of "
            f"{'--image_size' if options.image_size else model.name_or_path}: pictures would be framed in black"
        )
    return EvalTransform(size, options.resize_size)


def read_features(options: LabelledImageOptions, name: str, model: PreTrainedModel, split: str) -> Features:
    """Features of a split, computed or from the cache; says which, and how long it took.

    Args:
        name: of the model, as it was loaded.
    """
    dataset = options.open(split)
    start = time.perf_counter()
    features = extract_features(
        model,
        dataset,
        build_transform(options, model),
        image_column=options.image_column_name,
        label_column=find_label_column(dataset, options.label_column_name),
        batch_size=options.per_device_eval_batch_size,
        num_workers=options.dataloader_num_workers,
        bf16=options.bf16,
        cache_dir=Path(options.feature_cache or Path(options.output_dir, "features")),
        **pixel_statistics(name, model),
    )
    how = "read from the cache" if features.from_cache else "computed"
    bad = f", {len(features.skipped)} bad images skipped" if features.skipped else ""
    print(f"{name}, {split}: {len(features.keys)} features {how} in {time.perf_counter() - start:.1f} s{bad}")
    return features


__all__ = ["LabelledImageOptions", "build_transform", "read_features"]
