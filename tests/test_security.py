"""SECURITY.md names a test for each defence, or says that there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(
    r"^\| (.+) \| (.+) \| (`.+`|not defended) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M
)


def test_every_threat_has_a_test_or_is_not_defended() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    threats = text.split("## Threats")[1].split("## The web interface")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ") and not line.startswith("| threat |")]
    assert len(rows) == len(ROWS) > 40
    assert 5 < sum(shown == "not defended" for *_, shown in ROWS) < len(ROWS) / 2


@pytest.mark.parametrize("named", sorted({name for *_, shown in ROWS for name in re.findall(r"`([^`]+)`", shown)}))
def test_the_test_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.M), named


def test_what_has_no_defence_has_none_said_to_be_tested() -> None:
    for threat, defence, shown in ROWS:
        assert threat.strip() and defence.strip() and ("::" in shown or shown == "not defended")
