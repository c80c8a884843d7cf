"""The evidence of one forget request as a folder that an outsider checks without this program.

    certificate.dsse.json   the last certificate of the request, signed
    report.html, .json      the report that it names
    ledger.jsonl            the whole chain, a line an entry; what an entry says only where it is about this request
    erasure.json            the journal of the erasure, where the examples were erased: each item with its proof
    check_evidence.py       one page that checks all of it, with Python and ``cryptography`` alone
    evidence.json           the SHA-256 of each of them

Not in it: the public key, which has to reach the outsider by another way; examples, ids, owners; what the ledger says
of other subjects and requests.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from contracts import schema
from contracts.errors import ConfigError, NotReady
from contracts.requests import RequestState

if TYPE_CHECKING:
    from warehouse import Warehouse

FORMAT = "palimpsest-evidence/1"


def evidence(w: Warehouse, subject: str, request_id: str, to: Path) -> list[str]:
    """Write the folder ``to``; the names of its files.

    Raises:
        ConfigError: ``to`` is there and not an empty folder, or its parent is no folder.
        NotReady: the request has no certificate, or its report was made anew since.
    """
    from hashlib import sha256

    if (to.exists() and (not to.is_dir() or any(to.iterdir()))) or not to.absolute().parent.is_dir():
        raise ConfigError(
            f"{to} cannot be written: evidence goes into a new or an empty folder, in a folder that is there"
        )
    issued = w.read(schema.CERTIFICATES, subject=subject, partition={"request_id": request_id}).sort("serial")
    if not issued.height:
        state = w.requests.get(request_id).state
        raise NotReady(
            f"request {request_id} was closed without an audit, and has no certificate: palimpsest report {request_id}"
            if state is RequestState.CLOSED
            else f"request {request_id} has no certificate yet: palimpsest request run {subject} {request_id}"
        )
    last, report = issued.row(-1, named=True), f"{subject}/request_reports/{request_id}/audit"
    if w.artifacts.sha256(f"{report}.json") != last["report_sha256"]:
        raise NotReady(
            f"the report of request {request_id} was made anew since its last certificate: palimpsest certify "
            f"{subject} {request_id}"
        )
    files = {
        "certificate.dsse.json": w.artifacts.load_bytes(last["artifact"]),
        "report.html": w.artifacts.load_bytes(f"{report}.html"),
        "report.json": w.artifacts.load_bytes(f"{report}.json"),
        "ledger.jsonl": _ledger(w, request_id),
        "check_evidence.py": resources.files("reports").joinpath("templates/check_evidence.py").read_bytes(),
    }
    if record := w.erasures.record(request_id):
        files["erasure.json"] = record.encode()
    listed = {"format": FORMAT, "subject": subject, "request": request_id}
    listed |= {"files": {name: sha256(data).hexdigest() for name, data in files.items()}}
    to.mkdir(exist_ok=True)
    for name, data in {**files, "evidence.json": json.dumps(listed, indent=2).encode() + b"\n"}.items():
        (to / name).write_bytes(data)
    return [*files, "evidence.json"]


def _ledger(w: Warehouse, request_id: str) -> bytes:
    entries = w.ledger.entries()
    mine = pl.col("body").str.contains(f'["/]{request_id}["/]')
    lines = [
        json.dumps({k: row[k] for k in ("seq", "prev_hash", "hash", *(("kind", "body") if row["mine"] else ()))})
        for row in entries.with_columns(mine=mine).iter_rows(named=True)
    ]
    return ("\n".join(lines) + "\n").encode()
