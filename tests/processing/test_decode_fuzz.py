"""Whatever the bytes, decoding ends in a picture or in one ImageDecodeError, and the same on both paths."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maws_hf.processing import EvalTransform, ImageDecodeError, TrainTransform, decode_crop, decode_image

pytest.importorskip("simplejpeg")


def encode(form: str, orientation: int = 6, **options) -> bytes:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (19, 26, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, form, exif=exif, **options)
    return stream.getvalue()


JPEGS = [encode("JPEG"), encode("JPEG", progressive=True), encode("JPEG", quality=20, subsampling=0)]
UPRIGHT = [encode("JPEG", 1), encode("JPEG", 1, restart_marker_rows=1), encode("JPEG", 1, subsampling=0)]
OTHERS = [encode("PNG"), encode("WEBP"), encode("WEBP", lossless=True), encode("TIFF"), encode("GIF"), encode("BMP")]
MAGIC = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x30\0\0\0WEBPVP8X", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b""]


def outcome(data: bytes, backend: str) -> np.ndarray | None:
    try:
        pixels = decode_image(data, backend=backend)
    except ImageDecodeError:
        return None
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


@st.composite
def damaged(draw, originals: list[bytes]) -> bytes:
    """A real file with a few bytes overwritten, inserted or removed."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        removed = draw(st.integers(0, 8))
        data[at : at + removed] = draw(st.binary(max_size=8))
        if not data:
            break
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(damaged(JPEGS))
def test_damaged_jpegs_are_read_or_refused_alike_on_both_paths(data):
    slow, fast = outcome(data, "pillow"), outcome(data, "simplejpeg")
    assert (slow is None) == (fast is None)
    if slow is not None:
        np.testing.assert_array_equal(slow, fast)


@settings(max_examples=500, deadline=None)
@given(damaged(UPRIGHT), st.integers(1, 19))
def test_the_rows_of_a_damaged_jpeg_are_those_of_the_whole(data, count):
    try:
        rows = decode_crop(data, lambda height, width: (0, 0, min(count, height), width))
    except ImageDecodeError:
        assert outcome(data, "pillow") is None
        return
    whole = outcome(data, "pillow")
    if whole is not None:  # else its damage is below
        np.testing.assert_array_equal(rows, whole[: len(rows)])


@settings(max_examples=500, deadline=None)
@given(damaged(OTHERS))
def test_other_damaged_files_are_read_or_refused(data):
    outcome(data, "pillow")


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_noise_behind_any_signature_is_read_or_refused(magic, noise):
    outcome(magic + noise, "auto")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pictures_of_every_size_reach_the_model_in_the_right_shape(height, width, size, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert EvalTransform(size)(image).shape == (3, size, size)
    boxes = rng.bit_generator.state
    results = []
    for backend in ("pillow", "torch"):
        rng.bit_generator.state = boxes
        results.append(TrainTransform(size, backend=backend)(image, rng).int())
    assert results[0].shape == (3, size, size)
    assert (results[0] - results[1]).abs().max() <= 2
