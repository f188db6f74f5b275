"""What a frozen encoder says about every image of a split: read once, computed once, kept on disk.

The cache is keyed by everything that a feature depends on: the encoder's config and weights, the transform, the
precision, and each row as it was read (its key, its bytes, its label). A second call reads and hashes the rows, but
neither decodes nor encodes.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, IterableDataset, Value
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.samples import element_of
from ..data.sources import DataSourceError, find_image_column, why_no_labels
from ..data.targets import LABELS_OF_FOLDERS, NO_LABEL, UNLABELLED
from ..models.inference import prepared_for_inference
from ..models.modeling_maws_vit import MawsViTModel
from ..processing.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, normalize
from .feature_cache import CacheError, digest_of, load_entry, save_entry
from .rows import Label, Row, read_rows

# Fields of a config that no feature depends on, or that the weights tell better.
_UNTOLD = ("_name_or_path", "architectures", "dtype", "transformers_version")
# The parts of a two-tower model that no image feature depends on, in its config and among its weights.
_OF_TEXT = ("text_", "logit_")


@dataclass(frozen=True)
class LabelledFeatures:
    """Features and class indices, as the probes take them.

    Attributes:
        features: float32 `(N, D)`.
        labels: int64 `(N,)`, one class each; or `(N, K)`, index lists padded with -100.
        num_classes: C; indices are below it.

    Raises:
        ValueError: shapes or types do not fit, a label is out of range, a feature is not finite.
    """

    features: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        features, labels = self.features, self.labels
        if features.dim() != 2 or features.dtype != torch.float32 or not len(features):
            raise ValueError(f"features are {features.dtype} {tuple(features.shape)}, expected float32 (N, D)")
        if labels.dim() not in (1, 2) or labels.dtype != torch.int64 or len(labels) != len(features):
            raise ValueError(
                f"labels are {labels.dtype} {tuple(labels.shape)}, expected int64 ({len(features)},), or "
                f"({len(features)}, K) padded with {NO_LABEL}"
            )
        used = labels if labels.dim() == 1 else labels[labels >= 0]
        if not len(used) or not 0 <= int(used.min()) <= int(used.max()) < self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1} and there must be one: {used.unique()}")
        if not all(value.isfinite() for value in features.aminmax()):
            raise ValueError("features hold NaN or infinity: the encoder or its precision is broken")

    @property
    def multi_label(self) -> bool:
        return self.labels.dim() == 2

    @property
    def label_lists(self) -> Tensor:
        """`(N, K)`, with K = 1 for single labels."""
        return self.labels if self.multi_label else self.labels[:, None]


@dataclass(frozen=True)
class Features:
    """A split as an encoder sees it, in the order of the files.

    Attributes:
        features: float32 `(N, D)`.
        labels: N labels as they were read: integers, strings, or lists of either.
        keys: N names: the key column, else the path that came with the image, else "row 17".
        skipped: `{"key", "reason"}` of each image that could not be decoded; they are in none of the above.
        class_names: of a ClassLabel column, in the order of its integers.
        digest: of the encoder, the transform and all rows; equal digests, equal features.
        from_cache: whether the encoder was spared.
    """

    features: Tensor
    labels: list[Label]
    keys: list[str]
    skipped: list[dict[str, str]]
    class_names: list[str] | None
    digest: str
    from_cache: bool = False

    def classes(self) -> list[int] | list[str]:
        """Of a ClassLabel column all, of others what occurs, sorted: to be taken from the training split."""
        if self.class_names is not None:
            return list(range(len(self.class_names)))
        found = {name for label in self.labels for name in (label if isinstance(label, list) else [label])}
        return sorted(found - set(UNLABELLED))

    def with_classes(self, classes: list[int] | list[str], class_names: list[str] | None = None) -> LabelledFeatures:
        """Labels as indices into `classes`. In label lists, what is no class is dropped.

        Args:
            class_names: what the integers in `classes` stand for, if another split has said them; own integers are
                then translated by name.

        Raises:
            ValueError: a single label is no class; names the image and the label.
        """
        index = {name: place for place, name in enumerate(classes)}
        if class_names is not None and self.class_names is not None:
            places = {name: index[number] for number, name in enumerate(class_names) if number in index}
            index = {number: places[name] for number, name in enumerate(self.class_names) if name in places}
        if any(isinstance(label, list) for label in self.labels):
            lists = [sorted({index[name] for name in label if name in index}) for label in self.labels]
            longest = max(1, max(map(len, lists)))
            rows = [row + [NO_LABEL] * (longest - len(row)) for row in lists]
            return LabelledFeatures(self.features, torch.tensor(rows), len(classes))
        for key, label in zip(self.keys, self.labels, strict=True):
            if label not in index:
                raise ValueError(
                    f"{key}: its label {label!r} is none of the {len(classes)} classes to learn: choose a split with "
                    "labels, of classes that the training split shows"
                )
        return LabelledFeatures(self.features, torch.tensor([index[label] for label in self.labels]), len(classes))


def find_label_column(dataset: IterableDataset, name: str | None = None) -> str:
    """The column of the labels: the given one, else the only ClassLabel (or list of them), else `label`.

    Raises:
        DataSourceError: the column is absent, of no usable type, or there is no telling which it is.
    """
    kinds = dataset.features
    if name is None:
        declared = [column for column, kind in kinds.items() if isinstance(element_of(kind), ClassLabel)]
        name = declared[0] if len(declared) == 1 else "label"
    if name not in kinds:
        only_images = f"; {why_no_labels(dataset) or LABELS_OF_FOLDERS}" if list(kinds) == ["image"] else ""
        raise DataSourceError(
            f"no label column {name!r} among {', '.join(kinds)}: name it with --label_column_name{only_images}"
        )
    kind = element_of(kinds[name])
    usable = isinstance(kind, Value) and (kind.dtype in ("string", "large_string") or "int" in kind.dtype)
    if not (usable or isinstance(kind, ClassLabel)):
        raise DataSourceError(f"the labels in {name} are {kind}: integers, strings or lists of them are wanted")
    return name


def extract_features(
    model: PreTrainedModel,
    dataset: IterableDataset,
    transform: EvalTransform,
    *,
    label_column: str,
    image_column: str | None = None,
    image_mean: tuple[float, ...] = IMAGENET_MEAN,
    image_std: tuple[float, ...] = IMAGENET_STD,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    cache_dir: Path | None = None,
    say: Callable[[str], None] = print,
) -> Features:
    """The feature of every image that can be decoded, from `cache_dir` if it is known there; see `encode_images`.

    Args:
        model: a MAWS model, whose encoder is used, another vision model of transformers, or a two-tower model with
            `get_image_features`; where it is.
        dataset: from `open_stream`, not shuffled; its order is kept whatever the number of workers.
        transform: picture to uint8; its size decides the resolution.
        label_column: see `find_label_column`.
        image_mean, image_std: for models that do not normalise uint8 themselves, as MAWS encoders do.
        num_workers: processes that read and decode; 0 does it in this one.
        bf16: bfloat16 autocast; features come out as float32 all the same. On a CPU a MAWS encoder is prepared for
            inference meanwhile: features differ by a rounding, as between two devices, and share a cache.
        cache_dir: None keeps nothing.
        say: told of a damaged cache file, whose features are computed again.

    Raises:
        ValueError: no image can be decoded, a row has no label, or the encoder's output is not finite.
    """
    encoder = encoder_of(model)
    image_column = find_image_column(dataset, image_column)
    kind = element_of(dataset.features[label_column])
    read = partial(
        read_rows,
        dataset,
        image_column=image_column,
        label_column=label_column,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    how = {
        "model": model_digest(encoder),
        "transform": asdict(transform),
        "statistics": None if _normalises(encoder) else [list(image_mean), list(image_std)],
        "precision": "bfloat16" if bf16 else "float32",
        "class_names": list(kind.names) if isinstance(kind, ClassLabel) else None,
    }
    entries = None if cache_dir is None else cache_dir / digest_of(how)[:16]
    if entries is not None and any(entries.glob("*.json")):
        # Only now is a pass that just reads worth its time; the first ever reads, decodes and hashes at once.
        cached = _find(entries, _digest(how, [row for rows, _ in read(transform=None) for row in rows]), say)
        if cached is not None:
            return cached

    records, outputs = [], []
    with prepared_for_inference(encoder, torch.bfloat16 if bf16 else None):
        for rows, pixels in read(transform=transform):
            records += rows
            if pixels is not None:
                features = encode_images(encoder, pixels, bf16=bf16, image_mean=image_mean, image_std=image_std)
                outputs.append(features.cpu())
    if not outputs:
        reasons = sorted({row.reason for row in records if row.reason})
        raise ValueError(f"none of {len(records)} images can be decoded: {'; '.join(reasons[:3]) or 'there is none'}")
    result = _in_order(records, outputs, how["class_names"], _digest(how, records))
    if entries is not None:
        content = {name: getattr(result, name) for name in ("labels", "keys", "skipped", "class_names", "digest")}
        save_entry(entries / result.digest, result.features, content)
    return result


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Of a model with a head the base model; an encoder is its own, and of a two-tower model all is needed."""
    # What a class calls its base may also be its layers alone, as in DINOv3ViTModel.
    takes_pictures = "pixel_values" in inspect.signature(model.base_model.forward).parameters
    return model.base_model if takes_pictures and not _has_two_towers(model) else model


def encode_images(
    encoder: PreTrainedModel,
    pixels: Tensor,
    *,
    bf16: bool = False,
    image_mean: tuple[float, ...] = IMAGENET_MEAN,
    image_std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """The features `(B, D)` of uint8 images `(B, 3, H, W)`: `pooler_output` if there is one, else the first token.

    Where the output is no sequence of tokens but a map of features, its mean over all places takes the token's part. A
    model with `get_image_features` is asked for those: projected into the space that it shares with texts.

    Returns:
        float32, on the encoder's device.

    Raises:
        ValueError: they are not finite.
    """
    pixels = pixels.to(encoder.device, non_blocking=True)
    if not _normalises(encoder):
        pixels = normalize(pixels, image_mean, image_std).to(encoder.dtype)
    encode = encoder.get_image_features if _has_two_towers(encoder) else encoder
    parameters = inspect.signature(encoder.forward if encode is encoder else encode).parameters
    options: dict[str, Any] = {"class_token_only": True} if "class_token_only" in parameters else {}
    native = getattr(getattr(encoder.config, "vision_config", encoder.config), "image_size", None)
    if "interpolate_pos_encoding" in parameters and native not in (pixels.shape[-1], tuple(pixels.shape[-2:])):
        options["interpolate_pos_encoding"] = True
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
            output = encode(pixel_values=pixels, **options)
    finally:
        encoder.train(was_training)
    features = (output if isinstance(output, Tensor) else _pooled(output)).float()
    if not features.isfinite().all():
        raise ValueError("the encoder gives features that are not finite: its weights or its precision are broken")
    return features


def model_digest(model: PreTrainedModel) -> str:
    """SHA-256 of class, config and weights; where the model came from plays no part.

    Of a two-tower model only what image features depend on: training its text tower leaves the digest as it is.
    """
    ignored = _OF_TEXT if _has_two_towers(model) else ()
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in _UNTOLD and not name.startswith(ignored)
    }
    digest = hashlib.sha256(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(ignored):
            continue
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _pooled(output: ModelOutput) -> Tensor:
    """`(B, D)`; convolutional networks pool to `(B, D, 1, 1)`."""
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    return hidden.mean(dim=(2, 3)) if hidden.dim() == 4 else hidden[:, 0]


def _has_two_towers(model: PreTrainedModel) -> bool:
    return hasattr(model, "get_image_features")


def _normalises(encoder: PreTrainedModel) -> bool:
    """Whether it takes uint8 as it is: a MAWS encoder, or a model with one as its image tower."""
    return any(isinstance(module, MawsViTModel) for module in encoder.modules())


def _digest(how: dict[str, Any], records: list[Row]) -> str:
    return digest_of({**how, "rows": hashlib.sha256(b"".join(row.digest for row in sorted(records))).hexdigest()})


def _find(entries: Path, digest: str, say: Callable[[str], None]) -> Features | None:
    try:
        entry = load_entry(entries / digest)
    except CacheError as error:
        say(f"{error}; computing the features again")
        return None
    return None if entry is None else Features(entry[0], **entry[1], from_cache=True)


def _in_order(records: list[Row], outputs: list[Tensor], class_names: list[str] | None, digest: str) -> Features:
    """Rows into the order of the files, and the outputs, which came in the order of arrival, beside them."""
    arrived = [row for row in records if row.reason is None]
    rank = {row.place: number for number, row in enumerate(sorted(arrived))}
    features = torch.empty(len(arrived), outputs[0].shape[1])
    ranks = torch.tensor([rank[row.place] for row in arrived]).split([len(output) for output in outputs])
    for places, output in zip(ranks, outputs, strict=True):
        features[places] = output
    keys, labels, skipped = [], [], []
    for number, row in enumerate(sorted(records)):
        key = row.key or f"row {number}"
        if row.reason is None:
            keys.append(key)
            labels.append(row.label)
        else:
            skipped.append({"key": key, "reason": row.reason})
    return Features(features, labels, keys, skipped, class_names, digest)


__all__ = [
    "Features",
    "LabelledFeatures",
    "encode_images",
    "encoder_of",
    "extract_features",
    "find_label_column",
    "model_digest",
]
