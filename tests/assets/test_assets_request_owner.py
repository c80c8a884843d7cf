"""Whose examples a request means: one owner or none, and never two names as one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from assets.request_owner import owner_in
from contracts.errors import DataError

COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"


def data(*owners: str) -> Any:
    return SimpleNamespace(owner=np.array(owners), name="mine")


def test_the_exact_spelling_is_that_owner() -> None:
    assert owner_in(data("ann", "bob", "", "ann"), "ann") == ("ann", ())


@pytest.mark.parametrize(
    ("asked", "spelled"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (" ann\u00a0", "ann"), ("ann", "ann ")]
)
def test_another_spelling_that_reads_the_same_is_found_and_said(asked: str, spelled: str) -> None:
    found = owner_in(data(spelled, "bob", ""), asked)
    assert found.name == spelled, "the token is that of the data"
    assert len(found.said) == 1 and ascii(spelled) in found.said[0]


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ("ann", "Ann"),
        ("ann", "ANN"),
        ("fi", "\ufb01"),
        ("x2", "x\u00b2"),
        ("strasse", "stra\u00dfe"),
        ("ann", "an\u200bn"),
    ],
)
def test_what_differs_in_more_is_somebody_else_and_is_named(asked: str, other: str) -> None:
    found = owner_in(data(asked, other, other), asked)
    assert found.name == asked and len(found.said) == 1
    assert "not in this request" in found.said[0] and f"{other!a} (2 examples)" in found.said[0]
    with pytest.raises(DataError, match="did you mean"):
        owner_in(data(other, "somebody"), asked)


def test_two_owners_that_read_the_same_are_never_merged() -> None:
    both = data(COMPOSED, DECOMPOSED, DECOMPOSED)
    with pytest.raises(DataError, match="spelled in 2 ways") as caught:
        owner_in(both, f" {COMPOSED}")
    assert f"{DECOMPOSED!a} (2 examples)" in str(caught.value) and f"{COMPOSED!a} (1 examples)" in str(caught.value)
    for spelled in (COMPOSED, DECOMPOSED):
        found = owner_in(both, spelled)
        assert found.name == spelled and len(found.said) == 1, "the other is named"


@pytest.mark.parametrize("asked", ["", " ", "\u200b", "nobody at all"])
def test_nobody_is_nobody(asked: str) -> None:
    with pytest.raises(DataError, match="the data have 2 owners"):
        owner_in(data("ann@example.org", "bob@example.org", ""), asked)


def test_a_name_that_comes_near_is_offered() -> None:
    with pytest.raises(DataError, match=r"did you mean 'person003@example\.org'"):
        owner_in(data("person003@example.org", "q"), "PERSON3@example.org")


@pytest.mark.parametrize(
    ("asked", "spelled", "others"),
    [("1.0", "1", ["10", "11"]), ("7", "007", ["77"]), ("1", "1.0", ["10"]), ("2e1", "20", ["21"])],
)
def test_a_number_is_offered_as_the_data_spell_it(asked: str, spelled: str, others: list[str]) -> None:
    """Owners of a column of floats are read as whole numbers: whoever types what the file shows is not sent to 10."""
    with pytest.raises(DataError, match=rf"belongs to '{asked}'; did you mean '{spelled}'\? The data spell"):
        owner_in(data(*others, spelled, "sNaN", "nan"), asked)
    for name in ("sNaN", "Infinity"):
        with pytest.raises(DataError, match="belongs to"):
            owner_in(data("nan", "-1"), name)
