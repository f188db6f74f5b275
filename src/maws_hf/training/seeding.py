"""Keyed randomness: every random decision has a name, so nothing random needs to be saved to resume exactly."""

import hashlib

import torch


def seed_for(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else (no process, no time, no order)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_step(seed: int, rank: int, step: int, micro_step: int = 0) -> None:
    """Seeds torch's generators for one forward and backward pass: masks, dropout, drop path.

    Ranks, steps and micro-batches all differ, and a step repeated after a restart draws the same numbers again.
    """
    torch.manual_seed(seed_for("step", seed, rank, step, micro_step))
