"""Claims measured again: found by name and by number, judged as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import reproductions
from contracts.errors import InvalidInput, NameTaken, UnknownName
from contracts.progress import Progress
from pipelines.cli.app import app
from reproductions import Claim, at_least, at_most, framework
from reproductions.__main__ import main


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, framework.Reproduction]:
    """One paper of our own, the only one there is."""

    def measure(seed: int, progress: Progress) -> list[Claim]:
        progress(1, 1, "measured")
        return [at_least("figure", seed, 1.0), at_most("error", 0.0, 0.1)]

    known: dict[str, framework.Reproduction] = {}
    monkeypatch.setattr(framework, "_KNOWN", known)
    monkeypatch.setattr(framework.pkgutil, "iter_modules", lambda path: [])
    reproductions.reproduction(card=7, name="planted", paper="Nobody 1900")(measure)
    return known


def test_every_file_of_the_folder_registers_one_paper_under_its_own_name():
    folder = Path(framework.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__", "framework"}
    known = reproductions.reproductions()
    assert {one.name for one in known} == files and all(one.function.__module__.endswith(one.name) for one in known)
    assert all(one.paper for one in known) and [one.card for one in known] == sorted({one.card for one in known})


@pytest.mark.parametrize("which", ["memorization", "15", 15, " 15 "])
def test_a_paper_is_found_by_its_name_and_by_its_number(which):
    assert reproductions.find(which).name == "memorization"


def test_a_number_may_be_written_with_a_zero_in_front():
    assert reproductions.find("03") == reproductions.find(3) == reproductions.find("worst_case_forget")


@pytest.mark.parametrize("which", ["nothing", "999", "-3", ""])
def test_an_unknown_one_lists_the_known(which):
    with pytest.raises(UnknownName, match=r"memorization \(15\)"):
        reproductions.find(which)


def test_a_result_names_the_paper_and_its_number(planted):
    result = reproductions.run("planted", seed=3)
    assert (result["card"], result["name"], result["seed"], result["passed"]) == (7, "planted", 3, True)
    assert [claim["passed"] for claim in reproductions.run(7, seed=0)["claims"]] == [False, True]
    with pytest.raises(InvalidInput, match="seed"):
        reproductions.run(7, seed=-1)


def test_a_taken_name_or_number_is_refused(planted):
    for card, name in ((7, "other"), (8, "planted")):
        with pytest.raises(NameTaken, match="already reproduced"):
            reproductions.reproduction(card=card, name=name, paper="")(lambda seed, progress: [])
    assert set(planted) == {"planted"}


def test_the_module_takes_names_and_numbers_and_says_how_it_went(planted, capsys):
    assert main(["planted", "7", "--seed", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["card"], row["name"]) for row in rows] == [(7, "planted")] * 2
    assert main([]) == 1 and "planted (Nobody 1900), seed 0: FAILED" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["nowhere"])
    assert stopped.value.code == 2


def test_the_command_says_what_could_not_be_measured_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, framework.Reproduction] = {}
    monkeypatch.setattr(framework, "_KNOWN", known)
    monkeypatch.setattr(framework.pkgutil, "iter_modules", lambda path: [])
    reproductions.reproduction(card=7, name="blank", paper="Nobody 1900")(
        lambda seed, progress: [at_least("cut", float("nan"), 0.5), at_most("error", 0.0, 0.1)]
    )
    result = CliRunner().invoke(app, ["reproduce", "blank"], env={"COLUMNS": "120"})
    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 1 and "cut none >= 0.5 fail" in said and "error 0 <= 0.1 pass" in said
