"""Every dropout call is caught, in its shape, with its scale; attention equals torch's; the model stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from attacks.gradient_inversion import MaskableDropout, instrument_dropout
from attacks.gradient_inversion.maskable import Site
from contracts.errors import ConfigError, NotApplicable
from recipes.models import build


def ones(net):
    return [torch.ones(site.shape, dtype=net.dtype) for site in net.sites]


class Functional(nn.Module):
    """Dropout without a layer, switched by the module's mode; a spatial one; attention with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        h = F.dropout2d(torch.tanh(self.conv(x)), 0.3, training=self.training).flatten(2)  # (B, 4, HW)
        q = h.transpose(1, 2)[:, None]
        a = F.scaled_dot_product_attention(q, q, q, dropout_p=0.2 if self.training else 0.0)[:, 0]
        return self.out(F.dropout(a, 0.5, training=self.training).mean(1))


class Encoder(nn.Module):
    def __init__(self, need: bool = False) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def test_calls_are_caught_in_order_with_their_shapes_whatever_the_mode():
    sites = (Site(0.3, (2, 4, 1, 1)), Site(0.2, (2, 1, 16, 16)), Site(0.5, (2, 16, 4)))
    for model in (Functional().eval(), Functional().train()):
        assert instrument_dropout(model, input_shape=(1, 4, 4), batch=2).sites == sites


def test_attention_dropout_has_a_mask_a_head():
    net = instrument_dropout(Encoder().eval(), input_shape=(5, 8), batch=3)
    assert net.sites[0] == Site(pytest.approx(0.1), (3, 2, 5, 5)) and net.origin == "own"


@pytest.mark.parametrize("model, shape", [(Functional(), (1, 4, 4)), (Encoder(), (5, 8))])
def test_dropout_off_is_the_model_in_eval_mode(model, shape):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    net = instrument_dropout(model, input_shape=shape, batch=2)
    torch.testing.assert_close(net.logits(net.params, x), model.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_attention_equals_torchs(causal):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    for need in (True, False):
        expected = layer(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=need)
        with MaskableDropout("off"):
            found = layer(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=need)
        torch.testing.assert_close(found[0], expected[0])
        if need:
            torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention_equals_torchs(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
    with MaskableDropout("off"):
        found = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected)


def test_masks_of_ones_scale_a_deterministic_network():
    model = build("mlp", {"hidden": [7], "dropout": 0.25}, input_shape=(5,), num_outputs=3, seed=0)
    net = instrument_dropout(model, input_shape=(5,), batch=4)
    x = torch.randn(4, 5)
    scaled = model.head(F.relu(model.hidden[0](x)) / 0.75)
    torch.testing.assert_close(net.logits(net.params, x, masks=ones(net)), scaled)


def test_a_tracked_pass_is_what_use_gives_back_and_what_torch_would_compute():
    model = build("mlp", {"hidden": [50], "dropout": 0.5}, input_shape=(5,), num_outputs=3, seed=0)
    net = instrument_dropout(model, input_shape=(5,), batch=4)
    x = torch.randn(4, 5)
    before = torch.get_rng_state()
    mode = net.track(x, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    (mask,), (h,) = mode.masks, mode.inputs
    assert set(mask.unique().tolist()) == {0.0, 1.0} and 0.35 < mask.mean() < 0.65
    assert not torch.equal(mask[0], mask[1]), "one mask an example, not one for the batch"
    torch.testing.assert_close(h, F.relu(model.hidden[0](x)))
    assert ((h == 0) & (mask == 1)).any(), "a ReLU's zeros are not dropped units"
    torch.testing.assert_close(net.logits(net.params, x, masks=mode.masks), model.head(h * mask * 2))


def test_spatial_and_alpha_dropout_have_torchs_moments():
    x = torch.ones(4000, 6, 2, 2)
    with MaskableDropout("track", draw=torch.Generator().manual_seed(0)) as mode:
        spatial, alpha = (
            F.dropout2d(x, 0.3),
            F.alpha_dropout(torch.randn(200_000, generator=torch.Generator().manual_seed(1)), 0.2),
        )
    assert mode.masks[0].shape == (4000, 6, 1, 1)
    assert torch.equal(spatial, (mode.masks[0] / 0.7).expand_as(x))
    assert abs(alpha.mean()) < 0.01 and abs(alpha.std() - 1) < 0.01


def test_the_layer_has_a_second_derivative():
    def use(h, m):
        with MaskableDropout("use", masks=[m]):
            return F.dropout(torch.tanh(h), 0.3)

    h, m = (
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.rand(3, 4, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradgradcheck(use, (h, m))

    def attend(q, m):
        with MaskableDropout("use", masks=[m]):
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.2)

    q = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(attend, (q, torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)))


@pytest.mark.parametrize(
    "name, config, shape, widths",
    [
        ("mlp", {"hidden": [7, 6]}, (5,), [(1, 7), (1, 6)]),
        ("cnn", {"hidden": 9}, (1, 8, 8), [(1, 128), (1, 9)]),
        ("resnet_gn", {"widths": [8, 16]}, (1, 8, 8), [(1, 16)]),
        ("vit", {"dim": 8, "depth": 1, "heads": 2}, (1, 8, 8), [(1, 4, 8), (1, 4, 8)]),
    ],
)
def test_dropout_is_inserted_after_the_hidden_layers_of_a_model_without(name, config, shape, widths):
    model = build(name, config, input_shape=shape, num_outputs=3, seed=0)
    net = instrument_dropout(model, input_shape=shape, rate=0.4)
    assert net.origin == "inserted" and net.sites == tuple(Site(0.4, w) for w in widths)
    x = torch.randn(1, *shape)
    torch.testing.assert_close(net.logits(net.params, x), model.eval()(x))
    ruled = net.logits(net.params, x, masks=ones(net), rates=[0.0] * len(net.sites))
    torch.testing.assert_close(ruled, model(x))
    if name != "vit":
        zeros = [torch.zeros(site.shape) for site in net.sites]
        torch.testing.assert_close(net.logits(net.params, x, masks=zeros)[0], model.head.bias)


def test_own_dropout_is_not_overridden_and_a_linear_model_has_none():
    own = build("mlp", {"hidden": [7], "dropout": 0.1}, input_shape=(5,), num_outputs=3, seed=0)
    assert instrument_dropout(own, input_shape=(5,), rate=0.5).rates == (0.1,)
    linear = instrument_dropout(nn.Linear(5, 3), input_shape=(5,), rate=0.5)
    assert (linear.origin, linear.sites) == ("none", ())


def test_batchnorm_by_batch_or_running_statistics_moves_neither():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    model(torch.randn(20, 1, 8, 8))  # running statistics that are not the start's
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    running = instrument_dropout(model, input_shape=(1, 8, 8), batch=2)
    batch = instrument_dropout(model, input_shape=(1, 8, 8), batch=2, batch_statistics=True)
    found = running.logits(running.params, x), batch.logits(batch.params, x)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(found[0], copy.deepcopy(model).eval()(x))
    torch.testing.assert_close(found[1], copy.deepcopy(model).train()(x))
    assert running.has_batchnorm and not torch.allclose(*found)


def test_what_cannot_be_opened_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(5, 4, num_layers=2, dropout=0.5)

        def forward(self, x):
            return self.rnn(x)[0]

    with pytest.raises(NotApplicable, match="random beyond"):
        instrument_dropout(Noisy(5, 3), input_shape=(5,))
    with pytest.raises(NotApplicable, match="recurrent"):
        instrument_dropout(Sequence(), input_shape=(5,))
    with pytest.raises(NotApplicable, match="undefined"):
        instrument_dropout(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), input_shape=(5,), batch_statistics=True)
    with pytest.raises(NotApplicable, match="lets nothing through"):
        instrument_dropout(nn.Sequential(nn.Linear(5, 3), nn.Dropout(1.0)), input_shape=(5,))
    with pytest.raises(NotApplicable, match=r"logits \(B, K\)"):
        instrument_dropout(nn.Conv2d(1, 1, 1), input_shape=(1, 4, 4))

    class Rounded(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(NotApplicable, match="differentiated twice"):
        instrument_dropout(Rounded(5, 3), input_shape=(5,))
    with pytest.raises(ConfigError, match="rate"):
        instrument_dropout(nn.Linear(5, 3), input_shape=(5,), rate=1.0)
    net = instrument_dropout(nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)), input_shape=(5,))
    with pytest.raises(ConfigError, match="0 masks for 1"):
        net.logits(net.params, torch.zeros(1, 5), masks=[])


def test_the_model_is_left_as_it_was():
    model = build("mlp", {"hidden": [7]}, input_shape=(5,), num_outputs=3, seed=0).eval()
    net = instrument_dropout(model, input_shape=(5,), rate=0.5)
    net.logits({n: p + 1 for n, p in net.params.items()}, torch.zeros(1, 5), masks=ones(net))
    assert not model.training and not any(m._forward_pre_hooks for m in model.modules())
    fresh = build("mlp", {"hidden": [7]}, input_shape=(5,), num_outputs=3, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    moved = functional_call(model, {n: p + 1 for n, p in net.params.items()}, (torch.zeros(1, 5),))
    torch.testing.assert_close(net.logits({n: p + 1 for n, p in net.params.items()}, torch.zeros(1, 5)), moved)
