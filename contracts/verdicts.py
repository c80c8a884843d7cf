"""What an audit may say. "Could not run" is never "passed", and nothing judged is not a pass either."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """PASS and FAIL are claims with an interval behind them; INCONCLUSIVE: the data cannot carry a claim;
    BROKEN: the check itself did not run; NOT_JUDGED: no check that judges was asked for (of an audit, never of a
        finding)."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    BROKEN = "broken"
    NOT_JUDGED = "not judged"


OF_FINDINGS = (Verdict.FAIL, Verdict.BROKEN, Verdict.INCONCLUSIVE, Verdict.PASS)  # worst first

TARGET = "target"  # what findings about the audited model are about

# What a finding is evidence of. Only an attack shows power: an audit that sees nothing else of the untouched model is
# blind.
ATTACK = "attack"  # members, or removed examples, can be told
QUALITY = "quality"  # what is kept works as after retraining
DISTANCE = "distance"  # how far the metrics lie from retraining's
RESULT = "result"  # what a method gave back is a model of this plan
COVERAGE = "coverage"  # whether the evidence is about this method and this kind of set
# of a request that names one: how often it is still produced, what of its neighbours is kept, attacks for it
CONCEPT = "concept"
PROTECTION = "protection"  # whether data that were made to teach nothing teach nothing
INFORMATION = "information"  # a figure that decides nothing here, whatever it is


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One verdict with the sentence that explains it.

    Attributes:
        what: what was judged ("attack/lira_online", "quality", "exposure/rmia_online").
        verdict: the verdict.
        sentence: why, with the figure, its interval and the threshold.
        value, low, high, threshold: the figures behind it where there are any.
        kind: one of the words above, or "" where nobody said.
        method: the unlearning method that it is about, or "": then it is about the model, the data, or anything else.
        judged: it decides the verdict of what it is about; False shows it only. What nobody classed is judged.
    """

    what: str
    verdict: Verdict
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    kind: str = ""
    method: str = ""
    judged: bool = True


def at_most(low: float, high: float, limit: float) -> Verdict:
    """What an interval says of "the figure is at most ``limit``": all of it has to lie on one side.

    >>> [at_most(low, high, 0.6).value for low, high in ((0.4, 0.6), (0.7, 0.8), (0.5, 0.7))]
    ['pass', 'fail', 'inconclusive']
    """
    if low > limit:
        return Verdict.FAIL
    return Verdict.PASS if high <= limit else Verdict.INCONCLUSIVE


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of several: fail, then broken, then inconclusive, then pass. Nothing judged is inconclusive.

    >>> overall([Verdict.PASS, Verdict.INCONCLUSIVE]).value
    'inconclusive'
    """
    seen = set(verdicts)
    return next((v for v in OF_FINDINGS if v in seen), Verdict.INCONCLUSIVE)
