"""From what stands beside an image to the caption that a training step sees.

A row may bring one text, several, texts in several languages, or several columns of them. One is drawn anew each time
the row comes up: first a *source* (a language, or a column of plain texts) by its weight, then one of its texts, all
alike. The paper says neither how captions were cleaned nor how they were chosen; both are ours.

Cleaning (`clean_caption`) takes out what no reader would call a description and what names people, and nothing else:
HTML tags and entities, web and mail addresses, @names, the # and the underscores of hashtags, control and invisible
characters; white space is folded, and Unicode composed (NFC). Case, punctuation, emoji and all scripts stay. A text
without a letter, digit or symbol is no caption. The first 1,000 characters are read.
"""

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Features, LargeList, List, Value

from .sources import DataSourceError
from .streaming import Sample

LONGEST_CAPTION = 1000  # characters; a hundred tokens are fewer in every script
CAPTION_COLUMN_NAMES = ("captions", "caption", "text", "txt")

_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+", re.IGNORECASE)
_NAME = re.compile(r"(?<!\w)@\w[\w.]*")
_HASHTAG = re.compile(r"(?<!\w)#(\w+)")


def clean_caption(text: str) -> str:
    """A caption as it is trained on; empty if nothing is left. What is taken out: see the head of this file."""
    text = html.unescape(text[:LONGEST_CAPTION])
    text = _ADDRESS.sub(" ", _TAG.sub(" ", text))
    text = _HASHTAG.sub(lambda match: match[1].replace("_", " "), _NAME.sub(" ", text))
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        " " if unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") else character for character in text
    )
    text = " ".join(text.split())
    return text if any(unicodedata.category(character)[0] in "LNS" for character in text) else ""


@dataclass(frozen=True)
class CaptionReader:
    """Draws captions of rows.

    Args:
        columns: of texts, of lists of texts, or of lists of `{"language", "text"}`.
        weights: of sources: languages, and columns of plain texts. A source that is not named is not read; None reads
            all, each with weight 1.
    """

    columns: tuple[str, ...]
    weights: Mapping[str, float] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same choice of captions."""
        weights = None if self.weights is None else sorted(self.weights.items())
        return hashlib.sha256(json.dumps([self.columns, weights]).encode()).hexdigest()[:12]

    def draw(self, sample: Sample, rng: np.random.Generator) -> str | None:
        """One caption, cleaned; None if the row has none."""
        texts: dict[str, list[str]] = {}
        for source, text in self.texts(sample):
            texts.setdefault(source, []).append(text)
        while texts:
            sources = list(texts)
            weights = np.array([1.0 if self.weights is None else self.weights[source] for source in sources])
            source = sources[rng.choice(len(sources), p=weights / weights.sum())]
            caption = clean_caption(texts[source].pop(rng.integers(len(texts[source]))))
            if caption:
                return caption
            if not texts[source]:
                del texts[source]
        return None

    def __call__(self, sample: Sample) -> float:
        """1 for a row with a caption, 0 for one without: a stream's rule of `repeats`, which leaves out the latter."""
        return float(any(clean_caption(text) for _, text in self.texts(sample)))

    def captions_in(self, sample: Sample, source: str) -> list[str]:
        """All captions of one source, cleaned."""
        cleaned = (clean_caption(text) for name, text in self.texts(sample) if name == source)
        return [text for text in cleaned if text]

    def texts(self, sample: Sample) -> Iterator[tuple[str, str]]:
        """All (source, text) of a row that may be drawn, as they are stored."""
        for column in self.columns:
            value = sample[column]
            if isinstance(value, Mapping):  # older `datasets` store a list of structs as a struct of lists
                value = [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
            for entry in value if isinstance(value, list | tuple | np.ndarray) else [value]:
                source, text = (entry["language"], entry["text"]) if isinstance(entry, Mapping) else (column, entry)
                if text and (self.weights is None or self.weights.get(source, 0) > 0):
                    yield source, text


def find_captions(
    features: Features, columns: Sequence[str] | None = None, weights: Mapping[str, float] | None = None
) -> CaptionReader:
    """How to read the captions of a data set.

    Args:
        features: of the data set.
        columns: of the captions; `captions`, `caption`, `text` or `txt`, whichever is there first, when None.
        weights: see [`CaptionReader`].

    Raises:
        DataSourceError: no such column, or one of another type; a weight is negative, or all are 0.
    """
    if columns is None:
        columns = [name for name in CAPTION_COLUMN_NAMES if name in features][:1]
    if not columns or (absent := [name for name in columns if name not in features]):
        wanted = absent[0] if columns else ", ".join(CAPTION_COLUMN_NAMES)
        raise DataSourceError(
            f"no column {wanted} among {', '.join(features)}: name the captions with --caption_column_name"
        )
    for name in columns:
        if not (_is_text(features[name]) or _is_text_by_language(features[name])):
            raise DataSourceError(
                f"the captions in {name} are {features[name]}: strings, lists of strings, or lists of "
                '{"language", "text"} are wanted'
            )
    if weights is not None:
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()):
            raise DataSourceError(f"caption weights {dict(weights)} must not be negative, nor all 0")
        plain = {name for name in columns if _is_text(features[name])}
        if len(plain) == len(columns) and (unknown := sorted(set(weights) - plain)):
            sources = ", ".join(sorted(plain))
            raise DataSourceError(f"caption weight for {unknown[0]!r}: these columns have the sources {sources}")
    return CaptionReader(tuple(columns), weights)


def parse_weights(text: str) -> dict[str, float]:
    """`en=2,de=1,fr` -> weights; 1 where none is given.

    Raises:
        ValueError: a weight is no number, or a source is named twice.
    """
    weights: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        source, separator, number = item.partition("=")
        try:
            weight = float(number) if separator else 1.0
        except ValueError as error:
            raise ValueError(f"caption weight {item!r} must be SOURCE=NUMBER, such as en=2") from error
        if source in weights:
            raise ValueError(f"caption weight for {source!r} is given twice")
        weights[source] = weight
    return weights


def _element(kind: Any) -> Any:
    return kind.feature if isinstance(kind, List | LargeList) else kind


def _is_text(kind: Any) -> bool:
    kind = _element(kind)
    return isinstance(kind, Value) and "string" in kind.dtype


def _is_text_by_language(kind: Any) -> bool:
    kind = _element(kind)
    return isinstance(kind, dict) and {"language", "text"} <= set(kind)


__all__ = ["CaptionReader", "clean_caption", "find_captions", "parse_weights"]
