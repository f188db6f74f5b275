"""Open a data set as a stream of rows whose images are still bytes.

Four kinds, told apart by looking: Parquet shards, WebDataset tar shards, a plain folder of images, a Hub data set.
Whatever the kind, a row carries its image as `{"bytes": ..., "path": ...}`; decoding is left to
`maws_hf.processing.decode`, and `path` is only ever a name for messages: nobody opens a path found in data.
"""

from __future__ import annotations

import atexit
import difflib
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

import datasets
from datasets import ClassLabel, Features, Image, IterableDataset, IterableDatasetDict, Value, load_dataset_builder
from datasets.data_files import DataFilesList

from maws_hf.data.image_metadata import METADATA_FILES, read_image_metadata
from maws_hf.data.layouts import DataSourceError, find_classes, find_splits, split_called
from maws_hf.data.tar_images import take_any_image
from maws_hf.data.tar_members import bound_members
from maws_hf.data.tolerance import tolerate
from maws_hf.data.undecodable import take_broken_members_for_missing, take_broken_texts_for_missing
from maws_hf.processing.decode import DEFAULT_LIMITS

__all__ = [
    "DataSourceError",
    "digest_of_files",
    "find_image_column",
    "lies_within",
    "list_files",
    "open_stream",
    "refuse_output_within",
    "why_no_labels",
]

IMAGE_COLUMN_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img")
MOST_IMAGE_SHARDS = 8192  # of an image folder; with fewer images than that, each is a shard of its own
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FILES = "local files"  # among the checksums of a data set's info
SHARD_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}

# What Image(decode=False) yields, declared as plain data: encoding a row of an Image feature drops the bytes of an
# image whose path happens to exist on this computer, as the names inside a tar may.
_STORED_IMAGE = {"bytes": Value("binary"), "path": Value("string")}

_Row = tuple[str, dict[str, Any]]  # an image file, and what is known of it

_LOOKED_FOR = f"*.parquet, *.tar or images ({' '.join('*' + extension for extension in IMAGE_EXTENSIONS)})"


def open_stream(
    name_or_path: str | os.PathLike[str],
    *,
    split: str = "train",
    name: str | None = None,
    data_files: str | Sequence[str] | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    require_image: bool = True,
    columns: Sequence[str] | None = None,
) -> IterableDataset:
    """Open a data set for streaming, with its images as undecoded bytes.

    Args:
        name_or_path: a folder of *.parquet shards, of WebDataset *.tar shards or of images (with or without a
            sub-folder for each class); one shard; a glob such as `shards/*.tar`; or the id of a data set on the Hub.
            A folder whose README.md declares `datasets` configurations is read as they say.
        split: which part. In a local folder the parts are told by one level of its sub-folders (`train/`, `val2017/`,
            `test_images/` ...) or by the file names (`train-00000.parquet`), if all of them name one; otherwise all is
            "train", or an error if that would train on what is called `test` or `val`.
        name: configuration of a Hub data set that has several.
        data_files: paths or globs within the folder or Hub repository; together they are the split.
        revision: branch, tag or commit on the Hub.
        image_column: the column of the images; found by `find_image_column` when None.
        require_image: refuse a data set without images. When False, it is opened as it is.
        columns: all that is wanted of a row. Where the format can pass over bytes (Parquet, and image files if none
            of these is "image"), the rest is not read; elsewhere rows are whole.

    Returns:
        A stream whose image column holds `{"bytes": ..., "path": ...}` (or bare bytes, if stored so). Shards are the
        files; in an image folder every image is a shard, so that shuffling shards shuffles images (beyond 8192 images,
        shards of several, dealt over all folders), and class folders become the column `label`: the one level of
        folders, besides that of the splits, in which the images differ. Where there is a `metadata.csv`, `.jsonl` or
        `.parquet` with a column `file_name`, its other columns are the labels, and folders are none.

    Raises:
        DataSourceError: nothing there, nothing readable there, no such split, files that belong to no split beside
            others that do, or no unambiguous image column.
    """
    source = os.fspath(name_or_path)
    _have_a_cache()
    if os.path.isdir(source) and data_files is None and _declares_configurations(source):
        if glob.has_magic(str(Path(source).resolve())):
            raise DataSourceError(
                f"{Path(source).resolve()} has *, ? or [ in its path, and `datasets`, which reads the files that its "
                "README.md declares, takes that for a pattern: rename the folder"
            )
        dataset = _load(source, name_or_path=source, split=split, columns=columns, name=name)
    elif os.path.exists(source) or glob.has_magic(source):
        dataset = _open_local(source, split, data_files, columns)
    elif _looks_like_hub_id(source) and not os.path.isdir(os.path.dirname(source)):
        files = {split: data_files} if data_files is not None else None
        label = f"{source} (no such folder here, so taken for a data set on the Hub)"
        options = {"name": name, "data_files": files, "revision": revision}
        dataset = _load(source, name_or_path=label, split=split, columns=columns, **options)
    else:
        raise DataSourceError(
            f"{source} does not exist{_neighbour(source)}: give a folder, a glob of shards, or a Hub data set id such "
            "as 'user/name'"
        )
    try:
        column = find_image_column(dataset, image_column)
    except DataSourceError:
        if require_image or image_column is not None or dataset.features is None:
            raise
        return dataset.decode(False)
    dataset = dataset.decode(False)  # every media column stays as stored, also those that nobody asked for
    if isinstance(dataset.features[column], Image):
        dataset = dataset.cast_column(column, _STORED_IMAGE)
    return dataset


def find_image_column(dataset: IterableDataset, image_column: str | None = None) -> str:
    """Name of the image column: the given one, else the only one of image type, else the only usual name.

    Works before and after `open_stream` has turned decoding off.

    Raises:
        DataSourceError: the given column is absent or holds no images, or none or several columns qualify.
    """
    features = dataset.features
    if features is None:
        raise DataSourceError("the data set declares no columns: save it as Parquet with an Image feature")
    columns = ", ".join(features)
    if image_column is not None:
        if image_column not in features:
            raise DataSourceError(f"--image_column_name {image_column}: no such column, there are {columns}")
        if not _may_be_images(features[image_column]):
            possible = ", ".join(column for column, kind in features.items() if _may_be_images(kind))
            kind = getattr(features[image_column], "dtype", type(features[image_column]).__name__)
            raise DataSourceError(
                f"--image_column_name {image_column}: it holds {kind}, not images or their bytes; columns that do: "
                f"{possible or 'none'}"
            )
        return image_column
    candidates = [column for column, kind in features.items() if isinstance(kind, Image) or kind == _STORED_IMAGE]
    if not candidates:
        candidates = [column for column in features if column.lower() in IMAGE_COLUMN_NAMES]
    if len(candidates) == 1:
        return candidates[0]
    found = f"several image columns ({', '.join(candidates)})" if candidates else "no image column"
    raise DataSourceError(f"{found} among the columns {columns}: name it with --image_column_name")


def _may_be_images(kind: Any) -> bool:
    kind = kind.get("bytes") if isinstance(kind, dict) else kind
    return isinstance(kind, Image) or (isinstance(kind, Value) and "binary" in kind.dtype)


def digest_of_files(dataset: IterableDataset) -> str | None:
    """Changes with the names of the local files that `open_stream` opened, and with the sizes of shards; None for a
    data set that declares its files or comes from the Hub."""
    return (dataset.info.download_checksums or {}).get(_FILES, {}).get("checksum")


def why_no_labels(dataset: IterableDataset) -> str | None:
    """What kept `open_stream` from taking the folders of images for classes, if anything did."""
    return (dataset.info.download_checksums or {}).get(_FILES, {}).get("why_no_labels")


def refuse_output_within(source: str, **folders: str | None) -> None:
    """Refuses to write where a data set's files are found by listing: pictures and features would become part of it.

    Args:
        source: as `open_stream` takes it. Of a folder whose README.md declares its files nothing is refused.
        folders: what is written to, by the name of its option; None where there is none.

    Raises:
        DataSourceError: one of the folders lies in the data set.
    """
    if _declares_configurations(source):
        return
    for option, folder in folders.items():
        if folder is not None and lies_within(folder, source):
            raise DataSourceError(
                f"--{option} {folder} lies in {source}, the data set, and would become part of it: choose a folder "
                "outside"
            )


def lies_within(folder: str | os.PathLike[str], source: str) -> bool:
    """Whether `list_files` of a data set would list the files of a folder, which need not be there yet; not seen where
    it is a link within the data that leads to the folder."""
    root, here = Path(source).resolve(), Path(folder).resolve()
    if not root.is_dir() or not here.is_relative_to(root):
        return False
    return not any(part.startswith(".") for part in here.relative_to(root).parts)


def _looks_like_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) is not None


def _neighbour(source: str) -> str:
    folder, name = os.path.split(source)
    there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    guess = difflib.get_close_matches(name, there, n=1)
    return f" (did you mean {os.path.join(folder, guess[0])}?)" if guess else ""


def _declares_configurations(folder: str) -> bool:
    readme = Path(folder, "README.md")
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8", errors="replace")
    header = re.match(r"---\r?\n(.*?)\n---", text, flags=re.DOTALL)
    return header is not None and re.search(r"^configs:", header[1], flags=re.MULTILINE) is not None


def _load(
    builder: str, *, name_or_path: str, split: str, columns: Sequence[str] | None = None, hint: str = "", **options
) -> IterableDataset:
    """`datasets.load_dataset`, streaming, for one split, with its many failures told in one sentence."""
    narrow = {} if columns is None else {"columns": list(columns)}
    try:
        opened = take_broken_members_for_missing(load_dataset_builder(builder, **options, **narrow))
        splits = bound_members(opened, IMAGE_EXTENSIONS).as_streaming_dataset()
    except Exception as error:
        if narrow and isinstance(error, TypeError | ValueError) and "'columns'" in str(error):  # this is no Parquet
            return _load(builder, name_or_path=name_or_path, split=split, hint=hint, **options)
        reason = " ".join(str(error).split())
        raise DataSourceError(f"{name_or_path} cannot be opened: {type(error).__name__}: {reason}{hint}") from error
    assert isinstance(splits, IterableDatasetDict)
    if split not in splits:
        raise DataSourceError(f"{name_or_path} has no split {split!r}, there are {', '.join(splits)}")
    dataset = tolerate(take_broken_texts_for_missing(splits[split]))
    return take_any_image(dataset, IMAGE_EXTENSIONS)


def _have_a_cache() -> None:
    """Where the user's cannot be written to, as that of a container's user without a home, `datasets` gets one that
    goes with this process: it makes a folder there for each data set, and streams leave it empty."""
    usual = os.path.expanduser(datasets.config.HF_DATASETS_CACHE)
    if "://" in usual:
        return
    with suppress(OSError):
        os.makedirs(usual, exist_ok=True)
        with TemporaryFile(dir=usual):
            return
    datasets.config.HF_DATASETS_CACHE = mkdtemp(prefix="maws-hf-datasets-")
    atexit.register(shutil.rmtree, datasets.config.HF_DATASETS_CACHE, ignore_errors=True)


def _open_local(
    source: str, split: str, data_files: str | Sequence[str] | None, columns: Sequence[str] | None
) -> IterableDataset:
    if os.path.isdir(source) and data_files is None:
        root, files = source, list_files(source)
    else:
        below = [data_files] if isinstance(data_files, str) else data_files
        place = glob.escape(source) if os.path.exists(source) else source  # brackets in a name may be letters
        patterns = [place] if below is None else [os.path.join(place, pattern) for pattern in below]
        matches = {match for pattern in patterns for match in glob.glob(pattern, recursive=True)}
        root, files = "", sorted(match for match in matches if os.path.isfile(match))
        if not files:
            looked_for = [source] if below is None else [os.path.join(source, pattern) for pattern in below]
            raise DataSourceError(f"no file matches {', '.join(looked_for)}")

    for extension, builder in SHARD_BUILDERS.items():
        shards = [
            file for file in files if file.lower().endswith(extension) and os.path.basename(file) not in METADATA_FILES
        ]
        if shards:
            splits = find_splits(shards, root, names_are_words=False).splits
            chosen = _select_split(shards, splits, split, root)
            paths = [os.path.abspath(os.path.join(root, shard)) for shard in chosen]
            if chained := next((path for path in paths if "::" in path), None):  # fsspec: a file within another
                raise DataSourceError(f"{chained} cannot be opened with :: in its path: rename it")
            # As files that were found: other paths `datasets` takes for globs, and one with brackets it looks for in
            # all that lies beside it. What identifies them is for a cache, which a stream has not.
            found = DataFilesList(paths, origin_metadata=[(path,) for path in paths])
            # The size of a shard's first row group is the default; that of an empty shard is 0, which pyarrow refuses.
            options = {"batch_size": 256} if builder == "parquet" else {}
            hint = f" (columns are learnt from {chosen[0]}, which must be whole: repair it or move it away)"
            options |= {"data_files": {split: found}, "columns": columns, "hint": hint}
            return _with_digest(_load(builder, name_or_path=source, split=split, **options), root, sized=chosen)
    images = [file for file in files if file.lower().endswith(IMAGE_EXTENSIONS)]
    if not images:
        raise DataSourceError(f"{source} holds none of {_LOOKED_FOR}")
    layout = find_splits(images, root, names_are_words=True)
    chosen = _select_split(images, layout.splits, split, root)
    metadata, unclear = read_image_metadata(root, files, images, chosen), None
    if metadata is None:
        folders, unclear = find_classes(images, layout, are_picked=not root)
        rows, features = _rows_of_folders(chosen, images, folders)
    else:
        rows, features = metadata.rows, metadata.columns
    dataset = _open_images(root, rows, features, with_bytes=columns is None or "image" in columns)
    # Their sizes are left out: to ask for those of a million takes minutes, in every process of every start.
    dataset = _with_digest(dataset, root, chosen, sized=[] if metadata is None else metadata.files)
    if unclear is not None:
        dataset.info.download_checksums[_FILES]["why_no_labels"] = unclear
    return dataset


def list_files(folder: str) -> list[str]:
    """Regular files below `folder`, relative to it and sorted, hidden ones left out. Links are followed, loops not."""
    files, visited = [], set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(path) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(path))
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        paths = (os.path.join(path, entry) for entry in names if not entry.startswith("."))
        files += [os.path.relpath(file, folder) for file in paths if os.path.isfile(file)]
    return sorted(files)


def _with_digest(
    dataset: IterableDataset, root: str, files: Sequence[str] = (), *, sized: Sequence[str]
) -> IterableDataset:
    digest, sizes = hashlib.sha256(), {file: os.path.getsize(os.path.join(root, file)) for file in sized}
    for file in (*files, *sized):
        name = file if root else os.path.basename(file)  # a glob may be written in several ways
        size = sizes.get(file, "")
        digest.update(os.fsencode(f"{name}/{size}\n"))
    # Whatever is made of the data set takes its info along.
    dataset.info.download_checksums = {_FILES: {"checksum": digest.hexdigest()[:16]}}
    return dataset


def _select_split(files: list[str], splits: list[str], split: str, root: str) -> list[str]:
    if not root:  # files that the user has picked are the split, whatever they are called
        return files
    chosen = [file for file, its_split in zip(files, splits, strict=True) if its_split == split_called(split)]
    if not chosen:
        raise DataSourceError(f"{root} has no split {split!r}, there are {', '.join(sorted(set(splits)))}")
    return chosen


def _rows_of_folders(images: list[str], of_all_splits: list[str], folders: list[str]) -> tuple[list[_Row], Features]:
    """Images with a label where all lie in class folders, of which there are two or more.

    The classes are those of all splits: a class that one of them lacks must not renumber the others.

    Args:
        folders: the class folder of each of all splits' images, if it lies in one.
    """
    folder_of, classes = dict(zip(of_all_splits, folders, strict=True)), sorted(set(folders) - {""})
    labelled = len(classes) > 1 and all(folder_of[image] for image in images)
    if not labelled:
        return [(image, {}) for image in images], Features()
    # One a class, for of images there may be a million.
    row_of = {name: {"label": number} for number, name in enumerate(classes)}
    return [(image, row_of[folder_of[image]]) for image in images], Features(label=ClassLabel(names=classes))


def _open_images(root: str, rows: list[_Row], features: Features, *, with_bytes: bool) -> IterableDataset:
    """A stream over image files and what is known of each."""
    files = [(os.path.join(root, image), row) for image, row in rows]
    # Every shard costs time and memory at each start of an epoch. Dealt out like cards, each holds all classes.
    shards = min(len(files), MOST_IMAGE_SHARDS)
    features = Features({"image": _STORED_IMAGE, **features})
    dealt = [files[shard::shards] for shard in range(shards)]
    read = _read_images if with_bytes else _name_images
    return IterableDataset.from_generator(read, features=features, gen_kwargs={"shards": dealt})


def _read_images(shards: list[list[_Row]]) -> Iterator[dict]:
    for row in _name_images(shards):
        try:
            with open(row["image"]["path"], "rb") as file:
                content = file.read(DEFAULT_LIMITS.max_bytes + 1)  # enough for the decoder to see that it is too much
        except OSError:
            content = b""  # refused and counted as a bad sample under its path, like any other damaged image
        row["image"]["bytes"] = content
        yield row


def _name_images(shards: list[list[_Row]]) -> Iterator[dict]:
    for path, row in (file for shard in shards for file in shard):
        yield {"image": {"bytes": None, "path": path}, **row}
