"""Names and tokens: hostile text never becomes a key, a path or SQL."""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, IllegalName
from contracts.identity import NAME_PATTERN, check_name, nearly_same, owner_token, same_text, spellings
from contracts.tables import Column, TableSpec, check_identifier

HOSTILE = [
    "",
    " ",
    "A",
    "-a",
    "_a",
    "a b",
    "a/b",
    "..",
    "a\n",
    "a\x00",
    "'; DROP TABLE x; --",
    'a"b',
    "ä",
    "a\u202eb",
    "\uff41",
    "a" * 65,
    "\u2018a\u2019",
    "select;",
    "a.b",
    "🐍",
    None,
    3,
    b"a",
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.promise("B6")
def test_hostile_names_are_refused(name):
    with pytest.raises(IllegalName, match="not allowed"):
        check_name(name, kind="subject")
    with pytest.raises(ConfigError, match="not allowed"):
        check_identifier(name, kind="column")


@given(st.text())
def test_exactly_the_pattern_passes(name):
    # fullmatch: `$` alone would let a trailing newline through
    if re.fullmatch(NAME_PATTERN.strip("^$"), name):
        assert check_name(name) == name
    else:
        with pytest.raises(IllegalName):
            check_name(name)


@given(st.from_regex(NAME_PATTERN.replace("$", r"\Z"), fullmatch=True))
def test_legal_names_pass(name):
    assert check_name(name) == name


def test_a_hostile_name_is_not_repeated_at_length():
    with pytest.raises(IllegalName) as error:
        check_name("x" * 100_000 + " ")
    assert len(str(error.value)) < 400


@given(st.text(min_size=1), st.binary(min_size=1, max_size=32))
def test_tokens_are_keyed_hashes(owner, salt):
    token = owner_token(owner, salt=salt)
    assert token == hmac.new(salt, owner.encode(), hashlib.sha256).hexdigest()[:32]
    assert token != owner_token(owner, salt=salt + b"x")


def test_nobody_has_no_token():
    assert owner_token("", salt=b"s") == ""


@pytest.mark.parametrize("keyword", ["a", "a1", "a_b", "z" * 63])
def test_identifiers(keyword):
    assert check_identifier(keyword, kind="table") == keyword


def column(name: str, **more: object) -> Column:
    return Column(name=name, dtype="float64", doc="d", **more)


def test_a_table_is_refused_when_it_contradicts_itself():
    def table(**more: object) -> TableSpec:
        return TableSpec(**{"schema": "s", "name": "t", "doc": "d", "columns": (column("a"),), "key": ("a",)} | more)

    assert table().full_name == "s.t"
    assert [c.name for c in table().all_columns] == ["subject", "run_id", "config_digest", "a"]
    for bad, says in (
        ({"columns": (column("a"), column("a"))}, "declared twice"),
        ({"columns": (column("run_id"), column("a"))}, "declared twice"),
        ({"key": ("b",)}, "unknown column b"),
        ({"partition": ("c",)}, "unknown column c"),
        ({"schema": "S"}, "schema name 'S'"),
        ({"name": "t; drop"}, "table name"),
    ):
        with pytest.raises(ConfigError, match=says):
            table(**bad)
    with pytest.raises(ConfigError, match=r"low 2.* > high 1"):
        column("a", low=2, high=1)


@given(st.text(max_size=20), st.sampled_from(["NFC", "NFD"]))
def test_canonical_forms_read_the_same_and_nothing_else_does(name, form):
    spelled = f" {unicodedata.normalize(form, name)} "
    assert same_text(spelled) == same_text(name) == same_text(same_text(name))
    assert nearly_same(spelled) == nearly_same(name)
    assert same_text(name) in spellings(name) and spellings(name)[0] == name


def test_case_and_compatibility_do_not_read_the_same_but_nearly():
    for one, other in (("ann", "Ann"), ("\ufb01", "fi"), ("x\u00b2", "x2"), ("a b", "a\u00a0 b"), ("an\u200dn", "ann")):
        assert same_text(one) != same_text(other) and nearly_same(one) == nearly_same(other)
    assert nearly_same("ann") != nearly_same("anne")
