"""Bad images of this rank: written down whenever one is met, and their rate judged."""

import math
from typing import Any

from .records import JsonLines

SKIP_WINDOW = 10_000  # images over which the rate of bad ones is judged
MOST_IN_A_ROW = 1000  # for one reader; a good image must come from time to time for the rate to be judged at all
TOLERATED_BAD_IMAGES = 10  # so many different ones never end a run: in a small folder a single one is a high rate


def most_in_a_row(max_rate: float) -> int:
    """Bad images that end a reader's stream: if `max_rate` allows more than that, a whole window of so many."""
    return max(MOST_IN_A_ROW, math.ceil(max_rate * SKIP_WINDOW))


def note_skipped(
    window: list[dict[str, Any]], step: int, recent: list[list], file: JsonLines, max_rate: float
) -> tuple[int, bool]:
    """An update's skipped images, and whether the last `SKIP_WINDOW` hold more than `max_rate` of them.

    Args:
        window: the batches of the update.
        recent: [images, keys of skipped ones] of each of the last updates; changed in place.
    """
    skipped = [record for batch in window for record in batch["skipped"]]
    for record in skipped:
        file.append({"step": step, **record})
    recent.append([sum(len(batch["keys"]) for batch in window), [record["key"] for record in skipped]])
    while sum(images for images, _ in recent[1:]) >= SKIP_WINDOW:
        recent.pop(0)
    bad = [key for _, keys in recent for key in keys]
    images = len(bad) + sum(images for images, _ in recent)  # more than the window if the updates are large
    return len(skipped), len(bad) > max_rate * max(SKIP_WINDOW, images) and len(set(bad)) >= TOLERATED_BAD_IMAGES


def too_many_bad_images(recent: list[list], file: JsonLines, max_rate: float, *, here: bool) -> str:
    """Why the run ends; `here`: the bad images are this rank's."""
    images, bad = sum(images for images, _ in recent), sum(len(keys) for _, keys in recent)
    what = f"{bad} of the last {images + bad} images could not be read (each with its reason: {file.path})"
    return (
        f"{what if here else 'another process could not read too many of its images'}. Repair the data, or allow "
        f"more than {max_rate:.1%} with --max_skip_rate"
    )
