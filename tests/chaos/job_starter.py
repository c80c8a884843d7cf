"""What waits for an unlearning job: python job_starter.py HOME POINT RUN; at POINT "before_record" it kills itself."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unlearn_job import JOB

from contracts.progress import silent
from pipelines import launchers


class Session:
    """Pipes without a Dagster run: nothing is carried back."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None: ...

    def get_bootstrap_env_vars(self) -> dict[str, str]:
        return {}


def main() -> None:
    import dagster

    home, point, run_id = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    dagster.open_pipes_session = lambda **_: Session()  # type: ignore[assignment]
    launchers.WORKER = "slow_worker"
    if point == "before_record":

        def die(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        launchers._write_record = die
    context = SimpleNamespace(log=logging.getLogger("test"), run=SimpleNamespace(run_id=run_id))
    launchers.PipesLauncher().run(JOB, home=home, context=context, progress=silent)


if __name__ == "__main__":
    main()
