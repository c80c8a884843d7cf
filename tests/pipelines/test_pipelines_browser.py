"""The Dagster UI as a person sees it: the subject's graph materialised, a picture in the metadata. Saves the README's
screenshots."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PICTURES = Path(os.environ.get("PALIMPSEST_SCREENSHOTS", ROOT / ".palimpsest" / "screenshots"))
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SUBJECT = os.environ.get("PALIMPSEST_UI_SUBJECT", "small")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def ui(audited_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What ``make ui`` starts, on a free port over the audited state folder."""
    home = Path(os.environ.get("PALIMPSEST_UI_HOME", audited_once))
    port = _free_port()
    env = {
        **os.environ,
        "PALIMPSEST_HOME": str(home),
        "DAGSTER_HOME": str(ROOT),
        "PYTHONPATH": str(ROOT),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    log = (tmp_path_factory.mktemp("ui") / "dagster.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "palimpsest", "ui", "--port", str(port)],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{url}/server_info", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, Path(log.name).read_text()[-2000:]
                time.sleep(1)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)
        log.close()


def test_the_graph_is_materialised_and_a_picture_is_shown(ui: str) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1500, "height": 2000})
        # Everything the report stands on, all groups open: the largest depth asked for is cut to what there is.
        lineage = "view=lineage&lineageScope=upstream&lineageDepth=10"
        page.goto(f"{ui}/assets/{SUBJECT}/reports/audit?{lineage}", wait_until="domcontentloaded")
        for name in ("examples", "target", "ensemble", "el2n", "retrain", "lira_online", "findings"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=120_000)
        page.wait_for_timeout(4000)
        page.screenshot(path=PICTURES / "graph.png")
        page.set_viewport_size({"width": 1600, "height": 900})
        page.goto(f"{ui}/assets/{SUBJECT}/scores/el2n?view=overview", wait_until="domcontentloaded")
        shown = page.get_by_text("[Show Markdown]").first
        shown.wait_for(timeout=120_000)
        shown.click()
        picture = page.locator("img[src^='data:image/png;base64']").first
        picture.wait_for(timeout=30_000)
        assert picture.evaluate("e => e.naturalWidth") > 200
        page.wait_for_timeout(1000)
        page.screenshot(path=PICTURES / "metadata.png")
        browser.close()


def test_verdicts_and_runs_are_where_a_person_looks(ui: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(f"{ui}/assets/{SUBJECT}/audits/findings?view=checks", wait_until="domcontentloaded")
        for name in ("removed_is_gone", "removal_lira_online", "removal_gap"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=120_000)
        page.get_by_text("removed_is_gone", exact=True).first.click()
        page.get_by_text("inconclusive", exact=True).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=PICTURES / "checks.png")
        page.goto(f"{ui}/overview/activity/timeline", wait_until="domcontentloaded")
        page.get_by_text(f"audit_{SUBJECT}", exact=True).first.wait_for(timeout=120_000)
        page.screenshot(path=PICTURES / "timeline.png")
        browser.close()


def test_every_asset_of_the_audit_is_materialised(ui: str) -> None:
    import json

    query = "query { assetNodes { assetKey { path } isPartitioned assetMaterializations(limit: 1) { runId } } }"
    request = urllib.request.Request(
        f"{ui}/graphql", data=json.dumps({"query": query}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        nodes = json.load(answer)["data"]["assetNodes"]
    mine = [n for n in nodes if n["assetKey"]["path"][0] == SUBJECT and not n["isPartitioned"]]
    assert len(mine) >= 15
    missing = [n["assetKey"]["path"] for n in mine if not n["assetMaterializations"]]
    assert not missing


def test_the_report_opens_without_a_network(audited_home: Path) -> None:
    from playwright.sync_api import sync_playwright

    from warehouse import Warehouse

    home = Path(os.environ.get("PALIMPSEST_UI_HOME", audited_home))
    w = Warehouse.open(home)
    page_file = home / w.artifacts.describe(f"{SUBJECT}/reports/audit.html").path
    requests: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        page.on("request", lambda r: requests.append(r.url))
        page.goto(page_file.resolve().as_uri())
        assert re.search(r"pass|fail|inconclusive|broken", page.locator("body").inner_text(), re.I)
        boxes = [figure.bounding_box() for figure in page.locator(".glance figure").all()]
        assert len(boxes) == 3 and all(box and box["y"] + box["height"] <= 1400 for box in boxes), "on the first screen"
        assert page.locator(".removed img").count() and page.locator("details[open]").count() == 0
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / "report.png")
        page.locator("#scores summary").first.click()
        page.locator("#scores details[open] figure img").first.wait_for()
        page.set_viewport_size({"width": 720, "height": 900})
        wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        assert page.evaluate(f"{wide}.length") > 0, "some table goes on past the edge"
        assert page.evaluate(f"{wide}.every(e => getComputedStyle(e).backgroundImage.includes('gradient'))")
        browser.close()
    assert not [url for url in requests if not url.startswith(("file:", "data:"))]
