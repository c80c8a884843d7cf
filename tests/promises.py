"""What is promised, the tests that show it, and how they last ended: ``docs/promises.md``.

    promise       a row of PROMISES: one sentence, under a letter and a number
    test          says by ``@pytest.mark.promise("A3")`` which promises it shows; found by reading the sources
    result        of the last recorded run into docs/promises.json: of ``make test``, ``journeys``, ``chaos``, ``stat``

``python -m tests.promises`` writes the page anew. A promise of the groups in WHOLE has a test, or stands in AWAITED.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "promises.md", ROOT / "docs" / "promises.json"
RECORD = "PALIMPSEST_RECORD_PROMISES"  # set to a file name: how the tests end is recorded there
MARK = "promise"
NOT_RUN, OPEN = "not run", "open"

GROUPS = {
    "A": "Crashes and disks",
    "B": "Damaged and hostile input",
    "C": "Figures and data",
    "D": "Concurrency, size and time",
    "E": "Erasure and evidence",
    "F": "The honesty of the statistics",
    "G": "Operation",
}
WHOLE = "ABEF"

PROMISES = {
    "A1": "A process killed at any named point leaves the state before or the state after, and running again ends in "
    "the state of an undisturbed run.",
    "A2": "Whichever file operation fails, the error names the file, readers see a whole state, and running again "
    "completes it.",
    "A3": "An audit killed a hundred times at random moments, and continued, ends in the digests of one that was not.",
    "A4": "A full disk is a clear error: what was published stays readable, work goes on once there is space, and no "
    "spilled data stay behind.",
    "A5": "Runs whose machine died are ended within a minute of the restart, give their slots back, and are done once.",
    "A6": "An unlearning job that outlives whoever started it is adopted or ended; two never work at the same time.",
    "A7": "Running again without a change computes and writes nothing, and says so.",
    "A8": "A ledger that lost its tail, by a torn log or a restored backup, is noticed, with the first entry missing.",
    "A9": "Nothing is a result too: no rows are stored, marked complete and not computed again.",
    "B1": "One changed bit in anything stored is found when it is opened or read.",
    "B2": "Cut, empty, foreign and swapped files are errors of our own that name the file and what was expected.",
    "B3": "Nothing that is read can run code: pickles are refused by their content under every name.",
    "B4": "A checkpoint in an old format enters by one command alone: in a child process with limits, and without a "
    "second, laxer try.",
    "B5": "Files that claim or unpack to absurd sizes are refused before memory is taken.",
    "B6": "Names and values cannot become SQL: names are refused, values come back byte for byte.",
    "B7": "Whoever queries can read published tables and do nothing else.",
    "B8": "No name, link or archive reads or writes outside the folder that was given.",
    "B9": "Text from data is shown as text: pages and metadata run none of it.",
    "B10": "The content of examples is in the data store and nowhere else: no log, event, metadata, report or alert.",
    "C1": "Losses that are not finite, constant features, one class, empty batches: an error or a documented value.",
    "C2": "Labels out of range or missing are refused with the ids and the range.",
    "C3": "Rows are joined by id: duplicates are refused, and the order of the rows changes nothing.",
    "C4": "Columns are matched by name; a missing, additional or wrongly typed one is refused and the old rows stay.",
    "C5": "Results do not depend on batch size, precision or the names of labels beyond the tolerance that is stated.",
    "C6": "Scores, attacks and influence equal closed forms, naive loops and planted truth.",
    "C7": "Selections and attacks beat chance, or their documentation says that they may not.",
    "C8": "The same seed on the same machine gives the same bits, in a fresh process too.",
    "C9": "Random numbers come from the seed alone; the global generators are left as they were.",
    "C10": "A training that was stopped and resumed ends in the bits of one that was not.",
    "D1": "Several writers lose nothing and never disturb a reader.",
    "D2": "A reader keeps its snapshot and does not delay a writer.",
    "D3": "The lock of a killed writer is free at once.",
    "D4": "A table of a hundred million scores is written, joined and replaced in bounded memory.",
    "D5": "Scoring streams: memory does not grow with the number of examples.",
    "D6": "A thousand partitions load in seconds.",
    "D7": "A clock that jumps changes neither the order of the ledger nor what is due.",
    "D8": "Audits that were due while nothing ran are made up for by one run, which is marked late.",
    "D9": "Fifty forget requests at once are worked off in few runs and keep a certificate each.",
    "E1": "After an erasure its bytes are in no file of the state folder.",
    "E2": "An erasure reaches everything that was made from an example, and its rehearsal says exactly what it does.",
    "E3": "An erasure that is interrupted anywhere is resumed; a closed request never has a living artefact.",
    "E4": "What was made without the erased examples stays as it was, bit for bit.",
    "E5": "A changed, deleted, swapped, inserted, cut or rewritten ledger is detected.",
    "E6": "A certificate verifies with the public key alone; a changed, expired, replaced or foreign one is refused "
    "with the reason, and those of every past release still verify.",
    "E7": "The report of a past audit is made again from what was stored, equal but for its time.",
    "F1": "Intervals cover the truth as often as they say.",
    "F2": "No claim goes beyond the number of examples and models: with fewer it is inconclusive, never a pass.",
    "F3": "Exact removal is accused no more often than alpha, and its p-values are uniform.",
    "F4": "What was not removed does not pass: planted canaries are found in untouched and barely changed models.",
    "F5": "A lower bound on epsilon stays below the true epsilon of known mechanisms, and the largest provable one is "
    "said.",
    "F6": "What set a threshold does not judge by it: trials that were used for both are refused.",
    "F7": "The worst case decides: one exposed example in a thousand fails an audit whose average looks clean.",
    "F8": "Examples that stay are watched: leakage of theirs that grows is reported and blocks.",
    "G1": "The definitions load without network, GPU, data or secrets.",
    "G2": "Imports point one way, and SQL stands in the warehouse only.",
    "G3": "Nothing reports to anybody: no telemetry, no network in the whole test run.",
    "G4": "Both lines of DuckDB that are supported pass, and files written by the older one open.",
    "G5": "The state of an earlier release is brought up to date, and that of a later one refused.",
    "G6": "A GPU gives the results of the CPU, within the tolerance that is stated.",
    "G7": "Event logs stay bounded: pruning keeps materialisations, checks and the anchors of the ledger.",
}

# Promises of these groups that may still be open.
AWAITED: frozenset[str] = frozenset()


@dataclass(slots=True)
class Case:
    """How the cases of one test ended together."""

    outcomes: dict[str, str] = field(default_factory=dict)  # node id -> passed | failed | skipped

    def __str__(self) -> str:
        bad = sum(o != "passed" for o in self.outcomes.values())
        n = len(self.outcomes)
        return f"failed ({bad} of {n})" if bad else "passed" + (f" ({n} cases)" if n > 1 else "")


def declared(root: Path = ROOT) -> dict[str, list[str]]:
    """Promise -> node ids of the tests (without parameters) that declare it, from the sources; nothing is imported."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if f"mark.{MARK}(" not in text:
            continue
        tree = ast.parse(text)
        whole_file = [
            code
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
            for code in _codes(node.value)
        ]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                codes = [*whole_file, *(code for mark in node.decorator_list for code in _codes(mark))]
                for code in dict.fromkeys(codes):
                    found.setdefault(code, []).append(f"{path.relative_to(root).as_posix()}::{node.name}")
    return found


def _codes(mark: ast.expr) -> list[str]:
    """The promises that an expression of marks names."""
    return [
        str(arg.value)
        for call in ast.walk(mark)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == MARK
        for arg in call.args
        if isinstance(arg, ast.Constant)
    ]


class Recorder:
    """Collects how the tests of a run ended; ``write`` merges it into the results of earlier runs."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}

    def note(self, nodeid: str, outcome: str, when: str) -> None:
        """A phase of a test: a failure of its set-up or clean-up is one of the test."""
        test = nodeid.partition("[")[0]
        if when == "call" or outcome != "passed":
            outcomes = self.cases.setdefault(test, Case()).outcomes
            if outcomes.get(nodeid) != "failed":
                outcomes[nodeid] = outcome

    def write(self, path: Path, *, tests: Iterable[str]) -> None:
        """Replace the results of these tests by those of this run; others keep theirs, and tests that are gone go."""
        wanted = set(tests)
        stored = {test: told for test, told in read_results(path).items() if test in wanted}
        when = {"on": datetime.now(UTC).date().isoformat(), "version": metadata.version("palimpsest-audit")}
        stored |= {test: {"result": str(case), **when} for test, case in self.cases.items() if test in wanted}
        path.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_results(path: Path = RESULTS) -> dict[str, dict[str, str]]:
    """Test -> {result, on, version} of its last recorded run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # type: ignore[no-any-return]


def status(tests: Iterable[str], results: Mapping[str, Mapping[str, str]]) -> str:
    """Of a promise: failed if one of its tests did, passed if all did, else not run, or open without a test."""
    told = [results.get(test, {}).get("result", NOT_RUN) for test in tests]
    if not told:
        return OPEN
    if any(one.startswith("failed") for one in told):
        return "failed"
    return "passed" if all(one.startswith("passed") for one in told) else NOT_RUN


def page(tests: Mapping[str, list[str]], results: Mapping[str, Mapping[str, str]]) -> str:
    """The page, as Markdown."""
    states = {code: status(tests.get(code, ()), results) for code in PROMISES}
    counts = ", ".join(
        f"{n} {state}" for state in ("passed", "failed", NOT_RUN, OPEN) if (n := list(states.values()).count(state))
    )
    lines = [
        "# Promises and their tests",
        "",
        "<!-- Written by `make promises`; not by hand. -->",
        f"{len(PROMISES)} promises: {counts}. A promise passed when all of its tests did in their last recorded run;",
        "it is open when no test shows it yet. `make test`, `make journeys`, `make chaos` and `make stat` record their",
        "results.",
    ]
    for letter, title in GROUPS.items():
        lines += ["", f"## {letter}. {title}", "", "| promise | | test | last result |", "|---|---|---|---|"]
        for code, sentence in PROMISES.items():
            if code[0] != letter:
                continue
            names = tests.get(code, [])
            rows = [(f"`{test.removeprefix('tests/')}`", _told(results.get(test))) for test in names] or [("", OPEN)]
            first, *others = rows
            lines.append(f"| **{code}** {sentence} | {states[code]} | {first[0]} | {first[1]} |")
            lines += [f"| | | {test} | {told} |" for test, told in others]
    return "\n".join(lines) + "\n"


def _told(result: Mapping[str, str] | None) -> str:
    return NOT_RUN if result is None else f"{result['result']}, {result['on']}, version {result['version']}"


class Plugin:
    """What a test run with RECORD set has beside its tests (registered by ``tests/conftest.py``)."""

    def __init__(self, path: Path) -> None:
        self.path, self.recorder = path, Recorder()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.recorder.note(report.nodeid, report.outcome, report.when)

    def pytest_sessionfinish(self) -> None:
        tests = declared()
        self.recorder.write(self.path, tests={test for names in tests.values() for test in names})
        if self.path == RESULTS:
            PAGE.write_text(page(tests, read_results()), encoding="utf-8")


def register(config: Any) -> None:
    """Record this run where RECORD names a file; a worker of a parallel run leaves that to its controller."""
    named = os.environ.get(RECORD)
    if named and not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(Plugin(ROOT / named), "promises")


def main() -> int:
    """Write the page anew."""
    tests = declared()
    unknown = sorted(set(tests) - set(PROMISES))
    if unknown:
        print(f"tests declare promises that are none: {', '.join(unknown)}", file=sys.stderr)
        return 2
    PAGE.write_text(page(tests, read_results()), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(PROMISES)} promises")
    return 0


if __name__ == "__main__":
    sys.exit(main())
