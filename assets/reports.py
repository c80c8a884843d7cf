"""Stage 7, reports: everything an audit found, as one page that works offline and as JSON beside it."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import polars as pl
import yaml
from polars import selectors as cs

from assets.examples import examples_in, examples_of
from assets.in_use import InUse, in_use
from assets.needs import made_set
from assets.request_closing import RETRAINED
from assets.requests import GROUPS as CLOSURE
from assets.stage import APPLIES, Output, Run, Stage
from assets.unlearning import Scope
from assets.workspace import Workspace
from contracts import schema
from contracts.digests import digest, plain
from contracts.errors import NotReady
from contracts.methods import analysis, maker, score
from contracts.requests import ForgetRequest, RequestState
from contracts.subject import NO_REFERENCES, RETRAIN, Subject
from contracts.tables import TableSpec
from contracts.verdicts import TARGET
from recipes.plan import device_of, recipe_config
from reports import (
    AnalysisSection,
    AuditReport,
    Curve,
    Examples,
    Histogram,
    Matrix,
    Removed,
    ScoreSection,
    matrix_of,
    render_html,
    render_json,
)
from reports.matrix import REMOVAL
from warehouse import queries

SHOWN, REMOVED_SHOWN, MADE_SHOWN = 16, 10, 12


def audit_report(
    subject: Subject,
    upstream: Mapping[str, Stage],
    scope: Scope | None,
    scores: Mapping[str, Stage],
    analyses: Mapping[str, Stage],
    findings: Stage,
    comparison: Stage | None,
    accepted: Stage | None = None,
    datasets: Mapping[str, Stage] | None = None,
) -> Stage:
    """``[subject, reports, audit]``: verdict first; HTML and JSON under the state folder.

    Args:
        accepted: which methods forget requests may use; None where the plan does not ask.
        datasets: the data sets that the plan makes, by name.
    """
    made = datasets or {}
    per_request = scope is not None and scope.per_request

    def facts(run: Run) -> AuditReport:
        return assemble(run, scope, scores, analyses, findings, accepted, made)

    return Stage(
        subject=subject,
        path=(f"{scope.prefix if scope else ''}reports", "audit"),
        doc="One self-contained page: the verdict, what was audited, scores with their examples, unlearning against "
        "retraining, attacks with intervals, what is inconclusive and why, and how to do it again. JSON beside it.",
        config={"subject": subject},
        version=9,
        deps=(
            upstream["examples"],
            upstream["target"],
            *scores.values(),
            *analyses.values(),
            findings,
            *((comparison,) if comparison else ()),
            *((scope.split,) if scope else ()),
            *((accepted,) if accepted else ()),
            *made.values(),
        ),
        kinds=frozenset({"html", "json"}),
        per_request=per_request,
        fresh_days=None if per_request else 8,
        work=lambda run: _report(run, facts(run)),
        report=facts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """A report that was made again.

    Attributes:
        text: its JSON.
        differs: fields in which it says other things than the one on record; none where they are equal byte for byte.
    """

    text: str
    differs: tuple[str, ...]


def rebuild(stage: Stage, workspace: Workspace, *, request: str | None = None) -> Rebuilt:
    """Make a report on record again, from ledger, tables and artefacts, and compare the two.

    The time it was made is taken from the report, and the head that it names from the ledger.

    Raises:
        NotReady: there is none; or what it was made from was replaced since, or is damaged. Erased: it was erased.
        IntegrityError: the report on record is damaged.
    """
    assert stage.report is not None
    run, w, asset = Run(stage, workspace, "rebuild", request, None), workspace.warehouse, stage.asset(request)
    stored = w.artifacts.load_bytes(f"{asset}.json")
    record = w.last_complete(asset)
    if record is None:
        raise NotReady(f"no entry of the ledger records {asset}: palimpsest audit {stage.subject.subject}")
    names = [dep.asset(request) for dep in stage.deps]
    spoiled = [f"{name}: {trouble}" for name, (_, trouble) in w.completions(names).items() if trouble]
    if spoiled or run.key(run.outside(stage.reads)) != record["key"]:
        why = "; ".join(spoiled) or "its inputs, the plan, the data or the code are other ones"
        raise NotReady(f"{asset} cannot be made again as it was: {why}; an audit makes a new one")
    head, facts = w.ledger.before(asset, request=request), stage.report(run)
    facts = dataclasses.replace(facts, created_at=json.loads(stored)["created_at"], ledger_head=str(head))
    if request and facts.events is not None:  # what became of the request since is not in it
        known = w.ledger.entries(kind="request").filter(pl.col("seq") <= head.seq)["body"]
        told = sum(json.loads(body)["request_id"] == request for body in known)
        facts = dataclasses.replace(facts, events=facts.events.sort("seq").head(told))
    text = render_json(facts)
    if text.encode() == stored:
        return Rebuilt(text=text, differs=())
    now, then = json.loads(text), json.loads(stored)
    differs = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return Rebuilt(text=text, differs=tuple(differs) or ("the text itself",))


def _report(run: Run, report: AuditReport) -> Output:
    store = run.warehouse.artifacts
    files = [
        store.save_bytes(f"{run.asset}.html", render_html(report).encode()),
        store.save_bytes(f"{run.asset}.json", render_json(report).encode()),
    ]
    if run.request:
        said = report.judgement
        note = f"audit says {said.verdict.value}: {said.sentence}"
        run.warehouse.requests.reach(run.request, RequestState.AUDITED, note=note)  # an erasure closes it
    return Output(
        artifacts=files,
        metadata={
            "verdict": report.judgement.verdict.value,
            "why": report.judgement.sentence,
            "page": str(run.workspace.home / files[0].path),
            "findings": [
                {
                    "verdict": r.verdict.value,
                    "sentence": r.sentence,
                    "about": r.about,
                    "what": r.what,
                    "figure": r.figure,
                    "interval": r.interval,
                    "counts": r.counted,
                }
                for r in report.rows
            ],
            "answers": [answer.shown for answer in report.judgement.answers],
        },
    )


def assemble(
    run: Run,
    scope: Scope | None,
    scores: Mapping[str, Stage],
    analyses: Mapping[str, Stage],
    findings: Stage,
    accepted: Stage | None = None,
    datasets: Mapping[str, Stage] | None = None,
) -> AuditReport:
    """The facts of one audit, read from the warehouse. Its findings are those of the stage ``findings``, all of
    them."""
    subject = run.subject
    split = scope.name(run) if scope else ""
    with run.warehouse.reading():
        of_split = [run.read(spec, {"split": split}) for spec in (schema.UNLEARNING_RUNS, schema.UNLEARNING_METRICS)]
        runs, metrics = of_split if scope else (None, None)
        models = [f"{split}/{method}" for method in runs["method"].unique()] if runs is not None else []
        attacks, attack_scores = (
            _of_models(run, spec, models if run.request else [TARGET, *models])
            for spec in (schema.ATTACK_REPORTS, schema.ATTACK_SCORES)
        )
        head = run.warehouse.ledger.head()
        request = run.warehouse.requests.get(run.request) if run.request else None
        events = run.read(schema.REQUEST_EVENTS, {"request_id": run.request}) if run.request else None
        found = run.read(schema.FINDINGS, {"stage": findings.asset(run.request)})
        target = run.read(schema.CHECKPOINTS, {"role": "target"}).row(0, named=True)
    using = in_use(run, scope, accepted)
    return AuditReport(
        subject=subject.subject,
        title=subject.title or subject.subject,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        findings=found,
        audited=_audited(run, target),
        scores=[_score_section(run, name) for name in scores],
        groups=_compared(run, scores),
        analyses=[_analysis_section(run, stage) for stage in analyses.values()],
        datasets=[_dataset_section(run, name, stage) for name, stage in (datasets or {}).items()],
        removed=_removed(run, scope) if scope else None,
        unlearning=runs,
        unlearning_metrics=metrics,
        attacks=attacks,
        curves=_curves(attack_scores),
        commands=_commands(subject, run.request),
        config_yaml=yaml.safe_dump(plain(subject), sort_keys=False, allow_unicode=True),
        environment=environment(subject),
        ledger_head=f"{head.seq}:{head.hash}",
        request=_request(subject, request.request, using) if request else None,
        events=events,
        max_gap=subject.thresholds.max_gap,
        decides=using.method or None,
        computed=_computed(run, scores, analyses),
        matrix=None if run.request else recipes_against_audits(run),
    )


def recipes_against_audits(run: Run) -> Matrix:
    """Every subject of the state folder, as it stands, with what each audit found of it."""
    query = queries.get("recipe-audit-findings")
    found = run.query(query.sql, dict(query.params))

    def why_not(subject: str, audit: str) -> str:
        """What an empty cell lacks."""
        warehouse = run.warehouse
        if warehouse.last_complete(f"{subject}/audits/findings") is None:
            return f"Not audited to the end; run: palimpsest audit {subject}"
        if audit == REMOVAL:
            return "Its plan names no removal that counts; it needs unlearning."
        record = warehouse.last_complete(f"{subject}/audits/{audit}")
        if record is None:
            return f"Not in its plan; it needs {audit}."
        return record["warnings"].get(APPLIES) or "It ran and found nothing to judge."

    return matrix_of(found, why_not=why_not)


def _request(subject: Subject, request: ForgetRequest, using: InUse) -> dict[str, Any]:
    assert subject.unlearning is not None
    grounds = "a pass, or a person with a reason"
    if subject.unlearning.closing == RETRAINED:
        grounds += ", or exact retraining: all models trained from scratch on data without its rows, with proof"
    by = {"removed by": f"{using.method}. {using.why}"} if using.why else {}
    unsaid = (*_NAMES_ROWS, *(() if request.selector == "score" else ("end",)))
    return {k: v for k, v in plain(request).items() if v and k not in unsaid} | by | {"may be closed by": grounds}


_NAMES_ROWS = ("ids", "owner", "where")  # a report outlives what it names: the register alone says this


def _removed(run: Run, scope: Scope) -> Removed:
    """What was taken out; a forget request's examples are a person's, and are not shown."""
    data = run.data
    ids = run.load(scope.split)[0]["forget"]
    single = data.class_names and data.y.ndim == 1
    names = [data.class_names[k] for k in data.y[data.positions(ids)].tolist()] if single else []
    shown = pl.DataFrame({"example_id": ids[:REMOVED_SHOWN]}).with_columns(value=pl.lit(None, pl.Float64))
    chosen = "named by" if scope.per_request else "chosen by"
    return Removed(
        num=len(ids),
        num_train=run.train.num_examples,
        how="a random share" if scope.random else f"{chosen} {scope.kind(run)}",
        classes=dict(Counter(names)),
        examples=None if scope.per_request else examples_of(data, shown, "value", "Removed"),
    )


def _computed(run: Run, scores: Mapping[str, Stage], analyses: Mapping[str, Stage]) -> str:
    """What an audit that judged nothing has computed, and what a verdict would take."""
    runs = [run.read(schema.SCORE_RUNS, {"score": name}).row(0, named=True) for name in scores]
    done = [row["score"] for row in runs if row["passed"] and row["num_examples"]]
    most = max((row["num_examples"] for row in runs), default=0)
    applied = [name for name, stage in analyses.items() if not run.why_not(stage)]
    said = [
        f"{most:,} examples were scored by {', '.join(done)}." if done else "",
        f"Analysed: {', '.join(applied)}." if applied else "",
    ]
    needed = [
        part
        for part, there in (
            ("attacks", run.subject.attacks),
            ("unlearning", run.subject.unlearning or run.subject.outputs_only),
        )
        if not there
    ]
    if needed:
        said.append(f"A verdict needs {' and '.join(needed)} in the plan.")
    return " ".join(filter(None, said))


def _commands(subject: Subject, request: str | None) -> list[str]:
    first = f"palimpsest request run {subject.subject} {request}" if request else f"palimpsest audit {subject.subject}"
    return [
        first,
        f"palimpsest sql \"SELECT * FROM audits.findings WHERE subject = '{subject.subject}'\"",
        "palimpsest verify --ledger",
    ]


def environment(subject: Subject) -> dict[str, str]:
    """Versions and hardware that the figures depend on."""
    import torch

    names = ("torch", "numpy", "scikit-learn", "duckdb", "polars", "dagster", "great-expectations")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        "machine": platform.machine(),
        "device": device_of(subject),
        "threads": str(torch.get_num_threads()),
    }


def _audited(run: Run, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was audited, and how it was made.

    Args:
        row: of the target, in ``models.checkpoints``.
    """
    subject, data = run.subject, run.data
    train = int((data.split == "train").sum())
    share = {k: f"{row[k]:.1%}" for k in ("train_quality", "test_quality") if row[k] is not None}
    return {
        "Data": {
            "source": subject.source.name,
            **{k: v for k, v in subject.source.config.items() if isinstance(v, (str, int, float))},
            "examples": f"{data.num_examples:,} ({train:,} train, {data.num_examples - train:,} test)",
            "task": f"{data.task}: {data.task.describe(data)}",
            "shape": " × ".join(map(str, data.input_shape)),
        },
        "Model": {**_model(subject, row["num_parameters"]), **share},
        **({} if subject.outputs_only else _made(subject)),
        "Digests": {"data": data.digest, "configuration": digest(subject)},
    }


def _model(subject: Subject, num_parameters: int) -> dict[str, Any]:
    """What is audited."""
    if subject.outputs_only:
        return {"outputs only": "no model was here, and none was trained"}
    given = subject.model.checkpoint
    return {
        "architecture": subject.model.name,
        **plain(subject.model.config),
        "parameters": f"{num_parameters:,}",
        **({"weights": f"as given by {given}, not trained here"} if given else {}),
    }


def _made(subject: Subject) -> dict[str, dict[str, Any]]:
    """How models are made."""
    return {
        "Recipe": {"recipe": subject.recipe.name, **plain(recipe_config(subject))},
        "Seeds": {
            "subject": subject.seed,
            "early models": f"{subject.early.seeds}, stopped at epoch {subject.early.epoch}",
            "reference models": _references(subject),
            "unlearning": f"{subject.unlearning.seeds} runs a method" if subject.unlearning else "none",
        },
    }


def _references(subject: Subject) -> str | int:
    plan = subject.ensemble
    if plan.policy.name == NO_REFERENCES:
        return "none"
    return plan.num_models if plan.policy.name == RETRAIN else f"{plan.num_models}, {plan.policy.name}"


def _score_section(run: Run, name: str) -> ScoreSection:
    spec = score.get(name).spec
    frame = run.read(spec.table)
    gate = run.read(schema.SCORE_RUNS, {"score": name}).row(0, named=True)
    ordered = frame.drop_nulls(spec.value).sort([spec.value, "example_id"], descending=[True, False])
    column = spec.table.column(spec.value)
    return ScoreSection(
        name=name,
        doc=spec.doc,
        unit=column.unit,
        higher_means=spec.higher_means,
        histogram=Histogram.of(ordered[spec.value].to_numpy()),
        examples=[
            examples_of(run.data, ordered.head(SHOWN), spec.value, f"Highest: {spec.higher_means}"),
            examples_of(run.data, ordered.reverse().head(SHOWN), spec.value, "Lowest"),
        ],
        passed=gate["passed"],
        reason=gate["reason"],
    )


def _analysis_section(run: Run, stage: Stage) -> AnalysisSection:
    spec = analysis.get(stage.path[1]).spec
    frames = {table.name: run.read(table) for table in spec.tables}
    first, drawn = frames[spec.tables[0].name], run.pictures_of(stage)
    return AnalysisSection(
        name=spec.name,
        doc=spec.doc,
        audit=spec.stage == "audits",
        charts=[(p.title, drawn[p.title]) for p in spec.pictures if p.is_chart and p.title in drawn],
        examples=[
            group for p in spec.pictures if not p.is_chart for group in examples_in(run.data, p, frames[p.table])
        ],
        table=first.select(~cs.list()).head(10),
        num_rows=first.height,
        reason=run.why_not(stage),
    )


def _dataset_section(run: Run, name: str, stage: Stage) -> AnalysisSection:
    """Some of the made examples above originals that they were drawn from, and what the maker says of them."""
    spec = maker.get(next(plan.method for plan in run.subject.datasets if plan.name == name)).spec
    if reason := run.why_not(stage):
        return AnalysisSection(name=name, doc=spec.doc, reason=reason)
    made = made_set(run, name)
    rows, first = made.some(MADE_SHOWN)
    shown, originals = made.examples.example_id[rows], np.array(list(dict.fromkeys(first.tolist())))
    num, train = len(made.sources), run.train.num_examples
    groups = [
        examples_of(data, pl.DataFrame({"example_id": ids, "value": np.full(len(ids), np.nan)}), "value", heading)
        for data, ids, heading in (
            (made.examples, shown, f"Made: {len(made.examples):,} examples, drawn from {num:,} of {train:,}"),
            (run.data, originals, "Originals that they were drawn from"),
        )
    ]
    said = next((frame for table in spec.tables if (frame := made.tables[table.name]).height), None)
    head = None if said is None else said.select(~cs.list()).head(MADE_SHOWN)
    drawn = run.pictures_of(stage)
    return AnalysisSection(
        name=name,
        doc=spec.doc,
        charts=[(p.title, drawn[p.title]) for p in spec.pictures if p.title in drawn],
        examples=groups,
        table=head,
        num_rows=0 if said is None else said.height,
    )


def _compared(run: Run, scores: Mapping[str, Stage]) -> list[Examples]:
    """What several scores call noisy, hard, memorised or duplicate, what they disagree on, and near duplicates side by
    side."""
    asked: list[tuple[str, pl.DataFrame]] = []
    if len(scores) > 1:
        called = _ask(run, "agreement", at_least=2).with_columns(
            value=pl.col("num_high").cast(pl.Float64),
            note=pl.format("{}: {}", pl.col("says").list.join(", "), pl.col("high").list.join(", ")),
        )
        disputed = _ask(run, "noisiest").with_columns(
            value=pl.col("spread"), note=pl.format("{} high, {} low", "highest", "lowest")
        )
        asked += [
            ("Called noisy, hard, memorised or duplicate by several scores (how many)", called),
            ("Scores disagree (difference of places, 0 to 1)", disputed),
        ]
    if CLOSURE in scores:
        asked.append(("Near duplicates side by side (similarity to the nearest)", _twins(run)))
    return [
        dataclasses.replace(examples_of(run.data, frame, "value", heading), note=frame["note"].to_list())
        for heading, frame in asked
        if frame.height
    ]


def _twins(run: Run) -> pl.DataFrame:
    """Groups of near duplicates, those with conflicting labels first, then the most alike; none where the score was
    refused."""
    conflict = pl.when(pl.col("group_labels") > 1).then(pl.lit(", labels conflict")).otherwise(pl.lit(""))
    trusted = run.read(schema.SCORE_RUNS, {"score": CLOSURE})["passed"].all()
    found = run.read(score.get(CLOSURE).spec.table).filter((pl.col("group_size") > 1) & pl.lit(trusted))
    closest = pl.col("similarity").max().over("group_id")
    order = [pl.col("group_labels") == 1, -closest, "group_id", "example_id"]
    return (
        found.sort(order)
        .head(SHOWN)
        .select(
            "example_id", value="similarity", note=pl.format("group {} of {}{}", "group_id", "group_size", conflict)
        )
    )


def _ask(run: Run, name: str, **params: Any) -> pl.DataFrame:
    """Rows of a named query about the subject's training examples."""
    query = queries.get(name)
    asked = {**query.params, "subject": run.subject.subject, "limit": SHOWN, **params}
    found = run.query(query.sql, asked)
    return found.filter(pl.col("example_id").is_in(run.train.example_id.tolist()))


def _of_models(run: Run, spec: TableSpec, models: Sequence[str]) -> pl.DataFrame:
    """Rows of a table of audited models, of these alone, in the order of the table."""
    return pl.concat([run.read(spec, {"audited": name}) for name in sorted(models)])


def _curves(scores: pl.DataFrame) -> dict[str, dict[str, Curve]]:
    """By audited model and attack, of rows of ``audits.attack_scores``."""
    from attacks.membership import roc

    out: dict[str, dict[str, Curve]] = {}
    frame = scores.drop_nulls("score")
    # One curve a method: of its first model; the table has them all.
    frame = frame.filter(pl.col("seed") == pl.col("seed").min().over("audited", "attack"))
    for (audited, attack), part in frame.group_by(["audited", "attack"], maintain_order=True):
        member = part["is_member"].to_numpy()
        if 0 < member.sum() < len(member):
            fpr, tpr = roc(part["score"].to_numpy(), member)
            out.setdefault(str(audited), {})[str(attack)] = Curve.of(
                fpr, tpr, n_pos=int(member.sum()), n_neg=int((~member).sum())
            )
    return out
