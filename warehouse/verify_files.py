"""Artefacts and reports against what the ledger and ``lineage.artifacts`` say of them.

Every file below ``home/artifacts`` is read: a manifest against itself, the content against the manifest, the manifest's
digest against the last record that names the artefact (so that a manifest rewritten along with its content is found).
Only checkpoints of a training that has not ended are on record nowhere; they are counted and compared with their
manifests.

A report is an artefact too, and remembers: the JSON names the ledger's head at its making, which the ledger must still
contain, and repeats rows of tables; the page names the same head and the SHA-256 of the JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from contracts.errors import IllegalName, IntegrityError, NotReady, UnsafeFile
from contracts.progress import Progress
from warehouse import fsio
from warehouse.artifacts import ERASED, Artifact, ArtifactStore
from warehouse.chain import Head, contained
from warehouse.recorded import RESTORE, Named, Problem, described
from warehouse.verify_database import REPORTED, Database
from warehouse.writer import part_text

MANIFEST = ".manifest.json"
REPORT = "palimpsest-audit/"
_PARTIAL = re.compile(r"/resume-[0-9a-f]+/")
_HEAD = re.compile(rb"\b([1-9][0-9]{0,17}):([0-9a-f]{64})\b")
_CONTENT = re.compile(r"\.([0-9a-f]{16})\.[a-z0-9]+$")


@dataclass(slots=True)
class Files:
    """What the artefacts are, and what is wrong with them.

    Attributes:
        intact: artefacts whose bytes are those of their last record.
        partial: checkpoints of trainings that have not ended.
    """

    intact: list[Artifact] = field(default_factory=list)
    partial: int = 0
    size_bytes: int = 0
    reports: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, sentence: str, todo: str = RESTORE) -> None:
        self.problems.append(Problem(sentence, todo))


def check_artifacts(files: Files, store: ArtifactStore, db: Database | None, progress: Progress) -> None:
    """Check everything that is stored, and look for what should be.

    Args:
        db: whose ledger and lineage bind them; None when no database can be read: only manifests are compared then.
    """
    last = _last_records(db)
    needed = _needed(db)
    stored = set(store.names()) if store.root.exists() else set()
    known: set[Path] = set()
    for done, name in enumerate(sorted(stored | needed)):
        progress(done, len(stored | needed), f"artefacts: {name}")
        record = last.get(name)
        try:
            found = store.verified(name)
        except NotReady:
            assert record is not None
            files.wrong(
                f"Artefact {name} is gone; entry {record.seq} of the ledger recorded it.", _remake(store, name, db)
            )
            continue
        except (IntegrityError, UnsafeFile, IllegalName, OSError) as error:
            files.wrong(f"Artefact {name}: {error}.", _remake(store, name, db))
            known.update(_files_of(store, name))
            continue
        known.update(_files_of(store, name))
        files.size_bytes += found.size_bytes
        if record is not None and record.sha256 != found.sha256:
            files.wrong(
                f"Artefact {name} is not the one that entry {record.seq} of the ledger recorded: its SHA-256 is "
                f"{found.sha256[:16]}..., recorded {record.sha256[:16]}... ({found.path}).",
                _remake(store, name, db),
            )
        elif record is not None or db is None:
            files.intact.append(found)
        elif _PARTIAL.search(name):
            files.partial += 1
        else:
            files.wrong(
                f"Artefact {name} is on record nowhere: a run that did not end left it, or somebody put it there.",
                _unrecorded(name),
            )
    for path in sorted(store.root.rglob(f"*{ERASED}")):
        try:
            store.erased(path.relative_to(store.root).as_posix().removesuffix(ERASED))
        except (IntegrityError, UnsafeFile, IllegalName, OSError) as error:
            files.wrong(f"{error}.")
    for path in _others(store, known):
        files.wrong(
            f"{path} belongs to no artefact: this program does not read it, and did not leave it there.",
            "Remove it if you know what it is.",
        )


def check_completions(files: Files, db: Database) -> None:
    """Each artefact's last record is that of the completion that names it, unless its stage did not end since."""
    for name, claimed in db.recorded.artifacts.items():
        row = db.lineage.get(name)
        stage = db.recorded.stages.get(claimed.asset)
        if row is not None and row.seq > claimed.seq and row.sha256 != claimed.sha256 and stage is not None:
            subject = claimed.asset.partition("/")[0]
            files.wrong(
                f"Artefact {name}: entry {row.seq} of the ledger replaced what {claimed.asset} was completed with "
                f"(entry {claimed.seq}), and the stage was not completed since: by a run that did not end, or past the "
                "pipeline.",
                f"Run 'palimpsest audit {subject}' to the end and verify again.",
            )


def check_reports(files: Files, store: ArtifactStore, db: Database) -> None:
    """What intact reports remember, against the ledger, the tables and each other."""
    pages = {a.name: a.path.read_bytes() for a in files.intact if a.kind == "html"}
    facts: dict[str, tuple[bytes, dict[str, Any]]] = {}
    for artifact in files.intact:
        if artifact.kind == "json":
            data = artifact.path.read_bytes()
            if (parsed := as_report(data)) is not None:
                facts[artifact.name] = (data, parsed)
    for name, (data, report) in facts.items():
        files.reports += 1
        head = head_in(report)
        check_head(files, db, name, [head] if head else [])
        _check_rows(files, db, name, report, head)
        page = name.removesuffix(".json") + ".html"
        if page in pages and hashlib.sha256(data).hexdigest().encode() not in pages[page]:
            files.wrong(f"Report {page} does not name the SHA-256 of {name}: they are not of one audit.")
    for name, data in pages.items():
        files.reports += 1
        check_head(files, db, name, heads_on(data))


def as_report(data: bytes) -> dict[str, Any] | None:
    """The facts of a JSON report; None for any other file."""
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return None
    is_report = isinstance(facts, dict) and str(facts.get("format", "")).startswith(REPORT)
    return facts if is_report else None


def head_in(report: Mapping[str, Any]) -> Head | None:
    """The ledger's head when a JSON report was made; None when it names none."""
    again = report.get("reproduce")
    text = report.get("ledger_head") or (again.get("ledger_head") if isinstance(again, dict) else None)
    found = _HEAD.fullmatch(str(text).encode())
    return Head(int(found[1]), found[2].decode()) if found else None


def heads_on(page: bytes) -> list[Head]:
    """Every ledger head that an HTML report names."""
    return [Head(int(seq), digest.decode()) for seq, digest in dict.fromkeys(_HEAD.findall(page))]


def check_head(files: Files, db: Database, name: str, heads: list[Head]) -> None:
    """The ledger still contains the heads that a report names."""
    if not heads:
        files.notes.append(f"Report {name} names no ledger head, so it cannot show whether the ledger was rewritten.")
    for head in heads:
        problem, _ = contained(db.hashes, db.head, head, f"report {name}")
        if problem:
            files.wrong(
                f"{problem[:1].upper()}{problem[1:]}: the ledger was rewritten or lost its end since the report was "
                "made, or the report was made from another ledger.",
                "Do not trust the tables: compare with a copy of the report, or of its ledger head, kept outside this "
                "folder (palimpsest verify REPORT, or --head SEQ:HASH), and restore from a backup that contains it.",
            )


def _check_rows(files: Files, db: Database, name: str, report: Mapping[str, Any], head: Head | None) -> None:
    """Rows that a report repeats are those of their table, if their partition was not replaced since."""
    subject, older = str(report.get("subject", "")), set()
    for field_, spec in REPORTED.items():
        rows, table, spec = report.get(field_), db.reported.get(field_), db.tables.get(spec.full_name, spec)
        if not isinstance(rows, list) or table is None or head is None:
            continue
        compared = [c.name for c in spec.columns if c.dtype in ("str", "int64", "float64", "bool")]
        stored = {tuple(row[k] for k in spec.key): row for row in table.filter(pl.col("subject") == subject).to_dicts()}
        for row in rows:
            if not isinstance(row, dict) or any(k not in row for k in (*spec.key, *spec.partition)):
                continue  # of a version with other columns
            key = (spec.full_name, subject, part_text({p: row[p] for p in spec.partition}))
            record = db.recorded.partitions.get(key)
            if record is None or record.seq > head.seq:
                older.add(spec.full_name)
                continue
            there = stored.get(tuple(row[k] for k in spec.key))
            shared = [c for c in compared if c in row]
            if there is None or any(row[c] != there[c] for c in shared):
                files.wrong(
                    f"Report {name} says other things than {described(key)} "
                    f"({', '.join(f'{k} = {row[k]}' for k in spec.key)}).",
                    "Make the report anew from the tables, or restore the state folder from a backup.",
                )
    if older:
        files.notes.append(f"Report {name} is older than the rows of {', '.join(sorted(older))} that it reports.")


# ------------------------------------------------------------------ artefacts


def _last_records(db: Database | None) -> dict[str, Named]:
    """The last record of each artefact: a completion's, or the row of ``lineage.artifacts`` when that is younger."""
    if db is None:
        return {}
    out = dict(db.lineage)
    for name, named in db.recorded.artifacts.items():
        if name not in out or out[name].seq < named.seq:
            out[name] = named
    return out


def _needed(db: Database | None) -> set[str]:
    """What must be there: the outputs of each asset's last completion, and all that lineage lists."""
    if db is None:
        return set()
    outputs = {
        str(o["name"]) for stage in db.recorded.stages.values() for o in stage.outputs if o["kind"] == "artifact"
    }
    outside = {name for name, named in db.recorded.artifacts.items() if not named.asset}
    return outputs | outside | set(db.lineage)


def _files_of(store: ArtifactStore, name: str) -> Iterator[Path]:
    """The manifest, the content and the file for people of an artefact, as far as its manifest can be read."""
    base = store.root.joinpath(*name.split("/"))
    yield base.with_name(base.name + MANIFEST)
    yield base
    try:
        found = store.describe(name)
    except (NotReady, IntegrityError, UnsafeFile, IllegalName, OSError):
        yield from base.parent.glob(f"{base.name}.{'[0-9a-f]' * 16}.*")
        return
    yield base.with_name(f"{base.name}.{found.sha256[:16]}.{found.kind}")


def _others(store: ArtifactStore, known: set[Path]) -> list[Path]:
    """Files that belong to no artefact, without what a killed writer leaves: temporary files, and whole contents whose
    manifest was not written any more."""
    out = []
    for path in sorted(p for p in store.root.rglob("*") if p.is_symlink() or not p.is_dir()):
        if path in known or (path.name.startswith(".") and ".tmp" in path.name) or path.name.endswith(ERASED):
            continue
        named = _CONTENT.search(path.name)
        if named and not path.is_symlink() and fsio.sha256_of(path).startswith(named[1]):
            continue
        out.append(path)
    return out


def _remake(store: ArtifactStore, name: str, db: Database | None) -> str:
    subject = name.partition("/")[0]
    if subject == "imported":
        return f"Import it again: palimpsest import-checkpoint FILE --name {name.partition('/')[2]}."
    if db is None or name not in db.recorded.artifacts:
        return RESTORE
    manifest = store.root / f"{name}{MANIFEST}"
    return (
        "Restore it from a backup; or, if a run was interrupted or you know how it was damaged, remove "
        f"{manifest} and run 'palimpsest audit {subject}', which makes it anew."
    )


def _unrecorded(name: str) -> str:
    subject = name.partition("/")[0]
    if subject == "imported":
        own = name.partition("/")[2]
        return (
            f"Import it again, so that the ledger records it: palimpsest import-checkpoint FILE --name {own}; or take "
            f"it out: palimpsest import-checkpoint --remove {own}."
        )
    return f"Run 'palimpsest audit {subject}' to the end and verify again; remove it if it is still there."
