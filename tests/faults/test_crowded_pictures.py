"""Small pictures whose headers would fill the memory or the time of whoever reads them; honest ones beside them."""

import io
import struct

import numpy as np
import pytest
from hostile_pictures import chatty, crowded
from PIL import Image, TiffImagePlugin

from maws_hf.processing import ImageDecodeError, decode_crop, decode_image
from maws_hf.processing.headers import MAX_TIFF_ENTRIES, check_directories


def refusal(data: bytes, **options) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data, **options)
    return caught.value.reason


def picture(height: int = 64, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(form: str, image: Image.Image | None = None, **options) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, form, **options)
    return stream.getvalue()


def rich_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "maker", TiffImagePlugin.IFDRational(72, 1)
    exif.get_ifd(0x8769)[0x927C] = b"notes" * 5000
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif


@pytest.mark.parametrize("backend", ["auto", "pillow"])
@pytest.mark.parametrize("kind", ["tiff", "jpeg", "jpeg-others"])
def test_entries_that_share_their_bytes_are_refused(kind, backend):
    assert "more than" in refusal(crowded(kind, 40, 20_000), backend=backend)
    assert decode_image(crowded(kind, 3, 20), backend=backend).shape == (8, 8, 3)
    with pytest.raises(ImageDecodeError, match="more than"):
        decode_crop(crowded(kind, 40, 20_000), lambda height, width: (0, 0, height, width), backend=backend)


def test_endless_entries_numbers_and_names_are_refused():
    assert f"more than {MAX_TIFF_ENTRIES} entries" in refusal(crowded("tiff", MAX_TIFF_ENTRIES, 1))
    with pytest.raises(ValueError, match="begins with its name"):  # Pillow would copy all that follows each of them
        check_directories(b"Exif\0\0" * 9)
    numbers = b"II*\0" + struct.pack("<IHHHII", 8, 1, 1000, 8, 1 << 21, 22) + bytes(1 << 22)
    with pytest.raises(ValueError, match="2097152 numbers"):
        check_directories(numbers)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_directories_of_exif_and_gps_count_and_may_not_go_round(order):
    head = b"II*\0" if order == "<" else b"MM\0*"
    round_again = head + struct.pack(order + "IHHHII", 8, 2, 0x8769, 4, 1, 8)
    round_again += struct.pack(order + "HHIHHI", 0x8825, 3, 1, 8, 0, 0)
    with pytest.raises(ValueError, match="more than 4096 entries"):
        check_directories(round_again)
    nested = head + struct.pack(order + "IHHHII", 8, 1, 0x8769, 4, 1, 22) + struct.pack(order + "H", 50)
    nested += b"".join(struct.pack(order + "HHII", number, 7, 10_000, 30) for number in range(50)) + bytes(10_000)
    with pytest.raises(ValueError, match="500004 bytes"):
        check_directories(nested)


def test_entries_hidden_in_a_segment_of_an_unknown_kind_are_refused():
    jpeg = crowded("jpeg", 3, 20)
    hidden = jpeg[:2] + b"\xff\xf0" + struct.pack(">H", len(jpeg) - 2) + jpeg[2:]
    assert "marker 0xf0" in refusal(hidden)


def test_strips_that_cover_the_picture_again_and_again_are_refused():
    pixels, side, strips = bytes(64 * 64), 64, 1000
    tags = [(256, 1, side), (257, 1, side), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1), (278, 1, side - 1)]
    tags += [(273, strips, 8 + len(pixels) + 2 + 9 * 12 + 4), (279, 1, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", 9)
    assert "paint the picture again and again" in refusal(head + entries + bytes(4) + struct.pack("<I", 8) * strips)


def test_compressed_strips_that_are_the_same_bytes_again_and_again_are_refused():
    """libtiff would copy each before it decompresses it."""
    strips, packed = 100, b"\7abcdefgh" + bytes(5000)  # a row of eight pixels, and what is never read
    start = 8 + len(packed)
    tags = [(256, 1, 8), (257, 1, strips), (258, 1, 8), (259, 1, 32773), (262, 1, 1), (266, 1, 2), (277, 1, 1)]
    tags += [(273, strips, start + 2 + 10 * 12 + 4), (278, 1, 1), (279, strips, start + 126 + 4 * strips)]
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(tags))
    tiff = b"II*\0" + struct.pack("<I", start) + packed + struct.pack("<H", 10) + entries + bytes(4)
    tiff += struct.pack(f"<{strips}I", *[8] * strips)
    assert "same bytes again and again" in refusal(tiff + struct.pack(f"<{strips}I", *[len(packed)] * strips))
    decode_image(tiff + struct.pack(f"<{strips}I", *[9] * strips))


@pytest.mark.parametrize("shape", [(1, 300, 255), (1, 70_000, 1), (1100, 1, 1), (1100, 0, 0), (500, 1, 200)])
def test_a_gif_with_endless_comments_is_refused(shape):
    assert "of comments in front of the first picture" in refusal(chatty(*shape))


@pytest.mark.parametrize("before", [b"\x21\xf9\0", b"\x21\xff\x0bNETSCAPE2.0\0"])
def test_a_comment_counts_that_only_pillow_sees(before):
    """It reads on behind an empty block, where others would see an extension that the comment is part of."""
    gif = chatty(1, 300, 255)
    start = gif.index(b"\x21\xfe")
    assert "of comments" in refusal(gif[:start] + before + b"\1\x21\0" + gif[start:])


def test_stray_bytes_in_a_gif_are_bounded_and_honest_blocks_pass():
    gif = chatty(3, 20, 255)
    start = gif.index(b"\x21\xfe")
    assert "65536 blocks" in refusal(gif[:start] + b"a" * 70_000 + gif[start:])
    assert decode_image(gif).shape == (8, 8, 3)
    assert decode_image(chatty(1, 10_000, 255, label=0xFF)).shape == (8, 8, 3)  # a colour profile, say


def test_of_an_animation_only_what_stands_before_its_first_picture_counts():
    frames = [picture().quantize(8), *(picture().rotate(turn).quantize(8) for turn in range(1, 30))]
    gif = encoded("GIF", frames[0], save_all=True, append_images=frames[1:], loop=0, comment=b"turning" * 30)
    assert decode_image(gif).shape == (64, 48, 3)
    later = gif[:-1] + (b"\x21\xfe" + b"\x01a" * 70_000 + b"\0") * 2 + gif[-1:]
    np.testing.assert_array_equal(decode_image(later), decode_image(gif))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"exif": rich_exif()}),
        ("JPEG", {"exif": b"Exif\0\0" + rich_exif().tobytes()}),
        ("MPO", {"save_all": True, "append_images": [picture()], "exif": rich_exif()}),
        ("PNG", {"exif": rich_exif()}),
        ("WEBP", {"exif": rich_exif()}),
        ("TIFF", {"exif": rich_exif(), "icc_profile": b"profile" * 30_000}),
        ("TIFF", {"save_all": True, "append_images": [picture()] * 20, "compression": "tiff_lzw"}),
        ("TIFF", {"tiffinfo": {278: 1}, "compression": "tiff_adobe_deflate"}),  # a strip for every row
    ],
)
def test_honest_entries_pass(form, options):
    assert decode_image(encoded(form, **options)).shape == (64, 48, 3)
