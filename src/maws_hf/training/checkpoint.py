"""Checkpoints that survive kills, full disks and flipped bits.

A checkpoint is a directory `step-00000123` that never changes once it has that name. It is written beside
(`.tmp-step-00000123`), hashed into `manifest.json`, flushed to disk and renamed; only then are older ones removed. The
newest one is found by verifying, never by a pointer. Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..whole_files import sha256_of

MANIFEST = "manifest.json"
FORMAT = 1
_VOUCHER = ".sha256"
_STEP_NAME = re.compile(r"step-(\d{8})")


Exchange = Callable[[Any], list[Any]]  # gives all ranks, in their order, what each of them has; all call it at once


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not fit; the message names the file or parameter."""


class DisagreementError(CheckpointError):
    """What is a whole checkpoint for some ranks is none for others."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def save_checkpoint(
    root: Path,
    step: int,
    write_files: Callable[[Path], None],
    *,
    facts: dict[str, Any],
    keep: int,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
    agree: Callable[[Exception | None], list[str]] = lambda error: [] if error is None else [str(error)],
) -> None:
    """Writes `root/step-00000123` (for step 123) atomically; called by every rank.

    Args:
        write_files: writes this rank's files into the directory it is given. Large ones it may `vouch_for`, so that
            the ranks read them back at the same time and none waits long for the main one.
        facts: JSON values kept in the manifest beside the step and the hashes.
        keep: checkpoints that remain, at least 2: the newest may sit on a dying disk.
        barrier: waits for all ranks.
        agree: gives all ranks the reasons of those that could not write, and so waits for them too. None is left
            behind with a folder that another has removed.

    Raises:
        CheckpointError: if the disk refuses any rank; what was there before is intact.
    """
    temporary, final = root / f".tmp-step-{step:08d}", root / f"step-{step:08d}"
    if is_main:
        remove_leftovers(root)  # before anything is written: the room may be needed
        temporary.mkdir(parents=True)
    barrier()
    error: Exception | None = None
    try:
        if not temporary.is_dir():
            raise FileNotFoundError(
                f"{temporary}, which the first process has made, is not there on {socket.gethostname()}: all hosts of "
                "a run need the same --output_dir, on a disk that they share"
            )
        write_files(temporary)
    except (OSError, SafetensorError) as raised:
        error = raised
    reasons = agree(error)
    if is_main and not reasons:
        try:
            _seal(temporary, {"format": FORMAT, "step": step, **facts})
            if final.exists():
                _remove(final)
            os.rename(temporary, final)
            _flush(root)
        except OSError as raised:
            error, reasons = raised, [str(raised)]
    if reasons:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = error if error is not None and len(reasons) == 1 else "; ".join(reasons)
        raise CheckpointError(f"cannot write {final} ({reason}); {_what_is_left(root)}") from error
    barrier()
    if is_main:
        prune(root, keep)


def _what_is_left(root: Path) -> str:
    newest = max((path.name for path in root.glob("step-*")), default=None)
    intact = f"{newest} is intact" if newest else "there is no earlier checkpoint"
    return f"{shutil.disk_usage(root).free / 2**20:.0f} MiB are free; {intact}" if root.is_dir() else intact


def _alone(own: Any) -> list[Any]:
    return [own]


def find_latest(
    root: Path, warn: Callable[[str], None], *, strict: bool = False, rank: int = 0, exchange: Exchange = _alone
) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are reported through `warn` and passed over.

    Args:
        rank, exchange: as [`verify`] has them.

    Raises:
        CheckpointError: if there are checkpoints but none of them is whole, for starting over unasked would hide
            that; if `strict`, already if the newest is damaged.
        DisagreementError: the ranks do not all find the same one.
    """
    damaged = []
    found = exchange({path.name for path in root.glob("step-*") if _STEP_NAME.fullmatch(path.name)})
    for name in sorted(set().union(*found), reverse=True):
        try:
            return verify(root / name, rank=rank, exchange=exchange)
        except DisagreementError:
            raise
        except CheckpointError as error:
            if strict:
                raise CheckpointError(
                    f"{error}; restore it, or leave out --strict_resume to continue from the newest whole checkpoint"
                ) from error
            damaged.append(str(error))
            warn(f"{error}; falling back to the one before")
    if damaged:
        raise CheckpointError(
            f"no whole checkpoint in {root}: {'; '.join(damaged)}. Remove them to start over, or restore one"
        )
    return None


def verify(path: Path, *, any_name: bool = False, rank: int = 0, exchange: Exchange = _alone) -> Checkpoint:
    """Reads the manifest and compares size and SHA-256 of every file.

    Args:
        any_name: it is a copy that need not be called after its step.
        rank, exchange: of several that verify it at once. Those with the same files before them share the reading;
            what one finds damaged, all look at.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
        DisagreementError: it is whole for some ranks only.
    """
    files, place, error = {}, None, None
    try:
        manifest = _read_manifest(path, any_name=any_name)
        files, status = manifest["files"], (path / MANIFEST).stat()
        # When the file was last touched is told by its disk: alike to all that see this one, and of no copy elsewhere.
        place = status.st_ino, status.st_ctime_ns
    except OSError as raised:
        error = CheckpointError(f"{path / MANIFEST} cannot be read ({raised})")
    except CheckpointError as raised:
        error = raised
    sharing = [other for other, its in enumerate(exchange(place)) if its == place]
    damages: dict[str, str | None] = {}
    for name in list(files)[sharing.index(rank) :: len(sharing)]:
        damages[name] = _damage(path / name, files[name])
        if damages[name]:
            break
    suspects = exchange(next((name for name, damage in damages.items() if damage), None))
    for name in files:
        if name in suspects and name not in damages:
            damages[name] = _damage(path / name, files[name])
    if error is None:
        error = next((CheckpointError(damages[name]) for name in files if damages.get(name)), None)
    _refuse_different(exchange(error and str(error)), path)
    if error is not None:
        raise error
    return Checkpoint(path, manifest)


def _refuse_different(reasons: list[str | None], path: Path) -> None:
    """A rank may fail to read what the others can, or have a folder of its own on another host."""
    if any(reasons) and not all(reasons):
        listed = "; ".join(f"rank {rank}: {reason or 'whole'}" for rank, reason in enumerate(reasons))
        raise DisagreementError(
            f"the processes do not find the same checkpoint in {path} ({listed}): it must be one folder that all of "
            "them can read, on a disk that their hosts share; then the same command continues"
        )


def _read_manifest(path: Path, *, any_name: bool) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
        is_whole = digest == _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
    if not is_whole:
        raise CheckpointError(f"{path / MANIFEST} is not what was written")
    layout, step, files = (manifest.get(name) for name in ("format", "step", "files"))
    if layout != FORMAT or type(step) is not int or not (any_name or path.name == f"step-{step:08d}"):
        raise CheckpointError(
            f"{path / MANIFEST} describes step {step} in format {layout}; this version reads format {FORMAT}"
        )
    if not isinstance(files, dict) or not all(map(_is_entry, files, files.values())):
        raise CheckpointError(f"{path / MANIFEST} does not say which files there are, with their bytes and sha256")
    return manifest


def _damage(file: Path, expected: dict[str, Any]) -> str | None:
    """What is wrong with a file of a manifest."""
    try:
        is_whole = file.stat().st_size == expected["bytes"] and sha256_of(file) == expected["sha256"]
    except (OSError, ValueError) as error:  # it is missing, its disk is dying, or it has no possible name
        return f"{file} cannot be read ({error})"
    return None if is_whole else f"{file} is not what was written"


def with_own_name(folder: str | Path) -> Path:
    """The path, with the folder's own name at its end: a checkpoint is known by it, and "." does not tell."""
    path = Path(folder)
    return path if path.name not in ("", "..") else path.resolve()


def _is_entry(name: str, expected: Any) -> bool:
    """Whether a file of a manifest lies in its folder and has a size and a digest."""
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and isinstance(expected, dict) and {"bytes", "sha256"} <= expected.keys()


def remove_leftovers(root: Path) -> None:
    """Removes what a killed save has left behind."""
    for leftover in root.glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, at least 2."""
    steps = sorted(path for path in root.glob("step-*") if _STEP_NAME.fullmatch(path.name))
    for path in steps[: -max(keep, 2)]:
        _remove(path)


def set_aside_newer(root: Path, step: int) -> None:
    """Renames what lies beyond the checkpoint that a run continues from: it is damaged, and must not count as kept."""
    for path in root.glob("step-*"):
        if _STEP_NAME.fullmatch(path.name) and path.name > f"step-{step:08d}":
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)


def _remove(path: Path) -> None:
    # Out of sight first: a kill during the removal must not leave a half checkpoint under a good name.
    doomed = path.with_name(f".tmp-{path.name}-removed")  # no name that a save may be using
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Optimizer state as safetensors, each tensor under `parameter name|state name`."""
    tensors = {}
    for name, parameter in named_members(optimizer):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}|{key}"] = torch.as_tensor(value).detach().contiguous()
    save_file(tensors, path)


def named_members(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Parameters of all groups with their names, from `parameter_groups`."""
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def vouch_for(file: Path) -> None:
    """Flushes a file and notes its digest beside it, until the manifest has it."""
    entry = json.dumps(_entry(file))
    file.with_name(file.name + _VOUCHER).write_text(entry, encoding="utf-8")


def _seal(directory: Path, manifest: dict[str, Any]) -> None:
    """Flushes every file that nobody has vouched for, then writes the manifest that vouches for all."""
    files = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != _VOUCHER):
        voucher = file.with_name(file.name + _VOUCHER)
        if voucher.exists():
            entry = json.loads(voucher.read_text(encoding="utf-8"))
            voucher.unlink()
        else:
            entry = _entry(file)
        files[str(file.relative_to(directory))] = entry
    manifest = {**manifest, "files": files}
    manifest_file = directory / MANIFEST
    manifest_file.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1), encoding="utf-8")
    _flush(manifest_file)
    _flush(directory)


def _entry(file: Path) -> dict[str, Any]:
    _flush(file)
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _digest(manifest: dict[str, Any]) -> str:
    """Of the manifest itself, independent of its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
