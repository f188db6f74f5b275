"""The other sections of the page: reconstructions, curves, weak labels, encoders, and where everything came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import Chart, line_chart
from .pictures import Picture, embed_picture
from .records import Curve, RecordError, read_json, share

__all__ = [
    "Encoder",
    "Encoders",
    "Frames",
    "WeakLabels",
    "draw_curves",
    "read_corpus",
    "read_encoders",
    "read_frames",
    "read_weak_labels",
]

WEAK = ("wsp", "mae-wsp")  # their losses are the same function
SHOWN_FRAMES = 5
SHOWN_CLASSES = 12
RANKS = 140  # points of the curve of frequencies: closer ones fall on the same pixel


@dataclass(frozen=True)
class Frames:
    """What the model painted in, after some of its steps; the last one is the end."""

    names: list[str]
    pictures: list[Picture]


def read_frames(run_dir: Path) -> Frames:
    """`reconstruction.png` and, evenly chosen, the pictures drawn on the way.

    Raises:
        RecordError: nothing is drawn yet.
    """
    final = run_dir / "reconstruction.png"
    early = sorted((run_dir / "reconstructions").glob("step-*.png"))
    if final.is_file():
        early = [file for file in early if file.read_bytes() != final.read_bytes()]
        files = [*_evenly(early, SHOWN_FRAMES - 1), final]
    else:
        files = _evenly(early, SHOWN_FRAMES)
    if not files:
        raise RecordError(f"{final} is not there yet.")
    names = ["the end" if file == final else f"step {int(file.stem.removeprefix('step-')):,}" for file in files]
    alt = "Rows of three pictures, each masked, reconstructed by the model, and original: at "
    return Frames(names, [embed_picture(file, f"{alt}{name}.") for name, file in zip(names, files, strict=True)])


def draw_curves(curves: Mapping[str, Curve], titles: Mapping[str, str]) -> dict[str, Chart]:
    """The loss of every run over the images it has seen; WSP is drawn behind MAE→WSP, on the same axes."""
    charts = {}
    losses = [loss for key in WEAK if key in curves for loss in curves[key].losses]
    for key, curve in curves.items():
        values = list(zip(curve.images, curve.losses, strict=True))
        compared = curves["wsp"] if key == "mae-wsp" and "wsp" in curves else None
        charts[key] = line_chart(
            values,
            [
                f"step {step:,} · {images:,} images · loss {loss:.4g} · learning rate {rate:.2g}"
                for step, images, loss, rate in zip(curve.steps, curve.images, curve.losses, curve.rates, strict=True)
            ],
            x_label="images seen",
            y_label="loss",
            summary=f"{titles[key]}: the loss goes from {curve.losses[0]:.3g} to {curve.losses[-1]:.3g} "
            f"over {curve.images[-1]:,} images.",
            reference=list(zip(compared.images, compared.losses, strict=True)) if compared else (),
            y_range=(min(losses), max(losses)) if key in WEAK else None,
        )
    return charts


@dataclass(frozen=True)
class WeakLabels:
    """How often each label occurs, the most frequent ones, and what tags were left out, by reason.

    Attributes:
        tags, labels: how many tags there were, and how many of them became labels; 0 where that is not known.
    """

    chart: Chart
    classes: int
    images: int
    most_frequent: list[dict[str, Any]]
    dropped: list[tuple[str, int, list[str]]]
    tags: int
    labels: int


def read_weak_labels(folder: Path) -> WeakLabels:
    """Reads `vocabulary.json`, and `report.json` where it is there.

    Raises:
        RecordError: the vocabulary is not there, or is something else.
    """
    file = folder / "vocabulary.json"
    content = read_json(file)
    try:
        classes = sorted(content["classes"], key=lambda label: -label["count"])
        ranks = sorted({round(len(classes) ** (i / RANKS)) for i in range(RANKS + 1)})
        values = [(rank, classes[rank - 1]["count"]) for rank in ranks]
        first, last = classes[0], classes[-1]
        chart = line_chart(
            values,
            [f"no. {rank:,}: {classes[rank - 1]['name']} · {count:,} images" for rank, count in values],
            x_label="rank of the label",
            y_label="images",
            summary=f"From {first['count']:,} images of the most frequent label to {last['count']:,} of the rarest.",
            logarithmic=True,
        )
        report = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
        dropped = [
            (reason.replace("_", " "), int(number), [str(tag) for tag, _ in report["dropped_tags"][reason][:6]])
            for reason, number in report.get("dropped", {}).items()
        ]
        return WeakLabels(
            chart=chart,
            classes=len(classes),
            images=int(content["images"]),
            most_frequent=classes[:SHOWN_CLASSES],
            dropped=dropped,
            tags=int(report.get("tags", 0)),
            labels=int(report.get("labels", 0)),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RecordError(f"{file} and report.json are not what the labelling writes ({error!r}).") from error


@dataclass(frozen=True)
class Encoder:
    """A row of the table: scores between 0 and 1 by name, and the training operations, None where unknown."""

    name: str
    scores: dict[str, float]
    operations: int | None
    images: int | None


@dataclass(frozen=True)
class Encoders:
    """The table, best first, and what was asked of the encoders."""

    rows: list[Encoder]
    best: dict[str, float]
    classes: int
    images: int
    split: str


def read_encoders(folder: Path) -> Encoders:
    """Reads the probes' `results.json`.

    Raises:
        RecordError: it is not there, or is something else.
    """
    file = folder / "results.json"
    content = read_json(file)
    try:
        rows = [_encoder(result) for result in content["results"]]
        columns = list(rows[0].scores)
        rows.sort(key=lambda row: -row.scores[columns[0]])
        best = {column: max(row.scores[column] for row in rows) for column in columns}
        first = content["results"][0]
        return Encoders(
            rows, best, int(first["classes"]), int(first["images"]["test"]), str(content["options"]["eval_split"])
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RecordError(f"{file} is not what the probes write ({error!r}).") from error


def read_corpus(data_dir: Path) -> dict[str, Any]:
    """Rows of each split and the sources of a demo corpus, with the address of each attribution set apart.

    Raises:
        RecordError: there is no manifest, or it is something else.
    """
    file = data_dir / "manifest.json"
    content = read_json(file)
    try:
        splits = {str(split): sum(groups.values()) for split, groups in content["counts"].items()}
        sources = []
        for source in content["sources"]:
            text, _, address = source["attribution"].rpartition(", https://")
            named = {"text": text or source["attribution"], "address": f"https://{address}" if text else None}
            sources.append({key: str(source[key]) for key in ("name", "version", "licence")} | named)
        return {"name": str(content["name"]), "splits": splits, "sources": sources}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{file} is not the manifest of a demo corpus ({error!r}).") from error


def _encoder(result: Mapping[str, Any]) -> Encoder:
    scores = {f"linear {name}": share(value) for name, value in result["linear"].items()}
    for k, values in result["knn"].items():
        scores |= {f"{k}-NN {name}": share(value) for name, value in values.items()}
    stages = result["training"]
    return Encoder(
        name=str(result["encoder"]),
        scores={name.replace("top", "top-"): value for name, value in scores.items() if value is not None},
        operations=sum(int(stage["flops"]) for stage in stages) if stages else None,
        images=sum(int(stage["images"]) for stage in stages) if stages else None,
    )


def _evenly(files: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the files, the first among them."""
    if len(files) <= most:
        return list(files)
    return [files[index * len(files) // most] for index in range(most)]
