"""Stage 6, audits: membership attacks on the audited model and on every unlearned one, then the verdicts.

One attack is one asset: its scores on all audited models come from one vectorised call on the stored readings, each
model's mapped to the reference models' scale first, where there are any. Every model is judged on its own and the worst
counts: a method that left one model in three as it was has not removed anything. What an unseen example can be told
from is decided by the set: a random one has the test split for peers; any other is judged by retrainings without that
very set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from assets import judged, models, needs
from assets.in_use import InUse, tried
from assets.in_use import in_use as method_in_use
from assets.recipe_match import REFERENCES, judge_match, measured_otherwise
from assets.stage import APPLIES, Checked, Output, Partition, Run, Stage, labels_of, top_rows
from assets.unlearning import NONE, RETRAIN, Scope
from contracts import schema
from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import AttackSpec, analysis, attack, unlearner
from contracts.subject import Choice, Policy, Subject, Thresholds
from contracts.tables import TableSpec
from contracts.verdicts import ATTACK, COVERAGE, INFORMATION, RESULT, TARGET, Finding, Verdict, overall
from recipes.policies import of_another_recipe, seed_of
from reports import findings_frame, judge, plots
from reports.summary import MODEL, REMOVAL
from tasks.base import Reading

if TYPE_CHECKING:
    from attacks.membership import Evidence
    from attacks.membership.unlearning import UMIAResult

SHADOW = "shadow_unlearning"  # the analysis whose rows say what an approximate method leaves behind
U_MIA = "u_mia"
AGAINST_RETRAINING = "against_retraining"
COVERED_BY = "u_lira"  # the finding on whether the shadow runs are about this method and kind of set


def attacks(
    subject: Subject, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]
) -> dict[str, Stage]:
    """``[subject, audits, <attack>]`` for every attack the subject lists."""
    return {choice.name: _attack(subject, choice, upstream, scope, jobs) for choice in subject.attacks}


def _attack(
    subject: Subject, choice: Choice, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]
) -> Stage:
    spec = attack.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    per_request = scope is not None and scope.per_request
    return Stage(
        subject=subject,
        path=(f"{scope.prefix if scope else ''}audits", spec.name),
        doc=f"{spec.doc} Larger = more likely a member. {spec.source}",
        config={
            "attack": config,
            "alpha": subject.thresholds.alpha,
            "seed": subject.seed,
            **({"outputs_only": subject.ensemble} if subject.outputs_only else {}),
            **({} if "ensemble" in upstream or subject.outputs_only else {"without_references": subject.ensemble}),
        },
        version=spec.version + 2,  # each model on its own, on the references' scale, from readings
        deps=tuple(
            stage
            for stage in (upstream["target"], upstream.get("ensemble"), scope.split if scope else None, *jobs.values())
            if stage
        ),
        tables=(schema.ATTACK_REPORTS, schema.ATTACK_SCORES),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "duckdb"}),
        per_request=per_request,
        work=lambda run: _run_attack(run, spec, config, upstream, scope, jobs),
    )


def _run_attack(
    run: Run,
    spec: AttackSpec,
    config: Any,
    upstream: Mapping[str, Stage],
    scope: Scope | None,
    jobs: Mapping[str, Stage],
) -> Output:
    from attacks.membership import attack_report, roc

    audited = list(_audited(run, upstream, scope, jobs))
    try:
        needs.refuse(run, spec, "attack")
        evidence = _evidence(run, upstream, [said for *_, said in audited], outputs="outputs" in spec.wants)
        scores = attack.get(spec.name)(
            evidence, config=config, seed=derive_seed(run.subject.seed, "attack", spec.name) % 2**31
        )
    except NotApplicable as error:
        return Output(warnings={APPLIES: str(error)})
    ids, num_references = evidence.example_id, evidence.num_references
    outside = run.data.split[run.data.positions(ids)] == "test"
    n_in = np.zeros(len(ids), np.int64) if evidence.keep is None else evidence.keep.sum(0)
    reports: dict[str, list[pl.DataFrame]] = {}
    frames: dict[str, list[pl.DataFrame]] = {}
    curves: dict[str, Any] = {}
    forget = run.load(scope.split)[0]["forget"] if scope else None
    for (name, seed, _), score in zip(audited, scores, strict=True):
        member = ~outside if name == TARGET else np.isin(ids, forget)
        shown = member | outside
        if not member.any() or not outside.any():
            continue  # nobody of the set is in the pool; the findings say so
        frames.setdefault(name, []).append(
            pl.DataFrame(
                {
                    "audited": name,
                    "attack": spec.name,
                    "seed": seed,
                    "example_id": ids[shown],
                    "score": score[shown],
                    "is_member": member[shown],
                    "n_in": n_in[shown],
                    "n_out": num_references - n_in[shown],
                }
            ).with_columns(pl.col("score").fill_nan(None))
        )
        report = attack_report(
            score[shown],
            member[shown],
            alpha=run.subject.thresholds.alpha,
            seed=derive_seed(run.subject.seed, name) % 2**31,
        )
        reports.setdefault(name, []).append(
            report.with_columns(audited=pl.lit(name), attack=pl.lit(spec.name), seed=pl.lit(seed, pl.Int64))
        )
        curves.setdefault(name, roc(score[shown], member[shown]))
    tables: list[tuple[Any, pl.DataFrame, dict[str, str]]] = []
    for name in dict.fromkeys(name for name, *_ in audited):
        partition = {"audited": name, "attack": spec.name}
        for table, made in ((schema.ATTACK_REPORTS, reports), (schema.ATTACK_SCORES, frames)):
            if name in made:
                tables.append((table, pl.concat(made[name]), partition))
    whole = [frame for table, frame, _ in tables if table is schema.ATTACK_REPORTS]
    exposed = [frame for table, frame, _ in tables if table is schema.ATTACK_SCORES]
    return Output(
        tables=tables,
        members=ids,
        metadata={
            "auc": pl.concat(whole)
            .unique(["audited", "seed"], maintain_order=True)
            .select("audited", "seed", "n_pos", "n_neg", "auc", "auc_lo", "auc_hi")
            .to_dicts()
            if whole
            else [],
            "most_exposed": top_rows(exposed[0].filter("is_member"), "score", labels_of(run.data)) if exposed else [],
        },
        pictures={"roc": plots.roc_png(curves, n_neg=int(outside.sum()), title=spec.name)} if curves else {},
        warnings={APPLIES: ""},
    )


class _Said(NamedTuple):
    """What one model says of every example: readings (N, 4), and whole outputs (N, K) where they were kept."""

    reading: np.ndarray
    outputs: np.ndarray | None


def _evidence(run: Run, upstream: Mapping[str, Stage], said: Sequence[_Said], *, outputs: bool) -> Evidence:
    """What attacks may look at, from what each of T models says of the data set: with reference models, and on their
    scale, where there are any; else the same candidates and population points without them.

    Args:
        outputs: the attack reads whole outputs.

    Raises:
        NotApplicable: there are no reference models for this subject, or no whole outputs, and why.
    """
    from attacks.membership import Evidence
    from attacks.membership.outputs import Outputs

    data = run.data
    readings = np.stack([one.reading for one in said])
    whole = [one.outputs for one in said if one.outputs is not None]
    logits = np.stack(whole) if len(whole) == len(said) else None
    if "ensemble" in upstream:
        ensemble = models.load_ensemble(run, upstream["ensemble"])
        rows = data.positions(ensemble.example_id)
        return Evidence.of_ensemble(
            ensemble,
            readings[:, rows],
            None if logits is None else logits[:, rows],
            task=data.task,
            constants=data.constants,
            calibrated=True,
            outputs=outputs,
        )
    from recipes.design import pool_and_population

    pool, population = pool_and_population(data, ensemble=run.subject.ensemble, seed=seed_of(run.subject))
    kept = outputs and logits is not None
    return Evidence(
        example_id=data.example_id[pool],
        target=readings[:, pool],
        population_target=readings[:, population],
        likeliest=data.task.likeliest,
        whole=Outputs(labels=data.y[pool], target=logits[:, pool]) if kept else None,  # type: ignore[index]
    )


def _audited(
    run: Run, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]
) -> Iterator[tuple[str, int, _Said]]:
    """(about, seed, what it says) of every model that is attacked; a run that diverged or was refused has none."""
    if not run.stage.per_request:
        stored, meta = run.load(upstream["target"], models.READINGS)
        models.refuse_other_training(run, upstream["target"], meta)
        yield TARGET, run.subject.seed, _Said(stored["reading"], stored.get("logits"))
    if scope is not None:
        yield from _unlearned(run, scope, jobs)


def _unlearned(run: Run, scope: Scope, jobs: Mapping[str, Stage]) -> Iterator[tuple[str, int, _Said]]:
    """The same of every unlearned model."""
    for method, stage in jobs.items():
        arrays, meta = run.load(stage)
        for s, row in enumerate(meta["runs"]):
            if row["status"] == "ok":
                outputs = arrays["logits"][s] if "logits" in arrays else None
                yield f"{scope.name(run)}/{method}", row["seed"], _Said(arrays["reading"][s], outputs)


def u_mia(subject: Subject, upstream: Mapping[str, Stage], scope: Scope, jobs: Mapping[str, Stage]) -> Stage:
    """``[subject, audits, u_mia]``: the population attack on losses of forgotten against unseen examples (Kurmanji et
    al. 2023)."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}audits", U_MIA),
        doc="Population attack on every unlearned model: can one threshold on the loss tell forgotten from never-seen "
        "examples? 0.5 is what retraining reaches; an accuracy near 0.5 alone is no evidence of forgetting.",
        config={"alpha": subject.thresholds.alpha, "seed": subject.seed},
        version=2,
        deps=(upstream["examples"], scope.split, *jobs.values()),
        tables=(schema.ATTACK_REPORTS,),
        kinds=frozenset({"scikitlearn", "duckdb"}),
        per_request=scope.per_request,
        work=lambda run: _u_mia(run, scope, jobs),
    )


def _u_mia(run: Run, scope: Scope, jobs: Mapping[str, Stage]) -> Output:
    from attacks.membership.population_umia import FEWEST, population_umia

    forget, data = run.load(scope.split)[0]["forget"], run.data
    inside = data.positions(forget)
    unseen = np.flatnonzero((data.split == "test") & data.task.peers(data, inside))
    if min(len(inside), len(unseen)) < FEWEST:
        return Output(metadata={"not run": f"it needs {FEWEST} forgotten and as many unseen examples of their classes"})
    found: dict[str, list[pl.DataFrame]] = {}
    for name, seed, said in _unlearned(run, scope, jobs):
        losses = Reading(said.reading).loss
        result = population_umia(
            losses[inside],
            losses[unseen],
            alpha=run.subject.thresholds.alpha,
            seed=derive_seed(run.subject.seed, name) % 2**31,
        )
        row = {**_umia_row(result), "audited": name, "attack": U_MIA, "seed": seed}
        found.setdefault(name, []).append(pl.DataFrame([row], schema_overrides=_NO_CAP))
    tables = [
        (schema.ATTACK_REPORTS, pl.concat(rows), {"audited": name, "attack": U_MIA}) for name, rows in found.items()
    ]
    columns = ("audited", "seed", "balanced_acc_heldout", "balanced_acc_heldout_lo", "balanced_acc_heldout_hi")
    shown = [row for _, frame, _ in tables for row in frame.select(columns).to_dicts()]
    return Output(tables=tables, metadata={"accuracy": shown})


_NO_CAP = {name: pl.Float64 for name in ("tpr", "tpr_lo", "tpr_hi", "fpr", "fpr_lo", "fpr_hi")}


def _umia_row(result: UMIAResult) -> dict[str, Any]:
    """A row of audits.attack_reports; its claim is the accuracy, so no rate at a cap is given."""
    return {
        "n_pos": result.n_pos,
        "n_neg": result.n_neg,
        "auc": result.auc,
        "auc_lo": result.auc_low,
        "auc_hi": result.auc_high,
        "balanced_acc": result.published_accuracy,
        "balanced_acc_heldout": result.accuracy,
        "balanced_acc_heldout_lo": result.low,
        "balanced_acc_heldout_hi": result.high,
        "fpr_cap": 1.0,
        **dict.fromkeys(_NO_CAP),
        "reliable": True,
    }


def _umia_of(row: Mapping[str, Any]) -> UMIAResult:
    from attacks.membership.unlearning import UMIAResult

    return UMIAResult(
        accuracy=row["balanced_acc_heldout"],
        low=row["balanced_acc_heldout_lo"],
        high=row["balanced_acc_heldout_hi"],
        published_accuracy=row["balanced_acc"],
        auc=row["auc"],
        auc_low=row["auc_lo"],
        auc_high=row["auc_hi"],
        n_pos=row["n_pos"],
        n_neg=row["n_neg"],
    )


def against_retraining(subject: Subject, scope: Scope, jobs: Mapping[str, Stage], retrainings: Stage) -> Stage:
    """``[subject, audits, against_retraining]``: every unlearned model beside retrainings without that very set."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}audits", AGAINST_RETRAINING),
        doc="Is the very set forgotten? How much better each unlearned model knows it, and each of its examples, than "
        "retrainings without it do. 0 is forgotten. Unseen examples are no peers of a set that is not random, and do "
        "not decide.",
        config={"alpha": subject.thresholds.alpha, "level": _level(subject, scope)},
        version=2,
        deps=(scope.split, *jobs.values(), retrainings),
        tables=(schema.AGAINST_RETRAINING, schema.ATTACK_SCORES),
        per_request=scope.per_request,
        work=lambda run: _against_retraining(run, scope, jobs, retrainings),
    )


def _against_retraining(run: Run, scope: Scope, jobs: Mapping[str, Stage], retrainings: Stage) -> Output:
    from attacks.membership.retraining_null import Retrainings, against_retraining

    data, (arrays, meta) = run.data, run.load(retrainings)
    where, num = data.positions(arrays["example_id"]), int(meta["num_set"])
    ids, targets = arrays["example_id"][:num], data.targets(where)
    those = Retrainings(signal=arrays["signal"], num_set=num, spoken=arrays.get("spoken"))

    def placed(said: _Said) -> np.ndarray:
        outputs = None if said.outputs is None else said.outputs[where]
        signal = Reading(said.reading[where]).signal
        return those.place(signal, outputs, targets, task=data.task, constants=data.constants)

    rows: dict[str, list[dict[str, Any]]] = {}
    scored: dict[str, list[pl.DataFrame]] = {}
    audited = list(_unlearned(run, scope, jobs)) if num else []
    untouched = next((placed(said) for name, _, said in audited if name == f"{scope.name(run)}/{NONE}"), None)
    null = those.null if audited else None
    for name, seed, said in audited:
        assert untouched is not None and null is not None
        found, example_t = against_retraining(
            placed(said),
            null,
            untouched=untouched,
            alpha=run.subject.thresholds.alpha,
            level=_level(run.subject, scope),
        )
        rows.setdefault(name, []).append({"audited": name, "seed": seed, **dataclasses.asdict(found)})
        scored.setdefault(name, []).append(
            pl.DataFrame(
                {
                    "audited": name,
                    "attack": AGAINST_RETRAINING,
                    "seed": seed,
                    "example_id": ids,
                    "score": example_t,
                    "is_member": True,
                    "n_in": 0,
                    "n_out": found.num_retrainings,
                }
            )
        )
    tables: list[tuple[TableSpec, pl.DataFrame, Partition]] = []
    for name in rows:
        tables.append((schema.AGAINST_RETRAINING, pl.DataFrame(rows[name]), {"audited": name}))
        partition = {"audited": name, "attack": AGAINST_RETRAINING}
        tables.append((schema.ATTACK_SCORES, pl.concat(scored[name]), partition))
    return Output(tables=tables, metadata={"shift": [row for of_method in rows.values() for row in of_method]})


def _num_tests(subject: Subject, scope: Scope) -> int:
    """Tests that fail a method together: attacks (or retrainings), gap and quality, of every seed. Half of alpha is
    theirs, the other half belongs to the shadow runs."""
    assert subject.unlearning is not None
    attacks_judged = len(subject.attacks) + 1 if scope.random else 1
    return 2 * subject.unlearning.seeds * (attacks_judged + 2)


def _level(subject: Subject, scope: Scope) -> float:
    return subject.thresholds.alpha / _num_tests(subject, scope)


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
        version=6,
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
    attacks = list(attack_stages) if scope.random else [AGAINST_RETRAINING]
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
        found += [(TARGET, f) for f in _judge_target(run, attack_stages, limits)]
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
                (about, measured_otherwise(run, f, who, alone=U_MIA)) for (about, f), who in zip(found, by, strict=True)
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


def _judge_target(run: Run, attack_stages: Mapping[str, Stage], limits: Thresholds) -> list[Finding]:
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
        judgement = judge_attack(
            reports.filter(pl.col("attack") == choice.name),
            what=what,
            thresholds=own,
            num_references=_references(run, choice.name),
            num_tests=len(run.subject.attacks),
            two_sided=False,
        )
        if run.subject.outputs_only and judgement.verdict is Verdict.PASS:
            said = f"{_WEAK} {judgement.sentence}"
            judgement = dataclasses.replace(judgement, verdict=Verdict.INCONCLUSIVE, sentence=said)
        found.append(judgement)
    return [dataclasses.replace(f, judged=judged) for f in found]


_WEAK = (
    "Without a model there are no reference models, and attacks without them miss most of what those find: that they "
    "find nothing clears nobody."
)


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

    runs = run.read(schema.UNLEARNING_RUNS, {"split": scope.name(run), "method": method}).sort("seed")
    failed = runs.filter(pl.col("status") != "ok")
    if failed.height:
        return [_judge_failed(failed, runs.height)]
    tests = _num_tests(run.subject, scope)
    found = _judge_attacks(run, scope, about, attack_stages, limits, tests)
    metrics = run.read(schema.UNLEARNING_METRICS, {"split": scope.name(run), "method": method})
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
    refused = failed.filter(pl.col("status") == "refused")
    first = (refused if refused.height else failed).row(0, named=True)
    return Finding(
        what="result",
        kind=RESULT,
        verdict=Verdict.FAIL if refused.height else Verdict.BROKEN,
        sentence=f"{failed.height} of {num_runs} runs {'refused' if refused.height else 'diverged'} (seed "
        f"{first['seed']}): {first['reason']}.",
    )


def _judge_attacks(
    run: Run, scope: Scope, about: str, attack_stages: Mapping[str, Stage], limits: Thresholds, tests: int
) -> list[Finding]:
    from attacks.membership.retraining_null import AgainstRetraining
    from attacks.recipe_match import SET_GONE
    from attacks.verdicts import judge_against_retraining, judge_attack, judge_umia, worst

    out: list[Finding] = []
    if AGAINST_RETRAINING in attack_stages:
        rows = run.read(schema.AGAINST_RETRAINING, {"audited": about}).drop("audited").sort("seed")
        by_seed = {
            row.pop("seed"): judge_against_retraining(AgainstRetraining(**row), what=SET_GONE, thresholds=limits)
            for row in rows.to_dicts()
        }
        out.append(worst(by_seed) if by_seed else judge_against_retraining(None, what=SET_GONE, thresholds=limits))
    reports = run.read(schema.ATTACK_REPORTS).filter(pl.col("audited") == about)
    for name in (n for n in attack_stages if n != AGAINST_RETRAINING):
        what = f"attack/{name}"
        judged = {}
        for (seed,), report in (
            reports.filter(pl.col("attack") == name).sort("seed").group_by("seed", maintain_order=True)
        ):
            if name == U_MIA:
                judged[int(seed)] = judge_umia(  # type: ignore[call-overload]
                    _umia_of(report.row(0, named=True)), what=what, thresholds=limits, num_tests=tests
                )
            else:
                judged[int(seed)] = judge_attack(  # type: ignore[call-overload]
                    report, what=what, thresholds=limits, num_references=_references(run, name), num_tests=tests
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
    num_forget, num_retain = int(runs["num_forget"][0]), int(runs["num_retain"][0])
    missing = covers(
        rows[0] if rows else None, set_kind=scope.kind(run), num_forget=num_forget, num_train=num_forget + num_retain
    )
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
