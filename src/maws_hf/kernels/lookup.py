"""Rows of a table for many askers, whose gradients are summed without a rounding in between.

In bfloat16 torch's forms of it differ. On CPUs an index and an embedding round after every addition, `index_select`
rounds once and is the fastest. On GPUs, as torch's sources have it, `index_select` adds in bfloat16, in any order, and
an embedding in float32.
"""

import torch.nn.functional as F
from torch import Tensor


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """`table[ids]`: `(N, D)` and `(B, T)` -> `(B, T, D)`."""
    if table.device.type == "cpu":
        return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)
    return F.embedding(ids, table)


__all__ = ["look_up"]
