"""Whole pictures of every format and kind that the decoder accepts, small enough to be damaged a thousand times."""

import io
import struct
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


def crowded(kind: str, entries: int, payload: int) -> bytes:
    """A small picture with a directory of entries that all point at the same bytes, of which readers make copies.

    Args:
        kind: "tiff"; "jpeg" for its EXIF block, "jpeg-others" for the list of its other pictures.
    """
    picture = Image.new("L", (8, 8))
    if kind == "tiff":
        values = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
        return _directory(values, entries, payload, bytes(64))
    jpeg = _file(picture, "JPEG")
    name, marker = (b"Exif\0\0", 0xE1) if kind == "jpeg" else (b"MPF\0", 0xE2)
    block = _directory([], entries, payload, b"")
    pieces = [name + block[start : start + 60_000] for start in range(0, len(block), 60_000)]
    segments = [struct.pack(">BBH", 0xFF, marker, 2 + len(piece)) + piece for piece in pieces]
    return jpeg[:2] + b"".join(segments) + jpeg[20:]  # without JFIF, whose resolution would be taken for EXIF's


def chatty(extensions: int, blocks: int, size: int, label: int = 0xFE) -> bytes:
    """A small GIF with so many comments, of so many blocks of so many bytes; or other extensions."""
    gif = _file(Image.new("L", (8, 8)), "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1)
    extension = bytes([0x21, label]) + (bytes([size]) + b"a" * size) * blocks + b"\0"
    return gif[:start] + extension * extensions + gif[start:]


def some_crowd(rng: np.random.Generator) -> bytes:
    """Of either kind, from a few entries to more than are read."""
    kind = ("tiff", "jpeg", "jpeg-others", "gif")[rng.integers(4)]
    if kind == "gif":
        extensions, blocks, size = (int(2 ** rng.uniform(0, most)) for most in (11, 7, 8))
        return chatty(extensions, blocks, size, int(rng.choice([0xFE, 0xFF, 0xF9])))
    entries, payload = (int(2 ** rng.uniform(0, most)) for most in (13, 16))
    return crowded(kind, entries, min(payload, 5000) if kind == "jpeg-others" else payload)


def _directory(values: list[tuple[int, int]], entries: int, payload: int, pixels: bytes) -> bytes:
    start, count = 8 + len(pixels), len(values) + entries
    place = start + 2 + 12 * count + 4
    packed = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values]
    packed += [struct.pack("<HHII", 1000 + number, 7, payload, place) for number in range(entries)]
    head = b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", count)
    return head + b"".join(packed) + b"\0" * (4 + payload)


def _texts() -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a picture" * 20, zip=True)
    texts.add_itxt("Author", "nobody" * 20, "en", "Author", zip=True)
    return texts


def _file(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
