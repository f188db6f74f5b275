"""SHA-256 sums of a finished model's weights, so that a bit that flips later is noticed.

They lie beside the weights in the form that `sha256sum --check SHA256SUMS` reads, too. Nothing needs them to load.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..whole_files import sha256_of, write_atomically

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (model[\w.-]*\.safetensors)")


def write_weight_sums(folder: Path) -> None:
    """Of all weights in `folder`.

    Raises:
        OSError: if the disk refuses.
    """
    files = sorted(folder.glob("model*.safetensors"))
    write_atomically(folder / SUMS, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode())


def remove_weight_sums(folder: Path) -> None:
    """Before other weights are written: a kill in between leaves none, and not those of the old ones."""
    (folder / SUMS).unlink(missing_ok=True)


def weight_sum_problems(folder: Path) -> Iterator[str]:
    """Each a sentence that names the file; none without `SHA256SUMS`."""
    record = folder / SUMS
    if not record.exists():
        return
    try:
        lines = [_LINE.fullmatch(line) for line in record.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        lines = []
    if not lines or not all(lines):
        yield f"{record} is not what a run has written"
        return
    for digest, name in (line.groups() for line in lines):
        if not (folder / name).is_file():
            yield f"{folder / name} is missing; {SUMS} lists it"
        elif sha256_of(folder / name) != digest:
            yield f"{folder / name} is not what the run has written, says {SUMS}"


__all__ = ["SUMS", "remove_weight_sums", "weight_sum_problems", "write_weight_sums"]
