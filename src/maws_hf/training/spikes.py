"""Losses that jump: told with the images they came with, and left out if asked.

The paper says nothing of spikes; rule and defaults are ours.
"""

import math
import statistics

WINDOW = 100  # accepted losses whose median is the measure
LEAST = 20  # so many are needed before anything is called a spike
MOST_SKIPPED = 3  # in a row: a loss that stays high is no spike, and a run must not stand still


def is_spike(loss: float, recent: list[float], factor: float) -> bool:
    """Whether a loss is more than `factor` times the median of the last ones; a falling loss never is.

    Args:
        recent: accepted losses, oldest first; with fewer than `LEAST` there is no spike.
        factor: 0 finds none.
    """
    if not factor or len(recent) < LEAST or not math.isfinite(loss):
        return False
    median = statistics.median(recent[-WINDOW:])
    return loss > factor * median > 0


def remember(loss: float, recent: list[float]) -> None:
    """Appends to `recent`, in place, and forgets what lies beyond the window."""
    recent.append(loss)
    del recent[:-WINDOW]
