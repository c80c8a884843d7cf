"""The state folder against itself: is everything that was recorded still there, and still what was recorded?

    ledger      its chain; that it contains the mirrored head, the snapshot's, those named by reports, and given ones
    tables      every partition against its last record, ``meta.*`` against the ledger, rows and tables on no record
    artefacts   manifest, content and the digest on record; files on no record
    reports     the head they name, the rows they repeat, the page against its JSON
    requests    register, events and ledger
    secrets     the salt against the ledger, the signing key against its public half
    snapshot    its SHA-256; the same as the tables, against the ledger inside it

What this can show: somebody who changes one of these without all the others is found. What it cannot: a folder that was
rewritten whole, reports included, is consistent. Then an anchor from outside decides: a head noted elsewhere
(``anchors``), or a copy of a report (:func:`verify_report`).

Nothing is created, migrated or repaired: a folder is looked at as it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from contracts.errors import ConfigError, IntegrityError, LockTimeout
from contracts.progress import Progress, silent
from warehouse import chain, publish, salt, signing, verify_database, verify_files
from warehouse.chain import Head
from warehouse.connection import Connection
from warehouse.filesums import FileSums
from warehouse.recorded import RESTORE, Problem
from warehouse.verify_database import Database
from warehouse.verify_files import Files

if TYPE_CHECKING:
    from warehouse.warehouse import Warehouse


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        head: the ledger's last entry; None when there is no ledger.
        checked: one sentence for each kind of thing that was checked, with how many.
        problems: what is wrong, each in a sentence with what to do about it.
        notes: what was not checked, or is worth knowing.
        is_empty: nothing was ever recorded.
        published_only: a writer was at work, so that the snapshot stands for the database.
    """

    head: Head | None
    checked: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    is_empty: bool = False
    published_only: bool = False

    @property
    def whole(self) -> bool:
        """Something is recorded, and all of it is as recorded: a folder without evidence is not evidence."""
        return not self.problems and not self.is_empty


def verify(w: Warehouse, *, anchors: Sequence[Head] = (), progress: Progress = silent) -> Verification:
    """Check everything in a state folder against everything else.

    While a writer is at work its database is left alone: the published snapshot stands for it, and artefacts, which may
    be newer than that, are compared with their manifests only.

    Args:
        w: the state folder, best from ``Warehouse.existing``, which leaves it as it lies.
        anchors: heads noted outside the folder that its ledger must contain.
        progress: called for every table and artefact.

    Raises:
        LockTimeout: a writer is at work and has not published anything yet.
    """
    problems: list[Problem] = []
    main, busy = _main(w, problems, progress)
    snapshot = _published(w, problems, progress)
    if busy is not None and snapshot is None:
        raise busy
    files = Files()
    if busy is not None:
        anchors = _published_of(anchors, snapshot, files)
        files.notes.append(
            f"{_WRITING} Artefacts were compared with their manifests only. Verify again when it has ended."
        )
    noted: list[chain.Anchor] = [(f"the given head {head.seq}", _always(head)) for head in anchors]
    if main is not None and snapshot is not None:
        noted.insert(0, ("the published snapshot", _always(snapshot.head)))
    if main is not None:
        noted.insert(0, ("ledger.head", lambda: chain.read_mirror(w.head_file)))
    readable = main or snapshot
    for database in filter(None, (main, snapshot)):
        _check_chain(problems, database, noted if database is readable else ())
    bound = next((db for db in (main, snapshot) if db is not None and db.binds and busy is None), None)
    verify_files.check_artifacts(files, w.artifacts, bound, progress)
    if bound is not None:
        verify_files.check_completions(files, bound)
        verify_files.check_reports(files, w.artifacts, bound)
    if readable is not None:
        _check_secrets(files, w, readable)
    problems += files.problems
    is_empty = not problems and not files.intact and not files.partial
    is_empty = is_empty and (readable is None or readable.recorded.is_empty)
    if problems and main is not None and _moved(w, main.head):
        files.notes.append("A run was writing meanwhile: verify again when it has ended.")
    return Verification(
        head=main.head if main else snapshot.head if snapshot and busy else None,
        checked=tuple(_counted(main, snapshot, files)),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(_notes(main, snapshot, files))),
        is_empty=is_empty,
        published_only=busy is not None,
    )


def verify_report(w: Warehouse, path: Path, *, anchors: Sequence[Head] = ()) -> Verification:
    """Check one report, or a copy of one kept anywhere, against the ledger of a state folder.

    Its SHA-256 must be that of a report on record (an earlier one counts: results are replaced, reports of them are not
    forged by that), and the ledger must contain the head that it names.

    Raises:
        ConfigError: there is no such file, or its name does not end like a report's.
        LockTimeout: a writer is at work and has not published anything yet.
    """
    if not path.is_file() or path.suffix not in (".json", ".html"):
        what = "is not the name of a report (.html or .json)" if path.is_file() else "does not exist, or is no file"
        raise ConfigError(f"REPORT {path} {what}; 'palimpsest report SUBJECT' says where a report is")
    problems: list[Problem] = []
    database, busy = _main(w, problems, silent, tables=False)
    database = database or _published(w, problems, silent, tables=False)
    if busy is not None and database is None:
        raise busy
    if database is None or not database.entries:
        nothing = Problem(
            f"Nothing is recorded in {w.home}, so {path} cannot be checked against it.",
            "Set PALIMPSEST_HOME to the state folder in which the report was made.",
        )
        return Verification(head=None, checked=(), problems=(*problems, nothing))
    data, files = path.read_bytes(), Files()
    noted: list[chain.Anchor] = []
    if busy is None:
        noted.append(("ledger.head", lambda: chain.read_mirror(w.head_file)))
    else:
        anchors = _published_of(anchors, database, files)
        files.notes.append(_WRITING)
    _check_chain(problems, database, noted + [(f"the given head {head.seq}", _always(head)) for head in anchors])
    report = verify_files.as_report(data) if path.suffix == ".json" else None
    found = verify_files.head_in(report) if report else None
    heads = ([found] if found else []) if path.suffix == ".json" else verify_files.heads_on(data)
    checked = [_ledger_counted(database)]
    sha256 = hashlib.sha256(data).hexdigest()
    known = database.recorded.digests.get(sha256)
    if known or heads:
        verify_files.check_head(files, database, str(path), heads)
    if known:
        seq, name = known[-1]
        checked.append(f"Report: {path} is, byte for byte, {name} as entry {seq} of the ledger recorded it.")
        now = database.recorded.artifacts[name]
        if now.sha256 != sha256:
            files.notes.append(f"A later report has replaced it: {name} as of entry {now.seq}.")
    elif not heads:
        files.wrong(
            f"{path} is not a report of this program: it names no ledger head, and its SHA-256 is on no record.",
            _ORIGINAL,
        )
    else:
        said = (
            "it was changed since it was made"
            if not files.problems
            else "it was changed, or made in another state folder"
        )
        files.wrong(
            f"{path} is not a report on record: no entry of the ledger names its SHA-256 ({sha256}); {said}.", _ORIGINAL
        )
    return Verification(
        head=database.head,
        checked=tuple(checked),
        problems=tuple(dict.fromkeys([*problems, *files.problems])),
        notes=tuple(dict.fromkeys([*database.notes, *files.notes])),
    )


_ORIGINAL = "Do not rely on it; 'palimpsest report SUBJECT' says where the report on record is."


_WRITING = "A run is writing: its database was left alone, and the published snapshot stands for it."


def _published_of(anchors: Sequence[Head], snapshot: Database | None, files: Files) -> list[Head]:
    """The anchors that a snapshot can hold; later ones are noted as not looked for."""
    assert snapshot is not None
    later = [head for head in anchors if head.seq > snapshot.head.seq]
    files.notes += [f"The given head {head.seq} is later than the snapshot and was not looked for." for head in later]
    return [head for head in anchors if head not in later]


def _always(head: Head) -> Callable[[], Head]:
    return lambda: head


# ------------------------------------------------------------------ secrets


def _check_secrets(files: Files, w: Warehouse, db: Database) -> None:
    """The salt is the one in use, and the signing key is whole; what this user may not read is noted."""
    certificates = any(artifact.name.endswith(".dsse.json") for artifact in files.intact)
    checks: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("salt", lambda: salt.problem(w.folder / salt.KIND, db.recorded.salt, used=False), salt.WITHOUT),
        ("signing key", lambda: signing.problem(w.home, has_signed=certificates), signing.RENEW),
    )
    for what, look, todo in checks:
        try:
            found = look()
        except OSError as error:
            files.notes.append(f"The {what} was not checked: {error.strerror}.")
            continue
        if found:
            files.wrong(f"{found[:1].upper()}{found[1:]}.", f"{todo}.")


# ---------------------------------------------------------------- databases


def _main(
    w: Warehouse, problems: list[Problem], progress: Progress, *, tables: bool = True
) -> tuple[Database | None, LockTimeout | None]:
    """The writer's file, and who is writing it; None when there is none, when its ledger cannot be read, with a problem
    if there should be one, or while it is being written."""
    if w.database.exists():
        try:
            return _look(w.looking, w.database, Database(), problems, progress, tables=tables), None
        except LockTimeout as busy:
            return None, busy
    if w.head_file.exists() or w.snapshot.exists() or (w.artifacts.root.exists() and w.artifacts.names()):
        known = ""
        with suppress(IntegrityError, OSError):
            head = chain.read_mirror(w.head_file)
            known = f"; ledger.head knows {head.seq} entries of its ledger" if head else ""
        problems.append(Problem(f"The database {w.database} is gone{known}.", RESTORE))
    return None, None


def _published(w: Warehouse, problems: list[Problem], progress: Progress, *, tables: bool = True) -> Database | None:
    """The published snapshot; None when there is none or its ledger cannot be read."""
    if not w.snapshot.exists():
        return None
    mine: list[Problem] = []
    try:
        publish.refuse_damaged(w.snapshot, FileSums())  # whatever is known of it: it is read
    except IntegrityError as error:
        mine.append(Problem(f"{str(error)[:1].upper()}{str(error)[1:]}.", ""))
    found = _look(
        w.looking_at_snapshot, w.snapshot, Database(name="Published snapshot: "), mine, progress, tables=tables
    )
    again = (
        "Run 'palimpsest audit SUBJECT', which publishes what the warehouse holds; if it still says so, or other "
        "problems are listed, restore the state folder from a backup."
    )
    problems += [Problem(problem.sentence, again) for problem in mine]
    return found


def _look(
    opened: Callable[[], AbstractContextManager[Connection]],
    path: Path,
    db: Database,
    problems: list[Problem],
    progress: Progress,
    *,
    tables: bool,
) -> Database | None:
    try:
        with opened() as con:
            verify_database.read_ledger(db, con)
            if tables:
                verify_database.check_declared(db, con)
                verify_database.gather(db, con)
                verify_database.check_tables(db, con, progress)
                verify_database.check_facts(db, con)
    except (IntegrityError, OSError, MemoryError) as error:
        db.wrong(f"The database cannot be read to its end: {error}.")
    except duckdb.Error as error:
        db.wrong(
            f"The database {path} lacks something that this program laid out: {str(error).strip().splitlines()[0]}."
        )
    problems += db.problems
    return db if db.entries or not db.problems else None


def _check_chain(problems: list[Problem], db: Database, anchors: Sequence[chain.Anchor]) -> None:
    report = chain.examine(db.entries, anchors)
    missing = f" The first entry that is missing is {report.first_missing}." if report.first_missing else ""
    problems += [Problem(f"{db.name}Ledger: {problem}.{missing}", RESTORE) for problem in report.problems]


def _moved(w: Warehouse, head: Head) -> bool:
    with suppress(IntegrityError, OSError, LockTimeout, duckdb.Error), w.looking() as con:
        return chain.head_of(con) != head
    return False


# -------------------------------------------------------------------- words


def _ledger_counted(db: Database) -> str:
    return f"Ledger: {len(db.entries):,} entries, up to {db.head}."


def _counted(main: Database | None, snapshot: Database | None, files: Files) -> Iterator[str]:
    if main is not None:
        yield _ledger_counted(main)
        yield f"Tables: {main.partitions:,} partitions with {main.rows:,} rows."
    yield f"Artefacts: {len(files.intact) + files.partial:,} intact, {files.size_bytes / 1e6:,.1f} MB read."
    yield f"Reports: {files.reports:,}, by the ledger head that each names."
    if main is not None:
        yield f"Forget requests: {len(main.recorded.requests):,}."
    if snapshot is not None:
        yield (
            f"Published snapshot: up to entry {snapshot.head.seq}, {snapshot.partitions:,} partitions with "
            f"{snapshot.rows:,} rows."
        )


def _notes(main: Database | None, snapshot: Database | None, files: Files) -> Iterator[str]:
    for database in filter(None, (main, snapshot)):
        yield from database.notes
    yield from files.notes
    if files.partial:
        yield (
            f"{files.partial} checkpoints that a training would resume from are on record nowhere (it has not ended, "
            "or an earlier version of this program left them); they were compared with their manifests only."
        )
    if main is not None:
        for seq, reason in main.recorded.losses:
            yield f"Entry {seq} of the ledger accepts a loss of entries: {reason}"
        if snapshot is None and main.recorded.stages:
            yield "There is no published snapshot to check."
        elif snapshot is not None and snapshot.head.seq < main.head.seq:
            yield f"The published snapshot is older than the warehouse: entry {snapshot.head.seq} of {main.head.seq}."
