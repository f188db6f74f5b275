"""From the label column of a row to class indices: the targets of WSP."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Features, Value

from .samples import KEY, Sample, element_of
from .sources import DataSourceError
from .vocabulary import Vocabulary

NO_LABEL = -100  # transformers' padding of labels; the loss passes over it
LABELS_OF_FOLDERS = "images in folders have labels if there are two or more class folders"
UNLABELLED = (None, -1, NO_LABEL)  # what columns of labels hold for an image without one


@dataclass(frozen=True)
class LabelReader:
    """Class indices of a row, from synset ids and a vocabulary, from names of classes, or from indices as they are.

    Args:
        column: of the labels.
        names: of the classes, in the order of their indices; each occurs once.
        vocabulary: for columns of synset ids.
        told: names that the integers of this split stand for, where they are not `names` in that order.
        texts: the column has `names` themselves.
    """

    column: str
    names: tuple[str, ...]
    vocabulary: Vocabulary | None = None
    told: tuple[str, ...] | None = None
    texts: bool = False

    def multi_hot(self, sample: Sample) -> np.ndarray:
        """bool `(C,)`: the classes of a row; all False for an image without labels. Raises as calling does."""
        row = np.zeros(len(self.names), dtype=bool)
        row[self(sample)] = True
        return row

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same classes in the same order, read from the same column."""
        ids = self.names if self.vocabulary is None else [label.id for label in self.vocabulary.classes]
        return hashlib.sha256(json.dumps([self.column, *ids]).encode()).hexdigest()[:12]

    def __call__(self, sample: Sample) -> list[int]:
        """Distinct indices in ascending order; none for an image without labels, for which -1 and -100 stand too.

        Raises:
            ValueError: a label is no class; names the sample, the label and the range.
        """
        value = sample[self.column]
        if value is None:
            return []
        values = value if isinstance(value, list | tuple | np.ndarray) else [value]
        if self.vocabulary is not None:
            return self.vocabulary.encode([synset for synset in values if synset is not None])
        if self.texts:
            return sorted({self._number(name, sample) for name in values if name is not None})
        indices = sorted({int(label) for label in values if label not in UNLABELLED})
        known = len(self.names if self.told is None else self.told)
        if indices and not 0 <= indices[0] <= indices[-1] < known:
            wrong = indices[0] if indices[0] < 0 else indices[-1]
            raise ValueError(f"{sample.get(KEY)}: label {wrong} in {self.column} is not in 0..{known - 1}")
        return indices if self.told is None else sorted(self._number(self.told[index], sample) for index in indices)

    def _number(self, name: str, sample: Sample) -> int:
        if name not in self._numbers:
            raise ValueError(
                f"{sample.get(KEY)}: its class {name} in {self.column} is none of the {len(self.names)} of the "
                "training split"
            )
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def of_split(self, features: Features) -> "LabelReader":
        """The same classes, for a split whose integers may stand for them in another order."""
        kind = element_of(features.get(self.column))
        same = self.vocabulary is not None or not isinstance(kind, ClassLabel) or tuple(kind.names) == self.names
        return self if same else replace(self, told=tuple(kind.names))


def find_labels(
    features: Features,
    column: str | None,
    *,
    vocabulary_file: Path | None = None,
    num_labels: int | None = None,
    texts_in: Callable[[str], Iterable[str]] | None = None,
    why_none: str | None = None,
) -> LabelReader:
    """How to read the labels of a data set.

    Args:
        features: of the data set.
        column: of the labels; `synsets`, `labels` or `label`, whichever is there first, when None.
        vocabulary_file: of `scripts/build_wsp_labels.py`, for a column of synset ids.
        num_labels: classes, where the column is of plain integers.
        texts_in: gives all texts of a column, which then are classes, by alphabet, if it is of texts and
            `vocabulary_file` is not there.
        why_none: what is known of why there may be no labels, for the message.

    Raises:
        DataSourceError: no such column, nothing says what its classes are, or there is only one.
    """
    if column is None:
        column = next((name for name in ("synsets", "labels", "label") if name in features), None)
    if column is None or column not in features:
        raise DataSourceError(
            f"no column {column or 'synsets, labels or label'} among {', '.join(features)}: name the labels with "
            "--label_column_name, or make them from tags with scripts/build_wsp_labels.py; "
            f"{why_none or LABELS_OF_FOLDERS}"
        )
    reader = _find_reader(features, column, vocabulary_file, num_labels, texts_in)
    if len(reader.names) < 2:
        raise DataSourceError(f"the labels in {reader.column} are of {len(reader.names)} class: two are the least")
    return reader


def _find_reader(
    features: Features,
    column: str,
    vocabulary_file: Path | None,
    num_labels: int | None,
    texts_in: Callable[[str], Iterable[str]] | None,
) -> LabelReader:
    kind = element_of(features[column])
    if isinstance(kind, ClassLabel):
        return LabelReader(column, tuple(kind.names))
    if isinstance(kind, Value) and "string" in kind.dtype:
        if vocabulary_file is None or not vocabulary_file.is_file():
            if texts_in is not None:
                return LabelReader(column, tuple(sorted(set(texts_in(column)))), texts=True)
            raise DataSourceError(
                f"the labels in {column} are strings: synset ids need their vocabulary, and {vocabulary_file} is not "
                "there (--vocabulary_file; scripts/build_wsp_labels.py makes both from tags); names of classes must "
                "be stored as a ClassLabel column"
            )
        vocabulary = Vocabulary.load(vocabulary_file)
        return LabelReader(column, class_names(vocabulary), vocabulary)
    if isinstance(kind, Value) and "int" in kind.dtype:
        if num_labels is None:
            raise DataSourceError(f"the labels in {column} are plain integers: say of how many classes, --num_labels")
        return LabelReader(column, tuple(map(str, range(num_labels))))
    raise DataSourceError(f"the labels in {column} are of type {kind}: class indices or synset ids are wanted")


def class_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Readable names, `golden retriever`; where two synsets share one, with the id: `crane (n02012849)`."""
    shared = Counter(label.name for label in vocabulary.classes)
    return tuple(
        f"{label.name} ({label.id})" if shared[label.name] > 1 else label.name for label in vocabulary.classes
    )


def pad_labels(labels: Sequence[int], places: int, rng: np.random.Generator) -> np.ndarray:
    """`(places,)` int32 with `NO_LABEL` behind the labels; where there are more of them, a random choice.

    With 16 places that is 64 bytes an image, whatever the number of classes.
    """
    if len(labels) > places:
        labels = sorted(rng.choice(labels, size=places, replace=False).tolist())
    padded = np.full(places, NO_LABEL, dtype=np.int32)
    padded[: len(labels)] = labels
    return padded


__all__ = ["NO_LABEL", "UNLABELLED", "LabelReader", "class_names", "find_labels", "pad_labels"]
