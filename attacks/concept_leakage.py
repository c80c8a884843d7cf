"""Concept leakage: how much of a concept can still be read from a model's embeddings after a class was unlearned.

    probe     linear SVM on the embeddings phi of held-out (test) examples with and without the concept, fitted anew to
              EVERY model
    leak      balanced accuracy of the probe on further held-out examples, as many with as without
    control   the same probe on the same examples with the concept's labels permuted: 0.5 unless the probe memorises
    excess    leak - leak of the model retrained without the class, on the same examples          paired
    head swap accuracy of the unlearned body under the ORIGINAL output layer: a method that only mutes an output keeps
    it

A probe reads a class even from models that never saw it (original 0.998, retrained 0.995, poisoned 0.997 AUROC on
Fashion-MNIST): a high leak alone is no evidence of anything. Read the excess, and the head swap, which does tell. The
retrained body is another one than the original's, so its own head swap is near chance whatever it knows.

Sources: arXiv 2405.15662 (2024), verification of class unlearning by concepts; Yuksekgonul et al., ICLR 2023 (concept
    SVMs);
Hewitt and Liang, EMNLP 2019 (control tasks). Intervals are over the evaluated examples, given these models; another
seed of training is another model. Concepts are named in the configuration; without names they are clusters of the
original model's embeddings. The forgotten classes together are always the first concept, ``forgotten``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.backdoor import accuracy
from attacks.concept_probes import Probed, ProbeSet
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from explain.concepts import ConceptConfig, discover, named_members
from explain.embeddings import embeddings, last_linear
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.frames import frame_of
from tasks.base import require

FORGOTTEN, NONE, RETRAIN = "forgotten", "none", "retrain"
_FEWEST = 8  # held-out examples a side: half to fit on, half to judge by
Bool = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptLeakageConfig(ConceptConfig):
    forget: tuple[str | int, ...] = param(
        (), doc="classes to unlearn, by name or index; the last class when none is given"
    )
    methods: tuple[str, ...] = param(
        ("finetune",), doc="registered unlearners, beside the references none and retrain", ref="unlearner"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        ConceptConfig.check(self)
        if len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"ConceptLeakageConfig.methods = {self.methods} lists something twice")
        if FORGOTTEN in self.concepts or FORGOTTEN in self.concept_examples:
            raise ConfigError(f"ConceptLeakageConfig: {FORGOTTEN!r} is the name of the forgotten classes as a concept")


def _share(name: str, doc: str, *, low: float = 0, **more: Any) -> Column:
    return Column(name=name, dtype="float64", low=low, high=1, nullable=True, doc=doc, **more)


_METHOD = Column(name="method", dtype="str", doc="unlearner; none is the original model, retrain never saw the class")
_STATUS = Column(
    name="status", dtype="str", choices=("ok", "diverged"), doc="diverged: the unlearner gave up; no figures"
)
LEAKAGE = TableSpec(
    schema="audits",
    name="concept_leakage",
    key=("method", "concept"),
    doc="What a linear probe still reads of each concept from the embeddings, against retraining and permuted labels.",
    columns=(
        _METHOD,
        Column(
            name="concept", dtype="str", doc="forgotten (the unlearned classes), a named concept, or a cluster c_<i>"
        ),
        _STATUS,
        Column(name="n", dtype="int64", low=1, unit="examples", doc="held-out examples judged on each side"),
        _share("leak", "balanced accuracy of the probe", direction="higher = the concept is easier to read"),
        _share("leak_lo", "lower bound, exact for each side"),
        _share("leak_hi", "upper bound"),
        _share("control", "the same with permuted labels; 0.5 when the probe does not memorise"),
        _share("control_lo", "lower bound"),
        _share("control_hi", "upper bound"),
        _share(
            "excess",
            "leak less that of the retrained model, same examples; null for retrain",
            low=-1,
            direction="higher = more than a model that never saw the class",
        ),
        _share("excess_lo", "lower bound, paired", low=-1),
        _share("excess_hi", "upper bound", low=-1),
        _share("p_value", "exact McNemar test of 'as readable as after retraining'"),
    ),
)
HEAD_SWAP = TableSpec(
    schema="audits",
    name="concept_head_swap",
    key=("method",),
    doc="Accuracy on the test split with the method's own output layer, and with the original one on the unlearned "
    "body.",
    columns=(
        _METHOD,
        _STATUS,
        *(
            column
            for head, words in (("own", "its own output layer"), ("swapped", "the original output layer"))
            for part, which in (("forget", "the forgotten classes"), ("retain", "the other classes"))
            for column in (
                _share(f"{head}_{part}_acc", f"accuracy on {which} under {words}"),
                _share(f"{head}_{part}_acc_lo", "lower bound, Clopper-Pearson"),
                _share(f"{head}_{part}_acc_hi", "upper bound"),
            )
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="concept_leakage",
        wants=("classes", "features"),
        doc="Unlearns whole classes and asks what of them, and of other concepts, can still be read from the "
        "embeddings.",
        source="arXiv 2405.15662 (2024); Hewitt and Liang, EMNLP 2019",
        version=2,
        config=ConceptLeakageConfig,
        needs=("model", "unlearn"),
        tables=(LEAKAGE, HEAD_SWAP),
        pictures=(
            Picture(
                table="concept_leakage",
                title="What a probe reads of each concept",
                kind="dots",
                x="concept",
                y="leak",
                series="method",
                low="leak_lo",
                high="leak_hi",
            ),
            Picture(
                table="concept_leakage",
                title="More readable than after retraining (above 0)",
                kind="dots",
                x="concept",
                y="excess",
                series="method",
                low="excess_lo",
                high="excess_hi",
            ),
            Picture(
                table="concept_head_swap",
                title="Forgotten classes under the original output layer (lower is better)",
                kind="dots",
                x="method",
                y="swapped_forget_acc",
                low="swapped_forget_acc_lo",
                high="swapped_forget_acc_hi",
            ),
        ),
    )
)
def concept_leakage(
    data: ExampleSet,
    *,
    config: ConceptLeakageConfig,
    seed: int,
    model: nn.Module,
    unlearn: Callable[..., nn.Module],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Unlearn the classes by every method and probe the embeddings.

    Args:
        data: both splits; the classes' training examples are unlearned, probes see the test split only.
        config: classes, methods, concepts.
        seed: of the unlearners, the clusters and the draws.
        model: the audited model; not changed.
        unlearn: (method, *, retain, forget, seed) -> the audited model after a registered unlearner; knows ``retrain``.
        progress: called with (models probed, all, "concept leakage").

    Returns:
        ``concept_leakage`` (method x concept) and ``concept_head_swap`` (method), the references first and last.

    Raises:
        NotApplicable: not classification, a model without a linear output layer, no other class to keep.
        DataError: labels out of range; fewer than 8 held-out examples with or without a named concept.
        ConfigError: an unknown class.
        Diverged: retraining left the finite numbers.
    """
    require(data, "concept_leakage", "classes")
    data = data.validate().by_id()
    train, test = data.part("train"), data.part("test")
    forgotten = _classes(config, data.class_names)
    gone = np.isin(train.y, forgotten)
    if not gone.any() or gone.all():
        raise NotApplicable(
            f"{data.name}: forgetting {int(gone.sum())} of {len(gone)} training examples leaves nothing to compare"
        )
    sets = _probe_sets(model, test, forgotten, config=config, seed=seed)
    names = [NONE, *(m for m in config.methods if m not in (NONE, RETRAIN)), RETRAIN]
    probed: dict[str, dict[str, Probed]] = {}
    swaps = []
    for number, name in enumerate(reversed(names)):  # retraining first: the others are compared with it
        try:
            changed = model
            if name != NONE:
                changed = unlearn(
                    name,
                    retain=train.subset(train.example_id[~gone]),
                    forget=train.subset(train.example_id[gone]),
                    seed=derive_seed("concept leakage", name, seed),
                )
            phi = embeddings(changed, test, batch=config.batch)
            probed[name] = {
                s.name: Probed.of(phi, s, per_side=config.per_side, seed=derive_seed("probe", s.name, seed))
                for s in sets
            }
            swaps.append({"method": name, "status": "ok"} | _swap(model, changed, test, forgotten, alpha=config.alpha))
        except (Diverged, DataError):
            # Outputs that are not finite come as DataError from a model that has just been changed: its fault too.
            if name in (NONE, RETRAIN):
                raise
            swaps.append({"method": name, "status": "diverged"})
        progress(number + 1, len(names), "concept leakage")
    rows: list[dict[str, Any]] = []
    for name in names:
        for s in sets:
            row: dict[str, Any] = {"method": name, "concept": s.name, "n": len(s.judge) // 2}
            if name in probed:
                reference = None if name == RETRAIN else probed[RETRAIN][s.name]
                row |= {"status": "ok"} | probed[name][s.name].figures(reference, alpha=config.alpha)
            else:
                row |= {"status": "diverged"}
            rows.append(row)
    return {
        LEAKAGE.name: frame_of(LEAKAGE, rows, nan_to_null=False),
        HEAD_SWAP.name: frame_of(HEAD_SWAP, swaps[::-1], nan_to_null=False),
    }


def _probe_sets(
    model: nn.Module, test: ExampleSet, forgotten: NDArray[np.int64], *, config: ConceptLeakageConfig, seed: int
) -> list[ProbeSet]:
    """The forgotten classes, then the named concepts, or clusters that have examples enough."""
    gone = np.isin(test.y, forgotten)
    members: dict[str, tuple[Bool, Bool]] = {FORGOTTEN: (gone, ~gone)}
    named: Mapping[str, tuple[Bool, Bool]] = named_members(
        test.y, test.example_id, class_names=test.class_names, config=config
    )
    if not named:
        found = discover(embeddings(model, test, batch=config.batch), num_concepts=config.num_concepts, seed=seed)
        named = {n: sides for n, sides in found.items() if min(map(np.count_nonzero, sides)) >= _FEWEST}
    sets = []
    for name, sides in (members | dict(named)).items():
        if min(map(np.count_nonzero, sides)) < _FEWEST:
            raise DataError(
                f"concept {name!r}: {sides[0].sum()} test examples with it and {sides[1].sum()} without; {_FEWEST} "
                "each are needed"
            )
        rng = np.random.default_rng(derive_seed("held out", name, seed))
        rows = [rng.permutation(np.flatnonzero(side)) for side in sides]
        half = min(map(len, rows)) // 2
        sets.append(
            ProbeSet(
                name=name,
                inside=sides[0],
                judge=np.sort(np.concatenate([r[:half] for r in rows])),
                fit=np.sort(np.concatenate([r[half:] for r in rows])),
            )
        )
    return sets


def _classes(config: ConceptLeakageConfig, class_names: tuple[str, ...]) -> NDArray[np.int64]:
    chosen = []
    for given in config.forget or (len(class_names) - 1,):
        if isinstance(given, str) and given in class_names:
            chosen.append(class_names.index(given))
        elif isinstance(given, int) and 0 <= given < len(class_names):
            chosen.append(given)
        else:
            raise ConfigError(f"ConceptLeakageConfig.forget: no class {given!r}; known: {', '.join(class_names)}")
    return np.unique(np.array(chosen, dtype=np.int64))


def _swap(
    original: nn.Module, changed: nn.Module, test: ExampleSet, forgotten: NDArray[np.int64], *, alpha: float
) -> dict[str, float | None]:
    """Accuracies on forgotten and other classes under both output layers."""
    swapped = copy.deepcopy(changed)
    with torch.no_grad():
        for to, source in zip(last_linear(swapped)[1].parameters(), last_linear(original)[1].parameters(), strict=True):
            to.copy_(source)
    gone = np.isin(test.y, forgotten)
    row: dict[str, float | None] = {}
    for head, body in (("own", changed), ("swapped", swapped)):
        logits = predict_logits(body, test)
        for part, rows in (("forget", gone), ("retain", ~gone)):
            r, name = accuracy(logits[rows], test.y[rows], alpha=alpha), f"{head}_{part}_acc"
            row |= {name: r.value, f"{name}_lo": r.low, f"{name}_hi": r.high}
    return row
