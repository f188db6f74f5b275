"""What a `metadata.csv`, `.jsonl` or `.parquet` beside images says of them, read as by `datasets`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import pyarrow as pa
from datasets import Features

from maws_hf.data.layouts import DataSourceError

__all__ = ["METADATA_FILES", "ImageMetadata", "read_image_metadata"]

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class ImageMetadata(NamedTuple):
    """The files that say it, each image with a row of theirs, and the columns of these rows."""

    files: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    columns: Features


def read_image_metadata(
    root: str, files: Sequence[str], images: Sequence[str], split: Sequence[str]
) -> ImageMetadata | None:
    """What is said of a split's images, those without a row left out; None where no file says anything of images.

    Args:
        root: of the files; empty if they are paths themselves.
        files: all; a `file_name` in one of them is relative to its folder.
        images: of all splits.
        split: images of the one that is read.

    Raises:
        DataSourceError: a file cannot be read or names what is no image, those of the split have different columns, or
            none of its images has a row.
    """
    there, wanted = set(map(os.path.normpath, images)), set(map(os.path.normpath, split))
    told, columns, rows_of = [], Features(), {}
    metadata = {file: _read(os.path.join(root, file)) for file in files if os.path.basename(file) in METADATA_FILES}
    for file in [file for file, table in metadata.items() if "file_name" not in table.column_names]:
        warnings.warn(f"{os.path.join(root, file)} has no column file_name and is not read", stacklevel=2)
        del metadata[file]
    folders = [os.path.normpath(os.path.dirname(file)) for file in metadata]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise DataSourceError(
            f"{os.path.join(root, twice)} has more than one of {', '.join(METADATA_FILES)}: keep one of them"
        )
    if not any(_is_above(folder, image) for folder in folders for image in wanted):
        return None
    of_one_form: dict[str, str] = {}
    for file, table in metadata.items():
        found: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            name = str(row.pop("file_name"))
            image = os.path.normpath(os.path.join(os.path.dirname(file), name.replace("\\", "/")))
            if image not in there:
                # A Mac's archive or disk may write é as e with an accent, and the table as one letter.
                of_one_form = of_one_form or {normalize("NFC", path): path for path in there}
                image = of_one_form.get(normalize("NFC", image))
            if image is None:
                raise DataSourceError(
                    f"{os.path.join(root, file)}: there is no image {name}: put it there, or take its row out"
                )
            if image in wanted:
                found.setdefault(image, []).append(row)
        if not found:
            continue
        its = Features.from_arrow_schema(table.drop_columns(["file_name"]).schema)
        if "image" in its:
            raise DataSourceError(
                f"{os.path.join(root, file)}: rename its column image, which the images themselves are"
            )
        if told and its != columns:
            different = sorted(name for name in its | columns if its.get(name) != columns.get(name))
            raise DataSourceError(
                f"{os.path.join(root, file)} and {told[0]} disagree on the columns {', '.join(different)}: give both "
                "the same, of one type"
            )
        told.append(file)
        columns = its
        for image, rows in found.items():
            rows_of.setdefault(image, []).extend(rows)
    rows = [(image, row) for image in split for row in rows_of.get(os.path.normpath(image), ())]
    if not rows:
        raise DataSourceError(f"{', '.join(metadata)} in {root or 'the data'} has no row of an image in this split")
    if len(rows_of) < len(split):
        warnings.warn(
            f"{len(split) - len(rows_of)} of {len(split)} images have no row in {', '.join(told)} and are left out",
            stacklevel=2,
        )
    return ImageMetadata(told, rows, columns)


def _is_above(folder: str, image: str) -> bool:
    return folder == "." or image.startswith(folder + os.sep)


def _read(path: str) -> pa.Table:
    try:
        if path.endswith(".csv"):
            import pandas as pd

            # Its own types, of which integers may be missing somewhere.
            return pa.Table.from_pandas(pd.read_csv(path).convert_dtypes(), preserve_index=False)
        if path.endswith(".jsonl"):
            from pyarrow.json import read_json

            return read_json(path)
        from pyarrow.parquet import read_table

        return read_table(path)
    except (OSError, ValueError) as error:
        raise DataSourceError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
