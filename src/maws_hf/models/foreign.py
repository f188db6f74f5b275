"""MAWS models in the formats of others: which of our fields and weights their fields and weights are.

In-tree architectures of transformers that compute what we compute (Pixio with one class token, ViT, DINOv2 without
layer scale, ViTMAE, VisionTextDualEncoder) and timm's `VisionTransformer`, the format of the released models. Here is
the way in; [`maws_hf.hub.export`] is the way out.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

# Fields that the in-tree configs and ours call the same.
ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
DROP_PATH_TYPES = ("pixio", "dinov2")
MLP_RATIO_TYPES = ("pixio", "dinov2")
LABEL_FIELDS = ("id2label", "label2id", "problem_type")
AUTOENCODER_FIELDS = (
    "mask_ratio",
    "norm_pix_loss",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
# Where an export keeps those of our fields that its own config has no place for.
REMEMBERED = "maws_config"

ENCODER_TYPES = ("pixio", "vit", "dinov2", "vit_mae")
DUAL_ENCODER = "vision-text-dual-encoder"
TIMM = "timm"

# In the dual encoder, XLM-R's pooler is dense, then tanh. With dense = 2^-14 times identity, tanh(z) is z to 5e-7
# relative for first tokens below 20, and a projection 2^14 times as large undoes the factor without rounding.
POOLER_SCALE = 2.0**-14
LARGEST_POOLER_SCALE = 2.0**-10  # beyond it the tower was not exported by us

# timm's plain ViTs by the name of their size: width, depth, heads.
_TIMM_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
_TIMM_ARGUMENTS = {
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "num_classes": "num_labels",
    "in_chans": "num_channels",
    "qkv_bias": "qkv_bias",
}

_IN_TREE_NAMES = (
    (r"^(vit|pixio|dinov2)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    # transformers 5.23 writes the second spelling when it saves a ViTMAE that it has not loaded.
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer)\.", "decoder.layers."),
    (r"^decoder\.decoder_embed\.", "decoder.embed."),
    (r"^decoder\.decoder_norm\.", "decoder.layernorm."),
    (r"^decoder\.decoder_pred\.", "decoder.head."),
    (r"^decoder\.decoder_pos_embed$", "decoder.position_embeddings"),
)
_TIMM_NAMES = (
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
    (r"^blocks\.", "vit.layers."),
    (r"^decoder_blocks\.", "decoder.layers."),
    (r"^decoder_embed\.", "decoder.embed."),
    (r"^decoder_norm\.", "decoder.layernorm."),
    (r"^decoder_pred\.", "decoder.head."),
    (r"^decoder_pos_embed$", "decoder.position_embeddings"),
    (r"^mask_token$", "decoder.mask_token"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)


class ForeignModelError(ValueError):
    """A model of another library that is no MAWS model, or cannot be read; the message says why."""


def format_of(fields: Mapping[str, Any]) -> str | None:
    """What a `config.json` describes: an in-tree `model_type` that we read, "timm", or None for anything else."""
    if "architecture" in fields and fields.get("model_type", "timm_wrapper") == "timm_wrapper":
        return TIMM
    model_type = fields.get("model_type")
    return model_type if model_type in (*ENCODER_TYPES, DUAL_ENCODER) else None


def has_timm_names(state_dict: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in state_dict


def vit_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of [`MawsViTConfig`] for a foreign vision config.

    Raises:
        ForeignModelError: ours cannot be that model.
    """
    format_name = format_of(fields)
    if format_name == DUAL_ENCODER:
        return vit_fields(_object(fields, "vision_config"))
    if format_name == TIMM:
        return _fields_of_timm(fields)
    if format_name is None:
        raise ForeignModelError(
            f"model_type={fields.get('model_type')!r} is not a vision model that can be read as a MAWS model; those "
            f"are {', '.join(ENCODER_TYPES)}"
        )
    theirs = CONFIG_MAPPING[format_name](**{name: value for name, value in fields.items() if name != "model_type"})
    if format_name == "pixio" and theirs.n_cls_tokens != 1:
        raise ForeignModelError(f"n_cls_tokens={theirs.n_cls_tokens}: a MAWS model has one class token")
    if format_name == "dinov2" and theirs.use_swiglu_ffn:
        raise ForeignModelError("use_swiglu_ffn=True: a MAWS model's MLP has one matrix in and one out")
    names = [*ENCODER_FIELDS, *LABEL_FIELDS, *(AUTOENCODER_FIELDS if format_name == "vit_mae" else ())]
    if format_name == "vit_mae" and theirs.mask_ratio == 0:  # how some switch its masking off
        names.remove("mask_ratio")
    if format_name in DROP_PATH_TYPES:
        names.append("drop_path_rate")
    ours = {name: getattr(theirs, name) for name in names}
    if format_name in MLP_RATIO_TYPES:
        ours["intermediate_size"] = theirs.mlp_ratio * theirs.hidden_size
    else:
        ours["intermediate_size"] = theirs.intermediate_size
    return {**ours, **_object(fields, REMEMBERED, {})}


def lit_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of [`MawsLiTConfig`] for a `VisionTextDualEncoderConfig`.

    Raises:
        ForeignModelError: ours cannot be that model.
    """
    if format_of(fields) != DUAL_ENCODER:
        raise ForeignModelError(
            f"model_type={fields.get('model_type')!r} is neither a MAWS-LiT model nor a {DUAL_ENCODER}; "
            "MawsLiTModel.from_vision_text_pretrained makes one of two towers"
        )
    vision = _object(fields, "vision_config")
    if vision.get("model_type") == "vit" and vision.get("pooler_act", "tanh") != "linear":
        raise ForeignModelError(
            "its image tower is a ViT with a pooler: a MAWS image tower's feature is its class token"
        )
    return {
        "vision_config": vit_fields(vision),
        "text_config": _object(fields, "text_config"),
        "projection_dim": fields.get("projection_dim", 512),
        **_object(fields, REMEMBERED, {}),
    }


def translate_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Pixio, ViT, DINOv2 or ViTMAE, in any spelling of transformers 4 and 5, under our names.

    Poolers and unused mask tokens are left out: nothing of ours reads them.

    Raises:
        ForeignModelError: DINOv2's layer scale is not one everywhere.
    """
    ours = {}
    for name, tensor in state_dict.items():
        our_name = _rename(name, _IN_TREE_NAMES)
        if our_name.startswith("pooler.") or our_name == "embeddings.mask_token":
            continue
        if ".layer_scale" in our_name:
            if not torch.equal(tensor, torch.ones_like(tensor)):
                raise ForeignModelError(f"{name} is not one everywhere: a MAWS model has no layer scale")
            continue
        ours[our_name if our_name.startswith(("classifier.", "decoder.")) else f"vit.{our_name}"] = tensor
    return ours


def translate_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's or the original MAE's weights under our names; joint qkv matrices become views of their thirds."""
    ours = {}
    for name, tensor in state_dict.items():
        our_name = _rename(name, _TIMM_NAMES)
        if ".attn.qkv." not in our_name:
            ours[our_name] = tensor
            continue
        for projection, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
            ours[our_name.replace(".attn.qkv.", f".attention.{projection}.")] = third
    return ours


def translate_dual_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a VisionTextDualEncoderModel under the names of [`MawsLiTModel`].

    Raises:
        ForeignModelError: its text tower's pooler is more than a factor.
    """
    vision = vision_tower(state_dict)
    _refuse_vision_pooler(vision)
    ours = {name.replace("vit.", "vision_model.", 1): tensor for name, tensor in translate_encoder(vision).items()}
    for name, tensor in state_dict.items():
        if not _is_vision(name) and not name.startswith("text_model.pooler."):
            ours[name] = tensor
    factor = _pooler_factor(state_dict)
    ours["text_projection.weight"] = ours["text_projection.weight"] * factor
    return ours


def _object(fields: Mapping[str, Any], name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    value = fields.get(name, default)
    if not isinstance(value, dict):
        raise ForeignModelError(f"{name}={value!r} is no object with fields")
    return value


def vision_tower(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's part of a dual encoder or of MAWS-LiT, under its own names."""
    return {name.removeprefix("vision_model."): t for name, t in state_dict.items() if _is_vision(name)}


def _is_vision(name: str) -> bool:
    return name.startswith("vision_model.")


def _refuse_vision_pooler(vision: Mapping[str, Tensor]) -> None:
    """A ViT as image tower has a pooler, which only changes nothing if it is the identity."""
    weight, bias = vision.get("pooler.dense.weight"), vision.get("pooler.dense.bias")
    if weight is None:
        return
    if bias is None or bias.any() or not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype)):
        raise ForeignModelError("vision_model.pooler is trained: a MAWS image tower's feature is its class token")


def _pooler_factor(state_dict: Mapping[str, Tensor]) -> float:
    weight = state_dict.get("text_model.pooler.dense.weight")
    bias = state_dict.get("text_model.pooler.dense.bias")
    if weight is None or bias is None:
        raise ForeignModelError("the text tower has no pooler, though the model is a VisionTextDualEncoder")
    factor = weight[0, 0].item()
    by_us = 0 < factor <= LARGEST_POOLER_SCALE and math.frexp(factor)[0] == 0.5  # a power of two
    if not by_us or bias.any() or not torch.equal(weight, factor * torch.eye(len(weight), dtype=weight.dtype)):
        raise ForeignModelError(
            "text_model.pooler is trained: MAWS-LiT reads the first token itself, so it cannot be this model"
        )
    return factor


def _rename(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fields_of_timm(fields: Mapping[str, Any]) -> dict[str, Any]:
    architecture = str(fields["architecture"]).split(".")[0]
    match = re.fullmatch(r"vit_(\w+?)_patch(\d+)_(\d+)", architecture)
    if match is None or match[1] not in _TIMM_SIZES:
        raise ForeignModelError(
            f"architecture={fields['architecture']!r} is no plain ViT of timm that can be read as a MAWS model; those "
            f"are vit_SIZE_patchP_S with SIZE one of {', '.join(_TIMM_SIZES)}"
        )
    width, depth, heads = _TIMM_SIZES[match[1]]
    ours = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    ours |= {"patch_size": int(match[2]), "image_size": int(match[3]), "num_labels": fields.get("num_classes", 1000)}
    arguments = _object(fields, "model_args", {})
    for name, value in arguments.items():
        if name == "global_pool" and value == "token":
            continue
        if name not in _TIMM_ARGUMENTS:
            raise ForeignModelError(f"model_args has {name}={value!r}, which a MAWS model does not know")
        ours[_TIMM_ARGUMENTS[name]] = value
    published = _object(fields, "pretrained_cfg", {})
    for theirs, name in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in published:
            ours[name] = tuple(published[theirs])
    return {**ours, "intermediate_size": 4 * ours["hidden_size"]}
