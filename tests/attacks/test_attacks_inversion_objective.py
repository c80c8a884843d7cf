"""What is shared equals a plain autograd and a plain SGD loop; the distances equal their formulas on flat vectors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from inversion_helpers import net_of, victims
from torch import nn

from attacks.gradient_inversion import LocalTraining, Update, instrument_dropout, share, shared_update
from attacks.gradient_inversion import objective as objective_module
from attacks.gradient_inversion.objective import Objective, check_update, total_variation
from contracts.errors import DataError, InvalidInput

MODELS = [
    ("mlp", {"hidden": [6], "activation": "gelu", "dropout": 0.25}, (1, 8, 8)),
    ("cnn", {"channels": [2, 3], "hidden": 5}, (1, 8, 8)),
    ("resnet_gn", {"widths": [4, 8], "groups": 2}, (1, 8, 8)),
    ("vit", {"dim": 8, "depth": 1, "heads": 2, "dropout": 0.1}, (1, 8, 8)),
]


def flat(tensors, r):
    return torch.cat([t[r].flatten() for t in tensors])


@pytest.mark.parametrize("name, config, shape", MODELS, ids=[m[0] for m in MODELS])
@pytest.mark.parametrize("batch", [1, 3])
def test_clients_side_by_side_are_what_each_computes_alone(name, config, shape, batch):
    net = net_of(name, config, shape=shape, batch=batch, rate=0.25, double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[5, 6, 7])
    for r in range(3):
        params = {n: p.clone().requires_grad_() for n, p in net.params.items()}
        masks = [m[r] for m in memory.masks]
        loss = F.cross_entropy(net.logits(params, x[r], masks=masks), y[r])
        for n, g in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            torch.testing.assert_close(update.tensors[n][r], g, rtol=1e-9, atol=1e-12)
    alone, other = share(net, x[1:2], y[1:2], seeds=[6])
    assert all(torch.equal(a[0], b[1]) for a, b in zip(other.masks, memory.masks, strict=True))
    assert torch.allclose(flat(alone.tensors.values(), 0), flat(update.tensors.values(), 1), rtol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_update_of_local_steps_is_the_plain_sgd_loop(dropout):
    net = net_of(config={"hidden": [6], "activation": "tanh", "dropout": dropout}, batch=4, double=True)
    x, y = victims(net, 2)
    local = LocalTraining(steps=5, lr=0.3)
    update, memory = share(net, x, y, seeds=[1, 2], local=local)
    assert len(memory.masks) == 5 * len(net.sites)
    for r in range(2):
        model = copy.deepcopy(net.model)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
        for step in range(5):
            masks = [m[r] for m in memory.masks[step * len(net.sites) : (step + 1) * len(net.sites)]]
            optimiser.zero_grad()
            F.cross_entropy(net.logits(dict(model.named_parameters()), x[r], masks=masks), y[r]).backward()
            optimiser.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(update.tensors[n][r], p.detach() - net.params[n], rtol=1e-9, atol=1e-12)
    if dropout:
        assert not torch.equal(memory.masks[0], memory.masks[1]), "each local step draws anew"


def test_one_local_step_is_minus_lr_times_the_gradient_and_one_hot_is_the_label():
    net = net_of(batch=2, double=True)
    x, y = victims(net)
    masks = share(net, x, y, seeds=[0, 1, 2])[1].masks
    gradient = shared_update(net, x, y, masks=masks)
    step = shared_update(net, x, y, masks=masks, local=LocalTraining(steps=1, lr=0.2))
    soft = shared_update(net, x, F.one_hot(y, 3).double(), masks=masks)
    for n, g in gradient.tensors.items():
        torch.testing.assert_close(step.tensors[n], -0.2 * g)
        torch.testing.assert_close(soft.tensors[n], g)


@pytest.mark.parametrize("keep", [None, 0.1])
def test_the_distances_are_their_formulas_on_all_parameters_at_once(keep):
    net = net_of(double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    other = victims(net, seed=9)[0]
    found = shared_update(net, other, y, masks=memory.masks)
    for r in range(3):
        g, g_star = flat(found.tensors.values(), r), flat(update.tensors.values(), r)
        if keep:
            kept = torch.zeros_like(g)
            kept[g_star.abs().topk(round(keep * len(g))).indices] = 1
            g, g_star, scale = g * kept, g_star * kept, g_star.norm()
        else:
            scale = g_star.norm()
        expected = {
            "cosine": 1 - F.cosine_similarity(g, g_star, dim=0),
            "squared": ((g - g_star) / scale).square().sum(),
            "l1": (g - g_star).abs().sum() / g_star.abs().sum(),
        }
        for name, value in expected.items():
            _, distance = Objective(net, update, distance=name, keep=keep)(other, memory.masks, y)
            torch.testing.assert_close(distance[r], value, rtol=1e-9, atol=1e-12)


def test_the_cosine_is_zero_at_the_victim_and_free_of_scale():
    net = net_of(double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    other = victims(net, seed=4)[0]
    scaled = Update({n: 1e-9 * t for n, t in update.tensors.items()})
    assert Objective(net, update)(x, memory.masks, y)[1].abs().max() < 1e-12
    torch.testing.assert_close(
        Objective(net, scaled)(other, memory.masks, y)[1], Objective(net, update)(other, memory.masks, y)[1]
    )


@pytest.mark.parametrize("keep", [None, 0.3])
def test_the_cosine_and_its_gradient_are_those_of_torch(keep, monkeypatch):
    monkeypatch.setattr(objective_module, "_PIECE", 20)  # several pieces a parameter
    net = net_of(double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    leaves = [victims(net, seed=4)[0].requires_grad_(), *(m.clone().requires_grad_() for m in memory.masks)]
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    objective = Objective(net, update, keep=keep)
    _, distance = objective(leaves[0], leaves[1:], y)
    found = shared_update(net, leaves[0], y, masks=leaves[1:]).tensors.values()
    expected = []
    for r in range(3):
        g, g_star = flat(found, r), flat(update.tensors.values(), r)
        if keep:
            chosen = torch.zeros_like(g)
            chosen[g_star.abs().topk(round(keep * len(g))).indices] = 1
            g, g_star = g * chosen, g_star * chosen
        expected.append(1 - F.cosine_similarity(g, g_star, dim=0))
    torch.testing.assert_close(distance, torch.stack(expected), rtol=1e-10, atol=1e-13)
    slopes, wanted = (
        torch.autograd.grad((weights * d).sum(), leaves) for d in (distance, torch.stack(expected))
    )  # weights: each client has a slope of its own
    for slope, plain in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, plain, rtol=1e-9, atol=1e-13)


def test_a_gradient_of_zero_has_a_finite_slope():
    net = net_of()
    x, y = victims(net)
    update, _ = share(net, x, y, seeds=[0, 1, 2])
    found = [torch.zeros_like(t, requires_grad=True) for t in update.tensors.values()]
    distance = Objective(net, update)._compare(found)
    assert torch.equal(distance, torch.ones(3))
    assert all(bool(s.isfinite().all()) for s in torch.autograd.grad(distance.sum(), found))


def test_one_keep_is_no_mask_and_rows_are_the_clients_alone():
    net = net_of(double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    other = victims(net, seed=4)[0]
    whole = Objective(net, update, rates=memory.rates, tv=0.1, mask_weight=0.1)
    kept = Objective(net, update, rates=memory.rates, tv=0.1, mask_weight=0.1, keep=1.0)
    total, _ = whole(other, memory.masks, y)
    assert torch.equal(total, kept(other, memory.masks, y)[0])
    at = torch.tensor([2, 0])
    part, _ = whole.rows(at)(other[at], [m[at] for m in memory.masks], y[at])
    torch.testing.assert_close(part, total[at])


class Recurrent(nn.Module):
    """No rule under vmap, and a branch that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        h = self.rnn(x[:, 0])[0][:, -1]
        return self.head(F.dropout(h if x.sum() < 100 else -h, 0.5))


def test_a_model_that_vmap_cannot_take_is_differentiated_client_by_client():
    torch.manual_seed(0)
    net = instrument_dropout(Recurrent().double(), input_shape=(1, 4, 4))
    assert not net.side_by_side
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    for r in range(3):
        params = {n: p.clone().requires_grad_() for n, p in net.params.items()}
        loss = F.cross_entropy(net.logits(params, x[r], masks=[m[r] for m in memory.masks]), y[r])
        for n, g in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            torch.testing.assert_close(update.tensors[n][r], g)
    assert all(not t.requires_grad for t in update.tensors.values())


@pytest.mark.parametrize("local", [LocalTraining(), LocalTraining(steps=2, lr=0.3)])
def test_one_by_one_and_side_by_side_have_the_same_slopes(local):
    net = net_of(config={"hidden": [6], "activation": "tanh", "dropout": 0.5}, double=True)
    assert net.side_by_side
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2], local=local)
    slopes = []
    for side_by_side in (True, False):
        net.side_by_side = side_by_side
        other = victims(net, seed=4)[0].requires_grad_()
        total, _ = Objective(net, update)(other, memory.masks, y)
        slopes.append(torch.autograd.grad(total.sum(), other)[0])
    torch.testing.assert_close(*slopes)


def test_total_variation_and_mask_penalty():
    x = torch.tensor([[[[[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]]]]])  # |dx| = 1, 2, 0, 0; |dy| = 2, 1, 1
    assert total_variation(x).item() == pytest.approx(3 / 4 + 4 / 3)
    assert total_variation(torch.rand(2, 3, 5)).tolist() == [0.0, 0.0]
    net = net_of(config={"hidden": [4, 4], "dropout": 0.25}, double=True)
    x, y = victims(net, 1)
    update, _ = share(net, x, y, seeds=[0])
    masks = [torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]).double(), torch.ones(1, 1, 4).double()]  # dropped 0.5 and 0
    total, distance = Objective(net, update, mask_weight=2.0)(x, masks, y)
    assert (total - distance).item() == pytest.approx(2.0 * (0.25 + 0.25))


def test_a_gradient_of_zero_is_no_division_by_zero():
    net = net_of(double=True)
    x, y = victims(net, 1)
    nothing = Update({n: torch.zeros(1, *p.shape, dtype=p.dtype) for n, p in net.params.items()})
    x.requires_grad_()
    total, distance = Objective(net, nothing)(x, None, y)
    assert distance.item() == 1.0 and torch.autograd.grad(total.sum(), x)[0].isfinite().all()


def test_gradients_of_the_objective_pass_gradcheck():
    net = net_of(config={"hidden": [5], "activation": "tanh", "dropout": 0.5}, shape=(3,), double=True)
    x, y = victims(net, 2)
    update, memory = share(net, x, y, seeds=[0, 1])
    other, masks = (
        victims(net, 2, seed=3)[0].requires_grad_(),
        memory.masks[0].clone().uniform_(0.2, 0.8).requires_grad_(),
    )
    for local in (LocalTraining(), LocalTraining(steps=2, lr=0.5)):
        seen = Update(update.tensors, local)
        objective = Objective(net, seen, mask_weight=0.1)
        assert torch.autograd.gradcheck(lambda a, m: objective(a, [m] * local.passes, y)[0], (other, masks))  # noqa: B023


def test_what_does_not_fit_is_refused():
    net, double = net_of(), net_of(double=True)
    x, y = victims(net)
    update, memory = share(net, x, y, seeds=[0, 1, 2])
    with pytest.raises(InvalidInput, match="does not fit"):
        check_update(Update({n: t[:, :1] for n, t in update.tensors.items()}), net)
    broken = {n: torch.full_like(t, torch.nan) for n, t in update.tensors.items()}
    with pytest.raises(DataError, match="not finite"):
        Objective(net, Update(broken))
    with pytest.raises(InvalidInput, match="masks"):
        shared_update(net, x, y, masks=memory.masks * 2)
    with pytest.raises(InvalidInput, match="seeds"):
        share(net, x, y, seeds=[0])
    x[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError) as error:
        share(double, x, y, seeds=[0, 1, 2], ids=[[40], [41], [42]])
    assert error.value.example_ids == (41,)
