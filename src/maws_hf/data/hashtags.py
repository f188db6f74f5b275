"""From what people write to what WordNet knows: hashtags out of captions, and a noun synset for each tag.

The rule is that of Mahajan et al., 2018 (arXiv 1805.00932): a tag counts if it, *as a whole*, is a word or phrase of a
noun synset. No part of a tag is ever taken for the tag (`ebay` is no bay), joined words are not cut by guessing
(`goldenretriever` is found because `golden retriever` without its space is just that), and typos are not corrected.
What does count is spelling: entities, percent signs, case, diacritics, separators, CamelCase, plurals, a year at
either end, an emoji by its Unicode name. Tags that reach the same synset are thereby one label.

What a word with several senses stands for is one rule (`TagMapper.sense`), whatever stands beside it: so an `apple` is
a fruit and a `bass` a musical range. `resources/hashtag_words.json` lists the words that the rules pass over.
"""

import contextlib
import html
import json
import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .wordnet import WordNet, irregular_plurals

__all__ = ["DropReason", "MappedTag", "TagMapper", "canonical_forms", "extract_hashtags"]

LONGEST_TAG = 100  # characters, after decoding
LONGEST_RAW_TAG = 10 * LONGEST_TAG  # percent signs make nine bytes of one Chinese character
WORDS = Path(__file__).with_name("resources") / "hashtag_words.json"
FEWEST_LETTERS = 3  # that may remain when something is cut off a tag


class DropReason(StrEnum):
    """Why a tag is no label."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    NOT_WORDS = "not_words"  # numbers, addresses, file names, machine tags, single letters
    FUNCTION_WORD = "function_word"
    OTHER_SCRIPT = "other_script"
    UNKNOWN = "unknown"  # no noun of WordNet: slang, brands, typos, other languages, adjectives, verbs


class MappedTag(NamedTuple):
    """What became of a tag: exactly one of `synset` and `reason` is None."""

    synset: str | None
    reason: DropReason | None
    canonical: str  # how the tag is counted: the words that were found, or what was left of the tag


# ---------------------------------------------------------------- captions

# What ends a hashtag: space, control characters and punctuation but for the underscore. Letters, marks and numbers of
# all scripts, emoji and what joins them (U+200D, U+FE0F) belong to it.
_END = r"\s\x00-/:-@\[-\^`\{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf×÷\u2000-\u200c\u200e-\u206f\u3000-\u3003\u3008-\u3020" + (
    r"\u3030\u30fb！-／：-＠［-＾｀｛-･\ufeff"
)
# The first sign of a run must not touch a word, a slash or an ampersand before it: page#part, &#39;. Signs that
# follow tags directly are tags again: #a#b. `#` with a keycap is an emoji. Nothing is ever tried twice, so that a long
# caption of signs costs no more than another.
_HASHTAGS = re.compile(rf"(?<![\w/&#＃])(?:[#＃]++(?![\ufe0f\u20e3])[^{_END}]++)+")
_SIGNS = re.compile("[#＃]+")
_ADDRESS = re.compile(r"(?:\b[a-z][a-z0-9+.-]{0,15}://|\bwww\.)\S+", re.IGNORECASE)


def extract_hashtags(text: str) -> list[str]:
    """The hashtags of a caption in their order, without their signs; repeated ones are repeated.

    `#` and `＃` begin a tag, several may be joined (`#cat#dog`). Parts of web addresses and HTML entities are none.
    """
    if "#" not in text and "＃" not in text:
        return []
    if "&" in text:
        text = html.unescape(html.unescape(text))  # some are escaped twice
    if ":" in text or "." in text:
        text = _ADDRESS.sub(" ", text)
    return [tag for run in _HASHTAGS.findall(text) for tag in _SIGNS.split(run) if tag]


# ---------------------------------------------------------------- spelling

# Letters that do not decompose into a plain letter and a mark.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "ı": "i"}
    | {"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ħ": "h", "Ħ": "H", "ŧ": "t", "Ŧ": "T"}
)
_PERCENT = re.compile(r"%[0-9a-f]{2}", re.IGNORECASE)
_NOT_WORDS = re.compile(
    r"""  ://|^www\.                           # an address
        | @                                    # e-mail, or somebody's name
        | \w[:=]                               # a machine tag: geo:lat=12
        | \.(?:com|net|org|info|html?|php|jpe?g|png|gif|bmp|tiff?|webp|heic|raw|cr2|nef|mp4|mov|avi|pdf)$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OF_A_CAMERA = re.compile(
    r"_?(?:imgp?|mg|dsc[nf]?|dcim|cimg|pict|mvi|vid|gopr|dji|pxl|sam|hpim|screen\s?shot)[\s_-]*\d{3}|p\d{6}",
    re.IGNORECASE,
)
_CONTRACTION = re.compile(
    r"^(?:i|you|he|she|it|we|they|who|what|that|there|here|how|where|let)'(?:m|ll|re|ve|d|s)$|n't$", re.IGNORECASE
)
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_YEAR_AT_AN_END = re.compile(r"^(?:\d{4,} ?)?(.*?)(?: ?\d{4,})?$")


@cache
def function_words() -> frozenset[str]:
    """Words of closed classes, of English and of six more languages; the file says which are left out, and why."""
    return frozenset(word for name, words in _words_by_kind().items() if name.endswith("words") for word in words)


@cache
def names_only() -> frozenset[str]:
    """Lemmas that are ordinary words, but nouns only as names: `nice` is a city, `born` was a physicist."""
    return frozenset(_words_by_kind()["names only"])


@cache
def plurals_of_their_own() -> frozenset[str]:
    """Lemmas that look like plurals and are none: `glasses`, `shorts`."""
    return frozenset(_words_by_kind()["plurals"])


def _words_by_kind() -> dict[str, list[str]]:
    content = json.loads(WORDS.read_text(encoding="utf-8"))
    return {name: words for name, words in content.items() if isinstance(words, list)}


def canonical_forms(tag: str) -> tuple[str, ...] | DropReason:
    """The phrases that a tag may stand for, most literal first: lower-case ASCII words between single spaces.

    `#GoldenRetriever2020` gives `golden retriever2020` and `golden retriever`, the emoji of a fox `fox face` and
    `fox`. A tag without any phrase gives the reason instead. Never raises.
    """
    if len(tag) > LONGEST_RAW_TAG:
        return DropReason.TOO_LONG
    text = words = tag
    plain = tag.isascii() and tag.isalnum()  # most tags are, and need little
    if not plain:
        text = _decode(tag)
        if not text:
            return DropReason.NOT_WORDS if tag.strip("#＃ \t\r\n") else DropReason.EMPTY
    if len(text) > LONGEST_TAG:
        return DropReason.TOO_LONG
    if _OF_A_CAMERA.match(text):
        return DropReason.NOT_WORDS
    if not plain:
        if _NOT_WORDS.search(text):
            return DropReason.NOT_WORDS
        if _CONTRACTION.search(text):
            return DropReason.FUNCTION_WORD
        letters = text if text.isascii() else _without_marks(text)
        if _OTHER_LETTER.search(letters):
            return DropReason.OTHER_SCRIPT
        words = re.sub("[^a-zA-Z0-9]+", " ", re.sub("['.]", "", letters).replace("&", " and "))
    if not words.islower():
        words = _HUMP.sub(" ", words).lower()
    phrase = " ".join(words.split())
    joined = phrase.replace(" ", "")
    if not joined or joined.isdigit():
        return tuple(_emoji_names(text)) or (DropReason.UNKNOWN if _has_symbol(text) else DropReason.NOT_WORDS)
    if len(joined) == 1:
        return DropReason.NOT_WORDS
    if joined in function_words():
        return DropReason.FUNCTION_WORD

    if phrase[0].isdigit() or phrase[-1].isdigit():
        # A year, a date, somebody's number. Fewer digits tend to belong to a name (formula1, blink182).
        undated = _YEAR_AT_AN_END.sub(r"\1", phrase)
        if undated != phrase and len(undated) >= FEWEST_LETTERS and undated not in function_words():
            return phrase, undated
    return (phrase,)


def _decode(tag: str) -> str:
    """Entities, percent signs and plus signs read (YFCC writes `new+york`), one form for each character (NFKC)."""
    if "&" in tag:
        tag = html.unescape(html.unescape(tag))
    if "%" in tag and _PERCENT.search(tag):
        with contextlib.suppress(UnicodeError):  # then it was a percent sign
            tag = unquote_to_bytes(tag).decode()
    tag = unicodedata.normalize("NFKC", tag.replace("+", " ").replace("’", "'").replace("‘", "'"))
    return " ".join(tag.replace("＃", "#").split()).strip(" #:")


def _without_marks(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf")).translate(_LETTERS)


# Skin tones, variation selectors, and after a joiner the signs for man and woman, hair colours: variants of an emoji.
_DRESS = re.compile("[\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]|\u200d(?:[\u2640\u2642]\ufe0f?|[\U0001f9b0-\U0001f9b3])")
_FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")
_TYPOGRAPHY = (
    "heavy",
    "black",
    "white",
    "medium",
    "large",
    "small",
)  # how a symbol is drawn, at the start of its name
_KINDS_OF_SYMBOL = ("face", "sign", "symbol", "suit")  # at the end


def _has_symbol(text: str) -> bool:
    return any(unicodedata.category(c) == "So" for c in text)


def _emoji_names(text: str) -> Iterator[str]:
    """Names of the one emoji that a text consists of (it may be repeated), the full one first.

    Nothing for several different emoji, for joined ones such as woman + rocket, and for flags.
    """
    undressed = _DRESS.sub("", text)
    symbols = {c for c in undressed if unicodedata.category(c) == "So"}
    if len(symbols) != 1 or "\u200d" in undressed:
        return
    (symbol,) = symbols
    if _FLAG_LETTERS[0] <= symbol <= _FLAG_LETTERS[1]:
        return
    words = unicodedata.name(symbol, "").lower().replace("-", " ").split()
    if words:
        yield " ".join(words)
    while len(words) > 1 and words[0] in _TYPOGRAPHY:
        words = words[1:]
    if len(words) > 1 and words[-1] in _KINDS_OF_SYMBOL:
        words = words[:-1]
    if words:
        yield " ".join(words)


# ---------------------------------------------------------------- WordNet

# WordNet's rules of detachment for nouns (morphy(7WN)), in its order.
_PLURAL_ENDINGS = (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh")) + (
    ("men", "man"),
    ("ies", "y"),
)


class TagMapper:
    """Maps tags to noun synsets; calling it never raises for a string.

    Results are remembered, up to a bound. A pickled mapper travels without them and reads WordNet again.
    """

    def __init__(self, wordnet: WordNet, *, cache_size: int = 1 << 18):
        self.wordnet = wordnet
        self.cache_size = cache_size
        self._phrases = _by_joined_letters(wordnet)
        self._plurals = {_joined(plural): singulars for plural, singulars in irregular_plurals().items()}
        self._map = lru_cache(maxsize=cache_size)(self._map_tag)

    def __reduce__(self):
        return _build_mapper, (self.wordnet, self.cache_size)

    def __call__(self, tag: str) -> MappedTag:
        """The synset of a tag (without its `#`), or why it has none."""
        return self._map(tag)

    def sense(self, lemma: str) -> str:
        """The synset that a lemma stands for.

        1. If WordNet's tagged texts contain the lemma at all: its most frequent sense (`turkey`: the bird).
        2. Otherwise the first sense that is spelled as a common noun (`crane`: the machine, not Stephen Crane).
        3. Otherwise the first sense.

        Raises:
            KeyError: WordNet has no such noun.
        """
        senses = self.wordnet.senses(lemma)
        if not senses:
            raise KeyError(f"{lemma!r} is no noun of WordNet 3.0")
        if len(senses) > 1 and not self.wordnet.tagged_senses(lemma):
            words = lemma.replace("_", " ")
            for synset in senses:
                if words in self.wordnet.names(synset):
                    return synset
        return senses[0]

    def _map_tag(self, tag: str) -> MappedTag:
        forms = canonical_forms(tag)
        if isinstance(forms, DropReason):
            return MappedTag(None, forms, tag[:LONGEST_TAG].strip().lower())
        for phrase in forms:
            lemma = self._find(phrase.split())
            if lemma and lemma not in names_only():
                return MappedTag(self.sense(lemma), None, phrase)
        return MappedTag(None, DropReason.UNKNOWN, forms[-1])

    def _find(self, words: list[str]) -> str | None:
        """The lemma that the words are, or are the plural of."""
        joined = "".join(words)
        if lemma := self._find_exactly(words):
            return self._known_as_plural(lemma, joined) or lemma
        for singular in self._irregular_singulars(joined):
            if lemma := self._find_exactly([singular]):
                return lemma
        shorter = list(_regular_singulars(joined))
        for singular in shorter:
            if lemma := self._find_exactly([singular]):
                return self._as_alone(lemma, singular)
        for plural in shorter:  # children's: still a plural without the possessive
            for singular in chain(self._irregular_singulars(plural), _regular_singulars(plural)):
                if lemma := self._find_exactly([singular]):
                    return lemma
        if len(words) > 1:  # sons in law, computer mice: words that ends cannot tell when joined
            for place in reversed(range(len(words))):
                for singular in chain(self._irregular_singulars(words[place]), _regular_singulars(words[place])):
                    if lemma := self._find_exactly([*words[:place], singular, *words[place + 1 :]]):
                        return lemma
        return None

    def _known_as_plural(self, lemma: str, joined: str) -> str | None:
        """The singular of a lemma that is better known as a plural, if it is.

        WordNet lists `tigers` (Tamil separatists), `windows` (trademark) and `shoes` (somebody's situation) as lemmas
        of their own. A regular plural is read as one if as many senses or more of its singular are in tagged texts.
        """
        if lemma in plurals_of_their_own():
            return None
        for singular in _regular_singulars(joined):
            if found := self._find_exactly([singular]):
                tagged = self.wordnet.tagged_senses(found)
                known = tagged and tagged >= self.wordnet.tagged_senses(lemma)
                return self._as_alone(found, singular) if known else None
        return None

    def _as_alone(self, lemma: str, joined: str) -> str:
        """The lemma left when an ending was cut off; after a possessive's, its singular (men's: men: man)."""
        return (None if joined.endswith("s") else self._known_as_plural(lemma, joined)) or lemma

    def _find_exactly(self, words: list[str]) -> str | None:
        """The lemma with these words, else with these letters."""
        joined = "".join(words)
        lemmas = self._phrases.get(joined, ())
        if len(words) > 1:
            for lemma in lemmas:
                if _words(lemma) == words:
                    return lemma
        if joined in self.wordnet:
            return joined
        return lemmas[0] if lemmas else None

    def _irregular_singulars(self, word: str) -> Iterator[str]:
        return map(_joined, self._plurals.get(word, ()))


def _regular_singulars(word: str) -> Iterator[str]:
    if word.endswith("ss"):
        return
    for ending, replacement in _PLURAL_ENDINGS:
        if word.endswith(ending):
            singular = word.removesuffix(ending) + replacement
            # Two letters are abbreviations: `lbs` is no lb.
            if len(singular) >= FEWEST_LETTERS and singular not in function_words():
                yield singular


def _build_mapper(wordnet: WordNet, cache_size: int) -> TagMapper:
    return TagMapper(wordnet, cache_size=cache_size)


def _words(lemma: str) -> list[str]:
    return re.split("[_/-]", re.sub("['.]", "", lemma))


def _joined(lemma: str) -> str:
    return re.sub("[^a-z0-9]", "", lemma)


def _by_joined_letters(wordnet: WordNet) -> dict[str, tuple[str, ...]]:
    """Letters without separators -> the lemmas that have some; of several the usual one first."""
    phrases: dict[str, tuple[str, ...]] = {}
    for lemma in wordnet:
        if not lemma.isalnum():
            joined = _joined(lemma)
            phrases[joined] = (*phrases.get(joined, ()), lemma)
    for joined, several in phrases.items():
        if len(several) > 1:
            # Spaces before hyphens before apostrophes: golf_club is the people first, golf-club only the stick.
            several = sorted(several, reverse=True)
            several.sort(key=lambda lemma: (len(_words(lemma)), -wordnet.tagged_senses(lemma)))
            phrases[joined] = tuple(several)
    return phrases
