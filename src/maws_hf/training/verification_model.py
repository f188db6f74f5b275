"""Whether a model's folder is whole, without loading it: its tensors are compared with a model that has no memory."""

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

import maws_hf

from ..hub.staging import CONFIG
from ..hub.weight_checks import weight_problems
from .checkpoint import CheckpointError
from .initial_weights import meta_model
from .sharded_files import WEIGHTS, CheckpointTensors

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_LISTED = 5


def model_problems(folder: Path, *, complete: bool) -> Iterator[str]:
    """What is wrong with a model's folder, each a sentence that names the file.

    Args:
        complete: what prepares its input must be there, too, as in a folder that `from_pretrained` is to read.
    """
    config = yield from _config_of(folder)
    broken = [f"{folder / name} {problem}" for name, problem in weight_problems(folder, _fields_of(folder))]
    yield from broken
    if config is not None and not broken:
        yield from _fit_problems(folder, config)
    if complete:
        yield from _processor_problems(folder)


def sharded_problems(folder: Path) -> Iterator[str]:
    """The same of a checkpoint of shards, whose rows must make up the weights of the config's model."""
    config = yield from _config_of(folder)
    try:
        with CheckpointTensors(folder) as tensors:
            found = {name: tensors.shapes[WEIGHTS + name] for name in tensors.names(WEIGHTS)}
    except CheckpointError as error:
        yield str(error)
        return
    model_class = config and (yield from _class_of(folder, config))
    if model_class is None:
        return
    try:
        model = meta_model(model_class, config)
    except Exception as error:  # as above
        yield f"{folder / CONFIG} makes no {model_class.__name__} ({_one_line(error)})"
        return
    due = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = [(name, found[name], due[name]) for name in found.keys() & due.keys() if found[name] != due[name]]
    yield from _misfits(folder, model_class.__name__, due.keys() - found.keys(), found.keys() - due.keys(), other)


def _config_of(folder: Path) -> Generator[str, None, PreTrainedConfig | None]:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a file that can say anything
        yield f"{folder / CONFIG} describes no model ({_one_line(error)})"
    return None


def _class_of(folder: Path, config: PreTrainedConfig) -> Generator[str, None, type[PreTrainedModel] | None]:
    name = next(iter(config.architectures or []), None)
    model_class = getattr(maws_hf, str(name), None) or getattr(transformers, str(name), None)
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        return model_class
    yield f"{folder / CONFIG} names the architecture {name!r}, which neither maws_hf nor transformers has"
    return None


def _fit_problems(folder: Path, config: PreTrainedConfig) -> Iterator[str]:
    """Names and shapes of the weights against those of the config's model; nothing is read but their headers."""
    model_class = yield from _class_of(folder, config)
    if model_class is None:
        return
    name = model_class.__name__
    try:
        with _silence():
            _, info = model_class.from_pretrained(
                folder, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # as above
        yield f"{folder} cannot be loaded as {name} ({_one_line(error)})"
        return
    yield from _misfits(folder, name, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])


def _misfits(
    folder: Path, name: str, missing: Iterable[str], unknown: Iterable[str], other: Iterable[tuple[str, Any, Any]]
) -> Iterator[str]:
    shapes = {key: f"{key} of shape {tuple(found)}, not {tuple(due)}" for key, found, due in other}
    missing = [key for key in missing if key not in shapes]
    for what, names in (("lack", missing), ("hold the unknown", unknown), ("hold", shapes.values())):
        if names:
            yield f"{folder}: the weights {what} {_listed(names)}; {CONFIG} says {name}"


def _processor_problems(folder: Path) -> Iterator[str]:
    there = [name for name in _PROCESSORS if (folder / name).is_file()]
    if not there:
        yield f"{folder / _PROCESSORS[0]} is missing: what prepares an image for this model?"
        return
    try:
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        yield f"{folder / there[0]} makes no image processor ({_one_line(error)})"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without transformers' own table of what does not fit."""
    verbosity = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _fields_of(folder: Path) -> dict[str, Any]:
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


__all__ = ["model_problems", "sharded_problems"]
