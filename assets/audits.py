"""Stage 6, audits: membership attacks on the audited model and on every unlearned one.

One attack is one asset: its scores on all audited models come from one vectorised call on the stored readings, each
model's mapped to the reference models' scale first, where there are any. A method that left one model in three as it
was has not removed anything, so every model has figures of its own. What an unseen example can be told from is decided
by the set: a random one has the test split for peers; any other is compared with retrainings without that very set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from assets import models, needs, read_closely
from assets.stage import APPLIES, Output, Partition, Run, Stage, top_rows
from assets.unlearning import NONE, Scope
from contracts import schema
from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import AttackSpec, attack
from contracts.subject import Choice, Subject
from contracts.tables import TableSpec
from contracts.verdicts import TARGET
from reports import plots
from tasks.base import Reading
from warehouse import empty

if TYPE_CHECKING:
    from attacks.membership import Evidence
    from attacks.membership.unlearning import UMIAResult

U_MIA = "u_mia"
AGAINST_RETRAINING = "against_retraining"


def attacks(
    subject: Subject,
    upstream: Mapping[str, Stage],
    scope: Scope | None,
    jobs: Mapping[str, Stage],
    tokens: Stage | None = None,
) -> dict[str, Stage]:
    """``[subject, audits, <attack>]`` for every attack the subject lists.

    Args:
        tokens: of ``read_closely.tokens`` for this scope.
    """
    return {choice.name: _attack(subject, choice, upstream, scope, jobs, tokens) for choice in subject.attacks}


def _attack(
    subject: Subject,
    choice: Choice,
    upstream: Mapping[str, Stage],
    scope: Scope | None,
    jobs: Mapping[str, Stage],
    tokens: Stage | None,
) -> Stage:
    spec = attack.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    per_request = scope is not None and scope.per_request
    closely = {
        "base": upstream.get("base") if spec.base else None,
        "tokens": tokens if "tokens" in spec.wants or spec.base else None,  # the base is compared with them, if any
    }
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
        version=spec.version + 3 + bool(spec.base),  # each model by itself, on the references' scale, beside a control
        deps=tuple(
            stage
            for stage in (
                upstream["target"],
                upstream.get("ensemble"),
                scope.split if scope else None,
                *jobs.values(),
                *closely.values(),
            )
            if stage
        ),
        tables=(schema.ATTACK_REPORTS, schema.ATTACK_SCORES, *(() if per_request else (schema.UNSEEN,))),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "duckdb"}),
        per_request=per_request,
        work=lambda run: _run_attack(run, spec, config, upstream, scope, jobs, closely),
    )


def _run_attack(
    run: Run,
    spec: AttackSpec,
    config: Any,
    upstream: Mapping[str, Stage],
    scope: Scope | None,
    jobs: Mapping[str, Stage],
    closely: Mapping[str, Stage | None],
) -> Output:
    from attacks.membership import attack_report, roc

    audited = list(_audited(run, upstream, scope, jobs))
    try:
        needs.refuse(run, spec, "attack")
        said = [said for *_, said in audited]
        evidence = _evidence(run, upstream, said, outputs="outputs" in spec.wants)
        of = [(TARGET, 0) if name == TARGET else (name.rpartition("/")[2], seed) for name, seed, _ in audited]
        evidence = read_closely.added(run, evidence, of, **closely)
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
    if not run.stage.per_request:
        control = _never_seen(run, spec, config, evidence)
        tables.append((schema.UNSEEN, empty(schema.UNSEEN) if control is None else control, {"attack": spec.name}))
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
            "most_exposed": top_rows(run, exposed[0].filter("is_member"), "score") if exposed else [],
        },
        pictures={"roc": plots.roc_png(curves, n_neg=int(outside.sum()), title=spec.name)} if curves else {},
        warnings={APPLIES: ""},
    )


def _never_seen(run: Run, spec: AttackSpec, config: Any, evidence: Evidence) -> pl.DataFrame | None:
    """A row of audits.unseen: the attack on reference models, training against test split, of what they never saw."""
    from attacks.membership.outputs import Outputs
    from attacks.peers import MODELS, never_seen

    if evidence.keep is None or evidence.reference is None:
        return None
    chosen = np.unique(np.linspace(0, evidence.num_references - 1, MODELS).round().astype(np.int64))
    kept = None if evidence.whole is None else evidence.whole.reference
    if "tokens" in spec.wants or ("outputs" in spec.wants and kept is None):  # not kept of reference models
        spec, config = attack.get("loss").spec, attack.get("loss").spec.config()
    population = evidence.population_reference
    theirs = dataclasses.replace(
        evidence,
        target=evidence.reference[chosen],
        target_index=chosen,
        population_target=None if population is None else population[chosen],
        whole=None if kept is None else Outputs(labels=evidence.outputs.labels, target=kept[chosen], reference=kept),
        tokens=None,
    )
    try:
        scores = attack.get(spec.name)(theirs, config=config, seed=derive_seed(run.subject.seed, "unseen") % 2**31)
    except ConfigError:
        return None  # too few models, once one is left out
    train = run.data.split[run.data.positions(evidence.example_id)] == "train"
    asked = ~evidence.keep[chosen]
    found = never_seen(scores, ~asked, train, alpha=run.subject.thresholds.alpha, by="reference models")
    if found is None:
        return None
    row = {
        "attack": run.stage.path[1],
        "num_models": len(chosen),
        "n_train": int((asked & train).sum(axis=1).min()),
        "n_test": int((asked & ~train).sum(axis=1).min()),
        "auc": found.value,
        "auc_lo": found.low,
        "auc_hi": found.high,
        "p_value": found.p_value,
    }
    return pl.DataFrame([row])


class _Said(NamedTuple):
    """What one model says of every example: readings (N, 4), and whole outputs (N, K) where they were kept."""

    reading: np.ndarray
    outputs: np.ndarray | None


def _evidence(run: Run, upstream: Mapping[str, Stage], said: Sequence[_Said], *, outputs: bool) -> Evidence:
    """What attacks may look at, from what each of T models says of the data set: with reference models and on their
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
    pool, population = needs.pool_and_population(run.subject, data)
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


def umia_of(row: Mapping[str, Any]) -> UMIAResult:
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
        config={"alpha": subject.thresholds.alpha, "level": level_of(subject, random=scope.random)},
        version=2,
        deps=(scope.split, *jobs.values(), retrainings),
        tables=(schema.AGAINST_RETRAINING, schema.ATTACK_SCORES),
        per_request=scope.per_request,
        work=lambda run: _against_retraining(run, scope, jobs, retrainings),
    )


def _against_retraining(run: Run, scope: Scope, jobs: Mapping[str, Stage], retrainings: Stage) -> Output:
    from attacks.membership.retraining_null import Retrainings, against_retraining

    data, (arrays, _) = run.data, run.load(retrainings)
    asked, own = arrays["example_id"], run.load(scope.split)[0]["forget"]
    shown = np.isin(asked, own) | (data.split[data.positions(asked)] == "test")  # of a batch, others' are there too
    where, num = data.positions(asked[shown]), int(np.isin(asked, own).sum())
    ids, targets = asked[shown][:num], data.targets(where)
    those = Retrainings(signal=arrays["signal"][:, shown], num_set=num, spoken=arrays.get("spoken"))

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
            level=level_of(run.subject, random=scope.random),
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


def num_tests(subject: Subject, *, random: bool) -> int:
    """Tests that fail a method together: attacks (or, of a set that is not random, retrainings), gap and quality, of
    every seed. Half of alpha is theirs, the other half belongs to the shadow runs."""
    assert subject.unlearning is not None
    attacks_judged = len(subject.attacks) + 1 if random else 1
    return 2 * subject.unlearning.seeds * (attacks_judged + 2)


def level_of(subject: Subject, *, random: bool) -> float:
    """Of each of those tests."""
    return subject.thresholds.alpha / num_tests(subject, random=random)
