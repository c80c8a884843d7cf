"""One mechanism for every asset: a stage knows its inputs by digest, does its work once, records it, and says so.

    key = digest(asset, code version, configuration, data versions of its inputs, request)

The same key with its results still in place, undamaged, is a no-op. Otherwise the work runs, its tables replace their
partitions, its artifacts are written before the ledger says the stage is complete, and the snapshot is published.
``assets.dagster_view`` shows a stage as a Dagster asset.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets.current import Declaration, current_stages, scope_of
from assets.workspace import Workspace
from contracts.digests import digest, plain
from contracts.errors import NotReady, UnknownName
from contracts.methods import ScoreSpec
from contracts.progress import Progress
from contracts.stores import CheckpointStore
from contracts.subject import Subject
from contracts.tables import TableSpec
from contracts.verdicts import Verdict
from sources.example_set import ExampleSet
from warehouse import Artifact

if TYPE_CHECKING:
    from reports import AuditReport

Partition = Mapping[str, Any]
SHOWN = "shown"  # the artefact of what the Dagster UI shows of a stage
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
    """What the work of a stage gives back.

    Attributes:
        tables: (spec, frame, partition) to replace.
        artifacts: bulk results already written through the artifact store.
        volatile: stored things that differ between equal runs (times); no part of the data version.
        besides: SHA-256 by name of what the results stand for and do not hold (the edges of a graph); a part of the
            data version, so that what is made of these results is made anew when it changes.
        members: ids of the examples that the results were made from.
        metadata: shown in the Dagster UI: label -> number, text, or a list of flat rows (a table). Nothing of an
            example but its id, unless the plan has ``previews``: no text, label, name or column of the data.
        pictures: label -> PNG bytes, shown in the Dagster UI and on reports; of examples where the plan has previews.
        of_data: labels of pictures that show words of the data, such as names of classes: on reports, and in Dagster
            where the plan has previews.
        warnings: name of a non-blocking check -> sentence; an empty sentence is a pass.
        judged: name of a non-blocking check -> what it says.
    """

    tables: Sequence[tuple[TableSpec | ScoreSpec, pl.DataFrame, Partition]] = ()
    artifacts: Sequence[Artifact] = ()
    volatile: Sequence[Artifact] = ()
    besides: Mapping[str, str] = field(default_factory=dict)
    members: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    of_data: frozenset[str] = frozenset()
    warnings: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, Checked] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One asset of a subject.

    Attributes:
        path: (stage, name); the asset key is (subject, stage, name).
        version: raise it when the code changes what it computes.
        config: everything besides the inputs that the result depends on.
        reads: "data", or the "model" or "references" that were given: its key covers the digest of these, which lie
            outside the warehouse and are asked for at every run.
        deps: stages it reads.
        tables: the tables it writes, for the schema in the UI and the blocking check.
        warnings, judged: names of its non-blocking checks.
        per_request: partitioned by forget request.
        trains: takes the training pool (one at a time).
        fresh_days: the asset is stale after so many days.
        report: of a report: its facts, from what is stored now.
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
    report: Callable[[Run], AuditReport] | None = None

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

    def pictures_of(self, dep: Stage) -> dict[str, bytes]:
        """Label -> PNG of what an input stage drew (digest verified)."""
        shown = self.warehouse.artifacts.load_json(_join(dep.asset(self.request), SHOWN))
        return {label: base64.b64decode(png) for label, png in shown["pictures"].items()}

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

    def key(self, outside: str) -> str:
        """Digest of all that the result depends on: asset, code version, configuration, inputs, request, outside data.

        Args:
            outside: of :meth:`outside`, which may take long and is asked before the warehouse is.
        """
        stage = self.stage
        with self.warehouse.reading():
            return stage.declaration.key(
                self.request,
                inputs=self.inputs(),
                scope=scope_of(self.warehouse, self.request) if stage.per_request else "",
                outside=outside,
            )

    def outside(self, what: str) -> str:
        """Digest of the "data", or of the given "model" or "references", as they are now; "" of nothing."""
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
    """Bring one stage up to date and return its record, with ``unchanged`` telling whether there was work to do, and
    ``head``, the ledger's head once it was done."""
    run = Run(stage, workspace, run_id, request, context)
    w, outside = run.warehouse, run.outside(stage.reads)
    with w.reading():
        key, last, head = run.key(outside), w.last_complete(run.asset), w.ledger.head()
    if last is not None and last["key"] == key:
        record, trouble = w.completions([run.asset]).get(run.asset, ({}, "its record is gone"))
        if not trouble and record["key"] == key:
            return {**record, "unchanged": True, "head": head}
        if context is not None:
            context.log.warning(f"{run.asset} is made anew: {trouble}")
    started = time.perf_counter()
    output = stage.work(run)
    metadata = plain(output.metadata)
    pictures = {label: base64.b64encode(png).decode() for label, png in output.pictures.items()}
    shown = w.artifacts.save_json(
        _join(run.asset, SHOWN), {"metadata": metadata, "pictures": pictures, "of_data": sorted(output.of_data)}
    )
    common = {"subject": run.subject.subject, "run_id": run_id, "config_digest": stage.config_digest}
    artifacts = (*output.artifacts, *output.volatile, *run.partial_work(), shown)
    outputs: list[dict[str, Any]] = []
    written: list[tuple[TableSpec, pl.DataFrame, Partition]] = []
    with w.transaction() as t:  # all tables of a stage and their lineage, or nothing; without tables it is done with it
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
        w.record_lineage(
            run.asset,
            parents=tuple(dep.asset(request) for dep in stage.deps),
            artifacts=artifacts,
            key=key,
            members=output.members,
            within=t,
            **common,
        )
        for artifact in output.artifacts:
            outputs.append({"kind": "artifact", "name": artifact.name, "digest": artifact.sha256})
        version: list[Any] = [(o["name"], o.get("partition"), o["digest"]) for o in outputs]
        record = {
            "key": key,
            "data_version": digest([*version, dict(output.besides)] if output.besides else version),
            "outputs": outputs,
            "tables": [[spec.full_name, dict(partition)] for spec, _, partition in written],
            "rows": sum(frame.height for spec, frame, _ in written if spec.full_name == stage.tables[0].full_name),
            "warnings": dict(output.warnings),
            "judged": plain(output.judged),
        }
        if not written:
            record |= {"contract": _check(run, ()), "wall_s": round(time.perf_counter() - started, 3)}
            w.complete(run.asset, key, record, within=t)
    head = t.head
    if written:  # the suites read what was stored, and take their time
        record |= {"contract": _check(run, written), "wall_s": round(time.perf_counter() - started, 3)}
        if record["contract"]["passed"]:
            head = w.complete(run.asset, key, record)
    workspace.publish()
    return {**record, "unchanged": False, "head": head}


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


def top_rows(run: Run, frame: pl.DataFrame, column: str, *, limit: int = 10) -> list[dict[str, Any]]:
    """The examples with the highest values, for the table in the UI: id and value, and the class where the plan has
    previews."""
    top = frame.sort([column, "example_id"], descending=[True, False], nulls_last=True).head(limit)
    rows = top.select("example_id", column)
    return (rows.join(labels_of(run.data), on="example_id", how="left") if run.subject.previews else rows).to_dicts()


def labels_of(data: ExampleSet) -> pl.DataFrame:
    """example_id beside what tells people which example is meant: ``label_name``, ``target``, or nothing, by the
    task."""
    shown = {name: column for name, column in data.task.shown(data).items() if name != "label"}
    return pl.DataFrame({"example_id": data.example_id, **shown})
