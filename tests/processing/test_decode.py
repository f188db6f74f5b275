"""The decoder accepts what it documents, refuses the rest with a reason, and changes nothing global."""

import contextlib
import io
import json
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from maws_hf.processing import DecodeLimits, ImageDecodeError, decode_crop, decode_image
from maws_hf.processing import decode as decode_module
from maws_hf.processing.headers import JpegHeader, read_jpeg_header, read_webp_size

BACKENDS = ["pillow", "simplejpeg"]
ROW = [0, 1, 50, 128, 200, 255]


@pytest.fixture(autouse=True)
def _skip_without_simplejpeg(request):
    if "simplejpeg" in request.node.name:
        pytest.importorskip("simplejpeg")


def encode(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colour waves with grain: what JPEG is made for, and no symmetry that could hide a flip."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 17 + c) * np.cos(y / 11 + 2 * c) for c in range(3)]
    grain = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return np.clip(np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


def refusal(data: bytes, **options) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data, key="shard-7/cat.jpg", **options)
    assert str(caught.value) == f"shard-7/cat.jpg: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    return caught.value.reason


# --- every mode has the documented result --------------------------------------------------------------------


def grey_rgb(values) -> np.ndarray:
    return np.repeat(np.array([values], dtype=np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_8_bit_grey_becomes_three_equal_channels(form):
    np.testing.assert_array_equal(decode_image(encode(np.uint8([ROW]), form)), grey_rgb(ROW))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_1_bit_becomes_black_and_white(form):
    bits = Image.fromarray(np.uint8([[0, 255, 255, 0, 255]])).convert("1")
    np.testing.assert_array_equal(decode_image(encode(bits, form)), grey_rgb([0, 255, 255, 0, 255]))


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("WEBP", {"lossless": True})],
)
def test_rgb_comes_out_as_stored(form, options):
    pixels = decode_image(encode(photo(5, 9), form, **options))
    np.testing.assert_array_equal(pixels, photo(5, 9))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_palette_colours_are_looked_up():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    image.putdata([1, 0, 2])
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        assert decode_image(encode(image, form)).tolist() == [[[200, 100, 0], [10, 20, 30], [7, 7, 7]]]


def test_alpha_is_composited_on_white_with_exact_rounding():
    alpha = np.arange(256).reshape(16, 16)
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :, :3] = [255, 60, 0]
    rgba[:, :, 3] = alpha
    expected = [np.floor((c * alpha + 255 * (255 - alpha)) / 255 + 0.5) for c in (255, 60, 0)]
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = decode_image(encode(rgba, form, **options))
        np.testing.assert_array_equal(pixels, np.stack(expected, axis=-1).astype(np.uint8))


def test_colour_hidden_under_full_transparency_never_shows():
    hidden = np.uint8([[[255, 0, 0, 0], [0, 0, 0, 0]]])
    assert (decode_image(encode(hidden, "PNG")) == 255).all()


def test_grey_with_alpha_is_composited_on_white():
    image = Image.fromarray(np.uint8([[[100, 255], [100, 0], [0, 51]]]), "LA")
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), grey_rgb([100, 255, 204]))


def test_palette_transparency_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    for form, transparency in (("PNG", 1), ("PNG", bytes([255, 0])), ("GIF", 1)):
        data = encode(image, form, transparency=transparency)
        assert decode_image(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_the_transparent_colour_of_a_png_becomes_white():
    rgb = encode(np.uint8([[[1, 2, 3], [4, 5, 6]]]), "PNG", transparency=(1, 2, 3))
    assert decode_image(rgb).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    grey = encode(np.uint8([[9, 10]]), "PNG", transparency=10)
    np.testing.assert_array_equal(decode_image(grey), grey_rgb([9, 255]))
    grey16 = encode(np.uint16([[257, 514]]), "PNG", transparency=257)
    np.testing.assert_array_equal(decode_image(grey16), grey_rgb([255, 2]))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(form):
    values = np.uint16([[0, 128, 129, 257, 385, 386, 1023, 32768, 65406, 65407, 65535]])
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 1, 1, 2, 4, 128, 254, 255, 255]]
    np.testing.assert_array_equal(decode_image(encode(values, form)), grey_rgb(expected[0]))


def tiff(values: np.ndarray, bits: int, photometric: int = 1, order: str = "<", tile: int = 0) -> bytes:
    """A one-strip grey TIFF, written by hand: Pillow writes neither big-endian nor white-is-zero samples."""
    raw = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(raw))]
    tags += [(322, tile), (323, tile)] if tile else []
    entries = b"".join(struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", v) for tag, v in tags)
    start = 8 + len(raw)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", start) + raw + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4


def test_big_endian_and_white_is_zero_16_bit_tiffs_are_read_right():
    values = np.array([[0, 257, 25700, 65535]])
    np.testing.assert_array_equal(decode_image(tiff(values.astype(">u2"), 16, order=">")), grey_rgb([0, 1, 100, 255]))
    inverted = decode_image(tiff(values.astype("<u2"), 16, photometric=0))
    np.testing.assert_array_equal(inverted, grey_rgb([255, 254, 155, 0]))


def test_12_bit_tiff_fills_the_whole_range():
    packed = np.uint8([[0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00]])  # the samples 0xFFF, 0, 0x800, 0
    data = bytearray(tiff(packed, 12))
    data[8 + 6 + 2 + 8 : 8 + 6 + 2 + 12] = struct.pack("<I", 4)  # ImageWidth counts samples, not bytes
    np.testing.assert_array_equal(decode_image(bytes(data)), grey_rgb([255, 0, 128, 0]))


def test_32_bit_integers_count_as_16_bit_or_are_refused():
    fits = encode(np.int32([[0, 257, 65535]]), "TIFF")
    np.testing.assert_array_equal(decode_image(fits), grey_rgb([0, 1, 255]))
    for values in ([-1, 5], [0, 65536]):
        assert "outside 0..65535" in refusal(encode(np.int32([values]), "TIFF"))


def test_float_pixels_are_scaled_from_the_unit_interval_or_refused():
    unit = encode(np.float32([[0.0, 0.1, 0.5, 1.0]]), "TIFF")
    np.testing.assert_array_equal(decode_image(unit), grey_rgb([0, 26, 128, 255]))
    for bad in (np.nan, np.inf, -np.inf, -0.01, 1.01, 200.0):
        assert "outside 0..1" in refusal(encode(np.float32([[0.5, bad]]), "TIFF"))


def test_cmyk_jpeg_has_adobe_polarity_and_no_profile():
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, 16:32] = [0, 255, 255, 0]  # magenta and yellow: red
    inks[:, 32:] = [0, 0, 0, 128]
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    for backend in ("pillow", "auto"):
        pixels = decode_image(data, backend=backend).astype(int)
        for columns, colour in ((slice(0, 16), 255), (slice(16, 32), [255, 0, 0]), (slice(32, 48), 127)):
            assert np.abs(pixels[:, columns] - colour).max() <= 3


def test_cmyk_tiff_is_inverted_inks():
    inks = np.uint8([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 51, 102, 0]]])
    expected = [[[255, 255, 255], [0, 255, 255], [0, 0, 0], [255, 204, 153]]]
    assert decode_image(encode(Image.fromarray(inks, "CMYK"), "TIFF")).tolist() == expected


def test_colours_that_are_already_weighted_by_alpha_are_not_weighted_twice():
    values = np.uint8([[[40, 80, 120, 128], [10, 20, 30, 255], [0, 0, 0, 0]]])
    data = encode(Image.fromarray(values, "RGBA"), "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))  # ExtraSamples
    assert data.count(unassociated) == 1
    pixels = decode_image(data.replace(unassociated, associated)).astype(int)
    assert np.abs(pixels - [[[167, 207, 247], [10, 20, 30], [255] * 3]]).max() <= 1


def test_modes_without_a_defined_result_are_refused():
    assert "mode LAB" in refusal(encode(Image.new("LAB", (4, 4)), "TIFF"))


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_of_an_animation_the_first_frame_is_taken(form, options):
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    data = encode(first, form, save_all=True, append_images=[second], **options)
    assert (decode_image(data) == [255, 0, 0]).all()


def test_an_icc_profile_changes_nothing():
    plain, tagged = encode(photo(8, 8), "PNG"), encode(photo(8, 8), "PNG", icc_profile=b"not a profile" * 20)
    assert plain != tagged
    np.testing.assert_array_equal(decode_image(plain), decode_image(tagged))


# --- orientation ----------------------------------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: np.rot90(a[:, ::-1], 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a[:, ::-1], -1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_all_eight_orientations_show_the_same_picture(form, options, orientation):
    upright = photo(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    np.testing.assert_array_equal(decode_image(encode(stored, form, exif=exif, **options)), upright)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("orientation", TURNS)
def test_jpegs_are_turned_as_pillow_turns_them(orientation, backend):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(24, 40), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data, backend=backend), np.asarray(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [3, 4], ids=["short", "long"])
def test_an_orientation_may_be_of_either_length(kind, backend):
    entry = struct.pack("<HHII", 0x0112, kind, 1, 6)
    tagged = encode(photo(8, 12), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4))
    plain = decode_image(encode(photo(8, 12), "JPEG"), backend=backend)
    np.testing.assert_array_equal(decode_image(tagged, backend=backend), np.rot90(plain, -1))


BROKEN_EXIF = {
    "empty": b"Exif\0\0",
    "text": b"Exif\0\0hello world",
    "directory outside": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "directory cut": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "orientation 0": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0",
    "orientation 9": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "orientation of text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_broken_exif_is_ignored(exif, backend):
    plain, tagged = encode(photo(8, 12), "JPEG"), encode(photo(8, 12), "JPEG", exif=exif)
    assert plain != tagged
    np.testing.assert_array_equal(decode_image(tagged, backend=backend), decode_image(plain, backend=backend))


# --- the fast path --------------------------------------------------------------------------------------------


COLOURINGS = [*({"subsampling": s} for s in (0, 1, 2)), {"keep_rgb": True}, {"grey": True}]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "options", [{"subsampling": s} for s in (0, 1, 2)] + [{"keep_rgb": True}, {"grey": True}], ids=str
)
def test_simplejpeg_gives_the_pixels_of_pillow_bit_for_bit(options, progressive, monkeypatch):
    image = Image.fromarray(photo(61, 75))
    options = dict(options)
    if options.pop("grey", False):
        image = image.convert("L")
    data = encode(image, "JPEG", quality=88, progressive=progressive, **options)
    slow = decode_image(data, backend="pillow")

    def forbidden(*args):
        raise AssertionError("a plain JPEG went to Pillow")

    monkeypatch.setattr(decode_module, "_decode_with_pillow", forbidden)
    fast = decode_image(data, backend="simplejpeg")
    np.testing.assert_array_equal(fast, slow)
    assert fast.flags.writeable


def test_without_the_fast_package_auto_uses_pillow_and_insisting_says_what_to_install(monkeypatch):
    monkeypatch.setattr(decode_module, "_import_simplejpeg", lambda: None)
    data = encode(photo(8, 8), "JPEG")
    np.testing.assert_array_equal(decode_image(data), decode_image(data, backend="pillow"))
    with pytest.raises(ImportError, match="pip install"):
        decode_image(data, backend="simplejpeg")


def test_wrong_arguments_are_the_callers_error():
    with pytest.raises(TypeError, match="str, expected bytes"):
        decode_image("/etc/passwd")
    with pytest.raises(ValueError, match="backend is 'opencv'") as caught:
        decode_image(b"", backend="opencv")
    assert not isinstance(caught.value, ImageDecodeError)


# --- parts of pictures ----------------------------------------------------------------------------------------


def damaged_scan(data: bytes) -> bytes:
    """Early in the first rows."""
    at = data.index(b"\xff\xda") + 60
    return data[:at] + b"\xff\x00" * 20 + data[at + 40 :]


def part(data: bytes, *box: int, **options) -> np.ndarray:
    return decode_crop(data, lambda height, width: box, **options)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_the_rows_of_a_part_are_those_of_the_whole_and_the_rows_below_are_not_decoded(subsampling, monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    image, colours = photo(75, 61), "RGB"
    if subsampling == "Gray":
        image, colours = np.ascontiguousarray(image[:, :, :1]), "GRAY"
    data = simplejpeg.encode_jpeg(image, quality=88, colorspace=colours, colorsubsampling=subsampling)
    whole = decode_image(data, backend="pillow")
    decoded = []

    def noting(*args, buffer, **kwargs):
        decoded.append(len(buffer))
        return original(*args, buffer=buffer, **kwargs)

    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", noting)
    for bottom in range(1, 76):
        top = bottom // 3
        crop = part(data, top, 5, bottom - top, 50, backend="simplejpeg")
        np.testing.assert_array_equal(crop, whole[top:bottom, 5:55])
        assert decoded.pop() == min(75, bottom + 8)
        assert not decoded


def with_planted_header() -> bytes:
    """A marker without a payload; whoever takes it for a segment finds the headers of another picture behind that."""
    true, planted = encode(photo(8, 8), "JPEG"), encode(photo(300, 300), "JPEG")
    start = b"\xff\xd8\xff\x01" + true[2:]
    length = int.from_bytes(true[2:4], "big")  # of what looks like a segment
    return start.ljust(4 + length, b"\0") + planted[2:]


def test_no_memory_is_taken_for_pixels_where_a_decoder_finds_another_picture(monkeypatch):
    pytest.importorskip("simplejpeg")
    data = with_planted_header()
    assert refusal(data) in refusal_of_part(data)
    header = read_jpeg_header(data)
    assert (header.height, header.width, header.plain) == (8, 8, False)
    planted = JpegHeader(300, 300, data.rindex(b"\xff\xc0") + 5, plain=True, in_one_run=True, exif=b"")
    monkeypatch.setattr(decode_module, "_header_of_rows", lambda *_: planted)
    assert refusal(data) in refusal_of_part(data), "whatever the header seems to be"


def refusal_of_part(data: bytes) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        part(data, 0, 0, 150, 300)
    return caught.value.reason


OTHER_FILES = {
    "progressive": encode(photo(40, 60), "JPEG", progressive=True),
    "turned": encode(photo(40, 60), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "ink": encode(Image.fromarray(photo(40, 60)).convert("CMYK"), "JPEG"),
    "with restart markers": encode(photo(40, 60), "JPEG", restart_marker_rows=1),
    "damaged": damaged_scan(encode(photo(40, 60), "JPEG")),
    "PNG": encode(photo(40, 60), "PNG"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_part_of_any_other_file_is_cut_out_of_the_whole(name):
    data, sizes = OTHER_FILES[name], []

    def draw(height: int, width: int) -> tuple[int, int, int, int]:
        sizes.append((height, width))
        return 2, 3, 20, 30

    whole = decode_image(data)
    np.testing.assert_array_equal(decode_crop(data, draw), whole[2:22, 3:33])
    assert sizes == [whole.shape[:2]]
    assert (decode_module._header_of_rows(data, DecodeLimits()) is None) == (name != "damaged")


def test_a_part_of_a_file_that_is_cut_short_is_refused_though_its_rows_are_there():
    data = encode(photo(64, 64), "JPEG")
    for cut in (1, 2, 400):
        with pytest.raises(ImageDecodeError, match=r"shard-7/cat\.jpg: .*truncated"):
            part(data[:-cut], 0, 0, 8, 8, key="shard-7/cat.jpg")
    with pytest.raises(ImageDecodeError, match="more than the limit of 4095"):
        part(data, 0, 0, 8, 8, limits=DecodeLimits(max_pixels=4095))
    with pytest.raises(TypeError, match="expected bytes"):
        part("cat.jpg", 0, 0, 8, 8)


def test_a_part_that_memory_does_not_suffice_for_is_refused(monkeypatch):
    def exhausted(*args, **kwargs):
        raise MemoryError

    data = encode(photo(16, 16), "JPEG")
    monkeypatch.setattr(decode_module.np, "empty", exhausted)
    monkeypatch.setattr(decode_module, "_decode", exhausted)
    with pytest.raises(ImageDecodeError, match="not enough memory"):
        part(data, 0, 0, 8, 8)


def test_what_goes_wrong_in_the_choice_of_a_part_is_not_taken_for_a_bad_file():
    for data in (encode(photo(16, 16), "JPEG"), encode(photo(16, 16), "PNG")):
        with pytest.raises(ZeroDivisionError):
            decode_crop(data, lambda height, width: 1 // 0)


# --- refusals -------------------------------------------------------------------------------------------------

NOT_IMAGES = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "text": b"hello world",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
    "fits": b"SIMPLE  =                    T" + b" " * 50,
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40,
    "avif": b"\0\0\0\x20ftypavif" + b"\0" * 40,
    "ico": b"\0\0\1\0\1\0" + b"\0" * 40,
    "bigtiff": b"II+\0\x08\0\0\0" + b"\0" * 40,
}


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4", "jpeg"])
def test_tiff_is_refused_whose_decoder_shows_old_memory_for_what_is_damaged(compression):
    image = Image.fromarray(photo(23, 31))
    data = encode(image if compression == "jpeg" else image.convert("1"), "TIFF", compression=compression)
    assert "compression, in which damage goes unnoticed" in refusal(data)


@pytest.mark.parametrize("data", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_other_formats_never_meet_a_parser(data, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("Pillow was asked"))
    reason = refusal(data)
    assert "not a JPEG, PNG, WebP, GIF, BMP or TIFF" in reason if data else reason == "the file is empty"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_limit_is_the_last_accepted_value(form):
    data = encode(np.zeros((10, 40, 3), np.uint8), form)
    exact = DecodeLimits(max_bytes=len(data), max_pixels=400, max_aspect=4)
    assert decode_image(data, limits=exact).shape == (10, 40, 3)
    assert "399" in refusal(data, limits=DecodeLimits(max_pixels=399))
    assert "aspect limit of 3.9" in refusal(data, limits=DecodeLimits(max_aspect=3.9))
    assert f"{len(data)} bytes" in refusal(data, limits=DecodeLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}], ids=["VP8", "VP8L", "VP8X"])
def test_the_size_of_a_webp_is_that_of_its_picture(options):
    data = bytearray(encode(photo(11, 70), "WEBP", **options))
    assert read_webp_size(bytes(data)) == (11, 70)
    if not options:  # the two highest bits of each side say how large to show it
        data[27] |= 0xC0
        data[29] |= 0x40
        assert read_webp_size(bytes(data)) == (11, 70)


def test_a_jpeg_whose_colours_come_one_after_the_other_is_not_in_one_run():
    whole = encode(photo(16, 16), "JPEG")
    assert read_jpeg_header(whole).in_one_run
    start = whole.index(b"\xff\xda")
    one_colour = b"\xff\xda\0\x08\x01" + whole[start + 5 : start + 7] + b"\0\x3f\0"
    assert not read_jpeg_header(whole[:start] + 3 * one_colour).in_one_run
    with pytest.raises(ValueError, match="more than 100 scans"):
        read_jpeg_header(whole[:start] + 101 * one_colour)


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_png_text(*texts: bytes) -> bytes:
    png = encode(np.zeros((4, 4), np.uint8), "PNG")
    return png[:33] + b"".join(png_chunk(text[:4], text[4:]) for text in texts) + png[33:]


def flat_png(height: int, width: int) -> bytes:
    """A true bomb: all the pixels are there, a thousandth of their size."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(b"\0" * (width + 1)) for _ in range(height)) + rows.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def bombs() -> dict[str, bytes]:
    """Small files that cost a naive reader hundreds of megabytes, or seconds."""
    small = photo(16, 16)
    jpeg, progressive = encode(small, "JPEG"), encode(small, "JPEG", progressive=True)
    gif, bmp = encode(small[:, :, 0], "GIF"), encode(small, "BMP")
    vp8x = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0" + b"\x02\0\0\0" + b"\xdf\x2e\0" * 2 + b"ANIM\x06\0\0\0" + b"\0" * 30
    scan = progressive.rindex(b"\xff\xda")
    megabyte = zlib.compress(b"a" * 1_000_000)
    huge_tiff = tiff(np.zeros((1, 1), np.uint8), 8)
    return {
        "png pixels": flat_png(8000, 8000),
        "png aspect": flat_png(1, 60_000),
        "png one text": with_png_text(b"zTXtComment\0\0" + zlib.compress(b"a" * 100_000_000)),
        "png many texts": with_png_text(*[b"zTXtComment\0\0" + megabyte] * 60),
        "png international text": with_png_text(*[b"iTXtComment\0\1\0en\0\0" + megabyte] * 60),
        "png profile": with_png_text(b"iCCPicc\0\0" + zlib.compress(b"a" * 100_000_000)),
        "png chunks": with_png_text(*[b"juNk"] * 70_000),
        "jpeg pixels": patched(progressive, progressive.index(b"\xff\xc2") + 5, ">HH", 65_500, 65_500),
        "jpeg scans": progressive[:scan] + progressive[scan:-2] * 5000 + b"\xff\xd9",
        "jpeg exif segments": jpeg[:2] + b"\xff\xe1\0\x14Exif\0\0abcdefghijkl" * 80_000 + jpeg[2:],
        "jpeg fill bytes": jpeg[:2] + b"\xff" * 5_000_000 + jpeg[2:],
        "jpeg stray bytes": jpeg[:20] + b"\0" * 5_000_000 + jpeg[20:],
        "gif canvas": patched(gif, 6, "<HH", 65_535, 65_535),
        "gif frame": patched(gif, gif.index(b",\0\0\0\0") + 5, "<HH", 65_535, 65_535),
        "bmp pixels": patched(bmp, 18, "<ii", 40_000, 40_000),
        "webp canvas": vp8x,
        "tiff pixels": patched(patched(huge_tiff, 8 + 1 + 2 + 8, "<I", 50_000), 8 + 1 + 2 + 20, "<I", 50_000),
    }


BOMB_RUNNER = """
import json, resource, sys, time
from pathlib import Path
import maws_hf.processing as processing
from PIL import Image

Image.preinit()
processing.decode_image(Path(sys.argv[2]).read_bytes())  # everything is imported and warm
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    start = time.process_time()
    try:
        processing.decode_image(data)
        reason = "ACCEPTED"
    except processing.ImageDecodeError as error:
        reason = error.reason
    results[path.name] = (reason, time.process_time() - start)
print(json.dumps(results))
"""


@pytest.mark.slow  # the subprocess imports torch
@pytest.mark.skipif(sys.platform != "linux", reason="measures its memory through /proc")
def test_bombs_are_refused_at_once_within_50_megabytes(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, data in bombs().items():
        assert len(data) < 6_000_000
        (folder / name).write_bytes(data)
    honest = tmp_path / "honest.png"
    honest.write_bytes(encode(photo(8, 8), "PNG"))
    (folder / "control").write_bytes(flat_png(7000, 7000))  # within the limits, and too large for this memory
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", BOMB_RUNNER, str(folder), str(honest)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results.pop("control")[0] == "not enough memory to decode it"
    for name, (reason, seconds) in results.items():
        assert "limit" in reason or "more than" in reason, (name, reason)
        assert seconds < 0.25, (name, seconds)  # some ms in truth; the bound is for busy machines


def test_huge_tiff_tiles_are_refused():
    pixels = np.zeros((2, 2), np.uint8)
    assert "TIFF tiles of 30000 x 30000" in refusal(tiff(pixels, 8, tile=30_000))
    assert decode_image(tiff(pixels, 8)).shape == (2, 2, 3)


def test_honest_texts_and_segments_pass():
    text = with_png_text(b"zTXtComment\0\0" + zlib.compress(b"a" * 900_000), b"tEXtAuthor\0me", b"zTXtBad\0\0junk")
    assert decode_image(text).shape == (4, 4, 3)
    jpeg = encode(photo(16, 16), "JPEG")
    commented = jpeg[:2] + b"\xff\xfe\0\x06note" * 500 + jpeg[2:]
    np.testing.assert_array_equal(decode_image(commented), decode_image(jpeg))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_header_with_nothing_behind_it_is_refused(form):
    for keep in (4, 8, 12, 16, 30):
        assert refusal(encode(photo(16, 16), form)[:keep])


# --- truncation -----------------------------------------------------------------------------------------------

SMALL = Image.fromarray(photo(11, 7))
CUT = {
    "jpeg": encode(SMALL, "JPEG"),
    "jpeg progressive": encode(SMALL, "JPEG", progressive=True),
    "jpeg cmyk": encode(SMALL.convert("CMYK"), "JPEG"),
    "png": encode(SMALL, "PNG"),
    "png palette": encode(SMALL.quantize(8), "PNG"),
    "webp": encode(SMALL, "WEBP"),
    "webp lossless": encode(SMALL, "WEBP", lossless=True),
    "gif": encode(SMALL.quantize(8), "GIF"),
    "bmp": encode(SMALL, "BMP"),
    "tiff": encode(SMALL, "TIFF"),
    "tiff deflate": encode(SMALL, "TIFF", compression="tiff_deflate"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_anywhere_is_whole_or_refused(name, backend):
    data = CUT[name]
    whole = decode_image(data, backend="pillow")
    accepted = []
    for length in range(len(data)):
        try:
            pixels = decode_image(data[:length], backend=backend)
        except ImageDecodeError:
            continue
        np.testing.assert_array_equal(pixels, whole)
        accepted.append(length)
    # What may be missing is a trailer: PNG's end and checksum, GIF's terminator, the padding of a BMP row.
    assert len(data) - min(accepted, default=len(data)) <= (22 if "png" in name else 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_photograph_cut_at_many_lengths_is_refused(backend):
    data = encode(photo(120, 160), "JPEG", quality=90)
    for length in range(1, len(data), 37):
        assert refusal(data[:length], backend=backend)


# --- nothing leaks --------------------------------------------------------------------------------------------


def test_pillows_global_settings_and_the_warning_filters_are_untouched():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, list(warnings.filters))
    for data in (*NOT_IMAGES.values(), *CUT.values(), flat_png(1, 60_000)):
        with contextlib.suppress(ImageDecodeError):
            decode_image(data, backend="pillow")
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, list(warnings.filters))
    assert after == before


def noisy_tiff() -> bytes:
    """Pillow warns about this file: a tag whose value lies beyond the end."""
    data = bytearray(tiff(np.zeros((2, 2), np.uint8), 8))
    count_at = 8 + 4
    (count,) = struct.unpack_from("<H", data, count_at)
    data[count_at : count_at + 2] = struct.pack("<H", count + 1)
    return bytes(data[:-4]) + struct.pack("<HHII", 40_000, 3, 500, 10) + b"\0" * 4


def test_pillows_warnings_do_not_leak_also_from_threads():
    with pytest.warns(UserWarning, match="Skipping tag|Truncated File Read"):
        Image.open(io.BytesIO(noisy_tiff())).load()
    filters = list(warnings.filters)
    results = []

    def work():
        results.extend(decode_image(noisy_tiff()).shape for _ in range(50))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(4)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # threads take turns inside the few lines that matter
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert results == [(2, 2, 3)] * 200
    assert caught == []
    assert list(warnings.filters) == filters


def test_whatever_a_codec_raises_becomes_one_error(monkeypatch):
    data = encode(photo(8, 8), "PNG")
    for raised in (MemoryError(), ZeroDivisionError("x"), RecursionError(), AssertionError(), OSError("a\nb")):

        def fail(*args, error=raised, **options):
            raise error

        monkeypatch.setattr(Image, "open", fail)
        assert refusal(data)


def test_the_error_survives_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(ImageDecodeError("a.jpg", "the file is empty")))  # noqa: S301
    assert (error.key, error.reason, str(error)) == ("a.jpg", "the file is empty", "a.jpg: the file is empty")
    assert isinstance(error, ValueError)
