"""Damage to files: bits, bytes, lengths and whole chunks, each damaged file a pure function of its numbers.

`damage` works on any bytes and knows the chunks of the picture formats well enough to repeat, drop and exchange them
and to mend a PNG's checksums, so that the damage reaches the code behind them. `damage_json` works on values.
"""

import copy
import json
import struct
import zlib
from typing import Any

import numpy as np

# Lengths and sizes at which code that adds, multiplies or allocates goes wrong.
SHARP_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
HOSTILE_VALUES = (
    *(None, True, False, 0, 1, 2, 3, -1, -(2**63), 10**6, 10**9, 10**12, 2**63, 10**400, 0.5, 1.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", "gelu", "0", "../../etc/passwd", "\0", "\ud800", "x" * 10_000),
    *([], {}, [0], [0, 0], [16, 16], [16, 16, 16], [None], [[]], ["a", "b"], [1e9, 1], [-16, 16], {"a": {"b": []}}),
)


def damage(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A file with one to four kinds of damage.

    Args:
        data: a whole file.
        others: whole files from which pieces may be put into it.
    """
    kinds = (_flip_bits, _overwrite, _insert, _remove, _cut, _set_number, _set_number, _repeat, _splice, _edit_chunks)
    for _ in range(int(rng.integers(1, 5))):
        kind = kinds[rng.integers(len(kinds))]
        other = others[rng.integers(len(others))]
        data = kind(data, rng, other) or data[:1]
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        data = _mend_png(data)
    return data


def damage_json(value: Any, rng: np.random.Generator) -> Any:
    """A copy of parsed JSON in which one to three values are replaced, removed, renamed or put into each other."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        parent = _some_container(value, rng)
        if not parent:
            continue
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = keys[rng.integers(len(keys))]
        action = rng.random()
        if action < 0.7:
            parent[key] = copy.deepcopy(HOSTILE_VALUES[rng.integers(len(HOSTILE_VALUES))])
        elif action < 0.8:
            del parent[key]
        elif action < 0.9:
            parent[key] = [parent[key]] if rng.random() < 0.5 else {str(key): parent[key]}
        elif isinstance(parent, dict):
            parent[f"{key}{rng.integers(10)}"] = parent.pop(key)
    return value


def damaged_json_file(value: Any, rng: np.random.Generator) -> bytes:
    """As `damage_json`, or as `damage` of its text, or a text that no writer of JSON would make."""
    action = rng.random()
    text = json.dumps(damage_json(value, rng) if action < 0.8 else value).encode()
    if action > 0.95:
        return (nested(rng), text + text, b"", b"\xff\xfe" + text)[rng.integers(4)]
    return damage(text, [text], rng) if action > 0.8 else text


def nested(rng: np.random.Generator) -> bytes:
    """A text that opens brackets without end."""
    return (b"[", b'{"a":')[rng.integers(2)] * int(rng.integers(1, 200_000))


def _flip_bits(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
    return data[:start] + rng.bytes(min(length, len(data) - start)) + data[start + length :]


def _insert(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
    filling = (rng.bytes(length), b"\0" * length, b"\xff" * length)[rng.integers(3)]
    return data[:start] + filling + data[start:]


def _remove(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
    return data[:start] + data[start + length :]


def _cut(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    return data[: int(rng.integers(1, len(data) + 1))]


def _set_number(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    """Some bytes become a number at which things go wrong; most often among the first, where headers are."""
    width = int(rng.choice([1, 2, 4, 8]))
    if len(data) < width:
        return data
    last = len(data) - width
    place = int(rng.integers(min(last, 64) + 1 if rng.random() < 0.5 else last + 1))
    number = SHARP_NUMBERS[rng.integers(len(SHARP_NUMBERS))] % 256**width
    order = "little" if rng.random() < 0.5 else "big"
    return data[:place] + number.to_bytes(width, order) + data[place + width :]


def _repeat(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    start = int(rng.integers(len(data)))
    piece = data[start : start + int(rng.integers(1, 129))]
    return data[:start] + piece * int(rng.integers(2, 20)) + data[start + len(piece) :]


def _splice(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: int(rng.integers(1, len(data) + 1))] + other[int(rng.integers(len(other))) :]


def _edit_chunks(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """One chunk twice, or not at all, or in another's place, or another file's chunk."""
    head, chunks = chunks_of(data)
    if not chunks:
        return data
    place, action = int(rng.integers(len(chunks))), rng.integers(4)
    if action == 0:
        chunks[place:place] = [chunks[place]] * int(rng.integers(1, 40))
    elif action == 1:
        del chunks[place]
    elif action == 2:
        where = int(rng.integers(len(chunks)))
        chunks[place], chunks[where] = chunks[where], chunks[place]
    elif foreign := chunks_of(other)[1]:
        chunks.insert(place, foreign[rng.integers(len(foreign))])
    return head + b"".join(chunks)


def chunks_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """What stands before the chunks, and the chunks with their headers: of PNG, JPEG, WebP and GIF files."""
    if data.startswith(b"\x89PNG"):
        return data[:8], _cut_up(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    if data.startswith(b"RIFF"):
        return data[:12], _cut_up(data, 12, lambda at: 8 + int.from_bytes(data[at + 4 : at + 8], "little"))
    if data.startswith(b"\xff\xd8"):
        return data[:2], _cut_up(data, 2, lambda at: 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
    if data.startswith(b"GIF8"):
        pieces = data[13:].split(b"\0")  # blocks end with a zero byte: near enough
        return data[:13], [piece + b"\0" for piece in pieces]
    return b"", []


def _cut_up(data: bytes, start: int, length_at: Any) -> list[bytes]:
    chunks = []
    while start < len(data) and len(chunks) < 1000:
        length = length_at(start)
        chunks.append(data[start : start + length])
        start += length
    return chunks


def _mend_png(data: bytes) -> bytes:
    head, chunks = chunks_of(data)
    mended = [
        chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4])) if len(chunk) >= 12 else chunk for chunk in chunks
    ]
    return head + b"".join(mended)


def _some_container(value: Any, rng: np.random.Generator) -> Any:
    """A dict or list in parsed JSON, the outermost one more often than others."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        if isinstance(item, dict | list):
            found.append(item)
            queue.extend(item.values() if isinstance(item, dict) else item)
    return found[0 if rng.random() < 0.5 else rng.integers(len(found))] if found else None
