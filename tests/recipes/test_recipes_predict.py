from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from contracts.errors import DataError
from recipes.models import build
from recipes.predict import predict_logits


def test_rows_keep_their_order_whatever_the_batch(examples):
    data = examples(23, shape=(1, 8, 8))
    model = build("cnn", {"channels": [4, 4], "hidden": 8}, input_shape=(1, 8, 8), num_outputs=3, seed=0)
    with torch.no_grad():
        one_by_one = np.concatenate([model.eval()(torch.from_numpy(data.inputs(slice(i, i + 1)))) for i in range(23)])
    for batch in (1, 7, 23, 1000):
        logits = predict_logits(model, data, batch=batch)
        assert logits.dtype == np.float32 and logits.shape == (23, 3)
        assert np.allclose(logits, one_by_one, atol=1e-5)
    assert predict_logits(model, data.subset([])).shape == (0, 3)


def test_it_predicts_in_eval_mode_and_puts_every_submodule_back(examples, rng_left_alone):
    data = examples(12)
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    model[1].eval()
    before = [m.training for m in model.modules()]
    with rng_left_alone():
        first = predict_logits(model, data)
    assert np.array_equal(first, predict_logits(model, data)), "dropout or batch statistics were active"
    assert [m.training for m in model.modules()] == before
    assert int(model[2].num_batches_tracked) == 0


def test_outputs_that_are_not_finite_name_their_examples(examples):
    data = examples(12)

    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > float(data.inputs(slice(0, 12))[:, 0].max()) - 1e-6, torch.nan, x[:, :3])

    with pytest.raises(DataError, match="1 of 12") as caught:
        predict_logits(Broken(), data)
    assert caught.value.example_ids == (data.example_id[data.inputs(slice(0, 12))[:, 0].argmax()],)
