"""The table of faults in the docs names tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
CASES = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@cache
def found_in(file: str) -> frozenset[str]:
    """The tests that pytest would collect from a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_the_28_cases_are_all_there_each_with_a_test() -> None:
    assert [int(number) for number, *_ in CASES] == list(range(1, 29))
    for number, case, promise, shown in CASES:
        assert case.strip() and promise.strip()
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", shown), f"case {number} has no test"


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    assert {name for found, name in NAMED if found == file} <= found_in(file)


def test_everything_that_looks_like_a_test_is_looked_up() -> None:
    assert len(NAMED) == PAGE.count("::test_")
    assert len(NAMED) > 90


def test_every_test_of_faults_is_named_in_the_table() -> None:
    named = {name for _, name in NAMED}
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__):
            left = found_in(str(path.relative_to(ROOT))) - named
            assert left <= {"test_every_file_that_was_stored_is_among_those_that_are_flipped"}
