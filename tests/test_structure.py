"""The layout that keeps the package readable: which room may know which, and what may not be called at all."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "maws_hf"
# A room may import from rooms of its own row and of the rows above.
ROWS = [
    {"models", "masking", "losses", "processing"},
    {"data", "optim", "evaluation", "visualization", "hub", "adapters"},
    {"training", "reporting"},
    {"cli"},
]
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imported_rooms(file: Path) -> Iterator[str]:
    package = ("maws_hf", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*base, *(node.module or "").split("."))
            names = [alias.name for alias in node.names]
            parts = tuple(part for part in parts if part)
            if parts[:1] == ("maws_hf",):
                yield from [parts[1]] if len(parts) > 1 else names
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("maws_hf."):
                    yield alias.name.split(".")[1]


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row_of(room: str) -> int:
    return next(row for row, rooms in enumerate(ROWS) if room in rooms)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file: Path):
    for room in imported_rooms(file):
        assert row_of(room) <= row_of(room_of(file)), f"{file} imports {room}"


def test_the_import_check_sees_both_spellings():
    rooms = {room for file in SOURCES for room in imported_rooms(file)}
    assert {"models", "masking", "losses", "processing", "data", "optim", "training"} <= rooms


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_unsafe_is_called(file: Path):
    unsafe = (
        r"import pickle|pickle\.load|(?<![.\w])(eval|exec)\(|shell\s*=\s*True|trust_remote_code\s*=\s*True"
        r"|weights_only\s*=\s*False|allow_pickle\s*=\s*True|LOAD_TRUNCATED_IMAGES\s*=|MAX_IMAGE_PIXELS\s*="
    )
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(unsafe, line)]
