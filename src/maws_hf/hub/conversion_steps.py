"""The steps of a conversion that read the foreign file; `conversion_process` runs them in a process of their own."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.configuration_maws_lit import MAX_LOGIT_SCALE
from ..processing.image_processors import image_processor_of, square_image_processor_of
from .mapped_file import MappedFile
from .native_writer import SHARD_BYTES, write_shards
from .original_archive import ConversionError
from .original_check import MODELS, compare_with_original
from .original_files import KNOWN_FILES
from .original_names import Layout, Piece, canonical_names, check_shapes, layout_of, pieces_of
from .original_reader import OriginalCheckpoint, read_original
from .original_sizes import NOTHING_SAID, Sizes, config_of

PROGRESS_FROM = 200_000_000  # bytes


@dataclass(frozen=True)
class WrittenModel:
    """
    Args:
        layout: of the original.
        architecture: class of ours.
        tensors, parameters: of our model.
        dtype: of its weights.
        left_out: what of the file was not needed.
    """

    layout: Layout
    architecture: str
    tensors: int
    parameters: int
    dtype: str
    left_out: list[str]


def write_native(
    file: Path,
    folder: Path,
    *,
    known: str | None = None,
    sizes: Sizes = NOTHING_SAID,
    labels: list[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenModel:
    """Writes config, image processor and weights of an original checkpoint into `folder`, which exists.

    Args:
        file: the original.
        known: which of `KNOWN_FILES` it is; None for a file of `sizes`.
        labels: names of a classifier's classes.
        shard_bytes: most bytes a shard.

    Raises:
        ConversionError: the file is not safe, not whole, of another model, or has values that are not finite.
    """
    original = _read(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in original.tensors.items()}
    said = KNOWN_FILES[known] if known else None
    model_class = MODELS[original.layout]
    try:
        config = config_of(original.layout, shapes, said, sizes, original.checkpoint.arguments)
    except ConversionError as error:
        raise ConversionError(f"{file}: {error}") from error
    pieces = {piece.target: piece for piece in pieces_of(original.layout, config)}
    check_shapes(pieces.values(), shapes, f"{file} as {known or model_class.__name__}")
    _check_scale(original.tensors, file)
    dtype = _dtype_of(original.tensors, file)
    wanted, parameters = _model_state(original.layout, config)
    if wanted != {name: piece.shape for name, piece in pieces.items()}:
        raise ConversionError(f"the tensors of {model_class.__name__} are not those that are converted: report this")
    _set_labels(config, original.layout, labels, file)
    _write_settings(config, original.layout, dtype, folder)
    options = {"shard_bytes": shard_bytes, "parameters": parameters}
    _write_weights(pieces.values(), original.tensors, dtype, file, folder, **options)
    kind = str(dtype).removeprefix("torch.")
    left_out = original.checkpoint.left_out
    return WrittenModel(original.layout, model_class.__name__, len(wanted), parameters, kind, left_out)


def verify_native(file: Path, folder: Path) -> dict[str, float]:
    """The largest differences between what `folder` and its original `file` compute; see `compare_with_original`."""
    original = _read(file)
    return compare_with_original(folder, original.layout, original.tensors)


def run_step(request: Mapping[str, Any]) -> dict[str, Any]:
    """One of the two, asked for and answered in plain JSON."""
    file, folder = Path(request["file"]), Path(request["folder"])
    if request["step"] == "verify":
        return {"differences": verify_native(file, folder)}
    written = write_native(
        file,
        folder,
        known=request["known"],
        sizes=Sizes(**{name: _pair(value) for name, value in request["sizes"].items()}),
        labels=request["labels"],
        shard_bytes=request["shard_bytes"],
    )
    return asdict(written)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class _Original:
    """`tensors` are those of `checkpoint` by today's original names."""

    checkpoint: OriginalCheckpoint
    tensors: dict[str, Tensor]
    layout: Layout


def _read(file: Path) -> _Original:
    checkpoint = read_original(file)
    try:
        spelt = canonical_names(checkpoint.tensors)
        layout = layout_of(spelt)
    except ConversionError as error:
        raise ConversionError(f"{file}: {error}") from error
    return _Original(checkpoint, {today: checkpoint.tensors[name] for today, name in spelt.items()}, layout)


def _check_scale(tensors: Mapping[str, Tensor], file: Path) -> None:
    scale = tensors.get("logit_scale")
    if scale is not None and scale.float().item() > MAX_LOGIT_SCALE + 1e-3:
        raise ConversionError(
            f"{file} has logit_scale = {scale.item():.4f}, beyond ln 100 = {MAX_LOGIT_SCALE:.4f}, at which our model "
            "clamps it: its logits would not be the original's"
        )


def _dtype_of(tensors: Mapping[str, Tensor], file: Path) -> torch.dtype:
    """The one dtype of all weights; the logit scale, which our model keeps in float32, may have another."""
    found = {str(tensor.dtype): tensor.dtype for name, tensor in tensors.items() if name != "logit_scale"}
    if len(found) > 1:
        raise ConversionError(f"{file} mixes {' and '.join(sorted(found))}: save it in one of them")
    return next(iter(found.values()))


def _set_labels(config: Any, layout: Layout, labels: list[str] | None, file: Path) -> None:
    if layout != "classifier":
        if labels:
            raise ConversionError(f"{file} has no classifier, so there is nothing to label")
        return
    count = config.num_labels
    if labels is not None and len(labels) != count:
        raise ConversionError(f"there are {len(labels)} labels for a classifier of {count} classes")
    config.id2label = dict(enumerate(labels or [f"LABEL_{index}" for index in range(count)]))
    config.label2id = {label: index for index, label in config.id2label.items()}


def _write_settings(config: Any, layout: Layout, dtype: torch.dtype, folder: Path) -> None:
    """`config.json` and `preprocessor_config.json`."""
    config.architectures = [MODELS[layout].__name__]
    for part in (config, config.vision_config, config.text_config) if layout == "clip" else (config,):
        part.dtype = dtype
    config.save_pretrained(folder)
    processor = square_image_processor_of if layout == "classifier" else image_processor_of
    processor(config.vision_config if layout == "clip" else config).save_pretrained(folder)


def _model_state(layout: Layout, config) -> tuple[dict[str, tuple[int, ...]], int]:
    """Names and shapes of our model's tensors, and how many parameters that are; no memory is taken."""
    with torch.device("meta"):
        model = MODELS[layout](config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, model.num_parameters()


def _write_weights(
    pieces: Iterable[Piece],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    file: Path,
    folder: Path,
    **options: int,
) -> None:
    contents = {}
    for piece in pieces:
        kind = torch.float32 if piece.source == "logit_scale" else dtype
        contents[piece.target] = (kind, piece.shape, partial(_made, piece, tensors, kind))
    mapped = MappedFile(file)
    total = sum(torch.Size(shape).numel() * kind.itemsize for kind, shape, _ in contents.values())
    hidden = total < PROGRESS_FROM
    with tqdm(total=total, desc="Writing", unit="B", unit_scale=True, leave=False, disable=hidden) as bar:

        def written(chunk: Tensor) -> None:
            bar.update(chunk.numel() * chunk.element_size())
            mapped.give_back(chunk)

        not_finite = write_shards(contents, folder, written=written, **options)
    if not_finite:
        sources = {piece.target: piece.source for piece in pieces}
        found = ", ".join(f"{count:,} in {sources[name]}" for name, count in not_finite.items())
        raise ConversionError(f"{file} has values that are not finite: {found}. No such model is of use")


def _made(piece: Piece, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    if piece.source is None:
        return torch.zeros(piece.shape, dtype=dtype)
    source = tensors[piece.source]
    if piece.transposed:
        source = source.T
    index, parts = piece.part
    return source.chunk(parts)[index].to(dtype) if parts > 1 else source.to(dtype)


__all__ = ["PROGRESS_FROM", "WrittenModel", "run_step", "verify_native", "write_native"]
