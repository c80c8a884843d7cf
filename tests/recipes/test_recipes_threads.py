"""Threads by the size of a step: never more than before, and as many as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from recipes.models import builder
from recipes.threads import WORTH, threads_for

SMALL = builder("mlp", {"hidden": (128,)}, input_shape=(64,), num_outputs=10)(0)
CONV = builder("cnn", {}, input_shape=(1, 28, 28), num_outputs=10)(0)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("model", "examples", "models", "few"),
    [
        (SMALL, 64, 1, True),
        (SMALL, 64, 20, True),  # 3 x 9,472 weights x 64 x 20 = 3.6e7
        (SMALL, 64, 60, False),
        (SMALL, WORTH, 1, False),
        (CONV, 1, 1, False),
        (nn.Sequential(nn.Linear(2, 2), Own()), 1, 1, False),
    ],
)
def test_a_small_step_takes_one_thread(threads: int, model: nn.Module, examples: int, models: int, few: bool) -> None:
    with threads_for(model, examples=examples, models=models):
        assert torch.get_num_threads() == (1 if few else threads)
    assert torch.get_num_threads() == threads
    with pytest.raises(ZeroDivisionError), threads_for(model, examples=examples, models=models):
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads
