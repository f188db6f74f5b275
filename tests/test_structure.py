"""The layout that keeps the package readable: which room may know which, and what may not be called at all."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "maws_hf"
# A room may import from rooms of its own row and of the rows above.
ROWS = [
    {"kernels", "whole_files"},
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


ROOT = PACKAGE.parents[1]
CODE = [*SOURCES, *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
UNSAFE = (
    r"import pickle\b|pickle\.loads?\b|(?:import|from) (?:dill|cloudpickle|joblib|shelve|marshal)\b"
    r"|(?<![.\w])(eval|exec|__import__)\(|shell\s*=\s*True|os\.(system|popen)\(|trust_remote_code\s*=\s*True"
    r"|weights_only\s*=\s*False|allow_pickle\s*=\s*True|LOAD_TRUNCATED_IMAGES\s*=|MAX_IMAGE_PIXELS\s*="
    r"|yaml\.(unsafe_load|full_load|load)\b|verify\s*=\s*False|extractall\("
)


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_unsafe_is_called(file: Path):
    text = file.read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if re.search(UNSAFE, line)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, node.keywords), f"line {node.lineno} of {file}"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from dill import loads",
            "x = eval(text)",
            "run(command, shell=True)",
            "os.system(command)",
        ),
        *("AutoModel.from_pretrained(x, trust_remote_code=True)", "torch.load(f, weights_only=False)", "yaml.load(f)"),
        *("np.load(f, allow_pickle=True)", "get(url, verify=False)", "ImageFile.LOAD_TRUNCATED_IMAGES = True"),
    ],
)
def test_the_check_for_unsafe_calls_sees_them(line: str):
    assert re.search(UNSAFE, line)
