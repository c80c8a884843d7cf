"""A process that has loaded what unlearning jobs run on, and forks one process a job.

Loading takes longer (five seconds) than many a job, so a run that has several loads once, while it is busy with other
things. The host does nothing but load and fork: it uses no pool of threads, which a fork would lose, and nothing of a
job stays in it.

    stdin    a JSON line a job: {"job": path of job.json, "stderr": path, "env": its environment}
    stdout   a line with the process id of the job, and one with its exit status (below 0: the signal) when it has ended

The host ends with its starter; a job at work goes on, and whoever wants its result next adopts it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from contracts.errors import JobLost


class WorkerHost:
    """A host, as its starter sees it. It loads from now on; nobody waits for that but the first job. One job at a time:
    who does not wait for the status of the last closes the host.

    Args:
        worker: module with ``main(path of job.json)`` and, if it likes, ``prepare()``.
        path: Python's path, as in PYTHONPATH. The working folder of its jobs is the one of now.
    """

    def __init__(self, worker: str, path: str) -> None:
        self._made_for = worker, path, Path.cwd()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the host
        self._process = subprocess.Popen(
            # -P: what lies in the working folder must not hide a package of ours
            [sys.executable, "-P", "-m", "pipelines.worker_host", worker],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            bufsize=0,
            start_new_session=True,
        )
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None and answers is not None
        self._jobs, self._answers = jobs, answers
        self.close = weakref.finalize(self, _close, self._process, self._words)

    def serves(self, worker: str, path: str) -> bool:
        """Whether it is alive, and what a new host would be now."""
        return self._process.poll() is None and self._made_for == (worker, path, Path.cwd())

    def fork(self, job: Path, *, env: Mapping[str, str], stderr: Path) -> int:
        """Begin a job; its process id.

        Raises:
            JobLost: the host could not load, or was killed.
        """
        line = json.dumps({"job": str(job), "stderr": str(stderr), "env": dict(env)})
        with suppress(BrokenPipeError):  # what happened is said by the answer
            self._jobs.write(line.encode() + b"\n")
        return self._answer()

    def status(self, wait_s: float) -> int | None:
        """The exit status of the job that was begun last; None while it is at work, after ``wait_s`` seconds.

        Raises:
            JobLost: the host was killed.
        """
        return self._answer() if select.select([self._answers], [], [], wait_s)[0] else None

    def _answer(self) -> int:
        if line := self._answers.readline():
            return int(line)
        what = "the process that starts unlearning jobs"
        if (status := self._process.wait()) < 0:
            raise JobLost(f"{what} was killed by {signal.Signals(-status).name}; the same command starts another")
        self._words.seek(0)
        said = self._words.read().decode(errors="replace").strip().splitlines()
        raise JobLost(f"{what} ended: {said[-1] if said else 'it said nothing'}")


def _close(process: subprocess.Popen[bytes], words: IO[bytes]) -> None:
    """Let a host end; it is waited for unless it waits for a job, which goes on."""
    for file in (process.stdin, process.stdout, words):
        if file is not None:
            file.close()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """Entry of the host: ``python -m pipelines.worker_host MODULE``."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    worker = importlib.import_module(sys.argv[1])
    getattr(worker, "prepare", lambda: None)()
    gc.freeze()  # what is shared with the jobs stays shared
    while line := sys.stdin.readline():
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            os.close(answers)
            _work(worker.main, **job)
        os.write(answers, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _work(main: Callable[[Path], None], *, job: str, stderr: str, env: dict[str, str]) -> None:
    """The life of a job's process: does not return."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # who starts the host may ignore it; its jobs are ended by it
        os.environ.clear()
        os.environ.update(env)
        with Path(os.devnull).open("rb") as nothing, Path(stderr).open("ab") as words:
            os.dup2(nothing.fileno(), 0)
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
        main(Path(job))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what the host would do at its end is not the job's


if __name__ == "__main__":
    main()
