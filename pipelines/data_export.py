"""A curated set as a data set of its own: its examples, where they are from, and its data sheet.

a split            the training examples of one of its roles; "keep" or "retain" unless another is asked for
a made data set    what was made
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from contracts import schema
from contracts.errors import ConfigError, IntegrityError, NotReady, UnknownName
from contracts.methods import AFTER_ERASURE, curator, maker, score
from contracts.progress import Progress
from contracts.subject import Subject
from curation.export.formats import export_set
from curation.export.index import EXCLUDED, INDEX, index_csv
from pipelines.export import table
from reports.datasheet import Datasheet, to_croissant, to_html, to_markdown
from reports.plots import is_picture
from sources.example_set import ExampleSet
from sources.made import made_from
from sources.payloads.tokens import Tokens
from sources.plan import load_examples

if TYPE_CHECKING:
    from warehouse import Warehouse

_STAYS = ("keep", "retain", "source")  # the role of what a curated set consists of, where nobody asks for another
_LICENCES = ("licence", "license")
_MOST_REASONS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Attributes:
    examples: in ascending order of their ids, training examples before test examples.
    members: (example_id, role, reason) of every training example of the subject.
    made: where it is from, as of an exported table.
    """

    examples: ExampleSet
    members: pl.DataFrame
    made: Mapping[str, str]
    role: str

    @property
    def excluded(self) -> pl.DataFrame:
        """(example_id, role, reason) of the training examples that are not in it."""
        gone = pl.col("role") != self.role if self.role else pl.col("role").is_in(["unused", "judged_on"])
        return self.members.filter(gone).select("example_id", "role", "reason").sort("example_id")


def data_set(
    warehouse: Warehouse,
    plan: Subject,
    name: str,
    *,
    role: str = "",
    test: bool = False,
    data: ExampleSet | None = None,
) -> DataSet:
    """The examples of a curated set.

    Args:
        data: the subject's examples, where they are loaded already.
        role: of a split: which of its roles; "" for the one that stays.
        test: with the subject's test examples, of a set of examples that they are like.

    Raises:
        UnknownName: no curated set, or no role, of that name; lists the known.
        NotReady: it is empty, as it could not be made.
        IntegrityError: the data are not those that it was curated from; the audit has to be run again.
    """
    stored = table(warehouse, plan.subject, f"curation/{name}")
    data = load_examples(plan) if data is None else data
    members = stored.frame
    if not members.height:
        raise NotReady(f"curated set {name} of {plan.subject} is empty: it could not be made; see its asset check")
    of_method = _method(warehouse, plan, name)
    if of_method in maker.names():
        examples = made_from(*warehouse.artifacts.load(f"{plan.subject}/curation/{name}/result"))
        if role:
            raise ConfigError(f"{name} is a made data set: it has no roles")
    else:
        roles = curator.get(of_method).spec.roles
        role = role or next((known for known in _STAYS if known in roles), "")
        if role not in roles:
            raise UnknownName(f"role of {name} (--role)", role, roles)
        ids = members.filter(pl.col("role") == role)["example_id"].to_numpy()
        if len(gone := np.setdiff1d(members["example_id"].to_numpy(), data.example_id)):
            raise IntegrityError(
                f"{len(gone)} examples of {name} are no longer in the data: run palimpsest audit {plan.subject} first"
            )
        examples = data.subset(ids)
    if test:
        examples = _with(examples, data.part("test").by_id())
    if role and curator.get(of_method).spec.weighs:
        examples = _weighed(warehouse, plan, name, examples)
    return DataSet(examples=examples, members=members, made={**stored.made, "method": of_method}, role=role)


def _weighed(warehouse: Warehouse, plan: Subject, name: str, examples: ExampleSet) -> ExampleSet:
    """With how many examples each stands for as the column ``weight``, a test example for itself; as they are, of a
    role that stands for none."""
    rows = warehouse.read(schema.WEIGHTS, subject=plan.subject, partition={"dataset_id": name})
    known = dict(rows.select("example_id", "weight").iter_rows())
    if not all(example in known for example in examples.example_id[examples.split == "train"].tolist()):
        return examples
    weight = np.array([known.get(example, 1) for example in examples.example_id.tolist()], np.int64)
    column = "weight" if "weight" not in examples.columns else f"weight_of_{name}"
    return dataclasses.replace(examples, columns={**examples.columns, column: weight})


def _with(examples: ExampleSet, test: ExampleSet) -> ExampleSet:
    """The examples and the test examples behind them.

    Raises:
        ConfigError: they are not stored alike, or the test examples lack a column of theirs (the bag of a made one).
    """
    alike = (examples.x.dtype, examples.input_shape) == (test.x.dtype, test.input_shape)
    same_scale = np.array_equal(examples.center, test.center) and np.array_equal(examples.scale, test.scale)
    if not alike or not same_scale:
        raise ConfigError("--test: the test examples are stored on another scale than the made ones; export them apart")
    if lacking := sorted(set(examples.columns) - set(test.columns)):
        raise ConfigError(f"--test: the test examples have no column {lacking[0]!r}; export the set without them")
    columns = {name: np.concatenate([column, test.columns[name]]) for name, column in examples.columns.items()}
    both = {
        name: np.concatenate([getattr(examples, name), getattr(test, name)])
        for name in ("y", "example_id", "split", "owner", "content_hash")
    }
    x = np.concatenate([np.asarray(examples.x[:]), np.asarray(test.x[:])])
    return dataclasses.replace(examples, x=x, **both, origin=None, columns=columns, whole=None)


def _method(warehouse: Warehouse, plan: Subject, name: str) -> str:
    rows = warehouse.read(schema.DATASETS, subject=plan.subject, partition={"dataset_id": name})
    return str(rows["method"][0])


def sheet_of(warehouse: Warehouse, plan: Subject, name: str, found: DataSet) -> Datasheet:
    """Its data sheet, of what is on record."""
    data = found.examples
    spec = (maker if found.made["method"] in maker.names() else curator).get(found.made["method"]).spec
    [row] = warehouse.read(schema.DATASETS, subject=plan.subject, partition={"dataset_id": name}).to_dicts()
    where = data.provenance
    licence = next((str(where[key]) for key in _LICENCES if where.get(key)), "not stated by the source")
    ids = set(data.example_id.tolist())
    return Datasheet(
        name=f"{plan.subject}-{name}",
        description=f"{spec.doc} Curated from {plan.title or plan.subject}.",
        facts={
            "examples": " and ".join(f"{n:,} in {s}" for s, n in _counts(data.split).items()),
            "an example": f"{data.x.dtype if hasattr(data.x, 'dtype') else type(data.x).__name__}, shape "
            f"{' x '.join(map(str, data.input_shape))}",
            "task": str(data.task),
            "source": f"{plan.source.name}: {where.get('source', plan.source.name)}",
            "licence": licence,
            "digest of the examples": data.digest,
            "ledger": found.made["ledger_head"],
            "when an example is erased": AFTER_ERASURE[spec.after_erasure],  # type: ignore[attr-defined]
        },
        steps=[
            f"{plan.source.name} read the data, with seed {plan.seed}.",
            f"{row['method']} {'made the set' if not found.role else f'chose the role {found.role!r}'}: {spec.doc} "
            f"{spec.source} Configuration: {row['config']}",
        ],
        classes=[(data.class_names[k], n) for k, n in _counts(data.y).items()]
        if data.class_names and data.y.ndim == 1
        else [],
        rates=_rates(warehouse, plan, ids),
        scores=_scores(warehouse, plan, ids),
        excluded=_reasons(found.excluded),
        columns=_columns(data),
    )


def write_data_set(
    warehouse: Warehouse, plan: Subject, name: str, to: Path, *, format: str, found: DataSet, progress: Progress
) -> Path:
    """Write a curated set with its data sheet and metadata; the path of its manifest. As ``export_set``."""
    sheet = sheet_of(warehouse, plan, name, found)
    licence = sheet.facts["licence"] if "not stated" not in sheet.facts["licence"] else ""

    def documents(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str | Iterable[str]]:
        return {
            "README.md": to_markdown(sheet),
            "datasheet.html": to_html(sheet),
            "croissant.json": to_croissant(sheet, files, licence=licence, version="1.0.0"),
            INDEX: index_csv(found.examples),
            EXCLUDED: found.excluded.write_csv(),
        }

    return export_set(found.examples, to, format=format, made=found.made, documents=documents, progress=progress)


def _counts(values: np.ndarray) -> dict[Any, int]:
    return {value.item(): int(n) for value, n in zip(*np.unique(values, return_counts=True), strict=True)}


def _reasons(excluded: pl.DataFrame) -> list[tuple[str, int]]:
    """How many were left out for which reason; by their role where every example has a reason of its own."""
    named = [excluded.group_by(by).len().sort(["len", by], descending=[True, False]) for by in ("reason", "role")]
    if named[0].height <= _MOST_REASONS:
        return [(reason or "not used", int(n)) for reason, n in named[0].iter_rows()]
    return [(f"{role}; the reason of each is in excluded.csv", int(n)) for role, n in named[1].iter_rows()]


def _rates(warehouse: Warehouse, plan: Subject, ids: set[int]) -> dict[str, str]:
    """Label noise and duplicates, where a current score says so."""
    calls = {"noisy": "labels that are called noisy", "duplicate": "examples that have a near duplicate"}
    found = {}
    for name in _current(warehouse, plan):
        call = score.get(name).spec.calls if name in score.names() else None
        if call is None or call.kind not in calls or not call.column:
            continue
        values = warehouse.read(score.get(name).spec, subject=plan.subject).filter(
            pl.col("example_id").is_in(list(ids))
        )
        if values.height:
            share = float((values[call.column].cast(pl.Float64) > call.above).mean())  # type: ignore[arg-type]
            found[f"{calls[call.kind]}, by {name}"] = f"{share:.1%}"
    return found


def _scores(warehouse: Warehouse, plan: Subject, ids: set[int]) -> list[tuple[str, str, str, str, str, str]]:
    rows = []
    for name, higher in _current(warehouse, plan).items():
        values = warehouse.latest_score(plan.subject, name).filter(pl.col("example_id").is_in(list(ids)))["value"]
        numbers = values.drop_nulls().to_numpy()
        if len(numbers):
            shown = [float(numbers.mean()), *np.quantile(numbers, [0.05, 0.5, 0.95])]
            mean, low, middle, high = (f"{value:.3g}" for value in shown)
            rows.append((name, mean, low, middle, high, higher))
    return rows


def _current(warehouse: Warehouse, plan: Subject) -> dict[str, str]:
    runs = warehouse.read(schema.SCORE_RUNS, subject=plan.subject).filter("passed").sort("score")
    return dict(runs.select("score", "higher_means").iter_rows())


def _columns(data: ExampleSet) -> list[tuple[str, str]]:
    values = {"image": "the picture"} if is_picture(data.input_shape) else {"values": "the numbers of the example"}
    if isinstance(data.x, Tokens):
        values = {"tokens": "indexes of the tokens", "counts": "1 where a token counts in the loss"}
    elif data.feature_names:
        values = dict.fromkeys(data.feature_names, "a feature")
    label = {"label": "class index; the names are in the manifest" if data.class_names else "the target"}
    return list({"example_id": "stable id", **values, **(label if data.labelled else {})}.items())
