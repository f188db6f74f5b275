"""Attention by plain matrix products, for bfloat16 on CPUs.

torch's fused attention is slow there: matrix products and a softmax take some 0.6 of its time for 197 to 1,370 tokens;
with the backward pass half for the 197 tokens and 16 heads of 32 of MAE's decoder, and 0.6 to 0.8 for up to 2,304 in
heads of 64 or 80. Their scores are rounded to bfloat16, as in transformers' eager attention; the fused one's are
float32. In float32 the fused one is the faster.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .eligibility import has_onednn, has_vector_bfloat16, is_plain

MATMUL = "matmul"
TORCH_SDPA = "torch_sdpa"
# A backward pass needs all probabilities: kept up to MAE's 257 tokens, where that is little, and above made once more.
MOST_KEPT_QUERIES = 320
MOST_TRAINED_KEYS = 4096  # then one head's scores are 32 MiB; torch's fused attention never holds them
NARROWEST_LONG_HEAD = 64  # in 448 pixels' 785 tokens, heads of 32 gained nothing of a step
FEWEST_KEYS = 64  # without a backward pass; below, the fused kernels are as fast
CACHED_BYTES = 1 << 20  # of scores, for each thread; fastest among 1/4 to 4 MiB


def fastest_backend(implementation: str, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The attention backend for what is configured: "matmul" instead of "sdpa" where that is faster.

    torch's "sdpa" is itself a choice among kernels by device and dtype; this is one more of them. "torch_sdpa" is
    torch's choice and nothing else.

    Args:
        implementation: `config._attn_implementation`.
        query, key, value: `(B, heads, T, head_dim)`.
    """
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if implementation != "sdpa" or not slow or not is_plain(query, key, value):
        return implementation
    trained = query.requires_grad or key.requires_grad or value.requires_grad
    if trained and query.shape[2] <= MOST_KEPT_QUERIES:
        return MATMUL
    measured = has_onednn(query.dtype) and has_vector_bfloat16()
    if trained:
        pays = key.shape[2] <= MOST_TRAINED_KEYS and key.shape[3] >= NARROWEST_LONG_HEAD
    else:
        pays = key.shape[2] >= FEWEST_KEYS
    return MATMUL if measured and pays else implementation


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

    Probabilities are kept for a backward pass alone, and of up to 320 queries; of more they are computed once more. A
    mask or dropout, which no image tower's recipe has, is left to "sdpa".

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
    attended = _attend(*map(_heads_together, (query, key, value)), scaling)
    return attended.unflatten(0, query.shape[:2]).transpose(1, 2), None


class _MatmulAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        batch = query.shape[:2]
        query, key, value = map(_heads_together, (query, key, value))
        kept = query.shape[1] <= MOST_KEPT_QUERIES
        probabilities = query.new_empty(*query.shape[:2], key.shape[1]) if kept else None
        attended = _attend(query, key, value, scaling, probabilities)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scaling, ctx.batch = scaling, batch
        return attended.unflatten(0, batch).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, probabilities = ctx.saved_tensors
        gradient = _heads_together(gradient.transpose(1, 2))
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for heads in _parts(len(query), query.shape[1] * key.shape[1] * query.element_size()):
            if probabilities is None:
                part = _probabilities(query[heads], key[heads], ctx.scaling)
            else:
                part = probabilities[heads]
            of_attended = gradient[heads]
            torch.bmm(part.mT, of_attended, out=of_value[heads])
            of_scores = of_attended @ value[heads].mT
            torch._softmax_backward_data(of_scores, part, -1, part.dtype, grad_input=of_scores)
            _scaled_product(of_scores, key[heads], ctx.scaling, out=of_query[heads])
            _scaled_product(of_scores.mT, query[heads], ctx.scaling, out=of_key[heads])
        return *(_as_projected(tensor, ctx.batch) for tensor in (of_query, of_key, of_value)), None


def _heads_together(tensor: Tensor) -> Tensor:
    """`(B, heads, T, head_dim)` -> `(B * heads, T, head_dim)`, each head's matrix in one piece: products of strided
    ones are up to twice as slow on CPUs."""
    return tensor.flatten(0, 1).contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, probabilities: Tensor | None = None) -> Tensor:
    """What queries `(B * heads, T', head_dim)` read, of that shape; `probabilities` `(B * heads, T', T)` are written.

    As many heads, or queries of one, are taken at a time as the processor's caches hold scores of: what one operation
    has written, the next finds there.
    """
    attended = torch.empty_like(query)
    queries, bytes_of_one = query.shape[1], key.shape[1] * key.element_size()
    for heads, rows in product(_parts(len(query), queries * bytes_of_one), _parts(queries, bytes_of_one)):
        place = None if probabilities is None else probabilities[heads, rows]
        weights = _probabilities(query[heads, rows], key[heads], scaling, out=place)
        torch.bmm(weights, value[heads], out=attended[heads, rows])
    return attended


def _probabilities(query: Tensor, key: Tensor, scaling: float, out: Tensor | None = None) -> Tensor:
    """`(heads, T', head_dim)` and `(heads, T, head_dim)` -> `(heads, T', T)`."""
    scores = _scaled_product(query, key.mT, scaling)
    return torch.softmax(scores, dim=-1, out=scores if out is None else out)


def _parts(count: int, bytes_of_one: int) -> list[slice]:
    """Slices of one length, but for the last, and of no more than the threads' caches hold, or else of one."""
    held = max(1, torch.get_num_threads() * CACHED_BYTES // max(1, bytes_of_one))
    parts = -(-count // held)
    size = -(-count // max(1, parts)) or 1
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
ALL_ATTENTION_FUNCTIONS.register(TORCH_SDPA, ALL_ATTENTION_FUNCTIONS["sdpa"])
for _name in (MATMUL, TORCH_SDPA):  # text towers have masks
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, sdpa_mask)
