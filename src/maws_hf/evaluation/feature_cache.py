"""Tensors on disk that vouch for themselves: written beside and renamed, hashed, verified when read, never pickled.

An entry is two files, `NAME.safetensors` with the tensor and `NAME.json` with what belongs to it and both hashes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..whole_files import sha256_of, temporary_beside

FORMAT = 1


class CacheError(RuntimeError):
    """An entry is not what was written; the message names the file."""


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_entry(path: Path, tensor: Tensor, content: dict[str, Any]) -> None:
    """Writes an entry; `path` has no suffix. Without its text a tensor does not exist, so the text comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        save_file({"tensor": tensor.contiguous()}, temporary)
        content = {**content, "format": FORMAT, "tensor_sha256": sha256_of(temporary)}
        os.replace(temporary, _with_suffix(path, "safetensors"))
        temporary.write_text(json.dumps({"content": content, "sha256": digest_of(content)}), encoding="utf-8")
        os.replace(temporary, _with_suffix(path, "json"))
    finally:
        temporary.unlink(missing_ok=True)


def load_entry(path: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """What `save_entry` wrote, or None if there is no such entry.

    Raises:
        CacheError: a file is missing, damaged or of another format.
    """
    text_file, tensor_file = _with_suffix(path, "json"), _with_suffix(path, "safetensors")
    if not text_file.is_file():
        return None
    try:
        text = json.loads(text_file.read_text(encoding="utf-8"))
        content = text["content"]
        if text["sha256"] != digest_of(content):
            raise CacheError(f"{text_file} is not what was written")
        if content.pop("format") != FORMAT:
            raise CacheError(f"{text_file} has another format than {FORMAT}, which this version reads")
        if content.pop("tensor_sha256") != sha256_of(tensor_file):
            raise CacheError(f"{tensor_file} is not what was written")
        return load_file(tensor_file)["tensor"], content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CacheError(f"{text_file} cannot be read ({type(error).__name__}: {error})") from error


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


__all__ = ["CacheError", "digest_of", "load_entry", "save_entry"]
