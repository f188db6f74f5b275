"""What folders and names say of the files in a data set: the split that each belongs to, and the class of an image."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

__all__ = ["DataSourceError", "Layout", "find_classes", "find_splits", "split_called"]

_KEYWORDS = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "val", "dev", "valset", "devset"),
    "test": ("test", "testing", "eval", "evaluation", "testset"),
}
_SPLIT_NAMES = {keyword: split for split, keywords in _KEYWORDS.items() for keyword in keywords}
_SEPARATORS = r"[-._ 0-9]+"  # those of `datasets`


class DataSourceError(ValueError):
    """The data set cannot be opened as asked; the message says what was found and what to type."""


class Layout(NamedTuple):
    """The split of each file, and the level of folders that tells it, counted from 0; None where none does."""

    splits: list[str]
    level: int | None


def split_called(name: str) -> str:
    """The split that goes by this name."""
    return _SPLIT_NAMES.get(name, name)


def find_splits(files: Sequence[str], root: str, *, names_are_words: bool) -> Layout:
    """Tells the splits by the first level of folders, or by the names of the files, that has one for every file.

    A level that has two or more splits wins over one that has a single one, for that may be the name of a whole. All
    files are "train" where no level has a split for each of them, for `train` may also be a class: but not where that
    would train on what looks held out.

    Args:
        files: relative to `root`.
        root: for messages. Empty for files that the user has picked, of which none is refused.
        names_are_words: the files' names are captions as likely as anything, so that a keyword in them means a split
            only at the beginning, or where every name has one and they differ.

    Raises:
        DataSourceError: some files are in a split by their names and others in none.
    """
    levels = _levels(files)
    for level, said in enumerate(levels):
        if all(len(_splits_in(name)) == 1 for name in said):
            splits = [next(iter(_splits_in(name))) for name in said]
            if len(set(splits)) > 1:
                return Layout(splits, level if level < len(levels) - 1 else None)

    if names_are_words:
        levels[-1] = [_first_word(name) for name in levels[-1]]
    the_only_one = None
    for level, said in enumerate(levels):
        found = [_splits_in(name) for name in said]
        splits = sorted(set().union(*found))
        if len(splits) == 1 and all(found):
            the_only_one = the_only_one or Layout(splits * len(files), level if level < len(levels) - 1 else None)
        elif root and (len(splits) > 1 or (level < len(levels) - 1 and any(map(_is_held_out, said)))):
            stray = next(file for file, names in zip(files, found, strict=True) if len(names) != 1)
            raise DataSourceError(
                f"{root} has the split{'s' if len(splits) > 1 else ''} {', '.join(splits)}, but {stray} belongs to "
                "none of them: move it away, or name the folder or the files of one split (as a quoted glob; "
                f"'{os.path.join(root, '**', '*' + os.path.splitext(stray)[1])}' reads all as one)"
            )
    return the_only_one or Layout(["train"] * len(files), None)


def find_classes(images: Sequence[str], level_of_splits: int | None) -> list[str]:
    """The class folder of each image; nothing for one that lies in none.

    Classes are the one level of folders, besides that of the splits, in which the images differ. Where they differ in
    several, as in `cat/2020` and `dog/2021`, there is no telling which: then there are no classes, and a warning.
    """
    levels = _levels(images)[:-1]
    if level_of_splits is not None:
        del levels[level_of_splits]
    levels = [level for level in levels if len(set(level)) > 1]
    if len(levels) == 1:
        return levels[0]
    if levels:
        example = os.path.dirname(next(image for image, folder in zip(images, levels[-1], strict=True) if folder))
        warnings.warn(
            f"images lie in nested folders such as {example}, and which level names the classes cannot be told: they "
            "are read without labels; for labels, give a folder in which only one level differs",
            stacklevel=2,
        )
    return [""] * len(images)


def _levels(files: Sequence[str]) -> list[list[str]]:
    """The names of all files' folders, level by level with "" for files that lie higher up, and last their own."""
    folders = [file.rpartition(os.sep)[0] for file in files]
    distinct = list(dict.fromkeys(folders))  # a million files may lie in a thousand folders
    levels = []
    for names in zip_longest(*(folder.split(os.sep) for folder in distinct), fillvalue=""):
        name_of = dict(zip(distinct, names, strict=True))
        levels.append([name_of[folder] for folder in folders])
    return [*levels, [file.rpartition(os.sep)[2] for file in files]]


@lru_cache(maxsize=2**16)
def _splits_in(name: str) -> frozenset[str]:
    """Splits that the words of a name mean, as in `val2017`, `test_images` or `cifar10-train-0.parquet`."""
    return frozenset(_SPLIT_NAMES[word] for word in re.split(_SEPARATORS, name.lower()) if word in _SPLIT_NAMES)


def _first_word(name: str) -> str:
    return re.match(r"[a-zA-Z]*", name)[0]


def _is_held_out(folder: str) -> bool:
    """Whether a folder is called just like a split to be kept out of training, say `test` or `val2017`."""
    return _SPLIT_NAMES.get(folder.lower().rstrip("0123456789"), "train") != "train"
