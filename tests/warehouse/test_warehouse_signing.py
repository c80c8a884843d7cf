"""Signed statements: whoever has the public key sees every change; certificates of earlier versions stay good."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from contracts.certificates import PAYLOAD, read_statement
from contracts.errors import IntegrityError, InvalidInput
from warehouse import signing

GOLDEN = Path(__file__).parents[1] / "golden" / "certificates"
SAID = {"what": "a statement", "figures": [0.5, 1], "word": "\u00e9"}


@pytest.fixture
def signed(tmp_path: Path) -> tuple[bytes, list]:
    data = signing.sign(SAID, signing.signing_key(tmp_path), payload_type="t")
    return data, [signing.key_of(signing.public_file(tmp_path).read_bytes(), where="key")]


@pytest.mark.promise("E6")
def test_what_was_signed_is_read_with_the_public_key(signed: tuple[bytes, list]) -> None:
    data, keys = signed
    assert signing.is_envelope(data) and signing.opened(data, keys, payload_type="t") == SAID
    assert base64.b64decode(json.loads(data)["payload"]).decode() == json.dumps(
        SAID, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


@pytest.mark.promise("E6")
def test_every_flipped_bit_is_seen(signed: tuple[bytes, list]) -> None:
    data, keys = signed
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(IntegrityError):
            signing.opened(bytes(changed), keys, payload_type="t")


@pytest.mark.promise("E6")
def test_another_key_another_type_and_no_envelope(signed: tuple[bytes, list], tmp_path: Path) -> None:
    data, keys = signed
    (tmp_path / "other").mkdir()
    other = signing.key_of(signing.public_pem(signing.signing_key(tmp_path / "other")), where="key")
    with pytest.raises(IntegrityError, match="another key"):
        signing.opened(data, [other], payload_type="t")
    assert signing.opened(data, [other, *keys], payload_type="t") == SAID
    with pytest.raises(IntegrityError, match="holds 't', not 'u'"):
        signing.opened(data, keys, payload_type="u")
    whole = json.loads(data)
    for broken in (
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        *(
            json.dumps(whole | change).encode()
            for change in (
                {"signatures": []},
                {"signatures": [{}]},
                {"signatures": {}},
                {"payload": 3},
                {"payload": "*"},
            )
        ),
    ):
        with pytest.raises(IntegrityError):
            signing.opened(broken, keys, payload_type="t")
    swapped = whole | {"payload": base64.b64encode(b'{"what":"another"}').decode()}
    with pytest.raises(IntegrityError, match="was changed"):
        signing.opened(json.dumps(swapped).encode(), keys, payload_type="t")


def test_the_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    first, again = signing.signing_key(tmp_path), signing.signing_key(tmp_path)
    assert first.public_key.keyid == again.public_key.keyid
    path = tmp_path / "keys" / "signing.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"PRIVATE" not in signing.public_file(tmp_path).read_bytes()
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nrotten\n-----END PRIVATE KEY-----\n")
    with pytest.raises(IntegrityError, match=r"signing\.pem.*damaged"):
        signing.signing_key(tmp_path)


@pytest.mark.promise("B1")
def test_a_lost_or_damaged_key_is_refused_before_anything_is_signed(tmp_path: Path) -> None:
    """A certificate by a key that no auditor was given verifies for nobody."""
    home, file = tmp_path, tmp_path / "keys" / "signing.pem"
    first = signing.signing_key(home)
    used, pem, public = [first.public_key.keyid], file.read_bytes(), signing.public_file(home).read_bytes()
    seen = 0
    places = range(1, 8 * len(pem), 5)
    for place in places:
        bad = bytearray(pem)
        bad[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(bad))
        for known in (used, []):
            try:
                assert signing.signing_key(home, used=known).public_key.keyid in used, place
            except IntegrityError as error:
                seen += 1
                assert signing.problem(home, has_signed=True), place
                assert "signing.pem" in str(error) and "--new-key" in str(error)
        assert signing.public_file(home).read_bytes() == public
    assert seen > len(places), "most of them, and the others are of the text around the key"
    file.unlink()
    for known in (used, []):
        with pytest.raises(IntegrityError, match=r"signing\.pem, the signing key, is gone.*backup"):
            signing.signing_key(home, used=known)
    assert "is gone" in signing.problem(home, has_signed=True) and not file.exists()
    signing.public_file(home).unlink()
    with pytest.raises(IntegrityError, match="is gone"):
        signing.signing_key(home, used=used)
    assert signing.problem(home, has_signed=False) == "" and "is gone" in signing.problem(home, has_signed=True)
    file.write_bytes(pem)
    assert signing.signing_key(home, used=used).public_key.keyid in used and signing.public_file(home).exists()


def test_another_key_is_taken_when_that_is_asked_for_and_the_old_public_key_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = signing.signing_key(tmp_path)
    old, used = signing.public_file(tmp_path).read_bytes(), [first.public_key.keyid]
    second = signing.signing_key(tmp_path, used=used, renew=True)
    assert second.public_key.keyid != first.public_key.keyid
    shown = [file.read_bytes() for file in signing.public_files(tmp_path)]
    assert shown == [signing.public_pem(second), old]
    with pytest.raises(IntegrityError, match="not the key that has signed here"):
        signing.signing_key(tmp_path, used=used)
    used.append(second.public_key.keyid)
    assert signing.signing_key(tmp_path, used=used).public_key.keyid == used[1]
    vault = tmp_path / "vault.pem"
    vault.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv(signing.KEY_FILE, str(vault))
    with pytest.raises(IntegrityError, match=r"vault\.pem is not the key"):
        signing.signing_key(tmp_path, used=used)
    third = signing.signing_key(tmp_path, used=used, renew=True)
    assert vault.exists() and signing.public_file(tmp_path).read_bytes() == signing.public_pem(third)
    assert len(signing.public_files(tmp_path)) == 3


def test_a_key_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, file = Ed25519PrivateKey.generate(), tmp_path / "own.pem"
    monkeypatch.setenv(signing.KEY_FILE, str(file))
    with pytest.raises(InvalidInput, match="no such file"):
        signing.signing_key(tmp_path)
    for key, encryption in (
        (own, BestAvailableEncryption(b"secret")),
        (generate_private_key(SECP256R1()), NoEncryption()),
    ):
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        with pytest.raises(InvalidInput, match=r"own\.pem, which is no Ed25519 private key"):
            signing.signing_key(tmp_path)
    file.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signing.signing_key(tmp_path)
    public = own.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert signing.public_file(tmp_path).read_bytes() == public
    assert not (tmp_path / "keys" / "signing.pem").exists()
    with pytest.raises(InvalidInput, match="no public key"):
        signing.key_of(b"nothing", where="a file")
    with pytest.raises(InvalidInput, match="another kind"):
        other = generate_private_key(SECP256R1()).public_key()
        signing.key_of(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), where="a file")


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.dsse.json")), ids=lambda file: file.name)
@pytest.mark.promise("E6")
def test_certificates_of_all_versions_verify_for_ever(file: Path) -> None:
    """A certificate that was once given to somebody is never refused by a later program, but for its age."""
    key = signing.key_of((GOLDEN / "signing.pub.pem").read_bytes(), where="golden")
    said, artifacts = read_statement(signing.opened(file.read_bytes(), [key], payload_type=PAYLOAD))
    assert said.verdict == "pass" and said.findings and said.attacks and all(len(s) == 64 for s in artifacts.values())
    issued = datetime.fromisoformat(said.issued_at)
    assert not said.expired(issued) and said.expired(datetime(2100, 1, 1, tzinfo=UTC))
    assert not said.from_the_future(issued)


def test_there_are_golden_certificates() -> None:
    assert list(GOLDEN.glob("*.dsse.json"))
