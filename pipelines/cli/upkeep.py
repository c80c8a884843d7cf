"""``palimpsest upkeep``: what the daily job does, by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines.cli.terminal import console, state_to_write
from pipelines.home import dagster_home


def upkeep() -> None:
    """Say which certificates and requests are due, end what was left behind, note the ledger's head, prune old logs.

    As operations.yaml of the state folder says; 'make ui' does it once a day.
    """
    home = state_to_write()
    dagster_home()
    import dagster as dg

    from pipelines.operations.upkeep import upkeep as keep

    with dg.DagsterInstance.get() as instance:
        lines = keep(home, instance, now=datetime.now(UTC))
    for line in lines or ["Nothing to do: no certificate and no request is due, and nothing was left behind."]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
