"""Label-agnostic forgetting: its losses by hand, the whole against a naive loop, and that no label has a say."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable
from explain.embeddings import embedder, embeddings
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from unlearning.label_agnostic.embedding_vae import (
    EmbeddingVAE,
    EmbeddingVAEConfig,
    fit_embedding_vae,
    kl_to_standard_normal,
    units_of_embeddings,
)
from unlearning.label_agnostic.laf import LafConfig, label_agnostic_forgetting, laf
from unlearning.label_agnostic.laf_repair import LafRepairConfig, laf_repair, supervised_repair
from unlearning.label_agnostic.membership import sorted_softmax, tree_attack_success
from unlearning.label_agnostic.objectives import (
    bounded_score,
    cosine_distance,
    extractor_unlearning_loss,
    representation_alignment_loss,
)

SMALL = EmbeddingVAEConfig(hidden=(8, 6), latent=3, epochs=3)
QUICK = LafConfig(vae=SMALL, epochs=2, lr_ue=1e-3, lr_ra=2e-3, batch=10)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the losses ----------------------------------------------------------------------------------------------------


def test_the_score_is_bounded_and_rises():
    errors = torch.cat([torch.zeros(1), torch.logspace(-6, 12, 200)])
    each = torch.stack([bounded_score(q[None]) for q in errors])
    assert each[0] == 1.0 and bool((each.diff() >= 0).all()) and bool((each <= math.e + 1e-6).all())
    assert float(bounded_score(errors)) == pytest.approx(float(each.sum()), rel=1e-6)
    half = bounded_score(torch.ones(3))
    assert float(half) == pytest.approx(3 * math.exp(0.5))
    assert float(extractor_unlearning_loss(torch.ones(3), torch.zeros(2))) == pytest.approx(3 * math.exp(0.5) - 2)


def test_its_gradient_vanishes_with_the_square_of_the_error():
    q = torch.tensor([10.0, 1000.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bounded_score(q), q)
    expected = torch.exp(q / (q + 1)) / (q + 1) ** 2
    torch.testing.assert_close(slope, expected.detach())


@pytest.mark.parametrize(("kept", "gone"), [(32, 32), (7, 3), (1, 1)])
def test_the_alignment_loss_at_the_trained_model(kept, gone):
    loss = representation_alignment_loss(torch.zeros(kept), torch.zeros(gone), temperature=20.0)
    assert float(loss) == pytest.approx(-kept * math.log(gone), abs=1e-4)


def test_the_alignment_loss_by_hand_and_where_its_temperature_stands():
    c, d = torch.tensor([0.1, 0.5]), torch.tensor([0.2, 1.0, 2.0])
    by_hand = sum(float(ci) - math.log(sum(math.exp(float(dj) / 5) for dj in d)) for ci in c)
    assert float(representation_alignment_loss(c, d, temperature=5.0)) == pytest.approx(by_hand, rel=1e-6)
    own = c.clone().requires_grad_(), d.clone().requires_grad_()
    pull, push = torch.autograd.grad(representation_alignment_loss(*own, temperature=5.0), own)
    assert pull.tolist() == [1.0, 1.0]  # no temperature in the numerator
    torch.testing.assert_close(push, -2 / 5 * torch.softmax(d / 5, 0))


def test_cosine_distance_is_that_of_torch_for_positive_pairs():
    a, b = torch.randn(6, 4, generator=draws()), torch.randn(6, 4, generator=draws(1))
    expected = F.cosine_embedding_loss(a, b, torch.ones(6), reduction="none")
    torch.testing.assert_close(cosine_distance(a, b), expected)
    assert float(cosine_distance(a, 3 * a).abs().max()) < 1e-6 and float(cosine_distance(a, -a).min()) > 1.999


# ---- the autoencoder -----------------------------------------------------------------------------------------------


def test_the_divergence_is_zero_for_the_standard_normal_only():
    assert float(kl_to_standard_normal(torch.zeros(4, 3), torch.ones(4, 3))) == 0.0
    rng = draws()
    for _ in range(200):
        mean, deviation = torch.randn(5, 3, generator=rng), torch.exp(torch.randn(5, 3, generator=rng))
        p = torch.distributions.Normal(mean.double(), deviation.double())
        exact = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
        found = float(kl_to_standard_normal(mean, deviation))
        assert found > 0 and found == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("decoder", ["sigmoid", "linear"])
def test_the_error_is_of_the_sampled_reconstruction_and_gradients_flow_through_both(decoder):
    config = dataclasses.replace(SMALL, decoder=decoder)
    e = torch.randn(9, 5, generator=draws()) * 3 + 1
    shift, scale = units_of_embeddings(e, config)
    vae = EmbeddingVAE(config, shift=shift, scale=scale)
    noise = torch.randn(9, 3, generator=draws(1))
    errors, mean, deviation = vae(e, noise)
    x = (e - shift) / scale
    h = F.relu(vae.encoder[2](F.relu(vae.encoder[0](x))))
    torch.testing.assert_close(mean, vae.mean(h))
    torch.testing.assert_close(deviation, torch.exp(0.5 * vae.log_variance(h)))
    out = vae.decoder[4](F.relu(vae.decoder[2](F.relu(vae.decoder[0](mean + deviation * noise)))))
    out = torch.sigmoid(out) if decoder == "sigmoid" else out
    torch.testing.assert_close(errors, ((out - x) ** 2).sum(1))
    if decoder == "sigmoid":
        assert torch.equal(x, e)
    else:
        assert float(x.mean(0).abs().max()) < 1e-6 and x.std(0, correction=0).tolist() == pytest.approx([1.0] * 5)
    moved, _, _ = vae(e, noise + 1)
    assert not torch.allclose(moved, errors)
    moving = e.clone().requires_grad_()
    (both,) = torch.autograd.grad(vae(moving, noise)[0].sum(), moving)
    direct = 2 * (x - out) / scale  # the part through e alone
    assert not torch.allclose(both, direct.detach(), atol=1e-4)


def test_a_fitted_autoencoder_fits_is_frozen_and_is_its_seeds():
    rng = draws()
    line = torch.randn(300, 1, generator=rng) @ torch.randn(1, 6, generator=rng)
    config = EmbeddingVAEConfig(decoder="linear", hidden=(16, 8), latent=2, epochs=40)
    units = units_of_embeddings(line, config)
    first = fit_embedding_vae(line, config=config, units=units, seed=1)
    noise = torch.randn(300, 2, generator=rng)
    errors, _, _ = first(line, noise)
    strangers, _, _ = first(torch.randn(300, 6, generator=rng) * 2, noise)
    assert float(errors.mean()) < 1.5 < 6 < float(strangers.mean())  # 6 = saying the mean, of six standardised
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    short = dataclasses.replace(config, epochs=1)
    one, again, other = (fit_embedding_vae(line, config=short, units=units, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.mean.weight, other.mean.weight)


def test_what_cannot_be_fitted_is_refused():
    units = torch.zeros(2), torch.ones(2)
    with pytest.raises(DataError):
        fit_embedding_vae(torch.zeros(0, 2), config=SMALL, units=units, seed=0)
    with pytest.raises(Diverged):
        fit_embedding_vae(torch.full((4, 2), torch.inf), config=SMALL, units=units, seed=0)
    constant = units_of_embeddings(torch.ones(5, 2), dataclasses.replace(SMALL, decoder="linear"))
    assert constant[1].tolist() == [1.0, 1.0]


# ---- the whole -----------------------------------------------------------------------------------------------------


def test_the_embedder_gives_what_the_output_layer_is_given(world):
    model = copy.deepcopy(world.model)
    x = torch.from_numpy(world.retain.inputs(slice(0, 7)))
    with embedder(model) as embed:
        found = embed(x)
    np.testing.assert_allclose(found.detach().numpy(), embeddings(world.model, world.retain)[:7], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.head(found), model(x))
    gradients = torch.autograd.grad(found.sum(), list(model.hidden.parameters()))
    assert all(float(g.abs().sum()) > 0 for g in gradients)
    assert not any(m._forward_pre_hooks for m in model.modules())

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.head(x))

    with pytest.raises(NotApplicable, match="once"), embedder(Twice()) as embed:
        embed(x)


def naive(model: nn.Module, retain: ExampleSet, forget: ExampleSet, config: LafConfig, seed: int) -> nn.Module:
    """The published loop, written out; the hidden layer of the model is its extractor."""
    model = copy.deepcopy(model)
    x_r, x_f = (torch.from_numpy(d.by_id().inputs(slice(None))) for d in (retain, forget))
    g = lambda x: F.relu(model.hidden[0](x))  # noqa: E731
    with torch.no_grad():
        r0, f0 = g(x_r), g(x_f)
    units = units_of_embeddings(torch.cat([r0, f0]), config.vae)
    h_r = fit_embedding_vae(torch.cat([r0, f0]), config=config.vae, units=units, seed=derive_seed("laf", "all", seed))
    h_f = fit_embedding_vae(f0, config=config.vae, units=units, seed=derive_seed("laf", "forget", seed))
    one, two = torch.optim.Adam(model.parameters(), config.lr_ue), torch.optim.Adam(model.parameters(), config.lr_ra)
    rng = draws(derive_seed("laf", "draws", seed))
    for _ in range(config.epochs):
        order_r, order_f = torch.randperm(len(x_r), generator=rng), torch.randperm(len(x_f), generator=rng)
        for a, b in zip(order_r.split(config.batch), order_f.split(config.batch), strict=False):
            q_r = h_r(g(x_r[a]), torch.randn(len(a), config.vae.latent, generator=rng))[0]
            q_f = h_f(g(x_f[b]), torch.randn(len(b), config.vae.latent, generator=rng))[0]
            loss = torch.exp(q_r / (q_r + 1)).sum() - torch.exp(q_f / (q_f + 1)).sum()
            one.zero_grad()
            loss.backward()
            one.step()
            c_r = F.cosine_embedding_loss(g(x_r[a]), r0[a], torch.ones(len(a)), reduction="none")
            c_f = F.cosine_embedding_loss(g(x_f[b]), f0[b], torch.ones(len(b)), reduction="none")
            loss = (c_r - torch.exp(c_f / config.temperature).sum().log()).sum()
            two.zero_grad()
            loss.backward()
            two.step()
    return model


@pytest.mark.parametrize("decoder", ["sigmoid", "linear"])
def test_it_equals_the_naive_loop(world, flat, decoder):
    config = dataclasses.replace(QUICK, vae=dataclasses.replace(SMALL, decoder=decoder), temperature=5.0)
    expected = naive(world.model, world.retain, world.forget, config, seed=4)
    got = laf(world.model, **world.sets, config=config, seed=4)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-4, atol=1e-5)
    assert (flat(got) - flat(world.model)).abs().max() > 1e-3
    assert torch.equal(got.head.weight, world.model.head.weight)  # neither loss sees the output layer


@pytest.mark.parametrize("change", [{"lr_ue": 0.0}, {"lr_ra": 0.0}, {"temperature": 0.1}, {"error": "mean"}])
def test_every_part_has_a_say(world, flat, change):
    config = dataclasses.replace(QUICK, vae=dataclasses.replace(SMALL, decoder="linear"), temperature=5.0)
    whole, other = (
        flat(laf(world.model, **world.sets, config=c, seed=4)) for c in (config, dataclasses.replace(config, **change))
    )
    assert (whole - other).abs().max() > 1e-4


def test_no_label_has_a_say(world, flat):
    labels = np.random.default_rng(0).permutation(np.concatenate([world.retain.y, world.forget.y]))
    cut = len(world.retain)
    blind = {
        "retain": dataclasses.replace(world.retain, y=labels[:cut]),
        "forget": dataclasses.replace(world.forget, y=labels[cut:]),
    }
    first, trace = label_agnostic_forgetting(world.model, **world.sets, config=QUICK, seed=1)
    second, same = label_agnostic_forgetting(world.model, **blind, config=QUICK, seed=1)
    assert torch.equal(flat(first), flat(second)) and trace.equals(same)
    # The repair does read them.
    config = LafRepairConfig(vae=SMALL, epochs=1, labelled=0.5, repair_lr=0.05)
    seeing, blinded = (laf_repair(world.model, **sets, config=config, seed=1) for sets in (world.sets, blind))
    assert not torch.equal(flat(seeing), flat(blinded))


def test_the_trace_says_how_it_went(world):
    still = dataclasses.replace(QUICK, lr_ue=0.0, lr_ra=0.0, batch=8)
    got, trace = label_agnostic_forgetting(world.model, **world.sets, config=still, seed=0)
    assert trace["epoch"].to_list() == [1, 2] and len(world.forget) == 24
    assert trace["loss_ra"].to_list() == pytest.approx([-8 * math.log(8)] * 2, abs=1e-4)
    assert trace["mean_cos_retain"].to_list() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert torch.equal(got.hidden[0].weight, world.model.hidden[0].weight)
    strong = dataclasses.replace(QUICK, vae=dataclasses.replace(SMALL, decoder="linear"), epochs=30, lr_ra=1e-2)
    red = world.retain.y == 0
    sides = {"retain": ~red, "forget": red}
    by_class = {name: world.retain.subset(world.retain.example_id[rows]) for name, rows in sides.items()}
    _, trace = label_agnostic_forgetting(world.model, **by_class, config=strong, seed=0)
    last = trace.row(-1, named=True)
    assert last["mean_cos_forget"] < last["mean_cos_retain"] - 0.1
    assert trace["loss_ra"][-1] < trace["loss_ra"][0]


def test_same_seed_same_bits_whatever_the_order_of_the_rows_or_the_mode(world, flat):
    mixed = {k: d.subset(np.random.default_rng(9).permutation(d.example_id)) for k, d in world.sets.items()}
    training = copy.deepcopy(world.model).train()
    first, again, mode, other = (
        laf(model, **sets, config=QUICK, seed=seed)
        for model, sets, seed in (
            (world.model, world.sets, 1),
            (world.model, mixed, 1),
            (training, world.sets, 1),
            (world.model, world.sets, 2),
        )
    )
    assert torch.equal(flat(first), flat(again)) and torch.equal(flat(first), flat(mode))
    assert not torch.equal(flat(first), flat(other)) and training.training and not first.training
    assert all(p.grad is None for p in first.parameters()) and all(p.grad is None for p in training.parameters())


def test_running_statistics_and_dropout_stand_still(world):
    torch_state = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4)).eval()
    torch.set_rng_state(torch_state)
    first, second = (laf(model, **world.sets, config=QUICK, seed=0) for _ in range(2))
    assert torch.equal(first[1].running_mean, model[1].running_mean) and torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[1].weight, model[1].weight)


def test_nothing_to_forget_or_no_epoch_changes_nothing(world, flat):
    nobody = world.forget.subset([])
    for forget, config in ((nobody, QUICK), (world.forget, dataclasses.replace(QUICK, epochs=0))):
        got, trace = label_agnostic_forgetting(world.model, retain=world.retain, forget=forget, config=config, seed=0)
        assert torch.equal(flat(got), flat(world.model)) and trace.is_empty()
    with pytest.raises(DataError, match="retain set is empty"):
        laf(world.model, retain=nobody, forget=world.forget, config=QUICK, seed=0)
    with pytest.raises(NotApplicable, match="no linear output layer"):
        laf(
            nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 6), nn.Flatten()), **world.sets, config=QUICK, seed=0
        )
    huge = copy.deepcopy(world.model)
    with torch.no_grad():
        huge.hidden[0].weight.mul_(1e25)  # embeddings are finite, their squares are not
    with pytest.raises(Diverged, match="loss"):
        laf(huge, **world.sets, config=QUICK, seed=0)


def test_the_repair_moves_the_output_layer_alone_and_mends_it(world):
    spoilt = copy.deepcopy(world.model)
    with torch.no_grad():
        spoilt.head.weight.add_(torch.randn(spoilt.head.weight.shape, generator=draws()) * 3)
    config = LafRepairConfig(labelled=0.3, repair_epochs=60, repair_lr=0.1)
    before, after = spoilt, supervised_repair(spoilt, retain=world.retain, config=config, seed=0)
    assert torch.equal(after.hidden[0].weight, before.hidden[0].weight)
    right = [float((predict_logits(m, world.test).argmax(1) == world.test.y).mean()) for m in (before, after)]
    assert right[1] > right[0] + 0.1
    nothing = dataclasses.replace(config, repair_epochs=0)
    same = supervised_repair(spoilt, retain=world.retain, config=nothing, seed=0)
    assert torch.equal(same.head.weight, spoilt.head.weight)


def test_the_repair_uses_its_share_of_the_labels(world):
    config = LafRepairConfig(labelled=0.05, repair_epochs=1)
    usual, used = supervised_repair(world.model, retain=world.retain, config=config, seed=0), set()
    for example in world.retain.example_id:
        y = world.retain.y.copy()
        row = world.retain.positions([example])[0]
        y[row] = (y[row] + 1) % 4
        changed = dataclasses.replace(world.retain, y=y)
        other = supervised_repair(world.model, retain=changed, config=config, seed=0)
        if not torch.equal(usual.head.weight, other.head.weight):
            used.add(int(example))
    assert len(used) == math.ceil(0.05 * len(world.retain))


def confident(count: int, margin: float, *, seed: int) -> np.ndarray:
    """Logits (count, 4) with one class, any, ahead by about a margin."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 4))
    logits[np.arange(count), rng.integers(0, 4, count)] += margin
    return logits


def test_trees_tell_confidence_whatever_the_class_and_nothing_where_there_is_none():
    sides = confident(600, 8.0, seed=0), confident(400, 2.0, seed=1)
    known, unknown = confident(300, 8.0, seed=2), confident(500, 2.0, seed=3)
    assert tree_attack_success(*sides, forgotten=known, unseen=unknown, seed=0) > 85
    assert tree_attack_success(*sides, forgotten=unknown, unseen=known, seed=0) < 15  # not folded at a half
    again = confident(300, 2.0, seed=4)
    assert abs(tree_attack_success(*sides, forgotten=again, unseen=unknown, seed=0) - 50) < 8
    same = confident(600, 2.0, seed=5), confident(600, 2.0, seed=6)
    assert abs(tree_attack_success(*same, forgotten=known[:200], unseen=known[200:], seed=0) - 50) < 15


def test_the_tree_attack_is_blind_to_classes_and_to_the_order_of_rows_and_counts_each_side_by_half():
    sides = confident(300, 5.0, seed=0), confident(200, 2.0, seed=1)
    given = {"forgotten": confident(90, 4.0, seed=2), "unseen": confident(400, 2.0, seed=3)}
    first = tree_attack_success(*sides, **given, seed=7)
    mixed = [side[::-1][:, [2, 0, 3, 1]] for side in sides]
    assert tree_attack_success(*mixed, **{k: v[:, ::-1] for k, v in given.items()}, seed=7) == first
    twice = {**given, "unseen": np.concatenate([given["unseen"]] * 3)}
    assert tree_attack_success(*sides, **twice, seed=7) == pytest.approx(first)
    assert tree_attack_success(*sides, **given, seed=8) != first  # another 200 of the 300


def test_sorted_softmax_is_its_definition_and_bad_sides_are_refused_by_name():
    logits = confident(5, 3.0, seed=0)
    by_hand = [sorted((np.exp(z) / np.exp(row).sum() for z in row), reverse=True) for row in logits]
    np.testing.assert_allclose(sorted_softmax(logits), by_hand)
    good = {"forgotten": logits, "unseen": logits}
    for bad in (np.empty((0, 4)), np.full((3, 4), np.nan), np.zeros((3, 1)), np.zeros(4)):
        with pytest.raises(InvalidInput, match="outsiders of shape"):
            tree_attack_success(logits, bad, **good, seed=0)
    with pytest.raises(InvalidInput, match="numbers of classes: members 4, outsiders 3"):
        tree_attack_success(logits, logits[:, :3], **good, seed=0)
