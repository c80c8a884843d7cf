"""What the web interface refuses, asked of Dagster's own server over HTTP: with the guard, without it (so that each
attack is one), and behind the proxy of docs/nginx.conf."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from contracts.errors import ConfigError
from pipelines import ui_server
from pipelines.cli.app import app as commands
from pipelines.ui_guard import Guard, refusal

ROOT = Path(__file__).parents[2]
NAME = "audit.example.org"
SET = 'mutation {{ setConcurrencyLimit(concurrencyKey: "{key}", limit: 3) }}'
KEYS = "query { instance { concurrencyLimits { concurrencyKey } } }"
JSON = {"Content-Type": "application/json"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True)
class Served:
    bare: int
    guarded: int
    instance: Any


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Dagster's web server over an empty workspace on two ports, once with the guard around it."""
    import uvicorn
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import EmptyWorkspaceTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    with (
        pytest.MonkeyPatch.context() as patch,
        DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as context,
    ):
        patch.setenv(ui_server.HOSTS, NAME)
        apps = (create_app_from_workspace_process_context(context), ui_server.guarded_app(context))
        assert isinstance(apps[1], Guard)
        ports = [free_port(), free_port()]
        servers = [
            uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))  # type: ignore[arg-type]
            for app, port in zip(apps, ports, strict=True)
        ]
        threads = [threading.Thread(target=server.run, daemon=True) for server in servers]
        for thread in threads:
            thread.start()
        while not all(server.started for server in servers):
            time.sleep(0.02)
        yield Served(ports[0], ports[1], instance)
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(20)


def ask(
    port: int, method: str = "GET", path: str = "/server_info", headers: Any = (), body: str = "", tls: bool = False
) -> tuple[int, dict[str, str], str]:
    """One request, with exactly these headers; Host is that of the port unless it is among them."""
    pairs = list(dict(headers).items()) if isinstance(headers, dict) else list(headers)
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", f"127.0.0.1:{port}"))
    context = ssl._create_unverified_context() if tls else None  # the certificate is of this test
    con = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    )
    con.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in pairs:
        con.putheader(name, value)
    if body:
        con.putheader("Content-Length", str(len(body)))
    con.endheaders(body.encode() if body else None)
    answer = con.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode("utf-8", "replace")
    con.close()
    return found


def graphql(port: int, query: str, **headers: str) -> tuple[int, str]:
    status, _, text = ask(port, "POST", "/graphql", {**JSON, **headers}, json.dumps({"query": query}))
    return status, text


FOREIGN = {"Origin": "http://evil.example"}
PLAIN = {"Content-Type": "text/plain; application/json"}  # a page may send it without being asked first
ATTACKS: dict[str, Any] = {
    "a mutation by GET": lambda q: ("GET", f"/graphql?query={quote(q)}", {}, ""),
    "a picture whose address is a mutation": lambda q: (
        "GET",
        f"/graphql?query={quote(q)}",
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        "",
    ),
    "a link that is a mutation": lambda q: (
        "GET",
        f"/graphql?query={quote(q)}",
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        "",
    ),
    "a form of another page": lambda q: (
        "POST",
        f"/graphql?query={quote(q)}",
        {**FOREIGN, "Content-Type": "application/x-www-form-urlencoded"},
        "a=b",
    ),
    "JSON that says that it is text": lambda q: ("POST", "/graphql", PLAIN, json.dumps({"query": q})),
    "the same from another page": lambda q: ("POST", "/graphql", {**FOREIGN, **PLAIN}, json.dumps({"query": q})),
    "a page of no origin": lambda q: ("POST", "/graphql", {**JSON, "Origin": "null"}, json.dumps({"query": q})),
    "another port of this machine": lambda q: (
        "POST",
        "/graphql",
        {**JSON, "Origin": "http://127.0.0.1:1"},
        json.dumps({"query": q}),
    ),
    "a name that was made to point here": lambda q: (
        "POST",
        "/graphql",
        {**JSON, "Host": "evil.example", "Origin": "http://evil.example"},
        json.dumps({"query": q}),
    ),
    "such a name by a browser that sends no Origin": lambda q: (
        "POST",
        "/graphql",
        {**JSON, "Host": "evil.example"},
        json.dumps({"query": q}),
    ),
    "GraphQL as text": lambda q: ("POST", "/graphql", {"Content-Type": "application/graphql"}, q),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_another_page_asks_is_done_by_dagster_alone_and_refused_by_the_guard(served: Served, attack: str) -> None:
    key = attack.replace(" ", "_")

    def done(name: str) -> bool:
        return name in graphql(served.guarded, KEYS)[1]

    method, path, headers, body = ATTACKS[attack](SET.format(key=f"bare-{key}"))
    ask(served.bare, method, path, headers, body)
    assert done(f"bare-{key}"), "without the guard it is an attack"
    method, path, headers, body = ATTACKS[attack](SET.format(key=f"guarded-{key}"))
    status, _, said = ask(served.guarded, method, path, headers, body)
    assert status == 403 and said.startswith("refused: "), (status, said)
    assert not done(f"guarded-{key}")


def test_the_persons_own_page_and_programs_are_answered(served: Served) -> None:
    for n, headers in enumerate(
        ({}, {"Origin": f"http://127.0.0.1:{served.guarded}", "Sec-Fetch-Site": "same-origin"})
    ):
        assert graphql(served.guarded, SET.format(key=f"mine{n}"), **headers)[0] == 200
        assert f"mine{n}" in graphql(served.guarded, KEYS)[1]
    for host in (f"localhost:{served.guarded}", f"[::1]:{served.guarded}", NAME, NAME.upper(), f"{NAME}."):
        assert ask(served.guarded, headers={"Host": host})[0] == 200
    page = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    status, headers, text = ask(served.guarded, path="/runs", headers=page)
    assert status == 200 and "<html" in text.lower(), "a link in a mail opens the page"
    assert headers["x-frame-options"] == "DENY" and headers["cross-origin-resource-policy"] == "same-origin"
    assert ask(served.guarded, path="/runs", headers={**page, "Sec-Fetch-Dest": "iframe"})[0] == 403
    assert ask(served.guarded, path="/graphql", headers={"Accept": "text/html"})[0] == 200, "GraphiQL, without a query"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", "127.0.0.1"), ("host", "evil.example")],
        [("host", "")],
        [("host", "evil.example:80")],
        [("host", "127.0.0.1.evil.example")],
        [("host", "localhost@evil.example")],
        [("host", "localhost/evil.example")],
        [("host", "localhost:port")],
        [("host", "[::1")],
        [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")],
        [("host", "localhost"), ("origin", "https://localhost")],
        [("host", "localhost"), ("origin", "http://localhost:81")],
        [("host", "localhost"), ("origin", "")],
        [("host", "localhost"), ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")],
        [("host", "localhost"), ("sec-fetch-site", "cross-site")],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_headers_that_say_another_place_or_nothing_are_refused(kind: str, headers: list[tuple[str, str]]) -> None:
    scope = {"type": kind, "scheme": "http", "path": "/", "query_string": b"", "method": "GET"}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers]
    assert refusal(scope, {"localhost", "127.0.0.1", "::1"})
    scope["headers"] = [(b"host", b"localhost:80"), (b"origin", b"http://localhost")]
    assert refusal(scope, {"localhost"}) == "", "80 is the port of http"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "own"])
def test_a_web_socket_is_opened_for_our_own_page_only(served: Served, origin: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    where = f"ws://127.0.0.1:{served.guarded}/graphql"
    if origin == "own":
        with connect(where, origin=f"http://127.0.0.1:{served.guarded}", subprotocols=["graphql-ws"]) as talk:  # type: ignore[list-item,arg-type]
            talk.send(json.dumps({"type": "connection_init"}))
            assert json.loads(talk.recv(10)) == {"type": "connection_ack"}
        return
    with connect(where.replace(str(served.guarded), str(served.bare)), origin=origin, subprotocols=["graphql-ws"]):  # type: ignore[list-item,arg-type]
        pass  # Dagster alone opens it
    with pytest.raises(InvalidStatus, match="403"), connect(where, origin=origin, subprotocols=["graphql-ws"]):  # type: ignore[list-item,arg-type]
        pass


def test_what_make_ui_starts_has_the_guard_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command runs ``dagster dev``; of what that starts, the web server is ours and the daemon its own."""
    assert "palimpsest ui" in (ROOT / "Makefile").read_text() and "dagster dev" not in (ROOT / "Makefile").read_text()
    from dagster._cli import dev
    from dagster_webserver import cli

    started: list[list[str]] = []
    start = ui_server._guarding(lambda parts, **_: started.append(list(parts)))
    start(["python", "-m", "dagster_webserver", "--port", "1"], pass_fds=[1])
    start(["python", "-m", "dagster._daemon", "run"], pass_fds=[1])
    assert [parts[2] for parts in started] == ["pipelines.ui_server", "dagster._daemon"]
    assert started[0][3:] == ["--port", "1"]
    for unknown in (
        ["python", "-m", "dagster_webserver2"],
        ["dagster-webserver"],
        ["python", "dagster_webserver", "x"],
    ):
        with pytest.raises(ConfigError, match="no guard"):
            start(unknown)
    ran: list[Any] = []
    monkeypatch.setattr(dev.dev_command, "main", lambda asked, **_: ran.append((asked, dev.open_ipc_subprocess)))
    monkeypatch.setattr(dev, "open_ipc_subprocess", dev.open_ipc_subprocess)
    monkeypatch.setenv("PYTHONPATH", "x")
    ui_server.serve(port=3210, root=tmp_path)
    (asked, inside), *_ = ran
    assert asked[asked.index("--host") + 1] == "127.0.0.1" and asked[asked.index("--port") + 1] == "3210"
    with pytest.raises(ConfigError, match="no guard"):
        inside(["python", "-m", "something"])
    monkeypatch.setattr(cli, "create_app_from_workspace_process_context", None)
    monkeypatch.setattr(cli, "main", lambda: ran.append(cli.create_app_from_workspace_process_context))
    ui_server.main()
    assert ran[-1] is ui_server.guarded_app


def test_a_name_or_port_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    monkeypatch.setattr(ui_server, "serve", lambda **_: pytest.fail("it was started"))
    for name in ("https://audit.example.org", "a,b", "audit.example.org:443", ""):
        done = CliRunner().invoke(commands, ["ui", "--allow-host", name])
        assert isinstance(done.exception, ConfigError) and "without scheme and port" in str(done.exception)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = CliRunner().invoke(commands, ["ui", "--port", str(taken.getsockname()[1])])
    assert isinstance(done.exception, ConfigError) and "cannot be listened on" in str(done.exception)


# --- behind a proxy
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx with docs/nginx.conf: other ports and files, otherwise as it stands."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert nginx, "nginx is missing: apt-get install nginx-light"
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN={NAME} -keyout "
        f"{folder}/palimpsest.key -out {folder}/palimpsest.crt".split(),
        check=True,
        capture_output=True,
    )
    made = subprocess.run(["openssl", "passwd", "-apr1", "open sesame"], check=True, capture_output=True, text=True)
    (folder / "palimpsest.htpasswd").write_text(f"ann:{made.stdout}")
    conf = (ROOT / "docs" / "nginx.conf").read_text()
    for what, by in (("/etc/nginx/", f"{folder}/"), ("127.0.0.1:3000", f"127.0.0.1:{served.guarded}")):
        assert what in conf
        conf = conf.replace(what, by)
    conf = conf.replace("listen 443", f"listen 127.0.0.1:{port}")
    temporary = "".join(f"{t}_temp_path {folder};" for t in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "main.conf").write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}"
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{}} http {{ access_log {folder}/access.log; {temporary}\n{conf}\n}}"
    )
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    server = subprocess.Popen([nginx, "-c", str(folder / "main.conf"), "-p", str(folder)], stderr=subprocess.PIPE)
    try:
        for _ in range(200):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, server.stderr.read() if server.stderr else ""
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def test_behind_the_proxy_only_who_logs_in_is_answered_and_the_guard_still_stands(served: Served, proxied: int) -> None:
    def through(headers: dict[str, str], method: str = "GET", path: str = "/server_info", body: str = "") -> int:
        return ask(proxied, method, path, {"Host": f"{NAME}:{proxied}", **headers}, body, tls=True)[0]

    def signed(text: str) -> dict[str, str]:
        return {"Authorization": f"Basic {b64encode(text.encode()).decode()}"}

    ann, own = signed("ann:open sesame"), {"Origin": f"https://{NAME}:{proxied}"}
    assert through({}) == 401 and through(signed("ann:wrong")) == 401 and through(signed("eve:open sesame")) == 401
    assert through(ann) == 200
    assert through({"Host": "evil.example"}) == 421 and through({**ann, "Host": "evil.example"}) == 421
    body = json.dumps({"query": SET.format(key="proxied")})
    assert through({**JSON}, "POST", "/graphql", body) == 401
    for foreign in ({"Origin": "https://evil.example"}, {"Origin": f"http://{NAME}:{proxied}"}, {"Origin": "null"}):
        assert through({**ann, **JSON, **foreign}, "POST", "/graphql", body) == 403
    assert through(ann, path=f"/graphql?query={quote(SET.format(key='proxied'))}") == 403
    assert "proxied" not in graphql(served.guarded, KEYS)[1]
    assert through({**ann, **JSON, **own}, "POST", "/graphql", body) == 200
    assert "proxied" in graphql(served.guarded, KEYS)[1]


def test_web_sockets_pass_the_proxy_with_a_log_in(proxied: int) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    context = ssl._create_unverified_context()
    where, origin = f"wss://{NAME}:{proxied}/graphql", f"https://{NAME}:{proxied}"
    ann = {"Authorization": f"Basic {b64encode(b'ann:open sesame').decode()}"}

    def opened(origin: str, headers: dict[str, str]) -> Any:
        with (
            socket.create_connection(("127.0.0.1", proxied)) as sock,
            connect(
                where,
                sock=sock,
                ssl=context,
                server_hostname=NAME,
                origin=origin,  # type: ignore[arg-type]
                additional_headers=headers,
                subprotocols=["graphql-ws"],  # type: ignore[list-item]
            ) as talk,
        ):
            talk.send(json.dumps({"type": "connection_init"}))
            return json.loads(talk.recv(10))

    assert opened(origin, ann) == {"type": "connection_ack"}
    for status, asked, headers in (("401", origin, {}), ("403", "https://evil.example", ann)):
        with pytest.raises(InvalidStatus, match=status):
            opened(asked, headers)


# --- in a browser
# -----------------------------------------------------------------------------------------------------------------

FOREIGN_PAGE = """<!doctype html><title>evil</title><script>
window.tried = (async () => {
  const at = (key) => `http://${location.hash.slice(1)}/graphql?query=` + encodeURIComponent(SET.replace("KEY", key));
  const body = (key) => JSON.stringify({query: SET.replace("KEY", key)});
  const picture = new Promise(done => { const i = new Image(); i.onload = i.onerror = done; i.src = at("picture"); });
  const quiet = (promise) => promise.catch(() => 0);
  const form = document.createElement("form");
  const frame = document.createElement("iframe"); frame.name = "f"; document.documentElement.append(frame, form);
  form.method = "POST"; form.target = "f"; form.action = at("form");
  const submitted = new Promise(done => { frame.onload = done; }); form.submit();
  await Promise.all([picture, submitted,
    quiet(fetch(at("get"), {mode: "no-cors"})),
    quiet(fetch(at("text").split("?")[0], {method: "POST", mode: "no-cors", body: body("text"),
      headers: {"Content-Type": "text/plain;application/json"}}))]);
  return await new Promise(done => { const w = new WebSocket(at("").split("?")[0].replace("http", "ws"), "graphql-ws");
    w.onopen = () => done("opened"); w.onerror = () => done("closed"); });
})();
</script>"""


@pytest.fixture(scope="module")
def foreign_page() -> Iterator[int]:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    set_key = json.dumps(SET.format(key="browser-KEY"))

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FOREIGN_PAGE.replace("<script>", f"<script>const SET = {set_key};").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_foreign_page_in_a_real_browser_changes_nothing(served: Served, foreign_page: int) -> None:
    from playwright.sync_api import sync_playwright

    tries = ("picture", "form", "get", "text")
    arguments = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page()
        for host in ("evil.example", "localhost"):
            for port, opened in ((served.bare, "opened"), (served.guarded, "closed")):
                for key in tries:
                    served.instance.event_log_storage.delete_concurrency_limit(f"browser-{key}")
                page.goto(f"http://{host}:{foreign_page}/#127.0.0.1:{port}")
                page.reload()
                assert page.evaluate("window.tried") == opened
                known = graphql(served.guarded, KEYS)[1]
                made = {key for key in tries if f"browser-{key}" in known}
                assert made == (set(tries) if port == served.bare else set()), (host, made)
        assert page.goto(f"http://evil.example:{served.guarded}/runs").status == 403, "a name made to point here"
        assert page.goto(f"http://evil.example:{served.bare}/runs").status == 200
        with page.expect_response(lambda r: "/graphql" in r.url and r.request.method == "POST") as asked:
            page.goto(f"http://127.0.0.1:{served.guarded}/runs")
        assert asked.value.status == 200, "the interface itself is answered"
        browser.close()
