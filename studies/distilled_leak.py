"""Does a distilled set hide its sources? Membership, in networks trained on it, of what it was distilled from.

    M halves      each example of the training split in exactly M/2 of them; of each half a set is distilled
    networks      one a half and kind: trained on the distilled set; on real images of the half, as many: those that it
                  started from, random ones, coresets (k-center, herding, facility location); and on the whole half (an
                  expert): what is hidden is the difference between the first and the last
    attacks       the networks of a kind judge each other: each is attacked with the others as references
    groups        members of the half, those of them that the set was drawn from (that it holds, or that an image
                  started from), and the rest; against non-members. Of the half: those that distilled images started
                  from

All intervals are clustered by network and by example (``attacks.membership.over_runs``). A set that was made of few
images starts from few: the group of those is small in each half, and its interval wide. What the distilled set shows is
a finding, for information: one of all members, and one of those that an image started from, who are few and may stand
out where the others do not. Nothing passes by an attack that does not find the same examples where they were trained on
themselves: all members in networks trained on the halves, those that an image started from in networks trained on the
initial images. Attacks with reference models know who is in a half and not which few were drawn, and have little power
for these; the loss has it.

Measured (subject digits_distilled: 1,258 digits, 16 sets of ten images, 0.77 test accuracy against 0.62 of initial and
random images and 0.96 of the halves; AUC of the loss): of all members 0.523 (0.517 to 0.529) against 0.543 in the
halves; of those that an image started from 0.601 (0.554 to 0.646), against 1.000 in networks trained on these images.

That distilled sets protect their sources: Dong, Zhao & Lyu (ICML 2022, arXiv 2206.00240); that this claim was too
strong: Carlini, Feldman & Nasr (arXiv 2209.14987).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from attacks.membership.over_runs import auc_over_runs
from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.methods import AnalysisSpec, Picture, analysis, attack
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.stores import CheckpointStore
from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import INFORMATION, Finding, Verdict, at_most
from curation.distilled.begin import begin
from curation.distilled.evaluation import CORESETS, StudentConfig, coreset, train_students
from curation.distilled.experts import ExpertConfig
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.trajectory import MatchConfig
from curation.distilled.whitening import Scale
from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble
from recipes.models import builder
from recipes.predict import reading_of_outputs
from sources.example_set import ExampleSet
from tasks.base import require

KINDS = ("distilled", "initial", "random", *CORESETS, "half")
MEMBERS, DRAWN, REST = "members", "drawn", "rest"
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilledLeakConfig(Config):
    runs: int = param(16, ge=4, le=10_000, doc="M: halves, and sets distilled; even")
    per_class: int = param(10, ge=1, le=100_000, unit="examples", doc="distilled examples of every class")
    width: int = param(128, ge=1, le=4096, doc="channels of the ConvNet that experts and students are")
    depth: int = param(3, ge=1, le=8, doc="its blocks")
    experts: ExpertConfig = param(ExpertConfig(num=2), doc="experts of each half")
    match: MatchConfig = param(MatchConfig(iterations=1000), doc="how their trajectories are matched")
    students: StudentConfig = param(StudentConfig(), doc="how networks are trained on a set")
    attacks: tuple[str, ...] = param(
        ("lira_online", "loss"), doc="registered membership attacks, with their defaults", ref="attack"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        if self.runs % 2:
            raise ConfigError(f"DistilledLeakConfig.runs = {self.runs} must be even: each example is in half of them")


LEAK = TableSpec(
    schema="audits",
    name="distilled_leak",
    version=2,
    doc="How well members of a half are told from non-members by networks trained on what was made of it.",
    key=("attack", "trained_on", "group"),
    columns=(
        Column(name="attack", dtype="str", doc="membership attack"),
        Column(
            name="trained_on",
            dtype="str",
            choices=KINDS,
            doc="distilled set, its initial images, as many random images or a coreset, or the half itself",
        ),
        Column(
            name="group",
            dtype="str",
            choices=(MEMBERS, DRAWN, REST),
            doc="all members, those that the set was drawn from, or the rest; all have the same others",
        ),
        Column(name="num_models", dtype="int64", low=2, doc="networks attacked"),
        Column(name="num_members", dtype="float64", low=0, doc="mean over networks of the members of the group"),
        Column(name="auc", dtype="float64", low=0, high=1, doc="mean over networks; 0.5 = nothing to find"),
        Column(name="auc_lo", dtype="float64", low=0, high=1, doc="lower bound, clustered by network and by example"),
        Column(name="auc_hi", dtype="float64", low=0, high=1, doc="upper bound"),
        Column(name="accuracy", dtype="float64", low=0, high=1, doc="of the networks on test examples"),
    ),
)


def judge_distilled_leak(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[tuple[str, Finding]]:
    """What networks trained on distilled sets show of all members, and of those that an image started from, beside what
    those trained on the halves and on as many random images show."""
    found, limit = [], thresholds.max_auc
    for (name,), own in tables[LEAK.name].group_by("attack", maintain_order=True):
        by = {(row["trained_on"], row["group"]): row for row in own.iter_rows(named=True)}
        for group, control, about, whom, theirs in (
            (MEMBERS, "half", "distilled sets", "the members of what was distilled", "all they were drawn from"),
            (
                DRAWN,
                "initial",
                "what distilled images started from",
                "the members that images started from",
                "those images",
            ),
        ):
            row, half, random, known = (by[kind, group] for kind in ("distilled", "half", "random", control))
            verdict = at_most(row["auc_lo"], row["auc_hi"], limit)
            sentence = (
                f"Networks trained on distilled sets tell {whom} ({row['num_members']:,.0f} a set) from others with an "
                f"AUC of {_with_ends(row)}; networks trained on everything that was distilled tell them with "
                f"{_with_ends(half)}. Networks trained on as many random images tell {theirs} with "
                f"{_with_ends(random)}."
            )
            if verdict is Verdict.PASS and at_most(known["auc_lo"], known["auc_hi"], limit) is not Verdict.FAIL:
                verdict = Verdict.INCONCLUSIVE
                sentence += (
                    f" Trained on these themselves networks tell them with {_with_ends(known)}, not "
                    f"clearly above {limit:g} either: it has shown no power."
                )
            finding = Finding(
                what=f"distilled_leak/{name}",
                verdict=verdict,
                sentence=sentence,
                value=row["auc"],
                low=row["auc_lo"],
                high=row["auc_hi"],
                threshold=limit,
                kind=INFORMATION,
                judged=False,
            )
            found.append((about, finding))
    return found


def _with_ends(row: Mapping[str, Any]) -> str:
    return f"{row['auc']:.3f} ({row['auc_lo']:.3f} to {row['auc_hi']:.3f})"


@analysis(
    AnalysisSpec(
        name="distilled_leak",
        wants=("reading", "classes", "images"),
        doc="Membership, in networks trained on distilled sets, of what these were distilled from.",
        source="Dong et al., ICML 2022 (arXiv 2206.00240); Carlini et al., arXiv 2209.14987",
        config=DistilledLeakConfig,
        needs=("checkpoints", "device"),
        tables=(LEAK,),
        pictures=(
            Picture(
                table=LEAK.name,
                title="Members told from others by networks trained on distilled sets, on real ones, on the halves",
                x="trained_on",
                y="auc",
                series="group",
                low="auc_lo",
                high="auc_hi",
                kind="dots",
                where=(("attack", "lira_online"),),
            ),
        ),
        judge=judge_distilled_leak,
        finds=lambda config, limits, _: [],  # none counts
    )
)
def distilled_leak(
    data: ExampleSet,
    *,
    config: DistilledLeakConfig,
    seed: int,
    progress: Progress,
    checkpoints: CheckpointStore,
    device: str = "cpu",
) -> dict[str, pl.DataFrame]:
    """Table ``distilled_leak``; see the head of this file.

    Args:
        data: both splits; test examples are members of no half.
        checkpoints: where what each half has shown is kept, to go on from.
        device: "cpu" or "cuda", where networks are trained.

    Raises:
        NotApplicable: no images, or images too small for the network.
        DataError: a half in which a class has too few examples.
        ConfigError: too few halves for an attack.
    """
    require(data, "distilled_leak", "reading", "classes", "images")
    data.check_targets()
    data = data.by_id()
    pool = data.split == "train"
    keep = np.zeros((config.runs, len(data)), bool)
    keep[:, pool] = balanced_design(config.runs, int(pool.sum()), seed=derive_seed("halves", seed))
    readings: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in KINDS}
    drawn = {kind: np.zeros_like(keep) for kind in KINDS}
    for number in range(config.runs):
        name = f"half-{number}"
        kept = checkpoints.load(name)
        arrays = (
            _one_half(data, keep[number], config, device, derive_seed("half", seed, number))
            if kept is None
            else kept[0]
        )
        if kept is None:
            checkpoints.save(name, arrays, {})
        for kind in KINDS:
            readings[kind].append(np.asarray(arrays[kind]))
            drawn[kind][number, np.asarray(arrays[f"{kind}/rows"])] = True
        progress(number + 1, config.runs, "halves distilled and attacked")
    return {LEAK.name: leak(data, pool, keep, drawn, {kind: np.stack(r) for kind, r in readings.items()}, config, seed)}


def _one_half(
    data: ExampleSet, members: Bool, config: DistilledLeakConfig, device: str, seed: int
) -> dict[str, NDArray[Any]]:
    """Readings (N, 4) of all examples by the network of each kind, and as ``KIND/rows`` what its set was drawn from."""
    own = np.flatnonzero(members)
    every, y = torch.from_numpy(data.inputs(slice(None))).to(device), torch.from_numpy(data.y).to(device)
    x = Scale.fit(every[torch.from_numpy(data.split == "train").to(every.device)]).to(every)
    network = FlatNetwork(
        builder(
            "convnet",
            {"width": config.width, "depth": config.depth},
            input_shape=data.input_shape,
            num_outputs=data.num_classes,
        ),
        device=device,
    )
    begun = begin(
        network,
        x[own],
        y[own],
        num_classes=data.num_classes,
        per_class=config.per_class,
        experts=config.experts,
        match=config.match,
        seed=seed,
    )
    made = begun.matcher.run(begun.state, seed=derive_seed("matching", seed))
    targets = made.labels.softmax(1) if config.match.labels == "soft" else made.labels

    def student(images: torch.Tensor, wanted: torch.Tensor, rate: float) -> torch.Tensor:
        seeds = [derive_seed("student", seed)]
        return train_students(network, images, wanted, rate=rate, config=config.students, seeds=seeds)[0]

    start, expert = begun.rows.cpu().numpy(), begun.experts.final(0, network)
    rows = {kind: start for kind in ("distilled", "initial", "half")}
    rng, classes = np.random.default_rng(derive_seed("random", seed)), data.y[own]
    rows["random"] = np.concatenate(
        [rng.permutation(np.flatnonzero(classes == k))[: config.per_class] for k in range(data.num_classes)]
    )
    for name in CORESETS:
        rows[name] = coreset(
            name, network, expert, x[own], y[own], per_class=config.per_class, num_classes=data.num_classes
        )
    networks = {"distilled": student(made.images, targets, made.rate), "half": expert}
    for kind in ("initial", "random", *CORESETS):
        chosen = own[rows[kind]]
        networks[kind] = student(x[chosen], one_hot(y[chosen], data.num_classes, x.dtype), config.match.lr_start)
    read = {
        kind: reading_of_outputs(data, network.logits(networks[kind], x).float().cpu().numpy()).values for kind in KINDS
    }
    return {**read, **{f"{kind}/rows": own[rows[kind]] for kind in KINDS}}


def leak(
    data: ExampleSet,
    pool: Bool,
    keep: Bool,
    drawn: Mapping[str, Bool],
    readings: Mapping[str, NDArray[np.float64]],
    config: DistilledLeakConfig,
    seed: int,
) -> pl.DataFrame:
    """The table, of what each network says of everybody.

    Args:
        data: N examples by id. pool: (N,) those that halves are of.
        keep: (M, N), members of each half. drawn: kind -> (M, N), those of them that its set was drawn from.
        readings: (M, N, 4) of the networks of each kind.
    """
    rows = []
    for kind in KINDS:
        ensemble = ReferenceEnsemble(
            example_id=data.example_id,
            pool=pool,
            labels=data.y,
            keep=keep,
            reading=readings[kind],
            config_digest="",
        )
        evidence = Evidence.of_ensemble(
            ensemble, ensemble.reading, task=data.task, constants=data.constants, target_index=np.arange(len(keep))
        )
        accuracy = float(ensemble.readings.quality[:, data.split == "test"].mean())
        for name in config.attacks:
            method = attack.get(name)
            scores = method(evidence, config=method.spec.config(), seed=derive_seed("attack", seed) % 2**31)
            inside, first = keep[:, pool], drawn[kind][:, pool]
            for group, positive in ((MEMBERS, inside), (DRAWN, first), (REST, inside & ~first)):
                area = auc_over_runs(np.where(positive | ~inside, scores, np.nan), positive)
                low, high = area.interval(config.alpha)
                rows.append(
                    {
                        "attack": name,
                        "trained_on": kind,
                        "group": group,
                        "num_models": len(keep),
                        "num_members": float(positive.sum(1).mean()),
                        "auc": area.value,
                        "auc_lo": low,
                        "auc_hi": high,
                        "accuracy": accuracy,
                    }
                )
    return pl.DataFrame(rows)
