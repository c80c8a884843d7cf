"""A stage as Dagster shows it: the asset, its checks, its metadata, the schema and lineage of its columns.

What a stage does stands in ``assets.stage``; nothing is computed here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from assets.current import UNCHANGED
from assets.stage import SHOWN, Stage, materialize
from assets.workspace import Workspace
from contracts.errors import in_words, may_pass
from contracts.tables import TableSpec
from contracts.verdicts import Verdict


def key_of(stage: Stage) -> dg.AssetKey:
    """Its asset key: (subject, stage, name)."""
    return dg.AssetKey([stage.subject.subject, *stage.path])


def to_asset(stage: Stage, partitions: dg.PartitionsDefinition | None) -> dg.AssetsDefinition:
    """The Dagster asset of a stage, with its blocking contract check and its warnings."""
    specs = (
        [dg.AssetCheckSpec("contract", asset=key_of(stage), blocking=True, description=_CONTRACT)]
        if stage.tables
        else []
    )
    specs += [
        dg.AssetCheckSpec(name, asset=key_of(stage), description="Not blocking.")
        for name in (*stage.warnings, *stage.judged)
    ]

    @dg.asset(
        key=key_of(stage),
        deps=[key_of(dep) for dep in stage.deps],
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
    )
    def _asset(context) -> dg.MaterializeResult:  # type: ignore[no-untyped-def, type-arg]  # Dagster reads this annotation at run time
        workspace: Workspace = context.resources.workspace
        request = context.partition_key if stage.per_request else None
        try:
            record = materialize(stage, workspace, run_id=context.run.run_id, request=request, context=context)
        except Exception as error:
            failure = dg.Failure(in_words(error), allow_retries=False)
            if not may_pass(error):
                raise failure from error
            failure.__cause__ = error
            raise dg.RetryRequested(_AGAIN.max_retries, _AGAIN.calculate_delay(context.retry_number + 1)) from failure
        state = UNCHANGED if record["unchanged"] else f"computed in {record['wall_s']:.1f} s"
        context.log.info(f"{stage.asset(request)}: {state}")
        return dg.MaterializeResult(
            metadata=_metadata(stage, workspace, record, request, state),
            data_version=dg.DataVersion(f"sha256:{record['data_version']}"),
            check_results=[*_contract(stage, record), *_warnings(stage, record), *_judged(stage, record)],
        )

    return _asset


# What may pass by itself (a killed process, a busy lock, a hiccup of the disk) is tried again; what is wrong stays
# wrong. It is asked for case by case: given to the asset as its policy, Dagster would also start a stage again that
# somebody has interrupted, and neither Ctrl-C nor the UI's "terminate" would end a run.
_AGAIN = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def group_of(stage: Stage) -> str:
    """The group in the UI: one a subject, and one for what is done for its forget requests. The stage is in the asset's
    key."""
    return stage.subject.subject.replace("-", "_") + ("_requests" if stage.per_request else "")


_CONTRACT = "Columns, types, ranges, keys, nulls and finiteness as the method declares them, by Great Expectations."


def _contract(stage: Stage, record: Mapping[str, Any]) -> list[dg.AssetCheckResult]:
    if not stage.tables:
        return []
    contract = record["contract"]
    return [
        dg.AssetCheckResult(
            check_name="contract",
            asset_key=key_of(stage),
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
            asset_key=key_of(stage),
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
                asset_key=key_of(stage),
                passed=verdict is Verdict.PASS,
                severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
                description=told["sentence"],
                # Dagster shows the metadata of a check by name: these three are in the order of the alphabet
                metadata={"verdict": verdict.value, "what": told["what"] or "nothing", "why": told["sentence"]},
            )
        )
    return out


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The spec in Dagster's words: type, meaning, range and nullability of each column; the common columns come
    last."""
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
    sources = [(key_of(dep), {c.name for t in dep.tables for c in t.columns}) for dep in stage.deps if dep.tables]
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
    shown = w.artifacts.load_json(f"{stage.asset(request)}/{SHOWN}")
    head = record["head"]
    out: dict[str, Any] = {label: _metadata_value(value) for label, value in _leading(shown["metadata"]).items()}
    out |= {
        label: dg.MetadataValue.md(f"![{label}](data:image/png;base64,{png})")
        for label, png in shown["pictures"].items()
        if stage.subject.previews or label not in shown.get("of_data", ())
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
