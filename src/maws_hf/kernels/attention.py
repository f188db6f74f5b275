"""Attention by plain matrix products, for bfloat16 on CPUs.

torch's fused attention is slow there: of its time, matrix products and a softmax take two thirds for 197 to 1,370
tokens, and half with the backward pass for the 197 tokens and 16 heads of 32 of MAE's decoder. They round scores to
bfloat16, as transformers' eager attention does; torch's are float32. In float32 the fused kernels win.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .eligibility import has_amx, has_onednn, is_plain

MATMUL = "matmul"
# A backward pass needs all probabilities kept. Up to MAE's 257 tokens that is little, and the gain was measured.
MOST_TRAINED_QUERIES = 320
CACHED_BYTES = 1 << 20  # of scores, fastest among 1/4 to 4 MiB


def fastest_backend(implementation: str, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The attention backend for what is configured: "matmul" instead of "sdpa" where that is faster.

    torch's "sdpa" is itself a choice among kernels by device and dtype; this is one more of them.

    Args:
        implementation: `config._attn_implementation`.
        query, key, value: `(B, heads, T, head_dim)`.
    """
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if implementation != "sdpa" or not slow or not is_plain(query, key, value):
        return implementation
    if query.requires_grad or key.requires_grad or value.requires_grad:
        return MATMUL if query.shape[2] <= MOST_TRAINED_QUERIES else implementation
    # For AMX torch has other kernels; there, and on Arm, nothing has been measured.
    return MATMUL if has_onednn(query.dtype) and not has_amx() else implementation


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

    Probabilities are kept for a backward pass alone. A mask or dropout, which no image tower of MAWS has, is left to
    "sdpa".

    Args:
        query, key, value: `(B, heads, T, head_dim)` of one dtype, which under autocast is autocast's; there may be
            fewer queries than keys.

    Returns:
        `(B, T, heads, head_dim)` and None.
    """
    if attention_mask is not None or dropout:
        fused = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return fused(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _MatmulAttention.apply(query, key, value, scaling), None
    attended = _attend(*(tensor.flatten(0, 1) for tensor in (query, key, value)), scaling)
    return attended.unflatten(0, query.shape[:2]).transpose(1, 2), None


class _MatmulAttention(torch.autograd.Function):
    """Heads are copied together first: products of strided matrices are up to twice as slow on CPUs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        batch = query.shape[:2]
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        probabilities = query.new_empty(*query.shape[:2], key.shape[1])
        attended = _attend(query, key, value, scaling, probabilities)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scaling, ctx.batch = scaling, batch
        return attended.unflatten(0, batch).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, probabilities = ctx.saved_tensors
        gradient = gradient.transpose(1, 2).flatten(0, 1)
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for heads in _parts(len(query), probabilities.shape[1:].numel() * probabilities.element_size()):
            part, of_attended = probabilities[heads], gradient[heads]
            torch.bmm(part.mT, of_attended, out=of_value[heads])
            of_scores = of_attended @ value[heads].mT
            torch._softmax_backward_data(of_scores, part, -1, part.dtype, grad_input=of_scores)
            _scaled_product(of_scores, key[heads], ctx.scaling, out=of_query[heads])
            _scaled_product(of_scores.mT, query[heads], ctx.scaling, out=of_key[heads])
        return *(_as_projected(tensor, ctx.batch) for tensor in (of_query, of_key, of_value)), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, probabilities: Tensor | None = None) -> Tensor:
    """What queries `(B * heads, T', head_dim)` read, of that shape; `probabilities` `(B * heads, T', T)` are written.

    As many heads, or queries of one, are taken at a time as a processor's cache holds scores of: what one operation
    has written, the next finds there.
    """
    attended = torch.empty_like(query)
    queries, bytes_of_one = query.shape[1], key.shape[1] * key.element_size()
    for heads, rows in product(_parts(len(query), queries * bytes_of_one), _parts(queries, bytes_of_one)):
        scores = _scaled_product(query[heads, rows], key[heads].mT, scaling)
        weights = torch.softmax(scores, dim=-1, out=scores if probabilities is None else probabilities[heads, rows])
        torch.bmm(weights, value[heads], out=attended[heads, rows])
    return attended


def _parts(count: int, bytes_of_one: int) -> list[slice]:
    """Slices of equal length, each of as many as the cache holds, if it holds one."""
    parts = -(-count * bytes_of_one // CACHED_BYTES) or 1
    size = -(-count // parts) or 1
    return [slice(start, start + size) for start in range(0, count, size)]


def _as_projected(heads: Tensor, batch: torch.Size) -> Tensor:
    """`(B * heads, T, head_dim)` -> `(B, heads, T, head_dim)` in the memory order of the projection that it came from.

    Three products and sums read each gradient of a projection, and each would make that copy.
    """
    return heads.unflatten(0, batch).transpose(1, 2).contiguous().transpose(1, 2)


def _scaled_product(left: Tensor, right: Tensor, scaling: float, out: Tensor | None = None) -> Tensor:
    """`scaling * left @ right`, scaled before it is rounded."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scaling, out=out)


ALL_ATTENTION_FUNCTIONS.register(MATMUL, matmul_attention_forward)
