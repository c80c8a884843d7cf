"""Audits in processes that start at once: everything that an audit imports is loaded, then each audit is a fork.

python audit_server.py MODULES    MODULES: a file with the names of the modules that an audit loads, a line each
    in    STATE_FOLDER            a line: audit its subject "crash"
    out   started PID, ended STATUS

What is loaded has started no thread: a fork after a library has started its threads would wait for them for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path


def audit(home: str) -> int:
    """``palimpsest audit crash`` in this process; its exit status."""
    from pipelines.cli import main

    os.environ["PALIMPSEST_HOME"] = home
    sys.argv = ["palimpsest", "audit", "crash"]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> None:
    """Load, then serve until the input ends."""
    for name in Path(sys.argv[1]).read_text().split():
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        home = line.strip()
        pid = os.fork()
        if not pid:
            os.setsid()
            log = os.open(f"{home}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = 70
            try:
                status = audit(home)
            finally:
                os._exit(status)
        print(f"started {pid}", flush=True)
        _, ended = os.waitpid(pid, 0)
        print(f"ended {os.waitstatus_to_exitcode(ended)}", flush=True)


if __name__ == "__main__":
    main()
