from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from contracts.digests import canonical_json
from contracts.errors import InvalidInput
from recipes.checkpoints import arrays_digest, describe, load_arrays, to_arrays
from recipes.models import build


def _model(seed):
    return build("resnet_gn", {"widths": [4], "groups": 2}, input_shape=(1, 8, 8), num_outputs=2, seed=seed)


def test_round_trip_keeps_every_bit():
    one, two = _model(0), _model(1)
    arrays = to_arrays(one)
    load_arrays(two, arrays)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert arrays_digest(to_arrays(two)) == arrays_digest(arrays)


def test_arrays_are_copies():
    model = _model(0)
    arrays = to_arrays(model)
    arrays["head.bias"] += 1
    assert not np.array_equal(arrays["head.bias"], to_arrays(model)["head.bias"])
    load_arrays(model, arrays)
    arrays["head.bias"] += 1
    assert not np.array_equal(arrays["head.bias"], to_arrays(model)["head.bias"])


def test_buffers_and_tied_parameters_travel():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[1].running_mean += 2
    arrays = to_arrays(model)
    assert arrays["1.num_batches_tracked"].dtype == np.int64 and arrays["1.num_batches_tracked"].shape == ()
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    load_arrays(other, arrays)
    assert arrays_digest(to_arrays(other)) == arrays_digest(arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("head.bias"), "missing head.bias"),
        (lambda a: a.update(other=np.zeros(1)), "unexpected other"),
        (lambda a: a.update({"head.bias": np.zeros(3, np.float32)}), r"\(3,\)"),
        (lambda a: a.update({"head.bias": np.zeros(2)}), "float64"),
        (lambda a: a.update({"head.bias": np.array([0, np.nan], np.float32)}), "1 values"),
        (lambda a: a.update({"norm.bias": np.full(4, np.inf, np.float32)}), "norm.bias"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, words):
    arrays = to_arrays(_model(1))
    change(arrays)
    model = _model(0)
    before = arrays_digest(to_arrays(model))
    with pytest.raises(InvalidInput, match=words):
        load_arrays(model, arrays)
    assert arrays_digest(to_arrays(model)) == before


def test_the_digest_sees_names_types_shapes_and_values():
    base = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.float32)}
    variants = [
        base,
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"].reshape(2, 2), "b": base["b"]},
        {"a": base["a"].view(np.int32), "b": base["b"]},
        {"a": np.nextafter(base["a"], np.float32(9)), "b": base["b"]},
    ]
    assert len({arrays_digest(v) for v in variants}) == len(variants)
    assert arrays_digest(dict(reversed(base.items()))) == arrays_digest(base)
    assert describe(base)["num_values"] == 6 and canonical_json(describe(base))
