"""The forget sets that methods are compared on, and a validation set of the same kind that shares nothing with one.

    random, worst_case, easiest, lowest_loss, ...   studies.forget_selectors.choose: m of the N training examples
    class        every example of one class, drawn
    owner        every example of one owner, whose number of examples is nearest to m; drawn among equals
    influence    the m examples farthest along the first right singular vector of the influence matrix of the reference
                 ensemble: a coherent subpopulation (Georgiev et al., ICLR 2025)

m is the budget of the search (its fraction of N). A validation set is drawn by the same rule from the examples that the
judged set leaves: another class, another owner, the next subpopulation. Names of owners stay here: what a set is called
is its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from recipes.ensemble import ReferenceEnsemble
from scoring.influence import influence_directions
from scoring.pool import members, qualities
from scoring.worst_case_forget import Unlearn, WorstCaseForgetConfig, budget_of
from sources.example_set import ExampleSet
from studies.forget_selectors import SELECTORS, choose
from tasks.base import require

Ids = NDArray[np.int64]


def forget_set(
    kind: str,
    model: nn.Module,
    data: ExampleSet,
    *,
    config: WorstCaseForgetConfig,
    seed: int,
    ensemble: ReferenceEnsemble | None = None,
    unlearn: Unlearn | None = None,
) -> Ids:
    """Ids to forget, int64 (m,), ascending.

    Args:
        kind: one of ``SETS``.
        model: the audited model, for the selectors that read it; not changed.
        data: the training examples that may be chosen; the result depends on their ids, not on their order.
        config: the budget, and the searches.
        seed: of what is drawn.
        ensemble: for ``influence``.
        unlearn: for searches with lower = "unlearner".

    Raises:
        NotApplicable: there are no classes, no owners or no influence here, or the set would be empty or everything.
        DataError, Diverged: as ``studies.forget_selectors.choose``.
    """
    data = data.by_id()
    if kind in _COHERENT:
        rng = np.random.default_rng(derive_seed("forget set", kind, seed))
        chosen = _COHERENT[kind](data, budget_of(len(data), config), rng, ensemble)
    else:
        found = choose(kind, model, data, config=config, seed=seed, unlearn=unlearn)
        chosen = np.isin(data.example_id, found.example_id)
    if not chosen.any() or chosen.all():
        size = "all" if chosen.any() else "none"
        raise NotApplicable(f"the forget set {kind} would hold {size} of the {len(data)} examples of {data.name}")
    return data.example_id[chosen]


def _class(data: ExampleSet, budget: int, rng: np.random.Generator, _: ReferenceEnsemble | None) -> NDArray[np.bool_]:
    require(data, "the forget set class", "classes")
    present = np.unique(data.y)
    if len(present) < 2:
        raise NotApplicable(f"the forget set class needs two classes or more; {data.name} has {len(present)} here")
    return np.asarray(data.y == rng.choice(present))


def _owner(data: ExampleSet, budget: int, rng: np.random.Generator, _: ReferenceEnsemble | None) -> NDArray[np.bool_]:
    owners, counts = np.unique(data.owner[data.owner != ""], return_counts=True)
    owners, counts = owners[counts < len(data)], counts[counts < len(data)]
    if not len(owners):
        raise NotApplicable(f"the forget set owner needs examples that somebody owns; those of {data.name} have none")
    off = np.abs(counts - budget)
    return np.asarray(data.owner == rng.choice(owners[off == off.min()]))


def _influence(
    data: ExampleSet, budget: int, _: np.random.Generator, ensemble: ReferenceEnsemble | None
) -> NDArray[np.bool_]:
    if ensemble is None:
        raise NotApplicable(
            "the forget set influence reads the reference ensemble, which nothing that the plan lists has trained "
            "(memorization, influence or lira_online do)"
        )
    population = np.flatnonzero(~ensemble.pool)
    if not len(population):
        raise NotApplicable("the forget set influence needs examples that no reference model trained on")
    rows, columns = members("the forget set influence", data, ensemble)
    population = population[np.argsort(ensemble.example_id[population])]
    size, direction = influence_directions(ensemble.keep[:, columns], qualities(ensemble, population))
    if not size[0] > 0:
        raise NotApplicable("the forget set influence: no training example changes what the reference models say")
    first = rows[np.argsort(-direction[:, 0], kind="stable")[: min(budget, len(rows))]]
    chosen = np.zeros(len(data), bool)
    chosen[first] = True
    return chosen


_COHERENT: Mapping[
    str, Callable[[ExampleSet, int, np.random.Generator, ReferenceEnsemble | None], NDArray[np.bool_]]
] = {"class": _class, "owner": _owner, "influence": _influence}
SETS = ("random", "class", "worst_case", "easiest", "owner", "lowest_loss", "influence")
ALL_SETS: tuple[str, ...] = (*SETS, *(name for name in SELECTORS if name not in SETS))
