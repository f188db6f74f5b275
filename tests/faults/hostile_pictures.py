"""Whole pictures of every format and kind that the decoder accepts, small enough to be damaged a thousand times."""

import io
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin

SIDES = (23, 31)


@cache
def pictures() -> dict[str, bytes]:
    """Files by name; the name starts with the format."""
    rng = np.random.default_rng(5)
    ramp = np.add.outer(np.arange(SIDES[0]) * 5, np.arange(SIDES[1]) * 3)[:, :, None] + np.arange(3) * 40
    noise = rng.integers(0, 12, (*SIDES, 3))
    colour = Image.fromarray(((ramp + noise) % 256).astype(np.uint8))
    clear = colour.copy()
    clear.putalpha(Image.fromarray(rng.integers(0, 256, SIDES, dtype=np.uint8)))
    deep = Image.fromarray(rng.integers(0, 65_536, SIDES, dtype=np.uint16))
    floats = Image.fromarray(rng.random(SIDES, dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": _file(colour, "JPEG", exif=exif),
        "jpeg-progressive": _file(colour, "JPEG", progressive=True),
        "jpeg-grey": _file(colour.convert("L"), "JPEG", quality=30),
        "jpeg-cmyk": _file(colour.convert("CMYK"), "JPEG"),
        "jpeg-restarts": _file(colour, "JPEG", restart_marker_blocks=1, optimize=True),
        "png": _file(colour, "PNG", exif=exif, icc_profile=b"\0" * 200),
        "png-alpha": _file(clear, "PNG", pnginfo=_texts()),
        "png-palette": _file(colour.quantize(16), "PNG", transparency=3),
        "png-16": _file(deep, "PNG"),
        "png-bits": _file(colour.convert("1"), "PNG"),
        "webp": _file(colour, "WEBP", exif=exif),
        "webp-lossless": _file(clear, "WEBP", lossless=True),
        "webp-animation": _file(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)]),
        "gif": _file(colour.quantize(32), "GIF"),
        "gif-animation": _file(colour.quantize(8), "GIF", save_all=True, append_images=[colour.rotate(5)], loop=0),
        "bmp": _file(colour, "BMP"),
        "bmp-palette": _file(colour.quantize(200), "BMP"),
        "tiff": _file(colour, "TIFF", exif=exif),
        "tiff-lzw": _file(colour, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": _file(clear, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-16": _file(deep, "TIFF", compression="packbits"),
        "tiff-float": _file(floats, "TIFF"),
    }


def _texts() -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a picture" * 20, zip=True)
    texts.add_itxt("Author", "nobody" * 20, "en", "Author", zip=True)
    return texts


def _file(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
