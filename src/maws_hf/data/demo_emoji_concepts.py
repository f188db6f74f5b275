"""Which emoji there are, what they are called in every language, and which file draws them in which style.

A concept is a base emoji (no skin tone) with an English name in CLDR. Its key is its code points in hexadecimal
without the invisible U+FE0F, `1f43b-200d-2744` for the polar bear: the same key joins names, keywords and the six
sets of pictures.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .corpus import CorpusError

SVG_RENDERINGS = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "emojione": "@iconify-json/emojione",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
}
HELD_OUT_RENDERING = "fluent-3d"

# Unicode's groups of emoji, as the icon sets tell them.
GROUPS = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)

# A locale speaks in the captions when it names this share of the concepts itself; the others only list what differs
# from their parent language. Complete locales reach 98 % and more, the next ones 86 %.
LOCALE_COVERAGE = 0.94

VARIATION_SELECTOR = 0xFE0F
SKIN_TONES = range(0x1F3FB, 0x1F3FF + 1)

# Who is drawn, mapped to the neutral figure; and signs that only change gender, hair or direction, dropped.
NEUTRAL_FIGURE = {
    0x1F466: 0x1F9D2,
    0x1F467: 0x1F9D2,
    0x1F468: 0x1F9D1,
    0x1F469: 0x1F9D1,
    0x1F474: 0x1F9D3,
    0x1F475: 0x1F9D3,
}
VARIANT_SIGNS = {0x2640, 0x2642, 0x27A1, 0x1F9B0, 0x1F9B1, 0x1F9B2, 0x1F9B3}
JOINER = 0x200D

# Families that sets draw alike under keys of their own: figures with an older code point beside a composed one,
# territories that fly another country's flag. Found by comparing all pictures of the six sets byte by byte.
SAME_FAMILY = {
    "1f46a": "1f9d1-200d-1f9d1-200d-1f9d2",  # family
    "1f9d1-200d-2764-200d-1f9d1": "1f491",  # couple with heart
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",  # kiss
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # people holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f57a": "1f483",  # dancing
    "1f478": "1f934",  # prince, princess, person with crown
    "1fac5": "1f934",
    "1f936": "1f385",  # Santa, Mrs and Mx Claus
    "1f9d1-200d-1f384": "1f385",
    "1fac3": "1f930",  # pregnant
    "1fac4": "1f930",
    "1f63a": "1f431",  # cat face, grinning cat
    "25fc": "1f533",  # square buttons
    "1f1e8-1f1f5": "1f1eb-1f1f7",  # Clipperton, St. Martin, Wallis and Futuna: France
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1fc-1f1eb": "1f1eb-1f1f7",
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # Bouvet Island, Svalbard and Jan Mayen: Norway
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # Heard and McDonald Islands: Australia
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Ceuta and Melilla: Spain
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # U.S. Outlying Islands: United States
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # Diego Garcia: British Indian Ocean Territory
}

# Keycaps that noto-v1 leaves to the font around them: a white digit on nothing, a key without its asterisk.
NOT_DRAWN = {"noto-v1": {"2a-20e3", *(f"{ord(digit):x}-20e3" for digit in "0123456789")}}

# Names two old icon sets use that CLDR has since changed. Left out on purpose where the picture changed as well
# (their 'pistol' is a gun, the concept of today a water pistol).
FORMER_NAMES = {
    "a-button": "a-button-blood-type",
    "ab-button": "ab-button-blood-type",
    "b-button": "b-button-blood-type",
    "o-button": "o-button-blood-type",
    "blond-haired-person": "person-blond-hair",
    "bride-with-veil": "person-with-veil",
    "cat-face-with-tears-of-joy": "cat-with-tears-of-joy",
    "cat-face-with-wry-smile": "cat-with-wry-smile",
    "crying-cat-face": "crying-cat",
    "grinning-cat-face": "grinning-cat",
    "grinning-cat-face-with-smiling-eyes": "grinning-cat-with-smiling-eyes",
    "kissing-cat-face": "kissing-cat",
    "pouting-cat-face": "pouting-cat",
    "smiling-cat-face-with-heart-eyes": "smiling-cat-with-heart-eyes",
    "weary-cat-face": "weary-cat",
    "direct-hit": "bullseye",
    "dizzy-face": "face-with-crossed-out-eyes",
    "heavy-heart-exclamation": "heart-exclamation",
    "man-and-woman-holding-hands": "woman-and-man-holding-hands",
    "two-men-holding-hands": "men-holding-hands",
    "two-women-holding-hands": "women-holding-hands",
    "robot-face": "robot",
    "up-text-button": "up-button",
    "flag-cocos-islands": "flag-cocos-keeling-islands",
    "flag-myanmar": "flag-myanmar-burma",
    "flag-turkey": "flag-turkiye",
}


@dataclass(frozen=True)
class Concept:
    """One emoji: its key, English name, group (None where unknown), English keywords, and its name in each language
    (English first)."""

    key: str
    name: str
    group: str | None
    tags: tuple[str, ...]
    captions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """One rendering of a concept: either the body of an SVG with its canvas, or a file."""

    rendering: str
    concept: Concept
    svg: str | None = None
    file: Path | None = None


def concept_key(code_points: Iterable[int]) -> str:
    """Code points to key: lower-case hexadecimal, joined by '-', without U+FE0F."""
    return "-".join(f"{point:x}" for point in code_points if point != VARIATION_SELECTOR)


def family_key(key: str) -> str:
    """The concept without gender, hair and direction: 'woman running: facing right' and 'man running' are one family.

    Concepts are held out by family: a held-out picture that differs by a skirt from a training picture tests
    nothing.
    """
    points = [NEUTRAL_FIGURE.get(point, point) for point in _points(key)]
    kept: list[int] = []
    for point in points:
        if point in VARIANT_SIGNS and kept and kept[-1] == JOINER:
            kept.pop()
        else:
            kept.append(point)
    family = concept_key(kept)
    return SAME_FAMILY.get(family, family)


def is_held_out(key: str) -> bool:
    """One family in ten, by the first eight bytes of the sha256 of the family key: the same everywhere, for ever."""
    return int.from_bytes(hashlib.sha256(family_key(key).encode()).digest()[:8], "big") % 10 == 0


def read_pictures(modules: Path) -> list[Picture]:
    """Every picture of every concept below `node_modules`, ordered by rendering and concept.

    Raises:
        CorpusError: a file of the packages is missing or not what it should be.
    """
    drawings = {rendering: _icon_set(modules / package) for rendering, package in SVG_RENDERINGS.items()}
    assets = _webp_files(modules / "@lobehub/fluent-emoji-3d" / "assets")

    # CLDR also names characters that are no emoji (brackets, mathematical signs): the sets that list characters
    # decide.
    emoji = set(assets).union(*(characters for _, characters in drawings.values()))
    annotated = _annotations(modules, "en")
    english = {
        key: annotated[key] for key in sorted(emoji) if "tts" in annotated.get(key, {}) and not _has_skin_tone(key)
    }

    keys_by_name = {_slug(entry["tts"][0]): key for key, entry in english.items()}
    for _, characters in drawings.values():
        keys_by_name.update({name: key for key, name in characters.items() if key in english})

    icons: dict[str, dict[str, str]] = {}
    for rendering, (svgs, characters) in drawings.items():
        # Sets with a table of characters are exact; the two older ones only name their icons.
        names = characters or _names_to_keys(svgs, keys_by_name)
        usable = english.keys() - NOT_DRAWN.get(rendering, set())
        icons[rendering] = {key: svgs[name][0] for key, name in names.items() if key in usable}

    keys = sorted(english)
    concepts = {concept.key: concept for concept in _concepts(modules, keys, english)}
    pictures = [
        Picture(rendering, concepts[key], svg=svgs[key]) for rendering, svgs in icons.items() for key in sorted(svgs)
    ]
    held_out = [Picture(HELD_OUT_RENDERING, concepts[key], file=assets[key]) for key in keys if key in assets]
    return pictures + held_out


def _concepts(modules: Path, keys: list[str], english: dict[str, dict]) -> Iterable[Concept]:
    spoken: dict[str, dict[str, str]] = {}
    for folder in sorted((modules / "cldr-annotations-full" / "annotations").iterdir()):
        entries = _annotations(modules, folder.name)
        names = {key: entries[key]["tts"][0] for key in keys if "tts" in entries.get(key, {})}
        if len(names) >= LOCALE_COVERAGE * len(keys):
            spoken[folder.name] = names
    languages = ["en", *(language for language in spoken if language != "en")]
    groups = _groups(modules / SVG_RENDERINGS["twemoji"])  # the set that draws every concept
    for key in keys:
        captions = tuple((language, spoken[language][key]) for language in languages if key in spoken[language])
        tags = tuple(english[key].get("default", ()))
        yield Concept(key, english[key]["tts"][0], groups.get(key), tags, captions)


def _annotations(modules: Path, locale: str) -> dict[str, dict]:
    """Keywords (`default`) and name (`tts`) by concept key; those of composed emoji lie in a package of their own."""
    entries: dict[str, dict] = {}
    places = (("cldr-annotations-derived-full", "annotationsDerived"), ("cldr-annotations-full", "annotations"))
    for package, folder in places:
        path = modules / package / folder / locale / "annotations.json"
        if path.exists() or locale == "en":
            for text, entry in _read_json(path)[folder].get("annotations", {}).items():
                entries[concept_key(map(ord, text))] = entry
    return entries


def _icon_set(package: Path) -> tuple[dict[str, tuple[str, tuple[str, ...]]], dict[str, str]]:
    """SVG text and aliases by icon name; and the icon name by concept key, empty where the set has no such table."""
    icons, characters = _read_json(package / "icons.json"), _read_json(package / "chars.json")
    aliases: dict[str, list[str]] = {}
    for alias, target in icons.get("aliases", {}).items():
        aliases.setdefault(target["parent"], []).append(alias)
    svgs = {}
    for name, icon in icons["icons"].items():
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        svgs[name] = (svg, tuple(aliases.get(name, ())))
    return svgs, {concept_key(_points(points)): name for points, name in characters.items()}


def _groups(package: Path) -> dict[str, str]:
    """Group by concept key."""
    keys: dict[str, list[str]] = {}
    for points, name in _read_json(package / "chars.json").items():
        keys.setdefault(name, []).append(concept_key(_points(points)))
    categories = _read_json(package / "metadata.json")["categories"]
    return {key: group for group in GROUPS for name in categories.get(group, ()) for key in keys.get(name, ())}


def _names_to_keys(svgs: dict[str, tuple[str, tuple[str, ...]]], keys_by_name: dict[str, str]) -> dict[str, str]:
    """Concept key to icon name, by the icon's own name.

    Aliases only count where its own name says nothing: 'cricket' is an alias of the bat and ball, not of the insect.
    """
    found: dict[str, str] = {}
    for name, (_, aliases) in sorted(svgs.items()):
        for candidate in (name, *aliases):
            if key := keys_by_name.get(_current_name(candidate)):
                found.setdefault(key, name)
                break
    return found


def _current_name(name: str) -> str:
    if match := re.fullmatch(r"flag-for-(flag-)?(.+)", name):
        name = match[2] if match[2].endswith(("-flag", "-flags")) else f"flag-{match[2]}"
    if match := re.fullmatch(r"digit-(\w+)", name):
        digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        name = f"keycap-{digits.index(match[1])}" if match[1] in digits else name
    return FORMER_NAMES.get(name, name)


def _webp_files(assets: Path) -> dict[str, Path]:
    if not assets.is_dir():
        raise CorpusError(f"{assets} is missing: delete the sources directory and run the command again.")
    files: dict[str, Path] = {}
    for file in sorted(assets.glob("*.webp")):
        # A few emoji are there twice, with and without U+FE0F in the name.
        files.setdefault(concept_key(_points(file.stem)), file)
    return files


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}): delete the sources directory and run the command again."
        raise CorpusError(message) from error


def _points(key: str) -> list[int]:
    return [int(point, 16) for point in key.split("-")]


def _has_skin_tone(key: str) -> bool:
    return any(point in SKIN_TONES for point in _points(key))


def _slug(name: str) -> str:
    """'flag: Côte d’Ivoire' to 'flag-cote-divoire', the way the icon sets name their files."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("&", "and")).strip("-")
