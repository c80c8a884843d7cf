"""Stage 6, verdicts: what the attacks, the comparison and the shadow runs found, judged by the plan's thresholds.

Every model is judged on its own and the worst counts. What the audited model shows and what the removal method in use
left behind are findings apart; controls and compared methods are on record and do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from assets import audits, judged
from assets.in_use import InUse, tried
from assets.in_use import in_use as method_in_use
from assets.recipe_match import REFERENCES, judge_match, measured_otherwise
from assets.stage import Checked, Output, Partition, Run, Stage
from assets.unlearning import NONE, RETRAIN, Scope
from contracts import schema
from contracts.methods import analysis, attack, unlearner
from contracts.subject import Policy, Subject, Thresholds
from contracts.tables import TableSpec
from contracts.verdicts import ATTACK, COVERAGE, INFORMATION, RESULT, TARGET, Finding, Verdict, overall
from recipes.policies import of_another_recipe
from reports import findings_frame, judge
from reports.summary import MODEL, REMOVAL

if TYPE_CHECKING:
    from attacks.peers import Unseen

SHADOW = "shadow_unlearning"  # the analysis whose rows say what an approximate method leaves behind
COVERED_BY = "u_lira"  # the finding on whether the shadow runs are about this method and kind of set


def findings(
    subject: Subject,
    scope: Scope | None,
    scores: Mapping[str, Stage],
    attack_stages: Mapping[str, Stage],
    comparison: Stage | None,
    jobs: Mapping[str, Stage],
    analyses: Mapping[str, Stage],
    match: Stage | None = None,
    accepted: Stage | None = None,
) -> Stage:
    """``[subject, audits, findings]``: the plan's thresholds and the intervals make the verdicts.

    Args:
        scores: only to note which scores are current no longer.
        attack_stages: attacks, u_mia and against_retraining, by name.
        analyses: those of the plan; a request reads the shadow audit alone.
        match: how a given model compares with the stated recipe.
        accepted: which methods forget requests may use; None where the plan does not ask.
    """
    per_request = scope is not None and scope.per_request
    policy = subject.ensemble.policy
    judges = {name: stage for name, stage in analyses.items() if analysis.get(name).spec.judge}
    shadow = judges.get(SHADOW)
    read = ([shadow] if shadow else []) if per_request else list(judges.values())
    checks = judged.declared(
        subject,
        removal=_judged_by(subject, scope, attack_stages),
        per_request=per_request,
        judges=() if per_request else list(judges),
        others=(REFERENCES,) if match or of_another_recipe(subject) else (),
    )
    return Stage(
        subject=subject,
        path=(f"{scope.prefix if scope else ''}audits", "findings"),
        doc="Verdicts: pass, fail, inconclusive or broken, each with the sentence that explains it. A pass or a fail "
        "needs the whole interval on one side of the plan's threshold.",
        config={
            "thresholds": subject.thresholds,
            "unlearning": subject.unlearning,
            "attacks": [choice.name for choice in subject.attacks],
            "models": subject.ensemble.num_models,
            **({} if policy == Policy() else {"policy": [policy.name, subject.ensemble.each_side]}),
        },
        version=7,
        judged=checks,
        deps=(
            *scores.values(),
            *attack_stages.values(),
            *((comparison,) if comparison else ()),
            *jobs.values(),
            *read,
            *((match,) if match else ()),
            *((accepted,) if accepted else ()),
        ),
        tables=(schema.FINDINGS,),
        per_request=per_request,
        fresh_days=None if per_request else 8,
        work=lambda run: _findings(
            run, scope, scores, attack_stages, jobs, {} if per_request else judges, shadow, match, accepted
        ),
    )


def _judged_by(subject: Subject, scope: Scope | None, attack_stages: Mapping[str, Stage]) -> list[str]:
    """What the method in use is judged by: each is one finding, whatever else is recorded."""
    if scope is None or subject.unlearning is None or subject.unlearning.decides == NONE:
        return []
    attacks = list(attack_stages) if scope.random else [audits.AGAINST_RETRAINING]
    exact = not tried(subject) if scope.per_request else unlearner.get(subject.unlearning.decides).spec.exact
    return [*attacks, "gap", "quality", *([] if exact else [COVERED_BY])]


def _findings(
    run: Run,
    scope: Scope | None,
    scores: Mapping[str, Stage],
    attack_stages: Mapping[str, Stage],
    jobs: Mapping[str, Stage],
    judges: Mapping[str, Stage],
    shadow: Stage | None,
    match: Stage | None,
    accepted: Stage | None,
) -> Output:
    limits = run.subject.thresholds
    using = method_in_use(run, scope, accepted)
    in_use = using.method
    found: list[tuple[str, Finding]] = []
    by: list[str] = []  # who found each
    if not run.stage.per_request:
        found += [(TARGET, f) for f in _judge_target(run, scope, attack_stages, limits)]
    by += [MODEL] * len(found)
    if scope:
        for method in jobs:
            about = f"{scope.name(run)}/{method}"
            of_method = judge_method(run, scope, method, about, attack_stages, limits)
            if not _exact(run, method, jobs) and method != NONE:
                of_method.append(_judge_coverage(run, scope, method, shadow))
            found += [(about, dataclasses.replace(f, method=method)) for f in of_method]
        found += _accepted(run, scope, using, accepted)
    by += [REMOVAL] * (len(found) - len(by))
    for name in judges:
        spec = analysis.get(name).spec
        assert spec.judge is not None
        found += spec.judge({table.name: run.read(table) for table in spec.tables}, limits)
        by += [name] * (len(found) - len(by))
    if (matched := judge_match(run, match)) is not None:
        if matched.verdict is not Verdict.PASS:
            found = [
                (about, measured_otherwise(run, f, who, alone=audits.U_MIA))
                for (about, f), who in zip(found, by, strict=True)
            ]
        found.append((REFERENCES, matched))
        by.append(REFERENCES)
    frame = _frame(run.asset, found, in_use=in_use)
    tables: list[tuple[TableSpec, pl.DataFrame, Partition]] = [(schema.FINDINGS, frame, {"stage": run.asset})]
    if not run.stage.per_request:
        tables += _retired(run, scores)
    told = judge(frame, decides=in_use or None)
    checks = judged.results(run.stage.judged, frame, by, told)
    covered = f"{REMOVAL}_{COVERED_BY}"
    if covered in checks and unlearner.get(in_use).spec.exact:
        checks[covered] = Checked(verdict=Verdict.PASS, sentence=f"{in_use} is exact: it needs no shadow runs.")
    return Output(
        tables=tables,
        judged=checks,
        metadata={
            "verdict": told.verdict.value,
            "why": told.sentence,
            "answers": [answer.shown for answer in told.answers],
            "verdicts": dict(frame.filter("judged").group_by("verdict").len().sort("verdict").iter_rows()),
            "findings": frame.select("verdict", "sentence", "about", "what", "judged").to_dicts(),
        },
    )


def _frame(stage: str, found: Sequence[tuple[str, Finding]], *, in_use: str) -> pl.DataFrame:
    """Rows of audits.findings. Controls and methods that are only compared with the one in use do not count.

    Whatever else an audit of whatever package found is kept, and counts unless it says itself that it does not.
    """
    frame = findings_frame(found, stage=stage)
    counts = pl.col("method").is_in(["", in_use]) if in_use else pl.col("method") != NONE
    # Two findings of one name are two findings: neither may hide the other.
    twin = pl.int_range(pl.len()).over("about", "what")
    what = pl.when(twin > 0).then(pl.format("{} ({})", "what", twin + 1)).otherwise("what")
    return frame.with_columns(what=what, judged=pl.col("judged") & counts)


def _judge_target(
    run: Run, scope: Scope | None, attack_stages: Mapping[str, Stage], limits: Thresholds
) -> list[Finding]:
    """What attacks say of the audited model; it counts when the plan sets a limit for it."""
    from attacks.verdicts import judge_attack

    judged = limits.max_target_auc is not None
    own = dataclasses.replace(limits, max_auc=limits.max_target_auc) if limits.max_target_auc else limits
    reports = run.read(schema.ATTACK_REPORTS).filter(pl.col("audited") == TARGET)
    found = []
    for choice in run.subject.attacks:
        what = f"attack/{choice.name}"
        if why := run.why_not(attack_stages[choice.name]):
            found.append(Finding(what=what, kind=ATTACK, verdict=Verdict.INCONCLUSIVE, sentence=why))
            continue
        unseen = _never_seen(run, scope, choice.name, by=TARGET)
        judgement = judge_attack(
            reports.filter(pl.col("attack") == choice.name),
            what=what,
            thresholds=own,
            num_references=_references(run, choice.name),
            num_tests=len(run.subject.attacks),
            two_sided=False,
            unseen=unseen,
        )
        if judgement.verdict is Verdict.FAIL and not unseen:
            judgement = dataclasses.replace(judgement, sentence=f"{judgement.sentence} {_NO_CONTROL}")
        if run.subject.outputs_only and judgement.verdict is Verdict.PASS:
            said = f"{_WEAK} {judgement.sentence}"
            judgement = dataclasses.replace(judgement, verdict=Verdict.INCONCLUSIVE, sentence=said)
        found.append(judgement)
    return [dataclasses.replace(f, judged=judged) for f in found]


_NO_CONTROL = "No model that saw neither split is there to say whether they differ by themselves."
_WEAK = (
    "Without a model there are no reference models, and attacks without them miss most of what those find: that they "
    "find nothing clears nobody."
)


def _never_seen(run: Run, scope: Scope | None, name: str, *, by: str) -> list[Unseen]:
    """What an attack finds where nothing is to be found: on reference models, and on exact retrainings of a random set
    unless these are what is judged.

    Args:
        name: the attack's, or the population attack's.
        by: the method that is judged, or TARGET.
    """
    from attacks.peers import Unseen
    from attacks.verdicts import unseen_by_retraining

    found = []
    if scope and scope.random and by != RETRAIN:
        reports = run.read(schema.ATTACK_REPORTS, {"audited": f"{scope.name(run)}/{RETRAIN}"})
        of_seeds = reports.filter(pl.col("attack") == name).sort("seed").partition_by("seed", maintain_order=True)
        found += [unseen_by_retraining(report, accuracy=name == audits.U_MIA) for report in of_seeds]
    either = name == audits.U_MIA  # which learns its own direction, from losses: attacks on these are nearest to it
    listed = {choice.name for choice in run.subject.attacks}
    rows = [row for row in run.read(schema.UNSEEN).to_dicts() if row["attack"] in listed]
    plain = [row for row in rows if not attack.get(row["attack"]).spec.references]
    for row in (plain or rows) if either else [row for row in rows if row["attack"] == name]:
        low, high, lower = row["auc_lo"], row["auc_hi"], either and row["auc"] < 0.5
        found.append(
            Unseen(
                value=1 - row["auc"] if lower else row["auc"],
                low=1 - high if lower else low,
                high=1 - low if lower else high,
                p_value=1.0 if either else row["p_value"],
                by="reference models",
                at_least=by == RETRAIN,
            )
        )
    return found


def _references(run: Run, name: str) -> int | None:
    """Reference models on each side of an example, with it and without it; None for an attack that uses none."""
    return run.subject.ensemble.each_side if attack.get(name).spec.references else None


_UNKNOWN = (None, None, None)


def _accepted(run: Run, scope: Scope, using: InUse, accepted: Stage | None) -> list[tuple[str, Finding]]:
    """For information: which methods forget requests may use, or why this one uses the method that it does."""
    if accepted is None:
        return []
    rows = run.read(schema.ACCEPTANCE).sort("place")
    may, common = {True: "may", False: "do not"}, {"kind": INFORMATION, "judged": False}
    if scope.per_request:
        found = Finding(what="acceptance", verdict=Verdict.PASS, sentence=using.why, method=using.method, **common)
        return [(f"{scope.name(run)}/{using.method}", found)]
    return [
        (
            f"{row['split']}/{row['method']}",
            Finding(
                what="acceptance",
                verdict=Verdict(row["verdict"]),
                sentence=f"Forget requests {may[row['accepted']]} use {row['method']}: {row['sentence']}",
                method=row["method"],
                **common,
            ),
        )
        for row in rows.iter_rows(named=True)
    ]


def judge_method(
    run: Run, scope: Scope, method: str, about: str, attack_stages: Mapping[str, Stage], limits: Thresholds
) -> list[Finding]:
    """Every model of a method by every test; of each test the worst model counts.

    Args:
        about: of the rows of its attacks: the scope's name / the method.
        attack_stages: attacks, u_mia and against_retraining, by name, those that are to judge it.
        limits: thresholds of the verdicts.
    """
    from attacks.verdicts import judge_gap, judge_quality, worst

    of_method = {"split": scope.name(run), "method": method}
    with run.warehouse.reading():
        runs = run.read(schema.UNLEARNING_RUNS, of_method).sort("seed")
        metrics = run.read(schema.UNLEARNING_METRICS, of_method)
        reports = run.read(schema.ATTACK_REPORTS, {"audited": about})
        retrained = (
            run.read(schema.AGAINST_RETRAINING, {"audited": about}).drop("audited").sort("seed")
            if audits.AGAINST_RETRAINING in attack_stages
            else None
        )
    failed = runs.filter(pl.col("status") != "ok")
    if failed.height:
        return [_judge_failed(failed, runs.height)]
    tests = audits.num_tests(run.subject, random=scope.random)
    found = _judge_attacks(run, scope, method, reports, retrained, attack_stages, limits, tests)
    figures = {(seed, name): of for seed, name, *of in metrics.select("seed", "metric", "value", "low", "high").rows()}
    gaps, quality = {}, {}
    for seed in runs["seed"].to_list():
        value, low, high = figures.get((seed, "avg_gap"), _UNKNOWN)
        spread = figures.get((seed, "retrain_spread"), _UNKNOWN)[0]
        gaps[seed] = judge_gap(value, low, high, spread=spread, what="gap", thresholds=limits, num_tests=tests)
        lost = {
            name: tuple(figures.get((seed, f"{short}_lost"), _UNKNOWN))
            for name, short in (("retained", "ra"), ("test", "ta"))
        }
        quality[seed] = judge_quality(
            lost, what="quality", thresholds=limits, num_tests=tests, quality=run.data.task.spec.quality
        )
    return [*found, worst(gaps), worst(quality)]


def _judge_failed(failed: pl.DataFrame, num_runs: int) -> Finding:
    """What came back is no model of this plan, or none at all: there is nothing else to judge."""
    refused, diverged = (failed.filter(pl.col("status") == status) for status in ("refused", "diverged"))
    first = (refused if refused.height else diverged).row(0, named=True)
    told = {"refused": refused.height, "diverged": diverged.height}
    return Finding(
        what="result",
        kind=RESULT,
        verdict=Verdict.FAIL if refused.height else Verdict.BROKEN,
        sentence=f"Of {num_runs} runs {' and '.join(f'{n} {status}' for status, n in told.items() if n)} (seed "
        f"{first['seed']}): {first['reason']}.",
    )


def _judge_attacks(
    run: Run,
    scope: Scope,
    method: str,
    reports: pl.DataFrame,
    retrained: pl.DataFrame | None,
    attack_stages: Mapping[str, Stage],
    limits: Thresholds,
    tests: int,
) -> list[Finding]:
    """What the rows of one method in ``audits.attack_reports`` and ``audits.against_retraining`` say; ``retrained`` is
    None where it is not judged by the latter."""
    from attacks.membership.retraining_null import AgainstRetraining
    from attacks.recipe_match import SET_GONE
    from attacks.verdicts import judge_against_retraining, judge_attack, judge_umia, worst

    out: list[Finding] = []
    if retrained is not None:
        by_seed = {
            row.pop("seed"): judge_against_retraining(AgainstRetraining(**row), what=SET_GONE, thresholds=limits)
            for row in retrained.to_dicts()
        }
        out.append(worst(by_seed) if by_seed else judge_against_retraining(None, what=SET_GONE, thresholds=limits))
    for name in (n for n in attack_stages if n != audits.AGAINST_RETRAINING):
        what = f"attack/{name}"
        judged = {}
        unseen = _never_seen(run, scope, name, by=method) if scope.random else []
        for (seed,), report in (
            reports.filter(pl.col("attack") == name).sort("seed").group_by("seed", maintain_order=True)
        ):
            if name == audits.U_MIA:
                judged[int(seed)] = judge_umia(  # type: ignore[call-overload]
                    audits.umia_of(report.row(0, named=True)),
                    what=what,
                    thresholds=limits,
                    num_tests=tests,
                    unseen=unseen,
                )
            else:
                judged[int(seed)] = judge_attack(  # type: ignore[call-overload]
                    report,
                    what=what,
                    thresholds=limits,
                    num_references=_references(run, name),
                    num_tests=tests,
                    unseen=unseen,
                )
        if judged:
            found = worst(judged)
            if not scope.random:
                found = dataclasses.replace(
                    found, judged=False, kind=INFORMATION, sentence=f"{_NO_PEERS} {found.sentence}"
                )
            out.append(found)
        elif scope.random:
            few = run.why_not(attack_stages[name]) or (
                f"{name} could not be run: too few forgotten examples, or none of them, are in the reference models' "
                "pool."
            )
            out.append(Finding(what=what, kind="attack", verdict=Verdict.INCONCLUSIVE, sentence=few))
    return out


_NO_PEERS = "For information: unseen examples are no peers of a set that is not random."


def _exact(run: Run, method: str, jobs: Mapping[str, Stage]) -> bool:
    """Retraining, or a method that declares itself exact and gives what retraining of the same seeds gives, bit for
    bit."""
    if method == RETRAIN:
        return True
    if not unlearner.get(method).spec.exact:
        return False
    own, retrained = (run.load(jobs[name])[0]["reading"] for name in (method, RETRAIN))
    return bool(np.array_equal(own, retrained))


def _judge_coverage(run: Run, scope: Scope, method: str, shadow: Stage | None) -> Finding:
    """What U-LiRA over shadow runs says of a method that is not exact, if it audited it on this kind and size of
    set."""
    from attacks.shadow_verdicts import covers

    what, spec = COVERED_BY, analysis.get(SHADOW).spec
    tables = {table.name: run.read(table) for table in spec.tables} if shadow and not run.why_not(shadow) else {}
    rows = tables["u_lira"].filter(pl.col("method") == method).to_dicts() if tables else []
    runs = run.read(schema.UNLEARNING_RUNS, {"split": scope.name(run), "method": method})
    num_train = run.train.num_examples
    num_removed = num_train - int(runs["num_retain"][0])  # of a batch, with what the other requests name
    missing = covers(rows[0] if rows else None, set_kind=scope.kind(run), num_forget=num_removed, num_train=num_train)
    if missing:
        return Finding(what=what, kind=COVERAGE, verdict=Verdict.INCONCLUSIVE, sentence=f"{missing}.")
    assert spec.judge is not None
    of_method = [f for _, f in spec.judge(tables, run.subject.thresholds) if f.method == method]
    verdict = overall(f.verdict for f in of_method)
    first = next((f for f in of_method if f.verdict is verdict), None)
    why = f" {first.sentence}" if first and verdict is not Verdict.PASS else ""
    return Finding(
        what=what,
        kind=COVERAGE,
        verdict=verdict,
        sentence=f"Shadow runs audited {method} on {scope.kind(run)} sets of about this size: {verdict.value}.{why}",
    )


def _retired(run: Run, scores: Mapping[str, Stage]) -> list[tuple[TableSpec, pl.DataFrame, Partition]]:
    """Scores that the plan listed once are no longer current: the model or the data may have changed since."""
    others = run.read(schema.SCORE_RUNS).filter(pl.col("passed") & ~pl.col("score").is_in(list(scores)))
    refused = others.with_columns(passed=pl.lit(False), reason=pl.lit("The plan no longer lists this score."))
    return [(schema.SCORE_RUNS, row, {"score": row["score"][0]}) for row in refused.iter_slices(1)]
