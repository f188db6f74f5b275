"""Folders as `make demo` leaves them, small and made up, with names that would break a careless page."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

HOSTILE = "<script>alert('class')</script>"
CLASSES = {
    "en": ["red apple", "pizza", HOSTILE, "owl & moon"],
    "ja": ["赤リンゴ", "ピザ", "フクロウ", "月"],
    "ar": ["تفاحة حمراء", "بيتزا", "بومة", "قمر"],
}
LANGUAGES = {"en": 0.62, "de": 0.51, "es": 0.52, "fr": 0.5, "ja": 0.37, "zh": 0.33, "ar": 0.12}


def make_demo_runs(folder: Path) -> tuple[Path, Path, Path]:
    """Returns the folders of runs, data and labels, filled by every step."""
    runs, data, labels = folder / "runs", folder / "data", folder / "labels"
    for name, first, last in (("mae", 1.0, 0.5), ("wsp", 6.8, 3.1), ("mae-wsp", 6.7, 2.8), ("lit", 4.8, 1.9)):
        make_run(runs / name, first, last)
    draw(runs / "mae" / "reconstruction.png", "final")
    for step in (10, 20):
        draw(runs / "mae" / "reconstructions" / f"step-{step:08d}.png", str(step))
    for name in ("wsp", "mae-wsp"):
        draw(runs / name / "predictions.png", name)
    make_retrieval(runs / "lit" / "retrieval.json")
    make_zero_shot(runs / "zero-shot")
    make_evaluation(runs / "evaluation" / "results.json")
    make_corpus(data)
    make_labels(labels)
    return runs, data, labels


def make_run(run_dir: Path, first: float, last: float) -> None:
    steps = range(50, 801, 50)
    lines = [
        {
            "step": step,
            "loss": last + (first - last) * math.exp(-step / 200) if step != 400 else None,
            "learning_rate": 1e-3 * math.cos(math.pi * step / 1700),
            "grad_norm": 0.5,
            "images_seen": 64 * step,
            "images_skipped": 0,
            "images_per_second": 320.0,
        }
        for step in steps
    ]
    write(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8')  # torn
    stage = {"name": run_dir.name, "images": 64 * 800, "flops": 1.234e13}
    write(run_dir / "training.json", json.dumps({"stages": [{**stage, "name": "before"}, stage]}))


def make_retrieval(file: Path) -> None:
    rows = [
        {
            "split": split,
            "language": language,
            "pairs": 400,
            "image_to_text": {"recall@1": share / divisor, "recall@5": 1.4 * share / divisor},
            "text_to_image": {"recall@1": share / divisor, "recall@5": 1.3 * share / divisor},
            "chance@1": 1 / 400,
        }
        for split, divisor in (("test", 1), ("unseen", 4))
        for language, share in LANGUAGES.items()
    ]
    write(file, json.dumps({"results": rows}))


def make_zero_shot(folder: Path) -> None:
    results = []
    for model, skill in (("runs/demo/lit", 1.0), ("runs/demo/lit-untrained", 0.01)):
        for split, divisor, classes in (("test", 1, 1674), ("unseen", 4, 190)):
            for language, share in LANGUAGES.items():
                top1 = share / divisor * skill + 0.0011
                examples = f"examples-0-{split}-{language}.png" if skill == 1 else None
                if examples:
                    draw(folder / examples, f"{split} {language}", size=(360, 150))
                names = CLASSES.get(language, CLASSES["en"])
                results.append(
                    {
                        "model": model,
                        "split": split,
                        "prompts": "captions",
                        "language": language,
                        "classes": classes,
                        "images": classes,
                        "top1": top1,
                        "top5": 1.5 * top1,
                        "mean_per_class": top1,
                        "chance": 1 / classes,
                        "skipped": [],
                        "per_class": {
                            name: {"images": 6 * (place < 3), "top1": (1.0, 0.5, 0.0, None)[place]}
                            for place, name in enumerate(names)
                        },
                        "examples": examples,
                        "bars": None,
                    }
                )
    content = {"options": {}, "versions": {"maws_hf": "0.1.0", "torch": "2.13.0"}, "results": results}
    write(folder / "results.json", json.dumps(content, ensure_ascii=False))


def make_evaluation(file: Path) -> None:
    scores = {"mae": (0.5628, 0.9076, 0.5768), "wsp": (0.6069, 0.9184, 0.5714), "mae-wsp": (0.6305, 0.9119, 0.623)}
    results = [
        {
            "encoder": f"runs/demo/{name}",
            "training": [{"name": name, "images": 128_000, "flops": 1.23e13}] * (1 + (name == "mae-wsp")),
            "images": {"train": 6991, "test": 931},
            "classes": 9,
            "linear": {"top1": top1, "top5": top5},
            "knn": {"20": {"top1": knn}},
        }
        for name, (top1, top5, knn) in scores.items()
    ]
    write(file, json.dumps({"options": {"eval_split": "unseen"}, "versions": {}, "results": results}))


def make_corpus(data: Path) -> None:
    source = {"name": "@icons/noto", "version": "1.2.9", "licence": "Apache-2.0", "integrity": "sha512-AA=="}
    sources = [
        source | {"attribution": "Noto <Emoji>, Google Inc, https://github.com/googlefonts/noto-emoji"},
        source | {"attribution": "By someone without an address", "licence": "CC-BY-4.0"},
    ]
    counts = {"train": {"noto": 6000, "twemoji": 991}, "test": {"fluent-3d": 1674}, "unseen": {"noto": 931}}
    write(data / "manifest.json", json.dumps({"name": "emoji", "counts": counts, "sources": sources}))


def make_labels(labels: Path) -> None:
    classes = [
        {
            "id": f"n{rank:08d}",
            "name": HOSTILE if rank == 2 else f"label {rank}",
            "gloss": 'a "quoted" meaning',
            "count": 700 // rank,
            "rarest": 1,
            "tags": [],
        }
        for rank in range(1, 61)
    ]
    write(labels / "vocabulary.json", json.dumps({"images": 6784, "min_count": 10, "classes": classes}))
    report = {
        "tags": 40212,
        "labels": 32624,
        "dropped": {"not_words": 619},
        "dropped_tags": {"not_words": [["<3", 83], ["30", 55]]},
    }
    write(labels / "report.json", json.dumps(report))


def draw(file: Path, text: str, size: tuple[int, int] = (312, 162)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, "white")
    drawing = ImageDraw.Draw(picture)
    for left in range(0, size[0], 52):
        for top in range(0, size[1], 52):
            drawing.ellipse((left + 2, top + 2, left + 50, top + 50), fill=(left % 255, 120, top % 255))
    drawing.text((20, 20), text, fill="black")
    picture.save(file)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
