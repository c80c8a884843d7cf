"""The parts of continual recipes against closed forms and naive loops: distillation, anchors, Fisher information, head,
buffer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contracts.errors import InvalidInput, NotApplicable
from recipes.continual.anchors import EWCAnchor, L2Anchor, accumulate
from recipes.continual.buffer import Buffer, quotas, updated
from recipes.continual.distillation import bce_with_distilled_targets, feature_distillation, softmax_distillation
from recipes.continual.fisher import empirical_fisher_diagonal
from recipes.continual.head import CLOSED, GrowingHead, encoder_names, features_of, head_of
from recipes.continual.pretraining import turned
from recipes.continual.qkv import qkv_names, trainable_qkv
from recipes.models import build


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- distillation --------------------------------------------------------------------------------------------------


def test_distilled_bce_is_the_sum_over_classes_of_replaced_targets():
    o, t, y = randn(5, 4), randn(5, 2, seed=1), torch.tensor([2, 3, 2, 3, 2])
    loss = 0.0
    for i in range(5):
        for c in range(4):
            target = 1 / (1 + math.exp(-float(t[i, c]))) if c < 2 else float(y[i] == c)
            p = 1 / (1 + math.exp(-float(o[i, c])))
            loss -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert float(bce_with_distilled_targets(o, y, teacher=t)) == pytest.approx(loss / 5, rel=1e-12)


def test_without_a_teacher_every_seen_class_has_its_own_target():
    o, y = randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    wanted = F.binary_cross_entropy_with_logits(o, F.one_hot(y, 4).double(), reduction="none").sum(1).mean()
    assert torch.allclose(bce_with_distilled_targets(o, y), wanted)


def test_a_teacher_that_is_the_model_gives_no_gradient_on_old_logits():
    o = randn(6, 5).requires_grad_()
    bce_with_distilled_targets(o, torch.tensor([3, 4, 3, 4, 3, 4]), teacher=o[:, :3].detach()).backward()
    assert o.grad[:, :3].abs().max() < 1e-15 and (o.grad[:, 3:] != 0).all()
    o.grad = None
    bce_with_distilled_targets(o, torch.tensor([3, 4, 3, 4, 3, 4])).backward()
    assert (o.grad[:, :3] > 0).all(), "without distilled targets old logits are pushed down"


def test_a_class_that_comes_again_has_its_label_and_the_teachers_word():
    o, t, y = randn(4, 2), randn(4, 2, seed=1), torch.tensor([0, 1, 0, 1])
    found = bce_with_distilled_targets(o, y, teacher=t, own=torch.tensor([0, 1]), weight=0.5)
    hard = F.binary_cross_entropy_with_logits(o, F.one_hot(y, 2).double(), reduction="sum") / 4
    soft = F.binary_cross_entropy_with_logits(o, t.sigmoid(), reduction="sum") / 4
    assert torch.allclose(found, hard + 0.5 * soft)


def test_softmax_distillation_is_the_softened_cross_entropy_without_t_squared():
    o, t = randn(3, 5), randn(3, 2, seed=1)
    q, p = torch.softmax(t / 2, 1), torch.softmax(o[:, :2] / 2, 1)
    assert torch.allclose(softmax_distillation(o, t), -(q * p.log()).sum(1).mean())
    same = o[:, :2].clone().requires_grad_()
    softmax_distillation(same, o[:, :2]).backward()
    assert same.grad.abs().max() < 1e-15


def test_feature_distillation_sums_over_features_and_averages_over_the_batch():
    a, b = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    assert torch.allclose(feature_distillation(a, b), (a - b).square().sum() / 3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: bce_with_distilled_targets(randn(2, 3), torch.tensor([0])),
        lambda: bce_with_distilled_targets(randn(2, 3), torch.tensor([0, 1]), teacher=randn(2, 4)),
        lambda: softmax_distillation(randn(2, 3), randn(2, 2), temperature=0.0),
        lambda: feature_distillation(randn(2, 3), randn(2, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()


# --- anchors -------------------------------------------------------------------------------------------------------


def parameters() -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(randn(3, 2)), "b": nn.Parameter(randn(3, seed=1))}


def test_ewc_with_a_fisher_of_ones_is_l2_and_both_are_zero_at_the_anchor():
    params = parameters()
    l2, ewc = L2Anchor(params), EWCAnchor(params, {n: torch.ones_like(p) for n, p in params.items()})
    for anchor in (l2, ewc):
        grads = torch.autograd.grad(anchor.penalty(), list(params.values()))
        assert anchor.penalty().item() == 0.0 and all((g == 0).all() for g in grads)
    with torch.no_grad():
        params["w"] += 0.5
        params["b"][1] -= 2
    assert l2.penalty().item() == ewc.penalty().item() == pytest.approx(6 * 0.25 + 4)
    l2.move()
    assert l2.penalty().item() == 0.0 and ewc.penalty().item() > 0, "only the moved anchor has moved"


def test_ewc_weighs_every_parameter_without_one_half():
    params = parameters()
    fisher = {"w": randn(3, 2, seed=5).square(), "b": randn(3, seed=6).square()}
    anchor = EWCAnchor(params, fisher)
    with torch.no_grad():
        for p in params.values():
            p += 2
    assert anchor.penalty().item() == pytest.approx(4 * sum(float(f.sum()) for f in fisher.values()))


def test_only_the_named_rows_are_held():
    params = parameters()
    anchor = L2Anchor(params, rows={"w": torch.tensor([0, 2]), "b": torch.tensor([0, 2])})
    with torch.no_grad():
        params["w"][1] += 7
        params["b"][1] += 7
    assert anchor.penalty().item() == 0.0
    grads = torch.autograd.grad(anchor.penalty(), list(params.values()))
    assert all((g == 0).all() for g in grads)
    with torch.no_grad():
        params["w"][2] += 1
    assert anchor.penalty().item() == pytest.approx(2)


def test_fisher_information_accumulates_as_declared():
    one, two = {"w": torch.tensor([1e-5, 3e-4])}, {"w": torch.tensor([2e-4, 1e-5])}
    assert accumulate(None, one, how="sum")["w"].tolist() == one["w"].tolist()
    assert torch.allclose(accumulate(one, two, how="sum")["w"], torch.tensor([2.1e-4, 3.1e-4]))
    assert torch.allclose(accumulate(one, two, how="online", decay=0.5)["w"], torch.tensor([2.05e-4, 1.6e-4]))
    average = accumulate(one, two, how="average", old_share=0.25)["w"]
    assert torch.allclose(average, torch.tensor([0.25 * 1e-5 + 0.75 * 1e-4, 0.25 * 1e-4 + 0.75 * 1e-5]))
    assert accumulate(None, two, how="average")["w"].max() <= 1e-4
    for wrong in ({"how": "product"}, {"how": "average", "old_share": 1.5}):
        with pytest.raises(InvalidInput):
            accumulate(one, two, **wrong)
    for fisher in ({"w": torch.ones(3, 2)}, {n: -torch.ones_like(p) for n, p in parameters().items()}):
        with pytest.raises(InvalidInput):
            EWCAnchor(parameters(), fisher)


# --- Fisher information --------------------------------------------------------------------------------------------


def logistic(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))


@pytest.mark.parametrize("vectorised", [True, False])
def test_the_fisher_of_a_logistic_model_is_its_closed_form(vectorised):
    model = nn.Linear(3, 1).double()
    x, y = randn(40, 3), torch.arange(40) % 2
    fisher = empirical_fisher_diagonal(
        model, [(x[:13], y[:13]), (x[13:], y[13:])], loss_of=logistic, names=["weight", "bias"], vectorised=vectorised
    )
    error = (model(x)[:, 0].sigmoid() - y).detach()
    assert torch.allclose(fisher["weight"][0], (error.square()[:, None] * x.square()).mean(0))
    assert torch.allclose(fisher["bias"][0], error.square().mean())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_it_is_not_the_square_of_the_batch_gradient():
    model, x, y = nn.Linear(3, 1).double(), randn(40, 3), torch.arange(40) % 2
    fisher = empirical_fisher_diagonal(model, [(x, y)], loss_of=logistic, names=["weight"])["weight"]
    batch = torch.autograd.grad(logistic(model(x), y), model.weight)[0].square()
    assert (fisher > 2 * batch).all()


class Gate(nn.Module):
    """A branch on a value, which vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x if bool(x.sum() > 0) else -x)


def test_a_model_that_vmap_cannot_take_is_read_one_by_one():
    x, y, model = randn(9, 2), torch.arange(9) % 2, Gate()
    fisher = empirical_fisher_diagonal(model, [(x, y)], loss_of=logistic, names=["layer.weight"])["layer.weight"]
    squares = [
        torch.autograd.grad(logistic(model(a[None]), b[None]), model.layer.weight)[0].square()
        for a, b in zip(x, y, strict=True)
    ]
    assert torch.allclose(fisher, torch.stack(squares).mean(0))


def test_a_fisher_of_nothing_is_refused():
    model = nn.Linear(2, 1).double()
    for batches, names in (([], ["weight"]), ([(randn(2, 2), torch.tensor([0, 1]))], ["nothing"])):
        with pytest.raises(InvalidInput):
            empirical_fisher_diagonal(model, batches, loss_of=logistic, names=names)


# --- head ----------------------------------------------------------------------------------------------------------


def mlp(**config: object) -> nn.Module:
    return build("mlp", {"hidden": [6], **config}, input_shape=(4,), num_outputs=5, seed=3)


def test_a_class_that_is_not_seen_is_never_answered_and_opens_as_it_was_built():
    model, fresh = mlp(), mlp()
    head = GrowingHead(model, 5)
    x = randn(50, 4).float()
    assert (model(x) == CLOSED).all()
    head.open([3, 1])
    head.open([1, 4])
    assert head.seen == [3, 1, 4] and head.columns.tolist() == [3, 1, 4]
    out, wanted = model(x), fresh(x)
    assert torch.equal(out[:, [3, 1, 4]], wanted[:, [3, 1, 4]]) and (out[:, [0, 2]] == CLOSED).all()
    assert set(out.argmax(1).tolist()) <= {1, 3, 4}
    assert head.places(torch.tensor([4, 3, 1, 0])).tolist() == [2, 0, 1, -1]
    with torch.no_grad():
        head.layer.bias -= 1
    head.close_unseen()
    assert torch.equal(model(x)[:, 0], torch.full((50,), CLOSED))
    with pytest.raises(InvalidInput):
        head.open([5])


def test_the_head_is_found_and_its_input_are_the_features():
    model = mlp()
    assert head_of(model, 5)[0] == "head" and encoder_names(model, "head") == ["hidden.0.weight", "hidden.0.bias"]
    x = randn(3, 4).float()
    with features_of(model.head) as seen:
        out = model(x)
    assert torch.equal(model.head(seen[0]), out) and not model.head._forward_pre_hooks
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5))
    assert head_of(plain, 5)[0] == "2"
    with pytest.raises(NotApplicable):
        head_of(plain, 3)
    with pytest.raises(NotApplicable, match="no bias"):
        GrowingHead(nn.Linear(4, 5, bias=False), 5)


def test_only_projections_and_head_of_a_transformer_are_trained_inside():
    vit = build("vit", {"depth": 2, "dim": 8, "heads": 2}, input_shape=(1, 8, 8), num_outputs=3, seed=0)
    assert qkv_names(vit) == ["layers.0.qkv.weight", "layers.1.qkv.weight"]
    with trainable_qkv(vit, head="head"):
        left = [n for n, p in vit.named_parameters() if p.requires_grad]
    assert left == ["layers.0.qkv.weight", "layers.1.qkv.weight", "head.weight", "head.bias"]
    assert all(p.requires_grad for p in vit.parameters())
    assert qkv_names(nn.Sequential(nn.MultiheadAttention(4, 2))) == ["0.in_proj_weight"]
    with pytest.raises(NotApplicable):
        qkv_names(mlp())


def test_images_are_turned_one_by_one():
    x = randn(4, 2, 3, 3)
    found = turned(x, torch.tensor([0, 1, 2, 3]))
    for r in range(4):
        assert torch.equal(found[r], torch.rot90(x[r], r, dims=(-2, -1)))


# --- buffer --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 40))
def test_quotas_are_as_equal_as_the_counts_allow(counts, size):
    found = quotas(np.array(counts), size)
    assert found.sum() == min(size, sum(counts)) and (found <= counts).all() and (found >= 0).all()
    short = found < counts
    if short.any():
        assert found.max() - found[short].min() <= 1


def stream(buffer_size: int, policy: str, seed: int) -> Buffer:
    """Three steps of 30, 20 and 10 examples, two classes each."""
    buffer, first = Buffer.empty(), 0
    for step, num in enumerate((30, 20, 10)):
        ids = np.arange(first, first + num)
        buffer = updated(buffer, ids, 2 * step + ids % 2, size=buffer_size, policy=policy, seed=seed, step=step)
        assert len(buffer) == min(buffer_size, first + num) and (np.diff(buffer.example_id) > 0).all()
        first += num
    return buffer


def test_the_reservoir_is_a_uniform_sample_of_all_that_came():
    """Each of 60 in 12 of 60 with probability 1/5 over 4,000 seeds: standard error 0.0063."""
    rate = np.zeros(60)
    for seed in range(4000):
        rate[stream(12, "reservoir", seed).example_id] += 1 / 4000
    assert np.abs(rate - 0.2).max() < 4.5 * 0.0063


def test_the_balanced_buffer_is_uniform_within_every_class():
    rate = np.zeros(60)
    for seed in range(3000):
        buffer = stream(12, "class_balanced", seed)
        assert np.bincount(buffer.label).tolist() == [2] * 6
        rate[buffer.example_id] += 1 / 3000
    wanted = np.repeat([2 / 15, 2 / 10, 2 / 5], [30, 20, 10])
    assert (np.abs(rate - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / 3000)).all()


def test_the_buffer_depends_on_ids_and_seed_not_on_the_order_of_the_rows():
    ids, labels = np.array([7, 3, 9, 1, 5]), np.array([0, 1, 0, 1, 0])
    mixed = np.array([4, 2, 0, 1, 3])
    first, second = (
        updated(Buffer.empty(), ids[o], labels[o], size=3, policy="reservoir", seed=1, step=0)
        for o in (np.arange(5), mixed)
    )
    assert first.example_id.tolist() == second.example_id.tolist() and first.label.tolist() == second.label.tolist()
    with pytest.raises(InvalidInput, match="twice"):
        updated(first, first.example_id[:1], first.label[:1], size=3, policy="reservoir", seed=1, step=1)
    with pytest.raises(InvalidInput):
        updated(first, ids, labels, size=0, policy="reservoir", seed=1, step=1)
