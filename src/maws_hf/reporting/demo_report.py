"""One page, in one file, that shows what `make demo` has done."""

import base64
import hashlib
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..whole_files import write_atomically
from .demo_steps import Step, demo_steps
from .pictures import embed_picture
from .records import Curve, RecordError, read_curve, read_json
from .sections import draw_curves, read_corpus, read_encoders, read_frames, read_weak_labels
from .zero_shot import read_retrieval, read_zero_shot, split_meaning

__all__ = ["build_report"]

RUNS = ("mae", "wsp", "mae-wsp", "lit")


class Missing:
    """Stands for a part of the page whose results cannot be shown: why, and the step that makes them."""

    def __init__(self, reason: str, step: Step):
        self.reason = reason
        self.step = step

    def __bool__(self) -> bool:
        """Templates ask `if part`."""
        return False


def build_report(runs_dir: Path, data_dir: Path, labels_dir: Path, output_file: Path) -> Path:
    """Writes the page and returns where it is; results that are missing are named there, with the step to run.

    The page needs no network: pictures, styles and the script are in it, and its own policy forbids all else.

    Args:
        runs_dir: folder of the runs (`mae`, `wsp`, `mae-wsp`, `lit`, `evaluation`, `zero-shot`).
        data_dir: folder of the corpus.
        labels_dir: folder of the weak labels.
    """
    environment = Environment(
        loader=PackageLoader("maws_hf.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "scientific": _scientific,
        "duration": _duration,
        "split_meaning": split_meaning,
    }
    page = environment.get_template("demo_report.html").render(
        **_content(runs_dir, data_dir, labels_dir), **_inline_files(environment)
    )
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output_file, page.encode())
    return output_file


def _content(runs_dir: Path, data_dir: Path, labels_dir: Path) -> dict[str, Any]:
    steps = demo_steps(runs_dir, data_dir, labels_dir)

    def part(step: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RecordError as error:
            return Missing(str(error), steps[step])

    runs = {key: part(key, lambda key=key: read_curve(runs_dir / key)) for key in RUNS}
    curves = {key: run for key, run in runs.items() if run}
    predictions = {
        key: part(key, lambda key=key: embed_picture(runs_dir / key / "predictions.png", _prediction_alt(steps[key])))
        for key in ("mae-wsp", "wsp")
    }
    return {
        "steps": steps,
        "runs": runs,
        "charts": draw_curves(curves, {key: step.title for key, step in steps.items()}),
        "cost": _cost(curves),
        "frames": part("mae", lambda: read_frames(runs_dir / "mae")),
        "labels": part("labels", lambda: read_weak_labels(labels_dir)),
        "predictions": next((picture for picture in predictions.values() if picture), predictions["mae-wsp"]),
        "encoders": part("evaluation", lambda: read_encoders(runs_dir / "evaluation")),
        "zero_shot": part("zero-shot", lambda: read_zero_shot(runs_dir / "zero-shot")),
        "retrieval": part("lit", lambda: read_retrieval(runs_dir / "lit" / "retrieval.json")),
        "corpus": part("data", lambda: read_corpus(data_dir)),
        "versions": _versions(runs_dir),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _prediction_alt(step: Step) -> str:
    return f"New concepts, each with the three likeliest labels by {step.title}; right ones are green."


def _cost(curves: dict[str, Curve]) -> dict[str, Any] | None:
    """All runs together; None before the first."""
    if not curves:
        return None
    return {
        "seconds": sum(curve.seconds for curve in curves.values()),
        "images": sum(curve.images[-1] for curve in curves.values()),
        "operations": sum(curve.operations or 0 for curve in curves.values()) or None,
    }


def _versions(runs_dir: Path) -> dict[str, str]:
    """As the evaluations have recorded them; of this package alone before there is one."""
    for name in ("zero-shot", "evaluation"):
        try:
            recorded = read_json(runs_dir / name / "results.json").get("versions")
        except RecordError:
            continue
        if isinstance(recorded, dict):
            return {str(package): str(number) for package, number in recorded.items()}
    try:
        return {"maws_hf": version("maws_hf")}
    except PackageNotFoundError:  # run from its sources
        return {}


def _inline_files(environment: Environment) -> dict[str, Markup]:
    """Style and script, and the script's hash: the page's policy lets no other script run, whatever names contain."""
    style, script = (
        environment.loader.get_source(environment, name)[0] for name in ("demo_report.css", "demo_report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest)}


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _scientific(value: float | None) -> Markup:
    """`2.5 × 10¹³`, as HTML."""
    if value is None:
        return Markup("–")
    mantissa, exponent = f"{value:.1e}".split("e")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, int(exponent))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
