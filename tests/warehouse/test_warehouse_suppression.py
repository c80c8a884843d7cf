"""No small group can be read off, or subtracted from what is shown."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from contracts.errors import InvalidInput
from warehouse import suppression
from warehouse.suppression import Group, hidden

K = 10


def tree(*sizes: int, family: str = "class") -> list[Group]:
    """A whole, key 0, and its parts, keys 1, 2, ...: no person is in two parts."""
    parts = [Group(key=i, parent=0, family=family, units=n) for i, n in enumerate(sizes, 1)]
    return [Group(key=0, parent=None, family="", units=sum(sizes)), *parts]


def shown(groups: list[Group], k: int = K, refused: tuple[int, ...] = ()) -> set[int]:
    return {g.key for g in groups} - hidden(groups, k, refused)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((30, 20, 10), {0, 1, 2, 3}),  # nothing is small
        ((30, 20, 9), {0, 1}),  # 9 hides 20, the smaller of the two others
        ((30, 19, 1), {0, 1}),  # 20 left over are just enough
        ((30, 18, 15, 1), {0, 1}),  # 15 + 1 are not 20: another goes, the smallest first
        ((30, 9, 9, 9), {0}),  # 27 left over are enough, but all of them are small: a large one goes with them
        ((9, 9), {0}),
        ((9,), set()),  # the whole is small itself
        ((40, 1), {0}),  # 40 would tell of the 1
        ((11, 11, 9), {0}),  # 20 left over, of which no more than 11 in the other: that is 9
        ((16, 11, 9), {0, 1}),  # 4 to 9
    ],
)
def test_what_is_hidden_by_hand(sizes: tuple[int, ...], wanted: set[int]) -> None:
    assert shown(tree(*sizes)) == wanted


def test_what_lies_below_a_hidden_group_is_hidden_and_families_stand_by_themselves() -> None:
    groups = [
        Group(key=0, parent=None, family="", units=100),
        Group(key=1, parent=0, family="split", units=95),
        Group(key=2, parent=0, family="split", units=5),
        Group(key=3, parent=1, family="class", units=50),
        Group(key=4, parent=1, family="class", units=45),
        Group(key=5, parent=0, family="band", units=60),
        Group(key=6, parent=0, family="band", units=40),
    ]
    assert shown(groups) == {0, 5, 6}, "50 + 45 are the 95 that would tell of the 5"


def test_a_large_group_that_is_refused_cannot_be_subtracted_either() -> None:
    assert shown(tree(30, 20, 25), refused=(1,)) == {0, 3}
    assert shown(tree(30, 20, 25), refused=(0,)) == set()


def test_every_order_of_the_groups_hides_the_same() -> None:
    groups = tree(30, 18, 15, 12, 3, 1)
    first = hidden(groups, K)
    rng = np.random.default_rng(0)
    assert all(hidden([groups[i] for i in rng.permutation(len(groups))], K) == first for _ in range(20))


def worlds(num: int = 150) -> list[list[Group]]:
    rng = np.random.default_rng(20)
    made = []
    for _ in range(num):
        sizes = np.ceil(np.exp(rng.uniform(0, 4.2, rng.integers(1, 7)))).astype(int).tolist()
        made.append(tree(*sizes))
    return made


def left_over(groups: list[Group], gone: frozenset[int]) -> list[int]:
    """People in the whole less those in any choice of shown parts: all that subtraction can say."""
    parts = [g.units for g in groups if g.parent == 0 and g.key not in gone]
    if 0 in gone:
        return []
    return [groups[0].units - sum(chosen) for n in range(len(parts) + 1) for chosen in itertools.combinations(parts, n)]


def answers(groups: list[Group], gone: frozenset[int]) -> list[set[int]]:
    """For two hidden parts under a shown whole: every pair of sizes that would be shown just so; what a reader who
    knows the rules learns of the smaller one."""
    lost = [g.units for g in groups if g.parent == 0 and g.key in gone]
    kept = [g.units for g in groups if g.parent == 0 and g.key not in gone]
    if 0 in gone or len(lost) != 2:
        return []
    total = sum(lost)
    found = set()
    for a in range(1, total // 2 + 1):
        other = tree(*kept, a, total - a)
        gone = hidden(other, K)
        if sorted(g.units for g in other if g.parent == 0 and g.key not in gone) == sorted(kept):
            found.add(a)
    return [found]


def test_nothing_small_is_left_over_in_any_world() -> None:
    for groups in worlds():
        assert not any(0 < n < K for n in left_over(groups, hidden(groups, K))), groups


def test_even_who_knows_the_rules_cannot_tell_a_small_group() -> None:
    seen = [found for groups in worlds() for found in answers(groups, hidden(groups, K))]
    assert len(seen) > 20 and all(len(found) > 1 for found in seen)


def test_without_the_complementary_step_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "_complement", lambda *_: set())
    assert any(0 < n < K for groups in worlds() for n in left_over(groups, hidden(groups, K)))


def test_with_k_left_over_instead_of_2k_a_reader_who_knows_the_rules_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(gone: list[Group], _: int, primary: set[int], k: int) -> bool:
        return all(g.key in primary for g in gone) or sum(g.units for g in gone) < k

    monkeypatch.setattr(suppression, "_tells", half)
    groups = tree(40, 10, 1)
    assert shown(groups) == {0, 1} and answers(groups, hidden(groups, K)) == [{1}]
    groups = tree(11, 11, 9)
    assert len(shown(groups)) == 2 and answers(groups, hidden(groups, K)) == [{9}]


@pytest.mark.parametrize("k", [-1, 0, 1, 4])
def test_a_k_that_protects_nobody_is_refused(k: int) -> None:
    with pytest.raises(InvalidInput, match="5 or more"):
        hidden(tree(30), k)


def test_groups_must_hang_together() -> None:
    for groups in (
        [Group(key=1, parent=0, family="a", units=9)],
        [Group(key=0, parent=None, family="", units=9)] * 2,
    ):
        with pytest.raises(InvalidInput, match="parents among them"):
            hidden(groups, K)
