"""What the documents and messages tell people to type is there: commands, their options, the SQL."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines.cli.app import app
from warehouse import Warehouse, queries

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]
GROUP = typer.main.get_command(app)
SOURCES = ("assets", "contracts", "palimpsest", "pipelines", "recipes", "reports", "sources", "warehouse")


def fenced(page: str) -> Iterator[str]:
    """The lines of the blocks of code that are no Python, SQL or YAML, and what stands between backticks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "bash", "sh"):
            yield from re.split(r"\n|; ", block)
    yield from re.findall(
        r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )


def typed(page: str) -> list[str]:
    """Commands as printed, without what a reader does not type."""
    found = [re.match(r"^\s*(?:\$ )?palimpsest (.+)$", line.replace("\n", " ")) for line in fenced(page)]
    return [re.sub(r"\s+#.*$", "", match[1]).strip() for match in found if match]


def wrong_with(words: list[str]) -> str:
    """No such command, no such option, or an argument too many; "" where it can be typed. Values are not judged."""
    command: Any = GROUP
    while commands := getattr(command, "commands", None):
        if not words or words[0].startswith("--"):
            return ""  # a group by itself: "palimpsest request"
        if words[0] not in commands:
            return f"there is no {words[0]!r} among {', '.join(commands)}"
        command, words = commands[words[0]], words[1:]
    try:
        _, rest, _ = command.make_parser(command.context_class(command)).parse_args(list(words))
    except Exception as error:  # typer has click inside, under names of its own
        return str(getattr(error, "message", error))
    return f"nothing takes {rest}" if rest and "..." not in rest else ""


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)])
def test_every_command_of_a_page_can_be_typed(page: str) -> None:
    lines = {line: shlex.split(re.sub(r"\[([^\]]*)\]", r"\1", line)) for line in typed(page)}  # [what may be left out]
    assert not {line: wrong for line, words in lines.items() if (wrong := wrong_with(words))}


def test_a_command_that_is_not_there_is_found() -> None:
    """The check above can fail."""
    for line in ("audti mine", "audit mine --fast", "request ad mine", "report a b", "sql --output x"):
        assert wrong_with(shlex.split(line)), line


def test_every_command_that_a_message_names_is_there() -> None:
    """In strings of the program: 'palimpsest request run ...' between quotes or backticks."""
    known = {name: getattr(command, "commands", {}) for name, command in GROUP.commands.items()}
    named = set()
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            for words in re.findall(r"['`]palimpsest ([a-z-]+(?: [a-z-]+)?)", path.read_text(encoding="utf-8")):
                first, _, second = words.partition(" ")
                named.add(first)
                assert first in known, f"{path.name}: palimpsest {words}"
                if known[first] and second:
                    assert second in known[first], f"{path.name}: palimpsest {words}"
    assert {"audit", "verify", "request", "erase"} <= named


@pytest.mark.parametrize("page", [page for page in PAGES if any(line.startswith("sql ") for line in typed(page))])
def test_every_question_of_a_page_is_answered(page: str, audited_home: Path) -> None:
    """The tables and columns are there; whatever they hold."""
    w = Warehouse.existing(audited_home)
    for words in map(shlex.split, typed(page)):
        if words[0] != "sql" or "..." in " ".join(words):
            continue
        if "--named" in words:
            assert queries.get(words[words.index("--named") + 1]).params.keys() >= {"subject"}
        for query in (word for word in words if word.startswith("SELECT")):
            assert (w.query_groups(query, k=10) if "--auditor" in words else w.query(query, ())).width
