"""Does a replay buffer show? Membership of a stream's examples by step and class, and of those in the buffer apart from
the rest.

Every reference model m is attacked in turn, with the others as its references (LiRA and RMIA, online):

    members   AUC of the examples that m was trained on against those it was not
    buffer    AUC of those of them that m's recipe still holds, against the same examples that m was not trained on
    rest      AUC of its other members, against the same

within each class of each step, then averaged over the classes of the step by their number of examples: what tells
classes or steps apart tells nobody's membership. Mean over the M models, errors clustered by model and by example
(attacks.membership.over_runs). The buffer is chosen without looking at the model, so within a step and class its
examples are no others than the rest: a difference of the two AUCs is what being kept does. Examples of the last step
may be in the buffer but have never been drawn from it, a control; examples that have left the buffer count as rest,
which can only make the difference smaller.
The largest difference over the steps is a finding (for information): it fails where the buffer shows by more than what
the plan tolerates of an attack above guessing, ``max_auc`` - 0.5, all steps together at the plan's level.
A recipe that keeps no example has ``members`` alone. ``accuracy`` of examples that a model was not trained on says what
of the step is
retained: forgetting a step and forgetting who was in it are not the same.

Measured on Fashion-MNIST in five steps of two classes (subjects fashion_replay and fashion_stream, 40 models, LiRA):

    step                        1       2       3       4       5 (control)
    in the buffer of 200        0.607   0.717   0.697   0.705   0.553
    not in it                   0.514   0.525   0.514   0.556   0.563
    difference                  0.092   0.192   0.183   0.150  -0.009         95% intervals +- 0.02
    without rehearsal           0.507   0.524   0.497   0.493   0.503         all members

So the buffer leaks what is in it, and little besides (RMIA: differences 0.156, 0.247, 0.245, 0.212, -0.004). The recipe
without one shows next to nothing at the end, and has forgotten more: accuracy of steps 1 to 4 on examples that were not
trained on 0.47, 0.26, 0.47, 0.29 against 0.80, 0.65, 0.67, 0.71.

Sources: Carlini et al. (IEEE S&P 2022) and Zarifzadeh et al. (ICML 2024) for the attacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm

from attacks.membership.evidence import Evidence
from attacks.membership.over_runs import OverRuns, auc_over_runs
from contracts.digests import derive_seed
from contracts.methods import AnalysisSpec, Picture, analysis, attack
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import INFORMATION, Finding, at_most
from recipes.continual.stream import stream_of
from recipes.ensemble import ReferenceEnsemble
from recipes.training import Trainer
from sources.example_set import ExampleSet
from studies.continual import stream_config
from tasks.base import require

MEMBERS, BUFFER, REST = "members", "buffer", "rest"
GROUPS = (MEMBERS, BUFFER, REST)
Bool = NDArray[np.bool_]
Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferLeakConfig(Config):
    attacks: tuple[str, ...] = param(
        ("lira_online", "rmia_online"), doc="registered membership attacks, with their defaults", ref="attack"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")


def _share(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", doc=doc, **{"low": 0, "high": 1, **more})


_HEAD = (
    Column(name="attack", dtype="str", doc="membership attack"),
    Column(name="step", dtype="int64", low=0, doc="step of the stream from 1; 0 is the pre-training"),
    Column(name="step_name", dtype="str", doc="its classes, or its value"),
)
_AUC = (
    _share("auc", "mean over models of the AUC within classes; 0.5 = nothing to find"),
    _share("auc_lo", "lower bound, clustered by model and by example"),
    _share("auc_hi", "upper bound"),
)
_LEAK = TableSpec(
    schema="audits",
    name="buffer_leak",
    doc="How well members of each step are told from non-members of the same class: all, those in the buffer, the "
    "rest.",
    key=("attack", "step", "group"),
    columns=(
        *_HEAD,
        Column(name="group", dtype="str", choices=GROUPS, doc="which members; all have the same non-members"),
        Column(name="num_models", dtype="int64", low=2, doc="models attacked"),
        Column(name="num_examples", dtype="int64", low=2, doc="examples of the classes that could be judged"),
        _share("num_members", "mean over models of the members of the group", high=None),
        *_AUC,
        _share("accuracy", "accuracy of the models on examples of the step that they were not trained on"),
    ),
)
_CLASSES = TableSpec(
    schema="audits",
    name="buffer_leak_classes",
    doc="The same, class by class.",
    key=("attack", "step", "label", "group"),
    columns=(
        *_HEAD,
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(name="label_name", dtype="str", doc="class name"),
        Column(name="group", dtype="str", choices=GROUPS, doc="which members"),
        Column(name="num_examples", dtype="int64", low=2, doc="examples of the class in the step"),
        *_AUC,
    ),
)
_DIFFERENCE = TableSpec(
    schema="audits",
    name="buffer_difference",
    doc="AUC of members in the buffer above that of the rest, paired by model and non-member; no rows without a "
    "buffer.",
    key=("attack", "step"),
    columns=(
        *_HEAD,
        _share("difference", "buffer - rest; above 0: being kept shows", low=-1),
        _share("low", "lower bound", low=-1),
        _share("high", "upper bound", low=-1),
    ),
)


def most_shown(steps: pl.DataFrame, thresholds: Thresholds, *, what: str) -> tuple[dict[str, Any], Finding]:
    """The step with the largest ``difference`` of AUCs: its row, and a finding that lacks its sentence.

    It fails above max_auc - 0.5 and passes below. The interval (``low``, ``high``) is widened as if all m steps had
    been chosen beforehand (Bonferroni): by z(1 - alpha / 2m) / z(1 - alpha / 2).
    """
    limit = round(thresholds.max_auc - 0.5, 6)
    wider = norm.isf(thresholds.alpha / (2 * steps.height)) / norm.isf(thresholds.alpha / 2)
    row = steps.sort("difference", descending=True).row(0, named=True)
    value = row["difference"]
    low = max(-1.0, value - wider * (value - row["low"]))
    high = min(1.0, value + wider * (row["high"] - value))
    verdict = at_most(low, high, limit)
    finding = Finding(
        what=what,
        verdict=verdict,
        sentence="",
        value=value,
        low=low,
        high=high,
        threshold=limit,
        kind=INFORMATION,
        judged=False,
    )
    return row, finding


def judge_buffer_leak(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[tuple[str, Finding]]:
    """For each attack, the step whose buffer shows most; nothing for a recipe without a buffer."""
    found = []
    for (name,), steps in tables["buffer_difference"].group_by("attack", maintain_order=True):
        row, finding = most_shown(steps, thresholds, what=f"buffer_leak/{name}")
        sentence = (
            f"Members that the buffer still holds are told from non-members better than other members of step "
            f"{row['step']} ({row['step_name']}), by {finding.value:.3f} of AUC ({finding.low:.3f} to "
            f"{finding.high:.3f}), the most of {steps.height} steps; an attack is tolerated "
            f"{finding.threshold:g} above guessing."
        )
        found.append(("buffer", dataclasses.replace(finding, sentence=sentence)))
    return found


@analysis(
    AnalysisSpec(
        name="buffer_leak",
        version=2,
        wants=("reading", "classes"),
        doc="Membership by step and class of a stream; of examples in the replay buffer against the rest where there "
        "is one.",
        source="Carlini et al., IEEE S&P 2022; Zarifzadeh et al., ICML 2024; Chaudhry et al., arXiv 1902.10486",
        config=BufferLeakConfig,
        needs=("ensemble", "recipe"),
        tables=(_LEAK, _DIFFERENCE, _CLASSES),
        pictures=(
            Picture(
                table="buffer_leak",
                title="LiRA by step: members in the buffer, the rest, and all",
                x="step",
                y="auc",
                series="group",
                low="auc_lo",
                high="auc_hi",
                where=(("attack", "lira_online"),),
            ),
            Picture(
                table="buffer_leak",
                title="LiRA against what the step's accuracy has come to",
                x="accuracy",
                y="auc",
                series="group",
                low="auc_lo",
                high="auc_hi",
                kind="dots",
                where=(("attack", "lira_online"),),
            ),
        ),
        judge=judge_buffer_leak,
        finds=lambda config, limits, _: [],  # none counts
    )
)
def buffer_leak(
    data: ExampleSet,
    *,
    config: BufferLeakConfig,
    seed: int,
    progress: Progress,
    ensemble: ReferenceEnsemble,
    recipe: Trainer,
) -> dict[str, pl.DataFrame]:
    """Tables ``buffer_leak``, ``buffer_difference`` and ``buffer_leak_classes``; see the head of this file.

    Args:
        data: both splits.
        config: attacks, level.
        seed: of the attacks.
        progress: told (attacks done, in all, "attacks on the stream").
        ensemble: the reference models, and what each of them holds.
        recipe: the plan's, which must train through steps.

    Raises:
        NotApplicable: another recipe, or a task without classes.
        ConfigError: too few reference models for an attack.
    """
    require(data, "buffer_leak", "reading", "classes")
    plan = stream_config(recipe, name="buffer_leak")
    ensemble = ensemble.by_id()
    pool = ensemble.pool
    examples = data.subset(ensemble.example_id[pool])
    stream = stream_of(examples, plan)
    keep = ensemble.keep[:, pool]
    held = np.zeros_like(keep) if ensemble.held is None else ensemble.held[:, pool]
    quality = ensemble.readings.quality[:, pool]
    evidence = Evidence.of_ensemble(
        ensemble, ensemble.reading, task=data.task, constants=data.constants, target_index=np.arange(len(keep))
    )
    leak: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for number, name in enumerate(config.attacks):
        method = attack.get(name)
        scores = method(evidence, config=method.spec.config(), seed=derive_seed("buffer leak", seed) % 2**31)
        for step in np.unique(stream.step).tolist():
            head = {"attack": name, "step": step + 1, "step_name": stream.names[step] if step >= 0 else "pre-training"}
            out = (stream.step == step) & ~keep
            accuracy = float(quality[out].mean())
            measured: dict[str, OverRuns] = {}
            for group in GROUPS:
                found = _by_class(scores, keep, held, stream.step == step, examples.y, group)
                if not found:
                    continue
                measured[group] = _averaged(found)
                leak.append(
                    {
                        **head,
                        "group": group,
                        "num_models": len(keep),
                        "num_examples": sum(of.num for of in found),
                        "num_members": sum(of.members for of in found),
                        **_figures(measured[group], config.alpha),
                        "accuracy": accuracy,
                    }
                )
                classes += [
                    {
                        **head,
                        "label": of.label,
                        "label_name": data.class_names[of.label],
                        "group": group,
                        "num_examples": of.num,
                        **_figures(of.auc, config.alpha),
                    }
                    for of in found
                ]
            differences += _difference(scores, keep, held, stream.step == step, examples.y, head, config.alpha)
        progress(number + 1, len(config.attacks), "attacks on the stream")
    return {
        "buffer_leak": _frame(leak, _LEAK),
        "buffer_difference": _frame(differences, _DIFFERENCE),
        "buffer_leak_classes": _frame(classes, _CLASSES),
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class _Class:
    """One class of a step that every model can be judged on: its number of examples, mean members of the group, AUC."""

    label: int
    num: int
    members: float
    auc: OverRuns


def _by_class(
    scores: Float, keep: Bool, held: Bool, in_step: Bool, labels: NDArray[np.int64], group: str
) -> list[_Class]:
    """Classes of which every model has members of the group and non-members, ascending."""
    positive = {MEMBERS: keep, BUFFER: held, REST: keep & ~held}[group]
    if group != MEMBERS and not held.any():
        return []
    found = []
    for label in np.unique(labels[in_step]).tolist():
        at = in_step & (labels == label)
        pos, neg = positive[:, at], ~keep[:, at]
        known = ~np.isnan(scores[:, at])
        if at.sum() < 2 or not (pos & known).any(1).all() or not (neg & known).any(1).all():
            continue
        judged = np.where(pos | neg, scores[:, at], np.nan)
        area = auc_over_runs(judged, pos)
        placement = np.zeros(scores.shape)
        placement[:, at] = area.placement
        whole = OverRuns(auc=area.auc, placement=placement, pairs=area.pairs)
        found.append(_Class(label=label, num=int(at.sum()), members=float(pos.sum(1).mean()), auc=whole))
    return found


def _averaged(found: list[_Class]) -> OverRuns:
    """Over classes, weighted by their number of examples, which is the same for every model."""
    share = np.array([of.num for of in found]) / sum(of.num for of in found)
    return OverRuns(
        auc=np.sum([w * of.auc.auc for w, of in zip(share, found, strict=True)], axis=0),
        placement=np.sum([w * of.auc.placement for w, of in zip(share, found, strict=True)], axis=0),
        pairs=min(of.auc.pairs for of in found),
    )


def _difference(
    scores: Float, keep: Bool, held: Bool, in_step: Bool, labels: NDArray[np.int64], head: dict[str, Any], alpha: float
) -> list[dict[str, Any]]:
    """One row, over the classes of which every model has both groups; none where there is no such class."""
    kept = {of.label: of for of in _by_class(scores, keep, held, in_step, labels, BUFFER)}
    rest = {of.label: of for of in _by_class(scores, keep, held, in_step, labels, REST)}
    both = sorted(kept.keys() & rest.keys())
    if not both:
        return []
    gap = _averaged([kept[c] for c in both]) - _averaged([rest[c] for c in both])
    low, high = gap.difference_interval(alpha)
    return [{**head, "difference": gap.value, "low": low, "high": high}]


def _figures(area: OverRuns, alpha: float) -> dict[str, float]:
    low, high = area.interval(alpha)
    return {"auc": area.value, "auc_lo": low, "auc_hi": high}


def _frame(rows: list[dict[str, Any]], table: TableSpec) -> pl.DataFrame:
    types = {"int64": pl.Int64, "float64": pl.Float64, "str": pl.String}
    return pl.DataFrame(rows, schema={c.name: types[c.dtype] for c in table.columns}, orient="row")
