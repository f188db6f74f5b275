"""The image-caption pairs of a run: what a script can be told about them, and the streams that follow from it.

Unlike elsewhere images are never mirrored: captions tell left from right, and pictures may hold letters.
"""

import glob
import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.captions import CaptionReader, find_captions, parse_weights
from ..data.feature_shards import (
    FEATURES,
    FeatureJob,
    FeatureRecord,
    choose_shards,
    compute_features,
    read_records,
    unpack_features,
)
from ..data.loader import build_loader, collate
from ..data.samples import KEY, Sample, random_rows
from ..data.sources import DataSourceError, digest_of_files, open_stream, refuse_output_within
from ..data.streaming import ImageStream
from ..data.tolerance import are_too_many
from ..evaluation.feature_cache import digest_of
from ..evaluation.features import encode_images, model_digest
from ..evaluation.two_towers import load_tokenizer, text_limit
from ..models.inference import prepared_for_inference
from ..models.modeling_maws_lit import MawsLiTModel
from ..processing.text_batches import CaptionBatches
from ..processing.transforms import EvalTransform, TrainTransform
from .arguments import option
from .images import ImageRecipe, build_training_loader, naming_empty_shard, open_images
from .resumption import refuse_other_source

if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

MOST_BAD_IMAGES = 10  # so many never end the pass over the images: in a small folder a single one is a high rate
WORTH_PACKING = 8


@dataclass(kw_only=True)
class PairRecipe(ImageRecipe):
    """What a script needs to be told to train on images with captions."""

    caption_column_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of captions: texts, lists of texts, or lists of {language, text}; captions, caption, "
            "text or txt if unset."
        },
    )
    caption_weights: str = option(
        "", "How often which language (or column of plain texts) is drawn, as en=2,de=1,fr=1; all alike if unset."
    )
    feature_views: int = option(
        1,
        "Views of each image whose features are computed once, before training: 1 is the centre, more are random "
        "crops; 0 computes features of fresh crops in every step.",
    )
    feature_cache: str | None = option(
        None, "Folder of computed features, seen by all machines of the run; output_dir/features if unset."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.feature_views >= 0, "feature_views", "0 or more")
        parse_weights(self.caption_weights)
        refuse_output_within(self.dataset_name, feature_cache=self.feature_cache)


def open_pairs(recipe: PairRecipe, split: str) -> tuple[IterableDataset, str, CaptionReader]:
    """The rows of a split, the name of their image column, and how to read their captions."""
    dataset, _ = open_images(recipe, split, columns=None)
    weights = parse_weights(recipe.caption_weights) or None
    with naming_empty_shard(dataset):
        captions = find_captions(dataset.features, recipe.caption_column_name, weights)
    dataset, image_column = open_images(recipe, split, columns=captions.columns)
    return dataset, image_column, captions


def load_tokenizer_of(name: str, model: MawsLiTModel) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, which cuts captions to what the text tower and `max_text_length` allow.

    Raises:
        ValueError: there is none, it has pieces that the tower does not know, or the tower looks only backwards.
    """
    tokenizer, text = load_tokenizer(name), model.config.text_config
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} pieces and its text tower {text.vocab_size}: they do not "
            "belong together"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_text_length)
    tokenizer.model_max_length = text_limit(model, tokenizer)
    with torch.no_grad():
        one, other = model.eval().embed_captions([tokenize("a cat", tokenizer), tokenize("two red apples", tokenizer)])
    if torch.equal(one, other):
        raise ValueError(
            f"in the text tower {name} a caption's first token, which LiT reads, knows nothing of the others: give an "
            "encoder that looks both ways, such as XLM-RoBERTa"
        )
    return tokenizer


def tokenize(caption: str, tokenizer: PreTrainedTokenizerBase) -> array:
    """Token ids, cut to the tokenizer's `model_max_length`; an array, which travels as one thing."""
    return array("i", tokenizer(caption, truncation=True)["input_ids"])


def draw_tokens(
    sample: Sample, rng: np.random.Generator, captions: CaptionReader, tokenizer: PreTrainedTokenizerBase
) -> Sample:
    """A caption of the row, drawn anew each time, as token ids."""
    caption = captions.draw(sample, rng)
    if caption is None:
        raise ValueError(f"{sample[KEY]} has no caption")  # the stream has left such rows out
    return {"input_ids": tokenize(caption, tokenizer)}


def mean_caption_tokens(recipe: PairRecipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """Mean length of the captions of a random sample of the training split, for the count of operations.

    Warns of a source of `--caption_weights` that no row has: it may be mistyped, or rare.

    Raises:
        DataSourceError: there is no caption.
    """
    dataset, _, captions = open_pairs(recipe, recipe.dataset_split)
    met, rows_read = set(), 0

    def has_caption(row: Sample) -> bool:
        nonlocal rows_read
        rows_read += 1
        met.update(source for source, _ in replace(captions, weights=None).texts(row))
        return bool(captions(row))

    rows: list[Sample] = []
    for among in (2**10, 2**20):  # captions that are wanted may be rare
        if not rows:
            rows_read = 0
            rows = random_rows(dataset, 256, seed=recipe.seed, among=among, keep=has_caption)
    wanted = {source for source, weight in (captions.weights or {}).items() if weight}
    if absent := sorted(wanted - met):
        warnings.warn(
            f"--caption_weights names {', '.join(absent)}, of which {rows_read} images of the split "
            f"{recipe.dataset_split} of {recipe.dataset_name} have no caption; theirs are in "
            f"{', '.join(sorted(met)) or 'none'}: check the spelling",
            stacklevel=2,
        )
    if not rows:
        raise DataSourceError(
            f"no image of the split {recipe.dataset_split} of {recipe.dataset_name} has a caption in "
            f"{', '.join(captions.columns)}: choose another --caption_column_name or other --caption_weights"
        )
    rng = np.random.default_rng(recipe.seed)
    return round(sum(len(tokenize(captions.draw(row, rng), tokenizer)) for row in rows) / len(rows))


def build_pair_loader(
    recipe: PairRecipe,
    model: MawsLiTModel,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    parts: int = 1,
) -> tuple["StatefulDataLoader", int]:
    """This rank's endless batches of `text_batches` with `vision_features` or, with `feature_views=0`, `pixel_values`.

    Args:
        parts: in which the captions of a batch are encoded.

    Returns:
        The loader, and how many views were computed beforehand (now or in an earlier run), on all ranks.

    Raises:
        ValueError: features are to be computed beforehand of an image tower that is trained.
        DataSourceError: there is no image, or too many cannot be read.
    """
    if recipe.feature_views and not model.config.lock_vision_tower:
        raise ValueError("the image tower of this model is not locked, its features change: give --feature_views 0")
    dataset, image_column, captions = open_pairs(recipe, recipe.dataset_split)
    draw = partial(draw_tokens, captions=captions, tokenizer=tokenizer)
    collate_fn = partial(_collate_pairs, batch_captions=model.batch_captions, parts=parts)
    image_size = model.config.vision_config.image_size
    if recipe.feature_views == 0:
        columns = captions.columns
        loader = build_training_loader(
            recipe,
            image_size,
            accelerator,
            columns=columns,
            extra=draw,
            repeats=captions,
            hflip=0,
            collate_fn=collate_fn,
        )
        return loader, 0
    job = _feature_job(recipe, model.vision_model.to(accelerator.device), dataset, image_column, accelerator)
    data = [*_data_of(recipe, dataset), digest_of_files(dataset)]
    source = digest_of([model_digest(model.vision_model), data])[:16]
    refuse_other_source(recipe, source)
    with _patient_barrier():
        compute_features(
            job,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_threads=max(1, recipe.dataloader_num_workers),
        )
    rows = _count_rows(recipe, read_records(job), dataset.num_shards, accelerator)
    if (batch := recipe.per_device_train_batch_size * accelerator.num_processes) > rows:
        accelerator.print(
            f"warning: an update has {batch} pairs, more than the {rows} images of the data set: copies of a pair in "
            "one batch count as wrong answers; give a smaller --per_device_train_batch_size"
        )
    stream = ImageStream(
        open_stream(job.folder, require_image=False),
        partial(_prepare_features, width=model.config.vision_config.hidden_size, extra=draw),
        seed=recipe.seed,
        block_size=recipe.shuffle_block_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.dataloader_num_workers,
        repeats=captions,
        source=source,
    )
    loader = build_loader(stream, batch_size=recipe.per_device_train_batch_size, collate_fn=collate_fn)
    return loader, rows * recipe.feature_views


def _collate_pairs(samples: Sequence[Sample], *, batch_captions: CaptionBatches, parts: int) -> dict[str, Any]:
    batch = collate(samples)
    batch["text_batches"] = batch_captions(batch.pop("input_ids"), parts)
    return batch


@contextmanager
def _patient_barrier() -> Iterator[None]:
    """Waits at the end until all processes are there. The usual barrier gives up after minutes; shards take hours."""
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    yield
    dist.barrier(group)
    dist.destroy_process_group(group)


def _count_rows(recipe: PairRecipe, records: list[FeatureRecord], shards: int, accelerator: Accelerator) -> int:
    damaged = [item for record in records for item in record.damaged]
    if are_too_many(len(damaged), shards, recipe.max_skip_rate):
        raise DataSourceError(
            f"{len(damaged)} of {shards} shards are damaged, among them {damaged[0]['key']} ({damaged[0]['reason']}): "
            "repair them, or allow more with --max_skip_rate"
        )
    for item in damaged:
        accelerator.print(f"warning: {item['key']} is {item['reason']}: the rest of it is not read")
    rows, bad = sum(record.rows for record in records), [item for record in records for item in record.skipped]
    tolerated = max(MOST_BAD_IMAGES, recipe.max_skip_rate * (rows + len(bad)))
    if len(bad) > tolerated or (bad and not rows):
        raise DataSourceError(
            f"{len(bad)} of {rows + len(bad)} images could not be read, among them {bad[0]['key']} "
            f"({bad[0]['reason']}): repair the data, or allow more with --max_skip_rate"
        )
    if not rows:
        raise DataSourceError(f"the split {recipe.dataset_split} of {recipe.dataset_name} is empty")
    if bad:
        accelerator.print(f"{len(bad)} images could not be read and are left out, among them {bad[0]['key']}")
    return rows


def _feature_job(
    recipe: PairRecipe, vision_model: Any, dataset: IterableDataset, image_column: str, accelerator: Accelerator
) -> FeatureJob:
    image_size, count = vision_model.config.image_size, recipe.feature_views
    transform: EvalTransform | TrainTransform = EvalTransform(image_size)
    if count > 1:
        transform = TrainTransform(image_size, scale=(recipe.crop_scale, 1.0), hflip=0)
    key = {
        "tower": model_digest(vision_model),
        "precision": "bfloat16" if recipe.bf16 else "float32",
        "transform": [type(transform).__name__, asdict(transform)],
        "views": count,
        "seed": recipe.seed if count > 1 else None,
        "shards": dataset.num_shards,  # or files of another division would be read, too
        "data": _data_of(recipe, dataset),
    }
    folder = Path(recipe.feature_cache or Path(recipe.output_dir, "features")) / digest_of(key)[:16]
    # One process looks: another may not see yet, or already, what somebody has begun there.
    (shards,) = broadcast_object_list([choose_shards(folder, dataset, accelerator.num_processes)])
    return FeatureJob(
        dataset=dataset,
        image_column=image_column,
        views=partial(_views, transform=transform, count=count),
        encode=partial(encode_in_parts, vision_model, bf16=recipe.bf16),
        seed=recipe.seed,
        folder=folder,
        shards=shards,
    )


def _data_of(recipe: PairRecipe, dataset: IterableDataset) -> list[Any]:
    """What tells one data set from another; however the path to it is spelled."""
    name = recipe.dataset_name
    if os.path.exists(name) or glob.has_magic(name):
        name = os.path.realpath(name)
    return [name, recipe.dataset_config_name, recipe.dataset_split, sorted(dataset.features)]


def _views(
    image: np.ndarray, rng: np.random.Generator, *, transform: EvalTransform | TrainTransform, count: int
) -> list[Tensor]:
    if isinstance(transform, EvalTransform):
        return [transform(image)]
    return [transform(image, rng) for _ in range(count)]


def encode_in_parts(vision_model: Any, pixels: Tensor, *, bf16: bool, size: int = 64) -> Tensor:
    """Features `(B, D)` of many images, some at a time."""
    return torch.cat([encode_images(vision_model, part, bf16=bf16) for part in pixels.split(size)])


def encode_locked(vision_model: Any, pixels: Tensor, *, bf16: bool) -> Tensor:
    """Features `(B, D)` of a batch, to train on. The tower's matrices are packed for the while, which takes as long as
    half an image: from `WORTH_PACKING` images on that is won back."""
    packs = len(pixels) >= WORTH_PACKING
    with prepared_for_inference(vision_model, torch.bfloat16 if bf16 else None) if packs else nullcontext():
        return encode_images(vision_model, pixels, bf16=bf16).clone()  # autograd takes no tensor of inference mode


def _prepare_features(sample: Sample, rng: np.random.Generator, *, width: int, extra: Any) -> Sample:
    """A row of a feature shard to a training sample: one of its views, drawn anew each time."""
    views = unpack_features(sample[FEATURES], width)
    drawn = views[rng.integers(len(views))]
    return {"vision_features": torch.tensor(drawn), "key": sample[KEY], **extra(sample, rng)}


__all__ = [
    "PairRecipe",
    "build_pair_loader",
    "encode_in_parts",
    "encode_locked",
    "load_tokenizer_of",
    "mean_caption_tokens",
    "open_pairs",
    "tokenize",
]
