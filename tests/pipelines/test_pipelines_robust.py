"""What goes wrong around the program is one message and exit status 2, and reading waits for nobody: each from the
command on."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from recorded_state import PLAN
from typer.testing import CliRunner

from contracts.errors import JobLost, LockTimeout, NotTrusted, in_words, may_pass, no_memory
from contracts.subject import Subject
from pipelines import launchers
from pipelines.cli import app as command
from pipelines.subjects import write_subject
from pipelines.worker_host import WorkerHost
from warehouse import Warehouse, lock
from warehouse.verify import verify

pytestmark = pytest.mark.journey

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-P", "-m", "palimpsest"]
READING = (
    ["sql", "SELECT count(*) AS n FROM data.examples"],
    ["report", "wine"],
    ["trace", "0"],
    ["verify"],
    ["request", "list", "wine"],
    ["request", "show", "wine", "r-1"],
    ["doctor"],
)
HOLDER = """
import sys, time
from pathlib import Path
from warehouse import Warehouse
w = Warehouse.open(Path(sys.argv[1]))
with w.transaction() as t:
    t.note("note", {})
    print("held", flush=True)
    time.sleep(300)
"""


def palimpsest(
    *words: str, cwd: Path, env: Mapping[str, str | None] = {}, before: str = "", timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own. ``before``: shell lines run first, in a mount namespace of its own."""
    whole = {"PYTHONPATH": str(ROOT), **os.environ, **env}
    given = {name: value for name, value in whole.items() if value is not None}
    call = [*MAIN, *words]
    if before:
        call = ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$@"', "sh", *call]
    return subprocess.run(call, cwd=cwd, env=given, capture_output=True, text=True, timeout=timeout)


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """One message with these words, and exit status 2."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    text = " ".join(done.stderr.split())
    assert all(part in text for part in said), text


@pytest.fixture
def home(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(recorded, tmp_path / "home"))
    write_subject(Subject.from_mapping(PLAN), home, comment="a test")
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    return home


@pytest.fixture
def mounting() -> None:
    """Skip where file systems cannot be mounted."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own")


@pytest.fixture
def writer(home: Path) -> Iterator[None]:
    """A process in the middle of a transaction: it has the lock and the database open."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        yield
    finally:
        child.kill()
        child.wait()


# --- reading
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", READING, ids=lambda words: "-".join(words[:2]).replace("SELECT count(*)", "q")[:20])
def test_reading_does_not_wait_for_a_writer(home: Path, writer: None, words: list[str]) -> None:
    started = time.monotonic()
    done = CliRunner().invoke(command.app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.exception, done.output)
    assert time.monotonic() - started < 30, "the lock is waited for by writers only, up to two minutes"
    if words == ["verify"]:
        said = " ".join(done.output.split())
        assert "A run is writing" in said and "WHOLE what has been published of the state folder" in said


def test_verify_of_a_writers_folder_finds_what_is_wrong_with_what_it_published(home: Path, writer: None) -> None:
    w = Warehouse.existing(home)
    assert verify(w).whole and verify(w).published_only and verify(w).head == w.published_head()
    w.snapshot.write_bytes(w.snapshot.read_bytes()[:-4096] + bytes(4096))
    (content,) = (home / "artifacts").glob("wine/models/target/weights.*.safetensors")
    content.write_bytes(content.read_bytes()[:-1] + b"x")
    assert any("weights" in problem.sentence for problem in verify(w).problems)
    w.snapshot.unlink()
    with pytest.raises(LockTimeout, match="held by process"):
        verify(w)


def test_reading_works_where_nothing_can_be_written(home: Path, tmp_path: Path, mounting: None) -> None:
    read_only = f"mount --bind {home} {home}; mount -o remount,ro,bind {home}"
    every = "; ".join(f"app({words!r}, standalone_mode=False)" for words in READING[:-1] if words != ["verify"])
    script = f"from pipelines.cli.app import app; {every}; app(['verify'])"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{read_only}\nexec "$@"', "sh", sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "WHOLE" in done.stdout and "wine/reports/audit.html" in done.stdout and "r-1" in done.stdout
    refused(palimpsest("audit", "wine", cwd=tmp_path, before=read_only), "no access (read-only file system)", str(home))


@pytest.mark.promise("B1")
def test_a_damaged_snapshot_is_said_and_published_anew_by_whoever_reads(home: Path, tmp_path: Path) -> None:
    w = Warehouse.existing(home)
    good = w.snapshot.read_bytes()
    w.snapshot.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = palimpsest("sql", "SELECT count(*) AS n FROM data.examples", "-f", "csv", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "n\n178\n", done.stderr
    assert "is damaged" in done.stderr and "it was published anew" in " ".join(done.stderr.split())
    for words in READING:
        w.snapshot.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        said = CliRunner().invoke(command.app, words, env={"COLUMNS": "200"})
        if words == ["verify"]:
            assert said.exit_code == 1 and "palimpsest audit" in said.output, "it repairs nothing"
        else:
            assert said.exit_code == 0, (words, said.exception, said.output)


def test_looking_needs_no_lock_where_there_can_be_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(lock, "exclusive", refuse)
    found = verify(Warehouse.existing(home))
    assert found.whole and not found.published_only


# --- where state is
# ---------------------------------------------------------------------------------------------------------


def test_no_state_is_made_by_reading_and_a_new_one_is_said(tmp_path: Path, home: Path) -> None:
    for words in (["sql", "SELECT 1"], ["report", "digits"], ["verify"], ["request", "list", "digits"]):
        refused(palimpsest(*words, cwd=tmp_path, env={"PALIMPSEST_HOME": None}), "there is no state in this folder")
    assert not (tmp_path / ".palimpsest").exists()
    done = palimpsest("audit", "nobody", cwd=tmp_path, env={"PALIMPSEST_HOME": None})
    refused(done, "UnknownName", f"State: {tmp_path / '.palimpsest'} (new, in the working folder")
    refused(palimpsest("audit", "nobody", cwd=tmp_path), f"State: {home} (named by PALIMPSEST_HOME)")


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "nobody"],
        ["request", "add", "nobody", "--ids", "3"],
        ["request", "hold", "digits", "r1", "--why", "a test"],
        ["certify", "nobody", "r1"],
        ["import-checkpoint", "--remove", "net"],
        ["init", "x", "--data", "no.csv"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_command_that_fails_before_it_writes_leaves_no_state(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for named in (None, str(tmp_path / "elsewhere")):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PALIMPSEST_HOME", named) if named else monkeypatch.delenv("PALIMPSEST_HOME", raising=False)
        monkeypatch.setattr(sys, "argv", ["palimpsest", *words])
        with pytest.raises(SystemExit):
            command.main()
        assert "(new, " in capsys.readouterr().err and not list(tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SystemExit):
        command.main()
    assert (tmp_path / "elsewhere").is_dir(), "what was there before stays"


@pytest.mark.parametrize("words", [["audit", "digits"], ["sql", "SELECT 1"], ["doctor"]], ids=lambda words: words[0])
@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path, words: list[str], below: str) -> None:
    (tmp_path / "file").write_text("mine")
    named = f"{tmp_path}/file{below}"
    if below and words[0] != "audit":
        return  # nothing lies there, and nothing is to be made there
    refused(
        palimpsest(*words, cwd=tmp_path, env={"PALIMPSEST_HOME": named}), f"PALIMPSEST_HOME={named} is not a folder"
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_table_is_not_written_into_a_folder_that_is_not_there(home: Path, tmp_path: Path) -> None:
    refused(palimpsest("sql", "SELECT 1", "-o", "no/such/x.csv", cwd=tmp_path), "no/such/x.csv", "there is no folder")
    refused(palimpsest("sql", "SELECT 1", "-o", str(tmp_path), cwd=tmp_path), "is a folder")
    done = palimpsest("sql", "SELECT 1 AS one", "-o", "x.json", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "x.json").read_text() == '[{"one":1}]\n'


# --- what stands around it
# ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluttered(tmp_path: Path) -> Path:
    """A working folder with packages of our names, and the DAGSTER_HOME of another project."""
    for name in ("assets", "reports", "contracts", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "scoring.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return tmp_path


def test_an_audit_among_packages_of_our_names_under_another_dagster_on_a_plain_terminal(
    home: Path, cluttered: Path
) -> None:
    env = {
        "PYTHONPATH": f"{cluttered}:{ROOT}",
        "DAGSTER_HOME": str(cluttered / "theirs"),
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
    }
    done = palimpsest("audit", "wine", cwd=cluttered, env=env)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.isascii() and "Audit of wine" in done.stdout and "target" in done.stdout
    assert "another Dagster's: it is left alone" in done.stderr
    assert [path.name for path in (cluttered / "theirs").iterdir()] == ["dagster.yaml"]
    assert (home / "runs.db").exists() or any(home.glob("**/runs.db"))


def test_a_worker_finds_this_program_whatever_lies_in_the_working_folder(
    cluttered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluttered)
    host, words = WorkerHost(launchers.WORKER, launchers._path()), tmp_path / "words.txt"
    host.fork(Path("missing.json"), env=os.environ, stderr=words)
    while host.status(0.1) is None:
        pass
    host.close()
    assert "FileNotFoundError" in words.read_text() and "not ours" not in words.read_text()


def test_data_leave_as_utf8_whatever_the_terminal_prints(home: Path, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    query = "SELECT '\u00e9\u2013\u6f22' AS s"
    done = palimpsest("sql", query, "-f", "csv", cwd=tmp_path, env=env)
    assert done.returncode == 0 and done.stdout == "s\n\u00e9\u2013\u6f22\n"
    done = palimpsest("sql", query, cwd=tmp_path, env=env)
    assert done.returncode == 0 and r"\xe9-\u6f22" in done.stdout


# --- the disk
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("A4")
def test_a_full_disk_is_named(tmp_path: Path, mounting: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    before = f"mount -t tmpfs -o size=600k tmpfs {small}"
    done = palimpsest("audit", "diabetes", cwd=tmp_path, env={"PALIMPSEST_HOME": str(small)}, before=before)
    refused(done, "the disk is full", str(small), "PALIMPSEST_HOME")


def test_a_file_that_may_not_grow_is_named(home: Path, tmp_path: Path) -> None:
    """The limit that a quota sets; it needs no privilege, so this runs everywhere."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    call = [sys.executable, "-c", limit + "from pipelines.cli import main; main()"]
    words = ["request", "hold", "wine", "r-1", "--why", "a test"]
    done = subprocess.run([*call, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    refused(done, "the disk is full", str(home))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- code that is not ours
# ----------------------------------------------------------------------------------------------------


def test_whatever_a_users_model_raises_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_raising_nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2:\n"
        "            raise KeyError('no such\\nlayer')\n"
        "        return super().forward(x)\n"
        "def build(shape, k): return Net(shape[0], k)\n"
    )
    plan = {**PLAN, "model": {"name": "my_raising_nets:build"}}
    write_subject(Subject.from_mapping(plan), tmp_path / "state", comment="a test")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "argv", ["palimpsest", "audit", "wine"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "Traceback" not in said
    assert "KeyError" in said and "no such" in said and "layer" in said


def test_an_error_that_nothing_expects_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(command, "app", broken)
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "ZeroDivisionError: division by zero (test_pipelines_robust.py, line" in said
    assert "PALIMPSEST_TRACEBACK=1" in said
    monkeypatch.setenv("PALIMPSEST_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        command.main()


def test_memory_that_runs_out_in_torch_is_expected_and_says_what_takes_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def large() -> None:
        torch.empty(2**45, dtype=torch.float64)  # 256 TiB

    monkeypatch.setattr(command, "app", large)
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "the memory is not enough" in said and "Smaller inputs" in said
    assert "Nothing expects" not in said
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert may_pass(error) and no_memory(error)
    assert in_words(MemoryError("raise Limits.memory")) == "MemoryError: raise Limits.memory"
    assert not no_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_command_in_the_background_of_a_script_ends_at_sigterm_and_not_at_ctrl_c() -> None:
    """A shell without job control starts those with SIGINT ignored; Dagster then ignores SIGTERM as well."""
    code = (
        "import time\n"
        "from dagster._utils.interrupts import setup_interrupt_handlers\n"
        "from pipelines.cli import app as command\n"
        "def work():\n"
        "    setup_interrupt_handlers()\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(60)\n"
        "command.app = work\n"
        "command.main()\n"
    )
    script = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout is not None and running.stdout.readline() == "at work\n"
        running.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.terminate()
        try:
            said = running.communicate(timeout=20)[1]
        finally:
            running.kill()
    assert running.returncode == command.INTERRUPTED and "interrupted: what was stored is kept" in said


def test_only_what_may_pass_is_tried_again() -> None:
    assert may_pass(JobLost("killed")) and may_pass(LockTimeout("held")) and may_pass(OSError(5, "I/O error", "/x"))
    assert (
        not may_pass(OSError(28, "No space left", "/x")) and not may_pass(NotTrusted("no")) and not may_pass(KeyError())
    )
    assert in_words(OSError(28, "No space left on device", "/x")).startswith("the disk is full: /x.")


# --- interruption
# ----------------------------------------------------------------------------------------------------------------


def stages(w: Warehouse) -> set[tuple[str, int]]:
    with w.reading() as con:
        return set(con.execute("SELECT asset, seq FROM meta.stages").fetchall())


def test_an_interrupted_audit_ends_at_once_and_the_next_goes_on(small: Subject, tmp_path: Path) -> None:
    home = tmp_path / "home"
    plan = dataclasses.replace(
        small, unlearning=None, analyses=(), splits=(), scores=small.scores[:2], attacks=small.attacks[:1]
    )
    write_subject(plan, home, comment="a test")
    env = {"PYTHONPATH": str(ROOT), **os.environ, "PALIMPSEST_HOME": str(home)}
    asked = [*MAIN, "audit", plan.subject]
    with subprocess.Popen(asked, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while plan.subject + "/" not in (line := running.stderr.readline()):  # the first stage that is at work
            assert line
        at = time.monotonic()
        running.send_signal(signal.SIGTERM)
        rest = running.stderr.read()
    assert running.returncode == command.INTERRUPTED, rest
    assert time.monotonic() - at < 30 and "interrupted: what was stored is kept" in rest and "Traceback" not in rest
    finished = stages(Warehouse.open(home))
    done = palimpsest("audit", plan.subject, cwd=tmp_path, env={"PALIMPSEST_HOME": str(home)})
    assert done.returncode in (0, 1), done.stderr
    w = Warehouse.open(home)
    assert verify(w).whole
    assert finished <= stages(w), "what was finished is not done anew"
