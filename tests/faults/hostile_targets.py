"""What reads files of others, each with whole files to damage and the errors by which it may refuse.

`attempt` returns for a file that is read, raises one of `refusals` for one that is refused, and anything else is a
fault of ours. It checks besides that what was read is what a caller is promised.
"""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hostile_pictures import pictures, some_crowd
from mutations import damage, damage_json, damaged_json_file, nested

TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "intermediate_size": 16,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}


@dataclass(frozen=True)
class Target:
    """
    Args:
        make: a damaged file.
        attempt: reads it; the folder is for files, and empties itself with the process.
        refusals: errors that say no.
        memory: bytes of address space that reading any file may take beside the program.
    """

    make: Callable[[np.random.Generator], bytes]
    attempt: Callable[[bytes, Path], None]
    refusals: tuple[type[Exception], ...]
    memory: int = 2 << 30


def target(name: str) -> Target:
    """One of `TARGETS`, with what it needs imported."""
    return TARGETS[name]()


def _decode() -> Target:
    from maws_hf.processing.decode import ImageDecodeError, decode_crop, decode_image

    whole = list(pictures().values())

    def make(rng: np.random.Generator) -> bytes:
        data = damage(whole[rng.integers(len(whole))], whole, rng)
        if rng.random() < 0.02:  # as it is, or damaged once more
            data = some_crowd(rng)
            data = data if rng.random() < 0.5 else damage(data, whole, rng)
        return data

    def attempt(data: bytes, _: Path) -> None:
        try:
            pixels = decode_image(data)
        except ImageDecodeError as error:
            if "not enough memory" in error.reason:
                raise MemoryError(error.reason) from error
            if data.startswith(b"\xff\xd8\xff"):
                _expect_refusal(data)
            raise
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.flags.c_contiguous:
            raise AssertionError(f"decoded to {pixels.dtype} {pixels.shape}")
        if data.startswith(b"\xff\xd8\xff") and not np.array_equal(pixels, decode_image(data, backend="pillow")):
            raise AssertionError("simplejpeg and Pillow see different pictures")
        rows = (len(pixels) + 1) // 2
        if not np.array_equal(decode_crop(data, lambda height, width: (0, 0, rows, width)), pixels[:rows]):
            raise AssertionError("the first rows are others when decoded alone")

    def _expect_refusal(data: bytes) -> None:
        try:
            decode_image(data, backend="pillow")
        except ImageDecodeError:
            return
        raise AssertionError("refused by simplejpeg's path and read by Pillow's")

    return Target(make, attempt, (ImageDecodeError,))


def _config(kind: str) -> Target:
    from maws_hf import MawsLiTConfig, MawsViTConfig

    config_class, fields = MawsViTConfig, json.loads(MawsViTConfig(**TINY).to_json_string(use_diff=False))
    if kind == "lit":
        text = {"model_type": "xlm-roberta", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "intermediate_size": 8}
        config_class = MawsLiTConfig
        fields = {"model_type": "maws_lit", "vision_config": fields, "text_config": text, "projection_dim": 8}

    def make(rng: np.random.Generator) -> bytes:
        return damaged_json_file(fields, rng)

    def attempt(data: bytes, folder: Path) -> None:
        (folder / "config.json").write_bytes(data)
        config = config_class.from_pretrained(folder)
        vision = config.vision_config if kind == "lit" else config
        if len(vision.stage_names) > 100_000 or max(vision.hidden_size, vision.intermediate_size) > 10**6:
            raise AssertionError("a model of nonsensical size is taken for one")
        json.loads(config.to_json_string())

    return Target(make, attempt, (ValueError, OSError))


def _checkpoint(*, forged: bool) -> Target:
    from maws_hf.training import checkpoint as ckpt

    whole: dict[str, bytes] = {}

    def write_files(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"weights" * 9)
        (directory / "rank-00000.json").write_text('{"position": {"epoch": 3}}')

    with tempfile.TemporaryDirectory() as root:
        ckpt.save_checkpoint(Path(root), 7, write_files, facts={"world_size": 1, "batch": [8]}, keep=2)
        whole.update((path.name, path.read_bytes()) for path in sorted(Path(root, "step-00000007").iterdir()))

    def make(rng: np.random.Generator) -> bytes:
        """A line with the name of a checkpoint's file, then its new content."""
        name = list(whole)[rng.integers(len(whole))]
        if forged:
            fields = json.loads(whole["manifest.json"])
            del fields["sha256"]
            fields = damage_json(fields, rng)
            if isinstance(fields, dict):
                fields["sha256"] = ckpt._digest(fields)
            return b"manifest.json\n" + (nested(rng) if rng.random() < 0.05 else json.dumps(fields).encode())
        if name == "manifest.json" and rng.random() < 0.5:
            return b"manifest.json\n" + json.dumps(damage_json(json.loads(whole[name]), rng)).encode()
        return name.encode() + b"\n" + damage(whole[name], [whole[name]], rng)

    def attempt(data: bytes, folder: Path) -> None:
        name, _, content = data.partition(b"\n")
        step = folder / "step-00000007"
        step.mkdir(exist_ok=True)
        for file, text in {**whole, name.decode(): content}.items():
            (step / file).write_bytes(text)
        found = ckpt.find_latest(folder, warn=lambda _: None)
        same = content == whole[name.decode()]
        if name == b"manifest.json":  # which may be laid out otherwise; a forged one may say what it likes
            manifest = json.loads(whole["manifest.json"])
            same = forged or all(manifest[field] == value for field, value in found.manifest.items())
        if not same:
            raise AssertionError(f"a checkpoint with a damaged {name.decode()} is taken for whole")

    return Target(make, attempt, (ckpt.CheckpointError,))


def _shards(kind: str) -> Target:
    from maws_hf.data.sources import DataSourceError, open_stream
    from maws_hf.data.streaming import StreamError

    whole = _parquet() if kind == "parquet" else _tar()

    def make(rng: np.random.Generator) -> bytes:
        return damage(whole[rng.integers(len(whole))], whole, rng)

    def attempt(data: bytes, folder: Path) -> None:
        file = folder / f"shard.{kind}"
        file.write_bytes(data)
        _read_epoch(open_stream(file, image_column="image" if kind == "parquet" else "png"))

    return Target(make, attempt, (DataSourceError, StreamError), memory=4 << 30)


def _read_epoch(dataset) -> None:
    """All samples once, as training reads them; it ends when the second epoch begins."""
    from functools import partial

    import torch

    from maws_hf.data.samples import prepare_image
    from maws_hf.data.sources import find_image_column
    from maws_hf.data.streaming import ImageStream

    def transform(pixels: np.ndarray, _: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(pixels[:1, :1].transpose(2, 0, 1).copy())

    prepare = partial(prepare_image, image_column=find_image_column(dataset), transform=transform)
    stream = ImageStream(dataset, prepare, seed=0, shuffle=False, block_size=4, max_consecutive_skips=50)
    for number, _ in enumerate(stream):
        if stream.state_dict()["epoch"] > 0:
            return
        if number > 1000:
            raise AssertionError("more samples than were ever in it")


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    for compression in ("none", "snappy", "zstd"):
        rows = [{"bytes": data, "path": f"{name}.bin"} for name, data in sorted(pictures().items())[:6]]
        table = pa.table({"image": rows, "text": [f"picture {i}" for i in range(len(rows))]})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression=compression, row_group_size=3)
        files.append(stream.getvalue())
    return files


def _tar() -> list[bytes]:
    files = []
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for number in range(4):
                for kind, content in (("png", pictures()["png"]), ("txt", b"a picture"), ("json", b'{"a": 1}')):
                    entry = tarfile.TarInfo(f"{'folder/' * 20 * (number % 2)}{number:05d}.{kind}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        files.append(stream.getvalue())
    return [*files, gzip.compress(files[0]), _sparse_tar()]


def _sparse_tar() -> bytes:
    """Its last picture claims eight gigabytes of zeros behind what there is."""
    stream, content = io.BytesIO(), pictures()["png"]
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(7):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(content)
            if number == 6:
                claims = {"size": str(8 << 30), "numblocks": "1", "map": f"0,{len(content)}", "name": entry.name}
                entry.pax_headers = {f"GNU.sparse.{name}": value for name, value in claims.items()}
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _safetensors() -> Target:
    from safetensors.torch import save

    from maws_hf import MawsViTConfig, MawsViTModel
    from maws_hf.models.weight_files import ModelLoadingError

    config = MawsViTConfig(**TINY)
    whole = [save(MawsViTModel(config).state_dict(), metadata={"format": "pt"})]

    def make(rng: np.random.Generator) -> bytes:
        length = int.from_bytes(whole[0][:8], "little")
        if rng.random() < 0.5:  # a header that is JSON all the same, with the length to it
            header = json.dumps(damage_json(json.loads(whole[0][8 : 8 + length]), rng)).encode()
            return len(header).to_bytes(8, "little") + header + whole[0][8 + length :]
        return damage(whole[0], whole, rng)

    def attempt(data: bytes, folder: Path) -> None:
        config.save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(data)
        model = MawsViTModel.from_pretrained(folder)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise AssertionError("a model without weights is taken for one")

    return Target(make, attempt, (ModelLoadingError,))


def _original(kind: str) -> Target:
    import torch
    from safetensors.torch import save

    from maws_hf.hub.original_archive import ConversionError
    from maws_hf.hub.original_reader import read_original

    tensors = {f"blocks.{i}.weight": torch.randn(5, 7) for i in range(4)} | {"bias": torch.zeros(3).half()}
    stream = io.BytesIO()
    torch.save({"model": tensors, "epoch": 3}, stream)
    whole = [stream.getvalue()] if kind == "pt" else [save(tensors)]

    def make(rng: np.random.Generator) -> bytes:
        if kind == "pt" and rng.random() < 0.05:
            return _with_a_second_directory(whole[0], rng)
        return damage(whole[0], whole, rng)

    def attempt(data: bytes, folder: Path) -> None:
        file = folder / f"checkpoint.{kind}"
        file.write_bytes(data)
        for tensor in read_original(file).tensors.values():
            tensor.float().sum()

    return Target(make, attempt, (ConversionError,))


def _with_a_second_directory(archive: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy behind the directory that the end of a zip archive leads to."""
    start, end = archive.index(b"PK\x01\x02"), archive.index(b"PK\x06\x06")
    directory = archive[start:end]
    return archive[:end] + damage(directory, [directory], rng) + archive[end:]


TARGETS: dict[str, Callable[[], Target]] = {
    "decode": _decode,
    "config": lambda: _config("vit"),
    "lit-config": lambda: _config("lit"),
    "checkpoint": lambda: _checkpoint(forged=False),
    "forged-manifest": lambda: _checkpoint(forged=True),
    "parquet": lambda: _shards("parquet"),
    "tar": lambda: _shards("tar"),
    "safetensors": _safetensors,
    "pt": lambda: _original("pt"),
    "original-safetensors": lambda: _original("safetensors"),
}
