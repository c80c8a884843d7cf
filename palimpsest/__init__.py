"""Palimpsest in Python: a few names for a notebook or a script. Tables are polars frames; every error is a
``PalimpsestError``.

    import palimpsest

    palimpsest.init("mine", "reviews.parquet", label="stars", owner="user_id")
    palimpsest.audit("mine")                               # the report, shown by the notebook
    palimpsest.scores("mine").sort("el2n").tail(20)
    palimpsest.query("hardest", subject="mine")            # a question of the cookbook, or a SELECT
    palimpsest.request("mine", owner="ann").run()          # someone asks to be forgotten

State lies where the command has it: in ``$PALIMPSEST_HOME``, or ``.palimpsest`` in the working folder; ``home=`` names
another folder for one call. What the command prints while it works is shown here too. Importing this loads no library
of numbers.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The packages beside this one have everyday names (assets, reports): ours come before any of the working folder.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(place for place in sys.path if place != _ROOT)]

from contracts.errors import PalimpsestError  # noqa: E402

# Libraries below ask for ipywidgets to draw progress bars that are never shown here.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from contracts.subject import Subject
    from palimpsest.results import Closing, Report, Request
    from pipelines.interop import OutOfFold
    from sources.example_set import ExampleSet

__all__ = [
    "PalimpsestError",
    "audit",
    "examples",
    "export",
    "import_issues",
    "init",
    "load_plan",
    "members",
    "out_of_fold",
    "query",
    "report",
    "request",
    "save_plan",
    "scores",
]


def init(name: str, data: str | Path, *, home: str | Path | None = None, **options: Any) -> Subject:
    """Make a subject from your own data and say how it is read: ``palimpsest init``.

    Args:
        name: of the new subject: a-z, 0-9, _ and -.
        data: a file or folder of any kind that the command takes.
        options: those of the command, by their names: ``label="stars"``, ``owner="user_id"``, ``model="cnn"``, ...

    Returns:
        The plan that was written; it may be edited.

    Raises:
        ConfigError: an unknown option, a name that is taken, data of no known kind.
        DataError: the data cannot be audited as they are.
    """
    from pipelines.cli.init import init as command
    from pipelines.cli.options import checked

    with _named(home):
        command(name, Path(data), **checked(command, options, besides=("name", "data")))
    return load_plan(name, home=home)


def load_plan(subject: str, *, home: str | Path | None = None) -> Subject:
    """The plan of a subject, built in or made by :func:`init`: what is trained, scored, split, unlearned and attacked.

    Raises:
        UnknownName: no subject of that name; lists the known.
        ConfigError: a field of its file is unknown or out of range.
    """
    from pipelines.subjects import load_subject

    with _state(home) as state:
        return load_subject(subject, state)


def save_plan(plan: Subject, *, home: str | Path | None = None) -> Path:
    """Write a plan, such as a changed one of :func:`load_plan` (``dataclasses.replace``), in place of the subject's
    own; the file.

    Comments in the file are not kept: who has written some edits it by hand.

    Raises:
        ConfigError: it is the plan of a built-in subject; give it another name.
    """
    from pipelines.subjects import write_subject

    with _state(home, make=True) as state:
        return write_subject(plan, state, comment="Every field may be edited.", replace=True)


def examples(subject: str, *, home: str | Path | None = None) -> ExampleSet:
    """The data of a subject, read from its source: ``x``, ``y``, ``example_id``, ``split``, ``owner``, ``class_names``,
    in the order of the source. ``examples(s).subset(ids)`` are those behind a row of any table.

    Raises:
        UnknownName: as :func:`load_plan`. DataError: the data have changed into what cannot be audited.
    """
    with _work(subject, home) as (plan, workspace):
        return workspace.examples(plan)  # type: ignore[no-any-return]


def audit(subject: str = "digits", *, quick: bool = False, home: str | Path | None = None) -> Report:
    """Audit a subject, from training to report; what did not change is not computed again: ``palimpsest audit``.

    Args:
        quick: fewer seeds and reference models: a first look, not evidence.

    Raises:
        UnknownName: as :func:`load_plan`. JobFailed: a stage failed; the message is the stage's own error.
    """
    from pipelines.cli.audit import quick_plan, run_subject

    with _work(subject, home) as (plan, workspace):
        run_subject(quick_plan(plan) if quick else plan, workspace.home, job="audit", workspace=workspace)
    return report(subject, home=home)  # type: ignore[return-value]  # a subject's is never a closing


def report(what: str, *, home: str | Path | None = None) -> Report | Closing:
    """The stored report of a subject, or of a forget request by its id: ``palimpsest report``. Of a request that was
    closed on exact retraining, the proof.

    Raises:
        NotReady: there is none yet; names the command that makes it. UnknownName: no such subject or request.
    """
    from palimpsest.results import stored
    from pipelines.cli.show import find_report

    with _state(home) as state:
        return stored(state, find_report(what, state))


def scores(subject: str, *names: str, home: str | Path | None = None) -> pl.DataFrame:
    """Scores of the training examples: of no name, all current ones side by side, a column each, with split, label and
    owner token; of one or more, these alone. ``score.column`` is another column of a score than its main one.

    Raises:
        UnknownName: no such score is stored, or it has no such column.
        NotReady: nothing was audited yet. NotTrusted: a score that is asked for by name missed its gates.
    """
    from pipelines.export import side_by_side

    with _read(home) as warehouse:
        return side_by_side(warehouse, subject, names)


def members(subject: str, name: str, *, home: str | Path | None = None) -> pl.DataFrame:
    """(example_id, role, reason) of a split or another curated set of the plan.

    Raises:
        UnknownName: no set of that name is stored; lists what is.
    """
    from pipelines.export import table

    with _read(home) as warehouse:
        return table(warehouse, subject, f"curation/{name}").frame


def query(sql: str, /, *, home: str | Path | None = None, **params: Any) -> pl.DataFrame:
    """Rows of one SELECT over the published tables, or of a question of the cookbook by its name: ``palimpsest sql``.

    Args:
        sql: the statement, with ``$name`` for parameters, or a name such as "hardest".
        params: values of the parameters; those of a cookbook's question have defaults.

    Raises:
        InvalidInput: not one reading statement, or refused by DuckDB. NotReady: nothing was published yet.
    """
    from warehouse import queries

    if sql in queries.names():
        known = queries.get(sql)
        sql, params = known.sql, {**known.params, **params}
    with _read(home) as warehouse:
        return warehouse.query(sql, params or ())  # type: ignore[no-any-return]


def request(subject: str, *, home: str | Path | None = None, **options: Any) -> Request:
    """Register a forget request: its rows are looked up, counted and pinned; ``.run()`` unlearns and audits it.

    Args:
        options: those of ``palimpsest request add`` by their names: ``owner="ann"``, ``ids=[3, 17]``,
            ``class_name="ship"``, ``where="label = 3"``, ``score="memorization", count=20``, ``due="2027-01-31"``, ...

    Raises:
        ConfigError: not exactly one way of choosing rows, or an unknown option.
        DataError: it names no rows, or unknown ones.
    """
    from palimpsest.results import Request
    from pipelines.cli.options import checked
    from pipelines.cli.requests import register

    given = checked(register, options, besides=("plan", "workspace"))
    with _work(subject, home) as (plan, workspace):
        return Request(home, *register(plan, workspace, **given))


def export(subject: str, what: str, to: str | Path, *, home: str | Path | None = None) -> Any:
    """A score with all its columns, or a curated set, for other programs; it says where it is from.

    Args:
        what: name of the score or set; ``scores/NAME`` or ``curation/NAME`` where one name is both.
        to: a file (.parquet, .csv, .json, .jsonl); or "pandas", "polars" or "datasets" for an object.

    Returns:
        The path that was written, or the object.

    Raises:
        UnknownName: neither is stored under that name. NotTrusted: the score is not current; says why.
        ConfigError: another ending; ``datasets`` is not installed (names the command).
    """
    from pipelines.export import OBJECTS, refuse_target, remember, table, write

    if to not in OBJECTS:
        refuse_target(Path(to))
    with _read(home) as warehouse:
        made = table(warehouse, subject, what)
        if to not in OBJECTS:
            remember(warehouse.home, subject, Path(to))
    if to in OBJECTS:
        return OBJECTS[str(to)](made)
    write(made, Path(to))
    return Path(to)


def out_of_fold(subject: str, *, home: str | Path | None = None) -> OutOfFold:
    """What models say of examples that they were not trained on, for cleanlab: ``labels`` and ``pred_probs``, with ids.

    ``cleanlab.filter.find_label_issues(o.labels, o.pred_probs, n_jobs=1)``, or ``o.datalab()`` for a Datalab. Say one
    job: cleanlab forks others, which beside the threads of polars may wait for ever.

    Raises:
        NotReady: the reference models have not been trained yet.
        NotApplicable: not classification, or the plan has no reference models.
    """
    from pipelines.interop import out_of_fold as predictions

    with _work(subject, home) as (plan, workspace):
        return predictions(plan, workspace)


def import_issues(
    subject: str, issues: Any, *, example_id: Sequence[int] | np.ndarray | None = None, home: str | Path | None = None
) -> pl.DataFrame:
    """Label issues that cleanlab found, as the score ``cleanlab_issues`` of a subject: in SQL and in
    ``scores.agreement`` at once, for splits and forget requests to choose by, and part of the subject's plan from now
    on. Another import replaces it.

    Args:
        issues: what ``Datalab.get_issues("label")`` or ``CleanLearning.find_label_issues`` gives (pandas or polars).
        example_id: of each row, where the frame has them in no column, or index, of that name.

    Returns:
        The stored score: those rows that are about training examples.

    Raises:
        DataError: which example a row is about is not said, or not known; a column is missing or out of its range.
        NotReady: the subject was never audited.
    """
    from pipelines.interop import import_issues as store
    from scoring.cleanlab_issues import NAME

    with _work(subject, home) as (plan, workspace):
        store(plan, workspace, issues, example_id)
    return export(subject, NAME, "polars", home=home)  # type: ignore[no-any-return]


@contextmanager
def _state(home: str | Path | None, *, make: bool = False) -> Iterator[Path]:
    """The state folder, made where it is missing and may be, which is said; programs that are started from here find it
    in their environment."""
    from pipelines.cli.terminal import drop_new_state, state_to_write
    from pipelines.home import DEFAULT, state_home

    with _named(home):
        new = make and not Path(os.environ.get("PALIMPSEST_HOME") or DEFAULT).expanduser().exists()
        try:
            yield state_to_write() if new else state_home(make=make)
        except Exception:
            drop_new_state()
            raise


@contextmanager
def _named(home: str | Path | None) -> Iterator[None]:
    """The state folder that is named for one call, in the environment."""
    before = os.environ.get("PALIMPSEST_HOME")
    if home is not None:
        os.environ["PALIMPSEST_HOME"] = str(home)
    try:
        yield
    finally:
        if home is not None:
            os.environ.pop("PALIMPSEST_HOME")
            os.environ.update({} if before is None else {"PALIMPSEST_HOME": before})


@contextmanager
def _work(subject: str, home: str | Path | None) -> Iterator[tuple[Subject, Any]]:
    """A subject's plan and what works on it."""
    from pipelines.cli.audit import workspace_of
    from pipelines.subjects import load_subject

    with _state(home, make=True) as state:
        yield load_subject(subject, state), workspace_of(state)


@contextmanager
def _read(home: str | Path | None) -> Iterator[Any]:
    """The warehouse, to be read only."""
    from warehouse import Warehouse

    with _state(home) as state:
        yield Warehouse.existing(state)
