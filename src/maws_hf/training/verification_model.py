"""Whether a model's folder is whole, without loading it: its tensors are compared with a model that has no memory."""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

import maws_hf

from ..evaluation.two_towers import load_tokenizer
from ..hub.staging import CONFIG
from ..hub.weight_checks import weight_problems
from .initial_weights import meta_model
from .sharded_files import WEIGHTS, CheckpointTensors

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_LISTED = 5


def model_problems(folder: Path, *, complete: bool) -> Iterator[str]:
    """What is wrong with a model's folder, each a sentence that names the file.

    Args:
        complete: what prepares its input must be there, too, as in a folder that `from_pretrained` is to read.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a file that can say anything
        yield f"{folder / CONFIG} describes no model ({_one_line(error)})"
        config = None
    broken = [f"{folder / name} {problem}" for name, problem in weight_problems(folder, _fields_of(folder))]
    yield from broken
    if config is not None and not broken:
        yield from _fit_problems(folder, config)
    if complete and not _reads_text_only(config):
        yield from _processor_problems(folder)
    if complete and (_reads_text_only(config) or hasattr(config, "text_config")):
        yield from _tokenizer_problems(folder)


def sharded_problems(folder: Path) -> Iterator[str]:
    """As `model_problems`, of a checkpoint whose tensors lie in rows in the files of several processes.

    Their numbers are not looked at; what is compared are the names and shapes of the whole tensors.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a file that can say anything
        yield f"{folder / CONFIG} describes no model ({_one_line(error)})"
        return
    name, model_class = _architecture(config)
    if model_class is None:
        yield _unknown(folder, name)
        return
    try:
        with CheckpointTensors(folder) as tensors:
            found = {key: tensors.shapes[WEIGHTS + key] for key in tensors.names(WEIGHTS)}
        due = {key: tuple(value.shape) for key, value in meta_model(model_class, config).state_dict().items()}
    except Exception as error:  # as above
        yield f"{folder} cannot be loaded as {name} ({_one_line(error)})"
        return
    shapes = [
        f"{key} of shape {found[key]}, not {due[key]}" for key in found.keys() & due.keys() if found[key] != due[key]
    ]
    yield from _misfits(folder, name, due.keys() - found.keys(), found.keys() - due.keys(), shapes)


def _architecture(config: PreTrainedConfig) -> tuple[Any, type[PreTrainedModel] | None]:
    """What a config says first, and the class of that name; None if there is none."""
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(maws_hf, str(name), None) or getattr(transformers, str(name), None)
    return name, found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def _unknown(folder: Path, name: Any) -> str:
    return f"{folder / CONFIG} names the architecture {name!r}, which neither maws_hf nor transformers has"


def _misfits(
    folder: Path, name: str, missing: Collection[str], unknown: Collection[str], shapes: Collection[str]
) -> Iterator[str]:
    for what, names in (("lack", missing), ("hold the unknown", unknown), ("hold", shapes)):
        if names:
            yield f"{folder}: the weights {what} {_listed(names)}; {CONFIG} says {name}"


def _fit_problems(folder: Path, config: PreTrainedConfig) -> Iterator[str]:
    """Names and shapes of the weights against those of the config's model; nothing is read but their headers."""
    name, model_class = _architecture(config)
    if model_class is None:
        yield _unknown(folder, name)
        return
    try:
        with _silence():
            _, info = model_class.from_pretrained(
                folder, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # as above
        yield f"{folder} cannot be loaded as {name} ({_one_line(error)})"
        return
    shapes = {key: f"{key} of shape {tuple(found)}, not {tuple(due)}" for key, found, due in info["mismatched_keys"]}
    new = "pooler." if _reads_text_only(config) else ()  # which a text tower of LiT does without
    missing = [key for key in info["missing_keys"] if key not in shapes and not key.startswith(new)]
    yield from _misfits(folder, name, missing, info["unexpected_keys"], shapes.values())


def _processor_problems(folder: Path) -> Iterator[str]:
    there = [name for name in _PROCESSORS if (folder / name).is_file()]
    if not there:
        yield f"{folder / _PROCESSORS[0]} is missing: what prepares an image for this model?"
        return
    try:
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        yield f"{folder / there[0]} makes no image processor ({_one_line(error)})"


def _reads_text_only(config: PreTrainedConfig | None) -> bool:
    return hasattr(config, "vocab_size")


def _tokenizer_problems(folder: Path) -> Iterator[str]:
    try:
        load_tokenizer(str(folder))
    except ValueError as error:
        yield _one_line(error)
    except Exception as error:  # as above
        yield f"{folder} comes without a tokenizer that can be loaded ({_one_line(error)})"


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
