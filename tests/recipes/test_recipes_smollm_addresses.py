"""SmolLM2-135M on presidents' addresses: what its adapters learn, what attacks see of it, what unlearning leaves.

Real model, real texts: four presidents, 8 member and 8 held-out passages of 128 tokens each from alternating speeches,
adapters of rank 8 on blocks 20 to 29. Some minutes of one core. The thresholds are those that one-seed figures allow,
with room for other seeds: no equality of Min-K% where eight texts have a null error of 0.15; that the base tells nobody
is asked of 128 passages against 128, where the null error of an AUC is 0.036.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from torch import nn

from attacks.extraction import ExtractionConfig, extraction
from attacks.membership import Evidence
from attacks.membership.tokens import TokenReadings, zlib_bytes
from contracts.errors import ConfigError, DataError, NotReady
from contracts.methods import attack, unlearner
from recipes.language.lora import LoraConfig, attach, lora
from recipes.models import builder
from recipes.predict import read, read_tokens
from sources.example_set import ExampleSet
from sources.loading import load
from stats import auc
from tasks.base import Reading

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=8, targets=LINEARS, layers=tuple(range(20, 30)), merge=False, lr=2e-3, batch=4, epochs=6)
GENTLE = {"lr": 3e-4, "epochs": 6, "batch": 4, "warmup_epochs": 0.0, "schedule": "constant", "weight_decay": 0.0}
SEED, PRESIDENTS, BATCH = 0, 4, 16
MANY = 16  # presidents whose passages the base is read on
METHODS = {"lm_gradient_ascent": (0.5, 0.2), "npo": (0.5, 0.2), "grad_diff": (0.5, 0.2), "flat": (0.3, 0.4)}


@dataclasses.dataclass
class World:
    """The passages, the base and what it says, the adapters trained on all member passages and what they say."""

    data: ExampleSet
    build: Callable[[int], nn.Module]
    base: Reading
    tuned: nn.Module
    said: Reading

    @property
    def inside(self) -> np.ndarray:
        """(N,) member passages that are not planted."""
        return (self.data.split == "train") & (self.data.columns["planted"] == "no")

    @property
    def outside(self) -> np.ndarray:
        return self.data.split == "test"

    def trained(self, rows: np.ndarray, seed: int, **changed: Any) -> nn.Module:
        config = dataclasses.replace(LORA, **changed)
        return lora(self.build, self.data.take(rows), config=config, seed=seed).eval()

    def areas(self, model: nn.Module, inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
        """AUC of each attack on one model."""
        rows = np.flatnonzero(inside | outside)
        data = self.data.take(rows)
        evidence = Evidence(
            example_id=data.example_id,
            target=read(model, data, batch=BATCH).values[None],
            tokens=TokenReadings(target=read_tokens(model, data, batch=BATCH)[None], zlib_bytes=zlib_bytes(data)),
            base=self.base[rows].values,
        )
        found = {}
        for name in ("loss", "zlib_ratio", "min_k", "min_k_plus_plus", "minus_base"):
            method = attack.get(name)
            score = method(evidence, config=method.spec.config(), seed=0)[0]
            found[name] = float(auc(score[inside[rows]], score[outside[rows]]))
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PALIMPSEST_HOME", str(tmp_path_factory.mktemp("home")))
    asked = {"tokenizer": "smollm2", "num_presidents": PRESIDENTS, "passage_seed": SEED, "planted": 2, "copies": 12}
    try:
        data = load("presidential_addresses", asked, seed=0)
        size = {"input_shape": data.input_shape, "num_outputs": data.task.num_outputs(data)}
        build = builder("pretrained_lm", {"path": "smollm2", "dtype": "bfloat16"}, **size)
        base = build(0)
    except (ConfigError, DataError, NotReady) as error:
        pytest.skip(f"{error}; palimpsest doctor names the commands that bring addresses and model")
    said = read(base, data, batch=BATCH)
    split = attach(base, LORA, seed=SEED)
    assert split._lower is not None
    # Blocks below the adapted ones run once a text: the likelihoods are those of the undivided model.
    np.testing.assert_allclose(read(split, data, batch=BATCH).loss, said.loss, atol=0.02)
    del split, base
    found = World(data, build, said, nn.Identity(), said)
    found.tuned = found.trained(np.flatnonzero(data.split == "train"), SEED)
    found.said = read(found.tuned, data, batch=BATCH)
    yield found
    patch.undo()


def test_the_base_tells_nobody(world: World, record_property: Any) -> None:
    asked = {"tokenizer": "smollm2", "num_presidents": MANY, "passage_seed": SEED}
    many = load("presidential_addresses", asked, seed=0)
    loss = read(world.build(0), many, batch=BATCH).loss
    before = float(auc(-loss[many.split == "train"], -loss[many.split == "test"]))
    record_property("figures", {"base": before, "loss": float(loss.mean())})
    assert 0.40 <= before <= 0.60, before


def test_the_tuned_model_tells_everybody(world: World, record_property: Any) -> None:
    after = world.areas(world.tuned, world.inside, world.outside)
    record_property("figures", {**after, **_means(world)})
    assert after["loss"] >= 0.95 and after["min_k"] >= 0.95 and after["minus_base"] >= 0.98, after
    assert world.said.loss[world.inside].mean() < world.base.loss[world.inside].mean() - 1.0
    assert world.said.loss[world.outside].mean() > world.base.loss[world.outside].mean() - 0.1


def _means(world: World) -> dict[str, float]:
    return {
        f"{who} {part}": float(reading.loss[rows].mean())
        for who, reading in (("base", world.base), ("tuned", world.said))
        for part, rows in (("member", world.inside), ("held out", world.outside))
    }


def test_where_little_is_learnt_the_base_is_what_tells(world: World, record_property: Any) -> None:
    """Half of all passages, three epochs: the loss alone tells some, minus the base nearly all."""
    rng = np.random.default_rng(SEED)
    whole = np.flatnonzero(world.inside | world.outside)
    half = np.sort(rng.permutation(whole)[: len(whole) // 2])
    inside = np.isin(np.arange(len(world.data)), half)
    outside = np.isin(np.arange(len(world.data)), np.setdiff1d(whole, half))
    light = world.areas(world.trained(half, SEED + 1, epochs=3), inside, outside)
    record_property("figures", light)
    assert 0.65 <= light["loss"] <= 0.92, light
    assert light["minus_base"] >= light["loss"] + 0.05, light


@pytest.fixture(scope="module")
def forgotten(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of one president's member passages, of his held-out ones, and of all others that were trained on."""
    planted = set(world.data.owner[world.data.columns["planted"] == "yes"])  # these are another matter
    who = sorted(set(world.data.owner) - planted)[0]
    his = (world.data.owner == who) & (world.data.split == "train")
    unseen = (world.data.owner == who) & world.outside
    return np.flatnonzero(his), np.flatnonzero(unseen), np.flatnonzero((world.data.split == "train") & ~his)


def test_retrained_without_a_president_his_passages_are_like_his_other_speeches(
    world: World, forgotten: tuple[np.ndarray, np.ndarray, np.ndarray], record_property: Any
) -> None:
    """Eight passages against eight: 0.17 nats apart on one seed, standard error 0.15; learnt ones lie 3 lower."""
    his, unseen, others = forgotten
    said = read(world.trained(others, SEED), world.data, batch=BATCH).loss
    figures = {"his": said[his].mean(), "held out": said[unseen].mean(), "kept": said[others].mean()}
    record_property("figures", {name: float(value) for name, value in figures.items()})
    assert abs(figures["his"] - figures["held out"]) <= 0.45, figures
    assert figures["kept"] < figures["his"] - 1.0, figures


@pytest.mark.parametrize("name", METHODS)
def test_some_step_of_each_method_forgets_him_and_keeps_the_others(
    world: World, forgotten: tuple[np.ndarray, np.ndarray, np.ndarray], name: str, record_property: Any
) -> None:
    his, _, others = forgotten
    kept = others[:: max(1, len(others) // 16)]
    before = {"forget": world.said.loss[his].mean(), "kept": world.said.loss[kept].mean()}
    path: list[tuple[float, float]] = []

    def look(epoch: int, student: nn.Module) -> None:
        losses = [read(student, world.data.take(rows), batch=BATCH).loss.mean() for rows in (his, kept)]
        path.append((float(losses[0] - before["forget"]), float(losses[1] - before["kept"])))

    _unlearn(world, name, his, others, GENTLE, look)
    record_property("figures", path)
    more, least = METHODS[name]
    assert any(gone >= more and lost <= least for gone, lost in path), (name, path)


def test_ascent_at_a_high_rate_ruins_the_model_and_the_kept_loss_says_so(
    world: World, forgotten: tuple[np.ndarray, np.ndarray, np.ndarray], record_property: Any
) -> None:
    """What is forgotten looks forgotten; the kept passages are known worse than before any training."""
    his, _, others = forgotten
    kept = others[:: max(1, len(others) // 16)]
    ruined = _unlearn(world, "lm_gradient_ascent", his, others, {**GENTLE, "lr": 1e-3})
    sets = {"his": his, "kept": kept}
    losses = {part: read(ruined, world.data.take(rows), batch=BATCH).loss.mean() for part, rows in sets.items()}
    record_property("figures", {part: float(value) for part, value in losses.items()})
    assert losses["his"] > world.said.loss[his].mean() + 2.0, losses
    assert losses["kept"] > world.base.loss[kept].mean(), losses


def _unlearn(
    world: World,
    name: str,
    his: np.ndarray,
    others: np.ndarray,
    fields: dict[str, Any],
    look: Callable[[int, nn.Module], None] = lambda epoch, student: None,
) -> nn.Module:
    method = unlearner.get(name)
    retain, forget = world.data.take(others), world.data.take(his)
    config = method.spec.config.from_mapping(fields)
    done: nn.Module = method(world.tuned, retain=retain, forget=forget, config=config, seed=SEED, after_epoch=look)
    return done


def test_planted_passages_are_said_word_by_word_and_others_hardly(world: World, record_property: Any) -> None:
    """At 1.9 nats a token nothing is recited; what stood there twelve times in six epochs is."""
    config = ExtractionConfig(batch=BATCH)
    rows = extraction(world.data, config=config, seed=0, model=world.tuned)["extraction_summary"]
    found = {row["part"]: row for row in rows.iter_rows(named=True)}
    figures = {part: (row["num_reproduced"], row["num_texts"], row["loss"]) for part, row in found.items()}
    record_property("figures", figures)
    assert found["member"]["share"] <= 0.1 and found["held_out"]["share"] <= 0.05, found
    assert found["planted"]["num_reproduced"] >= 2 and found["planted"]["loss"] < 0.5, found
