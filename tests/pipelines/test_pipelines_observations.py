"""What is recorded while Dagster's files stay open: each is opened once or twice, and all of it is there afterwards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from pipelines.home import dagster_home
from pipelines.observations import open_files


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each SQLite file was opened, by name; the instance is of an empty state folder."""
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    dagster_home()
    counted: Counter[str] = Counter()

    def connected(connection: object, _: object) -> None:
        counted[Path(connection.execute("PRAGMA database_list").fetchall()[0][2]).name] += 1  # type: ignore[attr-defined]

    event.listen(Engine, "connect", connected)
    yield counted  # type: ignore[misc]
    event.remove(Engine, "connect", connected)


def run(instance: dg.DagsterInstance) -> str:
    @dg.asset(check_specs=[dg.AssetCheckSpec("whole", asset="made")])
    def made():  # type: ignore[no-untyped-def]  # Dagster reads annotations, and these are text here
        return dg.MaterializeResult(metadata={"rows": 3}, check_results=[dg.AssetCheckResult(passed=True)])

    result = dg.materialize([made], instance=instance, run_config={"loggers": {"console": {"config": QUIET}}})
    assert result.success
    return result.run_id


QUIET = {"log_level": "CRITICAL"}


def test_a_file_stays_open_for_all_the_events_of_a_run_and_they_are_there_afterwards(
    tmp_path: Path, opened: Counter[str]
) -> None:
    with dg.DagsterInstance.get() as instance:
        with open_files(instance):
            opened.clear()
            first = run(instance)
            inside = dict(opened)
            assert instance.get_latest_materialization_event(dg.AssetKey("made")).run_id == first
        assert max(inside.values()) <= 2, "two where a file is looked at while it is open"
        assert {"index.db", "runs.db", f"{first}.db"} <= set(inside)
        assert not list(tmp_path.rglob("*.db-wal")), "nothing is left in a log that a copy of the files would miss"
        opened.clear()
        second = run(instance)  # as it was: the block leaves nothing behind
        assert opened["index.db"] > 10
    with dg.DagsterInstance.get() as instance:
        for name in (first, second):
            assert instance.get_run_by_id(name).status is dg.DagsterRunStatus.SUCCESS
            kinds = {entry.dagster_event.event_type.name for entry in instance.all_logs(name) if entry.dagster_event}
            assert {"ASSET_MATERIALIZATION", "RUN_SUCCESS"} <= kinds


def test_what_a_run_raises_leaves_the_files_closed(tmp_path: Path, opened: Counter[str]) -> None:
    with dg.DagsterInstance.get() as instance:
        with pytest.raises(ZeroDivisionError), open_files(instance):
            run(instance)
            raise ZeroDivisionError
        assert not list(tmp_path.rglob("*.db-wal"))
        assert not {"_connect", "has_table"} & set(vars(instance.event_log_storage))


def test_a_storage_that_is_not_sqlite_is_left_as_it_is() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        before = set(vars(instance.event_log_storage))
        with open_files(instance):
            assert set(vars(instance.event_log_storage)) == before
            run(instance)
