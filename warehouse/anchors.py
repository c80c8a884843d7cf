"""The ledger's head noted outside the state folder, so that a folder that was rewritten whole is found out.

    file    a line ``SEQ:HASH TIME`` a head, appended to a file that lies elsewhere (another disk, a mounted share)
    token   an RFC 3161 time-stamp of the text ``SEQ:HASH``, ``home/anchors/SEQ-HASH.tsr``: a server that both sides
            trust says that this head existed at that time; kept here, because only the server's key can make one

Who rewrites the ledger can rewrite neither. ``palimpsest verify`` compares both with the ledger. The server is sent the
SHA-256 of the head and nothing else.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import IntegrityError, InvalidInput
from contracts.operations import Anchors
from warehouse import fsio
from warehouse.chain import Head

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FOLDER = "anchors"
PACKAGE = "rfc3161-client"
_MOST = 1 << 20  # bytes of a token: one is some kilobytes
_QUERY, _REPLY = "application/timestamp-query", "application/timestamp-reply"
_CUT = re.compile(
    r"([1-9][0-9]{0,17}(:[0-9a-f]{0,64})?)?\0*"
)  # the beginning of a head; zeros where a disk lost the rest
_NAME = re.compile(r"([1-9][0-9]{0,17})-([0-9a-f]{64})\.tsr")


@dataclass(frozen=True, slots=True)
class Noted:
    """What became of a head: where it is noted now, and in sentences where it could not be."""

    where: tuple[str, ...]
    problems: tuple[str, ...]


def note(head: Head, home: Path, config: Anchors, *, now: datetime) -> Noted:
    """Note a head wherever the configuration says; a place that fails is said, and the others are still noted.

    A head that a place knows already is not noted there again. An empty ledger has no head to note.
    """
    where, problems = [], []
    if head.seq and config.file:
        try:
            _append(Path(config.file).expanduser(), head, now)
            where.append(config.file)
        except (OSError, InvalidInput) as error:
            problems.append(f"the ledger's head could not be noted in anchors.file {config.file}: {error}")
    if head.seq and config.timestamp_url:
        path = token_file(home, head)
        try:
            if not path.exists():
                fsio.write_bytes(path, stamp(head, config))
            where.append(config.timestamp_url)
        except (OSError, InvalidInput, IntegrityError) as error:
            problems.append(f"{config.timestamp_url} did not time-stamp the ledger's head: {error}")
    return Noted(tuple(where), tuple(problems))


def _append(path: Path, head: Head, now: datetime) -> None:
    """One more line, durably, whoever else appends; a line that a crash has cut is ended first."""
    known = heads_in(path) if path.exists() else []
    if known and known[-1] == head:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * cut + f"{head} {now.astimezone(UTC).isoformat(timespec='seconds')}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsio.sync_folder(path.absolute().parent)


def heads_in(path: Path) -> list[Head]:
    """The heads that a file of anchors names, in its order; a last line that a crash has cut is left out.

    Raises:
        InvalidInput: there is no such file, or a whole line names no head.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
    except (FileNotFoundError, IsADirectoryError):
        raise InvalidInput(f"{path}, which anchors are kept in, is no file") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        try:
            found += [Head.parse(words[0])] if words else []
        except InvalidInput as error:
            if len(words) == 1 and _CUT.fullmatch(words[0]):  # a crash has cut it while it was written
                continue
            raise InvalidInput(f"{path}, line {number}: {error}") from None
    return found


# ------------------------------------------------------------------- tokens


def token_file(home: Path, head: Head) -> Path:
    """Where the time-stamp of a head lies."""
    return home / FOLDER / f"{head.seq}-{head.hash}.tsr"


def stamp(head: Head, config: Anchors) -> bytes:
    """A token of the configured server, checked against its root certificates.

    Raises:
        InvalidInput: the package that speaks RFC 3161 is not installed, or the roots cannot be read.
        OSError: the server was not reached, refused, or did not answer in time.
        IntegrityError: what it answered is no valid token of this head.
    """
    client = _client()
    roots = root_certificates(Path(config.timestamp_roots).expanduser())
    builder = client.TimestampRequestBuilder().data(str(head).encode()).hash_algorithm(client.HashAlgorithm.SHA256)
    query = builder.nonce(nonce=True).cert_request(cert_request=True).build()
    ask = urllib.request.Request(config.timestamp_url, data=query.as_bytes(), headers={"Content-Type": _QUERY})
    try:
        with urllib.request.urlopen(ask, timeout=config.timeout_s) as answer:
            data = answer.read(_MOST + 1)
    except urllib.error.HTTPError as error:
        raise OSError(f"it answered {error.code}") from error
    stamped_at(data, head, roots, nonce=query.nonce)
    return bytes(data)


def stamped_at(data: bytes, head: Head, roots: Sequence[Certificate], *, nonce: int | None = None) -> datetime:
    """When a token says that the head existed (UTC).

    Args:
        data: the server's answer, DER.
        roots: certificates of authorities that are trusted.
        nonce: of the request that it answers; None: not compared.

    Raises:
        IntegrityError: it is no token, not of this head, or not signed by a time-stamping server under these roots.
    """
    client = _client()
    if len(data) > _MOST:
        raise IntegrityError(f"it is no time-stamp: it has more than {_MOST} bytes")
    try:
        response = client.decode_timestamp_response(data)
        if client.PKIStatus(response.status) not in (client.PKIStatus.GRANTED, client.PKIStatus.GRANTED_WITH_MODS):
            raise IntegrityError(f"the server refused: {', '.join(response.status_string) or response.status}")
        verifier = client.VerifierBuilder()
        for root in roots:
            verifier = verifier.add_root_certificate(root)
        if nonce is not None:
            verifier = verifier.nonce(nonce)
        verifier.build().verify_message(response, str(head).encode())
    except (ValueError, TypeError, client.VerificationError) as error:
        raise IntegrityError(f"it is no time-stamp of the head {head}: {error}") from error
    return response.tst_info.gen_time.astimezone(UTC)  # type: ignore[no-any-return]


def root_certificates(path: Path) -> list[Certificate]:
    """The certificates of a PEM file.

    Raises:
        InvalidInput: there is no such file, or it holds none.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"anchors.timestamp_roots {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"anchors.timestamp_roots {path} holds no certificate in PEM: {error}") from None


def tokens(home: Path) -> list[tuple[Head, Path]]:
    """The time-stamps of a state folder, in the order of their heads.

    Raises:
        IntegrityError: a file among them does not have the name of one.
    """
    found = []
    for path in (home / FOLDER).glob("*.tsr"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise IntegrityError(f"{path} does not have the name of a time-stamp: SEQ-HASH.tsr")
        found.append((Head(int(match[1]), match[2]), path))
    return sorted(found, key=lambda one: one[0].seq)


def check_tokens(home: Path, roots: Path | None) -> tuple[list[Head], list[str], str]:
    """The time-stamps of a state folder against the root certificates.

    Args:
        roots: PEM file; None: their signatures are not checked.

    Returns:
        The heads that tokens vouch for (which the ledger has to contain), problems, and a sentence about what was
        checked ("" where there is no token).

    Raises:
        InvalidInput: the roots cannot be read.
    """
    try:
        found = tokens(home)
    except IntegrityError as error:
        return [], [str(error)], ""
    if not found:
        return [], [], ""
    if roots is None:
        return [], [], f"{len(found)} time-stamps were not checked: no root certificates (--timestamp-roots FILE)."
    trusted, heads, problems, last = root_certificates(roots), [], [], None
    for head, path in found:
        try:
            last = stamped_at(path.read_bytes(), head, trusted)
            heads.append(head)
        except (IntegrityError, OSError) as error:
            problems.append(f"The time-stamp {path} does not hold: {error}.")
    at = f", the last of {last.isoformat()}" if last else ""
    return heads, problems, f"Time-stamps: {len(heads)} of {len(found)} are genuine{at}."


def _client() -> Any:
    """The package that speaks RFC 3161.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        import rfc3161_client
    except ImportError:
        raise InvalidInput(f"a time-stamping server needs the package {PACKAGE}, which is not installed") from None
    return rfc3161_client
