"""From what stands beside an image to the caption that a training step sees.

A row may bring one text, several, texts in several languages, or several columns of them. One is drawn anew each time
the row comes up: first a *source* (a language, or a column of plain texts) by its weight, then one of its texts, all
alike; where cleaning leaves nothing of that, another of the same source. The paper says neither how captions were
cleaned nor how they were chosen; both are ours.

Cleaning (`clean_caption`) takes out what no reader would call a description and what names people, and nothing else:
HTML tags and entities, web and mail addresses, @names, the # and the underscores of hashtags, characters without a
meaning to others (control, private, unassigned, replacement) and without a shape (soft hyphens, marks of direction);
white space is folded, and Unicode composed (NFC). Case, punctuation, emoji and all scripts stay, with the joiners and
variation selectors in them. A text without a letter, digit or symbol is no caption. The first 1,000 characters are
read.
"""

import hashlib
import html
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Features, Value

from .samples import Sample, element_of
from .sources import DataSourceError

LONGEST_CAPTION = 1000  # characters; a hundred tokens are fewer in every script
CAPTION_COLUMN_NAMES = ("captions", "caption", "text", "txt")

# Letters, digits and the underscore; and what Python's \w lacks: marks and joiners, without which many words break.
_LETTER = (
    r"[\w\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u109f\u1780-\u17dd"
    r"\u200c\u200d\ua980-\ua9c0]"
)
_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
_ADDRESS = re.compile(
    r"(?<![a-z0-9])(?:https?://|www\.)\S+|(?<![a-z0-9.+-])[a-z0-9_.+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+",
    re.IGNORECASE,
)
_NAME = re.compile(rf"(?<![a-zA-Z0-9_])[@＠]\w(?:{_LETTER}|\.)*")
_HASHTAGS = re.compile(rf"(?<!\w)(?:[#＃]+\w{_LETTER}*)+")
# Without a shape, and of no use to a script. Tags are one in the flags of England, Scotland and Wales.
_SHAPELESS = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)"
    "|[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_BLANK = "\u2800\u3164\uffa0\ufffc\ufffd"  # letters and symbols in name only


def clean_caption(text: str) -> str:
    """A caption as it is trained on; empty if nothing is left. What is taken out: see the head of this file."""
    cleaner = _clean_once(text)
    while cleaner != text:  # taking one thing out can uncover another, as in &amp;lt;b&amp;gt;
        text, cleaner = cleaner, _clean_once(cleaner)
    return text if any(unicodedata.category(character)[0] in "LNS" for character in text) else ""


def _clean_once(text: str) -> str:
    text = _SHAPELESS.sub(lambda match: match[1] or "", html.unescape(text[:LONGEST_CAPTION]))
    text = _NAME.sub(" ", _ADDRESS.sub(" ", _TAG.sub(" ", text)))
    text = _HASHTAGS.sub(lambda match: re.sub("[#＃_]+", " ", match[0]).strip(), text)
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if _is_meaningless(character) else character for character in text)
    return " ".join(text.split())[:LONGEST_CAPTION].rstrip()


def _is_meaningless(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")


@dataclass(frozen=True)
class CaptionReader:
    """Draws captions of rows.

    Args:
        columns: of texts, of lists of texts, of `{"language", "text"}` or of lists of those. A text without a language
            counts as a plain one.
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
            drawn = texts.pop(sources[rng.choice(len(sources), p=weights / weights.sum())])
            while drawn:  # another source would get more than its weight
                if caption := clean_caption(drawn.pop(rng.integers(len(drawn)))):
                    return caption
        return None

    def __call__(self, sample: Sample) -> float:
        """1 for a row with a caption, 0 for one without: a stream's rule of `repeats`, which leaves out the latter."""
        return float(any(clean_caption(text) for _, text in self.texts(sample)))

    def texts(self, sample: Sample) -> Iterator[tuple[str, str]]:
        """All (source, text) of a row that may be drawn, as they are stored."""
        for column in self.columns:
            for entry in _entries(sample[column]):
                language, text = (entry["language"], entry["text"]) if isinstance(entry, Mapping) else (None, entry)
                source = language or column
                if isinstance(text, str) and (self.weights is None or self.weights.get(source, 0) > 0):
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
    if not columns:
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
        ValueError: a weight is no number or negative, or a source is named twice.
    """
    weights: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        source, separator, number = map(str.strip, item.partition("="))
        try:
            weight = float(number) if separator else 1.0
        except ValueError:
            weight = math.nan
        if not source or not 0 <= weight < math.inf:
            raise ValueError(f"caption weight {item!r} must be SOURCE=NUMBER, such as en=2, and not negative")
        if source in weights:
            raise ValueError(f"caption weight for {source!r} is given twice")
        weights[source] = weight
    return weights


def _entries(value: Any) -> Sequence[Any]:
    """The texts, or texts with languages, of one row and column."""
    if isinstance(value, Mapping) and isinstance(value["text"], list | tuple | np.ndarray):
        # `datasets` has a form of lists of structs that it stores as a struct of lists.
        texts, languages = value["text"], value["language"]
        languages = [None] * len(texts) if languages is None else languages
        if len(languages) != len(texts):
            raise ValueError(f"{len(texts)} captions have {len(languages)} languages")
        return [{"language": language, "text": text} for language, text in zip(languages, texts, strict=True)]
    return value if isinstance(value, list | tuple | np.ndarray) else [value]


def _is_text(kind: Any) -> bool:
    kind = element_of(kind)
    return isinstance(kind, Value) and "string" in kind.dtype


def _is_text_by_language(kind: Any) -> bool:
    kind = element_of(kind)
    return isinstance(kind, dict) and all(name in kind and _is_text(kind[name]) for name in ("language", "text"))


__all__ = ["CaptionReader", "clean_caption", "find_captions", "parse_weights"]
