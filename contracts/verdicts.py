"""What an audit may say. "Could not run" is never "passed"."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """PASS and FAIL are claims with an interval behind them; INCONCLUSIVE: the data cannot carry a claim;
    BROKEN: the check itself did not run."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    BROKEN = "broken"


_ORDER = (Verdict.FAIL, Verdict.BROKEN, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One verdict with the sentence that explains it.

    Attributes:
        what: what was judged ("unlearning/finetune", "attack/lira on the target", "score/memorization").
        verdict: the verdict.
        sentence: why, with the figure, its interval and the threshold.
        value, low, high, threshold: the figures behind it where there are any.
    """

    what: str
    verdict: Verdict
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several: fail, then broken, then inconclusive, then pass. Nothing judged is inconclusive.

    >>> overall([Verdict.PASS, Verdict.INCONCLUSIVE]).value
    'inconclusive'
    """
    seen = set(verdicts)
    return next((v for v in _ORDER if v in seen), Verdict.INCONCLUSIVE)
