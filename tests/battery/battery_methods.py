"""The small configurations in which the project's own methods are run, and files for its sources.

Not exceptions: every check is asked of every method. These are values for fields that have no default, and quicker
ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from addresses_package import write_addresses
from emoji_packages import write_packages
from PIL import Image
from topomortar_folder import write_topomortar
from wordnet_file import write_wordnet

from contracts.methods import Asked, unlearner
from contracts.registry import Method
from palimpsest.testing import EVERYWHERE, WORLDS, World, checks_of, kind_of, worlds_for
from palimpsest.testing.battery import name_of
from palimpsest.testing.kinds import KINDS
from palimpsest.testing.worlds import NUM_CLASSES
from recipes.continual.rehearsal_free import RehearsalFreeConfig
from recipes.continual.replay import ReplayConfig
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.loading import detect
from sources.outputs import outputs_config

METHODS = [(kind, method.spec.name) for kind, registry in KINDS.items() if kind != "task" for method in registry]
Fields = Mapping[tuple[str, str], Mapping[str, Any]]


def cases() -> list[Any]:
    """(world, kind, name, check, elsewhere) of everything that is asked: all in the first world of a method, promises
    of outputs in the others, which are journeys."""
    found = []
    for kind, name in METHODS:
        method = KINDS[kind].get(name)
        for place, world in enumerate(worlds_for(method)):
            for check in checks_of(method):
                if place == 0 or (check in EVERYWHERE and kind not in ("source", "attack")):
                    asked = f"{kind}-{name}-{world}-{name_of(check)}"
                    marks = [pytest.mark.journey] * (place > 0)
                    found.append(pytest.param(world, kind, name, check, place > 0, id=asked, marks=marks))
    return found


_IN_STEPS = {"steps": ((0,), (1, 2)), "epochs": 2, "batch": 32}
STREAMS = {
    "replay": ReplayConfig(**_IN_STEPS, buffer=12),
    "rehearsal_free": RehearsalFreeConfig(**_IN_STEPS, ewc=1.0),
    "supervised": SupervisedConfig(lr=0.1, epochs=6, batch=32),
}
# the plan's recipe that an analysis or an unlearner is about; of the others replay
RECIPES = {"fisher_leak": "rehearsal_free", "prune_then_unlearn": "supervised"}


@functools.cache
def configured(name: str, folder: Path | None = None, *, recipe: str = "replay") -> World:
    """The built-in world with configurations that suit it; sources read files in ``folder``."""
    world = WORLDS[name]()
    configs = {**_of_any(world), **(_of_files(world.examples, folder) if folder is not None else {})}
    if name == "classes":
        given = {"recipe": Trainer(recipe=recipe, build=world.trainer.build, config=STREAMS[recipe])}
        return dataclasses.replace(world, configs=configs, given=given)
    return dataclasses.replace(world, configs=configs)


def _of_any(world: World) -> Fields:
    train, task = world.train, world.examples.task
    share = 0.25 if len(train) > 60 and task.gives("classes") else 0.45
    ids = np.sort(train.example_id)
    short = {"epochs": 2, "batch": 4, "lr": 1e-3}
    return {
        ("curator", "by_ids"): {"ids": ids[:7].tolist()},
        ("curator", "by_owner"): {"owner": "ann"},
        ("curator", "by_class"): {"class_name": world.examples.class_names[1] if task.gives("classes") else "none"},
        ("curator", "by_predicate"): {"where": "label = 1"},
        ("curator", "deletion_set"): {"ids": ids[:8].tolist(), "fraction": 0.5},
        ("curator", "closure"): {"split": "random"},
        ("curator", "top_score"): {"score": "el2n", "fraction": 0.2},
        ("curator", "forget_set"): {"selector": "worst_case"},
        ("curator", "keep_hardest"): {"score": "el2n", "fraction": 0.5},
        **{("curator", name): {"fraction": 0.4} for name in ("k_center", "herding", "facility_location")},
        ("curator", "offset_window"): {"score": "el2n", "skip_fraction": 0.2, "take_fraction": 0.5},
        ("analysis", "pruning_curve"): {"validation": share, "seeds": 2},
        ("analysis", "quality_pools"): {"validation": share, "seeds": 1},
        ("analysis", "leaderboard"): {"methods": ["finetune"], "sets": ["random"], "tuning_runs": 1, "sample": 6},
        ("analysis", "forget_selectors"): {"trials": 2},
        ("analysis", "dropout_inversion"): {"num_examples": 2, "steps": 20, "dlg_steps": 5},
        ("analysis", "backdoor_audit"): {"manipulation": "confusion", "share": 0.2, "identified": [1.0]},
        ("analysis", "corrective_report"): {
            "manipulation": "confusion",
            "share": 0.2,
            "identified": [1.0],
            "methods": [{"name": "scrub", "settings": [{"alpha": 1.0}, {}]}, {"name": "eu_k"}],
            "validation": share,
        },
        ("analysis", "extraction"): {"prefix": 3, "suffix": 1},
        ("analysis", "shadow_unlearning"): {"runs": 12, "relearn_steps": 3},
        ("analysis", "unlearnability_audit"): {"dataset": "some", "defences": ["none", "cutout"]},
        ("analysis", "bag_risk_curve"): {"bag_sizes": [1, 3], "rhos": [0.0, 0.3], "repeats": 3},
        ("analysis", "trak"): {"dim": 16, "models": 2, "targets": 12},
        ("analysis", "lds"): {"dim": 16, "models": 2, "targets": 12, "draws": 50},
        ("analysis", "bag_privacy"): {"datasets": ["some"]},
        ("analysis", "recourse_audit"): {"favourable": "green"},
        ("analysis", "continual_runs"): {"seeds": 2},
        ("analysis", "recsys_eval"): {
            "epochs": 4,
            "count_from": 2,
            "warmup_epochs": 1,
            "seeds": 2,
            "dim": 4,
            "noise_ratios": [0.2],
        },
        ("maker", "distilled"): {
            "per_class": 1,
            "width": 4,
            "depth": 2,
            "seeds": 1,
            "held_out": 0.2,
            "experts": {"num": 2, "epochs": 4, "batch": 16, "lr": 0.1},
            "match": {"iterations": 2, "steps": 3, "t_max": 3, "lr_img": 1.0, "start": "real"},
            "students": {"epochs": 3},
        },
        ("analysis", "distilled_leak"): {
            "runs": 4,
            "per_class": 1,
            "width": 4,
            "depth": 2,
            "experts": {"num": 1, "epochs": 4, "batch": 16, "lr": 0.1},
            "match": {"iterations": 1, "steps": 2, "t_max": 3, "start": "real"},
            "students": {"epochs": 2},
            "attacks": ["loss"],
        },
        ("recipe", "supervised"): {"epochs": 3, "batch": 32},
        ("recipe", "aggregate"): {"epochs": 3, "batch": 8, "bag_size": 4},
        ("maker", "bags"): {"bag_size": 4},
        ("recipe", "node_classifier"): {"epochs": 3},
        ("recipe", "erase"): {"epochs": 3},
        ("recipe", "segmentation"): {"epochs": 2, "batch": 8},
        ("recipe", "self_distillation"): {"epochs": 2, "batch": 8},
        ("analysis", "region_errors"): {"losses": ["ce_dice", "cldice"]},
        ("recipe", "bpr"): {"epochs": 2, "batch": 32},
        ("recipe", "causal_lm"): {"epochs": 2, "batch": 8},
        ("recipe", "lora"): {"epochs": 2, "batch": 8, "merge": False},
        ("recipe", "rehearsal_free"): {
            "steps": [["red"], ["green", "blue"]],
            "epochs": 2,
            "l2": 0.01,
            "ewc": 1.0,
            "feat": 0.1,
        },
        ("recipe", "replay"): {"steps": [["red"], ["green", "blue"]], "epochs": 2, "buffer": 12},
        # fewer examples than weights: what lies outside their span is divided by lambda alone
        ("unlearner", "influence_unlearning"): {
            "damping": 10.0 if task.gives("nodes") or task.gives("pixels") else 0.1
        },
        ("unlearner", "prune_then_unlearn"): {"rewind_epoch": 2, "sparsity": 0.5},
        **{("unlearner", method.spec.name): short for method in unlearner if "tokens" in method.spec.wants},
    }


def _of_files(examples: ExampleSet, folder: Path) -> Fields:
    """Configurations of the sources, each for its own kind of file."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for name, path in write_files(folder, examples).items():
        label = "label" if name in ("table", "node_table") else None
        kind, config, _ = detect(path, Asked(label=label))
        assert kind == name
        found["source", name] = config
    found["source", "rotated_images"] = {"root": str(folder / "idx"), "label": 1}
    found["source", "emoji"] = {"root": str(write_packages(folder / "emoji")), "fewest": 2}
    (folder / "wordnet").mkdir()
    found["source", "wordnet"] = {"root": str(write_wordnet(folder / "wordnet")), "num_nodes": 90, "dim": 32}
    found["source", "emoji_masks"] = {"root": str(folder / "emoji"), "fewest": 2}
    found["source", "topomortar"] = {"root": str(write_topomortar(folder / "walls", walls=(6, 3, 7))), "small": True}
    found["source", "brick_walls"] = {"size": 32, "num_train": 6, "num_test": 4, "num_other": 1}
    addresses = str(write_addresses(folder / "addresses"))
    found["source", "presidential_addresses"] = {"root": addresses, "num_presidents": 3, "tokens": 32}
    found["source", "outputs"], _ = outputs_config(folder / "outputs.parquet", Asked())
    return found


def method_named(kind: str, name: str) -> Method[Any]:
    """The registered method."""
    method = KINDS[kind].get(name)
    assert kind_of(method) == kind
    return method


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
    users = np.arange(120) % 10
    pl.DataFrame({"user": [f"u{u}" for u in users], "item": (users * 7 + np.arange(120) // 10) % 25}).write_csv(
        folder / "log.csv"
    )
    return {
        "interactions": folder / "log.csv",
        "table": folder / "table.csv",
        "npz": folder / "arrays.npz",
        "idx": idx,
        "image_folder": folder / "folder",
        "image_table": folder / "pictures.parquet",
        "text": folder / "questions.jsonl",
        "image_masks": folder / "scenes",
        "node_table": folder / "graph",
    }
