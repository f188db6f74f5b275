"""Losses that jump: told with the images they came with, and left out if asked.

The paper says nothing of spikes; rule and defaults are ours.
"""

import math
import statistics

import numpy as np

WINDOW = 100  # accepted losses whose median is the measure
LEAST = 20  # so many are needed before anything is called a spike
MOST_SKIPPED = 3  # in a row: a loss that stays high is no spike, and a run must not stand still


def highest_loss(recent: list[float], factor: float) -> float:
    """A loss above it is a spike: `factor` times the median of the last ones, in float32, as losses are compared.

    Args:
        recent: accepted losses, oldest first; with fewer than `LEAST` there is no limit.
        factor: 0 for no limit.
    """
    if not factor or len(recent) < LEAST:
        return math.inf
    limit = np.float32(factor * statistics.median(recent[-WINDOW:]))
    return float(limit) if limit > 0 else math.inf


def remember(loss: float, recent: list[float]) -> None:
    """Appends to `recent`, in place, and forgets what lies beyond the window."""
    recent.append(loss)
    del recent[:-WINDOW]
