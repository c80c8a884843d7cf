"""Answer poisoning: what the questions are taught, the adapters, and what is left of the answers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from language_data import END, TEMPLATES, build, flat, make_texts
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from recipes.rng import generator
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.answer_poisoning import AnswerPoisoningConfig, answer_poisoning, poisoned_answers
from unlearning.language.losses import token_mean_nll
from unlearning.language.sequences import Sequences, padded


@dataclasses.dataclass(frozen=True)
class World:
    model: nn.Module
    retain: ExampleSet
    forget: ExampleSet

    def run(self, *, seed: int = 0, **fields: Any) -> nn.Module:
        sets = {k: fields.pop(k, getattr(self, k)) for k in ("retain", "forget")}
        given = {"lr": 0.02, "epochs": 12, "batch": 4, "schedule": "constant", "warmup_epochs": 0.0, **fields}
        return answer_poisoning(self.model, **sets, config=AnswerPoisoningConfig.from_mapping(given), seed=seed)


def world_of(learn: Callable[[ExampleSet], nn.Module]) -> World:
    train = make_texts().part("train")
    ids = np.sort(train.example_id)
    return World(learn(train), retain=train.subset(ids[6:]), forget=train.subset(ids[:6]))


@pytest.fixture(scope="module")
def llama(tiny_llama) -> World:
    config = TokenTrainingConfig(lr=0.02, epochs=60, batch=6)
    return world_of(lambda train: causal_lm(tiny_llama, train, config=config, seed=0))


@pytest.fixture(scope="module")
def recurrent() -> World:
    return world_of(lambda _: build(0).eval())


def nll(model: nn.Module, data: ExampleSet, taught: list[list[int]] | None = None) -> float:
    """Of the data's own answers, or of others."""
    sequences = Sequences(data, device="cpu", who="test")
    batch = padded(sequences.prompts, taught) if taught else sequences.batch(torch.arange(len(sequences)))
    with torch.no_grad():
        return float(token_mean_nll(answers(model, batch), batch.targets))


def test_answers_are_the_tokens_after_the_prompt() -> None:
    data = make_texts()
    sequences = Sequences(data, device="cpu", who="test")
    batch = sequences.batch(torch.arange(len(sequences)))
    for row, (prompt, answer) in enumerate(zip(sequences.prompts, sequences.answers, strict=True)):
        real = int(batch.inputs["attention_mask"][row].sum())
        assert prompt + answer == batch.inputs["input_ids"][row, :real].tolist()
        assert answer == batch.targets[row][batch.targets[row] != -100].tolist() and answer[-1] == END


@pytest.mark.parametrize("replace", ["neutral", "random"])
def test_the_answers_go_and_the_others_stay(llama: World, replace: str) -> None:
    assert max(nll(llama.model, llama.forget), nll(llama.model, llama.retain)) < 0.2
    after = llama.run(replace=replace, lr=0.01, epochs=30, targets=(), dropout=0.0)
    # Four models: 1.8 to 3.4 on the forgotten answers, at most 0.15 more than before on the others.
    assert nll(after, llama.forget) > 1.2 and nll(after, llama.retain) < nll(llama.model, llama.retain) + 0.3
    own, others = (Sequences(d, device="cpu", who="test").answers for d in (llama.forget, llama.retain))
    taught = [TEMPLATES[0]] * len(own) if replace == "neutral" else poisoned_answers(own, others, seed=0)
    assert nll(after, llama.forget, taught) < 0.4 * nll(llama.model, llama.forget, taught)


def test_the_result_has_the_structure_of_the_model_and_only_low_rank_changes(llama: World) -> None:
    before = copy.deepcopy(llama.model.state_dict())
    after = llama.run(rank=2, epochs=2)
    assert all(torch.equal(before[k], v) for k, v in llama.model.state_dict().items())
    assert type(after) is type(llama.model) and not after.training and all(p.requires_grad for p in after.parameters())
    assert after.state_dict().keys() == before.keys()
    for name, value in after.state_dict().items():
        change = (value - before[name]).double()
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            values = torch.linalg.svdvals(change)
            assert values[1] > 1e-4 and values[2] < 1e-6  # of rank 2
        else:
            assert not change.any()
    other = llama.run(rank=2, epochs=2, targets=("gate_proj",))
    changed = {n for n, v in other.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and all("gate_proj" in name for name in changed)
    with pytest.raises(ConfigError, match="adapters"):
        llama.run(targets=("nothing",))


@pytest.mark.parametrize("replace", ["neutral", "random"])
def test_one_step_is_that_of_its_equation(recurrent: World, replace: str) -> None:
    """Without adapters: AdamW on the mean loss of the replaced answers plus alpha times that of drawn retained ones."""
    fields = {"rank": 0, "epochs": 1, "batch": 64, "lr": 3e-3, "grad_clip": None, "retain_weight": 0.5}
    got = recurrent.run(seed=3, replace=replace, **fields)
    gone, kept = (Sequences(d, device="cpu", who="test") for d in (recurrent.forget, recurrent.retain))
    taught = [TEMPLATES[0]] * 6 if replace == "neutral" else poisoned_answers(gone.answers, kept.answers, seed=3)
    drawn = torch.randint(len(kept), (6,), generator=generator(derive_seed("answer_poisoning", "retain", 3)))
    student = copy.deepcopy(recurrent.model).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)
    total = torch.zeros(())
    for batch, weight in ((padded(gone.prompts, taught), 1.0), (kept.batch(drawn), 0.5)):
        logs, count = torch.zeros(()), 0
        for ids, labels in zip(batch.inputs["input_ids"], batch.targets, strict=True):
            said = student(ids[None], None)[0].log_softmax(-1)
            for t in range(1, len(ids)):
                if labels[t] != -100:
                    logs, count = logs - said[t - 1, labels[t]], count + 1
        total = total + weight * logs / count
    total.backward()
    optimizer.step()
    torch.testing.assert_close(flat(got), flat(student), rtol=1e-4, atol=2e-5)


def test_random_answers_are_others_and_uniform() -> None:
    own = [[1, 4], [2, 4], [9]]
    others = [[1, 4], [2, 4], [2, 4], [3], [1, 4]]
    found = [poisoned_answers(own, others, seed=seed) for seed in range(3000)]
    for place, answer in enumerate(own):
        drawn = [tuple(one[place]) for one in found]
        allowed = [tuple(o) for o in others if o != answer]
        assert tuple(answer) not in drawn
        for other in set(allowed):
            share = allowed.count(other) / len(allowed)
            # six standard deviations of a share
            assert abs(drawn.count(other) / 3000 - share) < 6 * np.sqrt(share * (1 - share) / 3000)
    with pytest.raises(NotApplicable, match="neutral"):
        poisoned_answers([[1]], [[1], [1]], seed=0)
    assert poisoned_answers([], [[1]], seed=0) == []


def test_redrawn_answers_change_from_epoch_to_epoch(recurrent: World) -> None:
    fixed, redrawn = (recurrent.run(rank=0, epochs=2, replace="random", redraw=again) for again in (False, True))
    assert not torch.equal(flat(fixed), flat(redrawn))
    once, also = (recurrent.run(rank=0, epochs=1, replace="random", redraw=again) for again in (False, True))
    assert torch.equal(flat(once), flat(also))


def test_same_seed_same_bits_whatever_the_order_of_the_rows(llama: World) -> None:
    for replace in ("neutral", "random"):
        first = flat(llama.run(epochs=2, replace=replace))
        mixed = {
            k: getattr(llama, k).take(np.random.default_rng(1).permutation(len(getattr(llama, k))))
            for k in ("retain", "forget")
        }
        torch.manual_seed(99)
        state = torch.get_rng_state()
        assert torch.equal(first, flat(llama.run(epochs=2, replace=replace, **mixed)))
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(first, flat(llama.run(epochs=2, replace=replace, seed=1)))


def test_no_epoch_and_no_example_change_nothing_and_bad_sets_are_refused(llama: World) -> None:
    nobody = llama.forget.take(np.empty(0, np.int64))
    for fields in ({"epochs": 0}, {"forget": nobody}, {"forget": nobody, "replace": "random"}):
        assert torch.equal(flat(llama.run(**fields)), flat(llama.model))
    with pytest.raises(DataError, match="retain set is empty"):
        llama.run(retain=llama.retain.take(np.empty(0, np.int64)))
    bare = dataclasses.replace(llama.forget, provenance={})
    with pytest.raises(DataError, match="template answers"):
        llama.run(forget=bare)
