"""What folders and names say of the files in a data set: the split that each belongs to, and the class of an image."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

__all__ = ["ClassFolders", "DataSourceError", "Layout", "find_classes", "find_splits", "split_called"]

_KEYWORDS = {
    "train": ("train", "training", "trainset", "trainval"),
    "validation": ("validation", "valid", "val", "dev", "valset", "devset"),
    "test": ("test", "testing", "eval", "evaluation", "testset"),
}
_SPLIT_NAMES = {keyword: split for split, keywords in _KEYWORDS.items() for keyword in keywords}
_SEPARATORS = r"[-._ 0-9]+"  # those of `datasets`
# A folder called by nothing else is no class but held out; `valid` may well be a class.
_HELD_OUT = _SPLIT_NAMES.keys() - {*_KEYWORDS["train"], "valid"}
_ADDED_TO_IT = {"and", "data", "image", "images", "img", "imgs", "photos", "pictures", "set", "split"}


class DataSourceError(ValueError):
    """The data set cannot be opened as asked; the message says what was found and what to type."""


class Layout(NamedTuple):
    """The split of each file, and the level of folders that tells it, counted from 0; None where none does."""

    splits: list[str]
    level: int | None


class ClassFolders(NamedTuple):
    """The class folder of each image, nothing for one that lies in none; and if there is no telling, the reason."""

    folders: list[str]
    unclear: str | None = None


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
    *folders, names = _levels(files)
    words = [_first_word(name) for name in names] if names_are_words else names
    the_only_one = None
    for level, said in [*enumerate(folders), (None, names), (None, words)]:
        splits = _splits_of(said)
        if splits is not None and len(set(splits)) > 1:
            return Layout(splits, level)
        if splits is not None and (level is not None or said is words):  # not of captions that share a keyword
            the_only_one = the_only_one or Layout(splits, level)
    if the_only_one is not None:
        return the_only_one
    if root:
        for said in folders:
            splits = [_split_in(name) for name in said]
            if len({*splits} - {None}) > 1 or any(map(_is_held_out, said)):
                _refuse(root, files, splits)
        splits = [_split_in(word) for word in words]
        found = {*splits} - {None}
        if len(found) > 1 or (found - {"train"} and not names_are_words):
            _refuse(root, files, splits)
    return Layout(["train"] * len(files), None)


def _splits_of(names: Sequence[str]) -> list[str] | None:
    """The split of each; None as soon as one has none, for there may be a million."""
    splits = []
    for name in names:
        splits.append(_split_in(name))
        if splits[-1] is None:
            return None
    return splits


def _refuse(root: str, files: Sequence[str], splits: Sequence[str | None]) -> None:
    stray = files[splits.index(None)]
    found = sorted({split for split in splits if split})
    glob_of_all = os.path.join(glob.escape(root), "**", f"*{os.path.splitext(stray)[1]}")
    if found:
        there = f"the split{'s' if len(found) > 1 else ''} {', '.join(found)}, but {stray} belongs to none of them"
    else:
        there = f"{stray}, whose folder is called like several splits"
    raise DataSourceError(
        f"{root} has {there}: move it away, or name the folder or the files of one split (as a quoted glob; "
        f"'{glob_of_all}' reads all of its kind as one)"
    )


def find_classes(images: Sequence[str], layout: Layout, *, are_picked: bool) -> ClassFolders:
    """What the folders of images say of their classes.

    Classes are the one level of folders, besides that of the splits, in which the images of a split differ. Where they
    differ in several, as in `cat/2020` and `dog/2021`, there is no telling which: then there are no classes, which
    matters to those only who want labels.

    Args:
        are_picked: by the user, whatever the splits: the level that would tell these may tell classes, if no other
            does.
    """
    levels = _levels(images)[:-1]
    of_splits = [] if layout.level is None else [levels.pop(layout.level)]
    levels = [level for level in levels if len(set(zip(layout.splits, level, strict=True))) > len(set(layout.splits))]
    if are_picked and not levels:
        levels = [level for level in of_splits if len(set(level)) > 1]
    if len(levels) == 1:
        return ClassFolders(levels[0])
    unclear = None
    if levels:
        example = os.path.dirname(next(image for image, folder in zip(images, levels[-1], strict=True) if folder))
        unclear = (
            f"images lie in nested folders such as {example}, or at several depths, and which level names the classes "
            "cannot be told: give a folder in which only one level differs"
        )
    return ClassFolders([""] * len(images), unclear)


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
def _split_in(name: str) -> str | None:
    """The split that the words of a name mean, as in `val2017`, `test_images` or `cifar10-train-0.parquet`."""
    splits = {_SPLIT_NAMES[word] for word in _words(name) if word in _SPLIT_NAMES}
    if splits == {"train", "validation"}:
        return "train"  # `train_val2018`, to be trained on as a whole
    return splits.pop() if len(splits) == 1 else None


def _first_word(name: str) -> str:
    return re.match(r"[a-zA-Z]*", name)[0]


@lru_cache(maxsize=2**16)
def _is_held_out(folder: str) -> bool:
    """Whether a folder is called just like a split to be kept out of training: `test`, `val2017`, `test_images`."""
    words = set(_words(folder))
    return bool(words & _HELD_OUT) and words <= _HELD_OUT | _ADDED_TO_IT


def _words(name: str) -> list[str]:
    return [word for word in re.split(_SEPARATORS, name.lower()) if word]
