"""What a method does: on good data, on the same data twice, on odd data, and on hostile data.

On odd data it answers in one of two ways: with a typed error, or with an output that meets its declaration. Anything
else (a library's traceback, a NaN in a table, a lost example) fails here.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from polars.testing import assert_frame_equal

from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable, PalimpsestError
from contracts.registry import Method
from palimpsest.testing.conform import check_close, check_output, claim, comparable, outcome, same
from palimpsest.testing.kinds import kind_of
from palimpsest.testing.world import World, halves
from sources.example_set import ExampleSet
from sources.identity import Content
from sources.payloads.graph import Graph
from sources.payloads.tokens import Tokens
from tasks.base import gives

_LOOKS = {"model", "encoder", "outputs", "early_models", "early_at", "ensemble", "ensemble_outputs"}


# --- on good data -------------------------------------------------------------------------------------------------


def output(world: World, method: Method[Any]) -> None:
    """The output is what was declared, and not one value for everybody."""
    kind, out = kind_of(method), world.usual(method)
    check_output(method, out, world.data(method))
    if kind == "attack":
        claim(
            out.shape == world.evidence.target.shape[:2], f"scores {out.shape}, not {world.evidence.target.shape[:2]}"
        )
        claim(np.isfinite(out).mean() > 0.5, "most scores are undefined")
        claim(any(len(np.unique(row[np.isfinite(row)])) > 1 for row in out), "one score for everybody")
    if kind == "score":
        claim(out[method.spec.value].n_unique() > 1, "one value for everybody")
    if kind == "curator":
        claim(out["role"].n_unique() > 1, "one role for everybody")


def _global_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def repeatable(world: World, method: Method[Any]) -> None:
    """Same seed, same bits; and the global generators are neither used nor moved."""
    first = comparable(method, world.usual(method))
    states = _global_states()
    try:
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002
        torch.manual_seed(3)
        before = _global_states()
        second = comparable(method, world.run(method))
        after = _global_states()
        claim(before[0] == after[0], "the global state of random has moved")
        kept = np.array_equal(before[1][1], after[1][1]) and before[1][2:] == after[1][2:]
        claim(kept, "the global state of numpy has moved")
        claim(torch.equal(before[2], after[2]), "the global state of torch has moved")
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
    claim(same(first, second), "the same seed gave other bits: something is drawn from global state")


def untouched(world: World, method: Method[Any]) -> None:
    """Nothing given is changed: examples, models, reference models."""
    data = copy.deepcopy(world.data(method))
    words = [*method.spec.needs, *(["model"] if kind_of(method) == "unlearner" else [])]
    needs = {need: copy.deepcopy(world.needs[need]) for need in words if need in world.needs}
    for model in (m for given in needs.values() for m in _models(given)):
        model.eval()  # as they are given, whatever an earlier run has left behind
    before = copy.deepcopy(needs)
    world.run(method, data=data, needs=needs)
    for column in ("y", "example_id", "split", "owner"):
        claim(np.array_equal(getattr(data, column), getattr(world.data(method), column)), f"{column} was changed")
    claim(Content(data.x).hashes().tolist() == Content(world.data(method).x).hashes().tolist(), "x was changed")
    for need in needs:
        for used, original in zip(_models(needs[need]), _models(before[need]), strict=True):
            claim(used.training == original.training, f"{need}: the mode of a model was changed")
            for (name, a), b in zip(used.state_dict().items(), original.state_dict().values(), strict=True):
                claim(torch.equal(a, b), f"{need}: {name} was changed")
            claim(all(p.grad is None for p in used.parameters()), f"{need}: a gradient was left behind")
            asked = [p.requires_grad for p in original.parameters()]
            claim([p.requires_grad for p in used.parameters()] == asked, f"{need}: requires_grad was changed")
            claim(all(not m._forward_hooks for m in used.modules()), f"{need}: a hook was left behind")
        if hasattr(needs[need], "reading"):
            claim(np.array_equal(needs[need].reading, before[need].reading), f"{need}: a reading was changed")


def _models(given: Any) -> list[torch.nn.Module]:
    many = given if isinstance(given, (list, tuple)) else [given]
    return [model for model in many if isinstance(model, torch.nn.Module)]


def order(world: World, method: Method[Any]) -> None:
    """The order of the rows does not matter."""
    data = world.data(method)
    mixed = data.subset(np.random.default_rng(5).permutation(data.example_id))
    first, second = (comparable(method, out) for out in (world.usual(method), world.run(method, data=mixed)))
    if isinstance(first, dict):
        for name, frame in first.items():
            assert_frame_equal(frame, second[name], rel_tol=1e-5, abs_tol=1e-7)
    elif isinstance(first, np.ndarray) or kind_of(method) == "curator":
        claim(same(first, second), "the order of the rows matters")
    else:  # a batch of other neighbours may round differently
        tolerance = max(1e-5, method.spec.tolerance)
        assert_frame_equal(first, second, rel_tol=tolerance, abs_tol=max(1e-7, method.spec.tolerance))


def batch_of_one(world: World, method: Method[Any]) -> None:
    """How the work is cut changes no score."""
    spec = method.spec
    if spec.trains or "batch" not in {f.name for f in dataclasses.fields(spec.config)}:
        return
    check_close(world.usual(method), world.run(method, batch=1), tolerance=max(1e-6, spec.tolerance))


def double_precision(world: World, method: Method[Any]) -> None:
    """Inputs and models in float64: taken as they are, and within single precision of what float32 says."""
    spec, data = method.spec, world.data(method)
    doubled = lambda model: copy.deepcopy(model).double()  # noqa: E731
    build = world.trainer.build
    twice = dataclasses.replace(world.trainer, build=lambda seed: build(seed).double())
    needs: dict[str, Any] = {
        "train": lambda d, seed, **more: _with(twice, more).one(d, seed, observe=more.get("observe"))
    }
    needs |= {need: doubled(world.needs[need]) for need in ("model", "encoder") if need in spec.needs}
    if "early_models" in spec.needs:
        needs["early_models"] = [doubled(m) for m in world.needs["early_models"]]
    if isinstance(data.x, np.ndarray) and data.x.dtype.kind == "f":
        data = dataclasses.replace(data, x=np.asarray(data.x, np.float64))
    out = world.run(method, data=data, needs=needs)
    check_output(method, out, data)
    if not spec.trains:
        check_close(world.usual(method), out, tolerance=max(1e-4, spec.tolerance))
        return
    first, second = (f.sort("example_id")[spec.value].to_numpy() for f in (world.usual(method), out))
    alike = np.corrcoef(first, second)[0, 1]
    claim(alike > 0.9, f"in double precision the values correlate {alike:.2f} with those in single")


def on_cuda(world: World, method: Method[Any]) -> None:
    """Where models and training are on CUDA the output is what was declared; a score that trains nothing says of a
    model there what it says of the same model on the CPU."""
    spec, there = method.spec, world.on("cuda")
    out = there.run(method)
    check_output(method, out, there.data(method))
    if kind_of(method) == "score" and not spec.trains:
        needs = {
            need: _on_cpu(there.needs[need]) for need in ("model", "encoder", "early_models") if need in spec.needs
        }
        check_close(there.run(method, needs=needs), out, tolerance=max(1e-3, spec.tolerance))


def _on_cpu(given: Any) -> Any:
    moved = [copy.deepcopy(model).cpu() for model in _models(given)]
    return moved if isinstance(given, (list, tuple)) else moved[0]


def _with(trainer: Any, more: dict[str, Any]) -> Any:
    return trainer.of_length(effort=more.get("effort", 1.0), steps=more.get("steps"))


# --- on odd data --------------------------------------------------------------------------------------------------


def constant(data: ExampleSet) -> ExampleSet:
    """Every example looks the same."""
    if isinstance(data.x, Tokens):
        return dataclasses.replace(data, x=dataclasses.replace(data.x, flat=np.ones_like(data.x.flat)))
    if isinstance(data.x, Graph):
        return dataclasses.replace(data, x=dataclasses.replace(data.x, features=np.ones_like(data.x.features)))
    return dataclasses.replace(data, x=np.ones_like(data.x))


def one_target(data: ExampleSet) -> ExampleSet:
    """Every example has the same target."""
    return dataclasses.replace(data, y=np.zeros_like(data.y), whole=None)


def single(data: ExampleSet) -> ExampleSet:
    """There is one example."""
    return data.subset(data.example_id[:1])


def empty(data: ExampleSet) -> ExampleSet:
    """There is none."""
    return data.subset([])


def odd_data(world: World, method: Method[Any]) -> None:
    """Constant examples and one target come with models and an ensemble that were trained on them."""
    for odd in (constant, one_target, single, empty):
        data, trained = odd(world.data(method)), odd in (constant, one_target) and world.examples.task.gives("features")
        where = world.like(odd.__name__, odd) if trained else world
        out = outcome(lambda where=where, data=data: where.run(method, data=data))  # type: ignore[misc]
        if isinstance(out, PalimpsestError):
            claim(
                not (trained and kind_of(method) == "score"),
                f"a score is defined on any examples, also where {(odd.__doc__ or '').rstrip('.').lower()}: {out}",
            )
            continue
        check_output(method, out, data)


# --- on hostile data ----------------------------------------------------------------------------------------------


_ALLOWED = re.compile(r"\d\.\.\d|([<>]=?|below|above|at least|at most) -?\d|finite|negative|whole number")


def spoilt_target(world: World, method: Method[Any]) -> None:
    """A target that is none is refused, naming the example and what is allowed."""
    if world.spoil is None or getattr(method.spec, "control", False):
        return
    victim = int(halves(world.train)[0].example_id[3])
    for end in ("below", "above"):
        data = world.spoil(world.data(method), victim, end)
        error = _refusal(lambda data=data: world.run(method, data=data), InvalidInput, f"a target {end} its range")  # type: ignore[misc]
        named = str(victim) in str(error) or victim in getattr(error, "example_ids", ())
        claim(named, f"the refusal of a target {end} its range does not name example {victim}: {error}")
        told = _ALLOWED.search(str(error)) is not None
        claim(told, f"the refusal of a target {end} its range does not say what is allowed (0..2, finite): {error}")


def same_id_twice(world: World, method: Method[Any]) -> None:
    """Never merged in silence: refused, or still there twice, where the table's key refuses it."""
    data = world.data(method)
    ids = data.example_id.copy()
    ids[1] = ids[0]
    data = dataclasses.replace(data, example_id=ids)
    out = outcome(lambda: world.run(method, data=data))
    if isinstance(out, pl.DataFrame):
        claim(out["example_id"].is_duplicated().sum() == 2, "an id that is used twice was merged in silence")


def broken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with NaN in its first parameter."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def broken_model(world: World, method: Method[Any]) -> None:
    """A model of NaN is refused."""
    spec, kind = method.spec, kind_of(method)
    looks = set(spec.needs) & (_LOOKS | ({"train"} if kind == "score" else set()))
    if kind == "unlearner":
        looks |= set() if spec.exact or spec.control else {"model"}
    if not looks:
        return
    needs: dict[str, Any] = {}
    if looks & {"model", "encoder", "outputs"}:
        needs |= dict.fromkeys(("model", "encoder"), broken(world.needs["model"]))
        needs["outputs"] = lambda data: np.full((len(data), data.num_classes), np.nan, np.float32)
    if "train" in looks:
        needs["train"] = _of_nan(world.needs["train"])
    if looks & {"early_models", "early_at"}:
        early = [broken(m) for m in world.needs["early_models"]]
        needs |= {"early_models": early, "early_at": lambda epochs: dict.fromkeys(epochs, early)}
    for need in looks & {"ensemble", "ensemble_outputs"}:
        needs[need] = _of_nans(world.needs[need])
    _refusal(lambda: world.run(method, needs=needs), (DataError, Diverged), "a model of NaN")


def _of_nan(train: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """Training whose observer is shown NaN, and that ends in a model of NaN."""

    def trained(data: ExampleSet, seed: int, *, observe: Any = None, **given: Any) -> torch.nn.Module:
        def told(rows: torch.Tensor, logits: torch.Tensor) -> None:
            observe(rows, torch.full_like(logits, torch.nan))

        return broken(train(data, seed, observe=None if observe is None else told, **given))

    return trained


def _of_nans(ensemble: Any) -> Any:
    reading = ensemble.reading.copy()
    reading[0, 0] = np.nan
    logits = None if ensemble.logits is None else ensemble.logits.copy()
    if logits is not None:
        logits[0, 0, 0] = np.nan
    return dataclasses.replace(ensemble, reading=reading, logits=logits)


def other_task(world: World, method: Method[Any]) -> None:
    """A task that does not give what the method wants is refused by what is missing."""
    from palimpsest.testing.worlds import WORLDS

    others = (make().data(method) for make in WORLDS.values())
    data = next((d for d in others if not gives(d, *method.spec.wants)), None)
    if data is not None:
        _refusal(lambda: world.run(method, data=data), NotApplicable, f"data of a {data.task} task")


def _refusal(run: Callable[[], Any], kinds: Any, what: str) -> PalimpsestError:
    try:
        run()
    except kinds as error:
        return error  # type: ignore[no-any-return]
    except PalimpsestError as error:
        raise AssertionError(f"{what} is refused by {type(error).__name__}, of another kind: {error}") from error
    raise AssertionError(f"{what} was taken")
