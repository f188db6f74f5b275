"""A plain decoder of the masked autoencoder in float64, one image and one head at a time, to compare ours with.

Nothing is shared with the package. Weights come as a dict in the names of `model.decoder.state_dict()`; results are
differentiable with respect to them and to the encoder's tokens.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    spread = (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(weights: Weights, name: str, asking: Tensor, asked: Tensor, heads: int) -> Tensor:
    """`(R, W)` and `(T, any width)` -> `(R, W)`."""
    query, key, value = (
        linear(weights, f"{name}.{part}_proj", x) for part, x in (("q", asking), ("k", asked), ("v", asked))
    )
    width = query.shape[1] // heads
    answers = []
    for first in range(0, heads * width, width):
        part = slice(first, first + width)
        scores = (query[:, part] @ key[:, part].T / math.sqrt(width)).exp()
        answers.append(scores / scores.sum(dim=1, keepdim=True) @ value[:, part])
    return linear(weights, f"{name}.o_proj", torch.cat(answers, dim=1))


def add_mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    hidden = linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.layernorm_after", x))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(weights, f"{name}.mlp.fc2", hidden)


def decode_cross(weights: Weights, encoded: list[Tensor], ids: Tensor, heads: int, depth: int) -> Tensor:
    """Patches `ids` `(R,)` of one image by cross-attention.

    Args:
        encoded: the encoder's normed tokens `(T, D)` alone; or those of the embeddings and every layer, of which each
            block mixes its own (weights `feature_weights`, norms `feature_norms`).
    """
    x = weights["mask_token"][0] + weights["position_embeddings"][0, 1 + ids]
    for index in range(depth):
        asked = encoded[0]
        if "feature_weights" in weights:
            shares = weights["feature_weights"][index]
            asked = sum(share * tokens for share, tokens in zip(shares, encoded, strict=True))
            asked = norm(weights, f"feature_norms.{index}", asked)
        name = f"layers.{index}"
        asking = norm(weights, f"{name}.layernorm_before", x)
        x = x + attend(weights, f"{name}.cross_attention", asking, asked, heads)
        x = add_mlp(weights, name, x)
    return linear(weights, "head", norm(weights, "layernorm", x))


def decode_self(weights: Weights, encoded: Tensor, ids_keep: Tensor, ids: Tensor, heads: int, depth: int) -> Tensor:
    """Patches `ids` `(R,)` of one image by MAE's decoder, into which no other hidden patch goes."""
    places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + ids_keep, 1 + ids])
    tokens = torch.cat([linear(weights, "embed", encoded), weights["mask_token"][0].expand(len(ids), -1)])
    x = tokens + weights["position_embeddings"][0, places]
    for index in range(depth):
        name = f"layers.{index}"
        normed = norm(weights, f"{name}.layernorm_before", x)
        x = add_mlp(weights, name, x + attend(weights, f"{name}.attention", normed, normed, heads))
    return linear(weights, "head", norm(weights, "layernorm", x[-len(ids) :]))
