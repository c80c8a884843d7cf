"""EL2N: identities, brute force, and independence of how the examples are cut up."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from polars.testing import assert_frame_equal
from scoring_data import make_examples
from torch import nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from scoring.el2n import EL2NConfig, el2n, error_scores
from scoring.error_vector import error_vector
from scoring.grand import GrandConfig, grand

CONFIG = EL2NConfig()
logits_and_label = st.integers(2, 6).flatmap(
    lambda k: st.tuples(hnp.arrays(np.float64, k, elements=st.floats(-400, 400)), st.integers(0, k - 1))
)


def score_of(logits: list[float] | np.ndarray, label: int) -> dict[str, float]:
    found = error_scores(torch.as_tensor(np.asarray(logits))[None], torch.tensor([label]))
    return {name: float(value[0]) for name, value in found.items()}


@pytest.mark.parametrize("k", [2, 3, 10, 1000])
def test_uniform_prediction(k: int) -> None:
    found = score_of(np.zeros(k), 1)
    assert found["el2n"] == pytest.approx(math.sqrt(1 - 1 / k), abs=1e-12)
    assert found["el1n"] == pytest.approx(2 * (1 - 1 / k), abs=1e-12)
    assert found["margin_max"] == pytest.approx(0, abs=1e-12)
    assert found["margin_sum"] == pytest.approx(0, abs=1e-12)


def test_perfect_and_confidently_wrong() -> None:
    right, wrong = score_of([900.0, 0.0, 0.0], 0), score_of([900.0, 0.0, 0.0], 2)
    assert right["el2n"] == right["el1n"] == 0 and right["margin_max"] == -1
    assert wrong["el2n"] == pytest.approx(math.sqrt(2)) and wrong["el1n"] == 2 and wrong["margin_max"] == 1


def test_small_errors_keep_their_digits() -> None:
    assert score_of(np.array([60, 0, 0], np.float32), 0)["el2n"] == pytest.approx(
        math.exp(-60) * math.sqrt(6), rel=1e-6
    )


@given(logits_and_label)
@pytest.mark.promise("C6")
def test_against_the_definition(case: tuple[np.ndarray, int]) -> None:
    logits, label = case
    p = np.exp(logits - logits.max())
    p /= p.sum()
    e = p - np.eye(len(p))[label]
    found = score_of(logits, label)
    wrong = np.delete(p, label)
    assert found["el2n"] == pytest.approx(np.linalg.norm(e), abs=1e-12)
    assert found["el1n"] == pytest.approx(np.abs(e).sum(), abs=1e-12)
    assert found["margin_max"] == pytest.approx(wrong.max() - p[label], abs=1e-12)
    assert found["margin_sum"] == pytest.approx((wrong - p[label]).sum(), abs=1e-9)
    assert 0 <= found["el2n"] <= math.sqrt(2) + 1e-12
    vector = error_vector(torch.from_numpy(logits)[None], torch.tensor([label]))
    assert float(vector.sum()) == pytest.approx(0, abs=1e-15)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_batch_size_and_order_do_not_matter(batch: int, seed: int) -> None:
    rng = np.random.default_rng(0)
    data = make_examples(rng.normal(size=(23, 6)).astype(np.float32), rng.integers(0, 4, 23), num_classes=4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [nn.Linear(6, 4).eval() for _ in range(2)]
    whole = el2n(data, config=CONFIG, seed=0, early_models=models)
    shuffled = data.subset(np.random.default_rng(seed).permutation(data.example_id))
    cut = el2n(shuffled, config=EL2NConfig(batch=batch), seed=1, early_models=models)
    assert cut["example_id"].to_list() == shuffled.example_id.tolist()
    assert_frame_equal(whole.sort("example_id"), cut.sort("example_id"), rel_tol=1e-5, abs_tol=1e-6)


def test_mean_and_spread_over_models(examples, mlp) -> None:
    models = [mlp(seed) for seed in range(5)]
    each = np.stack(
        [el2n(examples, config=CONFIG, seed=0, early_models=[m])["el2n"].to_numpy() for m in models]
    )  # (R, N)
    both = el2n(examples, config=CONFIG, seed=0, early_models=models)
    np.testing.assert_allclose(both["el2n"], each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(both["el2n_std"], each.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(both["el2n_stderr"], each.std(0, ddof=1) / math.sqrt(5), rtol=1e-9)
    assert both["n_seeds"].unique().to_list() == [5]


def test_one_model_has_no_spread(examples, mlp) -> None:
    found = el2n(examples, config=CONFIG, seed=0, early_models=[mlp(0)])
    assert found["el2n_std"].null_count() == found["el2n_stderr"].null_count() == len(examples)
    assert found.schema["el2n_std"] == pl.Float64


def test_no_examples_is_a_result(examples, mlp) -> None:
    found = el2n(examples.subset([]), config=CONFIG, seed=0, early_models=[mlp(0)])
    assert len(found) == 0 and found.schema["el2n"] == pl.Float64


def test_evaluates_in_eval_mode_and_restores_each_modules_mode(examples) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.9)).train()
    model[0].eval()
    found = [el2n(examples, config=CONFIG, seed=0, early_models=[model])["el2n"].to_list() for _ in range(2)]
    assert found[0] == found[1]
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_refusals(examples, regression, mlp) -> None:
    def run(data, models):
        return el2n(data, config=CONFIG, seed=0, early_models=models)

    with pytest.raises(NotApplicable, match="regression"):
        run(regression, [mlp(0)])
    with pytest.raises(InvalidInput, match="early_models is empty"):
        run(examples, [])
    with pytest.raises(NotApplicable, match="logits"):
        run(examples, [nn.Sequential(mlp(0), nn.Flatten(0))])
    high = dataclasses.replace(examples, y=np.where(np.arange(37) == 3, 9, examples.y))
    with pytest.raises(DataError, match=r"0\.\.3") as error:
        run(high, [mlp(0)])
    assert error.value.example_ids == (examples.example_id[3],)
    broken = dataclasses.replace(
        examples, x=np.where(np.arange(37)[:, None] == 4, np.nan, examples.x).astype(np.float32)
    )
    with pytest.raises(DataError, match="NaN") as error:
        run(broken, [mlp(0)])
    assert error.value.example_ids == (examples.example_id[4],)


def test_several_models_over_several_blocks_equal_one_model_at_a_time(examples, mlp, monkeypatch) -> None:
    models = [mlp(seed).double() for seed in range(3)]
    whole = el2n(examples, config=EL2NConfig(batch=5), seed=0, early_models=models)
    monkeypatch.setattr(sys.modules["scoring.el2n"], "_BLOCK", 1)  # a block a batch
    cut = el2n(examples, config=EL2NConfig(batch=5), seed=0, early_models=models)
    assert_frame_equal(whole, cut, rel_tol=1e-12, abs_tol=1e-14)
    each = [el2n(examples, config=CONFIG, seed=0, early_models=[m]) for m in models]
    for name in ("el2n", "el1n", "margin_max", "margin_sum", "grand_last_layer"):
        values = np.stack([one[name].to_numpy() for one in each])
        np.testing.assert_allclose(cut[name], values.mean(0), rtol=1e-12, atol=1e-13)
        if f"{name}_std" in cut.columns:
            np.testing.assert_allclose(cut[f"{name}_std"], values.std(0, ddof=1), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_the_output_layer_against_grand(examples, bias: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        models = [nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4, bias=bias)).double() for _ in range(2)]
    found = el2n(examples, config=CONFIG, seed=0, early_models=models)
    exact = grand(examples, config=GrandConfig(), seed=0, early_models=models)
    for name in ("grand_last_layer", "grand_last_layer_std"):
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-9)
    models[0][2].requires_grad_(False)
    frozen = el2n(examples, config=CONFIG, seed=0, early_models=models)
    assert frozen["grand_last_layer"].null_count() == len(examples) and frozen["el2n"].equals(found["el2n"])


class Tied(nn.Module):
    """The output layer's weight is used a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x @ self.head.weight)


class Twice(Tied):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.head(x))


@pytest.mark.parametrize("kind", [Tied, Twice, "tanh"])
def test_no_gradient_of_the_output_layer_when_it_is_not_its_own(examples, mlp, kind) -> None:
    model = nn.Sequential(mlp(0), nn.Tanh()) if kind == "tanh" else kind()
    found = el2n(examples, config=CONFIG, seed=0, early_models=[model])
    assert found["grand_last_layer"].null_count() == found["grand_last_layer_std"].null_count() == len(examples)
    assert found["el2n"].null_count() == 0
    assert not any(m._forward_hooks for m in model.modules())


def test_logits_whose_sum_overflows_are_finite_all_the_same(examples) -> None:
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(3e38)
    found = el2n(examples, config=CONFIG, seed=0, early_models=[model])
    assert np.allclose(found["el2n"], np.sqrt(0.75))


@pytest.mark.promise("C1")
def test_an_infinite_logit_is_refused_even_where_the_norm_is_finite(examples) -> None:
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.bias[2] = -torch.inf  # probability 0: the error vector itself is finite
    with pytest.raises(DataError, match="infinite logits"):
        el2n(examples, config=CONFIG, seed=0, early_models=[model])
