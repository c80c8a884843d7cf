"""Signed statements: a DSSE envelope with an Ed25519 signature, checked by anybody who has the public key.

    key         PKCS#8 PEM of this user alone, ``home/keys/signing.pem``, made once; PALIMPSEST_SIGNING_KEY names
                another file (one that several state folders share, or that a vault mounts)
    public key  PEM beside it, ``signing.pub.pem``: what auditors are given, by another way than the certificates;
                those of keys that signed before are kept as ``signing.<16 hex digits>.pub.pem``
    envelope    {"payload": base64, "payloadType", "signatures": [{"keyid", "sig"}]}, one line of JSON; what is signed
                is the payload's type, its length and its bytes (DSSE v1): they are not written anew to be read

A key that is lost, damaged or another one than has signed so far is refused: a certificate by a key that no auditor was
given verifies for nobody. A new one is made or taken when that is asked for (``renew``).

Who signs with a key that only they have shows that they said it, not that it is true: a certificate names the ledger's
head and the digests by which it can be checked against the state folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.digests import canonical_json
from contracts.errors import IntegrityError, InvalidInput
from warehouse import fsio

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

KEY_FILE = "PALIMPSEST_SIGNING_KEY"
_MOST = 16 << 20  # bytes of an envelope: a statement is some kilobytes


def signing_key(home: Path, *, used: Collection[str] = (), renew: bool = False) -> CryptoSigner:
    """The key that this state folder signs with, made when there never was one.

    Args:
        used: ids of the keys that have signed here.
        renew: another one from now on: the key that PALIMPSEST_SIGNING_KEY names, or a new one.

    Raises:
        InvalidInput: the file that PALIMPSEST_SIGNING_KEY names is not there, or is no Ed25519 key.
        IntegrityError: the key is gone, damaged, or none of those that have signed.
    """
    named = os.environ.get(KEY_FILE)
    path = Path(named) if named else private_file(home)
    if not named and (renew or not path.exists()):
        if not renew and (used or public_file(home).exists()):
            raise IntegrityError(f"{path}, the signing key, is gone. {RENEW}")
        from securesystemslib.signer import CryptoSigner

        fsio.write_bytes(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
    try:
        signer = _signer(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{KEY_FILE} names {path}, and there is no such file") from None
    except ValueError as error:
        if named:
            raise InvalidInput(f"{KEY_FILE} names {path}, which is no Ed25519 private key in PEM: {error}") from error
        raise IntegrityError(f"{path}, the signing key, is damaged: {error}. {RENEW}") from error
    pem = public_pem(signer)
    if not renew and used and signer.public_key.keyid not in used:
        raise IntegrityError(f"{path} is not the key that has signed here so far: it is damaged, or another. {RENEW}")
    if not (renew or used or named) and not _is_public_of(home, pem):
        raise IntegrityError(f"{path} and {public_file(home)} are not two halves of one key: one is damaged. {RENEW}")
    _show(home, pem)
    return signer


RENEW = (
    "Restore it from a backup: what was signed stays good, and is checked with the public key as before. To sign with "
    "another key from now on: palimpsest certify SUBJECT REQUEST --new-key, and give auditors its public key"
)


def problem(home: Path, *, has_signed: bool) -> str:
    """What is wrong with a state folder's own key, in words; "" where nothing is, or another file is named.

    Args:
        has_signed: certificates were issued here.

    Raises:
        OSError: it cannot be read.
    """
    path, public = private_file(home), public_file(home)
    if os.environ.get(KEY_FILE):
        return ""
    try:
        pem = public_pem(_signer(path.read_bytes()))
    except FileNotFoundError:
        return f"{path}, the signing key, is gone" if has_signed or public.exists() else ""
    except ValueError as error:
        return f"{path}, the signing key, is damaged: {error}"
    if _is_public_of(home, pem):
        return ""
    return f"{path} and {public} are not two halves of one key: one is damaged"


def _is_public_of(home: Path, pem: bytes) -> bool:
    """Whether the public key that is shown is this one; also where none is."""
    try:
        return public_file(home).read_bytes() == pem
    except FileNotFoundError:
        return True


def _show(home: Path, pem: bytes) -> None:
    """Put the public key where auditors are told that it lies; the one before is kept under its id."""
    public = public_file(home)
    with suppress(FileNotFoundError):
        before = public.read_bytes()
        if before == pem:
            return
        with suppress(InvalidInput):  # a damaged one is of no use
            keyid = key_of(before, where=str(public)).keyid
            fsio.write_bytes(public.with_name(f"signing.{keyid[:16]}.pub.pem"), before)
    fsio.write_bytes(public, pem)


def private_file(home: Path) -> Path:
    """Where the state folder's own key lies."""
    return home / "keys" / "signing.pem"


def public_file(home: Path) -> Path:
    """Where the public key lies."""
    return home / "keys" / "signing.pub.pem"


def public_files(home: Path) -> list[Path]:
    """The public keys of all that was signed here, the present one first."""
    present = public_file(home)
    return [present, *sorted(present.parent.glob("signing.*.pub.pem"))]


def public_pem(signer: CryptoSigner) -> bytes:
    """The public half, in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    key = load_pem_private_key(signer.private_bytes, None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signer(pem: bytes) -> CryptoSigner:
    """Raises: ValueError: it is no Ed25519 private key."""
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError("it is encrypted") from error
    except (UnsupportedAlgorithm, InternalError) as error:  # the latter: a key of a kind that its library cannot set up
        raise ValueError("it is a key of a kind that is not known") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is a key of another kind")
    return CryptoSigner(key)


def key_of(pem: bytes, *, where: str) -> SSlibKey:
    """A public key.

    Args:
        where: file it is from, for the message.

    Raises:
        InvalidInput: it is no Ed25519 public key in PEM.
    """
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        raise InvalidInput(f"{where} is no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"{where} is a public key of another kind than Ed25519")
    return SSlibKey.from_crypto(key)


def sign(statement: Mapping[str, Any], signer: CryptoSigner, *, payload_type: str) -> bytes:
    """The envelope of a statement, as JSON."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(canonical_json(statement).encode(), payload_type, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode() + b"\n"


def is_envelope(data: bytes) -> bool:
    """Whether bytes look like an envelope, by its fields."""
    try:
        found = json.loads(data) if len(data) <= _MOST else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"payload", "payloadType", "signatures"} <= set(found)


def opened(data: bytes, keys: Sequence[SSlibKey], *, payload_type: str) -> Any:
    """The statement of an envelope that one of ``keys`` has signed.

    Raises:
        IntegrityError: it is no envelope, of another type, or none of the keys has signed these bytes.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError, VerificationError

    if not is_envelope(data):
        raise IntegrityError("it is no DSSE envelope")
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError, FormatError) as error:
        raise IntegrityError(f"it is no DSSE envelope: {type(error).__name__}") from error
    if envelope.to_dict() != json.loads(data):  # base64 has several texts for the same bytes
        raise IntegrityError("it is no DSSE envelope as it was written: its text was changed")
    if envelope.payload_type != payload_type:
        raise IntegrityError(f"it holds {envelope.payload_type!r}, not {payload_type!r}")
    try:
        envelope.verify(list(keys), 1)
    except VerificationError as error:
        known = ", ".join(key.keyid[:16] for key in keys)
        by = ", ".join(keyid[:16] for keyid in envelope.signatures) or "nobody"
        raise IntegrityError(
            f"its signature does not verify: signed by {by}, checked with {known}; it was changed, or signed by "
            "another key"
        ) from error
    try:
        return json.loads(envelope.payload)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"its payload is no JSON: {type(error).__name__}") from error
