"""Many descents at once against one after another, and the promises of the shared mechanism."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from contracts.errors import ConfigError, Diverged, NotApplicable
from contracts.methods import unlearner
from contracts.progress import silent
from recipes.models import builder
from unlearning.descent import Descent, DescentConfig, Pass, descend, inputs_of
from unlearning.stacked import _KNOWN, _counts, _judged, _kind, _stack_of, descend_many, unlearn_many

CLOSE = {"rtol": 0.0, "atol": 1e-9}  # of float64


@pytest.fixture(scope="module")
def runs(world):
    """Five models in float64, each with sets of its own, of unequal sizes."""
    ids = np.sort(np.concatenate([world.retain.example_id, world.forget.example_id]))
    every = dataclasses.replace(
        world.retain,
        **{
            name: np.concatenate([getattr(world.retain, name), getattr(world.forget, name)])
            for name in ("x", "y", "example_id", "split", "owner", "content_hash")
        },
    )
    rng = np.random.default_rng(5)
    models, retain, forget = [], [], []
    for number in range(5):
        model = copy.deepcopy(world.model).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=p.dtype))
        chosen = rng.permutation(ids)
        models.append(model)
        forget.append(every.subset(chosen[: 11 + 4 * number]))
        retain.append(every.subset(chosen[40 : 150 - 17 * number]))
    return models, retain, forget


def settings(name: str, **fields: object):
    return unlearner.get(name).spec.config.from_mapping({"lr": 0.004, "epochs": 3, "batch": 32, **fields})


def both(runs, name: str, **fields: object):
    models, retain, forget = runs
    method, config = unlearner.get(name), settings(name, **fields)
    needs = {"build": fresh} if "build" in method.spec.needs else {}
    sets = zip(models, retain, forget, range(7, 12), strict=True)
    loop = [method(m, retain=r, forget=f, config=config, seed=s, **needs) for m, r, f, s in sets]
    many = unlearn_many(method, models, retain=retain, forget=forget, config=config, seeds=range(7, 12), **needs)
    return loop, many


def fresh(seed: int) -> nn.Module:
    return builder("mlp", {"hidden": (16,)}, input_shape=(6,), num_outputs=4)(seed).double()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("finetune", {}),
        ("gradient_ascent", {}),
        ("random_label", {"alpha": 0.3}),
        ("random_label", {"order": "mixed"}),
        ("finetune", {"momentum": 0.0, "weight_decay": 0.1, "epochs": 1}),
        ("finetune", {"epochs": 0}),
        ("cf_k", {"k": 1, "lr": 0.05}),
        ("eu_k", {"k": 2, "lr": 0.05, "epochs": 12}),
        ("salun", {"mask_fraction": 0.3}),
        ("l1_sparse", {"gamma": 0.01}),
        ("scrub", {"alpha": 0.7, "msteps": 7, "lr": 0.02}),
        ("bad_teacher", {"lr": 0.02}),
    ],
)
def test_stacked_is_the_loop_for_sets_of_unequal_sizes(runs, flat, name, fields):
    before = [flat(model) for model in runs[0]]
    loop, many = both(runs, name, **fields)
    for number, (one, other) in enumerate(zip(loop, many, strict=True)):
        torch.testing.assert_close(flat(other), flat(one), **CLOSE)
        assert not other.training and other is not runs[0][number]
        assert all(p.requires_grad for p in other.parameters())
        assert torch.equal(flat(runs[0][number]), before[number])
    if fields.get("epochs") != 0:
        assert all((flat(a) - b).abs().max() > 1e-4 for a, b in zip(many, before, strict=True))


def plans_of(runs, name: str = "finetune", **fields: object) -> list[Descent]:
    plan, config = unlearner.get(name).spec.plan, settings(name, **fields)
    return [plan(m, retain=r, forget=f, config=config, seed=s) for s, (m, r, f) in enumerate(zip(*runs, strict=True))]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_neither_chunks_nor_the_path_change_the_result(runs, flat, chunk):
    wanted = descend_many(plans_of(runs), progress=silent)
    for path, tolerance in (("auto", 1e-12), ("mlp", 1e-12), ("vmap", 1e-9), ("loop", 1e-9)):
        got = descend_many(plans_of(runs), progress=silent, path=path, chunk=chunk)
        for one, other in zip(wanted, got, strict=True):
            torch.testing.assert_close(flat(other), flat(one), rtol=0, atol=tolerance)


def test_layers_that_stay_stay_and_rates_change_in_step(runs, flat):
    """By both stacks; those whose epochs have other numbers of steps are not at the same rate, and do not share one."""

    found = plans_of(runs, "finetune", batch=20)
    one_rate = [dataclasses.replace(plan, frozen=("hidden.0",), rate=falling) for plan in found]
    steps = {sum(_counts(plan, plan.passes(0))) for plan in one_rate}
    assert len(steps) > 1
    loop = [descend(plan, progress=silent) for plan in one_rate]
    for path in ("auto", "vmap", "mlp"):
        many = descend_many(one_rate, progress=silent, path=path)
        for one, other, plan in zip(loop, many, one_rate, strict=True):
            torch.testing.assert_close(flat(other), flat(one), **CLOSE)
            assert torch.equal(other.hidden[0].weight, plan.model.hidden[0].weight)
            assert not torch.equal(other.head.weight, plan.model.head.weight)
    constant = descend_many(plans_of(runs, "finetune", batch=20), progress=silent)
    assert all((flat(a) - flat(b)).abs().max() > 1e-4 for a, b in zip(constant, many, strict=True))


def falling(step: int, steps: int) -> float:
    return 1 - step / steps


def test_losses_of_the_outputs_share_a_stack_where_they_are_the_same(runs, flat):
    """By both stacks; another distance to the trained model is another loss, and several in one plan are the loop's."""
    fields = {"batch": 500, "lr": 0.02, "msteps": 4}  # one step a pass: the rates of all models agree
    near, far = (plans_of(runs, "scrub", alpha=alpha, **fields) for alpha in (0.1, 5.0))
    kinds = {_kind(plan, [list(plan.passes(e)) for e in range(3)], "auto") for plan in near}
    others = {_kind(plan, [list(plan.passes(e)) for e in range(3)], "auto") for plan in far}
    assert len(kinds) == 1 and not kinds & others
    loop = [descend(plan, progress=silent) for plan in (*near, *far)]
    assert (flat(loop[0]) - flat(loop[5])).abs().max() > 1e-4
    for path in ("auto", "mlp", "vmap"):
        many = descend_many((*near, *far), progress=silent, path=path)
        for one, other in zip(loop, many, strict=True):
            torch.testing.assert_close(flat(other), flat(one), **CLOSE)
    first, second = near[0].passes(0), far[0].passes(0)
    assert _stack_of(near[0], [[first[0], second[1]]], "auto") == ("loop", "the passes have several losses")


def test_a_penalty_of_each_models_own_costs_no_others_gradient(runs, flat):
    """Only two of five have one; the others come out as without any."""

    def penalty(parameters, epoch):
        return 0.05 * parameters["head.weight"].square().sum()

    bare = plans_of(runs)
    some = [dataclasses.replace(p, penalty=penalty if i in (1, 3) else None) for i, p in enumerate(bare)]
    plain, many = descend_many(bare, progress=silent), descend_many(some, progress=silent)
    for i, (one, other, plan) in enumerate(zip(plain, many, some, strict=True)):
        torch.testing.assert_close(flat(other), flat(descend(plan, progress=silent)), **CLOSE)
        assert torch.equal(flat(other), flat(one)) == (i not in (1, 3))


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """A penalty that grows by the epoch; its calls are counted."""

    scale: float
    asks: bool = False
    calls: list[int] = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, parameters, epoch):
        self.calls.append(epoch)
        size = sum(p.abs().sum() for p in parameters.values())
        return self.scale * (1 + epoch) * (size if not self.asks or float(size.detach()) > 0 else 0.0 * size)


@pytest.mark.parametrize("asks", [False, True])
def test_equal_penalties_are_asked_for_together_where_vmap_can(runs, flat, asks):
    """Of sets of unequal sizes: in one step some models are an epoch ahead of others."""
    bare = plans_of(runs, epochs=5)
    plans = [dataclasses.replace(plan, penalty=Shrinking(0.02, asks)) for plan in bare]
    loop = [descend(plan, progress=silent) for plan in plans]
    calls = [len(plan.penalty.calls) for plan in plans]
    assert len(set(calls)) > 1
    for path in ("auto", "vmap", "mlp"):
        for plan in plans:
            plan.penalty.calls.clear()
        many = descend_many(plans, progress=silent, path=path)
        for one, other, without in zip(loop, many, bare, strict=True):
            torch.testing.assert_close(flat(other), flat(one), **CLOSE)
            assert (flat(other) - flat(descend(without, progress=silent))).abs().max() > 1e-4
        asked = sum(len(plan.penalty.calls) for plan in plans)
        assert asked == sum(calls) + 1 if asks else asked < 0.6 * sum(calls)
    other = [dataclasses.replace(plan, penalty=Shrinking(0.02 + 0.01 * i)) for i, plan in enumerate(bare)]
    for one, many in zip(other, descend_many(other, progress=silent), strict=True):
        torch.testing.assert_close(flat(many), flat(descend(one, progress=silent)), **CLOSE)


def test_only_a_model_that_is_hardly_better_than_a_constant_is_looked_at_alone(runs, flat, monkeypatch):
    """The verdict on every model is that of the loop, whether it ends early or late."""
    looked: list[Descent] = []

    def look(plan, student):
        looked.append(plan)
        return _judged(plan, student)

    monkeypatch.setattr("unlearning.stacked._judged", look)
    plans = plans_of(runs, "gradient_ascent", lr=0.5, epochs=40)
    for number in (0, 2, 4):
        kept = Pass.over(inputs_of(plans[number].model, runs[1][number]))
        plans[number] = dataclasses.replace(plans[number], passes=lambda _, kept=kept: [kept])
    assert len({_kind(plan, [list(plan.passes(0))], "auto") for plan in plans}) == 1
    many = descend_many(plans, progress=silent)
    assert looked == [plans[1], plans[3]] or looked == [plans[3], plans[1]]
    for number, (plan, one) in enumerate(zip(plans, many, strict=True)):
        if number in (1, 3):
            with pytest.raises(Diverged) as told:
                descend(plan, progress=silent)
            assert str(one) == str(told.value)
        else:
            torch.testing.assert_close(flat(one), flat(descend(plan, progress=silent)), rtol=0, atol=1e-6)
    monkeypatch.setattr("unlearning.stacked._CLOSE", 1.0)
    looked.clear()
    descend_many(plans, progress=silent)
    assert len(looked) == 5


@pytest.mark.parametrize(("name", "fields"), [("scrub", {"alpha": 0.7, "temperature": 3.0}), ("bad_teacher", {})])
def test_gradients_that_are_written_out_are_those_of_autograd(runs, name, fields):
    plan = unlearner.get(name).spec.plan
    needs = {"build": fresh} if name == "bad_teacher" else {}
    models, retain, forget = runs
    said = plan(models[0], retain=retain[0], forget=forget[0], config=settings(name, **fields), seed=1, **needs)
    for one in said.passes(0):
        rows = torch.arange(len(one))
        outputs = torch.randn(len(one), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).mul_(3)
        outputs.requires_grad_()
        targets = one.batch(rows).targets
        (wanted,) = torch.autograd.grad(one.of_outputs(outputs, targets).sum(), outputs)
        found = one.of_outputs.gradient(outputs.detach(), targets)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        assert found.data_ptr() != outputs.data_ptr() and wanted.abs().max() > 0.1


def test_what_a_plan_says_that_is_not_known_takes_the_loop(runs, monkeypatch):
    plan = dataclasses.replace(plans_of(runs)[0], rate=falling)
    passes = [list(plan.passes(0))]
    assert _stack_of(plan, passes, "auto")[0] == "mlp"
    monkeypatch.setattr("unlearning.stacked._KNOWN", _KNOWN - {"rate"})
    assert _stack_of(plan, passes, "auto") == ("loop", "rate of the plan is not known here")


def adam(parameters: list[nn.Parameter], config: DescentConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=config.lr)


def test_penalties_projections_and_other_optimisers_are_each_models_own(runs, flat):
    """A penalty that grows by the epoch, a mask of its own that also counts steps, Adam."""
    counts: list[tuple[int, int, int]] = []

    def dressed() -> list[Descent]:
        found = []
        for number, plan in enumerate(plans_of(runs, "random_label")):
            generator = torch.Generator().manual_seed(number)
            mask = {k: torch.rand(p.shape, generator=generator) < 0.5 for k, p in plan.model.named_parameters()}
            start = {k: p.detach().clone() for k, p in plan.model.named_parameters()}

            def penalty(parameters, epoch, scale=number):
                return 0.01 * (epoch + scale) * sum(p.abs().sum() for p in parameters.values())

            def project(parameters, done, total, number=number, mask=mask, start=start):
                counts.append((number, done, total))
                for key, p in parameters.items():
                    assert p.shape == start[key].shape
                    p.copy_(torch.where(mask[key], p, start[key]))

            found.append(dataclasses.replace(plan, penalty=penalty, project=project, optimizer=adam))
        return found

    loop = [descend(plan, progress=silent) for plan in dressed()]
    of_loop = sorted(counts)
    counts.clear()
    assert all(_stack_of(plan, [list(plan.passes(0))], "auto")[0] == "mlp" for plan in dressed())
    many = descend_many(dressed(), progress=silent)
    assert sorted(counts) == of_loop
    for one, other, plan in zip(loop, many, dressed(), strict=True):
        torch.testing.assert_close(flat(other), flat(one), **CLOSE)
        kept = (flat(other) == flat(plan.model)).double().mean()
        assert 0.3 < kept < 0.7  # the mask held
    plain = descend_many([dataclasses.replace(p, penalty=None) for p in dressed()], progress=silent)
    assert all((flat(a) - flat(b)).abs().max() > 1e-4 for a, b in zip(plain, many, strict=True))


def test_one_model_that_diverges_spoils_no_other(runs, flat):
    models, retain, forget = runs
    broken = copy.deepcopy(models[2])
    with torch.no_grad():
        broken.head.weight.mul_(1e200)
    lost = copy.deepcopy(models[3])
    with torch.no_grad():
        lost.head.bias[0] = torch.nan
    method, config = unlearner.get("gradient_ascent"), settings("gradient_ascent")
    seeds = range(7, 12)
    good = unlearn_many(method, models, retain=retain, forget=forget, config=config, seeds=seeds)
    some = [*models[:2], broken, lost, models[4]]
    got = unlearn_many(method, some, retain=retain, forget=forget, config=config, seeds=seeds)
    assert isinstance(got[2], Diverged) and isinstance(got[3], Diverged)
    assert "before unlearning" in str(got[3])
    for number in (0, 1, 4):
        assert torch.equal(flat(got[number]), flat(good[number]))
    for number in (2, 3):
        with pytest.raises(Diverged):
            method(some[number], retain=retain[number], forget=forget[number], config=config, seed=seeds[number])


def test_a_collapse_is_each_models_own(runs, flat):
    """Ascent at a rate that ruins all but the last, which visits nothing."""
    models, retain, forget = runs
    method, config = unlearner.get("gradient_ascent"), settings("gradient_ascent", lr=0.5, epochs=40)
    nothing = [*forget[:4], forget[4].subset([])]
    got = unlearn_many(method, models, retain=retain, forget=nothing, config=config, seeds=range(5))
    assert all(isinstance(one, Diverged) for one in got[:4])
    assert torch.equal(flat(got[4]), flat(models[4]))


def noisy(model: nn.Module) -> nn.Module:
    return nn.Sequential(model, nn.Dropout(0.5))


def normalised(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(6), model).double()


@pytest.mark.parametrize("wrap", [noisy, normalised])
@pytest.mark.parametrize("path", ["mlp", "vmap"])
def test_what_cannot_be_stacked_takes_the_loop(runs, flat, wrap, path):
    models, retain, forget = runs
    made = [wrap(copy.deepcopy(model)).eval() for model in models]
    method, config = unlearner.get("finetune"), settings("finetune")
    loop = [
        method(m, retain=r, forget=f, config=config, seed=s)
        for s, (m, r, f) in enumerate(zip(made, retain, forget, strict=True))
    ]
    many = unlearn_many(method, made, retain=retain, forget=forget, config=config, seeds=range(5))
    assert all(torch.equal(flat(a), flat(b)) for a, b in zip(loop, many, strict=True))
    with pytest.raises(NotApplicable, match="use 'auto'"):
        descend_many(plans_of((made, retain, forget)), progress=silent, path=path)


def test_losses_of_a_methods_own_and_rules_to_stop_by_take_the_loop_and_keep_their_draws(runs, flat):
    def own() -> list[Descent]:
        found = []
        for plan in plans_of(runs, "random_label"):

            def passes(epoch, draw=plan.passes):
                squares = [
                    dataclasses.replace(one, losses=lambda m, b: 0.01 * m(b.inputs).square().sum(1))
                    for one in draw(epoch)
                ]
                return draw(epoch) if epoch < 2 else squares

            found.append(dataclasses.replace(plan, passes=passes))
        return found

    def stopped() -> list[Descent]:
        return [dataclasses.replace(p, stop=lambda _, done: done == 8) for p in plans_of(runs, "random_label")]

    for made in (own, stopped):
        assert {_stack_of(plan, [list(plan.passes(e)) for e in range(3)], "auto")[0] for plan in made()} == {"loop"}
        many = descend_many(made(), progress=silent)
        for one, plan in zip(many, made(), strict=True):
            assert torch.equal(flat(one), flat(descend(plan, progress=silent)))
        with pytest.raises(NotApplicable, match="use 'auto'"):
            descend_many(made(), progress=silent, path="mlp")


def test_a_rule_to_stop_by_stops_after_that_step(runs, flat):
    plan, asked = plans_of(runs)[0], []

    def stop(model, done):
        asked.append((model.training, done))
        return done == 3

    got = descend(dataclasses.replace(plan, stop=stop), progress=silent)
    assert asked == [(True, 1), (True, 2), (True, 3)] and not got.training
    assert not torch.equal(flat(got), flat(descend(plan, progress=silent)))


def test_sets_and_seeds_are_one_a_model_and_a_plan_is_needed(runs):
    models, retain, forget = runs
    finetune, none = unlearner.get("finetune"), unlearner.get("none")
    with pytest.raises(ConfigError, match="4 seeds"):
        unlearn_many(finetune, models, retain=retain, forget=forget, config=settings("finetune"), seeds=range(4))
    with pytest.raises(NotApplicable, match="no plan"):
        unlearn_many(none, models, retain=retain, forget=forget, config=none.spec.config(), seeds=range(5))


def test_progress_counts_plans(runs):
    seen: list[tuple[int, int, str]] = []
    descend_many(plans_of(runs), progress=lambda *at: seen.append(at), chunk=2)
    assert seen == [(2, 5, "finetune"), (4, 5, "finetune"), (5, 5, "finetune")]


@pytest.mark.parametrize("name", [m.spec.name for m in unlearner if m.spec.plan and "numbers" not in m.spec.wants])
def test_the_plan_of_a_method_is_what_the_method_does(runs, flat, name):
    models, retain, forget = runs
    method, config = unlearner.get(name), settings(name)
    given = {"retain": retain[0], "forget": forget[0], "config": config, "seed": 3}
    given |= {"build": fresh} if "build" in method.spec.needs else {}
    assert torch.equal(
        flat(descend(method.spec.plan(models[0], **given), progress=silent)), flat(method(models[0], **given))
    )


def test_the_methods_of_the_shadow_audit_say_their_plans():
    said = {m.spec.name for m in unlearner if m.spec.plan}
    assert {"finetune", "gradient_ascent", "random_label", "cf_k", "eu_k", "gaussian_amnesiac", "blindspot"} <= said
