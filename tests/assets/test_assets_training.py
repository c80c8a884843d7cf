"""What the pipeline gives as ``train``, ``early_at``, ``unlearn_from``; what makes models stale; a recipe without early
models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from assets import models
from assets.graph import subject_stages
from assets.needs import StageProvider
from assets.provider import JobProvider, early_seeds
from assets.stage import APPLIES, Output, Run
from contracts import schema
from contracts.errors import ConfigError, Diverged, NotApplicable, NotReady, NotTheModel
from contracts.methods import RecipeSpec, UnlearnerSpec, recipe, source, unlearner
from contracts.progress import silent
from contracts.registry import Method, Registry
from contracts.subject import Subject
from pipelines.subjects import load_subject
from recipes import models as recipe_models
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.early import early_models
from recipes.plan import load_examples, model_builder, recipe_config, trainer
from unlearning.descent import DescentConfig

WINE = {
    "subject": "wine",
    "title": "wine",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.4}},
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"epochs": 13, "batch": 8}},
    "early": {"seeds": 2, "epoch": 2},
}
CLICKS = {
    "subject": "clicks",
    "title": "clicks",
    "source": {
        "name": "synthetic_interactions",
        "config": {"num_users": 10, "num_items": 25, "per_user": 12, "dim": 2},
    },
    "model": {"name": "mf", "config": {"dim": 4}},
    "recipe": {"name": "bpr", "config": {"epochs": 2, "batch": 32}},
    "early": {"seeds": 2, "epoch": 1},
}


def run_of(plan: dict[str, Any]) -> Any:
    subject = Subject.from_mapping(plan)
    data = load_examples(subject)
    return SimpleNamespace(subject=subject, data=data, train=data.part("train"), progress=silent, request=None)


def states(found: Any) -> list[str]:
    return [arrays_digest(to_arrays(model)) for model in found]


def test_train_takes_the_steps_it_is_given_whatever_the_set():
    run, taken = run_of(WINE), []
    train = StageProvider(run, {}).train()
    for size in (107, 64, 32, 5):
        train(
            run.train.subset(run.train.example_id[:size]), 3, steps=23, observe=lambda rows, logits: taken.append(rows)
        )
        assert len(taken) == 23 and sum(map(len, taken)) <= 23 * 8
        taken.clear()
    whole = train(run.train, 3)
    assert states([train(run.train, 3, steps=13 * 14)]) == states([whole])  # 107 examples, 8 a batch


def test_train_refuses_what_does_not_go_together():
    run = run_of(WINE)
    with pytest.raises(ConfigError, match="steps has no effort"):
        StageProvider(run, {}).train()(run.train, 0, effort=0.5, steps=10)
    clicks = run_of(CLICKS)
    with pytest.raises(NotApplicable, match="recipe bpr cannot be told to train for 10 steps"):
        StageProvider(clicks, {}).train()(clicks.train, 0, steps=10)


@pytest.mark.parametrize("module", ["mlp", "recipes_user_models:batchnorm"])
def test_early_at_gives_the_early_models_of_every_epoch(module, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes")
    run = run_of({**WINE, "model": {"name": module, "config": {"hidden": [8]} if module == "mlp" else {}}})
    found = StageProvider(run, {}).early_at()((0, 1, 4))
    build, seeds = model_builder(run.subject, run.data), early_seeds(run.subject)
    for epoch, group in found.items():
        alone = early_models(
            build, run.train, recipe="supervised", config=recipe_config(run.subject), seeds=seeds, epoch=epoch
        )
        assert states(group) == states(alone)


@contextmanager
def registered(registry: Registry[Any], spec: Any, function: Any) -> Iterator[Method[Any]]:
    """A method that is there for one test."""
    registry.names()  # what there is otherwise is loaded first
    registry(spec)(function)
    try:
        yield registry.get(spec.name)
    finally:
        del registry._methods[spec.name]


def plain(build, data, *, config, seed):
    """The least that a recipe takes."""
    return build(seed)


def test_a_recipe_of_another_package_is_given_what_it_takes_and_refuses_the_rest():
    with registered(recipe, RecipeSpec(name="plain", doc=""), plain):
        run = run_of({**WINE, "recipe": "plain"})
        fresh = states([model_builder(run.subject, run.data)(3)])
        assert states([StageProvider(run, {}).train()(run.train, 3)]) == fresh
        many = StageProvider(run, {}).train_many()([run.train.example_id[:5], run.train.example_id[:7]], [3, 3])
        assert states(many) == fresh * 2
        for refused in (
            lambda: StageProvider(run, {}).train()(run.train, 0, steps=3),
            lambda: StageProvider(run, {}).train()(run.train, 0, effort=0.5),
            lambda: StageProvider(run, {}).train()(run.train, 0, observe=print),
            lambda: StageProvider(run, {}).early_at()((0, 1)),
        ):
            with pytest.raises(NotApplicable, match="recipe plain"):
                refused()
        with pytest.raises(ConfigError, match="takes no device"):
            trainer(dataclasses.replace(run.subject, device="cuda"), run.data)


EVERYTHING = {
    **WINE,
    "ensemble": {"num_models": 4},
    "scores": ["el2n", "memorization", "forgetting", "near_duplicates"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "analyses": ["shadow_unlearning"],
    "unlearning": {"methods": ["finetune"], "seeds": 1},
    "attacks": ["loss"],
}


@pytest.mark.parametrize("raised", ["recipe", "source", "model", "module"])
def test_a_new_version_of_recipe_source_or_model_makes_everything_trained_stale(raised, monkeypatch, tmp_path):
    """A corrected one would else be audited through its old models. What reads these stages is stale by its inputs."""
    plan = dict(EVERYTHING)
    if raised == "module":
        (tmp_path / "my_net.py").write_text("def net(shape, outputs): ...\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        plan["model"] = "my_net:net"
    subject = Subject.from_mapping(plan)

    def digests() -> dict[tuple[str, str], str]:
        return {stage.path: stage.config_digest for stage in subject_stages(subject)}

    before = digests()
    assert digests() == before, "nothing changed"
    if raised == "module":
        (tmp_path / "my_net.py").write_text("def net(shape, outputs): return None\n")
    elif raised == "model":
        monkeypatch.setattr(recipe_models.MODELS["mlp"][0], "version", 2)
    else:
        registry, name = {"recipe": (recipe, "supervised"), "source": (source, "sklearn")}[raised]
        method = registry.get(name)
        monkeypatch.setitem(
            registry._methods, name, dataclasses.replace(method, spec=dataclasses.replace(method.spec, version=2))
        )
    after = digests()
    stale = {path for path in before if before[path] != after[path]}
    trained = {stage.path for stage in subject_stages(subject) if stage.trains}
    assert {
        ("models", "target"),
        ("models", "early"),
        ("models", "ensemble"),
        ("unlearning", "retrain"),
        ("scores", "forgetting"),
        ("audits", "shadow_unlearning"),
    } <= trained
    assert trained <= stale
    given_data = {("data", "examples"), ("scores", "near_duplicates"), ("curation", "random")}
    assert given_data <= stale if raised == "source" else not given_data & stale


@pytest.mark.parametrize("stage", ["target", "early", "ensemble"])
def test_models_that_another_version_left_behind_are_not_read(stage, monkeypatch):
    """A stage brought up to date by itself must not compare the new model with references of the old recipe."""
    run = run_of(WINE)
    made = getattr(models, stage)(run.subject, SimpleNamespace(path=("data", "examples")))
    meta = {"trained_by": models.trained_by(made)}
    models.refuse_other_training(run, made, meta)
    assert len({models.trained_by(getattr(models, s)(run.subject, made)) for s in ("target", "early", "ensemble")}) == 1
    monkeypatch.setattr(recipe_models.MODELS["mlp"][0], "version", 2)
    for changed in (run.subject, dataclasses.replace(run.subject, seed=1)):
        now = getattr(models, stage)(changed, SimpleNamespace(path=("data", "examples")))
        with pytest.raises(NotReady, match=f"wine/models/{stage} was trained by another recipe"):
            models.refuse_other_training(run, now, meta)
    with pytest.raises(NotReady):
        models.refuse_other_training(run, now, {})


def test_every_unlearner_works_on_a_copy_of_its_own():
    """One that edits its argument, as an in-place optimiser does, cannot change what the next run starts from."""
    seen: list[Any] = []

    def careless(model, *, retain, forget, config, seed, progress):
        seen.append(model)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        return model

    run = run_of({**EVERYTHING, "unlearning": {"methods": ["finetune"], "decides": "finetune"}})
    ids = run.train.example_id
    sets = {"retain": run.train.subset(ids[5:]), "forget": run.train.subset(ids[:5])}
    start = model_builder(run.subject, run.data)(0).eval()
    before = states([start])
    with registered(unlearner, UnlearnerSpec(name="careless", doc=""), careless):
        unlearn_from = StageProvider(run, {}).unlearn_from()
        for seed in (1, 2):
            found = unlearn_from(start, "careless", seed=seed, **sets)
            assert not any(np.any(values) for values in to_arrays(found).values())
    assert states([start]) == before and all(model is not start for model in seen) and seen[0] is not seen[1]


def test_many_models_at_once_are_those_of_a_call_for_each(monkeypatch):
    """By a method with a plan; what a call would raise stands in its model's place, what answers otherwise than its
    arrays is refused, and a method without a plan is for calls."""
    run = run_of({**EVERYTHING, "unlearning": {"methods": ["finetune"], "decides": "finetune"}})
    ids = run.train.example_id
    retain, forget = ([run.train.subset(part) for part in parts] for parts in ((ids[5:], ids[9:]), (ids[:5], ids[:9])))
    starts = [model_builder(run.subject, run.data)(seed).eval() for seed in (0, 1, 2)]
    with torch.no_grad():
        starts[2].head.bias.fill_(torch.nan)
    retain, forget = [*retain, retain[0]], [*forget, forget[0]]
    before = states(starts)
    unlearn_from = StageProvider(run, {}).unlearn_from()
    found = unlearn_from.many(starts, "finetune", retain=retain, forget=forget, seeds=[1, 2, 3])
    assert states(starts) == before and isinstance(found[2], Diverged)
    for number in (0, 1):
        called = unlearn_from(starts[number], "finetune", retain=retain[number], forget=forget[number], seed=number + 1)
        for a, b in zip(called.parameters(), found[number].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert states([found[number]]) != states([starts[number]])
    with pytest.raises(Diverged):
        unlearn_from(starts[2], "finetune", retain=retain[2], forget=forget[2], seed=3)
    assert unlearn_from.many(starts, "retrain", retain=retain, forget=forget, seeds=[1, 2, 3]) is None

    def patched(method, models, **_):
        for model in models:
            model.forward = lambda x, own=model.forward: own(x) + 1.0
        return models

    monkeypatch.setattr("unlearning.stacked.unlearn_many", patched)
    hidden = unlearn_from.many(starts[:2], "finetune", retain=retain[:2], forget=forget[:2], seeds=[1, 2])
    assert all(isinstance(one, NotTheModel) for one in hidden)


def test_fields_are_changed_for_one_call_and_the_plan_has_the_rest():
    seen: list[Any] = []

    def noted(model, *, retain, forget, config, seed, progress):
        seen.append(config)
        return model

    methods = [{"name": "noted", "config": {"lr": 0.5, "epochs": 3}}]
    with registered(unlearner, UnlearnerSpec(name="noted", doc="", config=DescentConfig), noted):
        run = run_of({**EVERYTHING, "unlearning": {"methods": methods, "decides": "noted"}})
        ids = run.train.example_id
        sets = {"retain": run.train.subset(ids[5:]), "forget": run.train.subset(ids[:5])}
        start = model_builder(run.subject, run.data)(0).eval()
        unlearn_from = StageProvider(run, {}).unlearn_from()
        unlearn_from(start, "noted", seed=1, **sets)
        unlearn_from(start, "noted", seed=1, changed={"lr": 0.25}, **sets)
        with pytest.raises(ConfigError, match="lr = 7"):
            unlearn_from(start, "noted", seed=1, changed={"lr": 7.0}, **sets)
        planned = unlearn_from.config("noted")
    assert [(c.lr, c.epochs) for c in (*seen, planned)] == [(0.5, 3), (0.25, 3), (0.5, 3)]
    assert unlearn_from.config("finetune") == unlearner.get("finetune").spec.config()


def test_the_shipped_leaderboard_carries_the_corrective_methods_and_runs_their_models_together(tmp_path):
    """It names no method, which is every one that applies."""
    subject = load_subject("digits_leaderboard", tmp_path)
    (board,) = (choice for choice in subject.analyses if choice.name == "leaderboard")
    assert not board.config.get("methods")
    data = load_examples(subject)
    run: Any = SimpleNamespace(subject=subject, data=data, train=data.part("train"), progress=silent, request=None)
    unlearn_from = StageProvider(run, {}).unlearn_from()
    start, ids = model_builder(run.subject, run.data)(0).eval(), run.train.example_id
    sets = {"retain": [run.train.subset(ids[9:40])] * 2, "forget": [run.train.subset(ids[:9])] * 2}
    for name in ("scrub", "bad_teacher", "cf_k", "eu_k"):
        assert unlearn_from.refusal(name) == ""
        found = unlearn_from.many([start] * 2, name, seeds=(1, 2), changed={"epochs": 1}, **sets)
        assert found is not None and all(isinstance(model, nn.Module) for model in found), name


def test_what_does_not_apply_is_told_by_name_before_any_work():
    run = run_of({**EVERYTHING, "unlearning": {"methods": ["finetune"], "decides": "finetune"}})
    unlearn_from = StageProvider(run, {}).unlearn_from()
    assert unlearn_from.refusal("finetune") == unlearn_from.refusal("random_label") == ""
    assert "unlearner flat does not apply to" in unlearn_from.refusal("flat")
    numbers = run_of({**WINE, "source": {"name": "sklearn", "config": {"dataset": "diabetes"}}})
    said = StageProvider(numbers, {}).unlearn_from().refusal("random_label")
    assert "unlearner random_label does not apply to diabetes, a regression task" in said and "class" in said

    def needy(model, *, early_models, **_):
        return model

    with registered(unlearner, UnlearnerSpec(name="needy", doc="", needs=("early_models",)), needy):
        assert "needs early_models" in unlearn_from.refusal("needy")
        listed = run_of({**EVERYTHING, "unlearning": {"methods": ["needy"], "decides": "retrain"}})
        assert StageProvider(listed, {}).unlearn_from().refusal("needy") == ""


def test_reference_models_are_there_for_who_can_do_without_only_where_another_has_them_trained():
    run = run_of(WINE)
    assert StageProvider(run, {}).ensemble_if_any() is None
    assert "ensemble_if_any" in StageProvider.meets() and "ensemble_if_any" not in JobProvider.meets()


@pytest.mark.parametrize("given", ["unlearn_from", "unlearn"])
def test_the_method_in_use_is_told(given):
    def call(run, upstream):
        return getattr(StageProvider(run, upstream), given)()

    planned = call(run_of({**EVERYTHING, "unlearning": {"methods": ["finetune"], "decides": "finetune"}}), {})
    assert planned.in_use == "finetune" and planned.methods == ("finetune",)
    assert call(run_of(EVERYTHING), {}).in_use == "retrain"
    unplanned = call(run_of(WINE), {})
    assert unplanned.in_use == "retrain" and {"finetune", "retrain"} <= set(unplanned.methods)


def test_without_early_models_the_stage_says_why_and_so_does_who_asks_for_them():
    with registered(recipe, RecipeSpec(name="plain", doc=""), plain):
        _the_stage_says_why(run_of({**WINE, "recipe": "plain"}))


def _the_stage_says_why(run):
    output = models._early(run)
    assert isinstance(output, Output) and not output.artifacts
    (spec, frame, partition) = output.tables[0]
    assert spec is schema.CHECKPOINTS and frame.is_empty() and partition == {"role": "early"}
    assert "recipe plain cannot stop early" in output.warnings[APPLIES]
    stage = SimpleNamespace(asset=lambda request: "wine/models/early")
    run.warehouse = SimpleNamespace(last_complete=lambda asset: {"warnings": output.warnings})
    run.why_not = partial(Run.why_not, run)
    with pytest.raises(NotApplicable, match="recipe plain cannot stop early"):
        models.load_early(run, stage)
    assert APPLIES in models.early(run.subject, stage).warnings
