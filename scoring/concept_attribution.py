"""Concept attribution: how much of what the model says of an example's class runs through that class's concepts.

    G_c(z)   = F_c(z) - mean_{j != c} F_j(z)                                     the centred logit of class c
    IG_k     = (z_k - z'_k) * integral_0^1 dG_c/dz_k (z' + a (z - z')) da         logit units;  sum_k IG_k = G_c(z) -
             G_c(z')
    share_i  = sum_{k in K_y} IG_k / sum_k |IG_k|             in [-1, 1]; higher = carried by the concepts of its own
             class

    IG_kd   = (x_d - x'_d) * integral_0^1 dz_k/dx_d (x' + a (x - x')) da          through the backbone: which inputs
            make z_k

z (N, K) signed distances to K concepts, z' their mean over the training set (zeros would mean "on every boundary"), F
the concept bottleneck, K_y the concept set of the example's class; see explain.concepts. x the model's input, x' a
baseline.

Source: Sundararajan, Taly, Yan, ICML 2017 (arXiv 1703.01365), equations 1 and 3; arXiv 2405.15662 (2024) attributes
    classes
to concepts and ranks poison candidates by sum_{k in K_y} IG_k (here ``attribution``). Logits, not probabilities:
through a saturated softmax the integral needs hundreds of steps, so the completeness error is kept and a large one
refused. An example attributed against its class's concepts is atypical or mislabelled; the share is not its influence
on training, and a small denominator (an example near the mean of everything) makes it noisy: read it with
``attribution``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.errors import InvalidInput
from contracts.methods import ScoreSpec, score
from contracts.tables import Column
from explain.concepts import (
    ClassConcepts,
    ConceptBank,
    ConceptConfig,
    Concepts,
    PosthocCBM,
    centred,
    entropy_of,
    fit_concepts,
)
from explain.concepts import projections_of as _projections_of
from explain.embeddings import last_linear
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from sources.example_set import ExampleSet

TOLERANCE = 1e-4
_SINGLE = 1e-6  # captum's quadrature weights are float32: their rounding, per logit of attribution, is not an error
INPUT_TOLERANCE = 0.01
_MOST_STEPS = 12_800
_STEPS_AT_ONCE = 200_000  # rows of (example, step) that captum holds at a time


@dataclass(frozen=True, eq=False)
class ConceptAttributions:
    """Integrated gradients of N examples.

    Attributes:
        values: float64 (N, K), logit units; or (N, D) over the inputs, in units of the projection.
        delta: float64 (N,), their sum minus the difference of the function at the two ends, the completeness error.
    """

    values: NDArray[np.float64]
    delta: NDArray[np.float64]


def concept_integrated_gradients(
    head: PosthocCBM | nn.Module,
    projections: NDArray[np.float64],
    *,
    baseline: NDArray[np.float64],
    target: NDArray[np.int64],
    n_steps: int = 50,
    tolerance: float = TOLERANCE,
) -> ConceptAttributions:
    """Captum's integrated gradients of each example's centred logit, Gauss-Legendre, in float64.

    Args:
        head: a concept bottleneck, or any module from float64 (B, K) to (B, C) that treats rows independently.
        projections: (N, K).
        baseline: (K,).
        target: (N,) classes.
        n_steps: points of the quadrature; one suffices for a linear head.
        tolerance: largest |delta| that is accepted, beside a millionth of the absolute attribution (captum's weights
            are in single precision).

    Raises:
        InvalidInput: shapes differ, values are not finite, or the completeness error exceeds ``tolerance``.
    """
    z, start = np.asarray(projections, np.float64), np.asarray(baseline, np.float64)
    if z.ndim != 2 or start.shape != z.shape[1:] or target.shape != z.shape[:1]:
        raise InvalidInput(f"projections {z.shape}, baseline {start.shape}, target {target.shape}; (N, K), (K,), (N,)")
    if not (np.isfinite(z).all() and np.isfinite(start).all()):
        raise InvalidInput("projections or baseline are not finite")
    if n_steps < 1:
        raise InvalidInput(f"n_steps = {n_steps} is outside its allowed range: >= 1")
    values, delta = np.zeros(z.shape), np.zeros(len(z))
    if z.shape[1]:
        block = max(_STEPS_AT_ONCE // n_steps, 1)
        with eval_mode(_linear(head) if isinstance(head, PosthocCBM) else head) as module:
            method = IntegratedGradients(_Centred(module))
            method.gradient_func = _gradients
            for rows in (slice(a, a + block) for a in range(0, len(z), block)):
                x = torch.from_numpy(z[rows]).requires_grad_()
                found, error = method.attribute(
                    x,
                    baselines=torch.from_numpy(start)[None],
                    target=torch.from_numpy(target[rows].astype(np.int64)),
                    n_steps=n_steps,
                    method="gausslegendre",
                    return_convergence_delta=True,
                )
                values[rows], delta[rows] = found.detach().numpy(), error.detach().numpy()
    excess = np.abs(delta) - _SINGLE * np.abs(values).sum(axis=1)
    if not (excess <= tolerance).all():  # NaN included
        raise InvalidInput(
            f"n_steps = {n_steps} leaves a completeness error of {np.abs(delta).max():.3g}, above tolerance = "
            f"{tolerance:g}: raise n_steps, and attribute logits, not probabilities"
        )
    return ConceptAttributions(values, delta)


def concept_input_gradients(
    model: nn.Module,
    data: ExampleSet,
    bank: ConceptBank,
    *,
    concept: NDArray[np.int64],
    baseline: NDArray[np.floating[Any]],
    n_steps: int = 50,
    batch: int = 1024,
    tolerance: float = INPUT_TOLERANCE,
) -> ConceptAttributions:
    """Captum's integrated gradients of each example's projection on one concept, over the model's inputs (midpoint
    rule).

    Networks of ReLUs are not smooth along the path: the steps of an example are doubled until its attributions are
    complete. In the precision of the model.

    Args:
        model: whose embeddings ``bank`` is fitted on; put into eval mode and back.
        data: N examples.
        concept: (N,), index in ``bank`` of the concept of each.
        baseline: of the shape of one input, in the scale of ``data.inputs``: where the path starts.
        n_steps: points of the integral to begin with.
        batch: points in one pass; bounds memory.
        tolerance: largest |delta| that is accepted, as a share of the example's absolute attribution.

    Raises:
        NotApplicable: the model has no linear output layer.
        InvalidInput: shapes differ, or 12,800 steps leave a larger error.
    """
    if baseline.shape != data.input_shape or concept.shape != (len(data),):
        raise InvalidInput(
            f"baseline {baseline.shape}, concept {concept.shape}; {data.input_shape} and ({len(data)},) are needed"
        )
    device = model_device(model)
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    start = torch.from_numpy(baseline).to(device=device, dtype=inputs.dtype)[None]
    target = torch.from_numpy(concept.astype(np.int64)).to(device)
    values, delta = np.zeros((len(data), start.numel())), np.zeros(len(data))
    left = np.arange(len(data))
    with eval_mode(model), _Projections(model, bank) as projections:
        method = IntegratedGradients(projections)
        method.gradient_func = _gradients
        while len(left):
            if n_steps > _MOST_STEPS:
                raise InvalidInput(f"{_MOST_STEPS} steps leave a completeness error of {np.abs(delta[left]).max():.3g}")
            for rows in np.array_split(left, -(-len(left) // batch)):
                at = torch.from_numpy(rows).to(device)
                found, error = method.attribute(
                    inputs.gather(at).requires_grad_(),
                    baselines=start,
                    target=target[at],
                    n_steps=n_steps,
                    method="riemann_middle",
                    internal_batch_size=batch,
                    return_convergence_delta=True,
                )
                values[rows], delta[rows] = found.detach().flatten(1).cpu().numpy(), error.detach().cpu().numpy()
            left = left[~(np.abs(delta[left]) <= tolerance * np.abs(values[left]).sum(axis=1))]  # NaN included
            n_steps *= 2
    return ConceptAttributions(values, delta)


class _Projections(nn.Module):
    """Inputs -> projections on all concepts, with gradients; a context that takes its hook off the model again."""

    def __init__(self, model: nn.Module, bank: ConceptBank) -> None:
        super().__init__()
        self.model = model
        norms = np.linalg.norm(bank.vectors, axis=1)
        like = next(p for p in model.parameters() if p.dtype.is_floating_point)
        self.normals = torch.from_numpy(bank.vectors / norms[:, None]).to(like)
        self.offsets = torch.from_numpy(bank.intercepts / norms).to(like)
        self.seen: list[Tensor] = []

    def __enter__(self) -> _Projections:
        self.handle = last_linear(self.model)[1].register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def forward(self, x: Tensor) -> Tensor:
        self.model(x)
        return self.seen.pop() @ self.normals.T + self.offsets


def _gradients(
    forward_fn: nn.Module, inputs: tuple[Tensor, ...], target_ind: Tensor, additional_forward_args: object = None
) -> tuple[Tensor, ...]:
    """Captum's own takes one Python step for every row; rows are independent, so their sum has the same gradients."""
    logits = forward_fn(*inputs)
    chosen = logits.gather(
        1, target_ind.expand(len(logits))[:, None]
    )  # captum leaves the target of a single row as it is
    return torch.autograd.grad(chosen.sum(), inputs)


class _Centred(nn.Module):
    """Each logit minus the mean of the others."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.head(z)
        others = logits.shape[1] - 1
        return (logits * (others + 1) - logits.sum(dim=1, keepdim=True)) / others


def _linear(head: PosthocCBM) -> nn.Linear:
    module: nn.Linear = nn.utils.skip_init(nn.Linear, head.weight.shape[1], head.weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(head.weight))
        module.bias.copy_(torch.from_numpy(head.bias))
    module.eval()
    return module


def class_concept_profile(
    classes: ClassConcepts, *, concepts: tuple[str, ...], class_names: tuple[str, ...], baseline: NDArray[np.float64]
) -> pl.DataFrame:
    """One row a class that has examples and a concept, best first within a class.

    Returns:
        class_id, class_name, concept, mean_attribution (logit units), mean_projection, baseline, present, rank (from 1,
        present concepts first), in_set.
    """
    with_examples = np.flatnonzero(~np.isnan(classes.attribution).any(axis=1))
    k = len(concepts)
    return pl.DataFrame(
        {
            "class_id": np.repeat(with_examples, k),
            "class_name": pl.Series([class_names[c] for c in with_examples for _ in range(k)], dtype=pl.String),
            "concept": pl.Series(list(concepts) * len(with_examples), dtype=pl.String),
            "mean_attribution": classes.attribution[with_examples].ravel(),
            "mean_projection": classes.projection[with_examples].ravel(),
            "baseline": np.tile(baseline, len(with_examples)),
            "present": classes.present[with_examples].ravel(),
            "rank": classes.rank[with_examples].ravel(),
            "in_set": classes.in_set[with_examples].ravel(),
        }
    ).sort("class_id", "rank")


@score(
    ScoreSpec(
        name="concept_attribution",
        tolerance=1e-3,  # its elastic net stops at 1e-4, wherever rounding leads it
        wants=("outputs", "classes", "features"),
        doc="Share of an example's class evidence that runs through the concepts of its class (integrated gradients).",
        source="arXiv 2405.15662 (2024); Sundararajan et al., ICML 2017; Yuksekgonul et al., ICLR 2023",
        config=ConceptConfig,
        version=2,
        needs=("model",),
        columns=(
            Column(
                name="concept_share",
                dtype="float64",
                low=-1,
                high=1,
                direction="higher = carried by its class's concepts",
                doc="signed attribution of the class's concept set over the absolute attribution of all; 0 without any",
            ),
            Column(
                name="attribution",
                dtype="float64",
                unit="logit",
                direction="higher = more of its class's concepts",
                doc="sum of the integrated gradients of the class's concept set, the order of poison candidates",
            ),
            Column(
                name="evidence",
                dtype="float64",
                unit="logit",
                doc="centred logit of the class at the example minus that at the mean example: the sum over all "
                "concepts",
            ),
            Column(
                name="entropy",
                dtype="float64",
                low=0,
                unit="nats",
                nullable=True,
                doc="of the positive attribution over all concepts; null when none is positive",
            ),
            Column(
                name="top_concept",
                dtype="str",
                nullable=True,
                doc="concept with the largest attribution; null when none is positive",
            ),
        ),
        value="concept_share",
        higher_means="typical of its class",
    )
)
def concept_attribution(data: ExampleSet, *, config: ConceptConfig, seed: int, model: nn.Module) -> pl.DataFrame:
    """The share of every example's class evidence that its class's concepts carry, in closed form (the head is linear).

    Args:
        data: the training split, classification.
        config: which concepts; by default clusters of the model's embeddings.
        seed: of the sample, the clusters and the examples each concept is fitted on.
        model: the audited model; put into eval mode and back.

    Returns:
        One row an example, by ascending id; memory is bounded by the sample and the block.

    Raises:
        NotApplicable: a regression task, or a model without a linear output layer.
        DataError: labels out of range, no examples, an id used twice, activations that are not finite, or a named
            concept that cannot be learned.
        ConfigError: a concept names an unknown class.
    """
    return scored(model, data, fit_concepts(model, data, config=config, seed=seed), batch=config.batch)


def scored(model: nn.Module, data: ExampleSet, found: Concepts, *, batch: int) -> pl.DataFrame:
    """As :func:`concept_attribution`, with concepts already fitted."""
    names = np.array([*found.bank.names, ""], dtype=object)
    evidence_weight = centred(found.head.weight)
    parts = []
    for block, z in _projections_of(model, data, found.bank, batch=batch):
        each = evidence_weight[block.y] * (z - found.baseline)
        of_set = (each * found.classes.in_set[block.y]).sum(axis=1)
        total = np.abs(each).sum(axis=1)
        best = each.argmax(axis=1) if len(found.bank) else np.zeros(len(block), np.int64)
        top = names[best]
        top[each.max(axis=1, initial=0.0) <= 0] = None
        parts.append(
            pl.DataFrame(
                {
                    "example_id": block.example_id,
                    "concept_share": np.divide(of_set, total, out=np.zeros(len(block)), where=total > 0).clip(-1, 1),
                    "attribution": of_set,
                    "evidence": each.sum(axis=1),
                    "entropy": entropy_of(each),
                    "top_concept": pl.Series(top, dtype=pl.String),
                },
                nan_to_null=True,
            )
        )
    return pl.concat(parts)
