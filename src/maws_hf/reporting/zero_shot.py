"""What the zero-shot evaluation and the retrieval of a LiT run come to, as rows of tables and bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import Tick, nice_ticks
from .languages import Language, language_of
from .pictures import Picture, embed_picture
from .records import RecordError, read_json, share

__all__ = ["Bars", "Examples", "Score", "Words", "ZeroShot", "read_retrieval", "read_zero_shot", "split_meaning"]

UNTRAINED = "-untrained"  # ends the name of the model that has learnt nothing
SPLITS = {
    "test": "concepts seen in training, drawn in a style that was not",
    "unseen": "concepts never trained on, in every style",
}
SHOWN_WORDS = 8
EXAMPLE_BYTES = 1_600_000  # of all example pictures, encoded: the page stays a file one can mail


@dataclass(frozen=True)
class Score:
    """One language on one split; shares are between 0 and 1."""

    split: str
    language: Language
    classes: int
    images: int
    top1: float
    top5: float | None
    untrained: float | None
    chance: float


@dataclass(frozen=True)
class Bars:
    """The picture of a split: its scores, and the ticks of an axis that all splits share, which ends at `longest`."""

    split: str
    scores: list[Score]
    ticks: list[Tick]
    longest: float


@dataclass(frozen=True)
class Examples:
    """Pictures with the names a model gave them."""

    split: str
    language: Language
    picture: Picture


@dataclass(frozen=True)
class Words:
    """Names of a language: those most often found, and those never found, with their numbers of images."""

    split: str
    language: Language
    found: list[tuple[str, int]]
    missed: list[tuple[str, int]]


@dataclass(frozen=True)
class ZeroShot:
    """Everything the page shows of `results.json`."""

    model: str
    bars: list[Bars]
    scores: list[Score]
    examples: list[Examples]
    more_examples: int
    words: list[Words]

    def headline(self, split: str) -> Score | None:
        """The score in English, or in the first language there is."""
        scores = [score for score in self.scores if score.split == split]
        return next((score for score in scores if score.language.code == "en"), scores[0] if scores else None)


def read_zero_shot(folder: Path) -> ZeroShot:
    """Reads `results.json` and the pictures beside it.

    Raises:
        RecordError: it is not there, or holds no results of a trained model.
    """
    file = folder / "results.json"
    content = read_json(file)
    try:
        results = content["results"]
        model = next((row["model"] for row in results if not row["model"].endswith(UNTRAINED)), None)
        if model is None:
            raise RecordError(f"{file} holds no results of a trained model.")
        trained = _first_of_each(results, model)
        untrained = _first_of_each(results, f"{model.rstrip('/')}{UNTRAINED}")
        scores = [_score(row, untrained.get(key)) for key, row in trained.items()]
        examples, more = _examples(folder, list(trained.values()))
        words = [_words(row) for row in trained.values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{file} is not what the zero-shot evaluation writes ({error!r}).") from error
    return ZeroShot(model, _bars(scores), scores, examples, more, [part for part in words if part.found])


def read_retrieval(file: Path) -> list[dict[str, Any]]:
    """The rows of `retrieval.json`, shares checked, languages named.

    Raises:
        RecordError: it is not there, or is something else.
    """
    content = read_json(file)
    try:
        rows = [
            {
                "split": str(row["split"]),
                "language": language_of(str(row["language"])),
                "pairs": int(row["pairs"]),
                "image_to_text": [share(row["image_to_text"][name]) for name in ("recall@1", "recall@5")],
                "text_to_image": [share(row["text_to_image"][name]) for name in ("recall@1", "recall@5")],
                "chance": share(row["chance@1"]),
            }
            for row in content["results"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file} is not what a LiT run writes ({error!r}).") from error
    if not rows:
        raise RecordError(f"{file} holds no results.")
    return rows


def split_meaning(split: str) -> str | None:
    """What a split of the demo corpus holds, in words; None for splits of other data."""
    return SPLITS.get(split)


def _first_of_each(results: Sequence[Mapping[str, Any]], model: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """One row a split and language: the first way of prompting, where there are several."""
    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in results:
        if row["model"].rstrip("/") == model.rstrip("/"):
            rows.setdefault((row["split"], row["language"]), row)
    return rows


def _score(row: Mapping[str, Any], untrained: Mapping[str, Any] | None) -> Score:
    top1, chance = share(row["top1"]), share(row["chance"])
    if top1 is None or chance is None:
        raise ValueError("a result has no top1 or no chance")
    return Score(
        split=str(row["split"]),
        language=language_of(str(row["language"])),
        classes=int(row["classes"]),
        images=int(row["images"]),
        top1=top1,
        top5=share(row.get("top5")),
        untrained=share(untrained["top1"]) if untrained else None,
        chance=chance,
    )


def _bars(scores: Sequence[Score]) -> list[Bars]:
    highest = max([0.01, *(max(score.top1, score.untrained or 0, score.chance) for score in scores)])
    numbers = nice_ticks(0, 100 * highest, most=6)
    ticks = [Tick(100 * number / numbers[-1], f"{number:g}") for number in numbers]
    splits = dict.fromkeys(score.split for score in scores)
    return [
        Bars(split, [score for score in scores if score.split == split], ticks, numbers[-1] / 100) for split in splits
    ]


def _examples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Examples], int]:
    """As many pictures as the page has room for, and how many are left out; a missing one is left out silently."""
    found, size, more = [], 0, 0
    order = list(dict.fromkeys(row["language"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["language"])):  # the splits of a language side by side
        file = folder / Path(row.get("examples") or "").name
        if not file.is_file():
            continue
        language = language_of(str(row["language"]))
        alt = f"Pictures of the split {row['split']} with the likeliest {language.name} names; right ones are green."
        picture = embed_picture(file, alt, widest=1100)
        if size + len(picture.uri) > EXAMPLE_BYTES:
            more += 1
            continue
        size += len(picture.uri)
        found.append(Examples(str(row["split"]), language, picture))
    return found, more


def _words(row: Mapping[str, Any]) -> Words:
    counted = [
        (str(name), share(values["top1"]) or 0.0, int(values["images"]))
        for name, values in (row.get("per_class") or {}).items()
        if values["images"]
    ]
    found = sorted((entry for entry in counted if entry[1] > 0), key=lambda entry: (-entry[1], -entry[2]))
    missed = sorted((entry for entry in counted if entry[1] == 0), key=lambda entry: -entry[2])
    return Words(
        split=str(row["split"]),
        language=language_of(str(row["language"])),
        found=[(name, images) for name, _, images in found[:SHOWN_WORDS]],
        missed=[(name, images) for name, _, images in missed[:SHOWN_WORDS]],
    )
