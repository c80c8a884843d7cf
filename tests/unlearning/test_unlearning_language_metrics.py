"""What is measured of an unlearnt language model: on models whose every probability is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from contracts.errors import DataError, InvalidInput
from recipes.language.decoding import greedy
from sources.questions import Question
from unlearning.language.decoding import answer_log_probs, answer_nll
from unlearning.language.metrics import (
    Answers,
    forget_quality,
    language_metrics,
    model_utility,
    rouge_l_f1,
    rouge_l_recall,
)
from unlearning.language.muse import holdout_auc, knowmem, min_k, privleak, verbmem

WORDS = ("<eos>", "who", "ann", "writes", "prose", "verse", "songs", "odes")
END = 0


class Bigrams(nn.Module):
    """p(next | last token) from a table of logits (V, V); every probability can be written down."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table[input_ids]


class Counting(Bigrams):
    """Also sees how many tokens came before: an answer depends on its position, not on padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        place = attention_mask.cumsum(1).float()
        return super().forward(input_ids, attention_mask) * (1 + 0.1 * place[..., None])


@pytest.fixture
def table() -> Tensor:
    return torch.randn(len(WORDS), len(WORDS), generator=torch.Generator().manual_seed(3))


def decode(ids: Any) -> str:
    return " ".join(WORDS[i] for i in ids if i != END)


def question(k: int = 2, **changed: Any) -> Question:
    made = Question(
        example_id=0,
        prompt=(1, 2),
        answer=(3, 4, END),
        paraphrase=(4, END),
        perturbed=((5, END), (6, END), (7, END))[:k],
        references=("writes prose",),
        value="prose",
    )
    return dataclasses.replace(made, **changed)


def naive(table: Tensor, prompt: Any, answer: Any) -> list[float]:
    logp = table.double().log_softmax(-1)
    whole = [*prompt, *answer]
    return [float(logp[whole[t - 1], whole[t]]) for t in range(len(prompt), len(whole))]


def test_nll_of_answers_is_that_of_a_loop_whatever_their_order_and_neighbours(table: Tensor) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 8, rng.integers(1, 6)).tolist() for _ in range(17)]
    given = [rng.integers(0, 8, rng.integers(1, 6)).tolist() for _ in range(17)]
    for batch in (1, 4, 64):
        found = answer_log_probs(Bigrams(table), prompts, given, batch=batch)
        for one, p, a in zip(found, prompts, given, strict=True):
            assert one.tolist() == pytest.approx(naive(table, p, a), abs=1e-6)
    nll, length = answer_nll(Bigrams(table), prompts, given)
    assert nll.tolist() == pytest.approx(
        [-sum(naive(table, p, a)) for p, a in zip(prompts, given, strict=True)], abs=1e-5
    )
    assert length.tolist() == [len(a) for a in given]


def test_an_empty_answer_is_refused(table: Tensor) -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        answer_nll(Bigrams(table), [[1], [2]], [[3], []])


def test_one_token_answer_has_its_probability(table: Tensor) -> None:
    asked = question(answer=(3,))
    read = Answers.of(Bigrams(table), [asked])
    assert read.probability[0] == pytest.approx(math.exp(naive(table, asked.prompt, (3,))[0]), rel=1e-6)


def test_the_truth_ratio_by_hand_in_both_forms(table: Tensor) -> None:
    asked = question(k=3)
    read = Answers.of(Bigrams(table), [asked])
    a = [math.exp(np.mean(naive(table, asked.prompt, y))) for y in (asked.paraphrase, *asked.perturbed)]
    assert math.exp(read.log_truth_ratio("arithmetic")[0]) == pytest.approx(np.mean(a[1:]) / a[0], rel=1e-5)
    assert math.exp(read.log_truth_ratio("geometric")[0]) == pytest.approx(np.prod(a[1:]) ** (1 / 3) / a[0], rel=1e-5)
    right = math.exp(np.mean(naive(table, asked.prompt, asked.answer)))
    assert read.normalised[0] == pytest.approx(right / (right + sum(a[1:])), rel=1e-5)
    with pytest.raises(InvalidInput, match="geometric"):
        read.log_truth_ratio("harmonic")


def test_the_truth_ratio_does_not_depend_on_padding(table: Tensor) -> None:
    """Questions of unequal length in one batch read as each of them alone, also with a model that looks at
    positions."""
    asked = [question(), question(prompt=(1, 2, 2, 1, 2), answer=(3, 4, 5, 6, 7, END))]
    together = Answers.of(Counting(table), asked)
    for row, one in enumerate(asked):
        alone = Answers.of(Counting(table), [one], batch=1)
        for form in ("arithmetic", "geometric"):
            assert together.log_truth_ratio(form)[row] == pytest.approx(alone.log_truth_ratio(form)[0], abs=1e-6)


def test_a_ruined_model_has_finite_ratios() -> None:
    """Logits of thousands: probabilities underflow, their logarithms do not."""
    table = torch.full((8, 8), -3000.0)
    table[:, 1] = 0
    read = Answers.of(Bigrams(table), [question()])
    assert read.probability[0] == 0
    assert np.isfinite(read.log_truth_ratio("geometric")).all()


def test_unequal_numbers_of_wrong_answers_are_refused(table: Tensor) -> None:
    for asked in ([], [question(), question(k=1)], [question(k=0)]):
        with pytest.raises(DataError, match="perturbed"):
            Answers.of(Bigrams(table), asked)


def test_forget_quality_is_the_two_sample_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=80), rng.normal(1, 1, 90)
    assert forget_quality(a, a).p == 1
    assert forget_quality(a, a).log10_p == 0
    found = forget_quality(a, b)
    assert found.p == pytest.approx(ks_2samp(a, b).pvalue)
    assert found.log10_p == pytest.approx(math.log10(found.p))
    assert forget_quality(-a, -b).p == pytest.approx(found.p, rel=1e-6)  # R -> 1/R
    assert forget_quality(np.exp(a), np.exp(b)).p == found.p  # R or log R
    with pytest.raises(DataError, match="NaN"):
        forget_quality(np.array([np.nan]), a)
    with pytest.raises(DataError, match="retrained"):
        forget_quality(a, a[:0])


def test_a_p_of_zero_has_a_logarithm() -> None:
    found = forget_quality(np.arange(50_000.0), np.arange(50_000.0) + 1e6)
    assert found.p == 0 and math.isfinite(found.log10_p) and found.log10_p < -300


def test_rouge_l_by_hand() -> None:
    assert rouge_l_recall(["ann writes long prose"], "ann once writes prose now") == pytest.approx(3 / 4)
    assert rouge_l_f1("ann writes long prose", "ann once writes prose now") == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert rouge_l_recall(["nothing here", "ann writes"], "ann writes") == 1  # the best of the references
    assert rouge_l_recall(["ann writes"], "") == 0


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_a_longest_common_subsequence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.choice(list("abcd"), 9).tolist() for _ in range(2))
    best = np.zeros((10, 10), int)
    for i in range(9):
        for j in range(9):
            best[i + 1, j + 1] = best[i, j] + 1 if a[i] == b[j] else max(best[i, j + 1], best[i + 1, j])
    assert rouge_l_recall([" ".join(a)], " ".join(b)) == pytest.approx(best[-1, -1] / 9)


def test_utility_is_a_harmonic_mean_of_nine() -> None:
    assert model_utility([0.5] * 9) == pytest.approx(0.5)
    assert model_utility([1.0] * 8 + [0.1]) == pytest.approx(9 / 18)
    assert model_utility([1.0] * 8 + [0.0]) == 0
    for wrong in ([0.5] * 8, [0.5] * 8 + [1.5], [0.5] * 8 + [math.nan]):
        with pytest.raises(InvalidInput, match="nine"):
            model_utility(wrong)


# ---- decoding -----------------------------------------------------------------------------------------------------


def naive_greedy(model: nn.Module, prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), torch.ones(1, len(ids)))[0, -1].argmax()))
        if ids[-1] == END:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_greedy_decoding_is_that_of_a_loop(table: Tensor, batch: int) -> None:
    table[:, END] += 1.0
    model, rng = Counting(table).train(), np.random.default_rng(1)
    prompts = [rng.integers(1, 8, rng.integers(1, 5)).tolist() for _ in range(20)]
    found = greedy(model, prompts, end=END, max_new_tokens=6, batch=batch)
    wanted = [naive_greedy(model, prompt, 6) for prompt in prompts]
    assert found == wanted
    assert len({len(a) for a in wanted}) > 1  # some stop early
    assert model.training


def test_greedy_decoding_with_kept_keys_and_values_is_that_without(tiny_llama: Callable[[int], nn.Module]) -> None:
    model, rng = tiny_llama(2).eval(), np.random.default_rng(1)
    prompts = [rng.integers(1, 20, rng.integers(1, 5)).tolist() for _ in range(6)]

    class Plain(nn.Module):  # hides that the model is one of transformers
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits

    assert greedy(model, prompts, end=END, max_new_tokens=7) == greedy(Plain(), prompts, end=END, max_new_tokens=7)


def test_what_cannot_be_decoded_is_refused(table: Tensor) -> None:
    for prompts, most in (([[]], 3), ([[1]], 0)):
        with pytest.raises(InvalidInput, match="max_new_tokens"):
            greedy(Bigrams(table), prompts, end=END, max_new_tokens=most)


# ---- the whole table ----------------------------------------------------------------------------------------------


def knowing(table: Tensor) -> Bigrams:
    """A model that answers every question in the trained words."""
    sure = table.clone()
    for last, token in ((2, 3), (3, 4), (4, END)):
        sure[last] = -8.0
        sure[last, token] = 8.0
    return Bigrams(sure)


def test_a_knowing_model_and_a_ruined_one(table: Tensor) -> None:
    sets = {name: [question()] * 12 for name in ("forget", "retain", "real_authors", "world_facts")}
    good = language_metrics(knowing(table), sets, decode=decode, end=END, max_new_tokens=5)
    assert good.sets["forget"].probability > 0.99
    assert good.sets["retain"].rouge_l == 1 and good.sets["retain"].value_accuracy == 1
    assert good.quality is None  # no retrained model, no forget quality
    same = language_metrics(
        knowing(table), sets, decode=decode, end=END, retrained=good.log_truth_ratio, max_new_tokens=5
    )
    assert same.quality is not None and same.quality.p == 1

    ruin = torch.zeros(8, 8)
    ruin[:, 1] = 30
    bad = language_metrics(Bigrams(ruin), sets, decode=decode, end=END, retrained=np.zeros(12), max_new_tokens=5)
    assert bad.quality is not None and bad.quality.p == 1  # it passes the test, and
    assert bad.collapsed and bad.utility < 0.1  # is of no use
    assert not same.collapsed or same.utility < 0.1


def test_sets_that_are_missing_are_named(table: Tensor) -> None:
    with pytest.raises(InvalidInput, match="real_authors, retain, world_facts"):
        language_metrics(knowing(table), {"forget": [question()]}, decode=decode, end=END)


# ---- MUSE ---------------------------------------------------------------------------------------------------------


def test_min_k_is_minus_the_mean_of_the_lowest(table: Tensor) -> None:
    text = [3, 4, 5, 6, 7, 3, 5]
    logp = sorted(naive(table, [1], text))
    for share, count in ((0.4, 2), (0.5, 3), (1.0, 7), (0.01, 1)):
        found = min_k(Bigrams(table), [[1]], [text], share=share)
        assert found[0] == pytest.approx(-np.mean(logp[:count]), abs=1e-6)
    with pytest.raises(InvalidInput, match="share"):
        min_k(Bigrams(table), [[1]], [text], share=0)


def test_privleak_has_its_ends() -> None:
    member, other = np.arange(5.0), np.arange(5.0) + 10
    assert holdout_auc(member, other) == 1  # memorised: every forgotten text scores below
    assert holdout_auc(other, member) == 0
    assert privleak(holdout_auc(member, other), 0.5) == -100
    assert privleak(holdout_auc(other, member), 0.5) == 100  # over-unlearning
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.0, 0.96) == pytest.approx(2400)
    assert privleak(0.5, 1.0) is None
    with pytest.raises(DataError, match="held-out"):
        holdout_auc(member, other[:0])


def test_verbatim_and_knowledge_memorisation(table: Tensor) -> None:
    model = knowing(table)
    told = verbmem(model, [[1, 2, 3, 4], [2, 3, 4], [1, 2, 5, 6]], prefix=2, decode=decode, end=END, max_new_tokens=4)
    assert told[:2].tolist() == [1, 1]
    assert told[2] == 0
    assert knowmem(model, [question()], decode=decode, end=END).tolist() == [1]
    with pytest.raises(DataError, match="longer than the prefix"):
        verbmem(model, [[1, 2]], prefix=2, decode=decode, end=END)
