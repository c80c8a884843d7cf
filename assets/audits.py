"""Stage 6, audits: membership attacks on the audited model and on every unlearned one, then the verdicts.

One attack is one asset: its scores on all audited models come from one vectorised call on the stored logits.
Over several seeds of one method an example's score is the mean over the seeds' models: the attacker sees them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import models
from assets.stage import Output, Partition, Run, Stage, labels_of, top_rows
from assets.unlearning import Scope
from contracts import schema
from contracts.digests import derive_seed
from contracts.methods import AttackSpec, analysis, attack
from contracts.subject import Choice, Subject, Thresholds
from contracts.tables import TableSpec
from contracts.verdicts import Finding, Verdict
from reports import plots

if TYPE_CHECKING:
    from attacks.membership.unlearning import UMIAResult

TARGET = "target"
FINDING_COLUMNS = ("what", "verdict", "sentence", "value", "low", "high", "threshold")


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
        config={"attack": config, "alpha": subject.thresholds.alpha, "seed": subject.seed},
        version=spec.version,
        deps=(upstream["target"], upstream["ensemble"], *((scope.split,) if scope else ()), *jobs.values()),
        tables=(schema.ATTACK_REPORTS, schema.ATTACK_SCORES),
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
    from attacks.membership import Evidence, attack_report, roc

    ensemble = models.load_ensemble(run, upstream["ensemble"])
    where = run.data.positions(ensemble.example_id)
    audited: list[tuple[str, np.ndarray, np.ndarray | None]] = []  # name, logits (S, N_all, K), forget ids
    if not run.stage.per_request:
        stored, _ = run.load(upstream["target"], "logits")
        audited.append((TARGET, stored["logits"][None], None))
    if scope:
        forget, _ = run.load(scope.split)
        audited += [
            (f"{scope.name(run)}/{m}", run.load(stage)[0]["logits"], forget["forget"]) for m, stage in jobs.items()
        ]
    logits = np.concatenate([part for _, part, _ in audited])[:, where]
    pool = ensemble.pool
    scores = attack.get(spec.name)(
        Evidence.of_ensemble(ensemble, logits),
        config=config,
        seed=derive_seed(run.subject.seed, "attack", spec.name) % 2**31,
    )
    ids = ensemble.example_id[pool]
    outside = run.data.split[where][pool] == "test"
    n_in = ensemble.keep[:, pool].sum(0)
    tables: list[tuple[Any, pl.DataFrame, dict[str, str]]] = []
    curves, first = {}, 0
    for name, part, forget_ids in audited:
        mean = scores[first : first + len(part)].mean(0)
        first += len(part)
        member = ~outside if forget_ids is None else np.isin(ids, forget_ids)
        shown = member | outside
        frame = pl.DataFrame(
            {
                "audited": name, "attack": spec.name, "example_id": ids[shown], "score": mean[shown], "is_member": member[shown],
                "n_in": n_in[shown], "n_out": len(ensemble.keep) - n_in[shown],
            }
        ).with_columns(pl.col("score").fill_nan(None))  # fmt: skip
        report = attack_report(
            mean[shown],
            member[shown],
            alpha=run.subject.thresholds.alpha,
            seed=derive_seed(run.subject.seed, name) % 2**31,
        ).with_columns(audited=pl.lit(name), attack=pl.lit(spec.name))
        partition = {"audited": name, "attack": spec.name}
        tables += [(schema.ATTACK_REPORTS, report, partition), (schema.ATTACK_SCORES, frame, partition)]
        curves[name] = roc(mean[shown], member[shown])
    reports = pl.concat([frame for table, frame, _ in tables if table is schema.ATTACK_REPORTS])
    return Output(
        tables=tables,
        members=ids,
        metadata={
            "auc": reports.unique("audited", maintain_order=True)
            .select("audited", "n_pos", "n_neg", "auc", "auc_lo", "auc_hi")
            .to_dicts(),
            "most_exposed": top_rows(tables[1][1].filter("is_member"), "score", labels_of(run.data)),
        },
        pictures={"roc": plots.roc_png(curves, n_neg=int(outside.sum()), title=spec.name)},
    )


U_MIA = "u_mia"


def u_mia(subject: Subject, upstream: Mapping[str, Stage], scope: Scope, jobs: Mapping[str, Stage]) -> Stage:
    """``[subject, audits, u_mia]``: the population attack on losses of forgotten against unseen examples (card 57, 10a)."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}audits", U_MIA),
        doc="Population attack on every unlearned model: can one threshold on the loss tell forgotten from never-seen examples? "
        "0.5 is what retraining reaches; an accuracy near 0.5 alone is no evidence of forgetting.",
        config={"alpha": subject.thresholds.alpha, "seed": subject.seed},
        deps=(upstream["examples"], scope.split, *jobs.values()),
        tables=(schema.ATTACK_REPORTS,),
        kinds=frozenset({"scikitlearn", "duckdb"}),
        per_request=scope.per_request,
        work=lambda run: _u_mia(run, scope, jobs),
    )


def _u_mia(run: Run, scope: Scope, jobs: Mapping[str, Stage]) -> Output:
    from attacks.membership.unlearning import population_umia

    forget, _ = run.load(scope.split)
    data = run.data
    inside = data.positions(forget["forget"])
    unseen = np.flatnonzero((data.split == "test") & np.isin(data.y, data.y[inside]))
    tables, rows = [], []
    for method, stage in jobs.items():
        name = f"{scope.name(run)}/{method}"
        logits = run.load(stage)[0]["logits"]
        losses = np.mean([models.losses(z, data.y) for z in logits], axis=0)
        result = population_umia(
            losses[inside],
            losses[unseen],
            alpha=run.subject.thresholds.alpha,
            seed=derive_seed(run.subject.seed, name) % 2**31,
        )
        report = pl.DataFrame([_umia_row(result)], schema_overrides=_NO_CAP).with_columns(
            audited=pl.lit(name), attack=pl.lit(U_MIA)
        )
        tables.append((schema.ATTACK_REPORTS, report, {"audited": name, "attack": U_MIA}))
        rows.append(report.row(0, named=True))
    columns = ("audited", "balanced_acc_heldout", "balanced_acc_heldout_lo", "balanced_acc_heldout_hi")
    return Output(tables=tables, metadata={"accuracy": [{c: row[c] for c in columns} for row in rows]})


_NO_CAP = {name: pl.Float64 for name in ("tpr", "tpr_lo", "tpr_hi", "fpr", "fpr_lo", "fpr_hi")}


def _umia_row(result: UMIAResult) -> dict[str, Any]:
    """A row of audits.attack_reports; its claim is the accuracy, so no rate at a cap is given."""
    return {
        "n_pos": result.n_pos, "n_neg": result.n_neg, "auc": result.auc, "auc_lo": result.auc_low, "auc_hi": result.auc_high,
        "balanced_acc": result.published_accuracy, "balanced_acc_heldout": result.accuracy,
        "balanced_acc_heldout_lo": result.low, "balanced_acc_heldout_hi": result.high, "fpr_cap": 1.0,
        **dict.fromkeys(_NO_CAP), "reliable": True,
    }  # fmt: skip


def _umia_of(report: pl.DataFrame) -> UMIAResult | None:
    from attacks.membership.unlearning import UMIAResult

    if not report.height:
        return None
    row = report.row(0, named=True)
    return UMIAResult(
        accuracy=row["balanced_acc_heldout"], low=row["balanced_acc_heldout_lo"], high=row["balanced_acc_heldout_hi"],
        published_accuracy=row["balanced_acc"], auc=row["auc"], auc_low=row["auc_lo"], auc_high=row["auc_hi"],
        n_pos=row["n_pos"], n_neg=row["n_neg"],
    )  # fmt: skip


def findings(
    subject: Subject,
    scope: Scope | None,
    scores: Mapping[str, Stage],
    reports: Mapping[str, Stage],
    comparison: Stage | None,
    analyses: Mapping[str, Stage],
) -> Stage:
    """``[subject, audits, findings]``: the plan's thresholds and the intervals make the verdicts."""
    per_request = scope is not None and scope.per_request
    judged = {name: stage for name, stage in analyses.items() if analysis.get(name).spec.judge}
    return Stage(
        subject=subject,
        path=(f"{scope.prefix if scope else ''}audits", "findings"),
        doc="Verdicts: pass, fail, inconclusive or broken, each with the sentence that explains it. A pass or a fail needs the "
        "whole interval on one side of the plan's threshold.",
        config={
            "thresholds": subject.thresholds,
            "decides": subject.unlearning.decides if subject.unlearning else None,
        },
        deps=(*scores.values(), *reports.values(), *((comparison,) if comparison else ()), *judged.values()),
        tables=(schema.FINDINGS,),
        per_request=per_request,
        fresh_days=None if per_request else 8,
        work=lambda run: _findings(run, scope, scores, reports, judged),
    )


def _findings(
    run: Run, scope: Scope | None, scores: Mapping[str, Stage], attack_stages: Mapping[str, Stage], judged: Mapping[str, Stage]
) -> Output:  # fmt: skip
    limits = run.subject.thresholds
    runs_of_scores = [run.read(schema.SCORE_RUNS, {"score": name}).row(0, named=True) for name in scores]
    # A score without examples does not apply to this subject; the report says why, there is nothing to judge.
    found: list[tuple[str, Finding]] = [
        ("scores", _judge_score(row)) for row in runs_of_scores if row["num_examples"] or row["passed"]
    ]
    reports = run.read(schema.ATTACK_REPORTS)
    if not run.stage.per_request and limits.max_target_auc is not None:
        own = dataclasses.replace(limits, max_auc=limits.max_target_auc)
        found += [(TARGET, f) for f in _judge_attacks(run, TARGET, reports, attack_stages, own, two_sided=False)]
    if scope:
        split = scope.name(run)
        runs = run.read(schema.UNLEARNING_RUNS, {"split": split})
        for method in runs["method"].unique(maintain_order=True):
            name = f"{split}/{method}"
            found += [(name, f) for f in _judge_attacks(run, name, reports, attack_stages, limits, two_sided=True)]
            found.append((name, _judge_gap(name, runs.filter(pl.col("method") == method), limits)))
    for name in judged:
        spec = analysis.get(name).spec
        assert spec.judge is not None
        found += spec.judge({table.name: run.read(table) for table in spec.tables}, limits)
    frame = pl.DataFrame(
        [
            {"audited": audited, **{c: getattr(f, c) for c in FINDING_COLUMNS}, "verdict": f.verdict.value}
            for audited, f in found
        ],
        schema={
            "audited": pl.String,
            **{c: pl.Float64 if c in FINDING_COLUMNS[3:] else pl.String for c in FINDING_COLUMNS},
        },
    )
    tables = [
        (schema.FINDINGS, frame.filter(pl.col("audited") == audited), {"audited": audited})
        for audited in frame["audited"].unique(maintain_order=True)
    ]
    if not run.stage.per_request:
        tables += _retired(run, scores)
    counts = frame.group_by("verdict").len().sort("verdict")
    return Output(
        tables=tables,
        metadata={
            "verdicts": dict(counts.iter_rows()),
            "findings": frame.select("audited", "what", "verdict", "sentence").to_dicts(),
        },
    )


def _retired(run: Run, scores: Mapping[str, Stage]) -> list[tuple[TableSpec, pl.DataFrame, Partition]]:
    """Scores that the plan listed once are no longer current: the model or the data may have changed since."""
    others = run.read(schema.SCORE_RUNS).filter(pl.col("passed") & ~pl.col("score").is_in(list(scores)))
    refused = others.with_columns(passed=pl.lit(False), reason=pl.lit("The plan no longer lists this score."))
    return [(schema.SCORE_RUNS, row, {"score": row["score"][0]}) for row in refused.iter_slices(1)]


def _judge_score(row: Mapping[str, Any]) -> Finding:
    """A score whose run missed a gate is no evidence, whatever its values."""
    what = f"score/{row['score']}"
    if not row["passed"]:
        return Finding(what=what, verdict=Verdict.INCONCLUSIVE, sentence=row["reason"])
    return Finding(
        what=what, verdict=Verdict.PASS, sentence=f"{row['num_examples']:,} examples scored; every gate met."
    )


def _judge_attacks(
    run: Run, name: str, reports: pl.DataFrame, stages: Mapping[str, Stage], limits: Thresholds, *, two_sided: bool
) -> list[Finding]:
    from attacks.verdicts import judge_attack, judge_umia

    out = []
    for attack_name in stages:
        if attack_name == U_MIA and name == TARGET:
            continue
        what = f"attack/{attack_name}"
        report = reports.filter((pl.col("audited") == name) & (pl.col("attack") == attack_name))
        if attack_name == U_MIA:
            out.append(judge_umia(_umia_of(report), what=what, thresholds=limits))
            continue
        out.append(
            judge_attack(
                report if report.height else None,
                what=what,
                thresholds=limits,
                num_references=run.subject.ensemble.num_models if attack.get(attack_name).spec.references else None,
                num_tests=len(stages),
                two_sided=two_sided,
            )
        )
    return out


def _judge_gap(name: str, runs: pl.DataFrame, limits: Thresholds) -> Finding:
    from attacks.verdicts import judge_gap

    return judge_gap(runs["avg_gap"].to_list(), what="gap (points)", thresholds=limits)
