"""GraNd: against the naive loop, its by-product, and independence of how the examples are cut up."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch
from language_data import make_texts
from polars.testing import assert_frame_equal
from torch import nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.inputs import Inputs
from recipes.models import builder
from scoring.el2n import EL2NConfig, el2n
from scoring.grand import GrandConfig, grand
from sources.loading import load

CONFIG = GrandConfig()
SMALL = {"hidden": 16, "intermediate": 32, "layers": 2, "heads": 2}


def inputs(examples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(examples.inputs(slice(None))), torch.from_numpy(examples.y)


def test_equals_the_naive_loop(examples, mlp, naive) -> None:
    models = [mlp(seed).double() for seed in range(3)]
    x, y = inputs(examples)
    each = torch.stack([sum(naive(m, x.double(), y).values()).sqrt() for m in models])
    found = grand(examples, config=CONFIG, seed=0, early_models=models)
    np.testing.assert_allclose(found["grand"], each.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["grand_std"], each.std(0), rtol=1e-8)
    np.testing.assert_allclose(found["grand_stderr"], each.std(0) / math.sqrt(3), rtol=1e-8)
    single = grand(examples, config=CONFIG, seed=0, early_models=[mlp(seed) for seed in range(3)])
    np.testing.assert_allclose(single["grand"], each.mean(0), rtol=1e-4)


def test_last_layer_is_the_error_times_the_features(examples, mlp) -> None:
    model = mlp(0).double()
    x, _ = inputs(examples)
    features = model[:2](x.double()).detach().square().sum(1)
    error = el2n(examples, config=EL2NConfig(), seed=0, early_models=[model])["el2n"].to_numpy()
    found = grand(examples, config=CONFIG, seed=0, early_models=[model])
    np.testing.assert_allclose(found["grand_last_layer"], error * np.sqrt(features.numpy() + 1), rtol=1e-12)
    assert (found["grand_last_layer"] <= found["grand"]).all()


def test_a_linear_model_in_closed_form(examples) -> None:
    model = nn.Linear(6, 4).double()
    x, _ = inputs(examples)
    error = el2n(examples, config=EL2NConfig(), seed=0, early_models=[model])["el2n"].to_numpy()
    found = grand(examples, config=CONFIG, seed=0, early_models=[model])
    np.testing.assert_allclose(found["grand"], error * np.sqrt(x.double().square().sum(1).numpy() + 1), rtol=1e-12)
    assert found["grand"].to_list() == found["grand_last_layer"].to_list()


def test_no_last_layer_when_another_module_makes_the_logits(examples, mlp) -> None:
    found = grand(examples, config=CONFIG, seed=0, early_models=[nn.Sequential(mlp(0), nn.Tanh())])
    assert found["grand_last_layer"].null_count() == len(examples)
    assert found.schema["grand_last_layer"] == pl.Float64


@pytest.mark.parametrize(("batch", "micro"), [(1, 1), (5, 3), (36, 7), (37, 64), (512, None)])
def test_batch_size_and_order_do_not_matter(examples, mlp, batch: int, micro: int | None) -> None:
    models = [mlp(0), mlp(1)]
    whole = grand(examples, config=CONFIG, seed=0, early_models=models)
    shuffled = examples.subset(np.random.default_rng(batch).permutation(examples.example_id))
    cut = grand(shuffled, config=GrandConfig(batch=batch, micro_batch=micro), seed=1, early_models=models)
    assert cut["example_id"].to_list() == shuffled.example_id.tolist()
    assert_frame_equal(whole.sort("example_id"), cut.sort("example_id"), rel_tol=1e-4, abs_tol=1e-6)


def test_a_subset_scores_as_in_the_whole(examples, mlp) -> None:
    few = examples.example_id[::5]
    whole = grand(examples, config=CONFIG, seed=0, early_models=[mlp(0)])
    part = grand(examples.subset(few), config=CONFIG, seed=0, early_models=[mlp(0)])
    assert_frame_equal(whole.filter(pl.col("example_id").is_in(few)), part, rel_tol=1e-4)


def test_one_model_has_no_spread_and_no_examples_is_a_result(examples, mlp) -> None:
    found = grand(examples, config=CONFIG, seed=0, early_models=[mlp(0)])
    assert found["grand_std"].null_count() == len(examples)
    empty = grand(examples.subset([]), config=CONFIG, seed=0, early_models=[mlp(0)])
    assert len(empty) == 0 and empty.schema == found.schema


def test_training_mode_is_taken_off_and_put_back(examples) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).train()
    mean = model[1].running_mean.clone()
    found = [grand(examples, config=CONFIG, seed=0, early_models=[model])["grand"].to_list() for _ in range(2)]
    assert found[0] == found[1] and all(module.training for module in model.modules())
    assert torch.equal(model[1].running_mean, mean)


def test_memory_is_bounded_by_the_micro_batch(mlp, examples, monkeypatch) -> None:
    seen = []
    model = mlp(0)
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    grand(examples, config=GrandConfig(batch=20, micro_batch=8), seed=0, early_models=[model])
    assert max(seen) == 8


def test_refusals(examples, regression, mlp) -> None:
    def run(data, models):
        return grand(data, config=CONFIG, seed=0, early_models=models)

    with pytest.raises(NotApplicable, match="4 losses of a regression task; one is needed"):
        run(regression, [mlp(0)])
    with pytest.raises(DataError, match="targets are not finite") as error:
        run(dataclasses.replace(regression, y=np.where(np.arange(37) == 3, np.nan, regression.y)), [nn.Linear(6, 1)])
    assert error.value.example_ids == (examples.example_id[3],)
    with pytest.raises(InvalidInput, match="early_models is empty"):
        run(examples, [])
    with pytest.raises(NotApplicable, match="statistics of the batch"):
        run(examples, [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))])
    high = dataclasses.replace(examples, y=np.where(np.arange(37) == 3, 9, examples.y))
    with pytest.raises(DataError, match=r"0\.\.3") as error:
        run(high, [mlp(0)])
    assert error.value.example_ids == (examples.example_id[3],)
    for value, what in ((np.nan, "logits"), (1e38, "logits|gradients")):
        x = np.where(np.arange(37)[:, None] == 4, value, examples.x).astype(np.float32)
        large = nn.Sequential(nn.Linear(6, 4))
        nn.init.constant_(large[0].weight, 1e3)
        with pytest.raises(DataError, match=what) as error:
            run(dataclasses.replace(examples, x=x), [large])
        assert error.value.example_ids == (examples.example_id[4],)


def test_regression_equals_the_naive_loop_of_squared_errors(regression) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double() for _ in range(3)]
    x = torch.from_numpy(regression.inputs(slice(None))).double()
    y = torch.from_numpy(regression.y)[:, None]
    each, last = np.empty((2, 3, 37))
    for r, model in enumerate(models):
        for b in range(37):
            loss = torch.nn.functional.mse_loss(model(x[b : b + 1]), y[b : b + 1])
            squares = [float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))]
            each[r, b], last[r, b] = sum(squares) ** 0.5, sum(squares[2:]) ** 0.5
    found = grand(regression, config=CONFIG, seed=0, early_models=models)
    np.testing.assert_allclose(found["grand"], each.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["grand_std"], each.std(0, ddof=1), rtol=1e-8)
    np.testing.assert_allclose(found["grand_last_layer"], last.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["grand_last_layer_std"], last.std(0, ddof=1), rtol=1e-8)


def test_a_linear_regression_in_closed_form(regression) -> None:
    model = nn.Linear(6, 1).double()
    x = torch.from_numpy(regression.inputs(slice(None))).double()
    residual = np.abs(model(x)[:, 0].detach().numpy() - regression.y)
    found = grand(regression, config=CONFIG, seed=0, early_models=[model])
    np.testing.assert_allclose(found["grand"], 2 * residual * np.sqrt(x.square().sum(1).numpy() + 1), rtol=1e-12)


def test_a_recommender_against_the_naive_loop(monkeypatch) -> None:
    """Cross-entropy among the items that the user met nowhere, one backward pass an interaction; no gradient of a whole
    table is ever held."""
    data = load("synthetic_interactions", {"num_users": 9, "num_items": 30, "per_user": 8, "dim": 2}).part("train")
    build = builder("mf", {"dim": 4}, input_shape=(data.num_users,), num_outputs=data.num_classes)
    models = [build(seed).double() for seed in range(2)]
    whole, users = data.constants, np.asarray(data.x)[:, 0]
    start, each = np.append(whole["start"], len(whole["items"])), np.empty((2, len(data)))
    for r, model in enumerate(models):
        for b in range(len(data)):
            met = set(whole["items"][start[users[b]] : start[users[b] + 1]].tolist())
            among = [int(data.y[b]), *(k for k in range(data.num_classes) if k not in met)]
            z = model(torch.tensor([users[b]]))[0, among]
            gradients = torch.autograd.grad(z.logsumexp(0) - z[0], list(model.parameters()))
            each[r, b] = sum(float(g.square().sum()) for g in gradients) ** 0.5
    monkeypatch.setattr("scoring.grad_norms.per_example.vmap_squared_norms", None)  # nothing falls back
    found = grand(data, config=GrandConfig(batch=20), seed=0, early_models=models)
    np.testing.assert_allclose(found["grand"], each.mean(0), rtol=1e-10)
    assert found["grand_last_layer"].null_count() == len(data)
    graph = builder("lightgcn", {"dim": 4}, input_shape=(data.num_users,), num_outputs=data.num_classes)(0)
    with pytest.raises(NotApplicable, match="no gradient of its own"):
        grand(data, config=CONFIG, seed=0, early_models=[graph])


def test_a_language_model_against_the_naive_loop() -> None:
    """Texts of different lengths in one batch, padded; mean loss of the counted tokens of each."""
    data = make_texts()
    build = builder("tiny_llama", SMALL, input_shape=data.input_shape, num_outputs=data.task.num_outputs(data))
    model = build(0).double().eval()
    exact = []
    for b in range(len(data)):
        batch = Inputs(data, dtype=torch.float64).slice(b, b + 1)
        (loss,) = data.task.losses(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        exact.append(sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5)
    found = grand(data, config=CONFIG, seed=0, early_models=[model])
    np.testing.assert_allclose(found["grand"], exact, rtol=1e-6)  # its norms are taken in single precision
