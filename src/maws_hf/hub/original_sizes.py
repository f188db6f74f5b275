"""The configuration of a checkpoint: from the table if it is known, else from shapes and what they cannot tell."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..models.configuration_maws_lit import XLM_ROBERTA_BASE, MawsLiTConfig
from ..models.configuration_maws_vit import SIZES, MawsViTConfig, as_pair
from .original_archive import ConversionError
from .original_files import KnownFile
from .original_names import TEXT, Layout

Shapes = Mapping[str, tuple[int, ...]]
# `args.model` of main_pretrain.py -> heads.
_MAE_HEADS = {"mae_vit_base_patch16": 12, "mae_vit_large_patch16": 16, "mae_vit_huge_patch14": 16}


@dataclass(frozen=True)
class Sizes:
    """What can be said about a file that no table knows; None is not said.

    Args:
        patch_size, image_size: pixels, or (height, width); the shapes tell them unless the image is no square.
        num_attention_heads, decoder_num_attention_heads, text_num_attention_heads: of each part. No shape tells them.
        layer_norm_eps: of image encoder and decoder.
        norm_pix_loss: whether the decoder was trained on patches normalised one by one.
    """

    patch_size: int | tuple[int, int] | None = None
    image_size: int | tuple[int, int] | None = None
    num_attention_heads: int | None = None
    decoder_num_attention_heads: int | None = None
    text_num_attention_heads: int | None = None
    layer_norm_eps: float | None = None
    norm_pix_loss: bool | None = None

    def given(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


NOTHING_SAID = Sizes()


def config_of(
    layout: Layout, shapes: Shapes, known: KnownFile | None, sizes: Sizes, arguments: Mapping[str, Any]
) -> MawsViTConfig | MawsLiTConfig:
    """
    Args:
        layout: of the file.
        shapes: of its tensors, by today's original names.
        known: what the file is said to be, or None.
        sizes: what the user said.
        arguments: of the training script, from the file.

    Raises:
        ConversionError: something must be said and was not, or is impossible; names the option.
    """
    try:
        if known is not None:
            return _known_config(layout, known, sizes)
        if layout == "clip":
            return _lit_config(shapes, sizes)
        return MawsViTConfig(**_encoder_fields(shapes, "", layout, sizes, arguments))
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"the file's sizes are no model's: {error}") from error


def _known_config(layout: Layout, known: KnownFile, sizes: Sizes) -> MawsViTConfig | MawsLiTConfig:
    if layout != known.layout:
        raise ConversionError(
            f"the file is no {known.name}: its tensors are those of {_LAYOUTS[layout]}, not of "
            f"{_LAYOUTS[known.layout]}"
        )
    if layout == "clip":
        return MawsLiTConfig.from_size(known.size)
    norm_pix_loss = known.norm_pix_loss if sizes.norm_pix_loss is None else sizes.norm_pix_loss
    decoder = {} if norm_pix_loss is None else {"norm_pix_loss": norm_pix_loss}
    labels = {"num_labels": known.num_labels} if layout == "classifier" else {}
    return MawsViTConfig.from_size(known.size, image_size=known.image_size, **labels, **decoder)


_LAYOUTS = {
    "encoder": "an encoder alone",
    "classifier": "a classifier",
    "mae": "an autoencoder with its decoder",
    "clip": "two towers",
}


def _lit_config(shapes: Shapes, sizes: Sizes) -> MawsLiTConfig:
    vocabulary, width = _shape(shapes, f"{TEXT}.token_embedding.weight", 2)
    positions = _shape(shapes, f"{TEXT}.positional_embedding.embedding.weight", 2)[0]
    text_config = {
        **XLM_ROBERTA_BASE,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "hidden_size": width,
        "num_hidden_layers": _depth(shapes, f"{TEXT}.layers.layers."),
        "num_attention_heads": _said(sizes.text_num_attention_heads, "text_num_attention_heads", width),
        "intermediate_size": _shape(shapes, f"{TEXT}.layers.layers.0.linear1.weight", 2)[0],
    }
    return MawsLiTConfig(
        vision_config=MawsViTConfig(**_encoder_fields(shapes, "vision_encoder.", "encoder", sizes, {})),
        text_config=text_config,
        projection_dim=_shape(shapes, "vision_projection", 2)[1],
        # The first position is the one after the padding token's, which is 1.
        max_text_length=min(102, positions - 2),
    )


def _encoder_fields(
    shapes: Shapes, prefix: str, layout: Layout, sizes: Sizes, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    width, channels, *patch = _shape(shapes, f"{prefix}patch_embed.proj.weight", 4)
    if channels != 3:
        raise ConversionError(f"{prefix}patch_embed.proj.weight has {channels} channels; only pictures of 3 are known")
    patch_size = as_pair(sizes.patch_size or tuple(patch))
    heads = sizes.num_attention_heads or _MAE_HEADS.get(arguments.get("model", ""))
    found = {
        "hidden_size": width,
        "num_hidden_layers": _depth(shapes, f"{prefix}blocks."),
        "num_attention_heads": _said(heads, "num_attention_heads", width),
        "intermediate_size": _shape(shapes, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else patch_size,
        "image_size": sizes.image_size or _image_size(shapes, prefix, patch_size),
        "layer_norm_eps": sizes.layer_norm_eps or 1e-6,
    }
    if layout == "classifier":
        found["num_labels"] = _shape(shapes, "head.weight", 2)[0]
        if found["num_labels"] == 0:
            raise ConversionError("head.weight is empty; a classifier has a class at least")
    if layout == "mae":
        found |= _decoder_fields(shapes, sizes, arguments)
    return found


def _decoder_fields(shapes: Shapes, sizes: Sizes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    norm_pix_loss = arguments.get("norm_pix_loss") if sizes.norm_pix_loss is None else sizes.norm_pix_loss
    if not isinstance(norm_pix_loss, bool):
        raise ConversionError(
            "the file does not tell whether its decoder was trained on normalised patches: say --norm_pix_loss true "
            "(as the MAE paper recommends) or --norm_pix_loss false"
        )
    mask_ratio = arguments.get("mask_ratio")
    return {
        "decoder_hidden_size": _shape(shapes, "decoder_embed.weight", 2)[0],
        "decoder_num_hidden_layers": _depth(shapes, "decoder_blocks."),
        "decoder_num_attention_heads": sizes.decoder_num_attention_heads or 16,
        "decoder_intermediate_size": _shape(shapes, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
        "norm_pix_loss": norm_pix_loss,
        **({"mask_ratio": mask_ratio} if isinstance(mask_ratio, float) else {}),
    }


def _image_size(shapes: Shapes, prefix: str, patch_size: tuple[int, int]) -> int | tuple[int, int]:
    patches = _shape(shapes, f"{prefix}pos_embed", 3)[1] - 1
    side = math.isqrt(max(patches, 0))
    if side * side != patches:
        raise ConversionError(
            f"{prefix}pos_embed has {patches} patches, which are no square: say --image_size HEIGHT WIDTH"
        )
    height, width = side * patch_size[0], side * patch_size[1]
    return height if height == width else (height, width)


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape from which a size is read."""
    if name not in shapes:
        raise ConversionError(f"the file has no tensor {name}, so it is no original checkpoint of MAE or MAWS")
    if len(shapes[name]) != dimensions:
        raise ConversionError(f"{name} has shape {tuple(shapes[name])}; expected {dimensions} dimensions")
    return tuple(shapes[name])


def _depth(shapes: Shapes, prefix: str) -> int:
    found = (re.match(re.escape(prefix) + r"(\d{1,3})\.", name) for name in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _said(heads: int | None, option: str, width: int) -> int:
    if heads is None:
        of_size = {size["num_attention_heads"] for size in SIZES.values() if size["hidden_size"] == width}
        hint = f"; a released model of that width has {min(of_size)}" if of_size else ""
        raise ConversionError(
            f"no shape tells how many attention heads share the width of {width}: say --{option} N{hint}. If the file "
            "is a released one, say which with --model NAME"
        )
    return heads


__all__ = ["NOTHING_SAID", "Sizes", "config_of"]
