"""What the pipeline hands over as ``train`` and ``early_at``, and the early stage of a recipe that has no early models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assets import models, needs
from assets.stage import APPLIES, Output, Run
from contracts import schema
from contracts.errors import ConfigError, NotApplicable
from contracts.progress import silent
from contracts.subject import Subject
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.early import early_models
from recipes.plan import load_examples, model_builder, recipe_config

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
    train = needs.trainer(run)
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
        needs.trainer(run)(run.train, 0, effort=0.5, steps=10)
    clicks = run_of(CLICKS)
    with pytest.raises(NotApplicable, match="recipe bpr cannot be told to train for 10 steps"):
        needs.trainer(clicks)(clicks.train, 0, steps=10)


@pytest.mark.parametrize("module", ["mlp", "recipes_user_models:batchnorm"])
def test_early_at_gives_the_early_models_of_every_epoch(module, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes")
    run = run_of({**WINE, "model": {"name": module, "config": {"hidden": [8]} if module == "mlp" else {}}})
    found = needs._early_at(run)((0, 1, 4))
    build, seeds = model_builder(run.subject, run.data), models.early_seeds(run.subject)
    for epoch, group in found.items():
        alone = early_models(build, run.train, config=recipe_config(run.subject), seeds=seeds, epoch=epoch)
        assert states(group) == states(alone)


def test_without_early_models_the_stage_says_why_and_so_does_who_asks_for_them():
    run = run_of(CLICKS)
    output = models._early(run)
    assert isinstance(output, Output) and not output.artifacts
    (spec, frame, partition) = output.tables[0]
    assert spec is schema.CHECKPOINTS and frame.is_empty() and partition == {"role": "early"}
    assert "for ranking" in output.warnings[APPLIES]
    stage = SimpleNamespace(asset=lambda request: "clicks/models/early")
    run.warehouse = SimpleNamespace(last_complete=lambda asset: {"warnings": output.warnings})
    run.why_not = partial(Run.why_not, run)
    with pytest.raises(NotApplicable, match="for ranking"):
        models.load_early(run, stage)
    assert APPLIES in models.early(run.subject, stage).warnings
