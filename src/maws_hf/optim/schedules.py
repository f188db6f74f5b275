"""Learning rates as pure functions of the step: a resumed run needs no scheduler state."""

import math


def scaled_learning_rate(base_learning_rate: float, global_batch_size: int) -> float:
    """The linear scaling rule of the MAE recipe: `base * images per update / 256`."""
    return base_learning_rate * global_batch_size / 256


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, max_steps: int, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `final` (MAE, `util/lr_sched.py`).

    Args:
        step: updates done so far, from 0.

    Returns:
        The learning rate of the next update.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
