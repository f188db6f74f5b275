"""What an adapter was made on: on another base it fits as well as on its own, and computes nonsense.

VPT and AdaptFormer keep the record in their `adapter_config.json` and are checked wherever PEFT loads them. The
configs of PEFT's own methods have no place for it: theirs is a file beside, which [`write_base_record`] writes and
only the MAWS classes read (`from_pretrained` of the adapter's folder, `load_adapter`).
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from ..whole_files import write_atomically
from .prepared import refuse_if_prepared
from .weight_files import read_json_object

RECORD_NAME = "base_record.json"
# An image encoder, alone or in a model; not a decoder or a text tower.
_ENCODER = r"((.*\.)?(vit|pixio|dinov2|vision_model)\.)?"
_LAYERS = re.compile(_ENCODER + r"(layers|encoder\.layer)\.\d+\..+")
_AROUND = re.compile(_ENCODER + r"(embeddings\.(cls_token|patch_embeddings\.projection\..+)|layernorm\..+)")
_SHORT = 12
# How LoRA may start without moving anything out of the base: True, False, or one of these.
_BASE_STAYS = ("gaussian", "eva", "orthogonal")


class AdapterBaseError(ValueError):
    """An adapter meets a model that is not the one it was made on; the message names both."""


def encoder_digest(model: nn.Module) -> str | None:
    """SHA-256 of the encoder's weights, the same for our models, their exports and their copies.

    Layers, patch embedding, class token and last norm; not the position table, which another image size resamples.
    Weights are rounded to bfloat16 first, so that a base is itself in float32 and in bfloat16; a float16 copy is
    another. Names and order play no part, nor do vectors of one value, such as the scales of one that exports add.
    Adapters and heads are left out. A model without layers of a known name counts whole.

    Returns:
        None for weights that are on the meta device.

    Raises:
        PackedModelError: they are packed for inference.
    """
    refuse_if_prepared(model, "comparing the base of an adapter")
    weights = dict(_base_weights(model))
    hashes = []
    layers = [name for name in weights if _LAYERS.fullmatch(name)]
    around = [name for name in weights if _AROUND.fullmatch(name)]
    for name in layers + around if layers else weights:
        weight = weights[name].detach()
        if weight.is_meta:
            return None
        weight = (weight.to(torch.bfloat16) if weight.is_floating_point() else weight).cpu().contiguous()
        if weight.dim() < 2 and bool((weight == weight.view(-1)[:1]).all()):
            continue
        of_shape = hashlib.sha256(json.dumps(list(weight.shape)).encode())
        of_shape.update(weight.view(-1).view(torch.uint8).numpy())
        hashes.append(of_shape.digest())
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def describe_base(model: nn.Module, modules_to_save: list[str] | None = None) -> dict[str, Any]:
    """The record: digest, width and depth, and the shapes of the modules that the adapter brings along."""
    width, depth = _size(model)
    modules = _shapes(model, modules_to_save or [])
    return {"digest": encoder_digest(model), "hidden_size": width, "num_hidden_layers": depth, "modules": modules}


def check_base(model: nn.Module, record: dict[str, Any], made_on: str | None, off_switch: str) -> None:
    """Compares a model with a record; sizes first, which cost nothing.

    Args:
        model: what the adapter is about to be put into.
        made_on: name of the base in the record.
        off_switch: what to do to go on regardless, for the message.

    Raises:
        AdapterBaseError: width, depth, head or weights are others. What either side does not tell is not compared.
    """
    theirs = made_on or "a base without a name"
    ours = getattr(model, "name_or_path", "") or f"a {type(model).__name__} without a name"
    size, due = _size(model), (record.get("hidden_size"), record.get("num_hidden_layers"))
    if None not in (*size, *due) and size != due:
        raise AdapterBaseError(
            f"the adapter was made on {theirs}, {due[0]} wide and {due[1]} layers deep, and this model, {ours}, is "
            f"{size[0]} wide and {size[1]} layers deep: load {theirs}"
        )
    modules = record.get("modules") or {}
    found = _shapes(model, list(modules))
    for name, shape in modules.items():
        if found.get(name) != shape:
            new_head = f"give num_labels={shape[0]}, ignore_mismatched_sizes=True"
            fits = new_head if name in found else "load a class that has one"
            raise AdapterBaseError(
                f"the adapter, made on {theirs}, brings its own {name} of {shape}, and this model, {ours}, has "
                f"{f'one of {found[name]}' if name in found else 'none'}: {fits}"
            )
    if (due := record.get("digest")) is None or (digest := encoder_digest(model)) in (None, due):
        return
    raise AdapterBaseError(
        f"the adapter was made on {theirs} (encoder {due[:_SHORT]}), and this model, {ours}, has other weights "
        f"(encoder {digest[:_SHORT]}): load the base that it was made on, in float32 or bfloat16; if this one is "
        f"meant, {off_switch}"
    )


def write_base_record(model: nn.Module, folder: str | Path, adapter_name: str = "default") -> Path:
    """Writes `base_record.json` beside an adapter of one of PEFT's own methods, after its `save_pretrained(folder)`.

    Args:
        model: with the adapter: a `PeftModel`, or a model with `add_adapter`.
        folder: where `adapter_config.json` lies.
    """
    config = model.peft_config[adapter_name]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    record = describe_base(base, getattr(config, "modules_to_save", None))
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start not in _BASE_STAYS:
        record["digest"] = None  # PiSSA and its like: the base is no longer what will be loaded
    file = Path(folder, RECORD_NAME)
    write_atomically(file, (json.dumps(record, indent=2) + "\n").encode())
    return file


def read_base_record(folder: Any, hub_options: dict[str, Any]) -> dict[str, Any] | None:
    """The record beside an adapter in a folder or Hub id; None if there is none."""
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(folder, RECORD_NAME, **hub_options, **options)
    return None if file is None else read_json_object(file)


@contextmanager
def unchanged_if_it_fails(model: nn.Module) -> Iterator[None]:
    """Puts a model back as it was if what follows raises, whatever wrapped or froze its modules meanwhile.

    PEFT's own `delete_adapter` leaves its wrappers in place. No weight is copied: PEFT and transformers put new
    tensors into a model, and the old ones are kept here.
    """
    modules = [(module, dict(vars(module)), _containers(module)) for module in model.modules()]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes, containers in modules:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in containers.items():
                container = attributes[name]
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for parameter, data, requires_grad in parameters:
            parameter.data, parameter.requires_grad = data, requires_grad
        raise


def _containers(module: nn.Module) -> dict[str, Any]:
    """Copies of a module's dictionaries, lists and sets: of its weights and children, and of PEFT's settings."""
    return {name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict | list | set)}


def _base_weights(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters of a model, adapted or not, under the names they had before."""
    for wrapped in ("base_layer", "original_module"):
        if isinstance(inner := getattr(module, wrapped, None), nn.Module):
            yield from _base_weights(inner, prefix)
            return
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        yield from _base_weights(child, f"{prefix}{name}.")


def _shapes(model: nn.Module, names: list[str]) -> dict[str, list[int]]:
    """Of the first weight of each of these modules that the model has."""
    weights = {name: list(tensor.shape) for name, tensor in _base_weights(model)}
    shapes = {}
    for name in names:
        of_module = (shape for key, shape in weights.items() if re.search(rf"(^|\.){re.escape(name)}\.", key))
        if (shape := next(of_module, None)) is not None:
            shapes[name] = shape
    return shapes


def _size(model: nn.Module) -> tuple[int | None, int | None]:
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    return getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
