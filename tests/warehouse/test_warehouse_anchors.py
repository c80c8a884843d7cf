"""The ledger's head noted outside: a file that is only appended to, and time-stamps of a local RFC 3161 authority."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError, IntegrityError, InvalidInput
from contracts.operations import Anchors
from warehouse import Head, anchors

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEADS = [Head(n, f"{n:064x}") for n in (1, 2, 3)]
OPENSSL = """
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[stamping]
extendedKeyUsage = critical, timeStamping
keyUsage = critical, digitalSignature
[plain]
keyUsage = critical, digitalSignature
[tsa]
default_tsa = authority
[authority]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


class Authority:
    """A time-stamping authority made of ``openssl``, and its server on the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.answer = folder, self.stamp
        self.asked: list[bytes] = []
        self.config = folder / "openssl.cnf"
        self.config.write_text(OPENSSL.format(folder=folder))
        (folder / "serial").write_text("01\n")
        self._issue("root", "ca", None)
        self._issue("tsa", "stamping", "root")
        self.roots = folder / "root.pem"

    def _openssl(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], cwd=self.folder, check=True, capture_output=True)

    def _issue(self, name: str, kind: str, by: str | None) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
        self._openssl("req", "-new", *key, "-subj", f"/CN=test {name}", "-out", f"{name}.csr")
        signer = ("-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial") if by else ("-signkey", f"{name}.key")
        extensions = ("-extfile", self.config, "-extensions", kind)
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signer, *extensions, "-days", "30", "-out", f"{name}.pem")

    def stamp(self, query: bytes) -> tuple[int, bytes]:
        (self.folder / "query.tsq").write_bytes(query)
        signer = ("-signer", "tsa.pem", "-inkey", "tsa.key")
        self._openssl("ts", "-reply", "-config", self.config, "-queryfile", "query.tsq", *signer, "-out", "reply.tsr")
        return 200, (self.folder / "reply.tsr").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa"))


@pytest.fixture
def authority(made: Authority) -> Iterator[tuple[Authority, Anchors]]:
    """The authority at work, and the configuration that names it."""
    made.answer = made.stamp
    made.asked.clear()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            made.asked.append(query)
            status, body = made.answer(query)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/tsr"
    try:
        yield made, Anchors(timestamp_url=url, timestamp_roots=str(made.roots), timeout_s=10)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ----------------------------------------------------------------- the file


def test_heads_are_appended_once_each_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.heads"
    config = Anchors(file=str(file))
    for head in (HEADS[0], HEADS[0], HEADS[1], HEADS[1], HEADS[2]):
        noted = anchors.note(head, tmp_path / "home", config, now=NOW)
        assert noted.where == (str(file),) and noted.problems == ()
    assert file.read_text().splitlines() == [f"{head} 2026-03-01T12:00:00+00:00" for head in HEADS]
    assert anchors.heads_in(file) == HEADS
    assert anchors.note(Head(), tmp_path, config, now=NOW).where == () and len(anchors.heads_in(file)) == 3


@pytest.mark.parametrize("cut", range(1, 92))
def test_a_line_that_a_crash_has_cut_is_no_head_and_is_ended_by_the_next(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "heads"
    config = Anchors(file=str(file))
    anchors.note(HEADS[0], tmp_path, config, now=NOW)
    whole = file.read_bytes()
    anchors.note(HEADS[1], tmp_path, config, now=NOW)
    file.write_bytes(file.read_bytes()[: len(whole) + cut])
    assert anchors.heads_in(file) in (HEADS[:1], HEADS[:2])
    anchors.note(HEADS[2], tmp_path, config, now=NOW)
    assert anchors.heads_in(file)[-1] == HEADS[2] and anchors.heads_in(file)[0] == HEADS[0]


def test_a_changed_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "heads"
    for head in HEADS:
        anchors.note(head, tmp_path, Anchors(file=str(file)), now=NOW)
    file.write_text(file.read_text().replace("\n2:", "\n2;", 1))
    with pytest.raises(InvalidInput, match="line 2"):
        anchors.heads_in(file)
    with pytest.raises(InvalidInput, match="is no file"):
        anchors.heads_in(tmp_path / "gone")


def test_a_place_that_fails_is_said_and_the_other_is_noted(
    tmp_path: Path, authority: tuple[Authority, Anchors]
) -> None:
    _, config = authority
    both = Anchors(
        file=str(tmp_path / "no folder" / "heads"),
        timestamp_url=config.timestamp_url,
        timestamp_roots=config.timestamp_roots,
    )
    noted = anchors.note(HEADS[0], tmp_path, both, now=NOW)
    assert noted.where == (config.timestamp_url,) and len(noted.problems) == 1 and "no folder" in noted.problems[0]


# -------------------------------------------------------------- time-stamps


def test_a_token_of_the_head_is_kept_and_says_when(tmp_path: Path, authority: tuple[Authority, Anchors]) -> None:
    server, config = authority
    assert anchors.note(HEADS[0], tmp_path, config, now=NOW) == anchors.Noted((config.timestamp_url,), ())
    anchors.note(HEADS[0], tmp_path, config, now=NOW)
    assert len(server.asked) == 1, "a head that has its token is not stamped again"
    assert HEADS[0].hash.encode() not in server.asked[0], "the server is told a digest only"
    token = anchors.token_file(tmp_path, HEADS[0]).read_bytes()
    at = anchors.stamped_at(token, HEADS[0], anchors.root_certificates(server.roots))
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=5)
    heads, problems, said = anchors.check_tokens(tmp_path, server.roots)
    assert heads == [HEADS[0]] and problems == [] and "1 of 1 are genuine" in said


def test_openssl_itself_accepts_what_was_kept(tmp_path: Path, authority: tuple[Authority, Anchors]) -> None:
    """The text that was stamped is ``SEQ:HASH``: an outsider needs nothing of this program."""
    server, config = authority
    anchors.note(HEADS[1], tmp_path, config, now=NOW)
    (tmp_path / "head").write_bytes(str(HEADS[1]).encode())
    token = anchors.token_file(tmp_path, HEADS[1])
    words = ["ts", "-verify", "-in", token, "-data", tmp_path / "head", "-CAfile", server.roots]
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0 and "OK" in done.stdout + done.stderr


@pytest.mark.promise("E5")
def test_no_token_holds_for_another_head_another_root_or_other_bytes(
    tmp_path: Path, authority: tuple[Authority, Anchors], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server, config = authority
    anchors.note(HEADS[0], tmp_path, config, now=NOW)
    path = anchors.token_file(tmp_path, HEADS[0])
    token, roots = path.read_bytes(), anchors.root_certificates(server.roots)
    with pytest.raises(IntegrityError, match="no time-stamp of the head"):
        anchors.stamped_at(token, HEADS[1], roots)
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    with pytest.raises(IntegrityError):
        anchors.stamped_at(token, HEADS[0], anchors.root_certificates(stranger.roots))
    for place in range(0, len(token), max(1, len(token) // 40)):
        changed = bytearray(token)
        changed[place] ^= 1
        try:
            at = anchors.stamped_at(bytes(changed), HEADS[0], roots)
        except IntegrityError:
            continue
        assert at == anchors.stamped_at(token, HEADS[0], roots), "what it says was changed"
    path.rename(anchors.token_file(tmp_path, HEADS[2]))  # taken for another head by its name
    heads, problems, _ = anchors.check_tokens(tmp_path, server.roots)
    assert heads == [] and len(problems) == 1


def _refusing(_: bytes) -> tuple[int, bytes]:
    return 503, b"busy"


def _babbling(_: bytes) -> tuple[int, bytes]:
    return 200, b"<html>hello</html>"


def _endless(_: bytes) -> tuple[int, bytes]:
    return 200, b"\x30" * ((1 << 20) + 10)


@pytest.mark.parametrize("answer", [_refusing, _babbling, _endless])
def test_a_server_that_does_not_stamp_is_said_and_leaves_nothing(
    tmp_path: Path, authority: tuple[Authority, Anchors], answer: Any
) -> None:
    server, config = authority
    server.answer = answer
    noted = anchors.note(HEADS[0], tmp_path, config, now=NOW)
    assert noted.where == () and len(noted.problems) == 1 and "did not time-stamp" in noted.problems[0]
    assert not list(tmp_path.rglob("*.tsr"))


def test_an_old_answer_does_not_stand_for_a_new_question(tmp_path: Path, authority: tuple[Authority, Anchors]) -> None:
    server, config = authority
    anchors.note(HEADS[0], tmp_path / "a", config, now=NOW)
    old = anchors.token_file(tmp_path / "a", HEADS[0]).read_bytes()
    server.answer = lambda _: (200, old)
    noted = anchors.note(HEADS[0], tmp_path / "b", config, now=NOW)
    assert noted.where == () and "did not time-stamp" in noted.problems[0]


def test_a_server_that_is_not_there_is_said(tmp_path: Path, made: Authority) -> None:
    config = Anchors(timestamp_url="http://127.0.0.1:9/tsr", timestamp_roots=str(made.roots), timeout_s=2)
    noted = anchors.note(HEADS[0], tmp_path, config, now=NOW)
    assert noted.where == () and "127.0.0.1:9" in noted.problems[0]


def test_tokens_without_roots_are_not_taken_for_checked(tmp_path: Path, authority: tuple[Authority, Anchors]) -> None:
    _, config = authority
    assert anchors.check_tokens(tmp_path, None) == ([], [], "")
    anchors.note(HEADS[0], tmp_path, config, now=NOW)
    heads, problems, said = anchors.check_tokens(tmp_path, None)
    assert heads == [] and problems == [] and "not checked" in said
    (tmp_path / "anchors" / "1-x.tsr").write_bytes(b"")
    assert "does not have the name" in anchors.check_tokens(tmp_path, None)[1][0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestamp_url": "http://tsa"},
        {"timestamp_roots": "roots.pem"},
        {"timestamp_url": "tsa.example", "timestamp_roots": "r"},
        {"timeout_s": 0},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Anchors.from_mapping(wrong)
