"""Does a stored Fisher information show whose gradients it is the mean of? Membership of a step's examples by it.

The plan's recipe is trained on complementary halves of the training examples, M/2 pairs, each example in one model of
every pair. After every step the examples of that step are scored (attacks.membership.fisher) at the model as it then
stands:

    fisher     similarity of the squared gradient to that model's own Fisher information
    control    similarity to that of the other model of the pair, which was trained without the half: the model and the
               gradients are the same, so what fitting does to gradients is in both
    loss       minus the loss at the model, which needs no Fisher information: what the weights tell anyhow

AUC of members against the others, mean over the M models, errors clustered by model and by example
(attacks.membership.over_runs). fisher - control is what F tells of its own examples. It grows as a step has fewer: the
share of one is 1/N.

Source: Smith et al. (CVPRW 2023, arXiv 2203.17269) for the recipe; Kirkpatrick et al. (PNAS 2017) for F.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.membership.fisher import fisher_similarity
from attacks.membership.over_runs import OverRuns, auc_over_runs
from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import Finding
from recipes.continual.fisher import per_example_gradients
from recipes.continual.loop import classification_loss
from recipes.continual.stream import StreamConfig, stream_of
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import read
from recipes.retention import retained_of
from recipes.training import Trainer
from sources.example_set import ExampleSet
from studies.buffer_leak import most_shown
from studies.continual import stream_config
from tasks.base import require

SCORES = ("fisher", "control", "loss")
_PREFIX, _READ = "fisher/", 256
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class FisherLeakConfig(Config):
    models: int = param(8, ge=4, le=1000, doc="trainings, two for each cut into halves: an even number")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        if self.models % 2:
            raise ConfigError(f"FisherLeakConfig.models = {self.models} must be even: every half has its complement")


_HEAD = (
    Column(name="step", dtype="int64", low=1, doc="the step that has just ended, from 1"),
    Column(name="step_name", dtype="str", doc="its classes, or its value"),
)
_LEAK = TableSpec(
    schema="audits",
    name="fisher_leak",
    doc="How well members of a step are told from the others by what is kept of it right after it.",
    key=("step", "score"),
    columns=(
        *_HEAD,
        Column(name="score", dtype="str", choices=SCORES, doc="similarity to F, to the F of others, or minus the loss"),
        Column(name="num_models", dtype="int64", low=4, doc="models"),
        Column(name="num_examples", dtype="int64", low=2, doc="examples of the step, about half of them members"),
        Column(name="auc", dtype="float64", low=0, high=1, doc="mean over models; 0.5 = nothing to find"),
        Column(name="auc_lo", dtype="float64", low=0, high=1, doc="lower bound, clustered by model and by example"),
        Column(name="auc_hi", dtype="float64", low=0, high=1, doc="upper bound"),
    ),
)
_DIFFERENCE = TableSpec(
    schema="audits",
    name="fisher_difference",
    doc="AUC by a model's own Fisher information above that by another's, paired by model and example.",
    key=("step",),
    columns=(
        *_HEAD,
        Column(name="difference", dtype="float64", low=-1, high=1, doc="fisher - control; above 0: it shows"),
        Column(name="low", dtype="float64", low=-1, high=1, doc="lower bound"),
        Column(name="high", dtype="float64", low=-1, high=1, doc="upper bound"),
    ),
)


def judge_fisher_leak(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[tuple[str, Finding]]:
    """The step whose Fisher information shows most."""
    steps = tables["fisher_difference"]
    if not steps.height:
        return []
    row, finding = most_shown(steps, thresholds, what="fisher_leak/fisher")
    sentence = (
        f"The Fisher information kept of step {row['step']} ({row['step_name']}) tells its members by "
        f"{finding.value:.3f} of AUC ({finding.low:.3f} to {finding.high:.3f}) better than that of other "
        f"examples, the most of {steps.height} steps; an attack is tolerated {finding.threshold:g} above guessing."
    )
    return [("fisher", dataclasses.replace(finding, sentence=sentence))]


@analysis(
    AnalysisSpec(
        name="fisher_leak",
        wants=("outputs", "classes"),
        doc="Membership by the Fisher information that a recipe keeps of its steps, against that of other examples.",
        source="Smith et al., CVPRW 2023 (arXiv 2203.17269); Kirkpatrick et al., PNAS 2017",
        config=FisherLeakConfig,
        needs=("recipe",),
        tables=(_LEAK, _DIFFERENCE),
        pictures=(
            Picture(
                table="fisher_leak",
                title="Members of a step told by its Fisher information",
                x="step",
                y="auc",
                series="score",
                low="auc_lo",
                high="auc_hi",
            ),
        ),
        judge=judge_fisher_leak,
        finds=lambda config, limits, _: [],  # none counts
    )
)
def fisher_leak(
    data: ExampleSet, *, config: FisherLeakConfig, seed: int, progress: Progress, recipe: Trainer
) -> dict[str, pl.DataFrame]:
    """Tables ``fisher_leak`` and ``fisher_difference``; see the head of this file.

    Args:
        data: both splits; the training split is used.
        config: models, level.
        seed: of the halves and the trainings.
        progress: told (models judged, in all, "Fisher information").
        recipe: the plan's, which must train through steps and keep a Fisher information.

    Raises:
        NotApplicable: another recipe, or a task without classes.
    """
    require(data, "fisher_leak", "outputs", "classes")
    plan = stream_config(recipe, name="fisher_leak")
    if not getattr(plan, "ewc", 0.0):
        raise NotApplicable(
            f"fisher_leak is about recipes that keep a Fisher information; {recipe.spec.name} keeps none with this "
            "configuration (rehearsal_free does with ewc > 0)"
        )
    pool = data.part("train")
    pool = pool.take(np.argsort(pool.example_id, kind="stable"))
    stream = stream_of(pool, plan)
    keep = halves(pool.y, stream.step, num=config.models, seed=derive_seed("fisher halves", seed))
    ends = [(n + 1) * plan.epochs for n in range(stream.num_steps)]
    seeds = [derive_seed("fisher leak", seed, m) for m in range(len(keep))]
    after = recipe.snapshots(pool, members=[np.flatnonzero(own) for own in keep], seeds=seeds, epochs=ends)
    leak: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for step, models in enumerate(after):
        at = np.flatnonzero(stream.step == step)
        part, member = pool.take(at), keep[:, at]
        if not member.any(1).all() or member.all(1).any():
            continue  # too few examples for two halves
        open_classes = list(dict.fromkeys(c for own in stream.classes[: step + 1] for c in own))
        kept = [_fisher_of(model) for model in models]
        scores = np.empty((len(SCORES), len(models), len(at)))
        for m, model in enumerate(models):
            own = [kept[m], kept[m ^ 1]]  # the complement is the neighbour
            scores[:2, m] = fisher_similarity(_gradients(model, part, plan, open_classes, list(kept[m])), own)
            scores[2, m] = -read(model, part).loss
            progress(step * len(models) + m + 1, len(after) * len(models), "Fisher information")
        head = {"step": step + 1, "step_name": stream.names[step]}
        area = {name: auc_over_runs(values, member) for name, values in zip(SCORES, scores, strict=True)}
        leak += [
            {**head, "score": name, "num_models": len(models), "num_examples": len(at), **_figures(of, config.alpha)}
            for name, of in area.items()
        ]
        gap = area["fisher"] - area["control"]
        low, high = gap.difference_interval(config.alpha)
        differences.append({**head, "difference": gap.value, "low": low, "high": high})
    return {"fisher_leak": _frame(leak, _LEAK), "fisher_difference": _frame(differences, _DIFFERENCE)}


def halves(labels: NDArray[np.int64], steps: NDArray[np.int64], *, num: int, seed: int) -> Bool:
    """(num, N) bool: rows 2k and 2k + 1 are complements, and each has half (rounded) of every class of every step."""
    rng, keep = np.random.default_rng(seed), np.zeros((num, len(labels)), bool)
    _, kind = np.unique(np.stack([steps, labels]), axis=1, return_inverse=True)
    for k in range(0, num, 2):
        for value in np.unique(kind):
            rows = rng.permutation(np.flatnonzero(kind == value))
            keep[k, rows[: (len(rows) + int(rng.integers(2))) // 2]] = True
        keep[k + 1] = ~keep[k]
    return keep


def _fisher_of(model: nn.Module) -> dict[str, torch.Tensor]:
    device = model_device(model)
    arrays = retained_of(model).derived
    return {
        name.removeprefix(_PREFIX): torch.from_numpy(values).to(device)
        for name, values in arrays.items()
        if name.startswith(_PREFIX)
    }


def _gradients(model: nn.Module, part: ExampleSet, plan: StreamConfig, classes: list[int], names: list[str]) -> Any:
    """Per-example gradients of -log p of the plain loss over the open classes, as the recipe's own F is made of."""
    inputs = Inputs(part, dtype=model_dtype(model), device=model_device(model))
    columns = torch.tensor(classes, device=inputs.device)
    place = torch.full((part.num_classes,), -1, dtype=torch.int64, device=inputs.device)
    place[columns] = torch.arange(len(classes), device=inputs.device)
    labels = place[torch.from_numpy(part.y).to(inputs.device)]
    batches = ((inputs.block(at, at + _READ), labels[at : at + _READ]) for at in range(0, len(part), _READ))

    def loss_of(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return classification_loss(outputs.index_select(1, columns), y, loss=plan.loss)

    return per_example_gradients(model, batches, loss_of=loss_of, names=names)


def _figures(area: OverRuns, alpha: float) -> dict[str, float]:
    low, high = area.interval(alpha)
    return {"auc": area.value, "auc_lo": low, "auc_hi": high}


def _frame(rows: list[dict[str, Any]], table: TableSpec) -> pl.DataFrame:
    types = {"int64": pl.Int64, "float64": pl.Float64, "str": pl.String}
    return pl.DataFrame(rows, schema={c.name: types[c.dtype] for c in table.columns}, orient="row")
