"""THE gate from untrusted bytes to RGB pixels: training, evaluation and serving all decode here.

What a file holds                          what comes out (uint8 RGB)
-----------------------------------------  ----------------------------------------------------------------
grey, 1 to 8 bit; RGB; palette             the stored values; grey three times
RGB with 16 bits a channel                 the high byte of each value (Pillow's reading)
any transparency (alpha channel, palette   composited on white, round(c * a + 255 * (1 - a)); the colour
  alpha, transparent colour)                 hidden under full transparency never shows
grey, 16 bit                               round(value / 257), so that 65535 is 255; its transparent value
                                             becomes white; 12-bit TIFF round(value * 255 / 4095)
grey, 32-bit or signed integer             as 16 bit when all values are in 0..65535, otherwise refused
grey, float                                round(value * 255) when all are finite and in 0..1, else refused
CMYK and YCCK JPEG, CMYK TIFF              (255 - c) * (255 - k) / 255 as Pillow converts; JPEGs are read with
                                             Adobe's inverted polarity
LAB, HSV and all other modes               refused
animation or several pages                 the first frame
EXIF orientation 2 to 8                    applied; a broken or missing tag means 1; orientation in XMP ignored
ICC profile                                ignored

Refused before any pixel is decompressed: everything that is not JPEG, PNG, WebP, GIF, BMP or TIFF by its
first bytes (so EPS, SVG, FITS, PDF and HTML never meet a parser), more bytes, pixels or a longer aspect than
`DecodeLimits`, texts in a PNG that inflate without end, files made of endless segments or scans, TIFFs with
fax (CCITT) or JPEG compression, of which libtiff leaves what it cannot read as the memory was before. Refused
while decoding: truncation, at any byte that loses a pixel. Damage *inside* a JPEG's entropy-coded data is read as
libjpeg recovers it, as in the original training pipelines.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, get_args

import numpy as np
from PIL import Image

from maws_hf.processing.headers import (
    JpegHeader,
    check_directories,
    check_gif_blocks,
    check_png_chunks,
    exif_orientation,
    image_format,
    read_jpeg_header,
    read_webp_size,
)

DecodeBackend = Literal["auto", "pillow", "simplejpeg"]

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 258, 262, 322, 323
# Colour is stored for every fourth row at the least, and interpolated with the stored row after.
_ROWS_OF_CONTEXT = 8
_SURPLUS = re.compile("Corrupt JPEG data: [0-9]+ extraneous bytes before marker 0xd9")
_TIFF_BYTE_COUNTS = (279, 325)  # of strips, of tiles
_TIFF_COMPRESSION, _TIFF_REFUSED = 259, {2: "CCITT", 3: "group 3", 4: "group 4", 6: "JPEG", 7: "JPEG"}
_ALPHA_MODES = ("LA", "PA", "RGBA")
_OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_GREY16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageDecodeError(ValueError):
    """These bytes are not an image that we accept.

    Attributes:
        key: the name that the caller gave to the bytes.
        reason: one sentence.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(key, reason)  # both, so that the error survives pickling on its way out of a worker
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class DecodeLimits:
    """What is refused from the header alone.

    Attributes:
        max_bytes: length of the file, bytes.
        max_pixels: height times width, of the canvas and of a TIFF tile.
        max_aspect: longer side over shorter side. Resizing 5000 x 1 to a short side of 256 makes 328 MP.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_aspect: float = 100.0

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError for an empty, too large or too long picture."""
        if height < 1 or width < 1:
            raise ValueError(f"the image is empty: {width} x {height} pixels")
        if height * width > self.max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than the limit of {self.max_pixels}")
        if max(height, width) > self.max_aspect * min(height, width):
            raise ValueError(f"{width} x {height} pixels are longer than the aspect limit of {self.max_aspect:g}")


DEFAULT_LIMITS = DecodeLimits()


def decode_image(
    data: bytes,
    *,
    key: str = "<bytes>",
    limits: DecodeLimits = DEFAULT_LIMITS,
    backend: DecodeBackend = "auto",
) -> np.ndarray:
    """Decode an image file that nobody has vouched for.

    Args:
        data: the content of the file. Never a path or an address: those are refused, nothing is opened.
        key: what to call the image in the error.
        limits: what to refuse from the header.
        backend: "auto" reads plain JPEGs with simplejpeg where it is installed (faster, the same pixels bit for
            bit) and the rest with Pillow; "simplejpeg" does the same but insists on the package; "pillow" never
            uses it. All accept and refuse the same files.

    Returns:
        uint8 array (height, width, 3), RGB, C-contiguous and writable.

    Raises:
        ImageDecodeError: the bytes are refused, whatever went wrong below; its `reason` says why.
        TypeError: `data` is not bytes.
        ValueError: unknown `backend`.
        ImportError: `backend="simplejpeg"` without the package.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data is {type(data).__name__}, expected bytes: read the file before decoding it")
    fast_jpeg = _fast_jpeg_decoder(backend)
    try:
        return _decode(bytes(data), limits, fast_jpeg)
    except MemoryError as error:
        raise ImageDecodeError(key, "not enough memory to decode it") from error
    except Exception as error:  # codecs raise whatever they like on hostile bytes; callers see one type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageDecodeError(key, reason) from error


def decode_crop(
    data: bytes,
    draw: Callable[[int, int], tuple[int, int, int, int]],
    *,
    key: str = "<bytes>",
    limits: DecodeLimits = DEFAULT_LIMITS,
    backend: DecodeBackend = "auto",
) -> np.ndarray:
    """A part of the picture, without decoding the rows below it where a JPEG lets us.

    These are the pixels of `decode_image`, bit for bit. Rows are left out by simplejpeg, of sound and upright JPEGs
    in one scan without restart markers; all else is decoded whole. Damage below the part may be overlooked, a missing
    end is not.

    Args:
        draw: (height, width) of the upright picture to the (top, left, height, width) that is wanted of it.
        data, key, limits, backend: see `decode_image`.

    Returns:
        uint8 array (height, width, 3), RGB; may be a view of a larger one.

    Raises:
        What `decode_image` raises, and whatever `draw` does.
    """
    header, image = None, None
    if isinstance(data, bytes) and (fast_jpeg := _fast_jpeg_decoder(backend)):
        header = _header_of_rows(data, limits)
    if header is not None:
        box = draw(header.height, header.width)
        image = _decode_rows(fast_jpeg, data, header, box[0] + box[2])
    if image is None:
        image = decode_image(data, key=key, limits=limits, backend=backend)
        if header is None or image.shape[:2] != (header.height, header.width):
            box = draw(*image.shape[:2])
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def _header_of_rows(data: bytes, limits: DecodeLimits) -> JpegHeader | None:
    """The header of a JPEG whose first rows can be decoded alone; None for other files, also if they are broken."""
    if len(data) > limits.max_bytes or image_format(data) != "JPEG":
        return None
    try:
        header = read_jpeg_header(data)
        limits.check_size(header.height, header.width)
    except ValueError:
        return None
    return header if header.plain and header.in_one_run and exif_orientation(header.exif) == 1 else None


def _decode_rows(simplejpeg: ModuleType, data: bytes, header: JpegHeader, count: int) -> np.ndarray | None:
    """At least the first `count` rows, or None if the JPEG is anything but clean: then `decode_image` has the word."""
    rows, pixels = min(header.height, count + _ROWS_OF_CONTEXT), None
    try:
        shortened = bytearray(data)
        shortened[header.height_at : header.height_at + 2] = rows.to_bytes(2, "big")
        if simplejpeg.decode_jpeg_header(shortened)[:2] != (rows, header.width):
            return None  # it takes other bytes for the header than we do, and would leave some of the rows unwritten
        pixels = np.empty((rows, header.width, 3), np.uint8)  # our own, as simplejpeg's goes with the error
        simplejpeg.decode_jpeg(shortened, colorspace="RGB", strict=True, buffer=pixels)
    except Exception as error:
        # libjpeg tells of the first thing that is wrong: the rest of the scan, if there was nothing before.
        return pixels if _SURPLUS.fullmatch(str(error)) else None
    return pixels


def _fast_jpeg_decoder(backend: str) -> ModuleType | None:
    if backend not in get_args(DecodeBackend):
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(get_args(DecodeBackend))}")
    if backend == "pillow":
        return None
    module = _import_simplejpeg()
    if module is None and backend == "simplejpeg":
        raise ImportError('backend="simplejpeg" needs the package: pip install simplejpeg')
    return module


@cache
def _import_simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _decode(data: bytes, limits: DecodeLimits, fast_jpeg: ModuleType | None) -> np.ndarray:
    if not data:
        raise ValueError("the file is empty")
    if len(data) > limits.max_bytes:
        raise ValueError(f"{len(data)} bytes are more than the limit of {limits.max_bytes}")
    form = image_format(data)
    if form is None:
        raise ValueError(f"not a JPEG, PNG, WebP, GIF, BMP or TIFF file: it starts with {data[:12]!r}")
    if form == "JPEG":
        header = read_jpeg_header(data)
        limits.check_size(header.height, header.width)
        pixels = _decode_fast(fast_jpeg, data) if fast_jpeg and header.plain else None
        if pixels is not None and pixels.shape[:2] == (header.height, header.width):
            return _upright(pixels, exif_orientation(header.exif))
    elif form == "PNG":
        limits.check_size(*check_png_chunks(data))
    elif form == "WEBP":
        limits.check_size(*read_webp_size(data))
    elif form == "TIFF":
        check_directories(data)
    elif form == "GIF":
        check_gif_blocks(data)
    return _decode_with_pillow(data, form, limits)


def _decode_fast(simplejpeg: ModuleType, data: bytes) -> np.ndarray | None:
    """Pixels, or None if the JPEG is anything but clean: then Pillow has the word, so both paths always agree."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except (ValueError, RuntimeError):
        return None


# Pillow warns while it parses. Silencing that changes a list shared by the whole process, so one thread at a
# time may do it; and a process forked meanwhile must not inherit a lock that nobody will release.
_warnings_lock = threading.Lock()


def _renew_lock() -> None:
    global _warnings_lock
    _warnings_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _decode_with_pillow(data: bytes, form: str, limits: DecodeLimits) -> np.ndarray:
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open_and_load(data, form, limits)
    # TIFF is turned by Pillow itself while loading; for the other formats the tag is still to be obeyed.
    exif = image.info.get("exif") if form != "TIFF" else None
    return _upright(_to_rgb(image), exif_orientation(exif or b""))


def _open_and_load(data: bytes, form: str, limits: DecodeLimits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=(form,))
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"it starts like a {form} file but its header is broken") from error
    width, height = image.size
    limits.check_size(height, width)
    if form == "TIFF":
        if refused := _TIFF_REFUSED.get(image.tag_v2.get(_TIFF_COMPRESSION)):
            raise ValueError(
                f"TIFF with {refused} compression, in which damage goes unnoticed: store it as PNG or JPEG"
            )
        tile = [image.tag_v2.get(tag, 1) for tag in (_TIFF_TILE_LENGTH, _TIFF_TILE_WIDTH)]
        if tile[0] * tile[1] > limits.max_pixels:
            raise ValueError(f"TIFF tiles of {tile[1]} x {tile[0]} pixels are more than {limits.max_pixels}")
        painted = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in image.tile)
        if painted > 8 * width * height:  # at most six planes, each of which is painted once
            raise ValueError("the strips of the TIFF paint the picture again and again")
        counts = [count for tag in _TIFF_BYTE_COUNTS for count in image.tag_v2.get(tag, ())]
        if sum(min(count, len(data)) for count in counts) > 8 * len(data):  # a few are wrong in honest files
            raise ValueError("the strips of the TIFF are the same bytes again and again")
    image.load()
    return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 (height, width, 3) by the table above."""
    mode = image.mode
    if mode in (*_GREY16_MODES, "I", "F"):
        grey = _scale_floats(np.asarray(image)) if mode == "F" else _scale_integers(image)
        if image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
            grey = 255 - grey  # white is zero: Pillow inverts the 8-bit files of this kind, and only those
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode in _ALPHA_MODES or (mode in _OPAQUE_MODES and "transparency" in image.info):
        return _on_white(np.asarray(image.convert("RGBA")))
    if mode in _OPAQUE_MODES:
        return np.array(image if mode == "RGB" else image.convert("RGB"))
    raise ValueError(f"pixels of mode {mode} have no defined RGB result")


def _scale_integers(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(f"integer grey values from {low} to {high} are outside 0..65535")
    twelve_bits = image.format == "TIFF" and image.tag_v2.get(_TIFF_BITS) == (12,)
    full = 4095 if twelve_bits else 65_535
    grey = ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def _scale_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN, which min and max pass on
        raise ValueError(f"float grey values from {low:g} to {high:g} are outside 0..1")
    return np.rint(values * 255.0).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    composited = np.empty((*rgba.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(rgba), 64):  # in strips: a small file may hold 50 MP, and 16-bit copies of that are large
        strip = rgba[top : top + 64]
        alpha = strip[:, :, 3:].astype(np.uint16)
        weighted = strip[:, :, :3] * alpha + 255 * (255 - alpha)  # at most 65025, so 16 bits hold it exactly
        composited[top : top + 64] = (weighted + 127) // 255
    return composited


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8), so that the first row is the top of the scene."""
    if orientation >= 5:  # 5 to 8 are stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
