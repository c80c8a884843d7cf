"""One mechanism for every asset: a stage knows its inputs by digest, does its work once, records it, and says so.

    key = digest(asset, code version, configuration, data versions of its inputs, request)

The same key with its outputs still in place is a no-op. Otherwise the work runs, its tables replace their
partitions, its artifacts are written before the ledger says the stage is complete, and the snapshot is published.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from assets.current import UNCHANGED, Declaration, current_stages, scope_of
from assets.workspace import Workspace
from contracts.digests import digest, plain
from contracts.errors import NotReady, UnknownName, in_words, may_pass
from contracts.methods import ScoreSpec
from contracts.progress import Progress
from contracts.stores import CheckpointStore
from contracts.subject import Subject
from contracts.tables import TableSpec
from contracts.verdicts import Verdict
from sources.example_set import ExampleSet
from warehouse import Artifact

Partition = Mapping[str, str]
APPLIES = "applies"  # the check that says why a method does not apply to a subject


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a judged, non-blocking check says.

    Attributes:
        verdict: passed, or an error (fail, broken) or a warning (inconclusive, not judged).
        sentence: why.
        what: what was judged, with its figure, interval and limit.
    """

    verdict: Verdict
    sentence: str
    what: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the work of a stage hands over.

    Attributes:
        tables: (spec, frame, partition) to replace.
        artifacts: bulk results already written through the artifact store.
        volatile: stored things that differ between equal runs (times); no part of the data version.
        members: ids of the examples that the results were made from.
        metadata: shown in the Dagster UI: label -> number, text, or a list of flat rows (a table).
        pictures: label -> PNG bytes, shown in the Dagster UI.
        warnings: name of a non-blocking check -> sentence; an empty sentence is a pass.
        judged: name of a non-blocking check -> what it says.
    """

    tables: Sequence[tuple[TableSpec | ScoreSpec, pl.DataFrame, Partition]] = ()
    artifacts: Sequence[Artifact] = ()
    volatile: Sequence[Artifact] = ()
    members: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, Checked] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One asset of a subject.

    Attributes:
        path: (stage, name); the asset key is (subject, stage, name).
        version: raise it when the code changes what it computes.
        config: everything besides the inputs that the result depends on.
        reads: "data", or the "model" that was given: its key covers the digest of these, which lie outside the warehouse and
            are asked for at every run.
        deps: stages it reads.
        tables: the tables it writes, for the schema in the UI and the blocking check.
        warnings, judged: names of its non-blocking checks.
        per_request: partitioned by forget request.
        trains: takes the training pool (one at a time).
        fresh_days: the asset is stale after so many days.
    """

    subject: Subject
    path: tuple[str, str]
    doc: str
    work: Callable[[Run], Output]
    config: Any = None
    reads: str = ""
    version: int = 1
    deps: tuple[Stage, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    warnings: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset({"duckdb"})
    per_request: bool = False
    trains: bool = False
    fresh_days: int | None = None

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey([self.subject.subject, *self.path])

    @cached_property
    def config_digest(self) -> str:
        return digest(self.config)

    @cached_property
    def declaration(self) -> Declaration:
        """What its key depends on besides its inputs."""
        return Declaration(
            subject=self.subject.subject,
            path=self.path,
            version=self.version,
            config_digest=self.config_digest,
            deps=tuple(dep.path for dep in self.deps),
            per_request=self.per_request,
            reads=self.reads,
            fresh_days=self.fresh_days,
        )

    def asset(self, request: str | None) -> str:
        """The name in ledger, lineage and artifact store: ``digits/scores/el2n``, ``digits/requests/r1/finetune``."""
        return self.declaration.asset(request)


@dataclass(eq=False)
class Run:
    """One execution of a stage: its inputs and where its results go."""

    stage: Stage
    workspace: Workspace
    run_id: str
    request: str | None
    context: Any

    @property
    def subject(self) -> Subject:
        return self.stage.subject

    @property
    def warehouse(self) -> Any:
        return self.workspace.warehouse

    @property
    def asset(self) -> str:
        return self.stage.asset(self.request)

    @property
    def data(self) -> ExampleSet:
        return self.workspace.examples(self.subject)

    @cached_property
    def train(self) -> ExampleSet:
        return self.data.part("train")

    @property
    def progress(self) -> Progress:
        name = self.asset
        return lambda done, total, what: self.workspace.progress(done, total, f"{name}: {what}")

    def load(self, dep: Stage, name: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and meta that an input stage saved (digest verified)."""
        return self.warehouse.artifacts.load(_join(dep.asset(self.request), name))  # type: ignore[no-any-return]

    def save(self, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any], name: str = "") -> Artifact:
        return self.warehouse.artifacts.save(_join(self.asset, name), tensors, meta)

    def checkpoints(self) -> CheckpointStore:
        """Where a long training keeps its partial work; found again only by a run that would do exactly the same."""
        return self.warehouse.artifacts.store(self._resume())  # type: ignore[no-any-return]

    def partial_work(self) -> list[Artifact]:
        """What :meth:`checkpoints` holds: an equal run resumes from it, so it goes on record with the results."""
        names = [
            name for name in self.warehouse.artifacts.names(self.asset) if name.startswith(f"{self.asset}/resume-")
        ]
        prefix = f"{self._resume()}/" if names else ""
        return [self.warehouse.artifacts.describe(name) for name in names if name.startswith(prefix)]

    def _resume(self) -> str:
        same = digest({"config": self.stage.config_digest, "version": self.stage.version, "data": self.data.digest})
        return f"{self.asset}/resume-{same[:16]}"

    def stored_score(self, name: str) -> pl.DataFrame:
        """(example_id, value) of a current score that met its gates; ``<score>.<column>`` for another of its columns.

        Raises:
            UnknownName: the plan lists no such score, or it has no such column; lists the known.
            NotReady: it was never computed, or is stale: it would come out anew.
            NotTrusted: it missed its gates.
        """
        base, subject = name.partition(".")[0], self.subject.subject
        planned = {dep.path[1]: dep for dep in self.stage.deps if dep.path[0] == "scores"}
        if base not in planned:
            raise UnknownName(f"score of {subject}'s plan", base, planned)
        asset = planned[base].asset(None)
        if self.warehouse.last_complete(asset) and asset not in (current := self._current(planned.values())):
            fresh = (
                ", ".join(sorted(name for name, stage in planned.items() if stage.asset(None) in current)) or "(none)"
            )
            raise NotReady(
                f"score {base} of {subject} is stale: the plan, the data or the code changed since it was computed; "
                f"current scores: {fresh}; to bring all up to date run: palimpsest audit {subject}"
            )
        return self.warehouse.latest_score(subject, name)  # type: ignore[no-any-return]

    def _current(self, stages: Iterable[Stage]) -> set[str]:
        """Assets, among these stages and everything upstream of them, that a run now would leave as they are."""
        declared = [stage.declaration for stage in _upstream_first(stages)]
        found = current_stages(declared, self.warehouse, request=self.request, outside=self.outside)
        return set(found)

    def why_not(self, stage: Stage) -> str:
        """Why a stage does not apply to this subject; empty when it does, and while it has not been made."""
        record = self.warehouse.last_complete(stage.asset(self.request)) or {}
        return str(record.get("warnings", {}).get(APPLIES, ""))

    def inputs(self) -> dict[str, str]:
        """Asset -> data version of every input.

        Raises:
            NotReady: an input has never been materialised.
        """
        names = [dep.asset(self.request) for dep in self.stage.deps]
        known: dict[str, str] = self.warehouse.versions(names)
        for name in names:
            if name not in known:
                raise NotReady(f"{name} has not been made yet; run: palimpsest audit {self.subject.subject}")
        return known

    def key(self) -> str:
        """Digest of all that the result depends on: asset, code version, configuration, inputs, request, outside data."""
        stage = self.stage
        return stage.declaration.key(
            self.request,
            inputs=self.inputs(),
            scope=scope_of(self.warehouse, self.request) if stage.per_request else "",
            outside=self.outside(stage.reads),
        )

    def outside(self, what: str) -> str:
        """Digest of the "data" or the given "model" as they are now; "" of nothing."""
        return self.workspace.outside(self.subject, what)

    def select_where(self, predicate: str) -> np.ndarray:
        """Ids of the training examples that an SQL predicate over data.examples selects."""
        return self.warehouse.select_where(self.subject.subject, predicate)  # type: ignore[no-any-return]

    def query(self, sql: str, params: Mapping[str, Any]) -> pl.DataFrame:
        """Rows of one SELECT over everything recorded so far, by any stage."""
        self.warehouse.publish()
        return self.warehouse.query(sql, params)  # type: ignore[no-any-return]

    def read(self, spec: TableSpec, partition: Partition | None = None) -> pl.DataFrame:
        return self.warehouse.read(spec, subject=self.subject.subject, partition=dict(partition or {}))  # type: ignore[no-any-return]


def _upstream_first(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and everything that they stand on, each once and after all that it reads."""
    found: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in found:
            for dep in stage.deps:
                visit(dep)
            found[stage] = None

    for stage in stages:
        visit(stage)
    return list(found)


def _join(asset: str, name: str) -> str:
    return f"{asset}/{name}" if name else f"{asset}/result"


def materialize(
    stage: Stage, workspace: Workspace, *, run_id: str, request: str | None, context: Any
) -> dict[str, Any]:
    """Bring one stage up to date and return its record, with ``unchanged`` telling whether there was work to do."""
    run = Run(stage, workspace, run_id, request, context)
    w = run.warehouse
    key = run.key()
    record = w.completed(run.asset, key)
    if record is not None:
        return {**record, "unchanged": True}
    started = time.perf_counter()
    output = stage.work(run)
    metadata = plain(output.metadata)
    pictures = {label: base64.b64encode(png).decode() for label, png in output.pictures.items()}
    shown = w.artifacts.save_json(f"{run.asset}/shown", {"metadata": metadata, "pictures": pictures})
    common = {"subject": run.subject.subject, "run_id": run_id, "config_digest": stage.config_digest}
    outputs: list[dict[str, Any]] = []
    written: list[tuple[TableSpec, pl.DataFrame, Partition]] = []
    with w.transaction() as t:  # all tables of a stage, or none
        for declared, frame, partition in output.tables:
            receipt = t.replace(declared, frame, partition=dict(partition), **common)
            spec = declared.table if isinstance(declared, ScoreSpec) else declared
            written.append((spec, frame, partition))
            outputs.append(
                {
                    "kind": "table",
                    "name": spec.full_name,
                    "partition": dict(partition),
                    "digest": receipt.content,
                    "receipt": receipt.digest,
                }
            )
    for artifact in output.artifacts:
        outputs.append({"kind": "artifact", "name": artifact.name, "digest": artifact.sha256})
    w.record_lineage(
        run.asset,
        parents=tuple(dep.asset(request) for dep in stage.deps),
        artifacts=(*output.artifacts, *output.volatile, *run.partial_work(), shown),
        key=key,
        members=output.members,
        **common,
    )
    record = {
        "key": key,
        "data_version": digest([(o["name"], o.get("partition"), o["digest"]) for o in outputs]),
        "outputs": outputs,
        "tables": [[spec.full_name, dict(partition)] for spec, _, partition in written],
        "rows": sum(frame.height for spec, frame, _ in written if spec.full_name == stage.tables[0].full_name),
        "contract": _check(run, written),
        "warnings": dict(output.warnings),
        "judged": plain(output.judged),
        "wall_s": round(time.perf_counter() - started, 3),
    }
    if record["contract"]["passed"]:
        w.complete(run.asset, key, record)
    workspace.publish()
    return {**record, "unchanged": False}


def to_asset(stage: Stage, partitions: dg.PartitionsDefinition | None) -> dg.AssetsDefinition:
    """The Dagster asset of a stage, with its blocking contract check and its warnings."""
    specs = (
        [dg.AssetCheckSpec("contract", asset=stage.key, blocking=True, description=_CONTRACT)] if stage.tables else []
    )
    specs += [
        dg.AssetCheckSpec(name, asset=stage.key, description="Not blocking.")
        for name in (*stage.warnings, *stage.judged)
    ]

    @dg.asset(
        key=stage.key,
        deps=[dep.key for dep in stage.deps],
        group_name=group_of(stage),
        description=_as_markdown(stage.doc),
        kinds=set(stage.kinds),
        owners=list(stage.subject.owners),
        code_version=f"{stage.version}.{stage.config_digest[:12]}",
        partitions_def=partitions if stage.per_request else None,
        pool=("gpu" if stage.subject.device == "cuda" else "cpu") if stage.trains else None,
        check_specs=specs,
        metadata={"dagster/column_schema": column_schema(stage.tables[0])} if stage.tables else None,
        tags={"palimpsest/subject": stage.subject.subject},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=stage.fresh_days))
        if stage.fresh_days
        else None,
        required_resource_keys={"workspace"},
        retry_policy=_AGAIN,
    )
    def _asset(context) -> dg.MaterializeResult:  # type: ignore[no-untyped-def, type-arg]  # Dagster reads this annotation at run time
        workspace: Workspace = context.resources.workspace
        request = context.partition_key if stage.per_request else None
        try:
            record = materialize(stage, workspace, run_id=context.run.run_id, request=request, context=context)
        except Exception as error:
            raise dg.Failure(in_words(error), allow_retries=may_pass(error)) from error
        state = UNCHANGED if record["unchanged"] else f"computed in {record['wall_s']:.1f} s"
        context.log.info(f"{stage.asset(request)}: {state}")
        return dg.MaterializeResult(
            metadata=_metadata(stage, workspace, record, request, state),
            data_version=dg.DataVersion(f"sha256:{record['data_version']}"),
            check_results=[*_contract(stage, record), *_warnings(stage, record), *_judged(stage, record)],
        )

    return _asset


# What may pass by itself (a killed process, a busy lock, a hiccup of the disk) is tried again; what is wrong stays wrong.
_AGAIN = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def group_of(stage: Stage) -> str:
    """The group in the UI: one a subject, and one for what is done for its forget requests. The stage is in the asset's key."""
    return stage.subject.subject.replace("-", "_") + ("_requests" if stage.per_request else "")


_CONTRACT = "Columns, types, ranges, keys, nulls and finiteness as the method declares them, by Great Expectations."


def _check(run: Run, tables: Sequence[tuple[TableSpec, pl.DataFrame, Partition]]) -> dict[str, Any]:
    """The generated Great Expectations suites on what was just stored, once a table; plain data for the record."""
    specs = {spec.full_name: spec for spec, _, _ in tables}
    reports = [
        run.warehouse.check(
            spec, subject=run.subject.subject, partitions=[p for s, _, p in tables if s.full_name == name]
        )
        for name, spec in specs.items()
    ]
    return {
        "passed": all(r.passed and not r.broken for r in reports),
        "broken": any(r.broken for r in reports),
        "expectations": sum(len(r.results) for r in reports),
        "problems": [str(line) for r in reports if r.broken or not r.passed for line in r.problems()],
    }


def _contract(stage: Stage, record: Mapping[str, Any]) -> list[dg.AssetCheckResult]:
    if not stage.tables:
        return []
    contract = record["contract"]
    return [
        dg.AssetCheckResult(
            check_name="contract",
            asset_key=stage.key,
            passed=contract["passed"],
            severity=dg.AssetCheckSeverity.ERROR,
            description="the check itself could not run" if contract["broken"] else None,
            metadata={"expectations": contract["expectations"], "problems": "\n".join(contract["problems"]) or "none"},
        )
    ]


def _warnings(stage: Stage, record: Mapping[str, Any]) -> list[dg.AssetCheckResult]:
    return [
        dg.AssetCheckResult(
            check_name=name,
            asset_key=stage.key,
            passed=not record["warnings"].get(name),
            severity=dg.AssetCheckSeverity.WARN,
            description=record["warnings"].get(name) or None,
        )
        for name in stage.warnings
    ]


def _judged(stage: Stage, record: Mapping[str, Any]) -> list[dg.AssetCheckResult]:
    out = []
    for name in stage.judged:
        told = record["judged"][name]
        verdict = Verdict(told["verdict"])
        wrong = verdict in (Verdict.FAIL, Verdict.BROKEN)
        out.append(
            dg.AssetCheckResult(
                check_name=name,
                asset_key=stage.key,
                passed=verdict is Verdict.PASS,
                severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
                description=told["sentence"],
                # Dagster shows the metadata of a check by name: these three are in the order of the alphabet
                metadata={"verdict": verdict.value, "what": told["what"] or "nothing", "why": told["sentence"]},
            )
        )
    return out


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The spec in Dagster's words: type, meaning, range and nullability of each column; the common columns come last."""
    common = [c for c in spec.all_columns if c not in spec.columns]
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                c.name,
                c.dtype,
                description=_as_markdown(" ".join(filter(None, [c.doc + f" [{c.unit}]" * bool(c.unit), c.direction]))),
                constraints=dg.TableColumnConstraints(
                    nullable=c.nullable,
                    other=[f"{sign} {bound:g}" for sign, bound in ((">=", c.low), ("<=", c.high)) if bound is not None],
                ),
            )
            for c in (*spec.columns, *common)
        ]
    )


def _as_markdown(text: str) -> str:
    """Text that the UI reads as Markdown: it takes <split> for a tag and drops it."""
    return html.escape(text, quote=False)


def _lineage(stage: Stage) -> dg.TableColumnLineage | None:
    """Every column of a table made from other tables comes from the join on the keys they share."""
    sources = [(dep.key, {c.name for t in dep.tables for c in t.columns}) for dep in stage.deps if dep.tables]
    if not stage.tables or not sources:
        return None
    columns = {c.name for c in stage.tables[0].columns}
    keys = set(stage.tables[0].key)

    def origins(name: str) -> list[dg.TableColumnDep]:
        wanted = {name} if name in keys else (keys | {name, "label"}) - {"seed"}
        return [
            dg.TableColumnDep(asset_key=key, column_name=column)
            for key, available in sources
            for column in sorted(wanted & available)
        ]

    return dg.TableColumnLineage({name: deps for name in sorted(columns) if (deps := origins(name))})


def _metadata(
    stage: Stage, workspace: Workspace, record: Mapping[str, Any], request: str | None, state: str
) -> dict[str, Any]:
    w = workspace.warehouse
    shown = w.artifacts.load_json(f"{stage.asset(request)}/shown")
    head = w.ledger.head()
    out: dict[str, Any] = {label: _metadata_value(value) for label, value in _leading(shown["metadata"]).items()}
    out |= {
        label: dg.MetadataValue.md(f"![{label}](data:image/png;base64,{png})")
        for label, png in shown["pictures"].items()
    }
    out |= {
        "state": state,
        "data_version": record["data_version"],
        "config_digest": stage.config_digest,
        "ledger_head": dg.MetadataValue.json({"seq": head.seq, "hash": head.hash}),
        "wall_s": dg.MetadataValue.float(float(record["wall_s"])),
    }
    if stage.tables:
        out["dagster/row_count"] = int(record["rows"])
        out["dagster/column_schema"] = column_schema(stage.tables[0])
        out["tables"] = ", ".join(name for name, _ in record["tables"])
        lineage = _lineage(stage)
        if lineage is not None:
            out["dagster/column_lineage"] = lineage
    return out


def _leading(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was stored by name with what a person came for in front: the verdict, and why."""
    first = ("verdict", "sentence", "why")
    return {name: row[name] for name in (*(n for n in first if n in row), *(n for n in row if n not in first))}


def _metadata_value(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return dg.MetadataValue.table([dg.TableRecord(_leading(row)) for row in value])
    if isinstance(value, (dict, list)):
        return dg.MetadataValue.json(value)
    return value


def top_rows(frame: pl.DataFrame, column: str, labels: pl.DataFrame, *, limit: int = 10) -> list[dict[str, Any]]:
    """The examples with the highest values: id, class and value, for the table in the UI."""
    top = frame.sort([column, "example_id"], descending=[True, False], nulls_last=True).head(limit)
    return top.select("example_id", column).join(labels, on="example_id", how="left").to_dicts()


def labels_of(data: ExampleSet) -> pl.DataFrame:
    """example_id beside what tells people which example is meant: ``label_name``, ``target``, or nothing, by the task."""
    shown = {name: column for name, column in data.task.shown(data).items() if name != "label"}
    return pl.DataFrame({"example_id": data.example_id, **shown})
