"""Language: four numbers a sequence against a loop over its tokens; the shift, what counts, padding, precision."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.errors import DataError
from tasks.base import Batch, named
from tasks.language import NOT_COUNTED

LANGUAGE: Any = named("language")


class Table(nn.Module):
    """Logits of the next token from the last one, and a bit of its position; an object with ``logits``, as transformers
    answers."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids] * (1 + 0.2 * attention_mask.cumsum(1)[..., None]))


def batch_of(texts: list[list[tuple[int, bool]]], width: int | None = None) -> Batch:
    """Texts of (token, counted), padded on the right."""
    wide = width or max(map(len, texts))
    ids = torch.zeros(len(texts), wide, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, NOT_COUNTED)
    for row, text in enumerate(texts):
        for at, (token, counted) in enumerate(text):
            ids[row, at], mask[row, at] = token, 1
            if counted:
                labels[row, at] = token
    return Batch({"input_ids": ids, "attention_mask": mask}, labels, torch.arange(len(texts)))


def naive(model: nn.Module, text: list[tuple[int, bool]]) -> list[float]:
    """Token by token, in Python's floats."""
    ids = torch.tensor([[token for token, _ in text]])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids)).logits[0].double()
    terms = []
    for at in range(1, len(text)):
        token, counted = text[at]
        if counted:
            z = logits[at - 1].tolist()
            others = math.log(sum(math.exp(v) for k, v in enumerate(z) if k != token))
            log_p = z[token] - math.log(sum(map(math.exp, z)))
            terms.append((-log_p, z[token] - others, log_p, float(max(range(len(z)), key=z.__getitem__) == token)))
    return np.mean(terms, axis=0).tolist()


TEXTS = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=8).filter(
        lambda text: any(counted for _, counted in text[1:])
    ),
    min_size=1,
    max_size=6,
)


@given(TEXTS, st.integers(0, 1000))
@settings(max_examples=60)
def test_every_number_is_that_of_a_loop(texts: list[list[tuple[int, bool]]], seed: int) -> None:
    model = Table(torch.randn(7, 7, generator=torch.Generator().manual_seed(seed)))
    batch = batch_of(texts)
    wanted = np.array([naive(model, text) for text in texts])
    np.testing.assert_allclose(LANGUAGE.read(model, batch).values, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(LANGUAGE.losses(model, batch).detach(), wanted[:, 0], rtol=1e-5, atol=1e-6)


def test_padding_and_neighbours_change_nothing() -> None:
    model = Table(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))
    texts = [[(1, False), (2, True), (3, True)], [(4, False), (5, False), (6, False), (1, True), (2, True), (0, True)]]
    together = LANGUAGE.read(model, batch_of(texts, width=20)).values
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(together[row], LANGUAGE.read(model, batch_of([text])).values[0])


def test_a_large_batch_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Table(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))
    batch = batch_of([[(1, False), (row % 7, True), (3, row % 2 == 0)] for row in range(40)])
    sizes: list[int] = []
    model.register_forward_hook(lambda _, args, kwargs, out: sizes.append(out.logits[..., 0].numel()), with_kwargs=True)
    whole = LANGUAGE.read(model, batch).values
    monkeypatch.setattr("tasks.language._TOKENS", 10)
    np.testing.assert_array_equal(LANGUAGE.read(model, batch).values, whole)
    assert sizes[0] == 120 and max(sizes[1:]) <= 10


def test_the_label_at_t_is_predicted_from_the_tokens_before_it() -> None:
    """Changing a token leaves the losses of those before it, and the first label is never counted."""
    sure = torch.full((5, 5), -20.0)
    for last in range(4):
        sure[last, last + 1] = 20.0
    counting = [(token, True) for token in range(5)]
    model = Table(sure)
    assert LANGUAGE.read(model, batch_of([counting])).loss[0] < 1e-6
    assert LANGUAGE.read(model, batch_of([counting])).quality[0] == 1
    assert LANGUAGE.read(model, batch_of([[(3, True), *counting[:3]]])).quality[0] == pytest.approx(2 / 3)
    backwards = LANGUAGE.read(model, batch_of([counting[::-1]]))
    assert backwards.quality[0] == 0 and backwards.loss[0] > 20


def test_the_signal_goes_on_where_the_probability_is_one() -> None:
    """p rounds to 1 in float32 for both; the surer one has the higher signal."""
    signals = []
    for gap in (30.0, 60.0):
        table = torch.zeros(3, 3)
        table[:, 1] = gap
        signals.append(float(LANGUAGE.read(Table(table), batch_of([[(0, False), (1, True)]])).signal[0]))
    assert signals == pytest.approx([30 * 1.2 - math.log(2), 60 * 1.2 - math.log(2)])


def test_the_reading_of_stored_answers_of_many_models_is_that_of_each() -> None:
    batch = batch_of([[(1, False), (2, True), (3, True)], [(1, False), (4, False), (2, True)]])
    models = [Table(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    with torch.no_grad():
        outputs = np.stack([model(**batch.inputs).logits.numpy() for model in models])
    together = LANGUAGE.reading_of(outputs, batch.targets.numpy(), {})
    assert together.values.shape == (3, 2, 4)
    for one, model in zip(together.values, models, strict=True):
        np.testing.assert_allclose(one, LANGUAGE.read(model, batch).values)


def test_losses_have_the_gradient_of_a_loop() -> None:
    model = Table(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    text = [(1, False), (2, True), (3, True), (3, True)]
    (found,) = torch.autograd.grad(LANGUAGE.losses(model, batch_of([text, text[:2]])).mean(), model.table)
    logits = [model.table[token] * (1 + 0.2 * (at + 1)) for at, (token, _) in enumerate(text)]
    own = [-logits[at - 1].log_softmax(0)[text[at][0]] for at in range(1, 4)]
    (wanted,) = torch.autograd.grad((sum(own) / 3 + own[0]) / 2, model.table)
    torch.testing.assert_close(found, wanted)


def test_half_precision_logits_are_read_in_full() -> None:
    model = Table(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)).bfloat16())
    batch = batch_of([[(1, False), (2, True), (3, True)]])
    logits = model(**batch.inputs).logits.float()
    wanted = -logits.log_softmax(-1)[0, [0, 1], [2, 3]].mean().detach()
    assert LANGUAGE.losses(model, batch).detach().item() == pytest.approx(float(wanted), rel=1e-6)
    assert LANGUAGE.read(model, batch).loss[0] == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("text", [[(1, False), (2, False)], [(1, True), (2, False)]])
def test_a_sequence_that_counts_nothing_is_refused(text: list[tuple[int, bool]]) -> None:
    model, batch = Table(torch.zeros(3, 3)), batch_of([[(1, True), (2, True)], text])
    for use in (lambda: LANGUAGE.losses(model, batch), lambda: LANGUAGE.read(model, batch)):
        with pytest.raises(DataError, match=r"\[1\]"):
            use()
