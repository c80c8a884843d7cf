"""Which method removes what a forget request names: the plan's method in use, where it is accepted or need not be; else
the next that is accepted; at the end exact retraining. ``assets.acceptance`` is what decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from assets.stage import Run, Stage
from assets.unlearning import RETRAIN, Scope
from contracts import schema
from contracts.methods import unlearner
from contracts.subject import Acceptance, Subject


@dataclass(frozen=True, kw_only=True)
class InUse:
    """The method that removes what a forget request names.

    Attributes:
        method: its name.
        why: a sentence on what was accepted and what was not; empty where the plan asks for no acceptance.
    """

    method: str
    why: str = ""


def asked_of(subject: Subject) -> Acceptance | None:
    """What the plan asks of a method before a request may use it; None: nothing."""
    return subject.unlearning.acceptance if subject.unlearning else None


def candidates(subject: Subject) -> tuple[str, ...]:
    """Methods in the order in which a request tries them; exact retraining, which always can, comes last."""
    assert subject.unlearning is not None
    then = subject.unlearning.acceptance.then if subject.unlearning.acceptance else ()
    return tuple(dict.fromkeys((subject.unlearning.decides, *then, RETRAIN)))


def tried(subject: Subject) -> tuple[str, ...]:
    """Those of them that have to be accepted: all that are not exact."""
    return tuple(name for name in candidates(subject) if not unlearner.get(name).spec.exact)


def in_use(run: Run, scope: Scope | None, decided: Stage | None) -> InUse:
    """The method that the findings and the report of a run are about.

    Args:
        scope: of the run.
        decided: the stage of the acceptance; None where the plan asks for none.
    """
    plan = run.subject.unlearning
    if plan is None:
        return InUse(method="")
    if scope is None or not scope.per_request or decided is None:
        return InUse(method=plan.decides)
    return used(run.subject, run.read(schema.ACCEPTANCE))


def used(subject: Subject, rows: pl.DataFrame) -> InUse:
    """Which method requests use.

    Args:
        rows: of ``unlearning.acceptance``.
    """
    known = {row["method"]: row for row in rows.iter_rows(named=True)}
    refused: list[str] = []
    for method in candidates(subject):
        row = known.get(method)
        if row is None:  # exact: it needs no acceptance
            return InUse(method=method, why=" ".join([*refused, f"{method} is exact and needs no acceptance."]))
        if row["accepted"]:
            return InUse(method=method, why=" ".join([*refused, f"{method} is accepted: it passes on {row['split']}."]))
        refused.append(f"{method} is not accepted ({row['split']}, {row['what']}: {row['verdict']}).")
    raise AssertionError("exact retraining is always among the candidates")


def sentences(subject: Subject) -> Iterator[str]:
    """What the plan asks for, said before any work."""
    asked = asked_of(subject)
    if asked is None or not tried(subject):
        return
    order = ", then ".join(candidates(subject))
    yield (
        f"Forget requests are removed by the first that is accepted of {order}: a method that is not exact has to pass "
        f"on {asked.split}, against retrainings without that set."
    )
