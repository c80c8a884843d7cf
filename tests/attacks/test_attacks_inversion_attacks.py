"""The attacks against planted victims, and the optimisers against torch's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from inversion_helpers import BOX, net_of, victims
from torch import nn

from attacks.gradient_inversion import (
    IG_CONFIG,
    InversionConfig,
    LocalTraining,
    analytic_linear_inversion,
    deep_leakage,
    dropout_inversion,
    instrument_dropout,
    inverting_gradients,
    psnr,
    share,
    well_informed,
)
from attacks.gradient_inversion.engine import minimise
from attacks.gradient_inversion.lbfgs import lbfgs
from attacks.gradient_inversion.objective import Objective
from contracts.errors import ConfigError, InvalidInput, NotApplicable
from recipes.models import build

SEEDS = [11, 12, 13, 14]
CONFIG = InversionConfig(steps=700, patience=100)


def wide(*, hidden=64, batch=1, dropout=0.5):
    config = {"hidden": [hidden], "activation": "gelu", "dropout": dropout}
    return net_of(config=config, shape=(1, 4, 4), batch=batch, classes=10)


def test_dropout_defeats_ig_dia_undoes_it_and_the_control_bounds_it():
    net = wide()
    x, y = victims(net, 4, classes=10)
    update, memory = share(net, x, y, seeds=SEEDS)
    shared = {"labels": y, "box": BOX, "config": dataclasses.replace(CONFIG, steps=300, patience=50), "seeds": SEEDS}
    ig = inverting_gradients(net, update, **shared)
    dia = dropout_inversion(net, update, **shared)
    control = well_informed(net, update, memory, **shared)
    db = {
        name: psnr(x, found.x, box=BOX).median().item() for name, found in (("ig", ig), ("dia", dia), ("wiig", control))
    }
    assert db["dia"] > 35 and db["wiig"] > 35 and db["ig"] < 25
    assert ((dia.masks[0] >= 0.5) == (memory.masks[0] >= 0.5)).double().mean() > 0.95
    assert all((f.x >= 0).all() and (f.x <= 1).all() for f in (ig, dia, control))
    assert (dia.masks[0] >= 0).all() and (dia.masks[0] <= 1).all()


def test_without_dropout_dia_is_ig_bit_for_bit():
    net = wide()
    x, y = victims(net, 4, classes=10)
    rates = torch.zeros(4, 1)
    update, _ = share(net, x, y, seeds=SEEDS, rates=rates)
    shared = {"labels": y, "box": BOX, "config": dataclasses.replace(CONFIG, steps=40, restarts=2), "seeds": SEEDS}
    ig, dia = inverting_gradients(net, update, **shared), dropout_inversion(net, update, rates=rates, **shared)
    assert torch.equal(ig.x, dia.x) and torch.equal(ig.loss, dia.loss) and dia.masks == ()
    none = net_of(config={"hidden": [64], "activation": "gelu"}, classes=10)
    bare = {**shared, "seeds": SEEDS}
    update, _ = share(none, x, y, seeds=SEEDS)
    first, second = inverting_gradients(none, update, **bare), dropout_inversion(none, update, **bare)
    assert torch.equal(first.x, second.x)


def test_the_clients_masks_cannot_reach_dia():
    net = wide()
    x, y = victims(net, 4, classes=10)
    update, memory = share(net, x, y, seeds=SEEDS)
    shared = {"labels": y, "box": BOX, "config": dataclasses.replace(CONFIG, steps=40), "seeds": SEEDS}
    before = dropout_inversion(net, update, **shared), well_informed(net, update, memory, **shared)
    memory.masks[0].copy_(memory.masks[0].flip(-1).roll(1, -1))
    after = dropout_inversion(net, update, **shared), well_informed(net, update, memory, **shared)
    assert torch.equal(before[0].x, after[0].x) and torch.equal(before[0].masks[0], after[0].masks[0])
    assert not torch.equal(before[1].x, after[1].x), "the control does depend on them"


def test_a_client_is_attacked_alike_whoever_else_is_and_the_global_generator_rests():
    net = net_of(double=True, classes=10)
    x, y = victims(net, 4, classes=10)
    update, _ = share(net, x, y, seeds=SEEDS)
    config = dataclasses.replace(CONFIG, steps=15)
    before = torch.get_rng_state()
    all_four = dropout_inversion(net, update, labels=y, box=BOX, config=config, seeds=SEEDS)
    assert torch.equal(before, torch.get_rng_state())
    rows = torch.tensor([2])
    alone = dropout_inversion(net, update.rows(rows), labels=y[rows], box=BOX, config=config, seeds=SEEDS[2:3])
    torch.testing.assert_close(alone.x, all_four.x[2:3], rtol=1e-6, atol=1e-9)


def test_restarts_keep_the_lowest_loss():
    net = wide()
    x, y = victims(net, 3, classes=10)
    update, _ = share(net, x, y, seeds=SEEDS[:3])
    config = dataclasses.replace(CONFIG, steps=60)
    one, many = (
        dropout_inversion(net, update, labels=y, box=BOX, config=c, seeds=SEEDS[:3])
        for c in (config, dataclasses.replace(config, restarts=4))
    )
    assert (many.loss <= one.loss * (1 + 1e-3)).all() and many.x.shape == one.x.shape and (many.loss < one.loss).any()


def test_polishing_rounds_the_masks_and_every_start_lies_in_range():
    net = wide()
    x, y = victims(net, 2, classes=10)
    update, _ = share(net, x, y, seeds=SEEDS[:2])
    for how in ("bernoulli", "ones", "uniform"):
        config = dataclasses.replace(CONFIG, steps=5, mask_init=how, polish_steps=5)
        found = dropout_inversion(net, update, labels=y, box=BOX, config=config, seeds=SEEDS[:2])
        assert set(found.masks[0].unique().tolist()) <= {0.0, 1.0} and (found.iterations == 10).all()


def test_a_batch_has_masks_of_its_own_an_example():
    net = wide(batch=2, hidden=32)
    x, y = victims(net, 2, classes=10)
    y[:, 1] = (y[:, 0] + 1) % 10
    update, memory = share(net, x, y, seeds=[1, 2])
    assert memory.masks[0].shape == (2, 2, 32) and not torch.equal(memory.masks[0][:, 0], memory.masks[0][:, 1])
    found = dropout_inversion(
        net, update, labels=y, box=BOX, config=dataclasses.replace(CONFIG, steps=30), seeds=[1, 2]
    )
    assert found.x.shape == x.shape and found.masks[0].shape == (2, 2, 32)


def test_local_steps_are_inverted_too():
    net = net_of(config={"hidden": [32], "activation": "gelu"}, classes=10)
    x, y = victims(net, 2, classes=10)
    update, _ = share(net, x, y, seeds=[1, 2], local=LocalTraining(steps=3, lr=0.1))
    found = inverting_gradients(
        net, update, labels=y, box=BOX, config=dataclasses.replace(CONFIG, steps=300, patience=60), seeds=[1, 2]
    )
    assert psnr(x, found.x, box=BOX).min() > 30
    start = inverting_gradients(
        net, update, labels=y, box=BOX, config=dataclasses.replace(CONFIG, steps=1), seeds=[1, 2]
    )
    assert psnr(x, start.x, box=BOX).max() < 15


@pytest.mark.parametrize("hidden", [[16], [16, 8]])
def test_the_analytic_attack_is_exact_under_dropout_whatever_the_scale(hidden):
    net = net_of(config={"hidden": hidden, "activation": "relu", "dropout": 0.5}, classes=10)
    x, y = victims(net, 5, classes=10)
    update, _ = share(net, x, y, seeds=range(5))
    found = analytic_linear_inversion(net, update)
    assert (found - x).abs().max() < 1e-5
    tiny = dataclasses.replace(update, tensors={n: t * 1e-30 for n, t in update.tensors.items()})
    assert (analytic_linear_inversion(net, tiny) - x).abs().max() < 1e-5
    step, _ = share(net, x, y, seeds=range(5), local=LocalTraining(steps=1, lr=0.01))
    assert (analytic_linear_inversion(net, step) - x).abs().max() < 1e-3  # differences of weights have fewer digits


def test_the_analytic_attack_says_where_it_does_not_apply():
    cases = [
        net_of("cnn", {}, shape=(1, 8, 8)),
        net_of(batch=2),
        instrument_dropout(nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), input_shape=(1, 4, 4)),
        instrument_dropout(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(16, 3)), input_shape=(1, 4, 4)),
    ]
    for net in cases:
        x, y = victims(net)
        update, _ = share(net, x, y, seeds=range(3))
        with pytest.raises(NotApplicable, match="first layer"):
            analytic_linear_inversion(net, update)
    net = net_of()
    nothing = {n: torch.zeros(2, *p.shape) for n, p in net.params.items()}
    assert analytic_linear_inversion(net, dataclasses.replace(update, tensors=nothing)).isnan().all()


class Smooth(nn.Module):
    """Two sigmoid layers with the wide uniform weights of the DLG paper."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 5)
        for p in self.parameters():
            nn.init.uniform_(p, -0.5, 0.5)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x)))


def test_dlg_finds_input_and_label_of_a_smooth_network():
    net = instrument_dropout(Smooth().double(), input_shape=(12,))
    x, y = victims(net, 4, classes=5)
    update, _ = share(net, x, y, seeds=SEEDS)
    found = deep_leakage(net, update, seeds=SEEDS, steps=300)
    assert (found.x - x).abs().max() < 1e-2 and torch.equal(found.targets.argmax(-1), y)
    assert found.distance.max() < 1e-6 and (found.iterations > 0).all()


def test_batched_lbfgs_takes_torchs_steps_row_by_row():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    curve = root @ root.transpose(1, 2) / 6 + torch.eye(6, dtype=torch.float64)
    start = torch.randn(3, 6, generator=generator, dtype=torch.float64)

    def losses(z):
        return 0.5 * torch.einsum("ri,rij,rj->r", z, curve, z) + z.cos().sum(1)

    def evaluate(z):
        z = z.detach().requires_grad_()
        loss = losses(z)
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    best, loss, taken = lbfgs(evaluate, start, steps=12, history=4)
    for r in range(3):
        z = start[r].clone().requires_grad_()
        optimiser = torch.optim.LBFGS([z], lr=1, max_iter=1, history_size=4, tolerance_grad=0, tolerance_change=0)
        seen = []

        def closure():
            value = 0.5 * z @ curve[r] @ z + z.cos().sum()  # noqa: B023
            optimiser.zero_grad()  # noqa: B023
            value.backward()
            return value

        for _ in range(12):
            optimiser.step(closure)
            seen.append(((0.5 * z @ curve[r] @ z + z.cos().sum()).item(), z.detach().clone()))
        lowest = min(seen, key=lambda pair: pair[0])
        assert loss[r].item() == pytest.approx(lowest[0], abs=1e-10)
        torch.testing.assert_close(best[r], lowest[1], rtol=1e-6, atol=1e-6)
    assert (taken == 12).all()


def test_the_engine_takes_adams_steps_with_torchs_plateau():
    net = net_of(config={"hidden": [8], "activation": "tanh", "dropout": 0.5}, double=True)
    x, y = victims(net, 1)
    update, memory = share(net, x, y, seeds=[0])
    config = InversionConfig(steps=60, patience=3, lr=0.05, tv=0.0, mask_weight=1e-3, tolerance=0.0)
    objective = Objective(net, update, mask_weight=1e-3)
    start, mask = torch.rand_like(x), torch.rand_like(memory.masks[0])
    found = minimise(objective, start, y, config=config, box=BOX, free=[mask])
    z, m = start.clone().requires_grad_(), mask.clone().requires_grad_()
    adam = torch.optim.Adam([z, m], lr=0.05)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=3)
    best = (torch.inf, None)
    for step in range(61):
        loss = objective(z, [m], y)[0].sum()
        best = min(best, (loss.item(), z.detach().clone()), key=lambda pair: pair[0])
        if step == 60:
            break
        adam.zero_grad()
        loss.backward()
        z.grad.sign_()
        plateau.step(loss.item())
        adam.step()
        with torch.no_grad():
            z.clamp_(0, 1)
            m.clamp_(0, 1)
    assert found.loss.item() == pytest.approx(best[0], rel=1e-6)
    torch.testing.assert_close(found.x, best[1], rtol=1e-5, atol=1e-7)


def test_milestones_fall_at_the_eighths_and_a_finished_client_stays():
    net = wide()
    x, y = victims(net, 4, classes=10)
    update, memory = share(net, x, y, seeds=SEEDS)
    objective = Objective(net, update, rates=memory.rates)
    config = dataclasses.replace(IG_CONFIG, steps=16, tv=0.0, tolerance=1e-3)
    start = x.clone()
    start[2:] = torch.rand(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = minimise(objective, start, y, config=config, box=BOX, given=memory.masks)
    assert found.iterations.tolist() == [0, 0, 16, 16] and torch.equal(found.x[:2], x[:2])
    assert found.loss[:2].max() < 1e-3 < found.loss[2:].min()


def test_what_does_not_fit_is_refused():
    net = net_of()
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    config = InversionConfig(steps=1)
    with pytest.raises(InvalidInput, match="labels"):
        inverting_gradients(net, update, labels=y[:2], box=BOX, config=config, seeds=[0, 1, 2])
    with pytest.raises(InvalidInput, match="rates"):
        dropout_inversion(net, update, labels=y, box=BOX, config=config, seeds=[0, 1, 2], rates=torch.zeros(2, 1))
    with pytest.raises(InvalidInput, match="cannot be mixed"):
        mixed = torch.tensor([[0.0], [0.5], [0.5]])
        dropout_inversion(net, update, labels=y, box=BOX, config=config, seeds=[0, 1, 2], rates=mixed)
    with pytest.raises(ConfigError, match="not both"):
        minimise(Objective(net, update), x, y, config=config, box=BOX, free=memory.masks, given=memory.masks)
    with pytest.raises(InvalidInput, match="seeds"):
        deep_leakage(net, update, seeds=[0])
    with pytest.raises(ConfigError, match=r"InversionConfig\.lr"):
        InversionConfig(lr=0.0)


ARCHITECTURES = [
    ("cnn", {"channels": [4, 8], "hidden": 32}, 80),
    ("resnet_gn", {"widths": [4, 8], "groups": 2}, 40),
    ("vit", {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.3}, 60),
]


@pytest.mark.parametrize("name, config, steps", ARCHITECTURES, ids=[a[0] for a in ARCHITECTURES])
def test_masks_lower_the_loss_that_ig_is_stuck_at_on_every_architecture(name, config, steps):
    model = build(name, config, input_shape=(1, 8, 8), num_outputs=10, seed=0)
    net = instrument_dropout(model, input_shape=(1, 8, 8), rate=0.5)
    x, y = victims(net, 2, classes=10)
    update, memory = share(net, x, y, seeds=[1, 2])
    shared = {"labels": y, "box": BOX, "config": dataclasses.replace(CONFIG, steps=steps), "seeds": [1, 2]}
    ig, dia = inverting_gradients(net, update, **shared), dropout_inversion(net, update, **shared)
    control = well_informed(net, update, memory, **shared)
    assert (dia.distance < 0.8 * ig.distance).all() and (control.distance < 0.8 * ig.distance).all()
    # The reported distances are those of the reported iterates, and the victim's own is 0.
    for found, masks in ((ig, None), (dia, dia.masks), (control, memory.masks)):
        again = Objective(net, update, rates=memory.rates)(found.x, masks, y)[1]
        torch.testing.assert_close(again, found.distance, rtol=1e-3, atol=1e-5)
    assert Objective(net, update, rates=memory.rates)(x, memory.masks, y)[1].abs().max() < 1e-5
