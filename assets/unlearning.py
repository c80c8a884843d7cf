"""Stage 5, unlearning: one job a method, in a process of its own; then every method against retraining.

``Scope`` says on whose behalf: the subject's own split (audited on schedule) or a forget request (a partition). A set
that is not random is judged by retrainings without that very set; those are a stage of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import batch, models, needs
from assets.stage import Output, Run, Stage
from contracts import schema
from contracts.digests import derive_seed, digest, plain
from contracts.jobs import UnlearnJob, times_of
from contracts.methods import attack, curator, unlearner
from contracts.params import references
from contracts.requests import RequestState
from contracts.subject import Choice, Subject, Thresholds
from recipes.plan import trainer
from reports import plots
from sources.frames import frame_of
from tasks.base import Reading, require
from warehouse import Artifact

if TYPE_CHECKING:
    from attacks.distance import Answers

NONE, RETRAIN = "none", "retrain"
CONTROLS = (NONE, RETRAIN)


@dataclass(frozen=True)
class Scope:
    """The split whose forget role is removed, and where the results belong.

    Attributes:
        split: the stage that chose the set.
        per_request: it is a forget request's.
        random: it is a random share of training: unseen examples are its peers.
        stage_prefix: of the names of the stages of a scope beside the plan's own.
    """

    split: Stage
    per_request: bool
    random: bool = False
    stage_prefix: str = ""

    @classmethod
    def of_plan(cls, subject: Subject, splits: Mapping[str, Stage]) -> Scope:
        """The split of the plan's ``unlearning``."""
        assert subject.unlearning is not None
        chosen = next(split for split in subject.splits if split.name == subject.unlearning.split)
        return cls(splits[chosen.name], per_request=False, random=curator.get(chosen.method).spec.random)

    @property
    def prefix(self) -> str:
        return "request_" if self.per_request else self.stage_prefix

    def name(self, run: Run) -> str:
        """Value of the ``split`` columns: the split's name, or the request's id."""
        return run.request if self.per_request and run.request else self.split.path[1]

    def kind(self, run: Run) -> str:
        """How the set was chosen: "random", the curator's name, or the request's selector."""
        if self.random:
            return "random"
        if self.per_request:
            return str(run.warehouse.requests.get(run.request).request.selector)
        return str(run.load(self.split)[1]["method"])


def methods_of(subject: Subject) -> list[Choice]:
    """The controls first, then the methods of the plan."""
    assert subject.unlearning is not None
    listed = {m.name: m for m in subject.unlearning.methods}
    return [listed.pop(name, Choice(name=name)) for name in CONTROLS] + list(listed.values())


def jobs(
    subject: Subject, upstream: Mapping[str, Stage], scope: Scope, *, only: Sequence[str] | None = None
) -> dict[str, Stage]:
    """``[subject, unlearning, <method>]``: the unlearned models, their metrics and their readings, one set a seed.

    Args:
        only: methods beside the controls; None: all of the plan.
    """
    listed = [c for c in methods_of(subject) if only is None or c.name in (*CONTROLS, *only)]
    return {choice.name: _job(subject, choice, upstream, scope) for choice in listed}


def _keeps_outputs(subject: Subject, upstream: Mapping[str, Stage], scope: Scope) -> bool:
    """Whether whole outputs of unlearned models are read: by an attack that wants them, or to map them to the scale of
    others."""
    if not scope.random:
        return True
    wanted = any("outputs" in attack.get(choice.name).spec.wants for choice in subject.attacks)
    return wanted or bool(subject.attacks and "ensemble" in upstream)


def _job(subject: Subject, choice: Choice, upstream: Mapping[str, Stage], scope: Scope) -> Stage:
    assert subject.unlearning is not None
    spec = unlearner.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    outputs = _keeps_outputs(subject, upstream, scope)
    others = [stage for name, stage in needs.models_of(spec, upstream).items() if name != "target"]
    # versions of the methods that it runs: what they do now is part of what it does
    runs = {r.name: unlearner.get(r.name).spec.version for r in references(config) if r.kind == "unlearner"}
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}unlearning", choice.name),
        doc=f"{spec.doc} Runs as a job of its own over {subject.unlearning.seeds} seeds. {spec.source}",
        config={
            **models.training(subject),
            "method": choice.name,
            "version": spec.version,
            "config": config,
            "seeds": subject.unlearning.seeds,
            **({"outputs": True} if outputs else {}),
            **({"runs": runs} if runs else {}),
        },
        version=4,  # of the job; the method's own is in the configuration
        deps=(upstream["examples"], upstream["target"], scope.split, *others),
        kinds=frozenset({"torch", "safetensors"}),
        per_request=scope.per_request,
        trains=True,
        work=lambda run: _run_job(run, choice, upstream["target"], others, scope, outputs=outputs),
    )


def job_seeds(subject: Subject) -> tuple[int, ...]:
    assert subject.unlearning is not None
    return tuple(derive_seed(subject.seed, "unlearn", r) % 2**31 for r in range(subject.unlearning.seeds))


def _training_part(subject: Subject) -> Subject:
    """The plan without what has no part in a job, so that a new threshold or score does not make a new job."""
    return dataclasses.replace(
        subject,
        title="",
        model=dataclasses.replace(
            subject.model, checkpoint=""
        ),  # its weights come as an artifact, whoever trained them
        scores=(),
        analyses=(),
        splits=(),
        unlearning=None,
        attacks=(),
        thresholds=Thresholds(),
        schedule=None,
        owners=(),
        budget_min=None,
    )


def _run_job(
    run: Run, choice: Choice, target: Stage, others: Sequence[Stage], scope: Scope, *, outputs: bool
) -> Output:
    require(run.data, f"unlearner {choice.name}", *unlearner.get(choice.name).spec.wants)  # before a process starts
    store = run.warehouse.artifacts
    members, weights = scope.split.asset(run.request) + "/result", target.asset(run.request) + "/weights"
    job = UnlearnJob(
        subject=plain(_training_part(run.subject)),
        code=digest({"version": run.stage.version, "config": run.stage.config}),
        data_version=run.data.digest,
        method=choice,
        seeds=job_seeds(run.subject),
        target=weights,
        target_sha256=store.sha256(weights),
        members=members,
        members_sha256=store.sha256(members),
        inputs={name: sha for stage in others for name, sha in models.stored_models(run, stage).items()},
        output=f"{run.asset}/result",
        outputs=outputs,
    )
    if not batch.found_job(run, job, scope.split):
        run.workspace.launcher.run(job, home=run.workspace.home, context=run.context, progress=run.progress)
    artifact: Artifact = store.describe(job.output)
    _, meta = store.load(job.output)
    ids, _ = store.load(members)
    return Output(
        artifacts=[artifact],
        volatile=[store.describe(times_of(job.output))],
        members=ids["retain"] if unlearner.get(choice.name).spec.exact else np.concatenate(list(ids.values())),
        metadata={"job": job.job_id, "runs": meta["runs"]},
    )


def retrainings(subject: Subject, upstream: Mapping[str, Stage], scope: Scope) -> Stage | None:
    """``[subject, unlearning, retrainings]``: what models say that never saw the very set; None for a random one."""
    assert subject.unlearning is not None
    if scope.random:
        return None
    count = subject.unlearning.retrainings
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}unlearning", "retrainings"),
        doc=f"{count} retrainings without the very set, by the plan's recipe, other seeds: what they say of the set "
        "and on the test split. A set that is not random is judged by what these say of it.",
        config={**models.training(subject), "retrainings": count},
        version=2,
        deps=(upstream["examples"], scope.split),
        kinds=frozenset({"torch", "safetensors"}),
        per_request=scope.per_request,
        trains=True,
        work=lambda run: _retrain_often(run, scope, count),
    )


def _retrain_often(run: Run, scope: Scope, count: int) -> Output:
    from attacks.membership.retraining_null import Retrainings
    from recipes.predict import predict_logits, read

    data, (ids, _) = run.data, run.load(scope.split)
    leaves = batch.leaving(ids)
    asked = np.concatenate([leaves, data.example_id[data.split == "test"]])
    together = run.warehouse.requests.batch(run.request).name if scope.per_request else ""
    meta: dict[str, Any] = {"num_set": len(leaves)}
    if together:
        config = {"config": run.stage.config_digest, "version": run.stage.version, "data": data.digest}
        meta |= {"work": digest({**config, "leaves": leaves.tolist(), "retain": ids["retain"].tolist()})}
        if (found := batch.found_retrainings(run, meta["work"], len(asked))) is not None:
            return _retrained(run, found, meta, ids, count)
    name = run.stage.asset(together) if together else run.asset
    seeds = [derive_seed(run.subject.seed, "retraining", name, r) % 2**31 for r in range(count)]
    trained = trainer(run.subject, data).each(
        data, members=[data.positions(np.sort(ids["retain"]))] * count, seeds=seeds, progress=run.progress
    )
    examples, num_set = data.subset(asked), len(leaves)
    if data.task.gives("outputs") and num_set < len(examples):
        outputs = np.stack([predict_logits(model, examples) for model in trained])
        targets = examples.targets(slice(None))
        null = Retrainings.of_outputs(
            outputs,
            targets,
            num_set=num_set,
            task=data.task,
            constants=data.constants,  # type: ignore[arg-type]
        )
    else:
        null = Retrainings(signal=np.stack([read(model, examples).signal for model in trained]), num_set=num_set)
    kept = {"example_id": asked, "signal": null.signal, **({} if null.spoken is None else {"spoken": null.spoken})}
    return _retrained(run, kept, meta, ids, count)


def _retrained(
    run: Run, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], ids: Mapping[str, np.ndarray], count: int
) -> Output:
    stored = run.save(arrays, meta)
    told = {"retrainings": count, "examples": len(arrays["example_id"])}
    return Output(artifacts=[stored], members=ids["retain"], metadata=told)


def comparison(subject: Subject, scope: Scope, jobs: Mapping[str, Stage]) -> Stage:
    """``[subject, unlearning, comparison]``: UA, RA, TA, MIA-efficacy, time and gap to retraining (Fan et al. 2024)."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}unlearning", "comparison"),
        doc="Every removal method against retraining from scratch: quality (accuracy for classes) lost on the set and "
        "kept on the retained and test examples, efficacy of a "
        "membership attack, time, and the average gap to retraining of the same seed with its interval. Closer to "
        "retraining is better.",
        config={"alpha": subject.thresholds.alpha},
        version=4,
        deps=(scope.split, *jobs.values()),
        tables=(schema.UNLEARNING_METRICS, schema.UNLEARNING_RUNS),
        per_request=scope.per_request,
        work=lambda run: _compare(run, scope, jobs),
    )


def _compare(run: Run, scope: Scope, jobs: Mapping[str, Stage]) -> Output:
    from unlearning.metrics import add_gaps

    split, kind = scope.name(run), scope.kind(run)
    rows: list[dict[str, Any]] = []
    results = {method: run.load(stage) for method, stage in jobs.items()}
    said = {method: _answers(run, scope, arrays) for method, (arrays, _) in results.items()}
    for method, stage in jobs.items():
        arrays, meta = results[method]
        times = run.warehouse.artifacts.load_json(times_of(f"{stage.asset(run.request)}/result"))
        for s, (row, took) in enumerate(zip(meta["runs"], times, strict=True)):
            same = np.array_equal(arrays["reading"][s], results[RETRAIN][0]["reading"][s])
            distance = _distance(run, said[method], said[RETRAIN], s, same=same) if row["status"] == "ok" else {}
            losses = _losses(run, scope, arrays, s) if row["status"] == "ok" else {}
            both_ok = row["status"] == results[RETRAIN][1]["runs"][s]["status"] == "ok"
            numbers = _numbers(arrays, results[RETRAIN][0], s) if both_ok else {}
            rows.append(
                {"split": split, "method": method, "kind": kind, **row, **took, **distance, **losses, **numbers}
            )
    gaps = add_gaps(pl.DataFrame(rows, infer_schema_length=None))
    done = [{c.name: row[c.name] for c in schema.UNLEARNING_RUNS.columns} for row in gaps.to_dicts()]
    frame = frame_of(schema.UNLEARNING_RUNS, done)
    metrics = frame_of(schema.UNLEARNING_METRICS, measured(gaps), nan_to_null=False)
    if scope.per_request and run.request:
        run.warehouse.requests.reach(run.request, RequestState.EXECUTED, note=f"{len(jobs)} methods run")
    tables = [
        (table, rows.filter(pl.col("method") == method), {"split": split, "method": method})
        for method in jobs
        for table, rows in ((schema.UNLEARNING_RUNS, frame), (schema.UNLEARNING_METRICS, metrics))
    ]
    return Output(
        tables=tables,
        metadata={"methods": len(jobs), "table": _short(gaps)},
        pictures={
            "gap": plots.dots_png(
                {method: gaps.filter(pl.col("method") == method)["avg_gap"].to_numpy() for method in jobs},
                title=f"Distance to retraining: {split}",
                xlabel="average gap to retraining (points)",
                threshold=run.subject.thresholds.max_gap,
                threshold_label="largest tolerated",
            )
        },
    )


def measured(runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows of ``unlearning.metrics`` of runs with a column a metric (and ``<metric>_lo``, ``<metric>_hi``): those that
    are known."""
    of_runs = {c.name for c in schema.UNLEARNING_RUNS.columns}
    bounds = {f"{name}{side}" for name in runs.columns for side in ("_lo", "_hi")}
    rows = []
    for row in runs.to_dicts():
        of = {name: row[name] for name in ("split", "method", "seed")}
        for metric in (name for name in runs.columns if name not in of_runs | bounds):
            if (value := row.get(metric)) is not None:
                rows.append(
                    {
                        **of,
                        "metric": metric,
                        "value": value,
                        "low": row.get(f"{metric}_lo"),
                        "high": row.get(f"{metric}_hi"),
                    }
                )
    return rows


def _answers(run: Run, scope: Scope, arrays: Mapping[str, np.ndarray]) -> list[Answers]:
    """What each seed's model says of the set, of what is kept, and of the test examples of kept classes."""
    from attacks.distance import Answers

    data, (ids, _) = run.data, run.load(scope.split)
    quality = Reading(arrays["reading"]).quality
    forget, retain = data.positions(arrays["forget"]), data.positions(ids["retain"])
    test = (data.split == "test") & data.task.peers(data, retain)
    return [
        Answers(forget=row[forget], retain=row[retain], test=row[test], non_member=called)
        for row, called in zip(quality, arrays["non_member"], strict=True)
    ]


def _losses(run: Run, scope: Scope, arrays: Mapping[str, np.ndarray], s: int) -> dict[str, float]:
    """Mean losses of texts on the set, on what is kept, and on the test split: a share of tokens named right moves
    little where a likelihood moves much."""
    data, (ids, _) = run.data, run.load(scope.split)
    if not data.task.gives("tokens"):
        return {}
    loss = Reading(arrays["reading"][s]).loss
    of = {"forget": data.positions(arrays["forget"]), "retain": data.positions(ids["retain"])}
    of["test"] = np.flatnonzero(data.split == "test")
    return {f"loss_{name}": float(loss[rows].mean()) for name, rows in of.items() if len(rows)}


def _numbers(arrays: Mapping[str, np.ndarray], retrained: Mapping[str, np.ndarray], s: int) -> dict[str, float]:
    """Of a task of numbers: how far the predictions on the set are from retraining's, and how soon it is relearnt."""
    from unlearning.regression.metrics import Relearning, against_retraining

    if "predicted" not in arrays:
        return {}
    own, reference = (Relearning(int(a["relearned"][s, 0]), bool(a["relearned"][s, 1])) for a in (arrays, retrained))
    return against_retraining(arrays["predicted"][s], own, retrained=retrained["predicted"][s], reference=reference)


def _distance(run: Run, own: list[Answers], retrained: list[Answers], s: int, *, same: bool) -> dict[str, float | None]:
    """The interval of the gap, what is lost, and how far retrainings of other seeds are apart."""
    from attacks.distance import gap_to_retraining, quality_lost

    alpha = run.subject.thresholds.alpha
    if not len(own[s].forget):
        return {}
    gap = gap_to_retraining(own[s], retrained[s], alpha=alpha, same=same)
    lost = quality_lost(own[s], retrained[s], alpha=alpha, same=same)
    others = [gap_to_retraining(retrained[s], other, alpha=alpha).value for r, other in enumerate(retrained) if r != s]
    found = {
        "avg_gap_lo": gap.low,
        "avg_gap_hi": gap.high,
        "retrain_spread": float(np.mean(others)) if others else None,
    }
    for name, figure in (("ra", lost["retained"]), ("ta", lost["test"])):
        found |= {f"{name}_lost": figure.value, f"{name}_lost_lo": figure.low, f"{name}_lost_hi": figure.high}
    return found


def _short(frame: pl.DataFrame) -> list[dict[str, Any]]:
    columns = ["ua", "ra", "ta", "mia_efficacy", "avg_gap", "wall_s"]
    return frame.group_by("method", maintain_order=True).agg(pl.col(c).mean().round(2) for c in columns).to_dicts()
