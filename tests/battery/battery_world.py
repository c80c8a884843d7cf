"""One small world, built once, in which every registered method can be run; and how each kind of method is called.

``World.run(kind, method, ...)`` returns a method's output in one comparable form:
    score, curator   the polars frame              attack   float64 (T, N)
    analysis   {table: polars frame}
    unlearner, recipe   all parameters and buffers, float64 (d,)       source   the ExampleSet
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from emoji_packages import write_packages
from language_data import VOCAB, make_texts
from PIL import Image
from planted_logits import LogitEvidence
from torch import nn

from contracts.methods import REGISTRIES, Asked, analysis, unlearner
from contracts.progress import silent
from contracts.registry import Method, Registry
from contracts.subject import Ensemble
from recipes.continual.replay import ReplayConfig
from recipes.early import early_models, early_snapshots
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.recsys import BprConfig, bpr
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.loading import detect, load
from sources.outputs import outputs_config
from unlearning.metrics import evaluate

NUM_CLASSES = 3
KINDS: dict[str, Registry[Any]] = {registry.kind: registry for registry in REGISTRIES if registry.kind != "task"}
METHODS = [(kind, name) for kind, registry in KINDS.items() for name in registry.names()]


def of(*kinds: str) -> list[Any]:
    """The registered methods of these kinds, for ``pytest.mark.parametrize(("kind", "name"), ...)``."""
    return [pytest.param(kind, name, id=f"{kind}-{name}") for kind, name in METHODS if kind in kinds]


def make_examples(seed: int = 0, num: int = 150, dim: int = 5) -> ExampleSet:
    """Overlapping Gaussian classes; ids with gaps and out of order; four owners."""
    rng = np.random.default_rng(seed)
    y = (np.arange(num) % NUM_CLASSES).astype(np.int64)
    x = (rng.normal(size=(NUM_CLASSES, dim))[y] * 1.5 + rng.normal(size=(num, dim))).astype(np.float32)
    return ExampleSet(
        name="battery",
        task="classification",
        x=x,
        y=y,
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) < num * 3 // 5, "train", "test").astype("<U5"),
        owner=np.array(["", "ann", "bob", "eve"])[np.arange(num) % 4],
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=("red", "green", "blue"),
        center=np.zeros(dim, np.float32),
        scale=np.ones(dim, np.float32),
        feature_names=tuple(f"f{i}" for i in range(dim)),
    ).validate()


@dataclass
class World:
    examples: ExampleSet
    train: ExampleSet
    build: Callable[[int], nn.Module]
    needs: dict[str, Any]
    evidence: LogitEvidence | None
    configs: dict[tuple[str, str], Mapping[str, Any]]
    rebuild: Callable[[ExampleSet], dict[str, Any]] | None  # None: nothing here is fitted to features or classes
    _rebuilt: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def needs_on(self, odd: Callable[[ExampleSet], ExampleSet]) -> dict[str, Any]:
        """What methods need when the examples are ``odd``: models and ensemble trained on these, once a session."""
        if self.rebuild is None:
            return self.needs
        if odd not in self._rebuilt:
            self._rebuilt[odd] = self.rebuild(odd(self.examples))
        return self._rebuilt[odd]

    def data(self, kind: str) -> ExampleSet:
        """What a method of this kind is given: both splits for an analysis, the training examples for all others."""
        return self.examples if kind == "analysis" else self.train

    def config(self, kind: str, method: Method[Any], **changed: Any) -> Any:
        """A legal configuration: the example given here for what is required, defaults for the rest."""
        spec = method.spec
        return spec.config.from_mapping({**self.fields(kind, method), **changed})

    def fields(self, kind: str, method: Method[Any]) -> dict[str, Any]:
        given = dict(self.configs.get((kind, method.spec.name), {}))
        required = [
            f.name
            for f in dataclasses.fields(method.spec.config)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in given
        ]
        assert not required, (
            f"{kind} {method.spec.name} has required fields {required}: give an example in tests/battery/conftest.py"
        )
        return given

    def run(
        self,
        kind: str,
        method: Method[Any],
        *,
        data: ExampleSet | None = None,
        evidence: LogitEvidence | None = None,
        needs: Mapping[str, Any] | None = None,
        seed: int = 0,
        **changed: Any,
    ) -> Any:
        config = self.config(kind, method, **changed)
        given = {need: (needs or self.needs)[need] for need in method.spec.needs}
        data = self.data(kind) if data is None else data
        if kind == "analysis":
            return method(data, config=config, seed=seed, progress=silent, **given)
        if kind in ("score", "curator"):
            return method(data, config=config, seed=seed, **given)
        if kind == "attack":
            return method(evidence or self.evidence, config=config, seed=seed)
        if kind == "recipe":
            return flat(method(self.build, data, config=config, seed=seed))
        if kind == "source":
            return method(config=config, seed=seed)
        assert kind == "unlearner", f"a new kind of method, {kind}: say here how it is called"
        model = (needs or self.needs)["model"]
        retain, forget = halves(data)
        return flat(method(model, retain=retain, forget=forget, config=config, seed=seed, **given))


def halves(data: ExampleSet) -> tuple[ExampleSet, ExampleSet]:
    """Retain and forget sets by id, so that they do not depend on the order of the rows; one example is retained."""
    chosen = data.example_id % 5 == 0
    if len(data) == 1 or chosen.all():
        return data, data.take(np.empty(0, np.int64))
    return data.take(np.flatnonzero(~chosen)), data.take(np.flatnonzero(chosen))


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([t.detach().double().flatten() for t in model.state_dict().values()]).numpy()


def make_evidence(data: ExampleSet, models: Sequence[nn.Module], ensemble: ReferenceEnsemble) -> LogitEvidence:
    """The audited models on the ensemble's pool; the first is also one of the references, the others are strangers."""
    pool, people = ensemble.pool, data.subset(ensemble.example_id)
    logits = np.stack([ensemble.logits[0], *(predict_logits(model, people) for model in models)])
    return LogitEvidence(
        example_id=ensemble.example_id[pool],
        labels=ensemble.labels[pool],
        target_logits=logits[:, pool],
        reference_logits=ensemble.logits[:, pool],
        keep=ensemble.keep[:, pool],
        population_labels=ensemble.labels[~pool],
        population_target_logits=logits[:, ~pool],
        population_reference_logits=ensemble.logits[:, ~pool],
        target_index=np.array([0, *[-1] * len(models)]),
    )


def make_language_world() -> World:
    """A few questions and answers as tokens, and a very small Llama; what is about classes is missing here."""
    examples = make_texts()
    train = examples.part("train")
    sizes = {"hidden": 16, "intermediate": 32, "layers": 1, "heads": 2}
    build = builder("tiny_llama", sizes, input_shape=examples.input_shape, num_outputs=VOCAB)

    def fresh(data: ExampleSet, seed: int, *, effort: float = 1.0) -> nn.Module:
        plan = TokenTrainingConfig(lr=0.02, epochs=max(1, round(6 * effort)), batch=8, warmup_epochs=0)
        return causal_lm(build, data, config=plan, seed=seed)

    short = {"epochs": 2, "batch": 4, "lr": 1e-3}
    return World(
        examples=examples,
        train=train,
        build=build,
        needs={"model": fresh(train, 0), "train": fresh},
        evidence=None,
        rebuild=None,
        configs={
            ("recipe", "causal_lm"): {"epochs": 2, "batch": 8},
            ("recipe", "lora"): {"epochs": 2, "batch": 8, "merge": False},
            **{("unlearner", method.spec.name): short for method in unlearner if "tokens" in method.spec.wants},
        },
    )


def write_files(folder: Path, examples: ExampleSet) -> dict[str, Path]:
    """The examples as each kind of file that a source reads."""
    rng = np.random.default_rng(0)
    values = np.asarray(examples.x)
    table = pl.DataFrame({f"f{i}": values[:, i] for i in range(values.shape[1])}).with_columns(
        label=pl.Series([examples.class_names[k] for k in examples.y]), owner=pl.Series(examples.owner.tolist())
    )
    table.write_csv(folder / "table.csv")
    np.savez(folder / "arrays.npz", x=values, y=examples.y)
    said = np.exp(values[:, :NUM_CLASSES])
    said /= said.sum(1, keepdims=True)
    pl.DataFrame({f"prob_{name}": said[:, k] for k, name in enumerate(examples.class_names)}).with_columns(
        table["label"], member=pl.Series(examples.split == "train")
    ).write_parquet(folder / "outputs.parquet")
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = (np.arange(60) % NUM_CLASSES).astype(np.uint8)
    idx = folder / "idx"
    idx.mkdir()
    head = b"\x00\x00\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in images.shape)
    (idx / "train-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (idx / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01" + (60).to_bytes(4, "big") + labels.tobytes())
    for number, image in enumerate(images):
        home = folder / "folder" / examples.class_names[labels[number]]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{number:03d}.png")
    encoded = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((folder / "folder").glob("*/*.png"))]
    pl.DataFrame({"image": encoded, "label": np.sort(labels)}).write_parquet(folder / "pictures.parquet")
    asked = [{"prompt": f"What is {number}?", "answer": f"The {number}th."} for number in range(30)]
    pl.DataFrame(asked).write_ndjson(folder / "questions.jsonl")
    for number, image in enumerate(images):
        for kind, pixels in (("images", image), ("masks", np.where(image > 99, 255, 0).astype(np.uint8))):
            (folder / "scenes" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "scenes" / kind / f"{number:03d}.png")
    (folder / "graph").mkdir()
    table.with_row_index("node").write_csv(folder / "graph" / "nodes.csv")
    ring = np.arange(table.height)
    pl.DataFrame({"source": ring, "target": (ring + 1) % len(ring)}).write_csv(folder / "graph" / "edges.csv")
    return {
        "table": folder / "table.csv",
        "npz": folder / "arrays.npz",
        "idx": idx,
        "image_folder": folder / "folder",
        "image_table": folder / "pictures.parquet",
        "text": folder / "questions.jsonl",
        "image_masks": folder / "scenes",
        "node_table": folder / "graph",
    }


def make_needs(build: Callable[[int], nn.Module], examples: ExampleSet) -> dict[str, Any]:
    """Everything a method may ask for, trained on these examples."""
    train, recipe = examples.part("train"), SupervisedConfig(lr=0.1, epochs=15, batch=32)

    def fresh(
        data: ExampleSet,
        seed: int,
        *,
        effort: float = 1.0,
        steps: int | None = None,
        observe: Any = None,
        double: bool = False,
    ) -> nn.Module:
        plan = dataclasses.replace(recipe, epochs=max(1, round(recipe.epochs * effort)), steps=steps)
        return supervised(
            (lambda s: build(s).double()) if double else build, data, config=plan, seed=seed, observe=observe
        )

    def train_many(
        members: Sequence[np.ndarray], seeds: Sequence[int], *, data: ExampleSet | None = None
    ) -> list[nn.Module]:
        data = data or examples
        rows = [data.positions(ids) for ids in members]
        return StackedTrainer(build=build, config=recipe).train(data, members=rows, seeds=seeds)

    def unlearn_from(start: nn.Module, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module:
        method = unlearner.get(name)
        needed = {"train": fresh}
        return method(
            start,
            retain=retain,
            forget=forget,
            config=method.spec.config(),
            seed=seed,
            **{need: needed[need] for need in method.spec.needs},
        )

    values = pl.DataFrame({"example_id": train.example_id, "value": train.x[:, 0].astype(np.float64)})
    model = fresh(train, 0)
    fitting = dataclasses.replace(recipe, epochs=240, schedule="constant")  # memorization asks for models that fit
    ensemble = train_ensemble(
        build,
        examples,
        outputs=True,
        recipe="supervised",
        config=fitting,
        ensemble=Ensemble(num_models=8, population_fraction=0.5),
        seed=1,
    )

    @functools.cache
    def stored() -> dict[str, pl.DataFrame]:
        """What analyses that others read have stored."""
        method = analysis.get("quality_pools")
        return method(
            examples,
            config=method.spec.config(seeds=1, validation=0.25),
            seed=0,
            progress=silent,
            scores=lambda name: values,
            train=fresh,
        )

    return {
        "model": model,
        "encoder": model,
        "outputs": functools.partial(predict_logits, model),
        "early_models": early_models(build, train, recipe="supervised", config=recipe, seeds=[3, 4], epoch=3),
        "ensemble": ensemble,
        "recipe": Trainer(
            recipe="replay", build=build, config=ReplayConfig(steps=((0,), (1, 2)), epochs=2, buffer=12, batch=32)
        ),
        "train": fresh,
        "early_at": lambda epochs: early_snapshots(
            build, train, recipe="supervised", config=recipe, seeds=[3, 4], epochs=epochs
        ),
        "train_many": train_many,
        "unlearn": lambda name, **given: unlearn_from(model, name, **given),
        "unlearn_from": unlearn_from,
        "evaluate": evaluate,
        "scores": lambda name: values,
        "splits": lambda name: pl.DataFrame(
            {"example_id": train.example_id, "role": np.where(train.y == 1, "forget", "retain")}
        ),
        "select_where": lambda where: train.example_id[train.y == 1],
        "tables": lambda name: stored()[name],
        "imported": pl.DataFrame(
            {
                "example_id": train.example_id,
                "label_noise": np.linspace(0, 1, len(train)),
                "is_issue": np.arange(len(train)) % 7 == 0,
                "suggested_label": pl.Series([None] * len(train), dtype=pl.Int64),
            }
        ),
    }


def make_world(folder: Path) -> World:
    """Train the models, write the files."""
    examples = make_examples()
    train = examples.part("train")
    build = builder("mlp", {"hidden": (8,)}, input_shape=examples.input_shape, num_outputs=NUM_CLASSES)
    needs = make_needs(build, examples)
    files = write_files(folder, examples)
    configs: dict[tuple[str, str], Mapping[str, Any]] = {
        ("curator", "by_ids"): {"ids": np.sort(train.example_id)[:7].tolist()},
        ("curator", "by_owner"): {"owner": "ann"},
        ("curator", "by_class"): {"class_name": "green"},
        ("curator", "by_predicate"): {"where": "label = 1"},
        ("curator", "deletion_set"): {"ids": np.sort(train.example_id)[:8].tolist(), "fraction": 0.5},
        ("curator", "closure"): {"split": "random"},
        ("curator", "top_score"): {"score": "el2n", "fraction": 0.2},
        ("curator", "forget_set"): {"selector": "worst_case"},
        ("analysis", "pruning_curve"): {"validation": 0.25},
        ("analysis", "quality_pools"): {"validation": 0.25},
        ("analysis", "qualification"): {
            "trials": 1,
            "methods": [m.spec.name for m in unlearner if examples.task.gives(*m.spec.wants)],
        },
        ("analysis", "dropout_inversion"): {"num_examples": 2, "steps": 20, "dlg_steps": 5},
        ("analysis", "backdoor_audit"): {"manipulation": "confusion", "share": 0.2, "identified": [1.0]},
        ("analysis", "shadow_unlearning"): {"runs": 12, "relearn_steps": 3},
        ("analysis", "recourse_audit"): {"favourable": "green"},
        ("curator", "keep_hardest"): {"score": "el2n", "fraction": 0.5},
        ("curator", "offset_window"): {"score": "el2n", "skip_fraction": 0.2, "take_fraction": 0.5},
        ("source", "emoji"): {"root": str(write_packages(folder / "emoji")), "fewest": 2},
        ("recipe", "supervised"): {"epochs": 3, "batch": 32},
        ("recipe", "rehearsal_free"): {
            "steps": [["red"], ["green", "blue"]],
            "epochs": 2,
            "l2": 0.01,
            "ewc": 1.0,
            "feat": 0.1,
        },
        ("recipe", "replay"): {"steps": [["red"], ["green", "blue"]], "epochs": 2, "buffer": 12},
        ("analysis", "continual_runs"): {"seeds": 2},
    }
    for name, path in files.items():
        label = "label" if name in ("table", "node_table") else None
        kind, config, _ = detect(path, Asked(label=label))
        assert kind == name
        configs["source", name] = config
    configs["source", "outputs"], _ = outputs_config(folder / "outputs.parquet", Asked())
    return World(
        examples=examples,
        train=train,
        build=build,
        needs=needs,
        evidence=make_evidence(examples, [needs["model"], needs["train"](train, 9)], needs["ensemble"]),
        configs=configs,
        rebuild=functools.partial(make_needs, build),
    )


def make_ranking_world(folder: Path) -> World:
    """Ten users and twenty-five items, planted noise among them; what is about classes is missing here."""
    examples = load(
        "synthetic_interactions", {"num_users": 10, "num_items": 25, "per_user": 12, "dim": 2, "noise": 0.3}
    )
    examples = dataclasses.replace(examples, owner=np.array(["ann", "bob"])[np.asarray(examples.x)[:, 0] % 2])
    train = examples.part("train")
    build = builder("mf", {"dim": 4}, input_shape=(examples.num_users,), num_outputs=examples.num_classes)

    def fresh(data: ExampleSet, seed: int, *, effort: float = 1.0, observe: Any = None) -> nn.Module:
        plan = BprConfig(epochs=max(1, round(5 * effort)), batch=32, lr=0.05)
        return bpr(build, data, config=plan, seed=seed, observe=observe)

    pl.DataFrame({"user": [f"u{u}" for u in np.asarray(examples.x)[:, 0]], "item": examples.y}).write_csv(
        folder / "log.csv"
    )
    kind, config, _ = detect(folder / "log.csv")
    assert kind == "interactions"
    values = pl.DataFrame({"example_id": train.example_id, "value": np.sin(train.example_id.astype(np.float64))})
    return World(
        examples=examples,
        train=train,
        build=build,
        needs={"model": fresh(train, 0), "train": fresh, "scores": lambda name: values},
        evidence=None,
        rebuild=None,
        configs={
            ("source", "interactions"): config,
            ("recipe", "bpr"): {"epochs": 2, "batch": 32},
            ("analysis", "recsys_eval"): {
                "epochs": 4,
                "count_from": 2,
                "warmup_epochs": 1,
                "seeds": 2,
                "dim": 4,
                "noise_ratios": [0.2],
            },
        },
    )
