"""Another package's kind of task, with everything that goes with it: how often something happens (Poisson regression).

    answer  z = log of the rate        loss  e^z - y z + log y!        nats, >= 0
    signal  -sqrt |sqrt(y + 3/8) - sqrt(e^z + 3/8)|                    Anscombe's transform: its error is near normal of
            constant spread
    quality  1 - |y - e^z| / mean |y - mean|, cut to 0..1

The task, a source of such data, a recipe, a score, an unlearner and a membership attack.
Source: Anscombe, "The Transformation of Poisson, Binomial and Negative-Binomial Data", Biometrika 1948.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from scipy.special import gammaln

from contracts.methods import (
    EVERY_TASK,
    AttackSpec,
    RecipeSpec,
    ScoreSpec,
    SourceSpec,
    TaskSpec,
    UnlearnerSpec,
    attack,
    recipe,
    score,
    source,
    task,
    unlearner,
)
from contracts.params import Config, param
from contracts.progress import silent
from contracts.tables import Column
from recipes.inputs import Inputs, model_dtype
from recipes.predict import read
from recipes.rng import local_rng
from sources.example_set import ExampleSet
from tasks.base import OutputTask, Reading, require
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of


@task(
    TaskSpec(
        name="counts",
        doc="How often something happens.",
        source="Anscombe, Biometrika 1948 (signal)",
        gives=(*EVERY_TASK, "features"),
        quality="1 - error / error of the mean",
        loss="negative log-likelihood (nats)",
    )
)
class Counts(OutputTask):
    """See the file."""

    def losses_of(self, outputs, targets):
        """(B,) from log-rates (B, 1) and counts (B,)."""
        z, y = outputs.reshape(-1), targets.reshape(-1).to(outputs.dtype)
        return z.exp() - y * z + torch.lgamma(y + 1)

    def reading_of(self, outputs, targets, constants):
        """From log-rates (..., N, 1) and counts (N,)."""
        z, y = outputs[..., 0].astype(np.float64), targets.reshape(-1).astype(np.float64)
        rate = np.exp(z)
        loss = rate - y * z + gammaln(y + 1)
        return Reading.of(
            loss=loss,
            signal=-np.sqrt(np.abs(np.sqrt(y + 0.375) - np.sqrt(rate + 0.375))),
            log_likelihood=-loss,
            quality=np.clip(1 - np.abs(y - rate) / constants["naive"], 0, 1),
        )

    def check_targets(self, data):
        """Raises: DataError: counts below 0."""
        if (data.y < 0).any():
            raise data.refusal("counts are below 0", data.y < 0)

    def constants(self, data):
        """Mean absolute error of the mean, on the training examples."""
        y = data.y[data.split == "train"] if (data.split == "train").any() else data.y
        return {"naive": np.float64(np.abs(y - y.mean()).mean() or 1.0) if len(y) else np.float64(1.0)}

    def strata(self, x, y, example_id):
        """Nothing happened, or something."""
        return (y > 0).astype(np.int64)

    def constant_quality(self, data):
        """Of the best rate among those that occur."""
        rates = np.unique(np.append(data.y, data.y.mean()))
        said = np.broadcast_to(np.log(np.maximum(rates, 1e-9))[:, None, None], (len(rates), len(data.y), 1))
        return float(self.reading_of(said, data.y, data.constants).quality.mean(1).max())

    def shown(self, data):
        """The count."""
        return {"target": data.y.astype(np.float64)}


@dataclass(frozen=True, kw_only=True, slots=True)
class CountsConfig(Config):
    """How many."""

    num: int = param(160, ge=8, le=100_000, doc="examples")


def make_counts(num: int, seed: int) -> ExampleSet:
    """Poisson counts whose log-rate is linear in three of six numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 6)).astype(np.float32)
    y = rng.poisson(np.exp(0.8 + 0.6 * x[:, 0] - 0.4 * x[:, 1] + 0.2 * x[:, 2])).astype(np.int64)
    return ExampleSet(
        name="counts",
        task="counts",  # type: ignore[arg-type]
        x=x,
        y=y,
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) % 2 == 0, "train", "test").astype("<U5"),
        owner=np.array(["ann", "bob"])[np.arange(num) % 2],
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=(),
        center=np.zeros(6, np.float32),
        scale=np.ones(6, np.float32),
    ).validate()


@source(
    SourceSpec(
        name="poisson_counts",
        doc="Poisson counts of six numbers.",
        source="definition",
        config=CountsConfig,
        self_contained=True,
    )
)
def poisson_counts(*, config: CountsConfig, seed: int) -> ExampleSet:
    """See :func:`make_counts`."""
    return make_counts(config.num, seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamConfig(Config):
    """Full batches."""

    lr: float = param(0.02, gt=0, le=1, doc="learning rate")
    epochs: int = param(60, ge=1, le=10_000, unit="epochs", doc="steps on all examples")


@recipe(
    RecipeSpec(
        name="adam_all",
        doc="Adam on all examples at once.",
        source="Kingma & Ba, ICLR 2015",
        config=AdamConfig,
        wants=("losses", "features"),
        early=True,
        observable=True,
    )
)
def adam_all(build, data, *, config: AdamConfig, seed: int, stop_after=None, observe=None, progress=silent):
    """A fresh model after ``epochs`` steps; a number an epoch is told to ``observe``."""
    require(data, "recipe adam_all", "losses", "features")
    data = data.by_id()
    data.check_targets()
    model = build(seed).train()
    inputs = Inputs(data, dtype=model_dtype(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    for epoch in range(config.epochs if stop_after is None else stop_after):
        losses = data.task.losses(model, inputs.slice(0, len(data)))
        if observe is not None:
            observe(torch.arange(len(data)), losses.detach())
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        progress(epoch + 1, config.epochs, "training")
    return model.eval()


@score(
    ScoreSpec(
        name="surprise",
        doc="Negative log-likelihood of the count under the audited model.",
        source="definition",
        needs=("model",),
        wants=("reading",),
        columns=(
            Column(name="nats", dtype="float64", low=0, direction="higher = harder", doc="-log p(y)", unit="nats"),
        ),
        value="nats",
        higher_means="harder",
    )
)
def surprise(data, *, config: Config, seed: int, model):
    """One row an example. Raises DataError."""
    data.check_targets()
    return pl.DataFrame({"example_id": data.example_id, "nats": read(model, data).loss})


@dataclass(frozen=True, kw_only=True, slots=True)
class ThereAndBackConfig(DescentConfig):
    """Of both passes."""

    lr: float = param(0.002, gt=0, le=1, doc="learning rate")
    epochs: int = param(3, ge=0, le=1000, doc="of a pass up on what is forgotten and one down on what is kept")


@unlearner(
    UnlearnerSpec(
        name="there_and_back",
        doc="Climbs the loss of what is forgotten, then descends that of what is kept.",
        source="definition",
        config=ThereAndBackConfig,
        wants=("losses", "reading"),
    )
)
def there_and_back(model, *, retain, forget, config: ThereAndBackConfig, seed: int, progress=silent):
    """The changed copy, eval mode. Raises as ``unlearning.descent``."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    gone, kept = Pass.over(inputs_of(model, forget), weight=-0.2), Pass.over(inputs_of(model, retain))
    plan = Descent(
        model=model, passes=lambda _: [gone, kept], retain=retain, config=config, seed=seed, name="there_and_back"
    )
    return descend(plan, progress=progress)


@attack(
    AttackSpec(
        name="surprised_less",
        doc="Less surprise than the reference models without the example means member.",
        source="definition",
        wants=("reading",),
        references=2,
    )
)
def surprised_less(evidence, *, config: Config, seed: int):
    """Mean loss of the references that are not left out and did not train on the example, minus the target's: (T,
    N)."""
    from contracts.errors import InvalidInput

    if evidence.num_references < 2:
        raise InvalidInput(f"surprised_less needs 2 reference models, not {evidence.num_references}")
    scores = np.empty_like(evidence.target_loss)
    for t, own in enumerate(evidence.left_out):
        out = ~evidence.keep
        if own >= 0:
            out = np.delete(out, own, axis=0)
            losses = np.delete(evidence.reference_loss, own, axis=0)
        else:
            losses = evidence.reference_loss
        count = out.sum(0)
        with np.errstate(invalid="ignore"):
            scores[t] = np.where(out, losses, 0.0).sum(0) / np.where(count, count, np.nan) - evidence.target_loss[t]
    return scores


def small_network(seed: int) -> torch.nn.Module:
    """6-16-1, tanh."""
    with local_rng(seed):
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).eval()
