"""Event logs of runs that ended long ago, without what only helped while they ran.

    goes     lines that were logged, starts and ends of steps and resources, inputs and outputs, compute logs
    stays    materialisations (with the ledger's head in them), observations, checks, failures of steps, starts and ends
             of runs, and every kind of event that is not listed here

The freed pages of a SQLite log are overwritten and given back to the disk: an old log is not kept in its free space.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.events import DagsterEventType as Kind
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from sqlalchemy import func, or_, select

DISPENSABLE = frozenset(
    {
        Kind.ENGINE_EVENT,
        Kind.LOGS_CAPTURED,
        Kind.STEP_START,
        Kind.STEP_INPUT,
        Kind.STEP_OUTPUT,
        Kind.STEP_SUCCESS,
        Kind.STEP_WORKER_STARTING,
        Kind.STEP_WORKER_STARTED,
        Kind.RESOURCE_INIT_STARTED,
        Kind.RESOURCE_INIT_SUCCESS,
        Kind.LOADED_INPUT,
        Kind.HANDLED_OUTPUT,
        Kind.OBJECT_STORE_OPERATION,
        Kind.ASSET_MATERIALIZATION_PLANNED,
        Kind.ASSET_CHECK_EVALUATION_PLANNED,
    }
)
ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Pruned:
    """Runs that were looked at, and events that went."""

    runs: int
    events: int


def prune(instance: dg.DagsterInstance, *, before: datetime) -> Pruned:
    """Prune the logs of all runs that ended before a time; those that are under way are left alone.

    Pruning again finds nothing to do.
    """
    storage = instance.event_log_storage
    inner = getattr(storage, "event_log_storage", storage)
    inner = getattr(inner, "_storage", inner)
    if not isinstance(inner, SqlEventLogStorage):
        return Pruned(0, 0)
    runs = events = 0
    cursor = None
    while True:
        records = instance.get_run_records(
            RunsFilter(statuses=ENDED, updated_before=before), limit=_AT_ONCE, cursor=cursor
        )
        for record in records:
            run_id = record.dagster_run.run_id
            runs, events = runs + 1, events + _prune_run(inner, run_id)
            instance.compute_log_manager.delete_logs(prefix=[run_id])
        if len(records) < _AT_ONCE:
            return Pruned(runs, events)
        cursor = records[-1].dagster_run.run_id


def _prune_run(storage: SqlEventLogStorage, run_id: str) -> int:
    kinds = [kind.value for kind in DISPENSABLE]
    which = (Events.c.run_id == run_id) & or_(
        Events.c.dagster_event_type.is_(None), Events.c.dagster_event_type.in_(kinds)
    )
    with storage.run_connection(run_id) as connection:
        count = connection.execute(select(func.count()).select_from(Events).where(which)).scalar_one()
        if not count:
            return 0
        lite = connection.dialect.name == "sqlite"
        if lite:
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        connection.execute(Events.delete().where(which))
    if lite:
        with storage.run_connection(run_id) as connection:
            connection.connection.driver_connection.isolation_level = None  # VACUUM stands in no transaction
            connection.exec_driver_sql("VACUUM")
    return int(count)
