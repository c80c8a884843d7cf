"""What Dagster records of work done outside its own processes: runs of the command line under the job that they are of,
and of stages that were checked and left as they are an observation each, without a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import dagster as dg
from dagster import AssetKey, DagsterInstance
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
from dagster._core.storage.runs.sqlite import SqliteRunStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import Connection, Engine

from assets.current import UNCHANGED, Declaration, Record

LOCATION, REPOSITORY = "pipelines.definitions", "__repository__"  # as "dagster dev -m pipelines.definitions" names them


@contextmanager
def filed_under(instance: DagsterInstance, job: str) -> Iterator[None]:
    """Runs made in the block name the code location that their job is of: without it the UI lists them under no job and
    leaves them out of the timeline. In-process execution takes no such argument, so the instance adds it."""
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), REPOSITORY), job)
    create = instance.create_run_for_job
    instance.create_run_for_job = partial(create, remote_job_origin=origin)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del instance.create_run_for_job  # type: ignore[method-assign]


def asset_key(stage: Declaration) -> AssetKey:
    return AssetKey([stage.subject, *stage.path])


def observe(instance: DagsterInstance, stages: Mapping[Declaration, Record], *, request: str | None) -> None:
    """Report each stage as observed and unchanged, with the data version that it has.

    A stage that is overdue after some days also has its last materialization reported again, as of now: it was audited
    anew and came out the same, and Dagster's freshness policies count nothing but materializations.
    """
    for stage, record in stages.items():
        instance.report_runless_asset_event(
            dg.AssetObservation(
                asset_key=asset_key(stage),
                partition=request if stage.per_request else None,
                metadata={"state": UNCHANGED, "data_version": str(record["data_version"])},
            )
        )
        if stage.fresh_days is not None:
            _confirm(instance, asset_key(stage))


def _confirm(instance: DagsterInstance, key: AssetKey) -> None:
    last = instance.get_latest_materialization_event(key)
    if last is not None and (made := last.asset_materialization) is not None:
        state: dict[str, Any] = {"state": dg.MetadataValue.text(UNCHANGED)}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=key,
                description=made.description,
                metadata={**made.metadata, **state},
                partition=made.partition,
                tags=made.tags,
            )
        )


def unknown_to(instance: DagsterInstance, stages: Iterable[Declaration], *, request: str | None) -> set[Declaration]:
    """Stages that this instance holds no materialization of: its storage is younger than the results, or was wiped."""
    stages = list(stages)
    whole = {asset_key(stage): stage for stage in stages if not stage.per_request}
    records = instance.get_asset_records(list(whole)) if whole else ()
    known = {r.asset_entry.asset_key for r in records if r.asset_entry.last_materialization is not None}
    found = {stage for key, stage in whole.items() if key not in known}
    return found | {
        stage
        for stage in stages
        if stage.per_request and request not in instance.get_materialized_partitions(asset_key(stage))
    }


@contextmanager
def open_files(instance: DagsterInstance) -> Iterator[None]:
    """The instance's SQLite files stay open for the block, in which many events are recorded.

    Dagster makes an engine for every event, which asks the file anew what it can do, compiles its statements anew, and
    closes it: several times the work of the event itself, and when the last connection closes, SQLite moves its log
    into the file and syncs both. Here an engine serves a file for the block, that of a run until the next run's is
    opened. Within the block a commit is not synced either: a power failure may lose the last events of a run, never the
    file (SQLite's WAL mode with synchronous = NORMAL), and the results are not there but in the warehouse. Other
    storages than SQLite's are left as they are.
    """
    log, runs = instance.event_log_storage, instance.run_storage
    if not (isinstance(log, SqliteEventLogStorage) and isinstance(runs, SqliteRunStorage)):
        yield
        return
    engines: dict[str, Engine] = {}
    shared = {runs._conn_string, log.conn_string_for_shard(INDEX_SHARD_NAME)}

    def engine_of(url: str) -> Engine:
        if url not in engines:
            if url not in shared:
                close(set(engines) - shared)
            engines[url] = create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
            event.listen(engines[url], "connect", _unsynced)
        return engines[url]

    def close(urls: set[str]) -> None:
        for url in urls:
            engines.pop(url).dispose()

    @contextmanager
    def connected(shard: str) -> Iterator[Connection]:
        with log._db_lock:
            engine = engine_of(log.conn_string_for_shard(shard))
            if shard not in log._initialized_dbs:
                log._initdb(engine)
                log._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def has_table(name: str) -> bool:
        return inspect(engine_of(log.conn_string_for_shard(INDEX_SHARD_NAME))).has_table(name)

    with ExitStack() as stack:
        stack.callback(lambda: close(set(engines)))
        for storage, name, kept in (
            (log, "_connect", connected),
            (log, "has_table", has_table),
            (runs, "connect", lambda: engine_of(runs._conn_string).begin()),
        ):
            setattr(storage, name, kept)
            stack.callback(delattr, storage, name)
        yield


def _unsynced(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
