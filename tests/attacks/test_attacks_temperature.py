"""A temperature on the audited model's logits changes no attack on its tokens: by definition, and against the cheat."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from language_data import VOCAB, build, make_texts
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from torch import nn

from attacks.membership import Evidence
from attacks.membership.temperature import inverse_temperature
from attacks.membership.tokens import TokenReadings, zlib_bytes
from contracts.errors import DataError, InvalidInput, NotApplicable
from contracts.methods import attack
from recipes.ensemble import ReferenceEnsemble
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from recipes.predict import read, read_tokens, token_logits
from sources.example_set import ExampleSet
from sources.loading import load
from stats import auc

FIT = TokenTrainingConfig(lr=0.02, epochs=25, batch=8)
TOKENS = ("zlib_ratio", "min_k", "min_k_plus_plus")
CHEATS = (0.05, 0.5, 3.0, 40.0)


class Tempered(nn.Module):
    """What the cheat does: the same model, its logits divided by a temperature, and moved where nothing shows."""

    def __init__(self, model: nn.Module, temperature: float, moved: float = 0.0) -> None:
        super().__init__()
        self.model, self.temperature, self.moved = copy.deepcopy(model), temperature, moved

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        place = torch.arange(input_ids.shape[1])[None, :, None]
        return self.model(input_ids, attention_mask) / self.temperature + self.moved * place


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_texts(120)


@pytest.fixture(scope="module")
def model(data: ExampleSet) -> nn.Module:
    return causal_lm(build, data.part("train"), config=FIT, seed=0)


def population(data: ExampleSet) -> ExampleSet:
    return data.take(np.flatnonzero(data.split == "test")[::2])


def scores(model: nn.Module, data: ExampleSet, name: str, *, taken_out: bool = True) -> np.ndarray:
    factor = inverse_temperature(*token_logits(model, population(data))) if taken_out else 1.0
    told = TokenReadings(target=read_tokens(model, data, factor=factor)[None], zlib_bytes=zlib_bytes(data))
    base = read(build(5), data).values
    evidence = Evidence(example_id=data.example_id, target=read(model, data).values[None], tokens=told, base=base)
    method = attack.get(name)
    return np.asarray(method(evidence, config=method.spec.config(), seed=0)[0])


@pytest.mark.parametrize("name", TOKENS)
def test_no_temperature_changes_a_score(data: ExampleSet, model: nn.Module, name: str) -> None:
    """Nor does what is added to all logits of a position. With the temperature left in, texts change their order."""
    inside = data.split == "train"
    plain, raw = scores(model, data, name), scores(model, data, name, taken_out=False)
    assert auc(plain[inside], plain[~inside]) > 0.8
    moved = []
    for cheat in CHEATS:
        for shift in (0.0, 7.0):
            found = scores(Tempered(model, cheat, shift), data, name)
            np.testing.assert_allclose(found, plain, rtol=5e-3, atol=5e-4)
            np.testing.assert_allclose(
                auc(found[inside], found[~inside]), auc(plain[inside], plain[~inside]), atol=2e-3
            )
        cheated = scores(Tempered(model, cheat), data, name, taken_out=False)
        moved.append(1 - spearmanr(cheated, raw).statistic)
    assert max(moved) > 5e-3, moved


def test_minus_base_is_on_the_references_scale_and_hides_nobody_by_a_temperature(
    data: ExampleSet, model: nn.Module
) -> None:
    """Of an undertrained model, whose losses alone tell little. Tokens: no score moves. Losses on the references'
    scale: areas move less than a third of what they do as they are said."""
    pool = ~np.isin(np.arange(len(data)), np.flatnonzero(data.split == "test")[::2])
    rng, short = np.random.default_rng(3), dataclasses.replace(FIT, epochs=8)
    keep = np.zeros((4, len(data)), bool)
    keep[:, pool] = (rng.random((4, pool.sum())).argsort(axis=0) < 2).astype(bool)
    references = [causal_lm(build, data.take(np.flatnonzero(own)), config=short, seed=m) for m, own in enumerate(keep)]
    ensemble = ReferenceEnsemble(
        example_id=data.example_id,
        pool=pool,
        labels=np.zeros(len(data), np.int64),
        keep=keep,
        reading=np.stack([read(one, data).values for one in references]),
        config_digest="0",
    )
    audited, base = causal_lm(build, data.part("train"), config=short, seed=9), read(build(5), data).values[pool]
    inside = data.split[pool] == "train"

    def area(said: nn.Module, *, calibrated: bool) -> float:
        reading = read(said, data).values[None]
        found = Evidence.of_ensemble(ensemble, reading, task=data.task, calibrated=calibrated)
        found = dataclasses.replace(found, base=base)
        score = attack.get("minus_base")(found, config=attack.get("minus_base").spec.config(), seed=0)[0]
        return float(auc(score[inside], score[~inside]))

    moved = {
        calibrated: max(
            abs(area(Tempered(audited, cheat), calibrated=calibrated) - area(audited, calibrated=calibrated))
            for cheat in (0.25, 4.0, 8.0)
        )
        for calibrated in (True, False)
    }
    assert moved[True] < moved[False] / 3, moved
    plain = scores(audited, data, "minus_base")
    for cheat in CHEATS:
        np.testing.assert_allclose(scores(Tempered(audited, cheat), data, "minus_base"), plain, rtol=1e-3, atol=5e-4)


def test_it_is_the_minimum_of_the_loss_on_the_population(data: ExampleSet, model: nn.Module) -> None:
    logits, tokens = token_logits(model, population(data))

    def loss(log_beta: float) -> float:
        z = math.exp(log_beta) * logits.astype(np.float64)
        return float(
            np.mean([math.log(sum(math.exp(v) for v in row)) - row[x] for row, x in zip(z, tokens, strict=True)])
        )

    best = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-8}).x
    assert inverse_temperature(logits, tokens) == pytest.approx(math.exp(best), rel=1e-4)


def test_sampled_from_itself_a_model_is_at_its_own_temperature() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (20_000, 12))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    tokens = (p.cumsum(axis=1) > rng.random((len(z), 1))).argmax(axis=1)
    assert inverse_temperature(z, tokens) == pytest.approx(1.0, abs=0.03)


def test_what_has_no_temperature_is_left_as_it_is() -> None:
    tokens, z = np.arange(6) % 3, np.random.default_rng(0).normal(size=(6, 3))
    assert inverse_temperature(np.full((6, 3), 2.0), tokens) == 1.0  # one value everywhere
    right = np.eye(3)[tokens]
    assert inverse_temperature(right, tokens) == 1.0  # every token found without fail: no beta is large enough
    assert inverse_temperature(-right, tokens) == 1.0  # worse than a uniform choice at any beta
    broken = z.copy()
    broken[2, 1] = np.nan
    for logits, asked in ((z[0], tokens), (z, tokens[:5]), (z[:0], tokens[:0]), (broken, tokens)):
        with pytest.raises(InvalidInput):
            inverse_temperature(logits, asked)


def test_logits_of_tokens_are_every_kth_counted_one(data: ExampleSet, model: nn.Module) -> None:
    logits, tokens = token_logits(model, data, batch=7)
    said = read_tokens(model, data)
    counted = ~np.isnan(said[:, :, 0])
    assert logits.shape == (counted.sum(), VOCAB)
    own = logits.astype(np.float64)
    log_p = own[np.arange(len(own)), tokens] - np.log(np.exp(own).sum(axis=1))
    np.testing.assert_allclose(log_p, said[:, :, 0][counted], rtol=1e-4, atol=1e-5)
    few, of = token_logits(model, data, most=VOCAB * 20, batch=5)
    apart = math.ceil(counted.sum() / 20)
    np.testing.assert_allclose(few, logits[::apart], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of, tokens[::apart])
    assert len(few) <= 20
    with pytest.raises(DataError, match="no token"):
        token_logits(model, data.take(np.arange(0)))
    with pytest.raises(NotApplicable, match="tokens"):
        token_logits(model, load("sklearn", {"dataset": "wine"}, seed=0))
