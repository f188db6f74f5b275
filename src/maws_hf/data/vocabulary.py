"""The classes of weakly supervised training: which synsets are frequent enough, and how frequent each is."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..whole_files import to_json, write_atomically

__all__ = ["LabelClass", "Vocabulary", "VocabularyError"]


class VocabularyError(ValueError):
    """A file is no vocabulary; the message names the file and the field."""


@dataclass(frozen=True)
class LabelClass:
    """A class: a WordNet 3.0 noun synset.

    Attributes:
        id: ImageNet's way of writing it, `n02099601`.
        name: its most usual word.
        gloss: its definition.
        count: images that have this label.
        rarest: images whose rarest label in the vocabulary is this one.
        tags: the tags that became this label, most frequent first, with their occurrences.
    """

    id: str
    name: str
    gloss: str
    count: int
    rarest: int
    tags: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Classes by falling count, equal ones by id; a class's place is its index in the model's output.

    Attributes:
        images: images that have at least one label of the vocabulary, which is the sum of `rarest`.
        min_count: a synset on fewer images is no class.
        classes: the classes.

    The rarest label of an image is the last of its labels in this order.
    """

    images: int
    min_count: int
    classes: tuple[LabelClass, ...]

    def __post_init__(self) -> None:
        ids = [label.id for label in self.classes]
        if len(set(ids)) < len(ids):
            raise VocabularyError(f"classes: {next(i for i in ids if ids.count(i) > 1)} is there twice")
        if list(self.classes) != sorted(self.classes, key=lambda label: (-label.count, label.id)):
            raise VocabularyError("classes: they are not in the order of falling count, then id")
        if self.images != (rarest := sum(label.rarest for label in self.classes)):
            raise VocabularyError(f"images: {self.images} is not the sum of all `rarest`, {rarest}")

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each synset id."""
        return {label.id: place for place, label in enumerate(self.classes)}

    def encode(self, synset_ids: Iterable[str]) -> list[int]:
        """Indices of the classes among the synsets, each once, ascending; other synsets are ignored."""
        return sorted({self.index[synset] for synset in synset_ids if synset in self.index})

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a `vocabulary.json`.

        Raises:
            VocabularyError: it is not one; names the field.
            OSError: it cannot be read.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise VocabularyError(f"{path} is not JSON ({error}): build it again") from error
        try:
            return cls(**_checked(content, _VOCABULARY, ""))
        except VocabularyError as error:
            raise VocabularyError(f"{path} is not a vocabulary: {error}; build it again") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in one step: a reader sees the old file or the new one."""
        write_atomically(Path(path), to_json(asdict(self)))


def _checked(content: Any, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`content` with exactly these fields, each through its reader."""
    if not isinstance(content, dict):
        raise VocabularyError(f"{where or 'the file'}: expected an object, got {_short(content)}")
    where = f"{where}." if where else ""
    for name in [*fields, *content]:
        if name not in content:
            raise VocabularyError(f"{where}{name}: missing")
        if name not in fields:
            raise VocabularyError(f"{where}{name}: unknown field")
    return {name: read(content[name], f"{where}{name}") for name, read in fields.items()}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise VocabularyError(f"{where}: expected text, got {_short(value)}")
    return value


def _number(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise VocabularyError(f"{where}: expected a whole number, 0 or more, got {_short(value)}")
    return value


def _list(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise VocabularyError(f"{where}: expected a list, got {_short(value)}")
    return value


def _tags(value: Any, where: str) -> tuple[tuple[str, int], ...]:
    pairs = [_list(pair, where) for pair in _list(value, where)]
    if any(len(pair) != 2 for pair in pairs):
        raise VocabularyError(f"{where}: expected pairs of a tag and its count")
    return tuple((_text(tag, where), _number(count, where)) for tag, count in pairs)


def _classes(value: Any, where: str) -> tuple[LabelClass, ...]:
    labels = enumerate(_list(value, where))
    return tuple(LabelClass(**_checked(label, _LABEL_CLASS, f"{where}[{place}]")) for place, label in labels)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


_LABEL_CLASS = {"id": _text, "name": _text, "gloss": _text, "count": _number, "rarest": _number, "tags": _tags}
_VOCABULARY = {"images": _number, "min_count": _number, "classes": _classes}
