"""Convert checkpoints of the original PyTorch code to folders that `from_pretrained` reads.

That is: all models released with the paper (`RELEASED_MODELS`), the files of the original MAE repository, and files
of the same code in other sizes. A foreign file is not trusted: see `original_archive`, `original_reader` and
`conversion_process`.
"""

import re
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from ..whole_files import remove_leftovers, temporary_beside
from .conversion_process import run_in_child
from .native_writer import SHARD_BYTES
from .original_archive import ConversionError
from .original_digests import digests_of
from .original_files import KnownFile, known_file
from .original_processor import add_tokenizer, origin_of, read_labels, write_record
from .original_sizes import NOTHING_SAID, Sizes

VERIFY_UP_TO = 3_000_000_000  # bytes of a file; verifying takes about twice as much memory
_AUTO_CLASSES = {
    "MawsViTModel": "AutoModel",
    "MawsViTForImageClassification": "AutoModelForImageClassification",
    "MawsMAEForPreTraining": "AutoModelForPreTraining",
    "MawsLiTModel": "AutoModel",
}


@dataclass(frozen=True)
class Conversion:
    """What a conversion made; `print(conversion)` shows it with the next commands.

    Args:
        output_dir: the folder.
        record: content of its `conversion.json`: `released_model` (name of a known file or None), `architecture`,
            `source` (file, url, bytes, sha256, and whether that was compared with a known one), `tensors`,
            `parameters`, `dtype`, `left_out`, `tokenizer`, `differences` (largest absolute ones, by result; None if
            not compared), `versions`.
    """

    output_dir: Path
    record: dict[str, Any]

    def __str__(self) -> str:
        record, folder = self.record, self.output_dir
        auto = _AUTO_CLASSES[record["architecture"]]
        name = f"a {record['architecture']}"
        if record["released_model"]:
            name = f"{record['released_model']}, {name}"
        lines = [
            f"Converted {record['source']['file']} to {folder}: {name}",
            f"  {record['tensors']:,} tensors, {record['parameters']:,} parameters, {record['dtype']}",
            f"  sha256 of the original: {record['source']['sha256']}",
        ]
        if record["left_out"]:
            lines.append(f"  left out of the original: {', '.join(record['left_out'])}")
        if record["differences"] is None:
            lines.append("  not compared with the original's arithmetic (--verify does that)")
        else:
            found = ", ".join(f"{what} {value:.2g}" for what, value in record["differences"].items())
            lines.append(f"  largest differences to the original on random input: {found}")
        if record["architecture"] == "MawsLiTModel" and record["tokenizer"] is None:
            lines.append(
                "  there is no tokenizer in the folder; a folder, a Hub id or a sentencepiece.bpe.model of XLM-R's is "
                "added by\n  python -c 'from maws_hf.hub.original import add_tokenizer as add; "
                f'add("{folder}", "FacebookAI/xlm-roberta-base")\''
            )
        return "\n".join(
            [
                *lines,
                "Next:",
                f'  python: import maws_hf, transformers; transformers.{auto}.from_pretrained("{folder}")',
                f"  maws-hf export {folder} --output_dir {folder}-transformers   # for plain transformers",
                f"  maws-hf push {folder} --repo_id ORG/NAME --dry_run   # to the Hub",
            ]
        )


def convert_checkpoint(
    file: str | Path,
    output_dir: str | Path,
    *,
    model: str | None = None,
    sizes: Sizes = NOTHING_SAID,
    sha256: str | None = None,
    accept_unknown_sha256: bool = False,
    labels: str | Path | None = None,
    tokenizer_name_or_path: str | None = None,
    verify: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Writes the model of an original checkpoint to `output_dir`, which appears when all is done and not before.

    Args:
        file: `.pt`, `.pth` or `.safetensors`.
        output_dir: must not exist, or be empty.
        model: which released file it is (a key of `KNOWN_FILES`), where its name does not tell.
        sizes: what shapes cannot tell of a file in no table.
        sha256: the digest that the file must have.
        accept_unknown_sha256: go on with a file of which no digest is known.
        labels: names of a classifier's classes, see `read_labels`.
        tokenizer_name_or_path: for two towers, see `add_tokenizer`.
        verify: compare with the original's arithmetic; None for files up to 3 GB.
        shard_bytes: most bytes a shard.

    Raises:
        ConversionError: one sentence with the reason. No folder is left behind.
    """
    file, output_dir = Path(file).expanduser(), Path(output_dir).expanduser()
    if file.is_dir():
        raise ConversionError(f"{file} is a folder; a checkpoint is one file")
    if not file.is_file():
        raise ConversionError(f"there is no file {file}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ConversionError(f"--sha256 {sha256} is no sha256, which has 64 hexadecimal digits")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ConversionError(f"{output_dir} is there already: choose another --output_dir, or delete it")
    known = _known(file, model, sizes)
    names = read_labels(Path(labels)) if labels else None
    before = _identity(file)
    digest = _digest_or_error(file, known, sha256, accept_unknown_sha256)
    remove_leftovers(output_dir.parent, output_dir.name)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = temporary_beside(output_dir)
    staging.mkdir()
    try:
        size = file.stat().st_size
        request = {
            "file": str(file),
            "folder": str(staging),
            "known": known.name if known else None,
            "sizes": asdict(sizes),
            "labels": names,
            "shard_bytes": shard_bytes,
        }
        written = run_in_child({**request, "step": "write"}, mapped_bytes=size)
        tokenizer = _tokenizer(staging, written, tokenizer_name_or_path)
        differences = None
        if verify or (verify is None and size <= VERIFY_UP_TO):
            print("Comparing with the original's arithmetic", flush=True)
            differences = run_in_child({**request, "step": "verify"}, mapped_bytes=4 * size)["differences"]
        if _identity(file) != before:
            raise ConversionError(f"{file} was changed while it was read: run the command again")
        checked = sha256 is not None or (known is not None and known.sha256 is not None)
        record = _record(file, known, digest, checked, written, tokenizer, differences)
        write_record(staging, record)
        if output_dir.exists():
            output_dir.rmdir()  # empty, as seen above
        staging.replace(output_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Conversion(output_dir, record)


def _known(file: Path, model: str | None, sizes: Sizes) -> KnownFile | None:
    """What the file is said to be; heads that are given say that it is in no table."""
    given = [name for name in sizes.given() if name != "norm_pix_loss"]
    if model is None and any(name.endswith("num_attention_heads") for name in given):
        return None
    known = known_file(file, model)
    if known is not None and given:
        raise ConversionError(
            f"{', '.join(f'--{name}' for name in given)} cannot be chosen: {known.name} has its sizes from the table. "
            "For a file of your own, give --num_attention_heads and no --model"
        )
    return known


def _digest_or_error(file: Path, known: KnownFile | None, expected: str | None, accept_unknown: bool) -> str:
    """The file's sha256, after it was compared with all that is known of it, and its entries with their checksums."""
    digests = digests_of(file)
    sha256, md5 = digests.sha256, digests.md5
    print(f"sha256 {sha256}  {file}", flush=True)
    if expected is not None and expected.lower() != sha256:
        raise ConversionError(f"{file} has sha256 {sha256}, not the expected {expected.lower()}: get it again")
    if known is not None and known.sha256 not in (None, sha256):
        raise ConversionError(
            f"{file} has sha256 {sha256}, but {known.name} has {known.sha256}: it is damaged or another file; get it "
            f"again from {known.url}"
        )
    if known is not None and known.md5_prefix and not md5.startswith(known.md5_prefix):
        raise ConversionError(
            f"{file} has an md5 that begins with {md5[:6]}, but that of {known.name} begins with {known.md5_prefix}: "
            f"it is damaged or another file; get it again from {known.url}"
        )
    if digests.damaged:
        raise ConversionError(
            f"{file} is damaged: {len(digests.damaged):,} of its entries differ from the checksums saved with them, "
            f"among them {digests.damaged[0]}; get it again"
        )
    if expected is None and (known is None or known.sha256 is None):
        if not accept_unknown:
            raise ConversionError(
                f"no checksum is known for {file}. Its sha256 is {sha256}: if you know that this is the file you "
                f"want, say so with --sha256 {sha256}, or with --accept_unknown_sha256"
            )
        if not digests.has_checksums:
            print(f"{file} holds no checksums of its tensors, so that damage would not be seen", flush=True)
    return sha256


def _identity(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _tokenizer(folder: Path, written: dict[str, Any], name_or_path: str | None) -> str | None:
    if name_or_path is None:
        return None
    if written["layout"] != "clip":
        raise ConversionError(
            "the file has no text tower, so it needs no tokenizer: leave out --tokenizer_name_or_path"
        )
    add_tokenizer(folder, name_or_path)
    return origin_of(name_or_path)


def _record(
    file: Path,
    known: KnownFile | None,
    sha256: str,
    compared: bool,
    written: dict[str, Any],
    tokenizer: str | None,
    differences: dict[str, float] | None,
) -> dict[str, Any]:
    return {
        "released_model": known.name if known else None,
        "architecture": written["architecture"],
        "source": {
            "file": file.name,
            "url": known.url if known else None,
            "bytes": file.stat().st_size,
            "sha256": sha256,
            "sha256_was_compared": compared,
        },
        **{name: written[name] for name in ("tensors", "parameters", "dtype", "left_out")},
        "tokenizer": tokenizer,
        "differences": differences,
        "versions": {
            "maws_hf": _own_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _own_version() -> str:
    try:
        return version("maws_hf")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


__all__ = ["Conversion", "ConversionError", "Sizes", "add_tokenizer", "convert_checkpoint"]
