"""Masked autoencoders of others, holding the weights of one of ours, as functions (images, noise) -> loss.

Noise decides the mask in all of them: the patches with the smallest values stay visible.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peers import import_lightly, import_timm
from torch import Tensor, nn

from maws_hf import MawsMAEForPreTraining
from maws_hf.hub.export import in_tree_model
from maws_hf.hub.original_names import pieces_of
from maws_hf.masking import num_kept_patches, split_by_noise

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, 3, H, W) normalised float, (B, L) noise -> scalar


def transformers_vit_mae(ours: MawsMAEForPreTraining, attention: str = "sdpa") -> tuple[nn.Module, Loss]:
    """transformers' `ViTMAEForPreTraining`."""
    model = in_tree_model(ours, "vit_mae")
    model = type(model)._from_config(model.config, attn_implementation=attention)
    model.load_state_dict(in_tree_model(ours, "vit_mae").state_dict())
    return model, lambda images, noise: model(images, noise=noise).loss


def facebook_mae(ours: MawsMAEForPreTraining, clone: Path) -> tuple[nn.Module, Loss]:
    """`models_mae.py` of a clone of github.com/facebookresearch/mae, with the blocks of the timm that is installed."""
    timm_module = import_timm().models.vision_transformer
    block = timm_module.Block
    # Two things that the versions of 2021 had: an argument of timm's block (never set) and an alias of numpy.
    timm_module.Block = lambda *args, qk_scale=None, **kwargs: block(*args, **kwargs)
    if not hasattr(np, "float"):
        np.float = float
    sys.path.insert(0, str(clone))
    try:
        original = importlib.import_module("models_mae")
        config = ours.config
        model = original.MaskedAutoencoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            decoder_embed_dim=config.decoder_hidden_size,
            decoder_depth=config.decoder_num_hidden_layers,
            decoder_num_heads=config.decoder_num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            norm_pix_loss=config.norm_pix_loss,
        )
    except ModuleNotFoundError as error:
        raise SystemExit(f"--original {clone} is no clone of facebookresearch/mae: {error}") from error
    finally:
        sys.path.remove(str(clone))
        timm_module.Block = block
    model.load_state_dict(original_weights(ours))

    def loss(images: Tensor, noise: Tensor) -> Tensor:
        with _drawing(noise):
            return model(images, mask_ratio=config.mask_ratio)[0]

    return model, loss


def lightly_mae(ours: MawsMAEForPreTraining) -> tuple[nn.Module, Loss]:
    """lightly's modules put together as its documentation does, with the loss on normalised patches."""
    import_lightly()
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    config = ours.config
    encoder = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        num_classes=0,
    )
    patches = config.grid_size[0] * config.grid_size[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its successor takes the same weights and does the same
        model = nn.ModuleDict(
            {
                "encoder": MaskedVisionTransformerTIMM(vit=encoder),
                "decoder": MAEDecoderTIMM(
                    num_patches=patches,
                    patch_size=config.patch_size,
                    embed_dim=config.hidden_size,
                    decoder_embed_dim=config.decoder_hidden_size,
                    decoder_depth=config.decoder_num_hidden_layers,
                    decoder_num_heads=config.decoder_num_attention_heads,
                    mlp_ratio=config.decoder_intermediate_size / config.decoder_hidden_size,
                ),
            }
        )
    weights = original_weights(ours)
    decoder = {name: weights.pop(name) for name in list(weights) if name.startswith(("decoder_", "mask_token"))}
    model["encoder"].vit.load_state_dict(weights)
    model["decoder"].load_state_dict(decoder)
    kept = num_kept_patches(patches, config.mask_ratio)

    def loss(images: Tensor, noise: Tensor) -> Tensor:
        ids_keep, ids_mask = split_by_noise(noise, kept)
        class_token = ids_keep.new_zeros(len(images), 1)
        keep, mask = torch.cat([class_token, ids_keep + 1], dim=1), ids_mask + 1
        encoded = model["decoder"].embed(model["encoder"].encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(model["decoder"].mask_token, (len(images), 1 + patches))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predictions = model["decoder"].predict(utils.get_at_index(model["decoder"].decode(tokens), mask))
        targets = utils.get_at_index(utils.patchify(images, config.patch_size), mask - 1)
        if config.norm_pix_loss:
            targets = utils.normalize_mean_var(targets, dim=-1)
        return nn.functional.mse_loss(predictions, targets)

    return model, loss


def original_weights(ours: MawsMAEForPreTraining) -> dict[str, Tensor]:
    """Our weights under the names of `models_mae.py`: query, key and value are one matrix there."""
    own, parts = ours.state_dict(), {}
    for piece in pieces_of("mae", ours.config):
        parts.setdefault(piece.source, {})[piece.part[0]] = own[piece.target]
    return {source: torch.cat([found[i] for i in sorted(found)]) for source, found in parts.items()}


class _drawing:
    """Within it `torch.rand` gives this noise: the original draws its own."""

    def __init__(self, noise: Tensor):
        self.noise, self.usual = noise, torch.rand

    def __enter__(self) -> None:
        torch.rand = lambda *size, **options: self.noise

    def __exit__(self, *error: object) -> None:
        torch.rand = self.usual
