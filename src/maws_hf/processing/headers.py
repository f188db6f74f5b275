"""What an image file says about itself, read before a single pixel is decompressed.

Nothing here decodes; every loop is bounded, so that a hostile header costs milliseconds. Functions raise
`ValueError` with the reason, and leave it to `maws_hf.processing.decode` to say which image it was.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

# Bounds no honest writer comes near: cameras write some tens of segments, encoders some thousand chunks of
# 8 kB, progressive scripts ten to twenty scans. Each bound stops a file that is small to store and slow to read.
MAX_JPEG_SEGMENTS = 1024
MAX_JPEG_SCANS = 100
MAX_JPEG_JUNK_BYTES = 65_536
MAX_PNG_CHUNKS = 65_536
MAX_PNG_TEXT_BYTES = 4 * 1024 * 1024
MAX_GIF_BLOCKS = 65_536
MAX_GIF_EXTENSIONS = 1000
MAX_GIF_COMMENT_BYTES = 65_536
MAX_TIFF_ENTRIES = 4096
MAX_TIFF_NUMBERS = 1 << 20  # a picture at the limits, stored row by row, has half as many
MAX_TIFF_SURPLUS = 65_536

ORIENTATION_TAG = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_BYTES_OF_TYPE = {**dict.fromkeys((1, 2, 6, 7), 1), **dict.fromkeys((3, 8), 2), **dict.fromkeys((4, 9, 11, 13), 4)}
_BYTES_OF_TYPE |= dict.fromkeys((5, 10, 12, 16, 17, 18), 8)
_OFFSET_TYPES = {3: "H", 4: "I", 13: "I", 16: "Q"}
_DIRECTORY_TAGS = (0x8769, 0x8825, 0xA005)  # of EXIF, GPS and interoperability
# Markers of which libjpeg decodes nothing, and of which readers disagree whether a payload follows.
_UNKNOWN_MARKERS = {*range(0x02, 0xC0), 0xC8, *range(0xF0, 0xFE)}


def image_format(data: bytes) -> str | None:
    """Name of the container by its first bytes, as Pillow spells it, or None if it is not one we accept."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return None


@dataclass(frozen=True)
class JpegHeader:
    """The part of a JPEG in front of its first scan.

    `plain` is true for what every decoder reads the same way: 8-bit baseline or progressive, grey or three
    colours, no stray bytes; `in_one_run` if one scan without restart markers has all rows, from top to bottom.
    `height_at` is where the file has its height, two bytes, high byte first. `exif` is the payload of the EXIF
    segments, empty if there are none.
    """

    height: int
    width: int
    height_at: int
    plain: bool
    in_one_run: bool
    exif: bytes


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the marker segments of a JPEG (ITU T.81, annex B) up to its first scan.

    Raises:
        ValueError: no frame or no scan in the file, a marker that no decoder knows, more segments, scans or stray
            bytes than any honest file, or what `check_directories` refuses.
    """
    position, junk, exif, frame, restarts, others = 2, 0, [], None, False, b""
    for _ in range(MAX_JPEG_SEGMENTS):
        start = data.find(b"\xff", position)
        junk += start - position
        if start < 0 or start + 4 > len(data):
            raise ValueError("the JPEG ends before its first scan")
        if junk > MAX_JPEG_JUNK_BYTES:
            raise ValueError(f"more than {MAX_JPEG_JUNK_BYTES} stray bytes between the segments of the JPEG")
        marker = data[start + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # fill bytes and markers without a payload
            position = start + (1 if marker == 0xFF else 2)
            junk += 1
            continue
        if marker in _UNKNOWN_MARKERS:
            raise ValueError(f"a segment of the JPEG has the marker {marker:#04x}, which no decoder knows")
        (length,) = struct.unpack_from(">H", data, start + 2)
        payload, position = start + 4, start + 2 + max(length, 2)
        if marker == 0xDA:
            block = b"".join(exif)
            check_directories(block)
            check_directories(others)
            return _close_jpeg_header(data, payload, position, frame, restarts, junk, block)
        if marker == 0xDD:
            restarts = data[payload : payload + 2] != b"\0\0"
        if marker == 0xE1 and data[payload : payload + 6] == _EXIF_PREFIX:
            exif.append(data[payload + 6 : position])
        if marker == 0xE2 and data[payload : payload + 4] == b"MPF\0":
            others = data[payload + 4 : position]  # where the file's other pictures are, in a directory as of TIFF
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if length < 8 or payload + 6 > len(data):
                raise ValueError("the frame header of the JPEG is cut short")
            frame = (payload + 1, marker, *struct.unpack_from(">BHHB", data, payload))
    raise ValueError(f"more than {MAX_JPEG_SEGMENTS} segments in front of the first scan of the JPEG")


def _close_jpeg_header(
    data: bytes, payload: int, scan: int, frame: tuple[int, ...] | None, restarts: bool, junk: int, exif: bytes
) -> JpegHeader:
    if frame is None:
        raise ValueError("the JPEG has no frame header")
    height_at, marker, precision, height, width, components = frame
    # One interleaved scan decodes in one pass. Otherwise every scan visits the whole picture again, and a few
    # bytes can ask for that: counting markers (0xFF is always stuffed in entropy-coded data) bounds the work.
    in_one_scan = marker in (0xC0, 0xC1) and data[payload : payload + 1] == bytes([components])
    if not in_one_scan and data.count(b"\xff\xda", scan) >= MAX_JPEG_SCANS:
        raise ValueError(f"more than {MAX_JPEG_SCANS} scans in the JPEG")
    plain = marker in (0xC0, 0xC1, 0xC2) and precision == 8 and components in (1, 3) and junk == 0
    return JpegHeader(height, width, height_at, plain, in_one_scan and not restarts, exif)


def check_directories(block: bytes) -> None:
    """Add up what the entries of a TIFF file, or of an EXIF block, hold.

    All entries may point at the same bytes, and whoever opens the file makes a copy for each. Walked are the
    directories that Pillow and libtiff read for the first picture: the first one, and those of EXIF, GPS and
    interoperability. What lies outside the block is passed over: nobody can read it.

    Raises:
        ValueError: more entries or numbers than any honest file has, or more bytes in them than there are.
    """
    for _ in range(8):  # some writers put it twice
        block = block.removeprefix(_EXIF_PREFIX)
    if block.startswith(_EXIF_PREFIX):
        raise ValueError("the EXIF block begins with its name more than 8 times")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])  # the number behind it may be wrong: Pillow reads on
    if order is None or len(block) < 8:
        return
    places, entries, size, numbers = [*struct.unpack_from(order + "I", block, 4)], 0, 0, 0
    while places:
        start = places.pop()
        count = struct.unpack_from(order + "H", block, start)[0] if start + 2 <= len(block) else 0
        count = min(count, (len(block) - start - 2) // 12)
        entries += 1 + count
        if entries > MAX_TIFF_ENTRIES:
            raise ValueError(f"more than {MAX_TIFF_ENTRIES} entries in the directories of the TIFF or EXIF data")
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, offset = struct.unpack_from(order + "HHII", block, entry)
            length = values * _BYTES_OF_TYPE.get(kind, 0)
            place = offset if length > 4 else entry + 8
            if place + length > len(block):
                continue
            size += length
            numbers += values if kind not in (1, 2, 7) else 0  # those stay bytes; of numbers each is an object
            if tag in _DIRECTORY_TAGS and kind in _OFFSET_TYPES and length:
                places += struct.unpack_from(order + _OFFSET_TYPES[kind], block, place)
    if size > len(block) + MAX_TIFF_SURPLUS or numbers > MAX_TIFF_NUMBERS:
        raise ValueError(
            f"{size} bytes and {numbers} numbers in TIFF or EXIF entries, more than {len(block)} bytes hold"
        )


def check_png_chunks(data: bytes) -> tuple[int, int]:
    """Walk the chunks of a PNG, inflate its compressed texts within a fixed budget, return (height, width).

    Raises:
        ValueError: no header chunk, more chunks than any honest file, or texts that inflate beyond the budget.
    """
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise ValueError("the PNG has no header chunk")
    width, height = struct.unpack_from(">II", data, 16)
    position, budget = 8, MAX_PNG_TEXT_BYTES
    for _ in range(MAX_PNG_CHUNKS):
        if position + 8 > len(data):
            return height, width  # a missing end is the decoder's to judge: it knows whether pixels are missing
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            budget -= _inflated_size(kind, data[position + 8 : position + 8 + length], budget)
            if budget < 0:
                raise ValueError(f"the texts of the PNG inflate to more than {MAX_PNG_TEXT_BYTES} bytes")
        position += 12 + length
    raise ValueError(f"more than {MAX_PNG_CHUNKS} chunks in the PNG")


def _inflated_size(kind: bytes, payload: bytes, limit: int) -> int:
    """Bytes that the compressed part of a text chunk inflates to, counted up to `limit` + 1."""
    _, _, rest = payload.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":  # stored uncompressed: the file's own size bounds it
            return 0
        compressed = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    else:
        compressed = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(compressed, limit + 1))
    except zlib.error:
        return 0  # a broken text harms nobody: the decoder ignores or refuses it


def check_gif_blocks(data: bytes) -> None:
    """Walk the blocks in front of the first picture of a GIF, where Pillow puts comments together piece by piece.

    Raises:
        ValueError: more blocks, extensions or comments than any honest file.
    """
    flags, at = data[10] if len(data) > 10 else 0, 13
    at += 3 << (flags & 7) + 1 if flags & 0x80 else 0
    blocks = extensions = comments = 0
    while at < len(data) and data[at] not in b",;":  # a picture, or the end
        if data[at] == 0x21:
            label, start = data[at + 1 : at + 2], at + 2
            end, count = _end_of_gif_blocks(data, start, label)
            extensions += 1
            comments += end - start if label == b"\xfe" else 0
            at, blocks = end, blocks + count
        else:  # a stray byte
            at, blocks = at + 1, blocks + 1
        if blocks > MAX_GIF_BLOCKS or extensions > MAX_GIF_EXTENSIONS or comments > MAX_GIF_COMMENT_BYTES:
            raise ValueError(
                f"more than {MAX_GIF_BLOCKS} blocks, {MAX_GIF_EXTENSIONS} extensions or {MAX_GIF_COMMENT_BYTES} bytes "
                "of comments in front of the first picture of the GIF"
            )


def _end_of_gif_blocks(data: bytes, at: int, label: bytes) -> tuple[int, int]:
    """Where an extension ends, and how many blocks it has. Pillow reads on behind an empty block if it is the first
    one, or the one behind the name of Netscape's: what it takes for a comment must be one here."""
    first = data[at + 1 : at + 1 + data[at]] if at < len(data) else b""
    passed = 0 if label == b"\xfe" else 2 if label == b"\xff" and first.startswith(b"NETSCAPE2.0") else 1
    count = 0
    while at < len(data) and (data[at] or count < passed) and count <= MAX_GIF_BLOCKS:
        at, count = at + 1 + data[at], count + 1
    return at + 1, count


def read_webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the canvas of a WebP file (RFC 9649, sections 2.5 to 2.7).

    Read here because Pillow allocates the whole canvas as soon as it opens the file.

    Raises:
        ValueError: the first chunk is none of the three that may come first, or it is cut short.
    """
    kind = data[12:16]
    if len(data) >= 30:
        if kind == b"VP8X":
            width = int.from_bytes(data[24:27], "little") + 1
            return int.from_bytes(data[27:30], "little") + 1, width
        if kind == b"VP8L" and data[20] == 0x2F:
            bits = int.from_bytes(data[21:25], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return height & 0x3FFF, width & 0x3FFF
    raise ValueError("the first chunk of the WebP is broken")


def exif_orientation(exif: bytes) -> int:
    """Orientation 1 to 8 from an EXIF block (a TIFF directory, with or without its "Exif" prefix).

    Whatever is missing, broken or out of range means 1, the picture as it is stored.
    """
    block = exif.removeprefix(_EXIF_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == ORIENTATION_TAG and kind in (3, 4):  # SHORT by the standard, LONG by some writers
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), block, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory points outside of its block
        pass
    return 1
