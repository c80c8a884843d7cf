"""Canonical JSON: one text for one value; digests that stay what they are; seeds that do not collide."""

from __future__ import annotations

import enum
import hashlib
import json
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.digests import canonical_json, derive_seed, digest, plain
from contracts.errors import InvalidInput
from contracts.verdicts import Finding, Verdict

JSONABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSONABLE)
def test_round_trip_and_order_independence(value):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


def test_the_digest_is_sha256_of_the_text_and_does_not_move():
    assert (
        digest({"b": 1, "a": [True, None, "ä"]}) == hashlib.sha256('{"a":[true,null,"ä"],"b":1}'.encode()).hexdigest()
    )
    # Stored rows carry digests: these must stay what they are.
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digest([1, 2.5, "x"]) == hashlib.sha256(b'[1,2.5,"x"]').hexdigest()


class Number(enum.IntEnum):
    ONE = 1


def test_python_values_have_one_plain_form():
    finding = Finding(what="w", verdict=Verdict.PASS, sentence="s", value=0.5)
    assert plain(finding)["verdict"] == "pass"
    assert plain((1, (2,))) == [1, [2]]
    assert plain({"b", "a"}) == ["a", "b"]
    assert plain(PurePosixPath("a/b")) == "a/b"
    assert plain({1: 2}) == {"1": 2}
    assert plain(Number.ONE) == 1 and type(plain(Number.ONE)) is int


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"bytes", object(), np.float32(1), np.arange(2), [object()]]
)
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(InvalidInput, match="canonical JSON"):
        canonical_json(value)


@given(st.lists(st.integers(0, 2**40) | st.text(max_size=5), min_size=1, max_size=4))
def test_seeds_fit_every_generator_and_depend_on_every_part(parts):
    seed = derive_seed(*parts)
    assert seed == derive_seed(*parts) and 0 <= seed < 2**63
    assert seed != derive_seed(*parts, 0) and seed != derive_seed("other", *parts)


def test_seeds_of_neighbours_are_unrelated():
    seeds = np.array([derive_seed("s", i) for i in range(2000)], dtype=np.uint64)
    assert len(set(seeds.tolist())) == 2000
    bits = np.unpackbits(seeds.view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    bits = np.delete(bits, np.argmin(bits))  # the sign bit is always 0
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(2000)
    assert derive_seed("a", "b") != derive_seed("ab") and derive_seed(1) != derive_seed("1")
