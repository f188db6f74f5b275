"""What no configuration may ask for: a file of a few bytes must not take the machine before its weights are read."""

from numbers import Integral
from typing import Any

import torch

# Far beyond any model: the paper's largest is 4,096 wide, with an MLP of 16,384 and 32 layers, and has 28,000 classes.
MOST: dict[str, int] = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 17,
    "num_channels": 4096,
    "projection_dim": 1 << 17,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 20,
    "max_text_length": 1 << 24,
}
MOST_PIXELS_A_SIDE = 1 << 16
MOST_PATCHES = 1 << 20
MOST_LABELS = 1 << 20


def refuse_vast_sizes(config: Any) -> None:
    """Raises ValueError naming the first size of a config that is beyond `MOST`."""
    for name, most in MOST.items():
        for field in (name, f"decoder_{name}"):
            value = getattr(config, field, None)
            if isinstance(value, int) and value > most:
                raise ValueError(f"{field}={_shown(value)} is not possible: {most:,} is the most")


def refuse_odd_labels(config: Any, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for labels, a number of labels or a dtype that transformers would stumble over.

    Args:
        kwargs: what was given beside the fields; `num_labels` is there.
    """
    count = kwargs.get("num_labels")
    if count is not None and not (
        isinstance(count, Integral) and not isinstance(count, bool) and 0 <= count <= MOST_LABELS
    ):
        raise ValueError(f"num_labels={_shown(count)} is not possible: it must be a number of at most {MOST_LABELS:,}")
    for field in ("id2label", "label2id"):
        labels = getattr(config, field, None)
        if labels is not None and not isinstance(labels, dict):
            raise ValueError(f"{field}={_shown(labels)} is not possible: it must be a dictionary")
        if len(labels or ()) > MOST_LABELS:
            raise ValueError(f"{field} has {len(labels):,} labels; {MOST_LABELS:,} are the most")
    for number in config.id2label or ():
        if not (isinstance(number, int) or str(number).isdecimal()):
            raise ValueError(f"id2label has the label number {_shown(number)}, which is no whole number")
    if not _is_dtype(getattr(config, "dtype", None)):
        raise ValueError(f"dtype={_shown(config.dtype)} is not possible: it must be one of torch's, such as float32")


def _is_dtype(value: Any) -> bool:
    if isinstance(value, str):
        value = getattr(torch, value.removeprefix("torch."), "none of torch's")
    return value is None or isinstance(value, torch.dtype)


def _shown(value: Any) -> str:
    """In a message; of a number with thousands of digits, how many they are."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"(a number of {value.bit_length()} bits)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["MOST", "MOST_LABELS", "MOST_PATCHES", "MOST_PIXELS_A_SIDE", "refuse_odd_labels", "refuse_vast_sizes"]
