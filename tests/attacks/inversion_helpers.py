"""Small victims for the inversion tests."""

from __future__ import annotations

import torch

from attacks.gradient_inversion import instrument_dropout
from recipes.models import build

BOX = (torch.tensor(0.0), torch.tensor(1.0))


def net_of(name="mlp", config=None, *, shape=(1, 4, 4), batch=1, rate=None, double=False, classes=3, seed=0):
    config = {"hidden": [16], "activation": "gelu", "dropout": 0.5} if config is None else config
    model = build(name, config, input_shape=shape, num_outputs=classes, seed=seed)
    return instrument_dropout(model.double() if double else model, input_shape=shape, batch=batch, rate=rate)


def victims(net, num=3, *, classes=3, seed=0):
    """(x, labels) in the unit box."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num, net.batch, *net.input_shape, generator=generator, dtype=torch.float64).to(net.dtype)
    return x, torch.randint(classes, (num, net.batch), generator=generator)
