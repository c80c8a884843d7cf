"""The chain: whatever is done to it is found, and what was lost is named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from warehouse_helpers import COMMON, EL2N, score_frame

from contracts.digests import canonical_json, digest
from contracts.errors import IntegrityError
from warehouse import Head, Limits, Warehouse, chain


@pytest.fixture
def written(w: Warehouse) -> Warehouse:
    with w.transaction() as t:
        for i in range(6):
            t.note("note", {"i": i, "text": "é'\"\n", "nested": {"b": [1, 2.5, None, True]}})
    return w


def tamper(w: Warehouse, *statements: str) -> None:
    con = duckdb.connect(str(w.folder / "palimpsest.duckdb"))
    for statement in statements:
        con.execute(statement)
    con.close()


def test_an_honest_chain_verifies_and_is_gapless(written: Warehouse) -> None:
    report = written.ledger.verify()
    assert report.ok and report.first_missing is None and report.head == written.ledger.head()
    rows = written.ledger.entries()
    assert rows["seq"].to_list() == list(range(1, report.num_entries + 1))
    previous = "0" * 64
    for row in rows.iter_rows(named=True):
        assert row["prev_hash"] == previous
        body = json.loads(row["body"])
        previous = digest({"seq": row["seq"], "prev_hash": previous, "kind": row["kind"], "body": body})
        assert row["hash"] == previous


@pytest.mark.promise("D7")
def test_order_comes_from_seq_not_from_the_clock(home: Path) -> None:
    start = datetime(2026, 3, 29, 0, 59, tzinfo=UTC)
    ticks = iter([start - timedelta(days=1), start + timedelta(days=365), start, start, start - timedelta(hours=1)] * 9)
    w = Warehouse.open(home, clock=lambda: next(ticks))
    heads = [w.ledger.append("note", {"i": i}) for i in range(4)]
    assert [h.seq for h in heads] == sorted(h.seq for h in heads) and w.ledger.verify().ok
    bodies = [json.loads(b) for b in w.ledger.entries(kind="note")["body"]]
    assert [b["i"] for b in bodies] == [0, 1, 2, 3]
    assert all(datetime.fromisoformat(b["at"]).utcoffset() == timedelta(0) for b in bodies)


@pytest.mark.parametrize(
    ("damage", "told", "missing"),
    [
        (
            "UPDATE ledger.entries SET body = replace(body::VARCHAR, '\"i\":3', '\"i\":4')::JSON WHERE seq = {n} - 2",
            "entry {m2} was changed",
            None,
        ),
        ("UPDATE ledger.entries SET kind = 'noted' WHERE seq = {n} - 2", "entry {m2} was changed", None),
        (
            "UPDATE ledger.entries SET hash = translate(hash, '0123456789abcdef', '123456789abcdef0') WHERE seq = {n} "
            "- 2",
            "entry {m2} was changed",
            None,
        ),
        ("DELETE FROM ledger.entries WHERE seq = {n} - 2", "entries {m2} to {m2} are missing", -2),
        (
            "UPDATE ledger.entries SET seq = CASE seq WHEN {n} - 2 THEN {n} - 3 ELSE {n} - 2 END WHERE seq IN ({n} - "
            "3, {n} - 2)",
            "entry {m2} was changed",
            None,
        ),
        (
            "INSERT INTO ledger.entries SELECT seq, prev_hash, hash, kind, body FROM ledger.entries WHERE seq = {n} - "
            "2",
            "entry {m2} is there twice",
            None,
        ),
        (
            "DELETE FROM ledger.entries WHERE seq > {n} - 2",
            "head mismatch: ledger.head knows entry {n}, the ledger ends at {m2}",
            -1,
        ),
        ("DELETE FROM ledger.entries", "head mismatch: ledger.head knows entry {n}, the ledger ends at 0", None),
    ],
    ids=["flip body", "flip kind", "flip hash", "delete", "swap", "insert", "truncate", "empty"],
)
@pytest.mark.promise("E5")
def test_every_change_is_found(written: Warehouse, damage: str, told: str, missing: int | None) -> None:
    n = written.ledger.head().seq
    tamper(written, damage.format(n=n))
    report = written.ledger.verify()
    assert any(told.format(n=n, m2=n - 2) in p for p in report.problems), report.problems
    if missing is not None:
        assert report.first_missing == n + missing


def rewritten(w: Warehouse, last: int) -> None:
    """A whole chain with fresh, fitting hashes: entries up to ``last``, the last one changed."""
    rows = w.ledger.entries()
    statements, previous = ["DELETE FROM ledger.entries"], Head()
    for seq, _, _, kind, text in rows.head(last).iter_rows():
        body = json.loads(text)
        if seq == last:
            body["i"] = 99
        new = Head(seq, chain.entry_hash(seq, previous.hash, kind, body))
        quoted = canonical_json(body).replace("'", "''")
        statements.append(
            f"INSERT INTO ledger.entries VALUES ({seq}, '{previous.hash}', '{new.hash}', '{kind}', '{quoted}')"
        )
        previous = new
    tamper(w, *statements)


@pytest.mark.promise("E5")
def test_a_replay_with_fresh_hashes_is_found_by_the_mirror_the_snapshot_and_any_noted_head(written: Warehouse) -> None:
    written.publish()
    noted = written.ledger.head()
    written.ledger.append("note", {"i": 6})
    rewritten(written, noted.seq)
    assert len(written.ledger.verify().problems) == 2  # the mirror, the snapshot
    chain.write_mirror(written.head_file, Head(noted.seq, written.ledger.entries()[-1, "hash"]))
    written.snapshot.unlink()
    assert written.ledger.verify().ok, "from inside, a consistent forgery cannot be told from the truth"
    report = written.ledger.verify(anchors=[noted])
    assert report.problems == (
        f"head mismatch: entry {noted.seq} is not the one that the given head {noted.seq} knows",
    )


@pytest.mark.promise("A8")
def test_a_lost_tail_stops_writing_until_it_is_on_record(home: Path, written: Warehouse) -> None:
    n = written.ledger.head().seq
    tamper(written, f"DELETE FROM ledger.entries WHERE seq > {n - 2}")
    for attempt in (lambda: written.replace(EL2N, score_frame([1]), **COMMON), written.publish):
        with pytest.raises(IntegrityError, match=f"head mismatch: .* knows entry {n}, the ledger ends at {n - 2}"):
            attempt()
    written.ledger.accept_loss("disk replaced, backup of Monday")
    assert written.replace(EL2N, score_frame([1]), **COMMON).changed
    body = json.loads(written.ledger.entries(kind="accepted_loss")[0, "body"])
    assert body["known_head"]["seq"] == n and body["left"] == n - 2 and "Monday" in body["reason"]
    assert written.ledger.verify().ok


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[1]", b'{"seq":1,"hash":"x","check":"y"}', b"\xff\xfe", b"[" * 9999]
)
def test_a_missing_or_damaged_mirror_is_found(written: Warehouse, content: bytes | None) -> None:
    if content is None:
        written.head_file.unlink()
    else:
        written.head_file.write_bytes(content)
    assert not written.ledger.verify().ok
    with pytest.raises(IntegrityError):
        written.ledger.append("note", {})
    written.ledger.accept_loss("mirror was damaged")
    assert written.ledger.verify().ok


@pytest.mark.promise("B1")
def test_one_bit_anywhere_in_the_mirror_is_found(written: Warehouse) -> None:
    good = written.head_file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        written.head_file.write_bytes(bytes(bad))
        if position == len(good) - 1:  # the line feed at the end is not part of what is said
            continue
        with pytest.raises(IntegrityError):
            chain.read_mirror(written.head_file)


def test_a_mirror_that_lags_is_in_order_and_catches_up(written: Warehouse) -> None:
    """The process died between commit and mirror."""
    behind = written.ledger.entries()[-2].row(0, named=True)
    chain.write_mirror(written.head_file, Head(behind["seq"], behind["hash"]))
    assert written.ledger.verify().ok
    head = written.ledger.append("note", {})
    assert chain.read_mirror(written.head_file) == head


@pytest.mark.promise("A8")
def test_a_restored_backup_is_noticed(home: Path, w: Warehouse) -> None:
    w.ledger.append("note", {"i": 0})
    backup = (w.folder / "palimpsest.duckdb").read_bytes()
    for i in range(3):
        w.ledger.append("note", {"i": i})
    n = w.ledger.head().seq
    (w.folder / "palimpsest.duckdb").write_bytes(backup)
    report = w.ledger.verify()
    assert report.first_missing == n - 2 and "head mismatch" in report.problems[0]


@pytest.mark.journey
def test_what_is_not_published_yet_is_no_loss(home: Path, w: Warehouse) -> None:
    """Another process looks while entries stand behind the snapshot, and while a writer is at work."""
    w.publish()
    w.ledger.append("note", {})
    seen = Warehouse.existing(home)
    assert seen.ledger.verify().ok and seen.ledger.verify().head == w.ledger.head()
    with w.transaction(), ThreadPoolExecutor(1) as another:
        report = another.submit(seen.ledger.verify).result()
        assert report.ok and report.head.seq < chain.read_mirror(w.head_file).seq
        later = Head(report.head.seq + 9, "0" * 64)
        assert not another.submit(seen.ledger.verify, anchors=[later]).result().ok
    tamper(w, "DELETE FROM ledger.entries WHERE seq > 1")
    assert not seen.ledger.verify().ok


def test_a_database_that_is_gone_is_not_silently_made_anew(home: Path, written: Warehouse) -> None:
    (written.folder / "palimpsest.duckdb").unlink()
    with pytest.raises(IntegrityError, match="is gone, but"):
        Warehouse.open(home, limits=Limits(threads=1))


def test_bodies_hold_no_examples_and_no_owners(w: Warehouse) -> None:
    from datetime import datetime as moment

    from contracts.requests import ForgetRequest

    request = ForgetRequest(
        request_id="r1",
        subject="digits",
        selector="ids",
        ids=(424242, 434343),
        received_at=moment(2026, 1, 1, tzinfo=UTC).isoformat(),
        due_at="2026-02-01T00:00:00+00:00",
    )
    w.requests.add(request, note="a note that names Ann Marker")
    text = "".join(w.ledger.entries()["body"])
    assert "424242" not in text and "434343" not in text and "Marker" not in text and request.digest() in text
