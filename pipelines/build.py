"""From a subject to Dagster definitions: assets with checks, two jobs, a schedule and a sensor."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
from dagster._utils.schedules import schedule_execution_time_iterator

from contracts.requests import CONCEPT, EDGE, OPEN, RequestState
from contracts.subject import Subject

if TYPE_CHECKING:
    from assets import Workspace
    from warehouse import Warehouse

REQUEST_TAG = "palimpsest/forget_request"
TO_RUN = (RequestState.VERIFIED, RequestState.SCOPED, RequestState.EXECUTED)  # an audited request waits for a person
MAX_RUNS = 3
WARN_DAYS = 7
DAY_S = 86_400
PRIORITY = "dagster/priority"  # of a queued run: the highest goes first, of equals the one that was queued first
LATE = "palimpsest/late"  # tag of a run: when the audit that it makes up for was due
LATE_AFTER = timedelta(hours=1)


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
        schedules.append(_audit_schedule(subject, audit))
    if per_request:
        forget = dg.define_asset_job(
            request_job_name(subject.subject),
            selection=dg.AssetSelection.assets(*per_request),
            description="One forget request: scope, unlearning jobs, attacks, verdict, report.",
            tags=tags,
        )
        jobs.append(forget)
        sensors += [_request_sensor(subject, forget, partitions), _failure_sensor(subject, forget)]
    return dg.Definitions(assets=[*static, *per_request], jobs=jobs, schedules=schedules, sensors=sensors)


def _audit_schedule(subject: Subject, job: dg.UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    cron = str(subject.schedule)

    @dg.schedule(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Repeats the audit, so that a certificate never outlives its evidence. Audits that were due while "
        "nothing ran are made up for by one, which is marked late.",
    )
    def _schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return audit_tick(cron, due=context.scheduled_execution_time, now=datetime.now(UTC))

    return _schedule


def audit_tick(cron: str, *, due: datetime, now: datetime) -> dg.RunRequest | dg.SkipReason:
    """What the schedule answers for the audit that was due at ``due``: Dagster asks for each one that was missed.

    Only the last of those that are due by ``now`` is run; one that is more than ``LATE_AFTER`` late carries when it was
    due in the tag :data:`LATE`.
    """
    following = next(
        at for at in schedule_execution_time_iterator(due.timestamp(), cron, "UTC", ascending=True) if at > due
    )
    if following <= now:
        return dg.SkipReason(f"missed; the audit that was due at {following.isoformat()} stands for this one too")
    late = {LATE: due.astimezone(UTC).isoformat()} if now - due > LATE_AFTER else {}
    return dg.RunRequest(run_key=due.astimezone(UTC).isoformat(), tags=late)


def _request_sensor(
    subject: Subject, job: dg.UnresolvedAssetJobDefinition, partitions: dg.DynamicPartitionsDefinition
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{request_job_name(subject.subject)}_sensor",
        job=job,
        minimum_interval_seconds=30,
        required_resource_keys={"workspace"},
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts a run for each verified forget request, and again after a failure, {MAX_RUNS} times in "
        f"all; warns {WARN_DAYS} days before one is due.",
    )
    def _sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        warehouse = context.resources.workspace.warehouse
        for line in overdue(warehouse, subject.subject, now=datetime.now(UTC)):
            context.log.warning(line)
        return request_tick(context.resources.workspace, subject.subject, partitions, instance=context.instance)

    return _sensor


def _failure_sensor(subject: Subject, job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name=f"{request_job_name(subject.subject)}_failed",
        monitored_jobs=[job],
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Puts a failed run on record with the forget request that it was for.",
    )
    def _sensor(context: dg.RunFailureSensorContext) -> None:
        from pipelines.home import state_home
        from warehouse import Warehouse

        request = context.dagster_run.tags.get(REQUEST_TAG)
        if request:
            note = f"run {context.dagster_run.run_id[:8]} failed: {failed_in(context)}"
            w = Warehouse.open(state_home())
            w.requests.note(request, note)
            w.publish()

    return _sensor


def failed_in(context: dg.RunFailureSensorContext) -> str:
    """Where a run failed and by what kind of error, for the register: not its text, which may quote an example and
    would stay when that is erased."""
    for event in context.get_step_failure_events():
        kind = said_of(event).partition(":")[0]
        told = f" ({kind})" if kind.isidentifier() else ""
        return f"{str(event.step_key).replace('__', '/')}{told}; the run's page in the Dagster UI says why"
    return context.failure_event.message or "no reason given"


def said_of(event: dg.DagsterEvent) -> str:
    """The error of a step that failed, as the stage said it."""
    data = event.step_failure_data
    said = data.user_failure_data.description if data.user_failure_data else data.error and data.error.message
    return (said or "no reason given").strip()


def deadline_class(due_at: datetime, *, now: datetime) -> int:
    """0 past its day, 1 due within ``WARN_DAYS`` days, 2 later."""
    left_s = (due_at - now).total_seconds()
    return 0 if left_s < 0 else 1 if left_s < DAY_S * WARN_DAYS else 2


def to_run(requests: pl.DataFrame, *, now: datetime) -> list[dict[str, Any]]:
    """The rows of ``Requests.list`` that wait for a run, with ``deadline_class``: by that class, then by receipt."""
    waiting = requests.filter(pl.col("state").is_in([state.value for state in TO_RUN])).iter_rows(named=True)
    classed = [{**row, "deadline_class": deadline_class(row["due_at"], now=now)} for row in waiting]
    return sorted(classed, key=lambda row: (row["deadline_class"], row["received_at"], row["request_id"]))


def request_tick(
    workspace: Workspace,
    subject: str,
    partitions: dg.DynamicPartitionsDefinition,
    *,
    instance: dg.DagsterInstance,
) -> dg.SensorResult | dg.SkipReason:
    """What the sensor answers: a partition and a run for each request that is verified or was left half-way, the most
    urgent first.

    A request with a run under way is left alone, one that failed is run again, ``MAX_RUNS`` times in all. One that
    names no training example is answered at once. Those that are new are put together (``assets.batch``): the first of
    a batch trains, one process at a time, and the others find its models.
    """
    from assets.batch import put_together
    from assets.request_rows import answer_unseen

    waiting, urgency, under_way, given_up, concepts = {}, {}, [], [], []
    for row in to_run(workspace.warehouse.requests.list(subject), now=datetime.now(UTC)):
        name = row["request_id"]
        if row["selector"] in (CONCEPT, EDGE):  # 'palimpsest request run' says what it lacks
            concepts.append(name)
            continue
        if row["num_examples"] == 0:
            answer_unseen(workspace.warehouse, name)
            continue
        runs = instance.get_runs(filters=dg.RunsFilter(tags={REQUEST_TAG: name}))
        if any(not run.is_finished for run in runs):
            under_way.append(name)
            continue
        failures = sum(run.is_failure for run in runs)
        if failures >= MAX_RUNS:
            given_up.append(name)
        else:
            waiting[name], urgency[name] = f"{name}-{len(runs)}", str(-row["deadline_class"])
    if not waiting:
        if concepts and not given_up:
            return dg.SkipReason(f"these name a concept or an edge, which no stage here removes: {', '.join(concepts)}")
        return dg.SkipReason(
            f"given up after {MAX_RUNS} failed runs: {', '.join(given_up)}; see 'palimpsest request show {subject} "
            f"ID', then 'palimpsest request run {subject} ID'"
            if given_up
            else f"under way: {', '.join(under_way)}"
            if under_way
            else "no verified forget request is waiting"
        )
    put_together(workspace.warehouse.requests, list(waiting), num_train=workspace.warehouse.num_training(subject))
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=key, partition_key=name, tags={REQUEST_TAG: name, PRIORITY: urgency[name]})
            for name, key in waiting.items()
        ],
        dynamic_partitions_requests=[partitions.build_add_request(list(waiting))],
    )


def overdue(warehouse: Warehouse, subject: str, *, now: datetime) -> list[str]:
    """A sentence for each open request that is due within ``WARN_DAYS`` days, or was."""
    still = warehouse.requests.list(subject).filter(pl.col("state").is_in([state.value for state in OPEN]))
    return [
        f"forget request {row['request_id']} is {row['state']} and "
        f"{'was' if row['due_at'] < now else 'is'} due on {row['due_at']:%Y-%m-%d}"
        for row in still.iter_rows(named=True)
        if row["due_at"] - now < timedelta(days=WARN_DAYS)
    ]
