"""Numbers that people write as text: "$1,234.50", "1.234,50 €", "12 %", "(3)", " 7".

    1,234.5   1 234.5   1'234.5   1_234.5   thousands between groups of three, a decimal point
    1.234,5   1 234,5   3,5                 a decimal comma
    $ € £ ¥ ₹, USD EUR GBP JPY INR CHF, %   before or behind, dropped ("12%" is 12)
    (12)  -12  −12                          negative
    "" NA N/A NaN null none - ? #N/A        missing

A column is read so only when every value is a number or missing: one reading for all of them. Where both a decimal
point and a decimal comma fit ("1,234"), the point is taken, or the comma when the file prefers it. Numbers with leading
zeros ("00501") are codes, not numbers. Not a reader of units ("12 kg") or of dates.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

_MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "?", ".")
_CURRENCY = r"(?:[$€£¥₹]|USD|EUR|GBP|JPY|INR|CHF)"
_DRESS = rf"^{_CURRENCY}\s*|\s*(?:{_CURRENCY}|%)$"
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_GROUPS = {".": r"[,\u00a0\u202f '’_]", ",": r"[.\u00a0\u202f '’_]"}
_CODE = r"^[+-]?0\d"


class Numbers(NamedTuple):
    """A column of text as numbers: Int64 where all are written whole, else Float64, null where missing; how, "" where
    the text is numbers as they stand.
    """

    values: pl.Series
    how: str


def read_numbers(texts: pl.Series, *, prefer_comma: bool = False) -> Numbers | None:
    """The numbers that a column of text holds; None where any value is none, or none is any.

    Args:
        texts: (N,) String.
        prefer_comma: what "1,234" means where nothing in the column tells: 1.234 in place of 1234.

    >>> read_numbers(pl.Series("p", ["$1,234.50", "(2)", "n/a"])).values.to_list()
    [1234.5, -2.0, None]
    >>> read_numbers(pl.Series("p", ["1.234,5", "3,25"])).values.to_list(), read_numbers(pl.Series("zip", ["00501"]))
    ([1234.5, 3.25], None)
    """
    stripped = texts.str.strip_chars()
    stripped = stripped.set(stripped.str.to_lowercase().is_in(_MISSING), None)
    known = stripped.drop_nulls()
    if not len(known):
        return None
    if not known.head(100).str.contains(r"\d").all():  # most text is told from a few values
        return None
    plain = known.str.replace_all("−", "-", literal=True)
    negative = plain.str.contains(r"^\(.*\)$")
    body = plain.str.strip_prefix("(").str.strip_suffix(")") if negative.any() else plain
    body = _undressed(body)
    if body.str.contains(_CODE).any():
        return None
    fits = [mark for mark in ".," if body.str.contains(_pattern(mark)).all()]
    if not fits:
        return None
    mark = "," if fits == [","] or (prefer_comma and "," in fits) else "."
    ungrouped = body.str.replace_all(_GROUPS[mark], "")
    written = ungrouped.str.replace(mark, ".", literal=True)
    whole = not written.str.contains(r"[.eE]").any()
    try:
        numbers = written.cast(pl.Int64 if whole else pl.Float64)
    except pl.exceptions.InvalidOperationError:  # whole numbers beyond 64 bits
        numbers = written.cast(pl.Float64)
    if negative.any():
        numbers = numbers * negative.replace_strict({True: -1, False: 1}, return_dtype=pl.Int64)
    values = pl.Series(texts.name, [None], dtype=numbers.dtype).new_from_index(0, len(texts))
    values = values.scatter(stripped.is_not_null().arg_true(), numbers)
    odd = (known != written).arg_true()
    how = f"text such as {known[odd[0]]!r} is read as the number {numbers[odd[0]]}" if len(odd) else ""
    return Numbers(values, how)


def _undressed(body: pl.Series) -> pl.Series:
    """Without currency and percent signs; a sign may stand before or behind them."""
    sign = body.str.extract(r"^([+-])", 1).fill_null("")
    body = body.str.strip_chars_start("+-").str.strip_chars()
    for _ in range(2):  # "$12 %" is none, "12 $" and "$ -12" are
        body = body.str.replace(_DRESS, "")
    return sign + body.str.strip_chars()


def _pattern(mark: str) -> str:
    """One number with this decimal mark: ungrouped, or in groups of three behind the first."""
    point = rf"\{mark}"
    grouped = "|".join(rf"\d{{1,3}}(?:{group}\d{{3}})+" for group in _each(_GROUPS[mark]))
    return rf"^[+-]?(?:(?:{grouped}|\d+)(?:{point}\d*)?|{point}\d+){_EXPONENT}$"


def _each(group: str) -> list[str]:
    """The single characters of a class of them: one number has one kind of group."""
    body = group[1:-1].replace("\\u00a0", "\u00a0").replace("\\u202f", "\u202f")
    return [rf"\{c}" if c == "." else c for c in body]
