"""Closed forms against vmap and against one backward pass an example, in float64, for every kind of layer."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.errors import NameTaken, NotApplicable
from recipes.models import build
from scoring.error_vector import error_vector
from scoring.grad_norms import PerExampleGradNorm, closed_form
from scoring.grad_norms.fallback import loop_squared_norms, vmap_squared_norms
from scoring.grand import output_gradient
from tasks.base import named

K = 3
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


class Net(nn.Module):
    """``body``, then the mean over everything but batch and channels (or the last axis), then a linear head."""

    def __init__(self, body: nn.Module, width: int, *, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.axes, self.head = body, axes, nn.Linear(width, K)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h.mean(self.axes) if self.axes else h)


def image_net(*layers: nn.Module, width: int) -> Net:
    return Net(nn.Sequential(*layers), width, axes=(2, 3))


def token_net(*layers: nn.Module, width: int) -> Net:
    return Net(nn.Sequential(*layers), width, axes=(1,))


def filled(norm: nn.Module) -> nn.Module:
    """Affine parameters and running statistics that are not the identity."""
    for tensor in [*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())]:
        nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


conv = nn.Conv2d
IMAGES = {
    "plain": lambda: (conv(2, 6, 3), 6),
    "stride": lambda: (conv(2, 6, 3, stride=2, padding=1), 6),
    "uneven stride": lambda: (conv(2, 5, (3, 2), stride=(3, 2), padding=(1, 0)), 5),
    "dilation": lambda: (conv(2, 6, 3, dilation=2, padding=2), 6),
    "stride and dilation": lambda: (conv(2, 6, 3, stride=2, dilation=(2, 1), padding=(3, 1)), 6),
    "groups": lambda: (conv(4, 6, 3, groups=2, padding=1), 6),
    "depthwise": lambda: (conv(4, 8, 3, groups=4, stride=2), 8),
    "no bias": lambda: (conv(2, 6, 3, bias=False), 6),
    "1x1": lambda: (conv(4, 6, 1), 6),
    "1x1 stride": lambda: (conv(4, 6, 1, stride=2), 6),
    "whole image": lambda: (conv(2, 6, (9, 8)), 6),
    "reflect": lambda: (conv(2, 6, 3, padding=(2, 1), padding_mode="reflect"), 6),
    "circular": lambda: (conv(2, 6, 3, padding=2, padding_mode="circular", stride=2), 6),
    "replicate": lambda: (conv(2, 6, 3, padding=1, padding_mode="replicate"), 6),
    "same, even kernel": lambda: (conv(2, 6, (4, 2), padding="same"), 6),
    "same, reflect, dilation": lambda: (conv(2, 6, (2, 3), padding="same", padding_mode="reflect", dilation=2), 6),
    "valid": lambda: (conv(2, 6, 3, padding="valid"), 6),
    # wide enough to leave the grouped convolution: few positions take the Gram form, many the direct one
    "wide, Gram": lambda: (conv(32, 64, 3, padding=1, stride=3), 64),
    "wide, Gram, groups": lambda: (conv(64, 128, 3, padding=1, stride=3, groups=2), 128),
    "wide, direct": lambda: (conv(64, 32, (3, 9), padding=(1, 4)), 32),
    "wide, direct, stride, groups": lambda: (conv(128, 64, (5, 9), padding=(2, 4), stride=(2, 1), groups=2), 64),
}


up = nn.ConvTranspose2d
TRANSPOSED = {
    "2 x 2": lambda: (up(4, 6, 2, stride=2), 6),
    "plain": lambda: (up(4, 6, 3), 6),
    "padding": lambda: (up(4, 6, 3, padding=(1, 2)), 6),
    "stride and padding": lambda: (up(4, 6, (3, 4), stride=(2, 3), padding=(1, 1)), 6),
    "output padding": lambda: (up(4, 6, 3, stride=3, padding=1, output_padding=(2, 1)), 6),
    "dilation beyond the stride": lambda: (up(4, 6, 2, stride=1, dilation=3, output_padding=2), 6),
    "groups": lambda: (up(4, 6, 3, stride=2, groups=2), 6),
    "no bias": lambda: (up(4, 6, 2, stride=2, bias=False), 6),
    "wide": lambda: (up(64, 128, 2, stride=2), 128),
    "wide, overlapping": lambda: (up(64, 32, (3, 9), padding=(1, 4)), 32),
}


def check(model: nn.Module, x: Tensor, y: Tensor, naive, *, rtol: float = 1e-10) -> PerExampleGradNorm:
    model = model.double().eval()
    exact = naive(model, x, y)
    with PerExampleGradNorm(model, micro_batch=3) as norms:
        found = norms(x, y, error_vector)
    deltas = error_vector(found.logits, y)
    by_vmap = vmap_squared_norms(model, list(exact), x, deltas)
    total = sum(exact.values())
    for name in exact:
        torch.testing.assert_close(found.squared[name], exact[name], rtol=rtol, atol=1e-13 * float(total.max()))
        torch.testing.assert_close(by_vmap[name], exact[name], rtol=rtol, atol=1e-13 * float(total.max()))
    torch.testing.assert_close(found.total, total, rtol=rtol, atol=0)
    torch.testing.assert_close(found.logits, model(x).detach())
    return norms


def labels(num: int) -> Tensor:
    return torch.arange(num) % K


@pytest.mark.parametrize("name", IMAGES)
def test_conv2d(name: str, naive) -> None:
    layer, width = IMAGES[name]()
    x = torch.randn(5, layer.in_channels, 9, 8, dtype=torch.float64)
    norms = check(image_net(layer, width=width), x, labels(5), naive)
    assert set(norms.coverage.values()) == {"conv2d", "linear"}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose2d(name: str, naive) -> None:
    layer, width = TRANSPOSED[name]()
    x = torch.randn(5, layer.in_channels, 6, 5, dtype=torch.float64)
    norms = check(image_net(layer, width=width), x, labels(5), naive)
    assert set(norms.coverage.values()) == {"conv_transpose2d", "linear"}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d])
def test_instance_norm(kind: type[nn.Module], running: bool, naive) -> None:
    axes = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}[kind]
    norm = filled(kind(4, affine=True, track_running_stats=running))
    model = Net(norm, 4, axes=tuple(range(2, 2 + axes)))
    norms = check(model, torch.randn(5, 4, *[3] * axes, dtype=torch.float64), labels(5), naive)
    assert norms.coverage["body.weight"] == "instance_norm"


def test_a_unet_is_covered_by_closed_forms_and_equals_a_loop_over_examples() -> None:
    """Skips, transposed convolutions, InstanceNorm; the mean cross-entropy over pixels."""
    task = named("segmentation")
    model = build("unet", {"channels": (4, 6, 8)}, input_shape=(3, 13, 16), num_outputs=3, seed=0).double().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 13, 16, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (5, 13, 16), generator=generator)
    with PerExampleGradNorm(model) as norms:
        found = norms(x, y, output_gradient(task))
    assert set(norms.coverage.values()) == {"conv2d", "conv_transpose2d", "group_norm"}
    for b in range(5):
        (loss,) = task.losses_of(model(x[b : b + 1]), y[b : b + 1])
        exact = torch.autograd.grad(loss, list(model.parameters()))
        for name, g in zip(dict(model.named_parameters()), exact, strict=True):
            torch.testing.assert_close(found.squared[name][b], g.square().sum(), rtol=1e-9, atol=1e-16)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_conv2d_any_geometry(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, kernel = draw(1, 3), (draw(1, 4), draw(1, 4))
    layer = nn.Conv2d(
        groups * draw(1, 2),
        groups * draw(1, 3),
        kernel,
        groups=groups,
        stride=(draw(1, 4), draw(1, 4)),
        dilation=(draw(1, 2), draw(1, 2)),
        padding=(draw(0, 3), draw(0, 3)),
    ).double()
    x = torch.randn(3, layer.in_channels, draw(7, 10), draw(7, 10), dtype=torch.float64)
    model = image_net(layer, width=layer.out_channels).double()
    with PerExampleGradNorm(model) as norms:
        found = norms(x, labels(3), error_vector)
    exact = loop_squared_norms(model, list(found.squared), x, error_vector(found.logits, labels(3)))
    for name, value in exact.items():
        torch.testing.assert_close(found.squared[name], value, rtol=1e-9, atol=1e-14)
    assert norms.coverage["body.0.weight"] == "conv2d"


@pytest.mark.parametrize("form", ["_direct", "_grouped", "_ghost"])
@pytest.mark.parametrize("name", IMAGES)
def test_the_three_forms_of_conv2d_agree(name: str, form: str) -> None:
    from scoring.grad_norms import conv as module

    layer, _ = IMAGES[name]()
    layer = layer.double()
    a = torch.randn(3, layer.in_channels, 9, 8, dtype=torch.float64)
    z = layer(a)
    d = torch.randn_like(z).detach()
    exact = [torch.autograd.grad(layer(a[b : b + 1]), layer.weight, d[b : b + 1])[0].square().sum() for b in range(3)]
    found = getattr(module, form)(layer, module._pad(layer, a), d)
    torch.testing.assert_close(found, torch.stack(exact), rtol=1e-10, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (40, 6)])  # 40 tokens: direct form; few: Gram form
def test_linear_and_token_linear(shape: tuple[int, ...], bias: bool, naive) -> None:
    x = torch.randn(5, *shape, dtype=torch.float64)
    model = Net(nn.Linear(6, 7, bias=bias), 7, axes=tuple(range(1, x.dim() - 1)))
    norms = check(model, x, labels(5), naive)
    assert set(norms.coverage.values()) == {"linear"}


NORMS = {
    "LayerNorm": lambda: (token_net(nn.Linear(6, 8), filled(nn.LayerNorm(8)), width=8), (4, 6), "layer_norm"),
    "LayerNorm, two axes": lambda: (Net(filled(nn.LayerNorm((4, 6))), 6, axes=(1,)), (4, 6), "layer_norm"),
    "LayerNorm, no bias": lambda: (token_net(filled(nn.LayerNorm(6, bias=False)), width=6), (4, 6), "layer_norm"),
    "RMSNorm": lambda: (token_net(nn.Linear(6, 8), filled(nn.RMSNorm(8)), width=8), (4, 6), "layer_norm"),
    "GroupNorm": lambda: (image_net(conv(2, 6, 3), filled(nn.GroupNorm(3, 6)), width=6), (2, 7, 6), "group_norm"),
    "BatchNorm2d": lambda: (image_net(conv(2, 6, 3), filled(nn.BatchNorm2d(6)), width=6), (2, 7, 6), "batch_norm"),
    "BatchNorm1d": lambda: (
        Net(nn.Sequential(nn.Linear(6, 5), filled(nn.BatchNorm1d(5))), 5, axes=()),
        (6,),
        "batch_norm",
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name: str, naive) -> None:
    model, shape, form = NORMS[name]()
    norms = check(model, torch.randn(5, *shape, dtype=torch.float64), labels(5), naive)
    assert form in norms.coverage.values() and "vmap" not in norms.coverage.values()


class Tokens(nn.Module):
    """Token ids -> logits; the output weights are the embedding's own when tied."""

    def __init__(self, *, tied: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5, padding_idx=padding)
        self.middle = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7 if tied else K)
        if tied:
            self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.embedding(ids))).mean(1))


@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_adds_up_repeated_tokens(padding: int | None, naive) -> None:
    ids = torch.tensor([[0, 1, 2, 2], [3, 3, 3, 3], [2, 2, 2, 2], [6, 5, 4, 3]])
    norms = check(Tokens(padding=padding), ids, labels(4), naive)
    assert norms.coverage["embedding.weight"] == "embedding"


def test_tied_weights_are_summed_before_the_norm(naive) -> None:
    ids = torch.tensor([[0, 1, 2, 2], [3, 3, 3, 3], [2, 2, 2, 2], [6, 5, 4, 3]])
    norms = check(Tokens(tied=True), ids, labels(4), naive)
    assert norms.coverage["embedding.weight"] == "factors"
    assert norms.coverage["out.bias"] == norms.coverage["middle.weight"] == "linear"
    assert norms.output_layer == ()


class Odd(nn.Module):
    """A zoo of what hooks get wrong; ``kind`` picks one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, K)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.norm = filled(nn.LayerNorm(6))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "reused":
                x = torch.tanh(self.a(torch.tanh(self.a(x))))
            case "in place":
                x = self.a(x)
                x.relu_()
                x = x * 2
            case "functional":
                x = F.linear(self.a(x), self.b.weight)
            case "tied by hand":
                x = F.linear(torch.tanh(self.a(x)), self.a.weight)
            case "by keyword":
                x = torch.tanh(self.a(input=x))
            case "frozen":
                x = self.b(torch.tanh(self.frozen(torch.tanh(self.a(x)))))
            case "unused":
                self.a(x)
                x = self.b(x)
            case "detached":
                x = self.b(torch.tanh(self.a(x)).detach())
            case "flattened tokens":
                x = torch.tanh(self.a(x.reshape(-1, 6))).reshape(len(x), -1, 6).mean(1)
            case "sequence first":
                x = torch.tanh(self.norm(self.a(x.transpose(0, 1)))).mean(0)
        return self.head(x)


@pytest.mark.parametrize(
    ("kind", "shape", "a", "b"),
    [
        ("reused", (6,), "factors", "unused"),
        ("in place", (6,), "linear", "unused"),
        ("functional", (6,), "linear", "factors"),
        ("tied by hand", (6,), "factors", "unused"),
        ("by keyword", (6,), "linear", "unused"),
        ("frozen", (6,), "linear", "linear"),
        ("unused", (6,), "unused", "linear"),
        ("detached", (6,), "unused", "linear"),
        ("flattened tokens", (4, 6), "factors", "unused"),
        ("sequence first", (3, 6), "factors", "unused"),
    ],
)
def test_what_the_graph_does_not_show_to_hooks(kind: str, shape: tuple[int, ...], a: str, b: str, naive) -> None:
    norms = check(Odd(kind), torch.randn(4, *shape, dtype=torch.float64), labels(4), naive)
    assert (norms.coverage["a.weight"], norms.coverage["b.weight"]) == (a, b)
    assert "frozen.weight" not in norms.coverage


def test_in_place_modules_and_user_hooks_that_change_outputs(naive) -> None:
    layers = [conv(2, 6, 3), filled(nn.GroupNorm(2, 6)), nn.ReLU(inplace=True), conv(6, 4, 3), nn.ReLU(inplace=True)]
    model = image_net(*layers, width=4)
    layers[3].register_forward_hook(lambda module, args, output: output * 3)
    norms = check(model, torch.randn(4, 2, 8, 8, dtype=torch.float64), labels(4), naive)
    assert "vmap" not in norms.coverage.values()


class Positions(nn.Module):
    """Class token and position embedding as bare parameters, one of them with a scale."""

    def __init__(self, *, sliced: bool = False, alpha: float = 1.0) -> None:
        super().__init__()
        self.sliced, self.alpha = sliced, alpha
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(5, 6))
        self.shift = nn.Parameter(torch.randn(1))
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        position = self.position[:5] if self.sliced else self.position
        x = torch.add(torch.tanh(x) + self.shift, position, alpha=self.alpha)
        return self.head(torch.tanh(x + self.position).mean(1))


@pytest.mark.parametrize(("sliced", "position"), [(False, "broadcast"), (True, "vmap")])
def test_bare_parameters(sliced: bool, position: str, naive) -> None:
    norms = check(Positions(sliced=sliced, alpha=0.7), torch.randn(4, 4, 6, dtype=torch.float64), labels(4), naive)
    assert norms.coverage["token"] == norms.coverage["shift"] == "broadcast"
    assert norms.coverage["position"] == position


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(6, 5, batch_first=True), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Scaled(nn.Module):
    """Each of its numbers multiplies a feature, as in the RMS norms of published models."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(6)), nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x * self.scale).mean(1))


class Powers(Scaled):
    """A layer of nobody's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x.abs() ** self.scale).mean(1))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Attention, {"linear", "factors"}),
        (Recurrent, {"linear", "factors"}),
        (Scaled, {"linear", "factors"}),
        (Powers, {"linear", "vmap"}),
    ],
)
@pytest.mark.parametrize("num", [3, 5])  # as many examples as positions, and other numbers of them
def test_attention_and_recurrent_layers_are_linear_maps_and_unknown_ones_fall_back(
    kind: type[nn.Module], how: set[str], num: int, naive
) -> None:
    norms = check(kind(), torch.randn(num, 5, 6, dtype=torch.float64), labels(num), naive)
    assert norms.coverage["head.weight"] == "linear" and set(norms.coverage.values()) == how


# --- one answer a token -------------------------------------------------------------------------------------------

V, T = 11, 6


class Causal(nn.Module):
    """A causal language model in miniature; ``kind`` says how its weights are used."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.token = nn.Embedding(V, 8, padding_idx=0 if kind == "padding" else None)
        self.place = nn.Embedding(T, 8)
        self.norm, self.after = filled(nn.LayerNorm(8)), filled(nn.RMSNorm(8))
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.turned, self.shift = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, V, bias=False)
        if kind in ("tied", "padding"):
            self.head.weight = self.token.weight
        if kind == "adapters":
            self.requires_grad_(False)
            self.down.requires_grad_(True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        at = torch.arange(input_ids.shape[1])
        h = self.token(input_ids) + self.place(at if self.kind != "one row" else at[None])
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        mask = torch.ones(len(at), len(at), dtype=torch.bool).tril()
        if attention_mask is not None:
            mask = mask & attention_mask[:, None].bool()
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        if self.kind == "turned":  # as GPT-2 has it: d_in x d_out, on flattened positions
            h = h + torch.addmm(self.shift, h.view(-1, 8), self.turned).view(h.shape)
        logits = self.head(self.after(h + self.down(torch.relu(self.up(h)))))
        return SimpleNamespace(logits=logits) if self.kind == "named" else logits


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) mean cross-entropy of the counted tokens, -100 not counted."""
    aims = labels[:, 1:]
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), aims, ignore_index=-100, reduction="none")
    return nll.sum(1) / (aims != -100).sum(1)


def at_the_logits(logits: Tensor, labels: Tensor) -> Tensor:
    z = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(next_token(z, labels).sum(), z)
    return gradient


@pytest.mark.parametrize("num", [2, T, 7])
@pytest.mark.parametrize("tokens", [3, T])  # 3: as many as there are probes
@pytest.mark.parametrize("kind", ["plain", "one row", "tied", "padding", "turned", "named", "adapters"])
def test_a_causal_language_model_against_a_loop(kind: str, tokens: int, num: int) -> None:
    generator = torch.Generator().manual_seed(tokens + num)
    model = Causal(kind).double().eval()
    ids = torch.randint(V, (num, tokens), generator=generator)
    ids[0] = ids[0, 0]  # one token over and over
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :2] = -100
    x = {"input_ids": ids, "attention_mask": mask}
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with PerExampleGradNorm(model, micro_batch=4) as norms:
        found = norms(x, labels, at_the_logits)
    for b in range(num):
        said = model(ids[b : b + 1], mask[b : b + 1])
        loss = next_token(said.logits if kind == "named" else said, labels[b : b + 1])[0]
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, gradients, strict=True):
            exact = torch.zeros((), dtype=torch.float64) if g is None else g.square().sum()
            torch.testing.assert_close(found.squared[name][b], exact, rtol=1e-9, atol=1e-16)
    assert "vmap" not in norms.coverage.values(), norms.coverage
    assert found.logits.shape == (num, tokens, V)
    if kind == "tied":
        assert norms.coverage["token.weight"] == "factors" and norms.output_layer == ()
    if kind == "plain":
        assert norms.output_layer == ("head.weight",)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_models_of_the_library_against_a_loop(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "GPT2":
        config = transformers.GPT2Config(vocab_size=V, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    else:
        config = transformers.LlamaConfig(
            vocab_size=V, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config)
    model = model.double().eval()
    ids = torch.randint(V, (5, 6), generator=torch.Generator().manual_seed(1))
    x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with PerExampleGradNorm(model) as norms:
        found = norms(x, ids, at_the_logits)
    assert "vmap" not in norms.coverage.values(), norms.coverage
    for b in range(5):
        loss = next_token(model(ids[b : b + 1]).logits, ids[b : b + 1])[0]
        exact = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
        assert float(found.total[b]) == pytest.approx(
            exact, rel=1e-9 if kind == "GPT2" else 1e-5
        )  # its norms are taken in single


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet_gn", "vit"])
def test_the_projects_models_need_no_fallback(name: str, naive) -> None:
    model = build(name, {}, input_shape=(1, 8, 8), num_outputs=K, seed=1)
    norms = check(model, torch.randn(4, 1, 8, 8, dtype=torch.float64), labels(4), naive)
    assert "vmap" not in norms.coverage.values() and "unused" not in norms.coverage.values()
    assert norms.output_layer == ("head.weight", "head.bias")


def test_single_example_and_single_class_batches(naive) -> None:
    model = build("cnn", {}, input_shape=(1, 8, 8), num_outputs=K, seed=1)
    check(model, torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.tensor([2]), naive)


def test_the_model_is_left_as_it_was() -> None:
    model = build("resnet_gn", {}, input_shape=(1, 8, 8), num_outputs=K, seed=1).eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.stem.requires_grad_(False)
    before = copy.deepcopy(model)
    generator = torch.get_rng_state()
    with PerExampleGradNorm(model) as norms:
        norms(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels(4), error_vector)
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in model.modules())
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) and p.requires_grad == q.requires_grad, name
        assert p.grad is None or name == "head.weight", name
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(4, K))
    with pytest.raises(RuntimeError), PerExampleGradNorm(model) as norms:
        norms(torch.zeros(2, 6), labels(2), error_vector)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).train(), "BatchNorm1d '1'"),
        (
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
            "statistics of the batch",
        ),
        (nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).train(), "Dropout '1'"),
        (nn.Linear(6, 4).requires_grad_(False), "no parameter"),
        (nn.DataParallel(nn.Linear(6, 4)), r"\.module"),
    ],
)
def test_refused_before_work(model: nn.Module, match: str) -> None:
    with pytest.raises(NotApplicable, match=match):
        PerExampleGradNorm(model)


class Mixing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(0)


@pytest.mark.parametrize(
    ("model", "match"),
    [(Mixing(6, K), "mixes"), (nn.Sequential(nn.Linear(6, K), nn.Flatten(0)), r"\(9,\) for 3 examples")],
)
def test_refused_on_the_first_batch(model: nn.Module, match: str) -> None:
    with pytest.raises(NotApplicable, match=match), PerExampleGradNorm(model) as norms:
        norms(torch.randn(4, 6), labels(4), error_vector)


def test_a_subclass_with_another_forward_is_not_taken_for_its_parent(naive) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2)

    norms = check(Net(Doubled(6, 5), 5, axes=()), torch.randn(4, 6, dtype=torch.float64), labels(4), naive)
    assert norms.coverage["body.weight"] == "factors"


def test_float32_is_close_and_huge_values_do_not_overflow() -> None:
    model = build("cnn", {}, input_shape=(1, 8, 8), num_outputs=K, seed=1).eval()
    x = torch.rand(16, 1, 8, 8)
    with PerExampleGradNorm(model) as norms:
        single = norms(x, labels(16), error_vector).total.sqrt()
    with PerExampleGradNorm(copy.deepcopy(model).double()) as norms:
        double = norms(x.double(), labels(16), error_vector).total.sqrt()
    torch.testing.assert_close(single, double, rtol=1e-4, atol=0)

    linear = nn.Linear(4, K, bias=False)
    nn.init.zeros_(linear.weight)
    with PerExampleGradNorm(linear) as norms:
        large = norms(torch.full((2, 4), 3e25), labels(2), error_vector).total.sqrt()
    e = (2 / 3) ** 0.5  # uniform prediction over 3 classes
    torch.testing.assert_close(large, torch.full((2,), 6e25 * e, dtype=torch.float64), rtol=1e-6, atol=0)


def test_errors_far_below_single_precision_keep_their_digits() -> None:
    linear = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[60.0], [0.0]]))
    with PerExampleGradNorm(linear) as norms:
        found = norms(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64), error_vector).total.sqrt()
    miss = float(torch.exp(torch.tensor(-60.0, dtype=torch.float64)))
    torch.testing.assert_close(found, torch.full((2,), 2**0.5 * miss, dtype=torch.float64), rtol=1e-6, atol=0)


def test_half_precision_is_accumulated_in_single() -> None:
    linear = nn.Linear(4, K, bias=False).bfloat16()
    nn.init.zeros_(linear.weight)
    with PerExampleGradNorm(linear) as norms:
        found = norms(torch.full((2, 4), 1000.0, dtype=torch.bfloat16), labels(2), error_vector).total.sqrt()
    torch.testing.assert_close(found, torch.full((2,), 2000 * (2 / 3) ** 0.5, dtype=torch.float64), rtol=1e-2, atol=0)


def test_a_taken_layer_type_raises() -> None:
    with pytest.raises(NameTaken, match="Linear"):
        closed_form(nn.Linear)(lambda module, inputs, deltas, wanted: {})
