"""A code location with the reaper and one slow asset, which puts one entry into the ledger: for a host that dies."""

from __future__ import annotations

import time

import dagster as dg

from pipelines.home import state_home
from pipelines.operations.definitions import reaper_sensor
from warehouse import Warehouse


@dg.asset(pool="cpu")
def slow() -> None:
    home = state_home()
    first = home / "first-attempt"
    if not first.exists():
        first.touch()
        time.sleep(600)
    w = Warehouse.open(home)
    if w.completed("host/data/slow", "key") is None:
        w.complete("host/data/slow", "key", outputs=[])


job = dg.define_asset_job("slow_job", selection=dg.AssetSelection.assets(slow))
defs = dg.Definitions(assets=[slow], jobs=[job], sensors=[reaper_sensor])
