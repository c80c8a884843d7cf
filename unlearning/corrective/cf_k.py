"""CF-k, catastrophic forgetting: fine-tune the last k layers on what is kept (Goel et al., 2022).

    theta_last <- argmin  E_{(x,y) in D \\ S_f} l(theta; x, y),   started at the trained weights;   the others stay

Nothing in it works against S_f: what is not practised is hoped to fade. The last k layers are found in any network by
``unlearning.corrective.layers``; what lies before them is in eval mode and keeps every bit. Settings of the corrective
unlearning bench (Goel et al., TMLR 2024): SGD, momentum 0.9, weight decay 5e-4, learning rate 0.025 with a 1% warm-up
and linear decay, 1,000 steps of 512, which are 10 passes over 50,000 images; k 2, 4 or -1 of a ResNet-9, -1 for all.

It is not retraining and no reference: where part of a manipulation stays in D \\ S_f, it is fine-tuned on that part.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from contracts.errors import ConfigError
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.corrective.layers import cut_before_last
from unlearning.corrective.rates import bench_rate
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of


@dataclass(frozen=True, kw_only=True, slots=True)
class LastLayersConfig(DescentConfig):
    """How many layers change, and how they are trained."""

    k: int = param(2, ge=-1, le=100_000, unit="layers", doc="that change, counted from the output; -1: all")
    lr: float = param(0.025, gt=0, le=1, doc="peak learning rate; 1% warm-up, then down in a line to a fifth of it")
    epochs: int = param(10, ge=0, le=1000, doc="passes over the retained examples; 0 trains nothing")
    batch: int = param(512, ge=1, le=65_536, unit="examples", doc="examples a step; a last single one joins the others")

    def check(self) -> None:
        if self.k == 0:
            raise ConfigError("k = 0 is outside its allowed range: 1 and more, or -1 for all layers")


def cf_k_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: LastLayersConfig, seed: int
) -> Descent:
    """What :func:`cf_k` does, and raises before any work."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    kept = Pass.over(inputs_of(model, retain))
    return Descent(
        model=model,
        passes=lambda _: [kept],
        retain=retain,
        config=config,
        seed=seed,
        name="cf_k",
        rate=bench_rate,
        frozen=cut_before_last(model, retain, k=config.k).frozen,
    )


@unlearner(
    UnlearnerSpec(
        name="cf_k",
        wants=("losses", "reading"),
        doc="Trains the last k layers on with the retained examples only.",
        source="Goel et al., 2022 (arXiv 2201.06640); settings of Goel et al., TMLR 2024 (arXiv 2402.14015)",
        config=LastLayersConfig,
        plan=cf_k_plan,
    )
)
def cf_k(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LastLayersConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Fine-tune the last ``k`` layers of a copy of ``model`` on ``retain``.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: see :class:`LastLayersConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode; its frozen layers are equal to the bit.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        ConfigError: the model has fewer than ``k`` layers.
        Diverged: the run left the finite numbers or collapsed.
    """
    plan = cf_k_plan(model, retain=retain, forget=forget, config=config, seed=seed)
    return descend(plan, progress=progress)
