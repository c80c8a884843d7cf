"""Operation in Dagster: what follows a run, the reaper, the daily upkeep. One of each, whatever the subjects."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from pipelines.reaper import PID

SUBJECT_TAG = "palimpsest/subject"
PARTITION_TAG = "dagster/partition"
UPKEEP = "0 5 * * *"  # UTC, before the audits


def operations_definitions() -> dg.Definitions:
    """Loads without a state folder; nothing is read before a tick."""
    return dg.Definitions(
        jobs=[upkeep_job],
        schedules=[upkeep_schedule],
        sensors=[reaper_sensor, after_run_sensor, after_failure_sensor],
    )


@dg.op(
    name="keep_up", description="Expiring certificates, due requests, what was left behind, anchors, old event logs."
)
def _upkeep(context) -> None:  # type: ignore[no-untyped-def]  # Dagster reads the annotation at run time
    from pipelines.home import state_home
    from pipelines.operations.upkeep import upkeep

    for line in upkeep(state_home(), context.instance, now=datetime.now(UTC)):
        context.log.warning(line)


@dg.job(name="upkeep", description="What an installation needs once a day, besides its audits.")
def upkeep_job() -> None:
    _upkeep()


upkeep_schedule = dg.ScheduleDefinition(
    name="upkeep_schedule",
    job=upkeep_job,
    cron_schedule=UPKEEP,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a day, before the audits.",
)


@dg.sensor(
    name="reaper",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process died, and jobs that nobody waits for any more.",
)
def reaper_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from pipelines.home import state_home
    from pipelines.operations.alerts import send
    from pipelines.operations.config import operations_of
    from pipelines.operations.upkeep import left_behind

    home, now = state_home(), datetime.now(UTC)
    alerts = left_behind(home, context.instance, now=now)
    if not alerts:
        return dg.SkipReason("every run and job that is under way is alive")
    for problem in send(alerts, operations_of(home).alerts, now=now):
        context.log.warning(problem)
    return dg.SkipReason("; ".join(alert.sentence for alert in alerts))


def _followed(name: str, status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    """The sensor that follows every run that ends so."""

    @dg.run_status_sensor(
        name=name,
        run_status=status,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Lineage events, drift, the ledger's head noted outside, alerts, as operations.yaml says.",
    )
    def _sensor(context: dg.RunStatusSensorContext) -> None:
        _follow(context, succeeded=status is dg.DagsterRunStatus.SUCCESS)

    return _sensor


def _follow(context: dg.RunStatusSensorContext, *, succeeded: bool) -> None:
    from pipelines.home import state_home
    from pipelines.operations.after_run import after_run
    from pipelines.subjects import load_subject

    run, home = context.dagster_run, state_home()
    subject = run.tags.get(SUBJECT_TAG)
    if subject is None or PID in run.tags:  # the command line has done it for its own runs
        return
    for line in after_run(
        home,
        load_subject(subject, home),
        instance=context.instance,
        run_id=run.run_id,
        succeeded=succeeded,
        request=run.tags.get(PARTITION_TAG),
    ):
        context.log.warning(line)


after_run_sensor = _followed("after_run", dg.DagsterRunStatus.SUCCESS)
after_failure_sensor = _followed("after_failure", dg.DagsterRunStatus.FAILURE)
