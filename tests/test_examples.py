"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

FOLDERS = (
    "contracts",
    "stats",
    "tasks",
    "sources",
    "recipes",
    "explain",
    "scoring",
    "curation",
    "unlearning",
    "attacks",
    "studies",
    "warehouse",
    "reports",
    "assets",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_example_gives_what_it_says(folder: str) -> None:
    root = importlib.import_module(folder)
    names = [found.name for found in pkgutil.walk_packages(root.__path__, f"{folder}.")]
    wrong = {}
    for name in names:
        if name.endswith("_child"):  # a program of its own
            continue
        result = doctest.testmod(importlib.import_module(name), report=False)
        if result.failed:
            wrong[name] = result.failed
    assert not wrong, wrong
