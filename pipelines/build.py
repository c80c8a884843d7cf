"""From a subject to Dagster definitions: assets with checks, two jobs, a schedule and a sensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from contracts.requests import RequestState
from contracts.subject import Subject

if TYPE_CHECKING:
    from assets import Workspace


def audit_job_name(subject: str) -> str:
    return f"audit_{subject.replace('-', '_')}"


def request_job_name(subject: str) -> str:
    return f"forget_{subject.replace('-', '_')}"


def request_partitions(subject: str) -> dg.DynamicPartitionsDefinition:
    """One partition a forget request."""
    return dg.DynamicPartitionsDefinition(name=f"{subject}_requests")


def subject_definitions(subject: Subject) -> dg.Definitions:
    """Everything Dagster needs for one subject. Reads no data, opens no warehouse, asks for no device."""
    from assets import subject_stages, to_asset  # with every method behind them

    partitions = request_partitions(subject.subject)
    stages = subject_stages(subject)
    pairs = [(stage, to_asset(stage, partitions)) for stage in stages]
    static = [asset for stage, asset in pairs if not stage.per_request]
    per_request = [asset for stage, asset in pairs if stage.per_request]
    tags = {"palimpsest/subject": subject.subject}
    audit = dg.define_asset_job(
        audit_job_name(subject.subject),
        selection=dg.AssetSelection.assets(*static),
        description=f"The whole audit of {subject.title or subject.subject}; what did not change is not recomputed.",
        tags=tags,
    )
    jobs, schedules, sensors = [audit], [], []
    if subject.schedule:
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{audit_job_name(subject.subject)}_schedule",
                job=audit,
                cron_schedule=subject.schedule,
                execution_timezone="UTC",
                description="Repeats the audit, so that a certificate never outlives its evidence.",
            )
        )
    if per_request:
        forget = dg.define_asset_job(
            request_job_name(subject.subject),
            selection=dg.AssetSelection.assets(*per_request),
            description="One forget request: scope, unlearning jobs, attacks, verdict, report.",
            tags=tags,
        )
        jobs.append(forget)
        sensors.append(_request_sensor(subject, forget, partitions))
    return dg.Definitions(assets=[*static, *per_request], jobs=jobs, schedules=schedules, sensors=sensors)


def _request_sensor(
    subject: Subject, job: dg.UnresolvedAssetJobDefinition, partitions: dg.DynamicPartitionsDefinition
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{request_job_name(subject.subject)}_sensor",
        job=job,
        minimum_interval_seconds=30,
        required_resource_keys={"workspace"},
        description="Starts a run for each verified forget request that has none yet.",
    )
    def _sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return request_tick(context.resources.workspace, subject.subject, partitions)

    return _sensor


def request_tick(
    workspace: Workspace, subject: str, partitions: dg.DynamicPartitionsDefinition
) -> dg.SensorResult | dg.SkipReason:
    """What the sensor answers: a partition and a run for each verified request. Asked again, the run key makes it a no-op."""
    requests = workspace.warehouse.requests.list(subject)
    waiting = [row["request_id"] for row in requests.iter_rows(named=True) if row["state"] == RequestState.VERIFIED]
    if not waiting:
        return dg.SkipReason("no verified forget request is waiting")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=name, partition_key=name, tags={"palimpsest/forget_request": name})
            for name in waiting
        ],
        dynamic_partitions_requests=[partitions.build_add_request(waiting)],
    )
