"""Pictures to try the models with, taken from a data set."""

import hashlib
from pathlib import Path

from datasets import IterableDataset
from PIL import Image

from maws_hf.data.samples import random_rows
from maws_hf.data.sources import find_image_column
from maws_hf.processing.decode import ImageDecodeError, decode_image
from maws_hf.whole_files import write_atomically

from .pictures import encoded

LARGEST = 512  # pixels


def write_examples(dataset: IterableDataset, count: int, folder: Path) -> list[Path]:
    """PNGs of so many pictures, chosen at random and always the same; damaged ones are left out.

    Args:
        dataset: from `open_stream`.
        folder: of the files, which are named by what they hold.
    """
    column, files = find_image_column(dataset), []
    for row in random_rows(dataset, count, seed=0, among=50 * count):
        image = row[column]
        data = image.get("bytes") if isinstance(image, dict) else image
        try:
            picture = Image.fromarray(decode_image(data or b""))
        except ImageDecodeError:
            continue
        picture.thumbnail((LARGEST, LARGEST))
        content = encoded(picture)
        file = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        files.append(file)
    return files
