"""The warehouse under kills, failing disks, rot and rivals: readers see the old state or the new, the rerun
completes."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import warehouse_job as job

from contracts.errors import IntegrityError, LockTimeout, PalimpsestError
from contracts.tables import Column, TableSpec
from warehouse import Warehouse, faults, lock

pytestmark = pytest.mark.journey

ROOT = Path(__file__).resolve().parents[2]
POINTS = (Path(__file__).parent / "points.txt").read_text().split()
WRITING = [point for point in POINTS if not point.startswith("erasure.")]  # those: test_pipelines_erasure.py
SHORT = ("writer.after_delete", "writer.after_commit", "artifacts.after_content", "publish.after_copy")
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def child(home: Path, generation: int, fault: str = "") -> subprocess.CompletedProcess[str]:
    """The job in a process of its own."""
    command = [sys.executable, str(Path(job.__file__)), str(home), str(generation)]
    return subprocess.run(command, env={**ENV, faults.VARIABLE: fault}, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with generation 1 published."""
    home = tmp_path_factory.mktemp("chaos") / "home"
    job.run(home, 1)
    return home


@pytest.fixture(scope="module")
def golden(first: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the state after generations 1 and 2, undisturbed."""
    home = shutil.copytree(first, tmp_path_factory.mktemp("golden") / "home")
    return job.run(Path(home), 2)


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "home"))


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    faults._passages.clear()
    yield
    faults._passages.clear()


def test_points_are_those_of_the_code() -> None:
    packages = [
        "contracts",
        "sources",
        "recipes",
        "scoring",
        "curation",
        "unlearning",
        "attacks",
        "warehouse",
        "reports",
        "assets",
        "pipelines",
    ]
    found = {
        name
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r'\bfault\("([a-z_.]+)"', path.read_text())
    }
    assert found == set(POINTS) and sorted(POINTS) == POINTS


@pytest.mark.promise("A7")
def test_the_job_is_repeatable(home: Path, golden: str) -> None:
    assert job.run(home, 2) == golden
    head = job.open_warehouse(home).ledger.head()
    assert job.run(home, 2) == golden and job.open_warehouse(home).ledger.head() == head
    assert job.leftovers(home) == []


# ------------------------------------------------------------------- kills


def killed_and_resumed(home: Path, point: str, golden: str, generation: int, seen: set[int]) -> bool:
    """Kill the job at ``point``, look at what readers find, run it again. False when the point was not passed."""
    result = child(home, generation, point)
    if result.returncode == 0:
        return False
    assert result.returncode == -signal.SIGKILL, result.stderr
    if (home / "warehouse" / "palimpsest.duckdb").exists():
        assert job.problems(job.open_warehouse(home), seen) == [], point
    assert job.run(home, generation) == golden, point
    assert job.problems(job.open_warehouse(home), {generation}) == [], point
    assert job.leftovers(home) == [], point
    return True


@pytest.mark.parametrize("point", SHORT)
@pytest.mark.promise("A1")
def test_killed_at_a_point(home: Path, golden: str, point: str) -> None:
    assert killed_and_resumed(home, point, golden, 2, {1, 2})


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", WRITING)
@pytest.mark.promise("A1")
def test_killed_at_every_passage_of_every_point(first: Path, tmp_path: Path, golden: str, point: str) -> None:
    fresh = point.startswith("warehouse.")
    passages = 0
    for n in range(1, 200):
        home = tmp_path / f"home{n}"
        if fresh:
            passed = killed_and_resumed(home, f"{point}:{n}", job.run(tmp_path / "untouched", 1), 1, {1})
        else:
            shutil.copytree(first, home)
            passed = killed_and_resumed(home, f"{point}:{n}", golden, 2, {1, 2})
        shutil.rmtree(home)
        if not passed:
            break
        passages = n
    assert passages >= 1, f"{point} is never passed"


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.promise("A3")
def test_killed_at_random_moments(first: Path, tmp_path: Path, golden: str) -> None:
    rng = np.random.default_rng(11)
    command = [sys.executable, str(Path(job.__file__))]
    started = time.monotonic()
    child(Path(shutil.copytree(first, tmp_path / "timed")), 2)
    whole_s = time.monotonic() - started
    for i in range(30):
        home = Path(shutil.copytree(first, tmp_path / f"home{i}"))
        process = subprocess.Popen(
            [*command, str(home), "2"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3, 1.0) * whole_s)
        process.kill()
        process.wait()
        assert job.problems(job.open_warehouse(home), {1, 2}) == []
        assert job.run(home, 2) == golden and job.leftovers(home) == []
        shutil.rmtree(home)


# ------------------------------------------------- the n-th operation fails


def fail_nth(home: Path, n: int, code: str, golden: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Fail the n-th file operation of the job, then run it again. False when there was no n-th."""
    faults._passages.clear()
    monkeypatch.setenv(faults.VARIABLE, f"fsio:{n}={code}")
    try:
        job.run(home, 2)
        failed = False
    except OSError as error:
        failed = True
        assert error.errno == getattr(errno, code) and error.filename and str(home) in str(error.filename)
    monkeypatch.delenv(faults.VARIABLE)
    assert job.problems(job.open_warehouse(home), {1, 2}) == []
    assert job.run(home, 2) == golden
    assert job.leftovers(home) == []
    return failed


@pytest.mark.promise("A2")
def test_some_file_operations_fail(first: Path, tmp_path: Path, golden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, code in ((2, "ENOSPC"), (9, "EIO"), (17, "ENOSPC")):
        home = Path(shutil.copytree(first, tmp_path / f"home{n}"))
        assert fail_nth(home, n, code, golden, monkeypatch)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.promise("A2")
def test_every_file_operation_fails_once(
    first: Path, tmp_path: Path, golden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 0
    while True:
        n += 1
        home = Path(shutil.copytree(first, tmp_path / f"home{n}"))
        failed = fail_nth(home, n, ("EIO", "ENOSPC")[n % 2], golden, monkeypatch)
        shutil.rmtree(home)
        if not failed:
            break
    assert n > 25, "the job must pass many file operations"


@pytest.mark.parametrize(
    "point", ["writer.before_commit=EIO", "ledger.before_insert:3=ENOSPC", "publish.before_copy=EIO"]
)
def test_an_error_inside_a_transaction_rolls_it_back(
    home: Path, golden: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv(faults.VARIABLE, point)
    with pytest.raises(OSError, match="armed at"):
        job.run(home, 2)
    monkeypatch.delenv(faults.VARIABLE)
    assert job.problems(job.open_warehouse(home), {1, 2}) == []
    assert job.run(home, 2) == golden and job.leftovers(home) == []


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import numpy as np, polars as pl, warehouse_job as job
w = job.open_warehouse(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
n = 400_000
big = pl.DataFrame({{"example_id": range(n), "el2n": np.random.default_rng(0).random(n)}})
attempts = {{
    "replace": lambda: w.replace(job.SCORE, big, subject="digits", run_id="big", config_digest="big"),
    "artifact": lambda: w.artifacts.save("digits/big", {{"w": np.zeros(n)}}, {{}}),
    "publish": w.publish,
    "spill": lambda: w.query("SELECT count(*) FROM (SELECT DISTINCT hash(i) FROM range(20000000) t(i))"),
}}
try:
    attempts[sys.argv[2]]()
    print("done")
except Exception as error:
    print(type(error).__name__, "|", error)
"""


@pytest.mark.parametrize("what", ["replace", "artifact", "publish", "spill"])
@pytest.mark.promise("A4")
def test_a_full_disk_is_a_clear_error_and_the_old_state_stays(home: Path, golden: str, what: str) -> None:
    """The file size limit of a process stands for a full disk."""
    if what == "publish":
        w = job.open_warehouse(home)
        w.replace(
            job.SCORE,
            pl.DataFrame({"example_id": range(200_000), "el2n": np.random.default_rng(0).random(200_000)}),
            subject="wine",
            run_id="r",
            config_digest="c",
        )
    limit = (home / "warehouse" / "palimpsest.duckdb").stat().st_size + (64 << 10) if what == "replace" else 256 << 10
    code = FULL.format(folder=str(Path(job.__file__).parent), limit=limit)
    result = subprocess.run(
        [sys.executable, "-c", code, str(home), what], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    kind, _, message = result.stdout.strip().partition(" | ")
    assert kind in ("OSError",), result.stdout
    assert str(home) in message
    assert job.problems(job.open_warehouse(home), {1}) == []
    assert job.run(home, 2) is not None and job.problems(job.open_warehouse(home), {2}) == []
    assert job.leftovers(home) == []


# ---------------------------------------------------------------------- rot


def rotted(path: Path, flips: int, seed: int) -> Iterator[tuple[int, int]]:
    """Flip one bit at a seeded place, yield where, restore."""
    good = path.read_bytes()
    for place in np.random.default_rng(seed).choice(len(good) * 8, size=flips, replace=False).tolist():
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(bad))
        yield place // 8, place % 8
    path.write_bytes(good)


def look_everywhere(home: Path) -> tuple[str, object]:
    w = job.open_warehouse(home)
    with w.reading() as con:
        rows = {
            name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()
            for name in ("data.examples", "scores.el2n", "scores.latest", "ledger.entries", "requests.register")
        }
    return job.state(w), rows


def silent_rot(home: Path, flips: int, seed: int) -> tuple[list[tuple[int, int]], int]:
    """Places whose flip is neither found nor harmless; and how many were found."""
    before = look_everywhere(home)
    silent, found = [], 0
    for where in rotted(home / "warehouse" / "palimpsest.duckdb", flips, seed):
        try:
            w = job.open_warehouse(home)
            if w.ledger.verify().problems or w.verify_tables():
                found += 1
            elif look_everywhere(home) != before:
                silent.append(where)
        except PalimpsestError:
            found += 1
    return silent, found


@pytest.mark.promise("B1")
def test_a_flipped_bit_in_the_database_is_found_or_harmless(home: Path) -> None:
    silent, _ = silent_rot(home, 12, seed=3)
    assert silent == []


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.promise("B1")
def test_two_hundred_flipped_bits_in_the_database(home: Path) -> None:
    silent, found = silent_rot(home, 200, seed=4)
    assert silent == [] and found > 20


@pytest.mark.promise("A8")
def test_a_torn_write_ahead_log_is_noticed(home: Path) -> None:
    """Killed after commit and mirror, before the log was merged; then the log loses its last bytes."""
    before = job.open_warehouse(home).ledger.head()
    result = child(home, 2, "writer.after_mirror")
    assert result.returncode == -signal.SIGKILL
    log = home / "warehouse" / "palimpsest.duckdb.wal"
    intact = Path(shutil.copytree(home, home.with_name("intact")))
    w = job.open_warehouse(intact)
    assert w.ledger.verify().ok and w.ledger.head().seq > before.seq
    with log.open("rb+") as file:
        file.truncate(log.stat().st_size - 7)
    w = Warehouse.open(home)
    report = w.ledger.verify()
    assert not report.ok and report.first_missing == before.seq + 1 and "head mismatch" in report.problems[0]
    with pytest.raises(IntegrityError, match="head mismatch"):
        job.run(home, 2)


# ------------------------------------------------------------------- rivals

PART = TableSpec(
    schema="test",
    name="parts",
    doc="d",
    key=("part", "example_id"),
    partition=("part",),
    columns=(
        Column(name="part", dtype="str", doc="p"),
        Column(name="example_id", dtype="int64", doc="i"),
        Column(name="round", dtype="int64", doc="r"),
    ),
)

RIVAL = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import polars as pl, warehouse_job as job
from test_chaos_warehouse import PART
w = job.open_warehouse(Path(sys.argv[1]))
part, rounds = sys.argv[2], int(sys.argv[3])
for i in range(rounds):
    frame = pl.DataFrame({{"example_id": range(50), "round": [i] * 50}})
    w.replace(PART, frame, partition={{"part": part}}, subject="digits", run_id=part, config_digest="c")
    if i % 5 == 4:
        w.publish()
"""


def rivals(home: Path, writers: int, rounds: int) -> None:
    code = RIVAL.format(folder=str(Path(job.__file__).parent))
    before = job.open_warehouse(home).ledger.head().seq
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home), f"p{i}", str(rounds)], env=ENV, stderr=subprocess.PIPE, text=True
        )
        for i in range(writers)
    ]
    w, done, problems, reads = job.open_warehouse(home), threading.Event(), [], [0]

    def read() -> None:
        last = 0
        while not done.is_set():
            try:
                exists = w.query("SELECT count(*) AS n FROM duckdb_tables() WHERE table_name = 'parts'")["n"][0]
                seq = w.query("SELECT max(seq) AS n FROM ledger.entries")["n"][0]
                torn = (
                    w.query(
                        "SELECT part FROM test.parts GROUP BY part HAVING count(*) <> 50 OR min(round) <> max(round)"
                    ).height
                    if exists
                    else 0
                )
                if torn or seq < last:
                    problems.append((torn, seq, last))
                last, reads[0] = seq, reads[0] + 1
            except Exception as error:
                problems.append(error)
            time.sleep(0.02)

    reader = threading.Thread(target=read)
    reader.start()
    errors = [process.communicate(timeout=240)[1] for process in processes]
    done.set()
    reader.join()
    assert [p.returncode for p in processes] == [0] * writers, errors
    assert problems == [] and reads[0] > 0
    w.publish()
    rows = w.query(
        "SELECT part, min(round) AS low, max(round) AS high, count(*) AS n FROM test.parts GROUP BY part ORDER BY part"
    )
    assert rows.rows() == [(f"p{i}", rounds - 1, rounds - 1, 50) for i in range(writers)]
    report = w.ledger.verify()
    assert report.ok and report.head.seq == before + 1 + writers * rounds
    assert w.verify_tables() == [] and job.leftovers(home) == []


@pytest.mark.promise("D1")
def test_two_writers_and_a_reader(home: Path) -> None:
    rivals(home, writers=2, rounds=6)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.promise("D1")
def test_four_writers_and_a_reader(home: Path) -> None:
    rivals(home, writers=4, rounds=50)


HOLDER = """
import sys, time
from pathlib import Path
from warehouse import lock
with lock.exclusive(Path(sys.argv[1]), timeout_s=5):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.mark.promise("D3")
def test_a_killed_holder_leaves_no_stale_lock_and_a_living_one_is_named(home: Path) -> None:
    path = home / "warehouse" / "writer.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], env=ENV, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        w = Warehouse.open  # opening needs the lock too
        with pytest.raises(LockTimeout, match=f"held by process {holder.pid} for more than 0.2 s"):
            w(home, lock_timeout_s=0.2)
    finally:
        holder.kill()
        holder.wait()
    started = time.monotonic()
    with lock.exclusive(path, timeout_s=5):
        pass
    assert time.monotonic() - started < 1
    assert job.open_warehouse(home).ledger.append("note", {}).seq > 0


def test_threads_of_one_process_exclude_each_other(home: Path) -> None:
    w, errors = job.open_warehouse(home), []
    before = w.ledger.head().seq

    def work(name: str) -> None:
        try:
            for i in range(4):
                w.ledger.append("note", {"by": name, "i": i})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and w.ledger.verify().ok and w.ledger.head().seq == before + 16


@pytest.mark.promise("D2")
def test_twenty_publishes_under_an_open_reader(home: Path) -> None:
    """D2: the reader keeps its rows; the files of old snapshots go when the reader does."""
    w = job.open_warehouse(home)
    old = duckdb.connect(str(w.snapshot), read_only=True)
    old.begin()
    before = old.execute("SELECT count(*), max(seq) FROM ledger.entries").fetchone()
    for i in range(20):
        w.ledger.append("note", {"i": i})
        assert w.publish()
    assert old.execute("SELECT count(*), max(seq) FROM ledger.entries").fetchone() == before
    old.close()
    left = sorted(p.name for p in w.folder.iterdir() if "read" in p.name)
    assert left == ["palimpsest.read.duckdb", "palimpsest.read.sums.json"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
