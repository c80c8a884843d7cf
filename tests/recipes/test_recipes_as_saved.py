"""A result that answers otherwise than its weights do is not the plan's model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from recipes_examples import make_examples
from torch import nn

from contracts.errors import Diverged, NotTheModel
from recipes.as_saved import as_saved
from recipes.models import builder
from recipes.predict import predict_logits, read

DATA = make_examples(40, shape=(6,), classes=3)
BUILD = builder("mlp", {"hidden": (8,)}, input_shape=DATA.input_shape, num_outputs=DATA.num_classes)


class Wrapped(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x)


class Spoofed(Wrapped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x).clamp(-0.1, 0.1)

    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return self.inside.state_dict(*args, **kwargs)


def test_an_honest_result_comes_back_as_a_fresh_model_with_its_outputs() -> None:
    model = BUILD(3)
    fresh, reading, outputs = as_saved(model, BUILD, DATA, what="m", outputs=True)
    assert fresh is not model and type(fresh) is type(BUILD(0)) and not fresh.training
    assert np.array_equal(outputs, predict_logits(model, DATA))
    assert np.array_equal(reading.values, read(model, DATA).values)
    assert as_saved(model, BUILD, DATA, what="m")[2] is None
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    assert not np.array_equal(as_saved(changed, BUILD, DATA, what="m", outputs=True)[2], outputs)


def test_what_lies_beside_the_weights_is_refused() -> None:
    with pytest.raises(NotTheModel, match="another structure"):
        as_saved(Wrapped(BUILD(0)), BUILD, DATA, what="m")
    with pytest.raises(NotTheModel, match="another structure"):
        as_saved(nn.Linear(2, 2), BUILD, DATA, what="m")
    with pytest.raises(NotTheModel, match="outputs change"):
        as_saved(Spoofed(BUILD(0)), BUILD, DATA, what="m")
    hooked = BUILD(0)
    hooked.register_forward_hook(lambda module, args, out: out * 0.5)
    with pytest.raises(NotTheModel, match=f"{len(DATA)} of {len(DATA)} examples"):
        as_saved(hooked, BUILD, DATA, what="m")
    with pytest.raises(NotTheModel, match="not a model"):
        as_saved(np.zeros(3), BUILD, DATA, what="m")


def test_what_is_not_finite_diverged() -> None:
    model = BUILD(0)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(Diverged):
        as_saved(model, BUILD, DATA, what="m")
