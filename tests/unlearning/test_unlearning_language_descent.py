"""The unlearners of language models: what each promises, and each against a plain loop of its equation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from language_data import END, TEMPLATES, build, flat, make_texts
from torch import Tensor, nn

from contracts.errors import DataError, Diverged, NotApplicable
from contracts.methods import unlearner
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens
from tasks.base import answers
from unlearning.language.descent import Descent, LanguageDescentConfig, Step, learning_rates
from unlearning.language.flat import flat_loss, mean_token_probability
from unlearning.language.losses import sequence_nll, token_mean_nll
from unlearning.language.sequences import Sequences, padded, template_answers

METHODS = ("flat", "lm_gradient_ascent", "grad_diff", "kl_min", "preference_optimization", "npo", "dpo", "simnpo")
TEACHING = ("flat", "preference_optimization", "dpo")
KEEPING = ("grad_diff", "kl_min", "preference_optimization", "simnpo")  # as they are by default


@dataclasses.dataclass(frozen=True)
class World:
    model: nn.Module
    retain: ExampleSet
    forget: ExampleSet

    def run(self, name: str, *, seed: int = 0, model: nn.Module | None = None, **fields: Any) -> nn.Module:
        method = unlearner.get(name)
        given = {"lr": 0.01, "epochs": 3, "batch": 4, "schedule": "constant", "warmup_epochs": 0.0, **fields}
        sets = {k: given.pop(k, getattr(self, k)) for k in ("retain", "forget")}
        extra = {k: given.pop(k) for k in ("after_epoch", "progress") if k in given}
        config = method.spec.config.from_mapping(given)
        return method(model or self.model, **sets, config=config, seed=seed, **extra)


@pytest.fixture(scope="module")
def texts() -> World:
    data = make_texts()
    train = data.part("train")
    model = causal_lm(build, train, config=TokenTrainingConfig(lr=0.02, epochs=60, batch=6), seed=0)
    ids = np.sort(train.example_id)
    return World(model, retain=train.subset(ids[6:]), forget=train.subset(ids[:6]))


def loss(model: nn.Module, data: ExampleSet) -> float:
    sequences = Sequences(data, device="cpu", who="test")
    batch = sequences.batch(torch.arange(len(sequences)))
    with torch.no_grad():
        return float(data.task.losses(model, batch).mean())


def test_the_world_is_memorised(texts: World) -> None:
    assert loss(texts.model, texts.forget) < 0.1 and loss(texts.model, texts.retain) < 0.1


@pytest.mark.parametrize("name", METHODS)
def test_what_is_to_be_forgotten_gets_less_likely(texts: World, name: str) -> None:
    assert loss(texts.run(name, epochs=8), texts.forget) > loss(texts.model, texts.forget) + 0.3


@pytest.mark.parametrize("name", KEEPING)
def test_methods_that_train_on_retained_examples_keep_them_better_than_ascent(texts: World, name: str) -> None:
    gone = texts.run("lm_gradient_ascent", epochs=12)
    assert loss(texts.run(name, epochs=12), texts.retain) < loss(gone, texts.retain)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_and_the_global_generators_are_left_alone(
    texts: World, name: str, rng_left_alone: Callable[[], AbstractContextManager[None]]
) -> None:
    before = {n: t.clone() for n, t in texts.model.state_dict().items()}
    texts.model.train()
    with rng_left_alone():
        changed = texts.run(name)
    assert texts.model.training
    texts.model.eval()
    assert all(torch.equal(before[n], t) for n, t in texts.model.state_dict().items())
    assert not changed.training and all(p.requires_grad for p in changed.parameters())
    assert not torch.equal(flat(changed), flat(texts.model))


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_bits_whatever_the_order_of_the_rows(texts: World, name: str) -> None:
    first = flat(texts.run(name))
    shuffled = {
        k: getattr(texts, k).take(np.random.default_rng(1).permutation(len(getattr(texts, k))))
        for k in ("retain", "forget")
    }
    torch.manual_seed(99)
    assert torch.equal(first, flat(texts.run(name, **shuffled)))
    assert not torch.equal(first, flat(texts.run(name, seed=1)))


@pytest.mark.parametrize("name", METHODS)
def test_no_epoch_and_no_example_change_nothing(texts: World, name: str) -> None:
    assert torch.equal(flat(texts.run(name, epochs=0)), flat(texts.model))
    empty = texts.forget.take(np.empty(0, np.int64))
    assert torch.equal(flat(texts.run(name, forget=empty)), flat(texts.model))


@pytest.mark.parametrize("name", ["flat", "lm_gradient_ascent", "npo"])
def test_forget_only_methods_do_not_read_a_retained_example(texts: World, name: str) -> None:
    everything, some = texts.retain, texts.retain.take(np.array([2, 0]))
    assert torch.equal(flat(texts.run(name)), flat(texts.run(name, retain=some)))
    assert torch.equal(flat(texts.run(name)), flat(texts.run(name, retain=everything.take(np.empty(0, np.int64)))))


@pytest.mark.parametrize("name", ["grad_diff", "kl_min", "preference_optimization"])
def test_methods_that_need_retained_examples_say_so(texts: World, name: str) -> None:
    with pytest.raises(DataError, match="retain set is empty"):
        texts.run(name, retain=texts.retain.take(np.empty(0, np.int64)))


@pytest.mark.parametrize("name", ["npo", "dpo", "simnpo"])
def test_retain_terms_read_retained_examples(texts: World, name: str) -> None:
    found = {term: loss(texts.run(name, retain_term=term, epochs=14), texts.retain) for term in ("none", "gd", "kl")}
    assert max(found["gd"], found["kl"]) < found["none"]
    assert found["gd"] != found["kl"]


# ---- against plain loops ------------------------------------------------------------------------------------------


def one_step(world: World, objective: Callable[[nn.Module], Tensor]) -> Tensor:
    """One step of AdamW on the whole forget set, written out."""
    student = copy.deepcopy(world.model)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)
    objective(student).backward()
    optimizer.step()
    return flat(student)


ONE = {"lr": 3e-3, "epochs": 1, "batch": 64, "grad_clip": None}


def all_of(data: ExampleSet) -> Any:
    sequences = Sequences(data, device="cpu", who="test")
    return sequences.batch(torch.arange(len(sequences)))


def test_one_step_of_flat_is_that_of_its_equation(texts: World) -> None:
    batch = all_of(texts.forget)
    prompts = Sequences(texts.forget, device="cpu", who="test").prompts
    taught = padded(prompts, [[17, 18, END]] * len(prompts))

    def objective(student: nn.Module) -> Tensor:
        total = torch.zeros(())
        for made, sign in ((taught, -1), (batch, 1)):
            for ids, labels in zip(made.inputs["input_ids"], made.targets, strict=True):
                p = student(ids[None], None)[0].softmax(-1)
                terms = [p[t - 1, labels[t]] for t in range(1, len(ids)) if labels[t] != -100]
                total = total + sign * torch.tanh(sum(terms) / len(terms)) / 2
        return total / len(prompts)

    found = flat(texts.run("flat", templates=((17, 18, END),), **ONE))
    torch.testing.assert_close(found, one_step(texts, objective), rtol=1e-4, atol=2e-5)


def test_one_step_of_gradient_ascent_and_of_npo_in_their_equations(texts: World) -> None:
    batch = all_of(texts.forget)
    ascent = one_step(texts, lambda s: -token_mean_nll(answers(s, batch), batch.targets))
    torch.testing.assert_close(flat(texts.run("lm_gradient_ascent", **ONE)), ascent, rtol=1e-4, atol=2e-5)

    with torch.no_grad():
        old = sequence_nll(answers(texts.model, batch), batch.targets)[0]

    def npo(student: nn.Module) -> Tensor:
        ratio = torch.exp(-(sequence_nll(answers(student, batch), batch.targets)[0] - old))  # pi / pi_ref
        return (2 / 0.1) * torch.log1p(ratio**0.1).mean()

    torch.testing.assert_close(flat(texts.run("npo", **ONE)), one_step(texts, npo), rtol=1e-4, atol=2e-5)


def test_the_reference_is_the_model_before_unlearning(texts: World) -> None:
    """At the first step NPO and DPO weigh every example by sigmoid(0) = 1/2: their direction is that of the summed
    NLL."""
    batch = all_of(texts.forget)
    summed = one_step(texts, lambda s: -sequence_nll(answers(s, batch), batch.targets)[0].mean())
    torch.testing.assert_close(flat(texts.run("npo", beta=5.0, **ONE)), summed, rtol=1e-4, atol=5e-5)


def test_the_official_reduction_gives_another_model(texts: World) -> None:
    assert not torch.equal(flat(texts.run("flat")), flat(texts.run("flat", reduction="official")))


def test_templates_are_drawn_for_each_example_and_epoch(texts: World) -> None:
    seen: list[list[int]] = []

    def objective(student: nn.Module, step: Step) -> Tensor:
        ends = [[t for t in labels.tolist() if t != -100] for labels in step.template.targets]
        starts = [int((labels != -100).int().argmax()) for labels in step.template.targets]
        for row, start in zip(range(len(step.rows)), starts, strict=True):
            mine = step.forget.inputs["input_ids"][row, :start]
            assert torch.equal(step.template.inputs["input_ids"][row, :start], mine)  # the same prompt
        seen.append([TEMPLATES.index(end) for end in ends])
        return token_mean_nll(answers(student, step.forget), step.forget.targets)

    config = LanguageDescentConfig(epochs=20, batch=8)
    Descent(
        name="t",
        model=texts.model,
        forget=texts.forget,
        retain=texts.retain,
        config=config,
        seed=0,
        templates=TEMPLATES,
    ).run(objective)
    drawn = np.array(seen)
    assert drawn.shape == (20, 6)
    assert 0.3 < drawn.mean() < 0.7 and len({tuple(row) for row in seen}) > 5


def test_a_batch_is_indexed_once(texts: World) -> None:
    """Ids, mask and labels of retained examples belong together: each pair is an example of the set."""
    known = all_of(texts.retain)
    whole = {
        (tuple(i[m.bool()].tolist()), tuple(t[t != -100].tolist()))
        for i, m, t in zip(known.inputs["input_ids"], known.inputs["attention_mask"], known.targets, strict=True)
    }
    drawn = []

    def objective(student: nn.Module, step: Step) -> Tensor:
        kept = step.retain
        for i, m, t in zip(kept.inputs["input_ids"], kept.inputs["attention_mask"], kept.targets, strict=True):
            drawn.append((tuple(i[m.bool()].tolist()), tuple(t[t != -100].tolist())))
        return token_mean_nll(answers(student, kept), kept.targets)

    config = LanguageDescentConfig(epochs=10, batch=4)
    Descent(
        name="t", model=texts.model, forget=texts.forget, retain=texts.retain, config=config, seed=0, uses_retain=True
    ).run(objective)
    assert len(drawn) == 60 and set(drawn) <= whole and len(set(drawn)) > 8


def test_a_mean_of_probabilities_is_what_is_minimised(texts: World) -> None:
    """After FLAT the templates are likelier and the answers less likely than before, in the very numbers of its
    loss."""
    prompts = Sequences(texts.forget, device="cpu", who="test").prompts
    taught, batch = padded(prompts, [TEMPLATES[0]] * len(prompts)), all_of(texts.forget)

    def numbers(model: nn.Module) -> tuple[float, float, float]:
        with torch.no_grad():
            p_e, p_f = (mean_token_probability(answers(model, b), b.targets) for b in (taught, batch))
            return float(p_e.mean()), float(p_f.mean()), float(flat_loss(p_e, p_f))

    before, after = numbers(texts.model), numbers(texts.run("flat", epochs=10, templates=(tuple(TEMPLATES[0]),)))
    assert after[0] > before[0] + 0.15 and after[1] < before[1] - 0.2 and after[2] < before[2] - 0.2


# ---- configuration, callbacks, refusals ---------------------------------------------------------------------------


def test_rates() -> None:
    def config(**fields: Any) -> LanguageDescentConfig:
        return LanguageDescentConfig(lr=1.0, **fields)

    assert learning_rates(config(epochs=2, warmup_epochs=0.0, schedule="constant"), steps=3) == [1.0] * 6
    assert learning_rates(config(epochs=2, warmup_epochs=0.0), steps=2) == [1.0, 0.75, 0.5, 0.25]
    assert learning_rates(config(epochs=1, warmup_epochs=4.0), steps=4) == [0.25, 0.5, 0.75, 1.0]
    assert learning_rates(config(epochs=0), steps=4) == []


def test_callbacks_see_every_epoch_and_change_nothing(texts: World) -> None:
    told: list[tuple[int, bool]] = []
    steps: list[tuple[int, int]] = []

    def after(epoch: int, student: nn.Module) -> None:
        told.append((epoch, student.training))
        torch.rand(7)

    found = texts.run("flat", after_epoch=after, progress=lambda done, total, what: steps.append((done, total)))
    assert told == [(1, False), (2, False), (3, False)]
    assert steps == [(n, 6) for n in range(1, 7)]
    assert torch.equal(flat(found), flat(texts.run("flat")))


def test_dropout_draws_from_the_seed(texts: World) -> None:
    noisy = build(0, dropout=0.3)
    noisy.load_state_dict(texts.model.state_dict())
    runs = [flat(texts.run("npo", model=noisy, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], flat(texts.run("npo")))


def test_only_what_requires_a_gradient_moves(texts: World) -> None:
    partly = copy.deepcopy(texts.model)
    partly.words.requires_grad_(False)
    found = texts.run("flat", model=partly)
    assert torch.equal(found.words.weight, texts.model.words.weight)
    assert not torch.equal(found.head.weight, texts.model.head.weight)
    with pytest.raises(NotApplicable, match="no trainable parameter"):
        texts.run("flat", model=copy.deepcopy(texts.model).requires_grad_(False))


def test_leaving_the_numbers_is_divergence(texts: World) -> None:
    broken = copy.deepcopy(texts.model)
    with torch.no_grad():
        broken.head.bias[3] = float("inf")
    with pytest.raises(Diverged, match="smaller lr"):
        texts.run("lm_gradient_ascent", model=broken)


def test_an_example_in_both_sets_is_refused(texts: World) -> None:
    with pytest.raises(DataError, match="listed twice"):
        texts.run("flat", retain=texts.forget)


@pytest.mark.parametrize("name", TEACHING)
def test_templates_have_to_come_from_somewhere(texts: World, name: str) -> None:
    bare = {k: dataclasses.replace(getattr(texts, k), provenance={}) for k in ("retain", "forget")}
    with pytest.raises(DataError, match="template answers"):
        texts.run(name, **bare)
    given = flat(texts.run(name, templates=tuple(map(tuple, TEMPLATES)), **bare))
    assert torch.equal(given, flat(texts.run(name)))
    with pytest.raises(DataError):
        template_answers(texts.forget, [[1], []], who=name)


def test_other_data_than_texts_are_refused(world: Any) -> None:
    method = unlearner.get("flat")
    with pytest.raises(NotApplicable, match="tokens"):
        method(
            world.model,
            retain=world.retain,
            forget=world.forget,
            config=method.spec.config(templates=((1, 2),)),
            seed=0,
        )


def test_an_answer_in_the_middle_cannot_be_replaced() -> None:
    data = make_texts(4)
    whole = data.x
    marks = [np.array([0, 0, 1, 0, 1], np.uint8)] + [np.array([0, 1], np.uint8)] * 3
    middle = dataclasses.replace(
        data,
        x=Tokens.of(
            [np.array([1, 5, 6, 7, 8], np.int32)] + [np.array([1, 5], np.int32)] * 3, marks, vocab_size=whole.vocab_size
        ),
    )
    with pytest.raises(DataError, match="ends the sequence") as caught:
        _ = Sequences(middle, device="cpu", who="flat").prompts
    assert caught.value.example_ids == (int(data.example_id[0]),)


def test_prompts_and_padding() -> None:
    data = make_texts(9)
    sequences = Sequences(data, device="cpu", who="test")
    ids, marks, lengths = data.by_id().x.texts(slice(None))
    ends = np.cumsum(lengths)
    for prompt, start, stop in zip(sequences.prompts, ends - lengths, ends, strict=True):
        assert prompt == ids[start:stop][marks[start:stop] == 0].tolist()
    made = padded([[1, 2], [3]], [[4], [5, 6, 7]], pad=9)
    assert made.inputs["input_ids"].tolist() == [[1, 2, 4, 9], [3, 5, 6, 7]]
    assert made.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert made.targets.tolist() == [[-100, -100, 4, -100], [-100, 5, 6, 7]]
