"""Attacks on single tokens against loops over their definitions, and on models that learnt some texts by heart."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
import pytest
import torch
from language_data import VOCAB, build, make_texts

from attacks.membership import Evidence
from attacks.membership.min_k import MinKConfig
from attacks.membership.tokens import TokenReadings, zlib_bytes
from contracts.errors import DataError, NotApplicable
from contracts.methods import attack
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from recipes.predict import read, read_tokens
from sources.example_set import ExampleSet
from stats import auc
from tasks import signals

TOKENS = ("zlib_ratio", "min_k", "min_k_plus_plus")
FIT = TokenTrainingConfig(lr=0.02, epochs=60, batch=8)


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_texts(48)


@pytest.fixture(scope="module")
def model(data: ExampleSet) -> torch.nn.Module:
    return causal_lm(build, data.part("train"), config=FIT, seed=0)


def evidence_of(data: ExampleSet, *models: torch.nn.Module, base: torch.nn.Module | None = None) -> Evidence:
    return Evidence(
        example_id=data.example_id,
        target=np.stack([read(m, data).values for m in models]),
        tokens=TokenReadings(target=np.stack([read_tokens(m, data) for m in models]), zlib_bytes=zlib_bytes(data)),
        base=read(base or build(7), data).values,
    )


def scores_of(name: str, evidence: Evidence, **config: float) -> np.ndarray:
    method = attack.get(name)
    return method(evidence, config=method.spec.config(**config), seed=0)


def log_probs(model: torch.nn.Module, data: ExampleSet, row: int) -> list[tuple[float, list[float]]]:
    """Of each counted token its log-probability and those of every word in its place, one sequence alone, by hand."""
    ids, marks, _ = data.x.texts(np.array([row]))
    with torch.no_grad():
        whole = torch.from_numpy(ids.astype(np.int64))[None]
        logits = model(input_ids=whole, attention_mask=torch.ones_like(whole))[0].double().numpy()
    found = []
    for t in range(1, len(ids)):
        if marks[t]:
            z = logits[t - 1]
            total = math.log(sum(math.exp(v - max(z)) for v in z)) + max(z)
            found.append((z[ids[t]] - total, [v - total for v in z]))
    return found


def test_token_readings_are_those_of_one_sequence_alone(data: ExampleSet, model: torch.nn.Module) -> None:
    read_ = read_tokens(model, data, batch=5)
    assert read_.dtype == np.float32 and read_.shape == (len(data), data.x.shape[1], 3)
    for row in range(len(data)):
        _, marks, _ = data.x.texts(np.array([row]))
        where = np.flatnonzero(marks[1:]) + 1
        others = np.setdiff1d(np.arange(read_.shape[1]), where)
        assert np.isnan(read_[row, others]).all()
        for at, (own, every) in zip(where, log_probs(model, data, row), strict=True):
            mean = sum(math.exp(v) * v for v in every)
            spread = math.sqrt(sum(math.exp(v) * (v - mean) ** 2 for v in every))
            np.testing.assert_allclose(read_[row, at], [own, mean, spread], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.nanmean(read_[:, :, 0], axis=1), -read(model, data).loss, rtol=1e-5)
    np.testing.assert_array_equal(read_tokens(model, data, batch=64), read_tokens(model, data, batch=64))


def test_token_statistics_of_certain_and_of_flat_answers() -> None:
    sure = np.array([[0.0, 1e4, 0.0]])
    assert signals.token_statistics(sure, np.array([1])).tolist() == [[0.0, 0.0, 0.0]]
    assert signals.token_statistics(sure, np.array([0]))[0, 0] == -1e4
    flat = signals.token_statistics(np.full((100, 5), 3.0), np.arange(100) % 5)
    np.testing.assert_allclose(flat, [[-math.log(5), -math.log(5), 0.0]] * 100, atol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("name", ["min_k", "min_k_plus_plus"])
def test_the_lowest_tokens_are_those_of_a_loop(
    data: ExampleSet, model: torch.nn.Module, name: str, share: float
) -> None:
    evidence = evidence_of(data, model, build(3))
    found = scores_of(name, evidence, share=share)
    for t, audited in enumerate((model, build(3).eval())):
        for row in range(len(data)):
            values = []
            for own, every in log_probs(audited, data, row):
                mean = sum(math.exp(v) * v for v in every)
                spread = math.sqrt(sum(math.exp(v) * (v - mean) ** 2 for v in every))
                values.append(own if name == "min_k" else (own - mean) / max(spread, 1e-6))
            taken = sorted(values)[: max(1, int(share * len(values)))]
            assert found[t, row] == pytest.approx(sum(taken) / len(taken), rel=2e-3, abs=2e-3)
    if name == "min_k" and share == 1.0:
        np.testing.assert_allclose(found, -evidence.target_loss, rtol=1e-5)


def test_zlib_is_of_the_characters_where_the_data_brings_them_and_of_the_tokens_else(
    data: ExampleSet, model: torch.nn.Module
) -> None:
    flat = [data.x.texts(np.array([row]))[0] for row in range(len(data))]
    packed = np.array([len(zlib.compress(ids.astype("<u2").tobytes())) for ids in flat])
    np.testing.assert_array_equal(zlib_bytes(data), packed)
    known = dataclasses.replace(data, columns={"zlib_bytes": np.arange(1, len(data) + 1)})
    np.testing.assert_array_equal(zlib_bytes(known), np.arange(1, len(data) + 1))
    wide = dataclasses.replace(data, x=dataclasses.replace(data.x, vocab_size=70_000))
    np.testing.assert_array_equal(zlib_bytes(wide), [len(zlib.compress(ids.astype("<u4").tobytes())) for ids in flat])
    with pytest.raises(DataError, match="zlib_bytes"):
        zlib_bytes(dataclasses.replace(data, columns={"zlib_bytes": np.zeros(len(data), np.int64)}))
    evidence = evidence_of(data, model)
    np.testing.assert_allclose(scores_of("zlib_ratio", evidence)[0], -read(model, data).loss / packed, rtol=1e-5)


def test_minus_base_is_the_fall_of_the_loss_and_of_a_flat_base_it_is_loss(
    data: ExampleSet, model: torch.nn.Module
) -> None:
    base = build(7)
    evidence = evidence_of(data, model, base=base)
    np.testing.assert_allclose(
        scores_of("minus_base", evidence)[0], read(base, data).loss - read(model, data).loss, rtol=1e-5, atol=1e-6
    )
    alone = dataclasses.replace(evidence, tokens=None)
    np.testing.assert_allclose(
        scores_of("minus_base", alone)[0], read(base, data).loss - read(model, data).loss, rtol=1e-12
    )
    flat = np.tile([math.log(VOCAB), 0.0, -math.log(VOCAB), 0.0], (len(data), 1))
    levelled = dataclasses.replace(alone, base=flat)
    order = np.argsort(scores_of("minus_base", levelled)[0])
    np.testing.assert_array_equal(order, np.argsort(scores_of("loss", levelled)[0]))


@pytest.mark.parametrize("name", [*TOKENS, "minus_base"])
def test_texts_learnt_by_heart_are_found_and_none_in_a_model_that_saw_none(
    data: ExampleSet, model: torch.nn.Module, name: str
) -> None:
    inside = data.split == "train"
    known, nobody = scores_of(name, evidence_of(data, model, build(1)))
    assert auc(known[inside], known[~inside]) > 0.85
    assert abs(auc(nobody[inside], nobody[~inside]) - 0.5) < 0.25


def test_min_k_plus_plus_sees_a_mode_that_the_plain_score_does_not() -> None:
    """Two texts with the same log-probability: one token is the likeliest word of a flat distribution, the other an
    unlikely word of a peaked one."""
    mode = np.log([[0.28, 0.24, 0.24, 0.24]])
    tail = np.log([[0.28, 0.72 - 2e-3, 1e-3, 1e-3]])
    told = np.full((1, 2, 2, 3), np.nan, np.float32)
    told[0, 0, 1], told[0, 1, 1] = (signals.token_statistics(z, np.array([0]))[0] for z in (mode, tail))
    target = np.zeros((1, 2, 4))
    evidence = Evidence(
        example_id=np.arange(2),
        target=target,
        tokens=TokenReadings(target=told, zlib_bytes=np.ones(2, np.int64)),
    )
    plain, standard = scores_of("min_k", evidence)[0], scores_of("min_k_plus_plus", evidence)[0]
    assert plain[0] == pytest.approx(plain[1]) and standard[0] > 0 > standard[1]


def test_what_was_not_read_is_refused_and_so_are_readings_of_something_else(
    data: ExampleSet, model: torch.nn.Module
) -> None:
    evidence = evidence_of(data, model)
    bare = dataclasses.replace(evidence, tokens=None, base=None)
    for name in TOKENS:
        with pytest.raises(NotApplicable, match="single tokens"):
            scores_of(name, bare)
    with pytest.raises(NotApplicable, match="before its training"):
        scores_of("minus_base", bare)
    tokens = evidence.tokens
    assert tokens is not None
    lost = tokens.target.copy()
    lost[:, 4] = np.nan
    for wrong, what in (
        ({"target": tokens.target[:, 1:]}, "tokens: target is"),
        ({"zlib_bytes": tokens.zlib_bytes[1:]}, "zlib_bytes"),
        ({"target": lost}, f"no token counts.*{data.example_id[4]}"),
        ({"target": np.where(np.arange(3) == 1, np.nan, tokens.target).astype(np.float32)}, "different tokens"),
    ):
        with pytest.raises(DataError, match=what):
            dataclasses.replace(evidence, tokens=dataclasses.replace(tokens, **wrong))
    with pytest.raises(DataError, match="base"):
        dataclasses.replace(evidence, base=np.full((len(data), 4), np.nan))
    with pytest.raises(Exception, match="share"):
        MinKConfig.from_mapping({"share": 0.0})


def test_tokens_are_of_texts_alone() -> None:
    from palimpsest.testing.worlds import class_examples

    examples = class_examples(30)
    with pytest.raises(NotApplicable, match="sequence of tokens"):
        read_tokens(torch.nn.Linear(5, 3), examples)
    with pytest.raises(NotApplicable, match="sequence of tokens"):
        zlib_bytes(examples)
