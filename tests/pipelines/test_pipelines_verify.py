"""``palimpsest verify``: evidence that was tampered with is found, whatever of it was changed along; untouched it is
whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from recorded_state import PLAN, run
from typer.testing import CliRunner

from contracts.digests import canonical_json
from contracts.errors import InvalidInput
from contracts.subject import Subject
from pipelines.cli.app import app
from warehouse import Warehouse, chain
from warehouse.verify import verify

pytestmark = pytest.mark.journey


@pytest.fixture
def home(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(recorded, tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    return home


def asked(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def sql(home: Path, *statements: str, snapshot: bool = False) -> None:
    name = "palimpsest.read.duckdb" if snapshot else "palimpsest.duckdb"
    with duckdb.connect(str(home / "warehouse" / name)) as con:
        for statement in statements:
            con.execute(statement)


def content_of(home: Path, name: str) -> Path:
    """The file that holds an artefact's bytes."""
    (found,) = (home / "artifacts").glob(f"{name}.{'[0-9a-f]' * 16}.*")
    return found


def rewritten(home: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Put other bytes in the place of an artefact, with a manifest that fits them."""
    store = Warehouse.existing(home).artifacts
    if name.endswith((".html", ".json")):
        store.save_bytes(name, change(store.load_bytes(name)))
    else:
        arrays, meta = store.load(name)
        store.save(name, {k: v + 1 for k, v in arrays.items()}, meta)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


def test_what_is_as_recorded_is_whole(home: Path) -> None:
    code, said = asked()
    assert code == 0 and "WHOLE" in said and "Tables:" in said and "Forget requests: 1" in said
    head = said.rpartition("--head ")[2]
    assert asked("--head", head)[0] == 0
    page = home / "artifacts/wine/reports/audit.json"
    assert asked(str(page))[0] == 0


def test_results_that_were_replaced_by_a_run_are_whole(home: Path) -> None:
    changed = Subject.from_mapping(PLAN | {"early": {"seeds": 2, "epoch": 1}, "thresholds": {"max_auc": 0.7}})
    run(home, changed, run_id="r2").publish()
    assert asked()[0] == 0


TAMPERINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a verdict changed by UPDATE": (
        lambda h: sql(h, "UPDATE audits.findings SET verdict = 'pass'", "UPDATE audits.findings SET value = 0.5"),
        "audits.findings",
    ),
    "and its partition's record": (
        lambda h: sql(
            h,
            "UPDATE audits.findings SET value = 0.5",
            "UPDATE meta.partitions SET digest = 'x', content = 'x' WHERE name = 'audits.findings'",
        ),
        "audits.findings",
    ),
    "a score changed": (
        lambda h: sql(h, "UPDATE scores.el2n SET el2n = el2n / 2 WHERE example_id % 7 = 0"),
        "scores.el2n",
    ),
    "a row added": (
        lambda h: sql(h, "INSERT INTO scores.el2n SELECT * REPLACE (999999 AS example_id) FROM scores.el2n LIMIT 1"),
        "scores.el2n",
    ),
    "a row added for another subject": (
        lambda h: sql(h, "INSERT INTO scores.el2n SELECT * REPLACE ('other' AS subject) FROM scores.el2n LIMIT 1"),
        "no entry of the ledger recorded",
    ),
    "a row deleted": (
        lambda h: sql(h, "DELETE FROM scores.el2n WHERE example_id = (SELECT min(example_id) FROM scores.el2n)"),
        "scores.el2n",
    ),
    "a table dropped": (lambda h: sql(h, "DROP TABLE scores.el2n CASCADE"), "scores.el2n"),
    "a request closed in the register": (lambda h: sql(h, "UPDATE requests.register SET state = 'closed'"), "r-1"),
    "a request that asks for another row": (
        lambda h: sql(h, "UPDATE requests.register SET request = replace(request::VARCHAR, '[3]', '[4]')::JSON"),
        "r-1",
    ),
    "the last entry of the ledger cut off": (
        lambda h: sql(h, "DELETE FROM ledger.entries WHERE seq = (SELECT max(seq) FROM ledger.entries)"),
        "Ledger",
    ),
    "an entry changed": (lambda h: sql(h, "UPDATE ledger.entries SET body = '{}' WHERE seq = 5"), "entry 5"),
    "a page edited": (lambda h: _edit(h, "wine/reports/audit.html"), "audit.html"),
    "a report edited": (lambda h: _edit(h, "wine/reports/audit.json"), "audit.json"),
    "a page edited with its manifest": (
        lambda h: rewritten(h, "wine/reports/audit.html", lambda b: b.replace(b"wine", b"wIne", 1)),
        "audit.html",
    ),
    "a report edited with its manifest": (
        lambda h: rewritten(h, "wine/reports/audit.json", lambda b: b.replace(b'"pass"', b'"fail"')),
        "audit.json",
    ),
    "weights changed with their manifest": (
        lambda h: rewritten(h, "wine/models/target/weights", lambda b: b),
        "wine/models/target/weights",
    ),
    "weights put in the place of others": (lambda h: _swap(h), "wine/models/"),
    "weights removed": (lambda h: content_of(h, "wine/models/target/weights").unlink(), "wine/models/target/weights"),
    "a file put among the artefacts": (lambda h: (h / "artifacts/wine/extra.bin").write_bytes(b"x"), "extra.bin"),
    "the snapshot edited": (
        lambda h: sql(h, "UPDATE audits.findings SET value = 0.5", snapshot=True),
        "Published snapshot",
    ),
    "the database gone": (lambda h: (h / "warehouse/palimpsest.duckdb").unlink(), "is gone"),
}


def _edit(home: Path, name: str) -> None:
    path = home / "artifacts" / name
    data = path.read_bytes().replace(b"wine", b"wIne", 1)
    path.chmod(0o644)
    path.write_bytes(data)


def _swap(home: Path) -> None:
    """The early model's arrays under the audited model's name, each with a manifest that is right for it."""
    store = Warehouse.existing(home).artifacts
    arrays, meta = store.load("wine/models/early/seed0")
    store.save("wine/models/target/weights", arrays, meta)


@pytest.mark.parametrize("what", TAMPERINGS)
@pytest.mark.promise("E5")
def test_tampering_is_found_and_said(home: Path, what: str) -> None:
    tamper, named = TAMPERINGS[what]
    tamper(home)
    code, said = asked()
    assert code == 1 and "NOT WHOLE" in said and named in said, said
    assert "Next:" in said and "Traceback" not in said


@pytest.mark.promise("B1")
def test_one_bit_in_any_artefact_is_found(recorded: Path, tmp_path: Path) -> None:
    names = Warehouse.existing(recorded).artifacts.names()
    kinds = {n.rpartition("/")[2].partition(".")[0] if "seed" not in n else "seed" for n in names}
    assert {"weights", "readings", "result", "audit"} <= kinds
    home = Path(shutil.copytree(recorded, tmp_path / "bits"))
    for name in names:
        path = content_of(home, name)
        before = path.read_bytes()
        flip(path)
        w = Warehouse.existing(home)
        with pytest.raises(Exception, match="damaged"):
            w.artifacts.verified(name)
        path.write_bytes(before)
    for name in names:
        flip(content_of(home, name))
    found = verify(Warehouse.existing(home))
    assert not found.whole and sum("Artefact" in p.sentence for p in found.problems) >= len(names)


def _forged(home: Path) -> None:
    """A ledger rewritten whole: other rows, fresh hashes, the head beside it and a snapshot to match."""
    with duckdb.connect(str(home / "warehouse/palimpsest.duckdb")) as con:
        rows = con.execute("SELECT seq, kind, body FROM ledger.entries ORDER BY seq").fetchall()
        con.execute("DELETE FROM ledger.entries")
        head = chain.Head()
        for seq, kind, body in rows:
            facts = json.loads(body)
            facts["at"] = "2020-01-01T00:00:00+00:00"
            new = chain.entry_hash(seq, head.hash, kind, json.loads(canonical_json(facts)))
            con.execute(
                "INSERT INTO ledger.entries VALUES (?, ?, ?, ?, ?)", [seq, head.hash, new, kind, canonical_json(facts)]
            )
            head = chain.Head(seq, new)
    chain.write_mirror(home / "warehouse/ledger.head", head)
    (home / "warehouse/palimpsest.read.duckdb").unlink()
    Warehouse.open(home).publish()


@pytest.mark.promise("E5")
def test_a_ledger_rewritten_with_its_snapshot_is_found_by_reports_and_by_a_noted_head(
    home: Path, tmp_path: Path
) -> None:
    noted = asked()[1].rpartition("--head ")[2]
    outside = tmp_path / "kept-elsewhere.json"
    outside.write_bytes((home / "artifacts/wine/reports/audit.json").read_bytes())
    _forged(home)
    code, said = asked()
    assert code == 1 and "rewritten" in said, "the report in the folder names the head that was"
    code, said = asked("--head", noted)
    assert code == 1 and "the given head" in said
    code, said = asked(str(outside))
    assert code == 1 and "rewritten" in said


@pytest.mark.promise("A8")
def test_a_restored_backup_is_found_by_what_came_later(home: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.duckdb"
    shutil.copy(home / "warehouse/palimpsest.duckdb", backup)
    run(home, Subject.from_mapping(PLAN | {"early": {"seeds": 2, "epoch": 1}}), run_id="r2").publish()
    assert asked()[0] == 0
    shutil.copy(backup, home / "warehouse/palimpsest.duckdb")
    code, said = asked()
    assert code == 1 and "head mismatch" in said and "first entry that is missing" in said


def test_a_report_that_was_changed_or_never_made_is_refused(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "audit.html"
    page = (home / "artifacts/wine/reports/audit.html").read_bytes()
    copy.write_bytes(page)
    assert asked(str(copy))[0] == 0
    copy.write_bytes(page.replace(b"wine", b"beer"))
    code, said = asked(str(copy))
    assert code == 1 and "not a report on record" in said
    copy.write_bytes(b"<html></html>")
    assert asked(str(copy))[0] == 1
    for misuse in (
        [str(tmp_path / "missing.html")],
        ["--head", "nonsense"],
    ):  # ``main`` turns these into a sentence and exit 2
        assert isinstance(CliRunner().invoke(app, ["verify", *misuse]).exception, InvalidInput)


def test_an_empty_folder_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "nothing"))
    code, said = asked()
    assert code == 1 and "Nothing is recorded" in said and "WHOLE" not in said
    assert not (tmp_path / "nothing" / "warehouse" / "palimpsest.duckdb").exists(), "looking creates nothing"
