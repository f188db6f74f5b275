"""Pictures that travel inside a page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .records import RecordError

__all__ = ["Picture", "embed_picture"]

LOSSLESS_BYTES = 120_000  # grids of enlarged pixels stay far below; photographs do not
MOST_BYTES = 250_000


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels so that a page does not jump while it loads."""

    uri: str
    width: int
    height: int
    alt: str


def embed_picture(file: Path, alt: str, *, widest: int = 1400) -> Picture:
    """Encodes a picture as WebP, at most `widest` pixels wide, without loss where that is small.

    What is large even with loss becomes narrower, down to 250 kB.

    Raises:
        RecordError: the file is missing or is no picture.
    """
    if not file.is_file():
        raise RecordError(f"{file} is not there yet.")
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(f"{file} cannot be read as a picture ({error}): delete it and repeat the step.") from error
    image = _narrowed(image, widest)
    content = _encode(image, lossless=True)
    if len(content) > LOSSLESS_BYTES:
        content = _encode(image, quality=85)
    while len(content) > MOST_BYTES:
        image = _narrowed(image, round(0.7 * image.width))
        content = _encode(image, quality=85)
    return Picture(f"data:image/webp;base64,{base64.b64encode(content).decode()}", image.width, image.height, alt)


def _narrowed(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _encode(image: Image.Image, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", method=4, **how)
    return file.getvalue()
