"""SECURITY.md tells what the code does."""

import importlib
import re
from pathlib import Path

import pytest
from test_structure import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| `(maws_hf\.[\w.]+)` \|$", TEXT, re.MULTILINE)


def value_at(place: str) -> object:
    module, *names = re.fullmatch(r"((?:[a-z_\d]+\.)+[a-z_\d]+)\.([A-Z]\w*)(?:\.(\w+))?", place).groups()
    found = getattr(importlib.import_module(module), names[0])
    if names[1] is not None:
        found = found[names[1]] if isinstance(found, dict) else getattr(found, names[1])
    return found


@pytest.mark.parametrize(("what", "value", "place"), ROWS, ids=[row[2].partition(".")[2] for row in ROWS])
def test_a_limit_is_the_one_in_the_code(what: str, value: str, place: str):
    assert value_at(place) == int(value.replace(",", ""))


def test_every_limit_of_the_gates_is_in_the_table():
    """Of pictures, headers and archives; whoever adds one writes it down."""
    places = {place for _, _, place in ROWS}
    assert len(ROWS) == TEXT.partition("## Limits")[2].count("| `maws_hf.")
    for module in ("maws_hf.processing.headers", "maws_hf.hub.original_archive"):
        names = [name for name in vars(importlib.import_module(module)) if name.startswith(("MAX_", "MOST_"))]
        assert {f"{module}.{name}" for name in names} <= places
    limits = vars(value_at("maws_hf.processing.decode.DEFAULT_LIMITS"))
    assert {f"maws_hf.processing.decode.DEFAULT_LIMITS.{name}" for name in limits} <= places


def test_the_files_that_it_names_are_there():
    named = re.findall(r"`([\w/]+(?:\*)?\.(?:py|json))`", TEXT)
    for name in named:
        if "/" in name:
            folder = ROOT if name.startswith("scripts") else ROOT / "src" / "maws_hf"
            assert list(folder.glob(name)), name
    assert "processing/decode.py" in named


def test_the_oldest_pillow_that_it_names_is_required():
    pillow = re.search(r"`(pillow>=[\d.]+)`", TEXT)[1]
    assert f'"{pillow}"' in Path(ROOT, "setup.py").read_text(encoding="utf-8")
