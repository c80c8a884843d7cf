"""What several releases of the same responses spend together: one privacy budget a label.

    epsilon_d      of data set d: sum over its releases (basic composition, Dwork et al. 2006)
    epsilon_sum    of an example: sum over the data sets that its response went into; of all: the largest

Bags of one release are disjoint, so that a label is in one of them and the release as a whole spends epsilon (parallel
composition); releases of other bag sizes, of bags drawn anew or of other noise add. A made data set with labels of its
own examples, or with exact means, has no finite epsilon, and nor has what it stands beside.

Source: Dwork, McSherry, Nissim, Smith (TCC 2006); Javanmard et al. (ICLR 2024, arXiv 2401.11081). Basic composition is
an upper bound for pure epsilon; nothing tighter is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from sources.bags import composed
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.made import Made


@dataclass(frozen=True, kw_only=True, slots=True)
class BagPrivacyConfig(Config):
    datasets: tuple[str, ...] = param(doc="made data sets that are given away, in their order", ref="dataset")

    def check(self) -> None:
        if not self.datasets or len(set(self.datasets)) < len(self.datasets):
            raise ConfigError(f"BagPrivacyConfig.datasets = {self.datasets} must name one at least, each once")


_PRIVACY = TableSpec(
    schema="studies",
    name="bag_privacy",
    doc="Epsilon of label differential privacy, of each made data set and of all that were released so far.",
    key=("dataset_id",),
    columns=(
        Column(name="dataset_id", dtype="str", doc="name of the made data set"),
        Column(name="place", dtype="int64", low=1, doc="which in the order of releases"),
        Column(name="releases", dtype="int64", low=0, doc="releases of bag means in it; 0: it is no data set of bags"),
        Column(name="num_labels", dtype="int64", low=0, doc="examples whose responses went into it"),
        Column(name="epsilon", dtype="float64", low=0, nullable=True, doc="of its releases together; null: none"),
        Column(
            name="epsilon_sum",
            dtype="float64",
            low=0,
            nullable=True,
            direction="higher = less private",
            doc="of the label that is most exposed by it and all before it; null: no finite epsilon",
        ),
        Column(name="sentence", dtype="str", doc="the same in words"),
    ),
)


@analysis(
    AnalysisSpec(
        name="bag_privacy",
        doc="The privacy of labels after all data sets of bags that were released: their epsilons add.",
        source="Dwork et al., TCC 2006; Javanmard et al., ICLR 2024 (arXiv 2401.11081)",
        config=BagPrivacyConfig,
        needs=("made",),
        wants=("losses",),
        tables=(_PRIVACY,),
    )
)
def bag_privacy(
    data: ExampleSet,
    *,
    config: BagPrivacyConfig,
    seed: int,
    progress: Progress = silent,
    made: Callable[[str], Made],
) -> dict[str, pl.DataFrame]:
    """One row a data set, in the order of their release; ``data`` says which examples there are, nothing is fitted.

    Raises:
        DataError: a made data set of examples that ``data`` does not have, or targets that are none.
    """
    data.check_targets()
    data.positions(np.unique(data.example_id))
    spent = np.zeros(len(data))
    rows = []
    for place, name in enumerate(config.datasets, 1):
        releases, epsilon, ids = _of(made(name))
        spent[data.positions(ids)] += epsilon
        worst = float(spent.max(initial=0.0))
        rows.append(
            {
                "dataset_id": name,
                "place": place,
                "releases": releases,
                "num_labels": len(ids),
                "epsilon": epsilon if math.isfinite(epsilon) else None,
                "epsilon_sum": worst if math.isfinite(worst) else None,
                "sentence": _sentence(name, place, releases, epsilon, worst),
            }
        )
        progress(place, len(config.datasets), "data sets")
    return {"bag_privacy": frame_of(_PRIVACY, rows)}


def _of(found: Made) -> tuple[int, float, np.ndarray]:
    """(releases, their epsilon together, ids of the originals)."""
    table = found.tables.get("bag_release")
    if table is None:
        return 0, math.inf, found.sources
    each = table.group_by("release").agg(pl.col("epsilon").first()).sort("release")["epsilon"].to_list()
    return len(each), composed(each), found.sources


def _sentence(name: str, place: int, releases: int, epsilon: float, worst: float) -> str:
    if not releases:
        own = f"{name} is no data set of bags, and is taken to hold responses as they are"
    elif not math.isfinite(epsilon):
        own = f"{name} releases exact bag means, which have no epsilon"
    else:
        own = f"{name} releases bag means {releases} time{'s' if releases > 1 else ''}, epsilon {epsilon:g} together"
    so_far = f"{worst:g}" if math.isfinite(worst) else "without a bound"
    return f"{own}; with all before it, {place} in number, the epsilon of a label is {so_far}."
