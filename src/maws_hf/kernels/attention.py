"""Attention by plain matrix products, for training in bfloat16 on CPUs.

torch's fused attention has a slow backward pass there: for the 197 tokens and 16 heads of 32 of MAE's decoder, matrix
products and a softmax take half its time. Elsewhere the fused kernels win: they keep no probabilities.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .eligibility import is_plain

MATMUL = "matmul"
# All probabilities are kept for the backward pass. Up to MAE's 257 tokens that is little, and the gain was measured.
MOST_QUERIES = 320
CACHED_BYTES = 1 << 20  # of scores, fastest among 1/4 to 4 MiB


def fastest_backend(implementation: str, query: Tensor) -> str:
    """The attention backend for what is configured: "matmul" instead of "sdpa" where that is faster.

    torch's "sdpa" is itself a choice among kernels by device and dtype; this is one more of them.

    Args:
        implementation: `config._attn_implementation`.
        query: `(B, heads, T, head_dim)`.
    """
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad
    short = query.shape[2] <= MOST_QUERIES
    return MATMUL if implementation == "sdpa" and slow and short and is_plain(query) else implementation


def matmul_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, None]:
    """Softmax attention with a backward pass written out, on any device and in any dtype.

    A mask or dropout, which no MAWS recipe has, is left to "sdpa".

    Args:
        query, key, value: `(B, heads, T, head_dim)` of one dtype, which under autocast is autocast's; there may be
            fewer queries than keys.

    Returns:
        `(B, T, heads, head_dim)` and None.
    """
    if attention_mask is not None or dropout:
        fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return fused(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    return _MatmulAttention.apply(query, key, value, scaling), None


class _MatmulAttention(torch.autograd.Function):
    """Heads are copied together first: products of strided matrices are up to twice as slow on CPUs.

    Then as many heads are taken at a time as a processor's cache holds scores of: what one operation has written, the
    next finds there.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        batch = query.shape[:2]
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        probabilities = query.new_empty(*query.shape[:2], key.shape[1])
        attended = torch.empty_like(query)
        for heads in _parts(probabilities):
            scores = _scaled_product(query[heads], key[heads].mT, scaling)
            torch.softmax(scores, dim=-1, out=probabilities[heads])
            torch.bmm(probabilities[heads], value[heads], out=attended[heads])
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scaling, ctx.batch = scaling, batch
        return attended.unflatten(0, batch).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, probabilities = ctx.saved_tensors
        gradient = gradient.transpose(1, 2).flatten(0, 1)
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for heads in _parts(probabilities):
            part, of_attended = probabilities[heads], gradient[heads]
            torch.bmm(part.mT, of_attended, out=of_value[heads])
            of_scores = of_attended @ value[heads].mT
            torch._softmax_backward_data(of_scores, part, -1, part.dtype, grad_input=of_scores)
            _scaled_product(of_scores, key[heads], ctx.scaling, out=of_query[heads])
            _scaled_product(of_scores.mT, query[heads], ctx.scaling, out=of_key[heads])
        return *(_as_projected(tensor, ctx.batch) for tensor in (of_query, of_key, of_value)), None


def _parts(scores: Tensor) -> list[slice]:
    """Of `(B * heads, T', T)` scores: the heads to take at a time."""
    heads, queries, keys = scores.shape
    size = max(1, CACHED_BYTES // max(1, queries * keys * scores.element_size()))
    return [slice(start, start + size) for start in range(0, heads, size)]


def _as_projected(heads: Tensor, batch: torch.Size) -> Tensor:
    """`(B * heads, T, head_dim)` -> `(B, heads, T, head_dim)` in the memory order of the projection that it came from.

    Three products and sums read each gradient of a projection, and each would make that copy.
    """
    return heads.unflatten(0, batch).transpose(1, 2).contiguous().transpose(1, 2)


def _scaled_product(left: Tensor, right: Tensor, scaling: float, out: Tensor | None = None) -> Tensor:
    """`scaling * left @ right`, scaled before it is rounded."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scaling, out=out)


ALL_ATTENTION_FUNCTIONS.register(MATMUL, matmul_attention_forward)
