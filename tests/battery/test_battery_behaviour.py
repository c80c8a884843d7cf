"""What every registered method does: on good data, on the same data twice, on odd data, and on hostile data.

On odd data a method answers in one of two ways: with a typed error, or with an output that meets its declaration.
Anything else (a library's traceback, a NaN in a table, a lost example) fails here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from battery_world import KINDS, NUM_CLASSES, World, halves, of
from polars.testing import assert_frame_equal

from attacks.membership.evidence import Evidence
from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable, PalimpsestError
from contracts.registry import Method
from contracts.tables import Column
from reports.plots import table_png
from sources.example_set import ExampleSet
from sources.identity import Content
from sources.payloads.tokens import Tokens
from tasks.base import named

DTYPES = {"int64": pl.Int64, "float64": pl.Float64, "bool": pl.Boolean, "str": pl.String, "floats": pl.List(pl.Float64)}
ON_DATA = of("score", "analysis", "curator", "unlearner", "recipe")


def check_column(values: pl.Series, column: Column) -> None:
    assert values.dtype == DTYPES[column.dtype], column.name
    assert column.nullable or values.null_count() == 0, f"{column.name} has nulls"
    known = values.drop_nulls()
    if column.dtype == "float64":
        assert known.is_finite().all(), f"{column.name} is not finite"
    if column.low is not None:
        assert (known >= column.low).all(), f"{column.name} below {column.low}"
    if column.high is not None:
        assert (known <= column.high).all(), f"{column.name} above {column.high}"
    if column.choices:
        assert known.is_in(column.choices).all()


def check(kind: str, method: Method[Any], out: Any, data: ExampleSet | None, *, whole: bool = True) -> None:
    """The output is what the declaration says."""
    spec = method.spec
    if kind == "score":
        assert out.columns == ["example_id", *(c.name for c in spec.columns)] or set(out.columns) == {
            "example_id",
            *(c.name for c in spec.columns),
        }
        check_column(out["example_id"], spec.table.columns[0])
        for column in spec.columns:
            check_column(out[column.name], column)
        ids = out["example_id"].to_numpy()
        assert set(ids) <= set(data.example_id) and len(set(ids)) == len(ids)
        if whole and not {"ensemble", "imported"} & set(spec.needs):  # these speak of their own examples only
            assert len(ids) == len(data)
    elif kind == "analysis":
        assert set(out) == {table.name for table in spec.tables}
        for table in spec.tables:
            frame = out[table.name]
            assert set(frame.columns) == {c.name for c in table.columns}, table.name
            for column in table.columns:
                check_column(frame[column.name], column)
            assert not frame.select(table.key).is_duplicated().any(), f"{table.name}: key {table.key} is not unique"
        for picture in spec.pictures:
            if picture.is_chart:
                assert table_png(picture, out[picture.table]).startswith(b"\x89PNG")
    elif kind == "curator":
        assert out.schema == {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
        assert sorted(out["example_id"].to_list()) == sorted(data.example_id[data.split == "train"].tolist())
        assert set(out["role"]) <= set(spec.roles)
        assert out["reason"].null_count() == 0 and (out["reason"] != "").all()
    elif kind == "source":
        assert isinstance(out, ExampleSet)
        out.validate()
    elif kind == "attack":
        assert out.dtype == np.float64 and out.ndim == 2
        assert not np.isposinf(out).any() and not np.isneginf(out).any()
    else:
        assert np.isfinite(out).all()


def comparable(kind: str, out: Any) -> Any:
    """A form in which equal outputs are equal, whatever the order of their rows."""
    if kind in ("score", "curator"):
        return out.sort("example_id")
    if kind == "analysis":
        return {name: frame.sort(frame.columns) for name, frame in sorted(out.items())}
    return out.digest if kind == "source" else out


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pl.DataFrame):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else bool(a == b)


def outcome(run: Callable[[], Any]) -> Any:
    """The output, or the typed error."""
    try:
        return run()
    except PalimpsestError as error:
        assert len(str(error)) > 10, "an error explains itself"
        return error


# --- on good data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), of(*KINDS))
def test_the_output_is_what_was_declared(world: World, kind, name):
    method = KINDS[kind].get(name)
    out = world.run(kind, method)
    check(kind, method, out, world.data(kind))
    if kind == "attack":
        assert out.shape == world.evidence.target_logits.shape[:2]
        assert np.isfinite(out).mean() > 0.5
        assert any(len(np.unique(row[np.isfinite(row)])) > 1 for row in out), "one score for everybody"
    if kind == "score":
        assert out[method.spec.value].n_unique() > 1, "one score for everybody"
    if kind == "curator":
        assert out["role"].n_unique() > 1


@pytest.mark.parametrize(("kind", "name"), of(*KINDS))
def test_same_seed_same_bits_and_no_hidden_randomness(world: World, kind, name):
    method = KINDS[kind].get(name)
    results = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        results.append(comparable(kind, world.run(kind, method)))
        after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        assert before[0] == after[0] and np.array_equal(before[1][1], after[1][1]) and before[1][2:] == after[1][2:]
        assert torch.equal(before[2], after[2]), "the global state of torch has moved"
    assert same(*results)


@pytest.mark.parametrize(("kind", "name"), ON_DATA)
def test_nothing_handed_in_is_changed(world: World, kind, name):
    method = KINDS[kind].get(name)
    data, needs = copy.deepcopy(world.data(kind)), copy.deepcopy(world.needs)
    world.run(kind, method, data=data, needs=needs)
    for column in ("y", "example_id", "split", "owner"):
        assert np.array_equal(getattr(data, column), getattr(world.data(kind), column)), column
    assert Content(data.x).hashes().tolist() == Content(world.data(kind).x).hashes().tolist()
    models = [
        (needs["model"], world.needs["model"]),
        *zip(needs.get("early_models", ()), world.needs.get("early_models", ()), strict=True),
    ]
    for used, original in models:
        assert used.training == original.training
        for (name_, a), b in zip(used.state_dict().items(), original.state_dict().values(), strict=True):
            assert torch.equal(a, b), name_
        assert all(p.grad is None and p.requires_grad for p in used.parameters())
        assert not used._forward_hooks and all(not m._forward_hooks for m in used.modules())
    if "ensemble" in needs:
        assert np.array_equal(needs["ensemble"].logits, world.needs["ensemble"].logits)


@pytest.mark.parametrize(("kind", "name"), of("score", "analysis", "curator", "unlearner"))
def test_the_order_of_the_rows_does_not_matter(world: World, kind, name):
    method = KINDS[kind].get(name)
    data = world.data(kind)
    mixed = data.subset(np.random.default_rng(5).permutation(data.example_id))
    first, second = (comparable(kind, world.run(kind, method, data=d)) for d in (data, mixed))
    if isinstance(first, dict):
        for name, frame in first.items():
            assert_frame_equal(frame, second[name], rel_tol=1e-5, abs_tol=1e-7)
    elif isinstance(first, np.ndarray) or kind == "curator":
        assert same(first, second)
    else:  # a batch of other neighbours may round differently
        assert_frame_equal(first, second, rel_tol=1e-5, abs_tol=1e-7)


def shuffled(evidence: Evidence, order: np.ndarray) -> Evidence:
    return dataclasses.replace(
        evidence,
        example_id=evidence.example_id[order],
        labels=evidence.labels[order],
        target_logits=evidence.target_logits[:, order],
        reference_logits=evidence.reference_logits[:, order],
        keep=evidence.keep[:, order],
    )


@pytest.mark.parametrize(("kind", "name"), of("attack"))
def test_the_order_of_the_candidates_permutes_the_scores(world: World, kind, name):
    method = KINDS[kind].get(name)
    order = np.random.default_rng(6).permutation(len(world.evidence.labels))
    first, second = (world.run(kind, method, evidence=e) for e in (world.evidence, shuffled(world.evidence, order)))
    np.testing.assert_allclose(second, first[:, order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), of("attack"))
def test_a_target_is_not_judged_by_its_own_row(world: World, kind, name):
    """The first target is reference 0: what the references say of model 0 must not reach its scores."""
    method, evidence = KINDS[kind].get(name), world.evidence
    keep = evidence.keep.copy()
    keep[0] = ~keep[0]
    other = dataclasses.replace(evidence, keep=keep)
    first, second = (world.run(kind, method, evidence=e)[0] for e in (evidence, other))
    np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), of("attack"))
def test_attacks_need_the_references_they_declare_and_no_more(world: World, kind, name):
    method, evidence = KINDS[kind].get(name), world.evidence

    def with_references(num: int) -> Evidence:
        if num == 0:
            return dataclasses.replace(
                evidence, reference_logits=None, keep=None, target_index=None, population_reference_logits=None
            )
        return dataclasses.replace(
            evidence,
            reference_logits=evidence.reference_logits[:num],
            population_reference_logits=evidence.population_reference_logits[:num],
            keep=evidence.keep[:num],
            target_index=None,
        )

    fewest = method.spec.references
    check(kind, method, world.run(kind, method, evidence=with_references(fewest)), None)
    if fewest:
        with pytest.raises(InvalidInput, match="reference"):
            world.run(kind, method, evidence=with_references(fewest - 1))


# --- on odd data --------------------------------------------------------------------------------------------------


def constant(data: ExampleSet) -> ExampleSet:
    if isinstance(data.x, Tokens):
        return dataclasses.replace(data, x=dataclasses.replace(data.x, flat=np.ones_like(data.x.flat)))
    return dataclasses.replace(data, x=np.ones_like(data.x))


def one_class(data: ExampleSet) -> ExampleSet:
    return dataclasses.replace(data, y=np.zeros_like(data.y))


def single(data: ExampleSet) -> ExampleSet:
    return data.subset(data.example_id[:1])


def empty(data: ExampleSet) -> ExampleSet:
    return data.subset([])


@pytest.mark.parametrize("odd", [constant, one_class, single, empty], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("kind", "name"), ON_DATA)
def test_odd_data_gives_a_typed_error_or_a_sound_output(world: World, kind, name, odd):
    """Constant features and one class come with models and an ensemble that were trained on them."""
    method, data, trainable = KINDS[kind].get(name), odd(world.data(kind)), odd in (constant, one_class)
    needs = world.needs_on(odd) if trainable else None
    out = outcome(lambda: world.run(kind, method, data=data, needs=needs))
    if not isinstance(out, PalimpsestError):
        check(kind, method, out, data)
    if trainable and kind == "score":
        assert not isinstance(out, PalimpsestError), "a score is defined on any labelled examples"


BATCHED = [
    p
    for p in of("score")
    if "batch" in {f.name for f in dataclasses.fields(KINDS["score"].get(p.values[1]).spec.config)}
    and p.values[1] != "worst_case_forget"  # its batch is one of SGD's settings: another batch is another answer
]


FITTED = {"concept_attribution": 1e-3}  # its elastic net stops at a tolerance of 1e-4, wherever rounding leads it


def close(first: pl.DataFrame, second: pl.DataFrame, *, tolerance: float) -> None:
    """Equal but for rounding: numbers within ``tolerance`` of the column's scale, all else exactly."""
    first, second = first.sort("example_id"), second.sort("example_id")
    assert first.columns == second.columns and first["example_id"].equals(second["example_id"])
    for name in first.columns:
        a, b = first[name], second[name]
        if a.dtype != pl.Float64:
            assert a.equals(b), name
        else:
            assert a.is_null().equals(b.is_null()), name
            scale = max(float(a.abs().max() or 0.0), 1e-12)
            assert float((a - b).abs().max() or 0.0) <= tolerance * scale, name


@pytest.mark.parametrize(("kind", "name"), BATCHED)
def test_a_batch_of_one_changes_no_score(world: World, kind, name):
    method = KINDS[kind].get(name)
    close(world.run(kind, method), world.run(kind, method, batch=1), tolerance=FITTED.get(name, 1e-6))


@pytest.mark.parametrize(("kind", "name"), of("score"))
def test_double_precision_gives_the_same_score(world: World, kind, name):
    """Inputs and models in float64: taken as they are, and within single precision of what float32 says."""
    method, data, needs = KINDS[kind].get(name), world.data(kind), dict(world.needs)

    def doubled(model: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(model).double()

    needs["model"] = needs["encoder"] = doubled(needs["model"])
    if not data.num_users:  # there the inputs are indexes
        data = dataclasses.replace(data, x=np.asarray(data.x, np.float64))
        needs["early_models"] = [doubled(m) for m in needs["early_models"]]
        needs["train"] = functools.partial(needs["train"], double=True)
    out = world.run(kind, method, data=data, needs=needs)
    check(kind, method, out, data)
    if name in ("forgetting", "worst_case_forget"):  # whole trainings, in which rounding grows
        first, second = (f.sort("example_id")[method.spec.value].to_numpy() for f in (world.run(kind, method), out))
        assert np.corrcoef(first, second)[0, 1] > 0.9
    else:
        close(world.run(kind, method), out, tolerance=FITTED.get(name, 1e-4))


@pytest.mark.parametrize(("kind", "name"), of("attack"))
@pytest.mark.parametrize("odd", ["constant", "one_class", "single", "huge"])
def test_odd_evidence_gives_a_typed_error_or_a_sound_output(world: World, kind, name, odd):
    method, evidence = KINDS[kind].get(name), world.evidence
    if odd == "constant":
        fields = ("target_logits", "reference_logits", "population_target_logits", "population_reference_logits")
        evidence = dataclasses.replace(evidence, **{f: np.zeros_like(getattr(evidence, f)) for f in fields})
    elif odd == "one_class":
        evidence = dataclasses.replace(
            evidence, labels=np.zeros_like(evidence.labels), population_labels=np.zeros_like(evidence.population_labels)
        )
    elif odd == "single":
        evidence = shuffled(evidence, np.array([0]))
    else:
        evidence = dataclasses.replace(evidence, target_logits=evidence.target_logits * np.float32(1e6))
    out = outcome(lambda: world.run(kind, method, evidence=evidence))
    if not isinstance(out, PalimpsestError):
        check(kind, method, out, None)
        assert out.shape == evidence.target_logits.shape[:2]


# --- on hostile data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["below", "above"])
@pytest.mark.parametrize(("kind", "name"), of("score", "analysis", "unlearner", "recipe"))
def test_a_label_out_of_range_is_refused_naming_it(world: World, kind, name, end):
    method, label = KINDS[kind].get(name), -1 if end == "below" else world.examples.num_classes
    if kind == "unlearner" and name == "none":
        pytest.skip("the control does not look at the examples")
    victim = int(halves(world.train)[0].example_id[3])
    data = world.data(kind)
    if isinstance(data.x, Tokens):  # the target of a text is its next token
        at = int(data.positions([victim])[0])
        texts, marks, lengths = data.x.texts(slice(None))
        changed, label = texts.copy(), -1 if end == "below" else data.x.vocab_size
        changed[lengths[: at + 1].sum() - 1] = label
        ends = np.concatenate([[0], np.cumsum(lengths)])
        data = dataclasses.replace(data, x=Tokens(changed, ends, marks, vocab_size=data.x.vocab_size))
    else:
        y = data.y.copy()
        y[data.example_id == victim] = label
        data = dataclasses.replace(data, y=y)
    with pytest.raises(InvalidInput) as error:
        world.run(kind, method, data=data)
    assert str(victim) in str(error.value) or victim in getattr(error.value, "example_ids", ())


@pytest.mark.parametrize(("kind", "name"), ON_DATA)
def test_an_id_used_twice_is_refused_or_shows(world: World, kind, name):
    """Never merged in silence: refused, or still there twice, where the table's key refuses it."""
    method = KINDS[kind].get(name)
    data = world.data(kind)
    ids = data.example_id.copy()
    ids[1] = ids[0]
    data = dataclasses.replace(data, example_id=ids)
    out = outcome(lambda: world.run(kind, method, data=data))
    if isinstance(out, pl.DataFrame):
        assert out["example_id"].is_duplicated().sum() == 2


def broken(model: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def of_nan(train: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """Training whose observer is shown NaN, and that ends in a model of NaN."""

    def trained(data: ExampleSet, seed: int, *, observe: Any = None, **given: Any) -> torch.nn.Module:
        def told(rows: torch.Tensor, logits: torch.Tensor) -> None:
            observe(rows, torch.full_like(logits, torch.nan))

        return broken(train(data, seed, observe=None if observe is None else told, **given))

    return trained


MODELS = {"model", "encoder", "outputs", "early_models", "early_at", "ensemble"}
LOOKS_AT_MODELS = [
    p
    for p in of("score", "analysis", "unlearner")
    if (MODELS | ({"train"} if p.values[0] == "score" else set())) & set(KINDS[p.values[0]].get(p.values[1]).spec.needs)
    or (p.values[0] == "unlearner" and p.values[1] not in ("none", "retrain"))
]


@pytest.mark.parametrize(("kind", "name"), LOOKS_AT_MODELS)
def test_a_model_of_nan_is_refused(world: World, kind, name):
    method = KINDS[kind].get(name)
    needs = {**world.needs, "model": broken(world.needs["model"])}
    needs |= {
        "encoder": needs["model"],
        "outputs": lambda data: np.full((len(data), data.num_classes), np.nan, np.float32),
    }
    if kind == "score":
        needs["train"] = of_nan(needs["train"])
    if "ensemble" in needs:
        early = [broken(m) for m in needs["early_models"]]
        logits = needs["ensemble"].logits.copy()
        logits[0, 0, 0] = np.nan
        reading = needs["ensemble"].reading.copy()
        reading[0, 0] = np.nan
        needs |= {"early_models": early, "early_at": lambda epochs: dict.fromkeys(epochs, early)}
        needs["ensemble"] = dataclasses.replace(needs["ensemble"], logits=logits, reading=reading)
    with pytest.raises((DataError, Diverged)):
        world.run(kind, method, needs=needs)


def test_evidence_of_nan_labels_or_twice_the_same_is_refused(world: World):
    evidence = world.evidence
    logits = evidence.target_logits.copy()
    logits[0, 3, 1] = np.nan
    with pytest.raises(DataError) as error:
        dataclasses.replace(evidence, target_logits=logits)
    assert error.value.example_ids == (int(evidence.example_id[3]),)
    for label in (-1, NUM_CLASSES):
        labels = evidence.labels.copy()
        labels[5] = label
        with pytest.raises(DataError, match="labels outside"):
            dataclasses.replace(evidence, labels=labels)
    ids = evidence.example_id.copy()
    ids[1] = ids[0]
    with pytest.raises(DataError, match="distinct"):
        dataclasses.replace(evidence, example_id=ids)


@pytest.mark.parametrize(("kind", "name"), ON_DATA)
def test_a_task_that_is_not_declared_is_refused(world: World, kind, name):
    method = KINDS[kind].get(name)
    if named("regression").gives(*method.spec.wants):
        pytest.skip("works on any task")
    data = world.data(kind)
    numbers = np.random.default_rng(0).normal(size=(len(data), 2)).astype(np.float32)
    data = dataclasses.replace(data, task="regression", x=numbers, y=numbers[:, 0].astype(np.float64), class_names=())
    with pytest.raises(NotApplicable):
        world.run(kind, method, data=data)
