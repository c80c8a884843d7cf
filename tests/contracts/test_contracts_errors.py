"""The error tree: one base, built-in relatives where people expect them, ids kept and shown."""

from __future__ import annotations

import inspect
import pickle

import pytest

import contracts.errors as errors


def everything() -> list[type]:
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]


@pytest.mark.parametrize("kind", everything(), ids=lambda c: c.__name__)
def test_every_error_is_ours_documented_and_in_the_picture(kind):
    assert issubclass(kind, errors.PalimpsestError)
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "")


def test_relatives():
    assert issubclass(errors.ConfigError, ValueError) and issubclass(errors.DataError, ValueError)
    assert issubclass(errors.UnknownName, LookupError)
    assert not issubclass(errors.Diverged, ValueError) and not issubclass(errors.CheckBroken, errors.InvalidInput)


def test_ids_are_kept_all_and_shown_in_part():
    error = errors.DataError("bad", example_ids=range(25))
    assert error.example_ids == tuple(range(25))
    assert str(error) == "bad (example ids: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... 25 in all)"
    assert str(errors.DataError("bad")) == "bad"


def test_unknown_names_say_what_is_known():
    assert "known: a, b" in str(errors.UnknownName("score", "x", ["b", "a"]))
    assert "(none)" in str(errors.UnknownName("score", "x", []))


def test_errors_without_extra_arguments_cross_processes():
    for kind in everything():
        if kind is not errors.UnknownName:
            copy = pickle.loads(pickle.dumps(kind("message")))
            assert type(copy) is kind and str(copy) == "message"
