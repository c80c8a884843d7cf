"""Cost and exactness of GraNd against plain passes over the same images, in the same run.

    python -m benchmarks.grand [--repeats 15] [--json]

For each model, one thread:
- CPU-time ratio of exact per-example gradient norms to ONE plain forward + backward with weight gradients on the same
  batch of 256 images 28 x 28, the two interleaved, median of the paired ratios;
- the same for a causal language model of 4 layers (tied and untied output weights), 32 sequences of 64 tokens, 1,000
  words, the mean loss over tokens of each sequence;
- the same for a U-Net 8-16-32, 16 pictures of 96 x 96, the mean cross-entropy over pixels;
- relative difference from a naive loop over the examples in float64: in float64 the largest; in float32 that of 98% of
  the examples. Where a ReLU's input is 1e-7, single and double precision fall on different sides of its kink; the naive
  loop in float32 differs there as well (on random images, up to 2 of 256 examples, by up to 1e-3).

Exit 1 when a bound is missed. CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._common import CLASSES, SHAPE, Row, options, paired_ratio, report
from recipes.models import build
from recipes.rng import local_rng
from scoring.error_vector import error_vector
from scoring.grad_norms import PerExampleGradNorm
from scoring.grand import output_gradient
from tasks.base import OutputTask, named

BATCH = 256
MODELS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("MLP 784-256-10", "mlp", {"hidden": (256,)}, 0.8),
    ("2-conv CNN", "cnn", {}, 1.3),
    ("GroupNorm ResNet 16-32-64", "resnet_gn", {"widths": (16, 32, 64)}, 1.3),
    ("ViT d 64, 4 layers, 49 tokens", "vit", {"dim": 64, "depth": 4, "patch": 4}, 1.3),
)
WORDS, TOKENS, SEQUENCES, WIDTH, DEPTH, HEADS = 1000, 64, 32, 128, 4, 4
LANGUAGE_BOUND = MASKS_BOUND = 1.3
PICTURES, PICTURE = 16, (3, 96, 96)
EXACT_BOUND, SINGLE_BOUND, SINGLE_SHARE = 1e-10, 1e-4, 0.98


def naive_grand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """float64 norms of the gradient of each example's own cross-entropy, one example at a time."""
    norms = []
    for b in range(len(x)):
        loss = F.cross_entropy(model(x[b : b + 1]), y[b : b + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(float(g.square().sum()) for g in gradients) ** 0.5)
    return torch.tensor(norms, dtype=torch.float64)


def measure(label: str, name: str, config: dict[str, Any], bound: float, *, repeats: int, seed: int) -> list[Row]:
    def fresh() -> nn.Module:
        return build(name, config, input_shape=SHAPE, num_outputs=CLASSES, seed=seed).eval()

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, *SHAPE, generator=generator)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    model = fresh()

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    with PerExampleGradNorm(model) as norms:

        def grand() -> Tensor:
            found = norms(x, y, error_vector)
            return found.total.sqrt()

        single = grand()
        ratio = paired_ratio(grand, plain, repeats=repeats)
    double = fresh().double()
    exact = naive_grand(double, x.double(), y)
    with PerExampleGradNorm(double) as norms64:
        largest = float(_relative(norms64(x.double(), y, error_vector).total.sqrt(), exact).max())
    most = float(_relative(single, exact).quantile(SINGLE_SHARE))
    return [
        Row(label, "GraNd / forward + backward", ratio, bound),
        Row(label, "GraNd float64, relative error", largest, EXACT_BOUND),
        Row(label, "GraNd float32, relative error", most, SINGLE_BOUND),
    ]


def measure_masks(label: str, *, repeats: int, seed: int) -> list[Row]:
    task = named("segmentation")
    assert isinstance(task, OutputTask)
    error, losses_of = output_gradient(task), task.losses_of

    def fresh() -> nn.Module:
        return build("unet", {}, input_shape=PICTURE, num_outputs=2, seed=seed).eval()

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PICTURES, *PICTURE, generator=generator)
    y = (F.avg_pool2d(torch.randn(PICTURES, 1, *PICTURE[1:], generator=generator), 5, 1, 2)[:, 0] > 0).long()
    model = fresh()

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        losses_of(model(x), y).mean().backward()

    with PerExampleGradNorm(model) as norms:

        def grand() -> Tensor:
            return norms(x, y, error).total.sqrt()

        single = grand()
        ratio = paired_ratio(grand, plain, repeats=repeats)
    double, exact = fresh().double(), []
    for b in range(PICTURES):
        (loss,) = losses_of(double(x[b : b + 1].double()), y[b : b + 1])
        gradients = torch.autograd.grad(loss, list(double.parameters()))
        exact.append(sum(float(g.square().sum()) for g in gradients) ** 0.5)
    with PerExampleGradNorm(double) as norms64:
        found = norms64(x.double(), y, error).total.sqrt()
    loop = torch.tensor(exact, dtype=torch.float64)
    return [
        Row(label, "GraNd / forward + backward", ratio, MASKS_BOUND),
        Row(label, "GraNd float64, relative error", float(_relative(found, loop).max()), EXACT_BOUND),
        Row(
            label, "GraNd float32, relative error", float(_relative(single, loop).quantile(SINGLE_SHARE)), SINGLE_BOUND
        ),
    ]


class Block(nn.Module):
    """Attention and feed-forward, both behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        num, length, _ = h.shape
        q, k, v = self.qkv(self.before(h)).view(num, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(num, length, WIDTH))
        return h + self.down(F.gelu(self.up(self.between(h))))


class CausalTransformer(nn.Module):
    """Token ids (B, T) -> logits (B, T, V)."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        return self.head(self.norm(self.blocks(h)))


def measure_language(label: str, *, tied: bool, repeats: int, seed: int) -> list[Row]:
    task = named("language")
    assert isinstance(task, OutputTask)
    error, losses_of = output_gradient(task), task.losses_of
    with local_rng(seed):
        model = CausalTransformer(tied=tied).eval()
    ids = torch.randint(WORDS, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(seed))

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        losses_of(model(ids), ids).mean().backward()

    with PerExampleGradNorm(model) as norms:

        def grand() -> Tensor:
            return norms({"input_ids": ids}, ids, error).total.sqrt()

        single = grand()
        ratio = paired_ratio(grand, plain, repeats=repeats)
    double, exact = copy.deepcopy(model).double(), []
    for b in range(SEQUENCES):
        (loss,) = losses_of(double(ids[b : b + 1]), ids[b : b + 1])
        gradients = torch.autograd.grad(loss, list(double.parameters()))
        exact.append(sum(float(g.square().sum()) for g in gradients) ** 0.5)
    with PerExampleGradNorm(double) as norms64:
        found = norms64({"input_ids": ids}, ids, error).total.sqrt()
    loop = torch.tensor(exact, dtype=torch.float64)
    return [
        Row(label, "GraNd / forward + backward", ratio, LANGUAGE_BOUND),
        Row(label, "GraNd float64, relative error", float(_relative(found, loop).max()), EXACT_BOUND),
        Row(label, "GraNd float32, relative error", float(_relative(single, loop).max()), SINGLE_BOUND),
    ]


def _relative(measured: Tensor, exact: Tensor) -> Tensor:
    return (measured - exact).abs() / exact


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for label, name, config, bound in MODELS:
        repeats = o.repeats * (10 if name == "mlp" else 1)  # milliseconds a call
        yield from measure(label, name, config, bound, repeats=repeats, seed=o.seed)
    yield from measure_masks("U-Net 8-16-32", repeats=o.repeats, seed=o.seed)
    for tied in (False, True):
        label = f"causal LM d {WIDTH}, {DEPTH} layers, {'tied' if tied else 'untied'}"
        yield from measure_language(label, tied=tied, repeats=o.repeats, seed=o.seed)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="pairs a model; small models take ten times as many")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
