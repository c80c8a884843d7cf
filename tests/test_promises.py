"""Every promise of the groups that must be whole has a test; the page says what the sources and results say."""

from __future__ import annotations

import json
from pathlib import Path

import promises
import pytest


def test_every_promise_that_must_hold_has_a_test() -> None:
    tests = promises.declared()
    assert set(tests) <= set(promises.PROMISES), "a test declares a promise that is none"
    must = {code for code in promises.PROMISES if code[0] in promises.WHOLE}
    assert must - set(tests) <= promises.AWAITED, "a promise without a test"


def test_the_page_is_current() -> None:
    fresh = promises.page(promises.declared(), promises.read_results())
    assert promises.PAGE.read_text() == fresh, "docs/promises.md is stale: run python -m tests.promises"


def test_every_promise_has_a_group_and_numbers_have_no_gap() -> None:
    for letter in promises.GROUPS:
        numbers = [int(code[1:]) for code in promises.PROMISES if code[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)) and numbers


SOURCE = """
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.promise("A1")]
def test_plain(): ...
@pytest.mark.parametrize("x", [1, 2])
@pytest.mark.promise("B2", "A1")
def test_marked(x): ...
def helper(): ...
"""


def test_marks_are_found_in_the_sources(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "deep"
    folder.mkdir(parents=True)
    (folder / "test_x.py").write_text(SOURCE)
    (folder / "other.py").write_text(SOURCE)
    file = "tests/deep/test_x.py::"
    assert promises.declared(tmp_path) == {
        "A1": [f"{file}test_plain", f"{file}test_marked"],
        "B2": [f"{file}test_marked"],
    }


def test_a_run_replaces_its_own_results_only(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    old = {"result": "passed", "on": "2020-01-01", "version": "0"}
    path.write_text(json.dumps({"t::a": old, "t::kept": old, "t::gone": old}))
    run = promises.Recorder()
    for node, outcome, when in (
        ("t::a[1]", "passed", "setup"),
        ("t::a[1]", "passed", "call"),
        ("t::a[2]", "failed", "call"),
        ("t::a[2]", "passed", "teardown"),
        ("t::b", "passed", "call"),
        ("t::b", "failed", "teardown"),
        ("t::undeclared", "passed", "call"),
    ):
        run.note(node, outcome, when)
    run.write(path, tests=["t::a", "t::b", "t::kept"])
    stored = promises.read_results(path)
    assert set(stored) == {"t::a", "t::b", "t::kept"} and stored["t::kept"] == old
    assert stored["t::a"]["result"] == "failed (1 of 2)" and stored["t::b"]["result"] == "failed (1 of 1)"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, "open"),
        ({"t::a": None}, "not run"),
        ({"t::a": "passed (3 cases)"}, "passed"),
        ({"t::a": "passed", "t::b": None}, "not run"),
        ({"t::a": "failed (1 of 2)", "t::b": None}, "failed"),
        ({"t::a": "skipped"}, "not run"),
    ],
)
def test_a_promise_has_passed_when_all_of_its_tests_have(told: dict[str, str | None], expected: str) -> None:
    results = {test: {"result": text, "on": "", "version": ""} for test, text in told.items() if text}
    assert promises.status(list(told), results) == expected
