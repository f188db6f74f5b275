"""The table in README.md names tests that exist, for every case."""

import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


@cache
def names_in(file: str) -> set[str]:
    return set(re.findall(r"def (test_\w+)", (TESTS / file).read_text(encoding="utf-8")))


def rows() -> dict[int, str]:
    return {int(match[1]): match[2] for match in re.finditer(r"^\| (\d+) \|.*\| ([^|]+) \|$", TABLE, re.MULTILINE)}


def test_all_37_cases_have_a_test():
    assert list(rows()) == list(range(1, 38))
    for case, cell in rows().items():
        assert re.search(r"`test_\w+`", cell), case


def test_every_test_that_is_named_exists():
    for case, cell in rows().items():
        file = None
        for name in re.findall(r"`([^`]+)`", cell):
            if name.endswith(".py"):
                file = name
                assert (TESTS / file).is_file(), f"case {case}: {file}"
            else:
                assert name in names_in(file), f"case {case}: {file} has no {name}"
