"""A release is laid out in a folder of its own, file by file from a list of names: nothing else can leave with it."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm.auto import tqdm

from ..whole_files import remove_leftovers, temporary_beside

MANIFEST = "release.json"
CARD = "README.md"
CONFIG = "config.json"
STUB = "maws_hf_stub.py"
WEIGHTS, WEIGHT_INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"
ALLOWED = (
    CONFIG,
    WEIGHTS,
    WEIGHT_INDEX,
    SHARDS,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
    CARD,
    "conversion.json",
    "training.json",
    "handler.py",
    "requirements.txt",
    "images/*.png",
    "images/*.jpg",
    MANIFEST,
)
_LINKED = 10_000_000  # bytes from which a file is linked instead of copied
_SLOW = 200_000_000  # bytes from which reading them is worth a progress bar
_AUTO_CLASSES = {
    "maws_vit": {
        "AutoConfig": "MawsViTConfig",
        "AutoModel": "MawsViTModel",
        "AutoModelForImageClassification": "MawsViTForImageClassification",
        "AutoModelForPreTraining": "MawsMAEForPreTraining",
        "AutoBackbone": "MawsViTBackbone",
    },
    "maws_lit": {
        "AutoConfig": "MawsLiTConfig",
        "AutoModel": "MawsLiTModel",
        "AutoModelForZeroShotImageClassification": "MawsLiTModel",
        "AutoProcessor": "MawsLiTProcessor",
    },
}


class StagingError(ValueError):
    """A folder cannot be laid out as a release; the message names the file and what to do."""


@dataclass(frozen=True)
class StagedFile:
    """One file of a release: its size and the sha256 of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Staging:
    """A folder that holds exactly one release.

    Args:
        folder: of the files.
        files: all of them but the manifest, by name.
        manifest: `release.json` itself.
        left_out: names in the model's folder that are not on the list.
    """

    folder: Path
    files: Mapping[str, StagedFile]
    manifest: StagedFile
    left_out: tuple[str, ...] = ()

    @property
    def everything(self) -> dict[str, StagedFile]:
        """The files and the manifest itself."""
        return {**self.files, MANIFEST: self.manifest}

    @property
    def digest(self) -> str:
        """A name for the content: 12 digits of the manifest's sha256."""
        return self.manifest.sha256[:12]


def is_allowed(name: str, native: bool = False) -> bool:
    """Whether a file of this name, with `/` between folders, may be part of a release."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        return False
    fits = any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in ALLOWED)
    return fits or (native and name == STUB)


def build_staging(model_dir: Path, staging_dir: Path, *, card: str | None = None, native: bool = False) -> Staging:
    """Lays a model out as a release, with its manifest `release.json`.

    Args:
        model_dir: folder of a model; only files on the list are taken. Large ones are linked, not copied.
        staging_dir: a new or empty folder, or one that an earlier call made, which is replaced.
        card: text of the model card, instead of the folder's own.
        native: the folder is in our own format: its config then names our classes through a stub that imports them,
            so that Auto classes with remote code switched on find them where `maws_hf` is installed.

    Raises:
        StagingError: a file is a link, or `staging_dir` holds something else, such as the model itself.
    """
    model_dir, staging_dir = Path(model_dir), Path(staging_dir)
    if not (model_dir / CONFIG).is_file():
        raise StagingError(f"{model_dir} holds no model: {CONFIG} is missing")
    refuse_overlap(model_dir, staging_dir)
    _refuse_to_replace(staging_dir)
    taken, left_out = _sorted_out(model_dir)
    remove_leftovers(staging_dir.parent, staging_dir.name)
    partial = temporary_beside(staging_dir)
    partial.mkdir(parents=True)
    try:
        for name in taken:
            _take(model_dir / name, partial / name)
        if card is not None:
            (partial / CARD).write_text(card, encoding="utf-8")
        if native:
            _add_stub(partial)
        files = _records(partial)
        content = {"files": {name: asdict(record) for name, record in files.items()}}
        (partial / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(staging_dir, ignore_errors=True)
        partial.replace(staging_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Staging(staging_dir, files, _record(staging_dir / MANIFEST), tuple(left_out))


def refuse_overlap(model_dir: Path, staging_dir: Path) -> None:
    """Raises `StagingError` if replacing one folder could touch the other."""
    model, staging = model_dir.resolve(), staging_dir.resolve()
    if model == staging or model in staging.parents or staging in model.parents:
        raise StagingError(
            f"{staging_dir} and the model's folder {model_dir} lie in each other: name a --staging_dir apart"
        )


def _refuse_to_replace(staging_dir: Path) -> None:
    """Only what an earlier call laid out is replaced, and nothing that somebody has added to it."""
    if not staging_dir.exists() or not any(staging_dir.iterdir()):
        return
    try:
        known = {*json.loads((staging_dir / MANIFEST).read_text(encoding="utf-8"))["files"], MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        known = set()
    if other := [name for name in files_below(staging_dir) if name not in known]:
        raise StagingError(f"{staging_dir} holds something else ({other[0]}): name a new --staging_dir")


def read_staging(staging_dir: Path) -> Staging:
    """A folder that `build_staging` made, read from its manifest.

    Raises:
        StagingError: it has none, or a file is missing or no longer what the manifest says.
    """
    path = Path(staging_dir, MANIFEST)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["files"]
        files = {name: StagedFile(**record) for name, record in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StagingError(f"{path} is no manifest of a release ({error!r}): build the folder anew") from error
    for name, now in _records(staging_dir, files).items():
        if now != files[name]:
            raise StagingError(f"{Path(staging_dir, name)} is no longer what {MANIFEST} says: build the folder anew")
    return Staging(Path(staging_dir), files, _record(path))


def files_below(folder: Path) -> Iterator[str]:
    """Names of everything in a folder that is not itself a folder, and of links to folders."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _sorted_out(model_dir: Path) -> tuple[list[str], list[str]]:
    taken, left_out = [], []
    for path in sorted(model_dir.iterdir() if model_dir.is_dir() else ()):
        if path.name == MANIFEST:  # a new one is written
            continue
        names = [path.name]
        if path.is_dir() and not path.is_symlink():
            names = [f"{path.name}/{below.name}" for below in sorted(path.iterdir())]
        wanted = [name for name in names if is_allowed(name)]
        taken += wanted
        left_out += [name for name in names if name not in wanted] if wanted else [path.name]
    for name in taken:
        if (model_dir / name).is_symlink():
            raise StagingError(f"{model_dir / name} is a link: put the file itself there (cp -L), or delete it")
    return taken, left_out


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if source.stat().st_size >= _LINKED:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(source, target)


def _add_stub(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    classes = _AUTO_CLASSES.get(config.get("model_type"))
    if classes is None:
        raise StagingError(f"{folder / CONFIG}: model_type {config.get('model_type')!r} is not our own format")
    config["auto_map"] = {auto: f"{Path(STUB).stem}.{name}" for auto, name in classes.items()}
    for part in (config, config.get("vision_config"), config.get("text_config")):
        if isinstance(part, dict):
            part.pop("_name_or_path", None)  # where a tower once came from, on the disk of whoever trained it
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    names = ", ".join(sorted({*classes.values()}))
    text = (
        f'"""The classes of this model are those of the package maws_hf."""\n\nfrom maws_hf import {names}  # noqa\n'
    )
    (folder / STUB).write_text(text, encoding="utf-8")


def _records(folder: Path, names: Mapping[str, StagedFile] | None = None) -> dict[str, StagedFile]:
    names = list(files_below(folder)) if names is None else list(names)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise StagingError(f"{folder / missing[0]} is missing: build the folder anew")
    total = sum((folder / name).stat().st_size for name in names)
    with tqdm(total=total, desc="Checksums", unit="B", unit_scale=True, disable=total < _SLOW) as progress:
        return {name: _record(folder / name, progress) for name in names}


def _record(path: Path, progress: tqdm | None = None) -> StagedFile:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
            if progress is not None:
                progress.update(len(block))
    return StagedFile(size, digest.hexdigest())


__all__ = ["StagedFile", "Staging", "StagingError", "build_staging", "read_staging", "refuse_overlap"]
