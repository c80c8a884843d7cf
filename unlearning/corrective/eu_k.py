"""EU-k, exact unlearning of the last k layers: draw them anew and train them on what is kept (Goel et al., 2022).

    theta_last ~ fresh initialisation,   theta_last <- argmin  E_{(x,y) in D \\ S_f} l(theta; x, y);   the others stay

The name promises exactness of these layers only: those before them were trained on S_f. With k = -1 it is retraining
from a fresh initialisation by this optimiser. The fresh layers come from a fresh model of the subject's own
architecture; the last k are found by ``unlearning.corrective.layers``; what lies before them is in eval mode and keeps
every bit. Settings as of ``unlearning.corrective.cf_k``.

It is no gold standard of corrective unlearning: what nobody identified of a manipulation is in D \\ S_f, and it is
learnt again (Goel et al., TMLR 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from contracts.digests import derive_seed
from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress, silent
from recipes.fitting import units_of
from sources.example_set import ExampleSet
from unlearning.corrective.cf_k import LastLayersConfig
from unlearning.corrective.layers import cut_before_last, reinitialise
from unlearning.corrective.rates import bench_rate
from unlearning.descent import Descent, Pass, check_finite, check_sets, descend, inputs_of


def eu_k_plan(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LastLayersConfig,
    seed: int,
    build: Callable[[int], nn.Module],
) -> Descent:
    """What :func:`eu_k` does, its layers drawn anew already, and raises before any work."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    check_finite(model, what="eu_k: the model before unlearning")
    cut, kept = cut_before_last(model, retain, k=config.k), inputs_of(model, retain)
    student = copy.deepcopy(model)
    reinitialise(student, build(derive_seed("eu_k", "fresh", seed) % 2**31), cut.layers)
    if "head" in cut.layers and (units := units_of(student, kept, retain.y)) is not None:
        units.fold(student)  # a fresh output layer speaks in units of the targets' spread, as one that is trained anew
    return Descent(
        model=student,
        passes=lambda _: [Pass.over(kept)],
        retain=retain,
        config=config,
        seed=seed,
        name="eu_k",
        rate=bench_rate,
        frozen=cut.frozen,
    )


@unlearner(
    UnlearnerSpec(
        name="eu_k",
        wants=("losses", "reading"),
        doc="Trains the last k layers from a fresh initialisation with the retained examples only.",
        source="Goel et al., 2022 (arXiv 2201.06640); settings of Goel et al., TMLR 2024 (arXiv 2402.14015)",
        needs=("build",),
        config=LastLayersConfig,
        plan=eu_k_plan,
    )
)
def eu_k(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LastLayersConfig,
    seed: int,
    build: Callable[[int], nn.Module],
    progress: Progress = silent,
) -> nn.Module:
    """Draw the last ``k`` layers of a copy of ``model`` anew and train them on ``retain``.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: see ``LastLayersConfig``; with 0 epochs the fresh layers stay untrained.
        seed: fresh layers, batch order and dropout.
        build: seed -> a fresh model of the same architecture.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode; its frozen layers are equal to the bit.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        ConfigError: the model has fewer than ``k`` layers, or ``build`` makes another architecture.
        Diverged: the given model has weights that are not finite, or the run left the finite numbers.
    """
    plan = eu_k_plan(model, retain=retain, forget=forget, config=config, seed=seed, build=build)
    return descend(plan, progress=progress)
