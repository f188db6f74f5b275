"""A small encoder and tokenizer in the formats of the real packages, written by hand: for tests only."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np

WIDTH, LAYERS, HEADS, WIDE, ROWS, POSITIONS, TYPES = 32, 2, 2, 64, 80, 16, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz.:"
WORDS = ["▁a", "▁red", "▁heart", "▁re", "ed", "ar", "he", "▁photo", "▁of", "▁query", "é", "É", "art", "▁h"]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *WORDS, *LETTERS, "<mask>"]
SCORES = [0.0] * 4 + [-2.0] + [-3.0 - 0.25 * number for number in range(len(WORDS))] + [-9.0] * len(LETTERS) + [0.0]


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under the names that the format gives them."""
    random = np.random.default_rng(seed)
    shapes = {
        "emb.word": (ROWS, WIDTH),
        "emb.pos": (POSITIONS, WIDTH),
        "emb.type": (TYPES, WIDTH),
        "emb.ln.w": (WIDTH,),
        "emb.ln.b": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in {
            "q": (WIDTH, WIDTH),
            "k": (WIDTH, WIDTH),
            "v": (WIDTH, WIDTH),
            "ao": (WIDTH, WIDTH),
            "fi": (WIDE, WIDTH),
            "fo": (WIDTH, WIDE),
        }.items():
            shapes |= {f"l{layer}.{name}.w": (rows, columns), f"l{layer}.{name}.b": (rows,)}
        for name in ("aln", "oln"):
            shapes |= {f"l{layer}.{name}.w": (WIDTH,), f"l{layer}.{name}.b": (WIDTH,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def quantised(name: str) -> bool:
    return name == "emb.word" or (name.startswith("l") and name.endswith(".w") and "ln" not in name)


def four_bits(values: np.ndarray) -> bytes:
    """Value by value: the scale maps the largest of 32 values to -8 or 7, whichever fits."""
    content = b""
    for block in values.reshape(-1, 32):
        scale = np.float16(float(np.abs(block).max()) / 7)
        numbers = [min(max(round(float(value) / float(scale)) + 8, 0), 15) for value in block]
        pairs = bytes(numbers[place] | numbers[place + 16] << 4 for place in range(16))
        content += struct.pack("<e", scale) + pairs
    return content


def weight_file(
    tensors: dict[str, np.ndarray] | None = None,
    *,
    magic: bytes = b"E5S1",
    version: int = 1,
    sizes: dict[str, int] | None = None,
    pieces: list[str] = PIECES,
    piece_count: int | None = None,
    characters: int = 1,
    tensor_count: int | None = None,
    entries: dict[str, dict] | None = None,
    names: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> bytes:
    """A weight file; what is given deviates from a good one.

    Args:
        sizes: of the header, such as `{"heads": 0}`.
        piece_count: what the file says there are.
        characters: of the character map, as the file says.
        tensor_count: what the file says there are.
        entries: for a tensor's name, other `kind`, `values`, `offset` or `size` in its directory entry.
        names: another name for a tensor.
        without: tensors to leave out.
    """
    tensors = {name: values for name, values in (tensors or tiny_tensors()).items() if name not in without}
    header = {
        "hidden": WIDTH,
        "layers": LAYERS,
        "heads": HEADS,
        "feed_forward": WIDE,
        "vocabulary": ROWS,
        "positions": POSITIONS,
        "types": TYPES,
    } | (sizes or {})
    text = [piece.encode() for piece in pieces]
    ends = np.cumsum([0, *map(len, text)])
    count = len(pieces) if piece_count is None else piece_count
    content = magic + struct.pack("<I7ifi", version, *header.values(), 1e-12, 32)
    content += struct.pack("<5iQ", count, 0, 2, 1, 3, ends[-1])
    content += ends.astype("<u4").tobytes() + np.array(SCORES[: len(pieces)], "<f4").tobytes() + b"".join(text)
    content += struct.pack("<iI", characters, 9) + struct.pack("<IBI", 0xA0, 1, 0x20)
    stored = {name: four_bits(v) if quantised(name) else v.astype("<f4").tobytes() for name, v in tensors.items()}
    labels = {name: (names or {}).get(name, name).encode() for name in stored}
    content += struct.pack("<i", len(stored) if tensor_count is None else tensor_count)
    offset = len(content) + sum(2 + len(label) + 21 for label in labels.values())
    for name, data in stored.items():
        entry = {"kind": int(quantised(name)), "values": tensors[name].size, "offset": offset, "size": len(data)}
        entry |= (entries or {}).get(name, {})
        content += struct.pack("<H", len(labels[name])) + labels[name] + struct.pack("<BIQQ", *entry.values())
        offset += len(data)
    return content + b"".join(stored.values())


def tokenizer_json(pieces: list[str] = PIECES, scores: list[float] = SCORES) -> dict:
    """An XLM-R tokenizer as the package has it, with small letters only."""
    added = [(number, piece) for number, piece in enumerate(pieces) if piece.startswith("<")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    around = [{"SpecialToken": {"id": end, "type_id": 0}} for end in ("<s>", "</s>")]
    single = [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": piece, **flags} for number, piece in added],
        "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, around[1], {"Sequence": {"id": "B", "type_id": 0}}, around[1]],
            "special_tokens": {
                piece: {"id": piece, "ids": [number], "tokens": [piece]} for number, piece in ((0, "<s>"), (2, "</s>"))
            },
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [list(pair) for pair in zip(pieces, scores, strict=True)]},
    }


def tokenizer_bytes(**kwargs) -> bytes:
    return json.dumps(tokenizer_json(**kwargs)).encode()


def write_wheel(path: Path, files: dict[str, bytes], name: str = "tiny-package", version: str = "1.0") -> Path:
    """A wheel that pip accepts, with `files` in it."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    described = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in [*described, f"{info}/RECORD"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in {**described, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(member, content)
    return path
