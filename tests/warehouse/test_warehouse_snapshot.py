"""A snapshot that is damaged between two publishings is noticed by whoever reads it, and published anew."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from warehouse_helpers import COMMON, EL2N, score_frame

from contracts.errors import IntegrityError, NotReady
from warehouse import Warehouse, connection, filesums, lock, publish
from warehouse.filesums import FileSums
from warehouse.verify import verify

COUNT = "SELECT count(*) AS n FROM scores.el2n"


@pytest.fixture
def published(w: Warehouse) -> Warehouse:
    w.replace(EL2N, score_frame([1, 2, 3]), **COMMON)
    assert w.publish()
    return w


def spoil(path: Path, at: int = -4096) -> None:
    """Another byte in place, with the time of the last change set back."""
    before = path.stat()
    with path.open("r+b") as file:
        place = file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


READERS: dict[str, Callable[[Warehouse], object]] = {
    "sql": lambda w: w.query(COUNT)["n"].to_list(),
    "trace": lambda w: w.trace(2).height,
    "requests": lambda w: w.requests.list().height,
    "tables": lambda w: w.read(EL2N, subject=COMMON["subject"]).height,
}


@pytest.mark.promise("B1")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("at", [9, -4096], ids=["header", "end"])
def test_whoever_reads_a_damaged_snapshot_gets_a_fresh_one_and_it_is_said(
    published: Warehouse, reader: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    read, looking = READERS[reader], Warehouse.existing(published.home)
    expected, before = read(looking), published.snapshot.read_bytes()
    spoil(published.snapshot, at)
    assert any("snapshot" in p.sentence and "SHA-256" in p.sentence for p in verify(looking).problems)
    with caplog.at_level(logging.WARNING, logger="palimpsest"):
        assert read(looking) == expected
    assert "is damaged" in caplog.text and "published anew" in caplog.text
    assert len(published.snapshot.read_bytes()) == len(before) and verify(looking).whole
    caplog.clear()
    assert read(looking) == expected and not caplog.text


@pytest.mark.promise("B1")
def test_where_nothing_can_be_written_a_damaged_snapshot_is_one_clear_message(
    published: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = Warehouse.existing(published.home)
    spoil(published.snapshot)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(lock, "exclusive", read_only)
        for read in READERS.values():
            with pytest.raises(IntegrityError, match=r"read\.duckdb is damaged.*cannot be replaced.*palimpsest audit"):
                read(looking)
    with published.locked(), pytest.raises(IntegrityError, match="A run is writing"):
        monkeypatch.setattr(looking, "_lock_timeout_s", 0.01)
        _in_thread(lambda: looking.query(COUNT))
    published.database.write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match=r"read\.duckdb is damaged.*palimpsest\.duckdb is damaged.*backup"):
        looking.query(COUNT)
    published.database.unlink()
    with pytest.raises(IntegrityError, match="is gone as well"):
        looking.query(COUNT)
    assert not published.database.exists(), "looking makes no database"
    published.snapshot.unlink()
    with pytest.raises(NotReady, match="palimpsest audit"):
        looking.query(COUNT)


def _in_thread(work: Callable[[], object]) -> None:
    """The lock knows threads: another one waits for it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


@pytest.mark.promise("B1")
def test_who_publishes_replaces_a_damaged_snapshot_although_nothing_changed(published: Warehouse) -> None:
    assert published.publish() is False
    spoil(published.snapshot)
    assert published.publish() is True and published.publish() is False
    publish.sums_file(published.snapshot).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"sums\.json is damaged"):
        publish.refuse_damaged(published.snapshot, FileSums())
    assert published.publish() is True
    publish.sums_file(published.snapshot).unlink()  # as an earlier version left it
    publish.refuse_damaged(published.snapshot, FileSums())
    assert published.publish() is True and publish.is_recorded(published.snapshot)


def test_a_snapshot_is_read_once_for_its_sum_not_at_every_reading(
    published: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesums, "_tick", lambda _: -1)
    read: list[Path] = []
    look = filesums.fsio.sha256_of
    monkeypatch.setattr(filesums.fsio, "sha256_of", lambda path: (read.append(path), look(path))[1])
    assert published.publish() is False and read == [published.snapshot], "and it is written down"
    for _ in range(3):
        Warehouse.existing(published.home).query(COUNT)
    assert read == [published.snapshot]


def test_between_record_and_rename_the_old_snapshot_is_whole_and_a_reader_between_two_publishings_is_not_misled(
    published: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def struck(name: str, *_: object) -> None:
        if name == "publish.after_record":
            raise Killed

    looking = Warehouse.existing(published.home)
    for rows in range(1, 4):  # killed there again and again
        published.replace(EL2N, score_frame(list(range(rows))), **COMMON)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(publish, "fault", struck)
            published.publish()
        publish.refuse_damaged(published.snapshot, FileSums())
        assert looking.query(COUNT)["n"].to_list() == [3]
    assert published.publish() and looking.query(COUNT)["n"].to_list() == [3]

    class Slow(FileSums):
        """Two publishings happen between this one's look at the file and its look at the record."""

        done = False

        def sha256(self, file: Path) -> str:
            found = super().sha256(file)
            if not Slow.done:
                Slow.done = True
                for rows in range(10, 10 + publish._KEPT + 2):
                    published.replace(EL2N, score_frame(list(range(rows))), **COMMON)
                    published.publish()
            return found

    publish.refuse_damaged(published.snapshot, Slow())
    assert Slow.done


def test_damage_that_only_the_database_library_notices_is_healed_as_well(
    published: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system told nothing: the sum that is known is that of the undamaged file."""
    monkeypatch.setattr(filesums, "_tick", lambda _: -1)
    looking, real = Warehouse.existing(published.home), connection.door
    looking.query(COUNT)
    spoil(published.snapshot)
    good = next(iter(looking.sums._all().values()))
    looking.sums._all()[filesums._said(published.snapshot)[0]] = good
    calls: list[int] = []

    @contextmanager
    def door(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 1:
            raise IntegrityError("a checksum of a block does not fit")
        with real(*args, **kwargs) as con:
            yield con

    monkeypatch.setattr(connection, "door", door)
    assert looking.query(COUNT)["n"].to_list() == [3] and len(calls) == 2
    assert verify(looking).whole
