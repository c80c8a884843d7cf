"""OpenLineage events of a run: for every stage that it worked on START and COMPLETE or FAIL, with what was read and
made.

    configured   as OpenLineage's own client is: OPENLINEAGE_URL, OPENLINEAGE_CONFIG or OPENLINEAGE__TRANSPORT__*; where
                 none of them is set, nothing is sent
    job          namespace "palimpsest", name "digits.scores.el2n"
    data set     namespace "palimpsest", name "digits/scores/el2n" (of a request "digits/request_audits/r1/findings");
                 outputs with the schema of their table, the number of rows and the version of the data
    run          an id made from the Dagster run and the stage: sending an event twice is one event

Events are made from what Dagster and the warehouse have recorded, after the run: a server that is slow or gone delays
no stage. They hold names, sizes, digests and times; no content, no owner, no text of an error.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterEventType

from contracts import schema
from contracts.errors import InvalidInput

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

    from warehouse import Warehouse

NAMESPACE = "palimpsest"
PRODUCER = "urn:palimpsest:openlineage:v1"
_RUNS = uuid.UUID("6f5f2c1e-31c8-5d0c-9a53-7d3f0a0d9b1e")
_SETTINGS = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_KINDS = {
    DagsterEventType.STEP_START,
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.ASSET_MATERIALIZATION,
}


def configured() -> bool:
    """Whether events are wanted."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    return any(os.environ.get(name) for name in _SETTINGS) or any(
        name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ
    )


def emit(instance: dg.DagsterInstance, w: Warehouse, run_id: str, *, subject: str, request: str | None) -> list[str]:
    """Send the events of a run that has ended; a sentence for what could not be sent.

    Raises:
        InvalidInput: events are wanted, and the client is not installed.
    """
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        raise InvalidInput(
            "OpenLineage is configured and its client is not installed: pip install 'palimpsest-audit[operations]'"
        ) from None
    sent = 0
    try:
        client = OpenLineageClient()
        for event in events(instance, w, run_id, subject=subject, request=request):
            client.emit(event)
            sent += 1
        client.close()
    except Exception as error:  # a transport of somebody's own may raise anything, and lineage is no part of the audit
        return [f"OpenLineage took {sent} events of run {run_id[:8]} and then failed: {type(error).__name__}"]
    return []


def events(
    instance: dg.DagsterInstance, w: Warehouse, run_id: str, *, subject: str, request: str | None
) -> Iterator[RunEvent]:
    """The events of a run, in the order in which things happened."""
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.generated.job_type_job import JobTypeJobFacet

    states = {
        DagsterEventType.STEP_START: RunState.START,
        DagsterEventType.STEP_SUCCESS: RunState.COMPLETE,
        DagsterEventType.STEP_FAILURE: RunState.FAIL,
    }
    edges = w.read(schema.EDGES, subject=subject)
    log = instance.all_logs(run_id, of_type=_KINDS)
    made = {
        entry.step_key: entry.asset_materialization
        for entry in log
        if entry.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION
    }
    for entry in log:
        if entry.dagster_event_type not in states or not entry.step_key:
            continue
        asset = _asset(str(entry.step_key), request)
        state = states[entry.dagster_event_type]
        materialization = made.get(entry.step_key)
        # a step that failed has made nothing
        done = state is RunState.COMPLETE and materialization is not None
        parents = sorted(edges.filter(edges["child"] == asset)["parent"].to_list())
        yield RunEvent(
            eventType=state,
            eventTime=datetime.fromtimestamp(entry.timestamp, UTC).isoformat(),
            run=Run(runId=str(uuid.uuid5(_RUNS, f"{run_id}/{entry.step_key}"))),
            job=Job(
                namespace=NAMESPACE,
                name=str(entry.step_key).replace("__", "."),
                facets={"jobType": JobTypeJobFacet(processingType="BATCH", integration="PALIMPSEST", jobType="STAGE")},
            ),
            inputs=[_input(parent) for parent in parents],
            outputs=[_output(asset, materialization)] if done else [],
            producer=PRODUCER,
        )


def _asset(step: str, request: str | None) -> str:
    """The name in ledger and lineage of a step: ``digits__scores__el2n``."""
    subject, stage, name = step.split("__", 2)
    return "/".join([subject, stage, *([request] if request else []), name])


def _input(name: str) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset

    return InputDataset(namespace=NAMESPACE, name=name)


def _output(name: str, materialization: Any) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet
    from openlineage.client.generated.schema_dataset import SchemaDatasetFacet, SchemaDatasetFacetFields

    said = materialization.metadata
    facets: dict[str, Any] = {}
    if "data_version" in said:
        facets["version"] = DatasetVersionDatasetFacet(datasetVersion=str(said["data_version"].value))
    if "dagster/column_schema" in said:
        columns = said["dagster/column_schema"].value.columns
        facets["schema"] = SchemaDatasetFacet(
            fields=[SchemaDatasetFacetFields(name=c.name, type=c.type) for c in columns]
        )
    counted: dict[str, Any] = {}
    if "dagster/row_count" in said:
        counted["outputStatistics"] = OutputStatisticsOutputDatasetFacet(rowCount=int(said["dagster/row_count"].value))
    return OutputDataset(namespace=NAMESPACE, name=name, facets=facets, outputFacets=counted)
