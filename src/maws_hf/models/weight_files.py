"""The files of a model's folder or Hub id: JSON and safetensors, and which of them is wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .foreign import ForeignModelError

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ModelLoadingError(ValueError, RuntimeError):
    """A folder whose config or weights are not those of a model; the message names the file and what is wrong.

    Also a RuntimeError, as which transformers reports weights of another shape.
    """


def hub_options_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s options that say where a file is fetched from."""
    return {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}


def without_hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in _HUB_OPTIONS}


def read_json_object(file: str | Path) -> dict[str, Any]:
    """Raises ModelLoadingError, naming the file, if it holds anything else."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadingError(f"{file} is not JSON ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ModelLoadingError(f"{file} holds a {type(content).__name__}, not an object of named fields")
    return content


def read_weights(where: Any, hub_options: dict[str, Any], variant: str | None) -> dict[str, Tensor]:
    """All tensors of a folder or Hub id, mapped from disk."""
    options = {**hub_options, "_raise_exceptions_for_missing_entries": False}
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    if variant is not None:
        names = [f".{variant}.".join(name.rsplit(".", 1)) for name in names]
    file = cached_file(where, names[0], **options)
    if file is not None:
        files = [file]
    else:
        index = cached_file(where, names[1], **options)
        if index is None:
            raise ForeignModelError(
                f"{where} has neither {names[0]} nor {names[1]}; other files of weights are not read (`maws-hf "
                "convert` reads .pt and .pth)"
            )
        check_index(index)
        files, _ = get_checkpoint_shard_files(where, index, **hub_options)
    weights = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                weights.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ModelLoadingError(f"{Path(file)} is damaged ({error}); fetch or save it again") from error
    return weights


def refuse_other_than_safetensors(where: Any, kwargs: dict[str, Any]) -> None:
    """Weights are read from safetensors alone: transformers would fall back to a pickle, however restricted."""
    if kwargs.setdefault("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False: weights are read from .safetensors files only; leave the option out")
    folder = Path(where, kwargs.get("subfolder") or "")
    if any(folder.glob("shard-*-of-*.safetensors")):
        raise ModelLoadingError(
            f"{where} is a checkpoint of sharded parameters, and no model yet: `maws-hf export {where} --output_dir "
            "NEW` makes one of it"
        )
    for index in folder.glob("*.safetensors.index*.json") if folder.is_dir() else ():
        check_index(index)


def check_index(index: str | Path) -> None:
    """Shards lie beside their index, whatever it says."""
    try:
        content = read_json_object(index)
        shards = {str(shard) for shard in content["weight_map"].values()}
        content["metadata"].keys()
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelLoadingError(f"{index} is no index of shards ({type(error).__name__}: {error})") from error
    for shard in sorted(shards):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelLoadingError(f"{index} names {shard!r}, which is no .safetensors file beside it")
