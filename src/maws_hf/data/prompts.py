"""What zero-shot classification says to the text tower: names of classes, in sentences with a hole.

A file of prompts is JSON, in any language:

    {"language": "fr", "source": "where they are from", "licence": "CC0-1.0",
     "templates": ["une photo de {}."],
     "classes": [["tanche"], ["poisson rouge", "cyprin dore"]]}

`classes` is a list, one entry for each class in the order of the data set's integers (of its class names' numbers,
where these are "0", "1", "10" and so on), or an object from label to names: `{"n01440764": ["tanche"]}`. `source` (the
file's name if it is left out) and `licence` may be there, `sha256` is then checked, and `about` is read by people.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from ..evaluation.label_maps import IMAGENET_CLASSES, imagenet_classes, is_number
from .captions import clean_caption
from .samples import element_of

__all__ = [
    "DEFAULT_TEMPLATES",
    "RESOURCES",
    "Captions",
    "Prompts",
    "PromptsError",
    "load_prompts",
    "prompts_from_captions",
    "prompts_from_names",
    "read_captions",
]

RESOURCES = {name: Path(__file__).with_name("resources") / f"prompts_{name}.json" for name in ("imagenet", "food101")}
DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image that shows a {}.")  # ours, of no paper

Label = int | str
Captions = dict[Label, dict[str, list[str]]]  # of each label and language the texts

_REQUIRED = ("language", "templates", "classes")
_OPTIONAL = ("source", "licence", "about", "sha256")


class PromptsError(ValueError):
    """Prompts are malformed or do not fit the data; the message names the file or language, and the key."""


@dataclass(frozen=True)
class Prompts:
    """Names of C classes and the templates to put them in.

    Attributes:
        templates: sentences with `{}` once, where the name goes.
        classes: of each class its names, one or several.
        language: BCP 47 code, as `fr`.
        source: where the words are from.
        licence: of the words.
        labels: of each class the label of the data set; None if classes are numbered from 0.

    Raises:
        PromptsError: a template without its hole, a class without a name; names the key.
    """

    templates: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    language: str
    source: str
    licence: str = ""
    labels: tuple[Label, ...] | None = None

    def __post_init__(self) -> None:
        if not self.templates:
            raise PromptsError('templates: there is none; ["{}"] is the name alone')
        for place, template in enumerate(self.templates):
            before, hole, after = template.partition("{}")
            if not hole or set("{}") & set(before + after):
                raise PromptsError(f"templates[{place}]: {template!r} must hold {{}} once and no other brace")
        if not self.classes:
            raise PromptsError("classes: there is none")
        if self.labels is not None and len(self.labels) != len(self.classes):
            raise PromptsError(f"labels: {len(self.labels)} for {len(self.classes)} classes")
        for place, names in enumerate(self.classes):
            if not names or not all(name.strip() for name in names):
                raise PromptsError(f"classes[{self.label_of(place)!r}]: it needs a name, and none may be empty")

    def __len__(self) -> int:
        return len(self.classes)

    def label_of(self, place: int) -> Label:
        return place if self.labels is None else self.labels[place]

    def texts(self, place: int) -> list[str]:
        """Every template with every name of a class."""
        return [template.replace("{}", name) for template in self.templates for name in self.classes[place]]

    def unique_names(self, class_names: Sequence[str] | None = None) -> list[str]:
        """The first name of each class, with its label (or the class name of it) where classes share a name."""
        first, count = [names[0] for names in self.classes], Counter(names[0] for names in self.classes)
        labels = [self.label_of(place) for place in range(len(self))]
        if class_names is not None:
            labels = [class_names[int(label)] for label in labels]
        return [name if count[name] == 1 else f"{name} ({label})" for name, label in zip(first, labels, strict=True)]

    def select(self, labels: Sequence[Label], class_names: Sequence[str] | None = None) -> "Prompts":
        """The prompts of these labels, in their order.

        Numbered classes are matched by number. Where `class_names` are given and each of them, underscores read as
        spaces, is the name of one class, they are matched by name: Food-101 is stored in more than one order. Class
        names that count from 0 or from 1 say themselves which they are, whatever place they have (folders "0", "1",
        "10" are not the classes 0 to 2), and WordNet ids are those of ImageNet's 1000. An object's keys are matched
        with the labels, or with the class names of integers.

        Args:
            labels: integers or strings.
            class_names: of a ClassLabel column, in the order of its integers.

        Raises:
            PromptsError: a label has no prompts, there are more or fewer classes than class names, or these are
                numbers that do not say which class is meant.
        """
        places = self._places(labels, class_names)
        return replace(self, classes=tuple(self.classes[place] for place in places), labels=tuple(labels))

    def _places(self, labels: Sequence[Label], class_names: Sequence[str] | None) -> list[int]:
        if self.labels is not None:
            index = {str(label): place for place, label in enumerate(self.labels)}
            keys = [str(label) if class_names is None else class_names[int(label)] for label in labels]
            if absent := [key for key in keys if key not in index]:
                raise PromptsError(f"classes: no prompts for {len(absent)} labels of the data, such as {absent[0]!r}")
            return [index[key] for key in keys]
        if texts := [label for label in labels if isinstance(label, str)]:
            raise PromptsError(
                f"classes: a list, but the labels are texts such as {texts[0]!r}: give an object from label to names"
            )
        if class_names is not None:
            if (by_name := self._by_name(class_names) or self._by_number(class_names)) is not None:
                return [by_name[int(label)] for label in labels]
            if len(class_names) != len(self):
                raise PromptsError(f"classes: {len(self)}, but the label column has {len(class_names)}")
            self._refuse_another_order(class_names)
        if outside := [label for label in labels if not 0 <= int(label) < len(self)]:
            raise PromptsError(f"classes: {len(self)}, but the data has the label {outside[0]}")
        return [int(label) for label in labels]

    def _refuse_another_order(self, class_names: Sequence[str]) -> None:
        """Numbers are only trusted where no name says otherwise; one that the data has twice says nothing."""
        places = {_plain(name): place for place, names in enumerate(self.classes) for name in names}
        plain = [_plain(name) for name in class_names]
        count = Counter(plain)
        for number, name in enumerate(plain):
            place = places.get(name, number)
            if place != number and count[name] == 1 and name not in map(_plain, self.classes[number]):
                raise PromptsError(
                    f"classes: {class_names[number]!r} is number {number} in the data and {place} here, and not all "
                    "names agree: give an object from class name to names"
                )

    def _by_name(self, class_names: Sequence[str]) -> list[int] | None:
        owners: dict[str, set[int]] = {}
        for place, names in enumerate(self.classes):
            for name in names:
                owners.setdefault(_plain(name), set()).add(place)
        found = [owners.get(_plain(name), set()) for name in class_names]
        return [owner for (owner,) in found] if all(len(places) == 1 for places in found) else None

    def _by_number(self, class_names: Sequence[str]) -> list[int] | None:
        """What class names that are numbers, or ImageNet's WordNet ids, say themselves; None of other names."""
        if len(self) == IMAGENET_CLASSES and set(class_names) <= imagenet_classes().keys():
            numbers = {wnid: number for number, wnid in enumerate(imagenet_classes())}
            return [numbers[name] for name in class_names]
        if not all(map(is_number, class_names)):
            return None
        numbers = [int(name) for name in class_names]
        if len(numbers) != len(self):
            return None
        for first in (0, 1):
            if sorted(numbers) == list(range(first, first + len(self))):
                return [number - first for number in numbers]
        if numbers == sorted(set(numbers)):
            return list(range(len(self)))  # years, say
        raise PromptsError(
            f"classes: a list of {len(self)}, but the label column names its classes by numbers, {class_names[0]}, "
            f"{class_names[1]} ..., that count from neither 0 nor 1 and are not in order: give an object from class "
            "name to names"
        )


def load_prompts(name_or_file: str | Path) -> Prompts:
    """Prompts that come with the package (`imagenet`, `food101`), or those of a JSON file.

    `imagenet` and `food101` are CLIP's public ones. Those of the MAWS evaluation are not in its repository; it names
    its French templates after OpenAI's.

    Raises:
        PromptsError: no such file, or it is malformed; names file and key.
    """
    path = RESOURCES.get(str(name_or_file), Path(name_or_file))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(RESOURCES)
        raise PromptsError(
            f"{path}: prompts cannot be read ({error.strerror}): give a JSON file or one of {known}"
        ) from error
    except ValueError as error:
        raise PromptsError(f"{path} is not JSON in UTF-8: {error}") from error
    try:
        return _parse(content, path.name)
    except PromptsError as error:
        raise PromptsError(f"{path}: {error}") from error


def prompts_from_names(names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Prompts:
    """Prompts of a label column's own names, underscores read as spaces; taken for English."""
    classes = tuple((name.replace("_", " "),) for name in names)
    return Prompts(tuple(templates), classes, "en", "class names of the data set")


def read_captions(dataset: IterableDataset, *, label_column: str, caption_column: str = "captions") -> Captions:
    """Of each label and language the different captions, in the order of the rows; those of no language are left out.

    Args:
        dataset: from `open_stream`; its captions are lists of `{"language", "text"}`.
        label_column: integers or strings.

    Raises:
        PromptsError: no such column, or it holds something else.
    """
    kind = dataset.features.get(caption_column)
    if kind is None:
        raise PromptsError(
            f"no caption column {caption_column!r} among {', '.join(dataset.features)}: name it with "
            "--caption_column_name"
        )
    inner = element_of(kind)
    if inner is kind or not isinstance(inner, dict) or not {"language", "text"} <= inner.keys():
        raise PromptsError(f"the captions in {caption_column} are {kind}: lists of {{language, text}} are wanted")
    captions: Captions = {}
    for row in dataset.select_columns(list(dict.fromkeys([label_column, caption_column]))):
        if row[label_column] is None:
            continue
        languages = captions.setdefault(row[label_column], {})
        for caption in row[caption_column] or ():
            if caption is None or caption["language"] is None:
                continue  # nobody can ask for it
            text, names = clean_caption(caption["text"] or ""), languages.setdefault(caption["language"], [])
            if text and text not in names:
                names.append(text)
    return captions


def prompts_from_captions(captions: Captions, language: str, templates: Sequence[str] = ("{}",)) -> Prompts:
    """The captions in one language as names; labels without one are left out.

    Raises:
        PromptsError: no label has a caption in that language; names those there are.
    """
    named = {label: tuple(names) for label, languages in captions.items() if (names := languages.get(language))}
    if not named:
        there = sorted({name for languages in captions.values() for name, texts in languages.items() if texts})
        more = f" and {len(there) - 12} more" if len(there) > 12 else ""
        raise PromptsError(f"no caption is in the language {language!r}: there are {', '.join(there[:12])}{more}")
    return Prompts(tuple(templates), tuple(named.values()), language, "captions of the data set", labels=tuple(named))


def _parse(content: Any, file_name: str) -> Prompts:
    if not isinstance(content, dict):
        raise PromptsError(f"expected an object with {', '.join(_REQUIRED)}, got {_short(content)}")
    for key in _REQUIRED:
        if key not in content:
            raise PromptsError(f"{key}: missing")
    for key, value in content.items():
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise PromptsError(f"{key}: unknown key, there are {', '.join((*_REQUIRED, *_OPTIONAL))}")
        if key not in ("templates", "classes") and not isinstance(value, str):
            raise PromptsError(f"{key}: expected text, got {_short(value)}")
    templates, classes = content["templates"], content["classes"]
    digest = _digest(templates, classes)
    if content.get("sha256", digest) != digest:
        raise PromptsError(f"sha256: templates and classes have {digest}: they have been changed since it was written")
    if not isinstance(classes, list | dict):
        raise PromptsError(f"classes: expected a list or an object from label to names, got {_short(classes)}")
    entries = classes.items() if isinstance(classes, dict) else enumerate(classes)
    return Prompts(
        templates=_texts(templates, "templates"),
        classes=tuple(_texts(names, f"classes[{label!r}]") for label, names in entries),
        language=content["language"],
        source=content.get("source", file_name),
        licence=content.get("licence", ""),
        labels=tuple(classes) if isinstance(classes, dict) else None,
    )


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise PromptsError(f"{key}: expected a list of texts, got {_short(value)}")
    return tuple(value)


def _digest(templates: Any, classes: Any) -> str:
    """SHA-256 of both as compact JSON in UTF-8."""
    content = {"templates": templates, "classes": classes}
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
