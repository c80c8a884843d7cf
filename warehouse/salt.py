"""The salt under which owner tokens, pins and the keys of made data sets are formed: made once, and never another.

    salt     32 random bytes, ``home/warehouse/salt``, of this user alone; it never leaves that file
    check    HMAC-SHA-256(salt, a fixed text), in the ledger since the salt was first used: who knows it, and not the
             salt, can form no token and confirm no guess

With another salt each later token would name nobody, and nothing would say so. One that is gone or damaged is therefore
refused before a token is made.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

from contracts.errors import IntegrityError
from contracts.schema import EXAMPLES, REQUEST_PINS
from warehouse import ddl
from warehouse.connection import Connection, first

KIND = "salt"  # of the ledger's entry
NUM_BYTES = 32
_TEXT = b"palimpsest: check of the salt"
WITHOUT = (
    "Restore it from a backup of the state folder. Without it everything can still be read, verified and reported, "
    "and certificates stay good; but nothing that was made can be matched to a person or a pinned row any more: no "
    "owner is found, and no request is registered or run. New audits need another state folder (PALIMPSEST_HOME)"
)


def check_of(salt: bytes) -> str:
    """64 hex digits by which a salt is recognised."""
    return hmac.new(salt, _TEXT, hashlib.sha256).hexdigest()


def on_record(con: Connection) -> str | None:
    """The check of the salt that is in use; None where none is on record."""
    row = first(con, "SELECT body FROM ledger.entries WHERE kind = ? ORDER BY seq DESC LIMIT 1", [KIND])
    return str(json.loads(row[0])["check"]) if row else None


def is_used(con: Connection) -> bool:
    """Whether anything was made with a salt: an owner's token, a pin."""
    known = ddl.declared(con)
    asked = [
        f"SELECT 1 FROM {ddl.table(spec)}{where} LIMIT 1"
        for spec, where in ((EXAMPLES, " WHERE owner <> ''"), (REQUEST_PINS, ""))
        if spec.full_name in known
    ]
    return any(con.execute(sql).fetchall() for sql in asked)


def problem(path: Path, check: str | None, *, used: bool) -> str:
    """What is wrong with the salt in a file, in words; "" where it is the one in use, or none was used yet.

    Args:
        check: on record. ``used``: something was made with a salt.

    Raises:
        OSError: it cannot be read.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return f"{path} is gone: owner tokens and pins were made with it" if check or used else ""
    if len(found) != NUM_BYTES:
        return f"{path} is damaged: it has {len(found)} bytes, not {NUM_BYTES}"
    if check is not None and not hmac.compare_digest(check_of(found), check):
        return f"{path} is damaged or was replaced: it is not the salt that owner tokens and pins were made with"
    return ""


def refuse(path: Path, check: str | None, *, used: bool) -> None:
    """Raise :class:`IntegrityError` with what to do, where :func:`problem` finds one."""
    if wrong := problem(path, check, used=used):
        raise IntegrityError(f"{wrong}. {WITHOUT}")
