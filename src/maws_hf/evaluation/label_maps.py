"""Which class is which: ImageNet's order, the classes that other test sets share with it, and who calls them what.

A *class number* is a place in ImageNet's order of 1000 classes: their WordNet ids ("wnids", as n01440764), sorted. The
tables are in `data/resources`, each with its source and a checksum of its content, verified when it is read.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).parents[1] / "data" / "resources"
IMAGENET_CLASSES = 1000

_WNID = re.compile(r"n\d{8}")


class LabelMapError(ValueError):
    """Labels of a model or of data cannot be told; the message names one of them and what would do."""


# ---------------------------------------------------------------- tables


def read_table(file: Path) -> dict[str, Any]:
    """The `classes` of a JSON table.

    Raises:
        LabelMapError: it has been changed since its checksum was written.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    compact = json.dumps(content["classes"], ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(compact.encode()).hexdigest()
    if digest != content["sha256"]:
        raise LabelMapError(
            f"{file}: its classes have the sha256 {digest}, not {content['sha256']}: the file is damaged or was "
            "edited; install the package again"
        )
    return content["classes"]


@cache
def imagenet_classes() -> dict[str, str]:
    """The wnid of each class and its names (`"tench, Tinca tinca"`), in ImageNet's order."""
    return read_table(RESOURCES / "imagenet_classes.json")


@cache
def imagenet_subset(name: str) -> tuple[int, ...]:
    """The 200 class numbers of `imagenet_a` or `imagenet_r`, ascending."""
    return tuple(sorted(_number_of_wnid()[wnid] for wnid in read_table(RESOURCES / "imagenet_subsets.json")[name]))


@cache
def objectnet_classes() -> dict[str, tuple[int, ...]]:
    """ObjectNet's 313 folders and the class numbers of each: several for some, none for the 200 not in ImageNet."""
    table = read_table(RESOURCES / "objectnet_classes.json")
    return {folder: tuple(_number_of_wnid()[wnid] for wnid in wnids) for folder, wnids in table.items()}


@cache
def _number_of_wnid() -> dict[str, int]:
    return {wnid: number for number, wnid in enumerate(imagenet_classes())}


# ---------------------------------------------------------------- labels of data


def class_number(label: int | str) -> int:
    """A label by itself: a wnid, or the class number, as an integer or in digits (so ImageNetV2 names its folders).

    Raises:
        LabelMapError: it is neither.
    """
    if isinstance(label, str) and label in _number_of_wnid():
        return _number_of_wnid()[label]
    text = str(label)
    if is_number(text) and int(text) < IMAGENET_CLASSES:
        return int(text)
    raise LabelMapError(
        f"the label {label!r} is no class of ImageNet: a WordNet id such as n01440764 or a number from 0 to "
        f"{IMAGENET_CLASSES - 1} is wanted"
    )


def class_numbers(names: Sequence[str]) -> list[int]:
    """Those of a ClassLabel column's integers.

    Names that are wnids or digits are taken at their word, whatever place they have: folders "0", "1", "10", "100" are
    not the classes 0 to 3. Other names are understood if there are 1000 of them in ImageNet's order.

    Raises:
        LabelMapError: they are none of that; names the first that is not understood.
    """
    try:
        return [class_number(name) for name in names]
    except LabelMapError:
        if len(names) != IMAGENET_CLASSES:
            raise
    refuse_another_order(names, "the label column")
    return list(range(len(names)))


def object_folder(label: int | str) -> str:
    """ObjectNet's folder for a label, which is the folder's name.

    Raises:
        LabelMapError: there is no such folder.
    """
    if label in objectnet_classes():
        return str(label)
    raise LabelMapError(f"the label {label!r} is none of ObjectNet's 313 folders, such as 'air_freshener'")


# ---------------------------------------------------------------- classes of models


def model_columns(id2label: Mapping[int, str], classes: Sequence[int], who: str) -> list[int]:
    """Where a classifier has the logits of these classes.

    If all its labels are wnids, or all are class numbers (it was trained on folders "0", "1", "10"), they say so,
    whatever their number and order. If not (names, LABEL_0), it must have 1000 classes, which are taken to be in
    ImageNet's order.

    Args:
        id2label: as in the model's config.
        classes: class numbers.
        who: the model, for messages.

    Raises:
        LabelMapError: another number of classes without wnids or class numbers, names in another order, a class twice,
            or no output for some of the classes.
    """
    labels, wnids = [id2label[column] for column in sorted(id2label)], list(imagenet_classes())
    numbered = all(is_number(label) and int(label) < IMAGENET_CLASSES for label in labels)
    if numbered:
        labels = [wnids[int(label)] for label in labels]
    if not all(_WNID.fullmatch(label) for label in labels):
        if len(labels) != IMAGENET_CLASSES:
            raise LabelMapError(
                f"{who} has {len(labels)} classes, such as {labels[0]!r}: wanted are ImageNet's {IMAGENET_CLASSES} in "
                "their order, or a config.json whose id2label holds WordNet ids, such as n01440764"
            )
        refuse_another_order(labels, who)
        return list(classes)
    column_of = {wnid: column for column, wnid in enumerate(labels)}
    if len(column_of) < len(labels):
        double = next(wnid for column, wnid in enumerate(labels) if column_of[wnid] != column)
        raise LabelMapError(f"{who} has the class {double} twice in its id2label")
    missing = [wnids[number] for number in classes if wnids[number] not in column_of]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        how = "; its labels, which are numbers, were read as those of ImageNet's classes" if numbered else ""
        raise LabelMapError(
            f"{who} lacks {len(missing)} of {len(classes)} classes that it must know: {', '.join(missing[:3])}{more}"
            f"{how}"
        )
    return [column_of[wnids[number]] for number in classes]


def refuse_another_order(names: Sequence[str], who: str) -> None:
    """Numbers are trusted unless the names say that most classes are elsewhere; unknown names say nothing.

    Not a single one decides: lists differ in words (CLIP's "sunglasses" is the class that WordNet calls "sunglass").

    Raises:
        LabelMapError: more names are those of other classes than of their own, or all are numbers, but not in order.
    """
    if all(map(is_number, names)) and (numbers := [int(name) for name in names]) != sorted(numbers):
        raise LabelMapError(
            f"{who} has classes named by numbers up to {max(numbers)}, not in their order: number them from 0 to "
            f"{IMAGENET_CLASSES - 1}, or name them by WordNet ids, such as n01440764"
        )
    owners = _owners_of_names()
    known = [(number, name) for number, name in enumerate(names) if _plain(name) in owners]
    wrong = [(number, name) for number, name in known if number not in owners[_plain(name)]]
    if len(wrong) > len(known) - len(wrong):
        number, name = wrong[0]
        raise LabelMapError(
            f"{who} is not in ImageNet's order: its class {number} is {name!r}, which is {min(owners[_plain(name)])} "
            "there; label the classes with WordNet ids, such as n01440764"
        )


@cache
def _owners_of_names() -> dict[str, set[int]]:
    """Of each list of names, and of each first name, the class numbers; and of each wnid."""
    owners: dict[str, set[int]] = {}
    for number, (wnid, names) in enumerate(imagenet_classes().items()):
        for name in (wnid, names, names.split(", ")[0]):
            owners.setdefault(_plain(name), set()).add(number)
    return owners


def is_number(name: str) -> bool:
    """Whether a class is called by a number, as class folders often are."""
    return name.isascii() and name.isdigit()


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


__all__ = [
    "IMAGENET_CLASSES",
    "LabelMapError",
    "class_number",
    "class_numbers",
    "imagenet_classes",
    "imagenet_subset",
    "is_number",
    "model_columns",
    "object_folder",
    "objectnet_classes",
    "read_table",
    "refuse_another_order",
]
