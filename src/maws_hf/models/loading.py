"""`from_pretrained` of all MAWS models: our own folders, exports of them, and nothing that is only half there."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
    is_peft_available,
)

from .adapter_base import RECORD_NAME, AdapterBaseError, check_base, read_base_record, unchanged_if_it_fails
from .configuration_fields import without_unknown_fields
from .foreign import (
    DUAL_ENCODER,
    TIMM,
    ForeignModelError,
    format_of,
    has_timm_names,
    translate_dual_encoder,
    translate_encoder,
    translate_timm,
    vision_tower,
)
from .weight_files import (
    ModelLoadingError,
    check_index,
    hub_options_of,
    read_json_object,
    read_weights,
    refuse_other_than_safetensors,
    without_hub_options,
)

# Names in messages; a broken file may lack thousands.
_LISTED = 8
_LIT = "maws_lit"
_SECONDS_TO_ASK = 10.0  # the Hub, whether it has a model
_PACKAGE = f"{__name__.partition('.')[0]}."


# Everything is loaded and reported; what of it is an error is decided here.
_DEMANDING = {"ignore_mismatched_sizes": True, "output_loading_info": True}


@contextmanager
def explained_for_hub(where: Any) -> Iterator[None]:
    """What cannot be fetched is said with what to type: offline, gated, private or misspelt."""
    try:
        yield
    except OSError as error:
        if Path(where).exists() or "hf download" in str(error):
            raise
        raise OSError(
            f"there is no folder {where} here, and as a repository of the Hub: {error}\n"
            f"`hf download {where}` fetches it beforehand, for HF_HUB_OFFLINE=1; a gated or private one "
            "needs `hf auth login`."
        ) from error


def refuse_missing_folder(where: Any) -> None:
    """Before a path is taken for a repository of the Hub, or for a folder.

    Raises:
        FileNotFoundError: it is not there.
        ModelLoadingError: it is a file.
    """
    name = str(where)
    if os.path.isfile(name):
        remedy = f"of an original PyTorch checkpoint, `maws-hf convert {name} --output_dir FOLDER` makes one"
        if name.endswith((".safetensors", ".json")):
            remedy = f"give {Path(name).parent}"
        raise ModelLoadingError(f"{name} is a file, and the folder of a model is wanted: {remedy}")
    if os.path.exists(name):
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    # A folder may have the name of an organisation.
    if looks_local or (name.count("/") == 1 and Path(name).parent.is_dir() and not _is_on_hub(name)):
        raise FileNotFoundError(f"there is no folder {name}")


def refuse_adapter(where: Any) -> None:
    """Raises ModelLoadingError for an adapter: frozen, and saved without what was trained, it is no start of a run."""
    refuse_missing_folder(where)
    if find_adapter_config_file(where) is not None:
        raise ModelLoadingError(
            f"{where} is an adapter, and whole models are wanted here: merge it into its base (PEFT's "
            "`merge_and_unload`, then `save_pretrained`), or train it on with PEFT"
        )


def _is_on_hub(name: str) -> bool:
    """Whether the Hub, or what was fetched from it, has a repository of this name."""
    if isinstance(try_to_load_from_cache(name, CONFIG_NAME), str):
        return True
    try:
        return bool(model_info(name, timeout=_SECONDS_TO_ASK))
    except Exception:  # there is none, or nobody to ask: whichever library carries the request has errors of its own
        return False


class CheckedConfig:
    """Mixin of our configs: what is wrong with a `config.json` is said with its name, and none is written wrong."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers; also for the exports of our models and for timm's.

        Raises:
            ValueError: the file describes no model of ours; names it, the field and what would do.
        """
        path = Path(str(pretrained_model_name_or_path))
        if not (path.suffix == ".json" and path.is_file()):
            refuse_missing_folder(pretrained_model_name_or_path)
        try:
            with explained_for_hub(pretrained_model_name_or_path):
                return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, StrictDataclassError) as error:
            raise ModelLoadingError(f"{pretrained_model_name_or_path}: config.json: {error}") from error
        except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            # transformers takes the file's shape for granted.
            reason = f"config.json is not what a model's is ({type(error).__name__}: {error})"
            raise ModelLoadingError(f"{pretrained_model_name_or_path}: {reason}") from error

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As everywhere in transformers, where a folder without a `config.json` is a model of the default sizes."""
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not found:
            raise FileNotFoundError(f"{pretrained_model_name_or_path} has no {CONFIG_NAME}, or an empty one")
        return found, kwargs

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As everywhere in transformers, but of the fields alone."""
        super(CheckedConfig, without_unknown_fields(self)).save_pretrained(*args, **kwargs)


class CheckedLoading:
    """Mixin of our models, before `PreTrainedModel`.

    A class says with `_may_be_new` which weights a checkpoint may lack: heads, which start anew as a whole.
    """

    _may_be_new: tuple[str, ...] = ()
    _other_image_size = "it takes images of any size as it is"

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Self:
        """As everywhere in transformers, and besides:

        Exports to in-tree architectures (Pixio, ViT, DINOv2, ViTMAE, VisionTextDualEncoder) and timm's ViTs are read
        like our own format; `state_dict` may have timm's names.

        Raises:
            ModelLoadingError: the weights are not the model's: one is missing, unknown, of another shape, or the file
                is damaged. Only a whole head may be missing, as before fine-tuning, with `ignore_mismatched_sizes` a
                part of it, too, or have another shape; and what a class derived from ours adds. Who asks for
                `output_loading_info` gets the list of missing and unknown weights instead, with both also that of
                other shapes.
            ForeignModelError: a model of another library that is no MAWS model.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        tolerant = kwargs.pop("ignore_mismatched_sizes", False)
        adapter = None
        if pretrained_model_name_or_path is None:
            where, state_dict = "state_dict", kwargs.get("state_dict")
            if state_dict is not None and has_timm_names(state_dict):
                kwargs["state_dict"] = translate_timm(state_dict)
            model, info = super().from_pretrained(None, *model_args, config=config, **_DEMANDING, **kwargs)
            informed = wants_info or not state_dict  # an empty one asks for a new model
            model.refuse_half_a_model(where, info, tolerant=tolerant, informed=informed)
            model.name_or_path = ""  # transformers says "None", which an adapter would name as its base
            return (model, info) if wants_info else model
        if kwargs.get("state_dict") is not None:
            raise ValueError("give a folder or Hub id, or state_dict and config, not both")
        refuse_missing_folder(pretrained_model_name_or_path)
        adapter = _Adapter.at(pretrained_model_name_or_path, kwargs)
        where = pretrained_model_name_or_path if adapter is None else adapter.base
        with explained_for_hub(where):
            model, info = cls._load(where, *model_args, config=config, **kwargs)
        model.refuse_half_a_model(where, info, tolerant=tolerant, informed=wants_info)
        if adapter is not None and not adapter.is_in(model):
            info = model.load_adapter(adapter.folder, **adapter.options).to_dict()
        return (model, info) if wants_info else model

    def load_adapter(self, peft_model_id: Any = None, adapter_name: str | None = None, **kwargs: Any) -> Any:
        """As everywhere in transformers, but an adapter that does not fit is an error, and DoRA comes back whole.

        Raises:
            AdapterBaseError: it was made on another base, as far as it tells, or its weights are of another shape, too
                few or unknown here. The model is as it was before.
        """
        if peft_model_id is None:
            return super().load_adapter(None, adapter_name, **kwargs)
        hub_options = hub_options_of({**kwargs, **(kwargs.get("adapter_kwargs") or {})})
        file = find_adapter_config_file(peft_model_id, **hub_options)
        fields = {} if file is None else _adapter_fields(file)
        made_on = fields.get("base_model_name_or_path") or "a base without a name"
        record = read_base_record(peft_model_id, hub_options)
        if record is not None:
            try:
                check_base(self, record, made_on, f"delete {RECORD_NAME} beside the adapter")
            except (TypeError, AttributeError, LookupError) as error:
                raise ModelLoadingError(
                    f"{peft_model_id}: {RECORD_NAME} is not what `write_base_record` writes ({error}): delete it"
                ) from error
        if fields.get("use_dora"):
            kwargs["adapter_state_dict"] = _dora_weights(peft_model_id, hub_options)
        name = adapter_name or "default"
        swaps = name in getattr(self, "peft_config", {})  # its weights are there already, and all of them are due
        known = {} if swaps else {id(tensor): tensor for tensor in self.state_dict(keep_vars=True).values()}
        with unchanged_if_it_fails(self):
            try:
                info = super().load_adapter(peft_model_id, adapter_name, **{**kwargs, "ignore_mismatched_sizes": True})
            except SafetensorError as error:
                raise ModelLoadingError(
                    f"{peft_model_id}: its safetensors file is damaged ({error}); fetch or save it again"
                ) from error
            faults = self._faults_of_adapter(info, name, known)
            if faults:
                raise AdapterBaseError(
                    f"the adapter {peft_model_id}, made on {made_on}, does not fit this {type(self).__name__}, "
                    f"{self.name_or_path or 'which has no name'}: it {'; it '.join(faults)}"
                )
        return info

    def _faults_of_adapter(self, info: Any, adapter_name: str, known: dict[int, Tensor]) -> list[str]:
        """What is wrong with an adapter that was just loaded; `known` are the tensors that were there before it."""
        other_shapes = _other_shapes(info.mismatched_keys)
        # transformers also counts the weights of other adapters, and of the base if the name is part of theirs.
        tensors = self.state_dict(keep_vars=True)
        own = [n for n in info.missing_keys if adapter_name in n.split(".") and id(tensors.get(n)) not in known]
        # AdaLoRA does not save its ranks, and RandLoRA saves matrices that it draws anew.
        missing = [name for name in own if name not in other_shapes and ".ranknum." not in name]
        unknown = [name for name in info.unexpected_keys if not name.startswith("base_model.")]
        kinds = {"has another shape of": other_shapes.values(), "lacks": missing, "has unknown": unknown}
        return [_fault(what, names, listed=2) for what, names in kinds.items() if names]

    @classmethod
    def _load(cls, where: Any, *model_args: Any, config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Model and report, whatever the report says."""
        hub_options = hub_options_of(kwargs)
        source_format = _source_format(cls.config_class, where, hub_options)
        try:
            if source_format is None:
                refuse_other_than_safetensors(where, kwargs)
                return super().from_pretrained(where, *model_args, config=config, **_DEMANDING, **kwargs)
            if not isinstance(config, cls.config_class):
                if config is not None:
                    raise ForeignModelError(f"{where}: config must be a {cls.config_class.__name__}, or left out")
                # The config would keep a type that is the weights' business.
                types = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
                config, kwargs = cls.config_class.from_pretrained(where, **kwargs, return_unused_kwargs=True)
                kwargs |= types
            weights = _translated(source_format, read_weights(where, hub_options, kwargs.pop("variant", None)), cls)
            kwargs = without_hub_options(kwargs)
            model, info = super().from_pretrained(
                None, *model_args, config=config, state_dict=weights, **_DEMANDING, **kwargs
            )
        except SafetensorError as error:
            raise ModelLoadingError(
                f"{where}: its safetensors file is damaged ({error}); fetch or save it again"
            ) from error
        model.config.name_or_path = model.name_or_path = str(where)
        return model, info

    def refuse_half_a_model(
        self, where: Any, info: dict[str, Any], *, tolerant: bool = False, informed: bool = False
    ) -> None:
        """Raises ModelLoadingError for what a loading report of transformers says is amiss.

        Heads may be new as a whole, and so may what somebody else's class has added to ours.
        """
        other_shapes = _other_shapes(info["mismatched_keys"])
        absent = {*info["missing_keys"], *other_shapes}
        new = absent - self._names_of_ours(absent)
        for head in self._may_be_new:
            weights = {name for name in self.state_dict() if name.startswith(head)}
            new |= weights if tolerant or weights <= absent else set()
        missing = [name for name in info["missing_keys"] if name not in new and name not in other_shapes]
        told = other_shapes if tolerant and informed else new if tolerant else ()
        shapes = {name: shape for name, shape in other_shapes.items() if name not in told}
        faults = [_fault("has another shape of", shapes.values())]
        if not informed:
            faults += [_fault("lacks", missing), _fault("has unknown", info["unexpected_keys"])]
        if any(faults):
            table = any(name.endswith("embeddings.position_embeddings") for name in shapes)
            hint = f"; {self._other_image_size}" if table else ""
            raise ModelLoadingError(
                f"{where} is not a whole {type(self).__name__}: it {'; it '.join(filter(None, faults))}{hint}"
            )

    def _names_of_ours(self, names: Iterable[str]) -> set[str]:
        """Those of weights that a class of ours has: this model's, the one it derives from, or a module's in it."""
        ours = next(base for base in type(self).__mro__ if _is_ours(base))
        if ours is type(self) or not names:
            return set(names)
        with torch.device("meta"):
            inherited = ours(self.config).state_dict().keys()
        modules = [name for name, module in self.named_modules() if name and _is_ours(type(module))]
        return {name for name in names if name in inherited or any(name.startswith(f"{m}.") for m in modules)}


@dataclass(frozen=True)
class _Adapter:
    """A PEFT adapter and what it was trained on; without this, transformers would check the adapter's weights only."""

    folder: Any
    base: Any
    options: dict[str, Any]

    @classmethod
    def at(cls, where: Any, kwargs: dict[str, Any]) -> "_Adapter | None":
        """The adapter in a folder or Hub id, or the one that an Auto class has found; takes its options out."""
        given = {name: kwargs.pop(name) for name in ("adapter_kwargs", "adapter_name") if name in kwargs}
        adapter_kwargs = dict(given.get("adapter_kwargs") or {})
        name = given.get("adapter_name", "default")
        folder = adapter_kwargs.pop("_adapter_model_path", None)
        hub_options = hub_options_of(kwargs)
        options = {"adapter_name": name, "adapter_kwargs": {**hub_options, **adapter_kwargs}}
        if not is_peft_available():
            return None
        if Path(where, CONFIG_NAME).is_file() and Path(where, ADAPTER_CONFIG_NAME).is_file():
            kwargs.update(given)  # transformers loads both, unless the base is of a format that we translate
            return cls(where, where, options)
        if folder is not None:
            return cls(folder, where, options)
        file = find_adapter_config_file(where, **hub_options)
        if file is None:
            return None
        for option in ("revision", "subfolder"):  # of the adapter, not of its base
            kwargs.pop(option, None)
        base = _adapter_fields(file).get("base_model_name_or_path")
        if not isinstance(base, str) or base in ("", "None"):  # as PEFT writes it of a model that was made in memory
            raise ModelLoadingError(
                f"{file} names no base of the adapter: load the base, and `model.load_adapter({str(where)!r})` into it"
            )
        return cls(where, base, options)

    def is_in(self, model: Any) -> bool:
        return self.options["adapter_name"] in getattr(model, "peft_config", {})


def _is_ours(kind: type) -> bool:
    return issubclass(kind, nn.Module) and kind.__module__.startswith(_PACKAGE)


def _adapter_fields(file: str) -> dict[str, Any]:
    """An `adapter_config.json`, of a method that is known here."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = read_json_object(file)
    if fields.get("peft_type") not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        raise ModelLoadingError(f"{file}: peft_type {fields.get('peft_type')!r} is no method of PEFT or maws_hf")
    return fields


def _dora_weights(folder: Any, hub_options: dict[str, Any]) -> dict[str, Tensor]:
    """As PEFT saves them, but for the magnitudes' names, which transformers would not recognise."""
    from peft.utils import load_peft_weights

    weights = load_peft_weights(str(folder), device="cpu", **hub_options)
    return {
        f"{name}.weight" if name.endswith(".lora_magnitude_vector") else name: tensor
        for name, tensor in weights.items()
    }


def _other_shapes(mismatched: Iterable[tuple[str, Any, Any]]) -> dict[str, str]:
    return {name: f"{name} {tuple(found)}, not {tuple(due)}" for name, found, due in mismatched}


def _fault(what: str, names: Iterable[str], listed: int = _LISTED) -> str:
    names = sorted(names)
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return f"{what} {', '.join(names[:listed])}{more}" if names else ""


def _source_format(config_class: type[PreTrainedConfig], where: Any, hub_options: dict[str, Any]) -> str | None:
    """The format to translate from; None where transformers' own loading does it all."""
    try:
        fields, _ = PreTrainedConfig.get_config_dict(where, **hub_options)
    except OSError:
        return None  # an adapter's folder, say, or nothing: transformers knows what to say
    except (TypeError, RecursionError) as error:  # transformers takes the file's shape for granted
        raise ModelLoadingError(f"{where}: config.json is not what a model's is ({error})") from error
    if not isinstance(fields, dict):
        raise ModelLoadingError(f"{where}: config.json holds a {type(fields).__name__}, not an object of named fields")
    if fields.get("model_type") == _LIT and config_class.model_type != _LIT:
        return _LIT
    return format_of(fields)


def native_weight_files(config_class: type[PreTrainedConfig], where: Any) -> list[Path] | None:
    """Files of the weights of a folder in our own format, or of a Hub id in the cache, for who reads them in parts.

    None for what only `from_pretrained` reads: other formats, adapters, what is to be fetched first or is not whole.

    Raises:
        ModelLoadingError: the index of several files is none.
    """
    cached = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    config = cached_file(where, CONFIG_NAME, **cached, _raise_exceptions_for_connection_errors=False)
    folder = None if config is None else Path(config).parent
    if folder is None or _source_format(config_class, folder, {}) or (folder / ADAPTER_CONFIG_NAME).exists():
        return None
    files, index = [folder / SAFE_WEIGHTS_NAME], folder / SAFE_WEIGHTS_INDEX_NAME
    if not files[0].is_file() and index.is_file():
        check_index(index)
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / shard for shard in shards})
    return files if files and all(file.is_file() for file in files) else None


def _translated(source_format: str, weights: dict[str, Tensor], model_class: type) -> dict[str, Tensor]:
    if source_format == TIMM:
        return translate_timm(weights)
    if source_format == DUAL_ENCODER and model_class.config_class.model_type == _LIT:
        return translate_dual_encoder(weights)
    if source_format == DUAL_ENCODER:
        return translate_encoder(vision_tower(weights))
    if source_format == _LIT:
        return {f"vit.{name}": tensor for name, tensor in vision_tower(weights).items()}
    return translate_encoder(weights)
