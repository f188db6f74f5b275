"""What the originals compute, in plain torch and in their own names: the other side of `--verify`.

Functions of a dictionary of original tensors: timm 0.9.7's `VisionTransformer`, `models_mae.py`'s autoencoder,
torchtext's `RobertaModel` and the projections of `maws/model.py`. Nothing is shared with our models and nothing is
optimised. Everything is computed in float32, one layer's weights at a time.

Legend: B images or captions, L patches, T tokens, D width, P pixels of a patch.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]

TEXT_EPS = 1e-5  # torch's default, which torchtext keeps
PADDING = 1


def encode_images(weights: Weights, images: Tensor, *, heads: int, eps: float, prefix: str = "") -> Tensor:
    """Normalised images `(B, 3, H, W)` of the stored size -> all tokens after the final norm `(B, 1 + L, D)`."""
    tokens = _embed_patches(weights, images, prefix)
    positions = _get(weights, f"{prefix}pos_embed")
    class_token = _get(weights, f"{prefix}cls_token").expand(len(images), -1, -1)
    tokens = torch.cat([class_token, tokens], dim=1) + positions
    tokens = _vit_blocks(weights, f"{prefix}blocks", tokens, heads, eps)
    return _norm(weights, f"{prefix}norm", tokens, eps)


def classify(weights: Weights, images: Tensor, *, heads: int, eps: float) -> Tensor:
    """Logits `(B, classes)` of the normed class token."""
    return _linear(weights, "head", encode_images(weights, images, heads=heads, eps=eps)[:, 0])


def autoencode(
    weights: Weights,
    images: Tensor,
    noise: Tensor,
    *,
    heads: int,
    decoder_heads: int,
    eps: float,
    norm_pix_loss: bool,
    mask_ratio: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`noise` `(B, L)` -> loss `()`, predictions of all patches `(B, L, P)`, mask `(B, L)` with 1 where hidden."""
    positions = _get(weights, "pos_embed")
    tokens = _embed_patches(weights, images, "") + positions[:, 1:]
    batch, patches, width = tokens.shape
    kept = int(patches * (1 - mask_ratio))
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    visible = tokens.gather(1, shuffle[:, :kept, None].expand(-1, -1, width))
    class_token = (_get(weights, "cls_token") + positions[:, :1]).expand(batch, -1, -1)
    encoded = _vit_blocks(weights, "blocks", torch.cat([class_token, visible], dim=1), heads, eps)
    encoded = _linear(weights, "decoder_embed", _norm(weights, "norm", encoded, eps))

    hidden = _get(weights, "mask_token").expand(batch, patches - kept, -1)
    shuffled = torch.cat([encoded[:, 1:], hidden], dim=1)
    decoded = shuffled.gather(1, restore[:, :, None].expand(-1, -1, shuffled.shape[2]))
    decoded = torch.cat([encoded[:, :1], decoded], dim=1) + _get(weights, "decoder_pos_embed")
    decoded = _vit_blocks(weights, "decoder_blocks", decoded, decoder_heads, eps)
    predictions = _linear(weights, "decoder_pred", _norm(weights, "decoder_norm", decoded, eps))[:, 1:]

    mask = (restore >= kept).float()
    targets = _patchify(images, _get(weights, "patch_embed.proj.weight").shape[2:])
    if norm_pix_loss:
        targets = (targets - targets.mean(dim=-1, keepdim=True)) / (targets.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    losses = ((predictions - targets) ** 2).mean(dim=-1)
    return (losses * mask).sum() / mask.sum(), predictions, mask


def encode_texts(weights: Weights, input_ids: Tensor, *, heads: int, prefix: str) -> Tensor:
    """Token ids `(B, T)`, padded with 1 -> the first token of the last layer `(B, D)`. Post-norm blocks."""
    real = input_ids.ne(PADDING)
    positions = real.long().cumsum(dim=1) * real + PADDING
    tokens = F.embedding(input_ids, weights[f"{prefix}.token_embedding.weight"]).float()
    tokens = tokens + F.embedding(positions, weights[f"{prefix}.positional_embedding.embedding.weight"]).float()
    tokens = _norm(weights, f"{prefix}.embedding_layer_norm", tokens, TEXT_EPS)
    for index in range(_depth(weights, f"{prefix}.layers.layers")):
        name = f"{prefix}.layers.layers.{index}"
        fused = F.linear(
            tokens, _get(weights, f"{name}.self_attn.in_proj_weight"), _get(weights, f"{name}.self_attn.in_proj_bias")
        )
        attended = _attend(fused, heads, real)
        tokens = tokens + _linear(weights, f"{name}.self_attn.out_proj", attended)
        tokens = _norm(weights, f"{name}.norm1", tokens, TEXT_EPS)
        widened = F.gelu(_linear(weights, f"{name}.linear1", tokens))
        tokens = _norm(weights, f"{name}.norm2", tokens + _linear(weights, f"{name}.linear2", widened), TEXT_EPS)
    return tokens[:, 0]


def project(weights: Weights, features: Tensor, name: str) -> Tensor:
    """Features of a tower `(B, D)` -> the common space, of length 1."""
    return F.normalize(features @ _get(weights, name), dim=-1)


def _get(weights: Weights, name: str) -> Tensor:
    return weights[name].float()


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, _get(weights, f"{name}.weight"), _get(weights, f"{name}.bias"))


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], _get(weights, f"{name}.weight"), _get(weights, f"{name}.bias"), eps)


def _depth(weights: Weights, prefix: str) -> int:
    return len({name[len(prefix) + 1 :].partition(".")[0] for name in weights if name.startswith(f"{prefix}.")})


def _embed_patches(weights: Weights, images: Tensor, prefix: str) -> Tensor:
    filters, bias = (_get(weights, f"{prefix}patch_embed.proj.{kind}") for kind in ("weight", "bias"))
    return F.conv2d(images, filters, bias, stride=filters.shape[2:]).flatten(2).transpose(1, 2)


def _vit_blocks(weights: Weights, prefix: str, tokens: Tensor, heads: int, eps: float) -> Tensor:
    for index in range(_depth(weights, prefix)):
        name = f"{prefix}.{index}"
        fused = _linear(weights, f"{name}.attn.qkv", _norm(weights, f"{name}.norm1", tokens, eps))
        tokens = tokens + _linear(weights, f"{name}.attn.proj", _attend(fused, heads))
        widened = F.gelu(_linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", tokens, eps)))
        tokens = tokens + _linear(weights, f"{name}.mlp.fc2", widened)
    return tokens


def _attend(fused: Tensor, heads: int, real: Tensor | None = None) -> Tensor:
    """`(B, T, 3 D)`: query, key, value, each by head -> `(B, T, D)`; `real` `(B, T)` are the tokens to look at."""
    batch, length, width = fused.shape
    query, key, value = fused.reshape(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if real is not None:
        scores = scores.masked_fill(~real[:, None, None, :], float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width // 3)


def _patchify(images: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Pixels of each patch, row by row, channels last: `(B, L, P)`."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    patches = images.reshape(batch, channels, rows, patch_size[0], columns, patch_size[1])
    return torch.einsum("bcrpsq->brspqc", patches).reshape(batch, rows * columns, -1)


__all__ = ["autoencode", "classify", "encode_images", "encode_texts", "project"]
