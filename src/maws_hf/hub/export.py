"""Our models as in-tree architectures of transformers, which every user of it loads without a line of our code.

At the image size that its config names, each computes what ours computes: Pixio with one class token, ViT with the
identity as pooler (for older readers, and the one with a classifier), DINOv2 with a layer scale of one, ViTMAE, and
VisionTextDualEncoder, whose text pooler is undone (`POOLER_SCALE`). At other sizes Pixio and DINOv2 interpolate
positions in their own way, without antialiasing; ViT and ViTMAE do so only if asked. What their configs have no place
for is kept in `maws_config`, so that [`MawsViTModel.from_pretrained`] and its likes give back the very model.
"""

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    Dinov2Config,
    Dinov2Model,
    PixioConfig,
    PixioModel,
    PreTrainedConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from ..models.configuration_maws_lit import MawsLiTConfig
from ..models.configuration_maws_vit import MawsViTConfig, as_pair
from ..models.foreign import (
    AUTOENCODER_FIELDS,
    DROP_PATH_TYPES,
    DUAL_ENCODER,
    ENCODER_FIELDS,
    LABEL_FIELDS,
    MLP_RATIO_TYPES,
    POOLER_SCALE,
    REMEMBERED,
    format_of,
    lit_fields,
    vit_fields,
)
from ..models.loading import refuse_missing_folder
from ..models.modeling_maws_lit import MawsLiTModel
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTBackbone, MawsViTForImageClassification, MawsViTModel
from ..processing.image_processors import image_processor_of
from ..whole_files import remove_leftovers, temporary_beside

# What each of our classes can become; the first is the default.
ARCHITECTURES: dict[type[PreTrainedModel], tuple[str, ...]] = {
    MawsViTModel: ("pixio", "vit", "dinov2"),
    MawsViTForImageClassification: ("vit", "pixio", "dinov2"),
    MawsMAEForPreTraining: ("vit_mae", "pixio", "vit", "dinov2"),
    MawsLiTModel: (DUAL_ENCODER,),
}
_CONFIGS = {"pixio": PixioConfig, "vit": ViTConfig, "dinov2": Dinov2Config, "vit_mae": ViTMAEConfig}
_ENCODERS = {"pixio": PixioModel, "vit": ViTModel, "dinov2": Dinov2Model}
_OLD_MAE_NAMES = {
    "vit.layers.": "vit.encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
_KEPT_FILES = ("conversion.json", "training.json")
# Text towers whose class in transformers has the pooler (dense, then tanh) that a dual encoder reads.
_POOLED_TEXT_TOWERS = ("bert", "camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
_LARGEST_FIRST_TOKEN = 20.0
_SAMPLES = 32


class ExportError(ValueError):
    """A model that the wanted architecture cannot hold, or a folder that holds no model of ours."""


@dataclass(frozen=True)
class Export:
    """
    Args:
        folder: where it lies.
        architecture: `model_type` of its config.
        model_class: name of the class in transformers.
    """

    folder: Path
    architecture: str
    model_class: str


def export_model(model_name_or_path: str | Path, output_dir: str | Path, architecture: str | None = None) -> Export:
    """Writes one of our models as an in-tree architecture, with its image processor and tokenizer.

    Args:
        model_name_or_path: folder or Hub id in our own format.
        output_dir: a new or empty folder.
        architecture: `pixio`, `vit`, `dinov2`, `vit_mae` or `vision-text-dual-encoder`; by default the one that keeps
            all of the model. An encoder's architecture leaves a classifier or decoder out (a `vit` keeps the
            classifier).

    Raises:
        ExportError: the folder is not ours, or the architecture cannot hold the model; says which would do.
    """
    model_class = native_class_of(model_name_or_path)
    architecture = architecture or ARCHITECTURES[model_class][0]
    if architecture not in ARCHITECTURES[model_class]:
        raise ExportError(
            f"a {model_class.__name__} cannot become {architecture!r}; it can become "
            f"{', '.join(ARCHITECTURES[model_class])}"
        )
    output_dir = Path(output_dir).absolute()
    if output_dir.is_symlink() or (output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))):
        raise ExportError(f"{output_dir} is there already and no empty folder; name a new one")
    ours = model_class.from_pretrained(model_name_or_path)
    theirs = in_tree_model(ours, architecture)
    remove_leftovers(output_dir.parent, output_dir.name)
    partial = temporary_beside(output_dir)
    try:
        _save_model(theirs, partial)
        _save_processor(ours, model_name_or_path, partial)
        for name in _KEPT_FILES:
            if Path(model_name_or_path, name).is_file():
                shutil.copyfile(Path(model_name_or_path, name), partial / name)
        _open_to_readers(partial)
        if output_dir.exists():
            output_dir.rmdir()
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Export(output_dir, architecture, type(theirs).__name__)


def native_class_of(model_name_or_path: str | Path) -> type[PreTrainedModel]:
    """The class of ours that saved a folder.

    Raises:
        ExportError: none did.
    """
    refuse_missing_folder(model_name_or_path)
    found, _ = PreTrainedConfig.get_config_dict(model_name_or_path)
    names = {model_class.__name__: model_class for model_class in ARCHITECTURES}
    names[MawsViTBackbone.__name__] = MawsViTModel  # of which only the encoder has weights
    named = [names[name] for name in found.get("architectures") or [] if name in names]
    if found.get("model_type") not in (MawsViTConfig.model_type, MawsLiTConfig.model_type) or not named:
        hint = "; it is an export already" if format_of(found) else ""
        raise ExportError(
            f"{model_name_or_path} is no model in our own format (architectures={found.get('architectures')}){hint}"
        )
    return named[0]


def in_tree_model(ours: PreTrainedModel, architecture: str) -> PreTrainedModel:
    """The same weights (shared, not copied) in a class of transformers.

    Raises:
        ExportError: the architecture cannot hold the model.
    """
    if isinstance(ours, MawsLiTModel):
        return _dual_encoder(ours)
    config = in_tree_config(ours.config, architecture)
    state_dict = {name.removeprefix("vit."): tensor for name, tensor in ours.state_dict().items()}
    encoder = {name: t for name, t in state_dict.items() if not name.startswith(("classifier.", "decoder."))}
    if architecture == "vit_mae":
        decoder = {_mae_name(name): t for name, t in state_dict.items() if name.startswith("decoder.")}
        weights = {**{f"vit.{name}": tensor for name, tensor in encoder.items()}, **decoder}
        return _filled(ViTMAEForPreTraining, config, weights)
    if architecture == "vit" and isinstance(ours, MawsViTForImageClassification):
        head = {name: tensor for name, tensor in state_dict.items() if name.startswith("classifier.")}
        weights = {**{f"vit.{name}": tensor for name, tensor in encoder.items()}, **head}
        return _filled(ViTForImageClassification, config, weights)
    return _filled(_ENCODERS[architecture], config, _encoder_weights(encoder, architecture))


def in_tree_config(config: MawsViTConfig, architecture: str) -> PreTrainedConfig:
    """The config of an in-tree architecture for one of our vision models.

    Raises:
        ExportError: it cannot describe the model.
    """
    patch_height, patch_width = as_pair(config.patch_size)
    if patch_height != patch_width:
        raise ExportError(f"patch_size={config.patch_size}: the patches of {architecture} are square")
    height, width = as_pair(config.image_size)
    if height != width and architecture != "vit":
        raise ExportError(f"image_size={config.image_size}: the images of {architecture} are square; vit takes any")
    found = {name: getattr(config, name) for name in (*ENCODER_FIELDS, *LABEL_FIELDS)}
    found |= {"patch_size": patch_height, "image_size": height if height == width else (height, width)}
    if architecture in MLP_RATIO_TYPES:
        ratio, rest = divmod(config.intermediate_size, config.hidden_size)
        if rest:
            raise ExportError(
                f"intermediate_size={config.intermediate_size} is no multiple of hidden_size={config.hidden_size}, as "
                f"{architecture} wants it; vit takes any"
            )
        found["mlp_ratio"] = ratio
    else:
        found["intermediate_size"] = config.intermediate_size
    if architecture in DROP_PATH_TYPES:
        found["drop_path_rate"] = config.drop_path_rate
    if architecture == "pixio":
        found["n_cls_tokens"] = 1
    elif architecture == "vit":
        found["pooler_act"] = "linear"
    elif architecture == "dinov2":
        found |= {"layerscale_value": 1.0, "use_mask_token": False}
    elif architecture == "vit_mae":
        if config.decoder_attention != "self":
            raise ExportError(
                f"decoder_attention={config.decoder_attention}: vit_mae has no such decoder; name pixio, vit or "
                "dinov2 to export the encoder without it"
            )
        found |= {name: getattr(config, name) for name in AUTOENCODER_FIELDS}
    theirs = _CONFIGS[architecture](**{name: value for name, value in found.items() if value is not None})
    _remember(theirs, config, MawsViTConfig(**vit_fields(theirs.to_dict())))
    return theirs


def _encoder_weights(encoder: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    scale = encoder["layernorm.weight"]
    if architecture == "vit":
        pooler = {
            "pooler.dense.weight": torch.eye(len(scale), dtype=scale.dtype),
            "pooler.dense.bias": torch.zeros_like(scale),
        }
        return encoder | pooler
    if architecture == "pixio":
        return encoder
    names = {".layernorm_before.": ".norm1.", ".layernorm_after.": ".norm2."}
    weights = {}
    for name, tensor in encoder.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[f"encoder.layer.{name.removeprefix('layers.')}" if name.startswith("layers.") else name] = tensor
    for norm in [name for name in weights if name.endswith(".norm1.weight")]:
        for scale_name in ("layer_scale1", "layer_scale2"):
            weights[norm.replace("norm1.weight", f"{scale_name}.lambda1")] = torch.ones_like(scale)
    return weights


def _mae_name(name: str) -> str:
    renamed = {"position_embeddings": "decoder_pos_embed", "mask_token": "mask_token", "embed": "decoder_embed"}
    renamed |= {"layers": "decoder_layers", "layernorm": "decoder_norm", "head": "decoder_pred"}
    _, part, *rest = name.split(".")
    return ".".join(["decoder", renamed[part], *rest])


def _dual_encoder(ours: MawsLiTModel) -> VisionTextDualEncoderModel:
    vision, text = in_tree_config(ours.config.vision_config, "pixio"), ours.config.text_config
    if text.model_type not in _POOLED_TEXT_TOWERS:
        raise ExportError(
            f"the text tower is a {text.model_type}, which has no pooler that {DUAL_ENCODER} reads; those of "
            f"{', '.join(_POOLED_TEXT_TOWERS)} can be exported"
        )
    config = VisionTextDualEncoderConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=ours.config.projection_dim
    )
    _remember(config, ours.config, MawsLiTConfig(**lit_fields(config.to_dict())))
    scale, first_token = POOLER_SCALE, largest_first_token(ours)
    while first_token * scale > _LARGEST_FIRST_TOKEN * POOLER_SCALE:
        scale /= 2
    weights = dict(ours.state_dict())
    projection = weights["text_projection.weight"]
    width = projection.shape[1]
    weights["text_projection.weight"] = projection / scale
    if not weights["text_projection.weight"].isfinite().all():
        raise ExportError(
            f"text_projection does not fit {projection.dtype} when its tower's pooler is undone; save the model in "
            "float32 or bfloat16"
        )
    weights["text_model.pooler.dense.weight"] = scale * torch.eye(width, dtype=projection.dtype)
    weights["text_model.pooler.dense.bias"] = torch.zeros(width, dtype=projection.dtype)
    return _filled(VisionTextDualEncoderModel, config, weights)


@torch.no_grad()
def largest_first_token(model: MawsLiTModel) -> float:
    """Twice the largest absolute value of a first token over random captions: real ones may go further."""
    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    longest = min(32, model.config.max_text_length - 2, config.max_position_embeddings - 4)  # two begin, two end it
    lengths = torch.randint(1, max(1, longest) + 1, (_SAMPLES,), generator=generator).tolist()
    first, last = config.bos_token_id or 0, config.eos_token_id or 0
    captions = [
        [first, *torch.randint(0, config.vocab_size, (n,), generator=generator).tolist(), last] for n in lengths
    ]
    return 2 * max(
        model.text_model(input_ids=torch.tensor([caption])).last_hidden_state[:, 0].abs().max().item()
        for caption in captions
    )


def _filled(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor]
) -> PreTrainedModel:
    """A model of exactly these tensors, none copied."""
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.config.dtype = usual_dtype(weights)
    return model.eval()


def usual_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """That of most tensors: a logit scale is float32 whatever the towers are."""
    return Counter(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()).most_common(1)[0][0]


def _remember(theirs: PreTrainedConfig, ours: PreTrainedConfig, read_back: PreTrainedConfig) -> None:
    """Keeps those of our fields that would come back otherwise."""
    kept: dict[str, Any] = {}
    for field in fields(type(ours)):
        value = getattr(ours, field.name)
        own = field.name in type(ours).__annotations__ and not isinstance(value, PreTrainedConfig)
        if own and not field.name.startswith("_") and value != getattr(read_back, field.name):
            kept[field.name] = value
    if kept:
        setattr(theirs, REMEMBERED, json.loads(json.dumps(kept)))


def _open_to_readers(folder: Path) -> None:
    """Weights are saved for their owner alone; they get what a new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def _save_model(theirs: PreTrainedModel, folder: Path) -> None:
    if isinstance(theirs, VisionTextDualEncoderModel):
        dtype = theirs.config.dtype
        theirs.save_pretrained(folder)
        theirs.config.dtype = dtype  # for which saving takes the logit scale's
        theirs.config.save_pretrained(folder)
        return
    if not isinstance(theirs, ViTMAEForPreTraining):
        theirs.save_pretrained(folder)
        return
    # The names of transformers 4, which 5 reads too but garbles when it writes them itself (5.23: decoder_encoder).
    weights = {}
    for name, tensor in theirs.state_dict().items():
        for ours, old in _OLD_MAE_NAMES.items():
            name = name.replace(ours, old)
        weights[name] = tensor
    theirs.save_pretrained(folder, state_dict=weights, save_original_format=False)


def _save_processor(ours: PreTrainedModel, source: str | Path, folder: Path) -> None:
    if not isinstance(ours, MawsLiTModel):
        _image_processor(source, ours.config).save_pretrained(folder)
        return
    try:
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError):  # converted without a tokenizer
        _image_processor(source, ours.config.vision_config).save_pretrained(folder)
        return
    for local in ("is_local", "local_files_only"):  # how it was read here is no property of it
        processor.tokenizer.init_kwargs.pop(local, None)
    VisionTextDualEncoderProcessor(processor.image_processor, processor.tokenizer).save_pretrained(folder)


def _image_processor(source: str | Path, config: MawsViTConfig):
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError):
        return image_processor_of(config)
