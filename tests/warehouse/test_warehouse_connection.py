"""What one session leaves in an instance of DuckDB, the next does not find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from warehouse import connection
from warehouse.connection import Limits, opened

LIMITS = Limits(memory="80MB", threads=1)


@pytest.fixture(autouse=True)
def _none_is_kept() -> Iterator[None]:
    connection._idle.clear()
    yield
    connection._idle.clear()


def started(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """Every instance that is started from now on."""
    found: list[Limits] = []
    start = connection._started
    monkeypatch.setattr(connection, "_started", lambda limits: (found.append(limits), start(limits))[1])
    return found


def setting(con: connection.Connection, name: str) -> object:
    return con.execute(f"SELECT current_setting('{name}')").fetchall()[0][0]


def test_one_instance_serves_all_who_come_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started(monkeypatch)
    for number in range(3):
        with opened(tmp_path / f"{number}.duckdb", limits=LIMITS) as con:
            con.execute("CREATE TABLE own AS SELECT 1 AS x")
            con.execute("CREATE TEMP TABLE passing AS SELECT 2 AS x")
            con.execute("SET TimeZone = 'Asia/Tokyo'")
            tables = con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            assert sorted(tables) == [("own",), ("passing",)]
    assert found == [LIMITS]
    with opened(tmp_path / "0.duckdb", limits=LIMITS, read_only=True) as con:
        assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("own",)]
        assert (setting(con, "TimeZone"), setting(con, "preserve_insertion_order")) == ("UTC", True)
    assert found == [LIMITS]


def test_whoever_comes_meanwhile_or_with_other_limits_has_one_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = started(monkeypatch)
    with opened(tmp_path / "a.duckdb", limits=LIMITS), opened(tmp_path / "b.duckdb", limits=LIMITS) as other:
        assert other.execute("SELECT count(*) FROM duckdb_databases() WHERE path LIKE '%.duckdb'").fetchall() == [(1,)]
    more = Limits(memory="90MB", threads=1)
    with opened(tmp_path / "a.duckdb", limits=more) as con:
        assert setting(con, "memory_limit") == "85.8 MiB"
    assert found == [LIMITS, LIMITS, more]


def test_a_failed_session_leaves_no_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started(monkeypatch)
    with pytest.raises(duckdb.CatalogException), opened(tmp_path / "a.duckdb", limits=LIMITS) as con:
        con.execute("CREATE TABLE own AS SELECT 1 AS x")
        con.execute("SELECT * FROM absent")
    with opened(tmp_path / "a.duckdb", limits=LIMITS) as con:
        assert con.execute("SELECT x FROM own").fetchall() == [(1,)]
    assert found == [LIMITS, LIMITS]


def test_what_was_spilled_is_gone_and_so_is_the_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, spill = started(monkeypatch), tmp_path / "spill"
    limits = Limits(memory="40MB", threads=1, spill=spill)
    with opened(tmp_path / "a.duckdb", limits=limits) as con:
        con.execute("CREATE TEMP TABLE big AS SELECT range AS x, md5(range::VARCHAR) AS y FROM range(1500000)")
        assert any(spill.rglob("*.tmp"))
    assert not any(spill.iterdir())
    with opened(tmp_path / "a.duckdb", limits=limits) as con:
        folder = str(setting(con, "temp_directory"))
        assert Path(folder).parent == spill and Path(folder).is_dir()
    assert found == [limits, limits]
    assert not any(spill.iterdir())
