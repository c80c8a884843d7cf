"""Earlier forgetting, measured again from what is kept of a request: readings of its examples and no content of them.

    kept      of every unlearned model and of every retraining without the set: the task's signal of the set and of the
              test examples, by id (``pipelines.erasure``); the examples themselves may be erased
    again     the set against those retrainings, as the program measures and judges it now, by the plan's limits now

Whole outputs are erased with the examples, so models are brought to one scale by their signals alone where the audit
could map outputs first: figures may differ a little. No example is read, nothing is trained, nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets.audits import level_of
from assets.unlearning import NONE
from contracts import schema
from contracts.errors import NotReady
from contracts.subject import Subject
from contracts.verdicts import Finding, Verdict
from tasks.base import Reading

if TYPE_CHECKING:
    from attacks.membership.retraining_null import AgainstRetraining
    from warehouse import Warehouse

Arrays = dict[str, np.ndarray]
Found = dict[str, "dict[int, AgainstRetraining]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """One method of a request.

    Attributes:
        method: the removal method in use, or "none", the untouched model, which must be caught.
        recorded: the audit's verdict on the set, of the worst seed.
        now: the finding of the worst seed, measured again.
        moved: largest difference, over seeds, between the recorded distance from retraining and the one measured again,
            in standard deviations of one example; NaN where none was recorded.
    """

    method: str
    recorded: Verdict
    now: Finding
    moved: float


def measured_again(subject: Subject, w: Warehouse, request_id: str) -> list[Again]:
    """The removal method in use and the untouched model, measured again.

    Raises:
        UnknownName: there is no such request.
        NotReady: it was not audited, or what is kept of it is not enough: no readings of the retrainings.
        IntegrityError: what is kept is damaged.
    """
    from attacks.recipe_match import SET_GONE
    from attacks.verdicts import judge_against_retraining, worst

    name, limits = subject.subject, subject.thresholds
    w.requests.get(request_id)
    facts = _kept(w, f"{name}/request_reports/{request_id}/audit.json", request_id)
    null, _ = _kept(w, f"{name}/request_unlearning/{request_id}/retrainings/result", request_id)
    scope, _ = _kept(w, f"{name}/request_curation/{request_id}/split/result", request_id)
    results = {
        method: _kept(w, f"{name}/request_unlearning/{request_id}/{method}/result", request_id)
        for method in dict.fromkeys((NONE, str(facts["decides"])))
    }
    if not len(results[NONE][0]["forget"]):
        raise NotReady(f"request {request_id} had nothing to unlearn: there is nothing to measure again")
    out = []
    for method, by_seed in _against(subject, null, scope.get("beside", scope["forget"][:0]), results).items():
        stored = w.read(schema.AGAINST_RETRAINING, subject=name, partition={"audited": f"{request_id}/{method}"})
        recorded = dict(stored.select("seed", "shift").iter_rows())
        judged = {s: judge_against_retraining(one, what=SET_GONE, thresholds=limits) for s, one in by_seed.items()}
        again = Again(
            method=method,
            recorded=_recorded(w, name, request_id, method),
            now=worst(judged) if judged else judge_against_retraining(None, what=SET_GONE, thresholds=limits),
            moved=max((abs(one.shift - recorded[s]) for s, one in by_seed.items() if s in recorded), default=math.nan),
        )
        out.append(again)
    return out


def _kept(w: Warehouse, artifact: str, request_id: str) -> Any:
    if not w.artifacts.exists(artifact):
        raise NotReady(
            f"request {request_id} cannot be measured again: {artifact}, which an audited request keeps, is not there"
        )
    return w.artifacts.load_json(artifact) if artifact.endswith(".json") else w.artifacts.load(artifact)


def _against(subject: Subject, null: Arrays, beside: np.ndarray, results: Mapping[str, tuple[Arrays, Any]]) -> Found:
    """Method -> seed -> ``AgainstRetraining`` of its models."""
    from attacks.membership.retraining_null import Retrainings, against_retraining

    first = results[NONE][0]
    asked, own = null["example_id"], first["forget"]
    shown = np.isin(asked, first["example_id"]) & ~np.isin(asked, beside)  # the set, then test examples
    num = int(np.isin(asked[shown], own).sum())
    those = Retrainings(signal=null["signal"][:, shown], num_set=num)

    def placed(arrays: Arrays, s: int) -> np.ndarray:
        rows = np.argsort(arrays["example_id"])
        rows = rows[np.searchsorted(arrays["example_id"], asked[shown], sorter=rows)]
        return those.place(Reading(arrays["reading"][s, rows]).signal)

    untouched, scale, alpha = placed(first, 0), those.null, subject.thresholds.alpha
    level = level_of(subject, random=False)
    return {
        method: {
            run["seed"]: against_retraining(placed(arrays, s), scale, untouched=untouched, alpha=alpha, level=level)[0]
            for s, run in enumerate(meta["runs"])
            if run["status"] == "ok"
        }
        for method, (arrays, meta) in results.items()
    }


def _recorded(w: Warehouse, subject: str, request_id: str, method: str) -> Verdict:
    from attacks.recipe_match import SET_GONE

    stage = f"{subject}/request_audits/{request_id}/findings"
    findings = w.read(schema.FINDINGS, subject=subject, partition={"stage": stage})
    of = findings.filter((pl.col("about") == f"{request_id}/{method}") & (pl.col("what") == SET_GONE))
    return Verdict(of["verdict"][0]) if of.height else Verdict.NOT_JUDGED
