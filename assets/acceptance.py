"""Acceptance: before forget requests may use a removal method that is not exact, it has to pass on this subject's worst
case.

    set      the plan's ``unlearning.acceptance.split``, such as the examples that are hardest to forget
    judged   against retrainings without that very set: what is left of the set, the gap to retraining, and the quality
             kept, of every seed, the worst counting; thresholds are the acceptance's own, or the plan's
    used     the method in use where it is accepted, else the first of ``acceptance.then`` that is, else exact
             retraining, which needs no acceptance (``assets.in_use``)

That a method passed here does not close a request: its result is judged on the request's own rows all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assets import audits, unlearning, verdicts
from assets.in_use import asked_of, candidates, tried, used
from assets.stage import Output, Run, Stage
from assets.unlearning import CONTROLS, Scope
from contracts import schema
from contracts.errors import ConfigError
from contracts.methods import curator
from contracts.subject import Subject
from contracts.verdicts import Finding, Verdict, overall
from sources.frames import frame_of

PREFIX = "acceptance_"
PATH = ("unlearning", "acceptance")


def stages(
    subject: Subject, upstream: Mapping[str, Stage], splits: Mapping[str, Stage], planned: Mapping[str, Stage]
) -> list[Stage]:
    """The stages that say which methods are accepted, the last of them ``[subject, unlearning, acceptance]``.

    Args:
        splits: those of the plan, by name.
        planned: by name, the stages of the plan's own split, "against_retraining", "retrainings" and the jobs among
            them: read again where the acceptance is on that split.

    Returns:
        Nothing where the plan asks for no acceptance, or every method that it names is exact.

    Raises:
        ConfigError: the split is a random one.
    """
    asked, plan = asked_of(subject), subject.unlearning
    if asked is None or plan is None or not tried(subject):
        return []
    chosen = next(split for split in subject.splits if split.name == asked.split)
    if curator.get(chosen.method).spec.random:
        raise ConfigError(
            f"subject {subject.subject}: unlearning.acceptance.split {asked.split!r} is random ({chosen.method}); a "
            "method is accepted on the worst case, such as a split by top_score of worst_case_forget"
        )
    scope = Scope(splits[asked.split], per_request=False, stage_prefix=PREFIX)
    if asked.split == plan.split:
        jobs = {name: planned[name] for name in (*CONTROLS, *tried(subject))}
        made, compared, against = [], planned["comparison"], planned[audits.AGAINST_RETRAINING]
    else:
        jobs = unlearning.jobs(subject, upstream, scope, only=tried(subject))
        compared = unlearning.comparison(subject, scope, jobs)
        again = unlearning.retrainings(subject, upstream, scope)
        assert again is not None
        against = audits.against_retraining(subject, scope, jobs, again)
        made = [*jobs.values(), compared, again, against]
    decided = Stage(
        subject=subject,
        path=PATH,
        doc=f"Which removal methods forget requests may use: those that pass on the split {asked.split}, against "
        "retrainings without that very set. Exact retraining needs no acceptance.",
        config={"acceptance": asked, "candidates": candidates(subject), "thresholds": subject.thresholds},
        deps=(scope.split, *jobs.values(), compared, against),
        tables=(schema.ACCEPTANCE,),
        work=lambda run: _decide(run, scope, against),
    )
    return [*made, decided]


def _decide(run: Run, scope: Scope, against: Stage) -> Output:
    asked = asked_of(run.subject)
    assert asked is not None
    limits = asked.thresholds or run.subject.thresholds
    rows: list[dict[str, Any]] = []
    for place, method in enumerate(tried(run.subject)):
        about = f"{scope.name(run)}/{method}"
        found = [
            f for f in verdicts.judge_method(run, scope, method, about, {against.path[1]: against}, limits) if f.judged
        ]
        verdict = overall(f.verdict for f in found)
        deciding = next((f for f in found if f.verdict is verdict), None)
        rows.append(
            {
                "method": method,
                "place": place,
                "split": scope.name(run),
                "accepted": verdict is Verdict.PASS,
                "verdict": verdict.value,
                "what": deciding.what if deciding else "",
                "sentence": _sentence(found, deciding),
            }
        )
    frame = frame_of(schema.ACCEPTANCE, rows)
    return Output(
        tables=[(schema.ACCEPTANCE, frame, {})],
        metadata={"used": used(run.subject, frame).why, "methods": frame.to_dicts()},
    )


def _sentence(found: Sequence[Finding], deciding: Finding | None) -> str:
    if deciding is None:
        return "Nothing was judged."
    return " ".join(f.sentence for f in found) if deciding.verdict is Verdict.PASS else deciding.sentence
