"""Signed statements: a DSSE envelope with an Ed25519 signature, checked by anybody who has the public key.

    key         PKCS#8 PEM of this user alone, ``home/keys/signing.pem``, made once; PALIMPSEST_SIGNING_KEY names
                another file (one that several state folders share, or that a vault mounts)
    public key  PEM beside it, ``signing.pub.pem``: what auditors are given, by another way than the certificates
    envelope    {"payload": base64, "payloadType", "signatures": [{"keyid", "sig"}]}, one line of JSON; what is signed
                is the payload's type, its length and its bytes (DSSE v1): they are not written anew to be read

Who signs with a key that only they have shows that they said it, not that it is true: a certificate names the ledger's
head and the digests by which it can be checked against the state folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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


def signing_key(home: Path) -> CryptoSigner:
    """The key that this state folder signs with, made when there is none.

    Raises:
        InvalidInput: the file that PALIMPSEST_SIGNING_KEY names is not there, or is no Ed25519 key.
        IntegrityError: the state folder's own key is damaged.
    """
    named = os.environ.get(KEY_FILE)
    path = Path(named) if named else home / "keys" / "signing.pem"
    if not named and not path.exists():
        from securesystemslib.signer import CryptoSigner

        fsio.write_bytes(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
    try:
        signer = _signer(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{KEY_FILE} names {path}, and there is no such file") from None
    except ValueError as error:
        if named:
            raise InvalidInput(f"{KEY_FILE} names {path}, which is no Ed25519 private key in PEM: {error}") from error
        raise IntegrityError(f"{path}, the signing key, is damaged: {error}") from error
    public = public_file(home)
    pem = public_pem(signer)
    with suppress(FileNotFoundError):
        if public.read_bytes() == pem:
            return signer
    fsio.write_bytes(public, pem)
    return signer


def public_file(home: Path) -> Path:
    """Where the public key lies."""
    return home / "keys" / "signing.pub.pem"


def public_pem(signer: CryptoSigner) -> bytes:
    """The public half, in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    key = load_pem_private_key(signer.private_bytes, None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signer(pem: bytes) -> CryptoSigner:
    """Raises: ValueError: it is no Ed25519 private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError("it is encrypted") from error
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
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
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
