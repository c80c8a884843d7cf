"""Cost and exactness of GraNd on the nodes of a graph, against one backward pass a node, in the same run.

    python -m benchmarks.nodes [--repeats 5] [--json]

A graph of 4,000 nodes and 8,000 edges, most nodes with a few and some with a hundred; 64 features; two-layer networks
of width 64 on 10 classes. For each network, one thread:
- CPU-time ratio of exact gradient norms of 128 nodes by parts (``scoring.grad_norms.nodes``) to a loop over 16 of these
  on the whole graph, times 8; the two interleaved, median of the paired ratios;
- the same against ONE forward and backward pass over the whole graph, which says how many of those the norms cost;
- relative difference from the loop, in double precision.

Exit 1 when a bound is missed. CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._common import Row, options, paired_ratio, report
from recipes.models import build
from scoring.error_vector import error_vector
from scoring.grad_norms.nodes import NodeGradNorms

NODES, EDGES, DIM, CLASSES, ASKED, LOOPED = 4_000, 8_000, 64, 10, 128, 16
BOUNDS = {"gat": (0.05, 6.0), "gcn": (0.3, 30.0)}  # gcn: one hop more, for the degrees of the border
EXACT = 1e-9


def graph(seed: int) -> tuple[Tensor, Tensor]:
    """Features (V, D) and edges both ways; the second end is drawn by a power law, so that there are hubs."""
    rng = np.random.default_rng(seed)
    chance = np.arange(1, NODES + 1) ** -0.6
    ends = np.stack([rng.integers(0, NODES, EDGES), rng.choice(NODES, EDGES, p=chance / chance.sum())])
    ends = np.unique(np.sort(ends[:, ends[0] != ends[1]], axis=0), axis=1)
    x = torch.from_numpy(rng.normal(size=(NODES, DIM)).astype(np.float32))
    return x, torch.from_numpy(np.concatenate([ends, ends[::-1]], axis=1))


def loop(model: nn.Module, x: Tensor, edges: Tensor, nodes: Tensor, y: Tensor) -> Tensor:
    """float64 norms of the gradient of each node's own cross-entropy, one node at a time."""
    norms = []
    for v, label in zip(nodes, y, strict=True):
        loss = F.cross_entropy(model(x=x, edge_index=edges, nodes=v[None]), label[None])
        found = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(float(g.double().square().sum()) for g in found) ** 0.5)
    return torch.tensor(norms, dtype=torch.float64)


def measure(name: str, *, repeats: int, seed: int) -> Iterator[Row]:
    x, edges = graph(seed)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randperm(NODES, generator=generator)[:ASKED]
    y = torch.randint(CLASSES, (ASKED,), generator=generator)
    model = build(name, {"hidden": 64, "dim": 64}, input_shape=(DIM,), num_outputs=CLASSES, seed=seed).eval()
    norms = NodeGradNorms(model, x, edges)

    def by_parts() -> Tensor:
        return norms(nodes, y, error_vector).total.sqrt()

    def naive() -> Tensor:
        return loop(model, x, edges, nodes[:LOOPED], y[:LOOPED])

    def whole() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x=x, edge_index=edges, nodes=nodes), y).backward()

    by_loop, by_pass = BOUNDS[name]
    label = f"{name} 64-64, {NODES:,} nodes"
    ratio = paired_ratio(by_parts, naive, repeats=repeats) * LOOPED / ASKED
    yield Row(label, f"GraNd by parts / loop over {ASKED} nodes", ratio, by_loop)
    yield Row(
        label, f"GraNd of {ASKED} nodes / forward + backward", paired_ratio(by_parts, whole, repeats=repeats), by_pass
    )
    model.double()
    exact = loop(model, x.double(), edges, nodes, y)
    found = NodeGradNorms(model, x.double(), edges)(nodes, y, error_vector).total.sqrt()
    yield Row(label, "GraNd float64, relative error", float(((found - exact).abs() / exact).max()), EXACT)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs a network")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report((row for name in BOUNDS for row in measure(name, repeats=o.repeats, seed=o.seed)), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
