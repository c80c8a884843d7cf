"""The clients of an audit: which examples, under which dropout and BatchNorm, and what the server reads at once.

R = (rates audited) x (examples // B) clients, the rates one after the other on the same examples, each client with
masks and starts from a seed that depends on its examples, its rate and the audit's seed alone
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks.gradient_inversion.clients import ClientMemory, share
from attacks.gradient_inversion.engine import Box
from attacks.gradient_inversion.instrument import Instrumented, instrument_dropout
from attacks.gradient_inversion.labels import output_gradients, recover_labels, right_labels
from attacks.gradient_inversion.objective import Update
from contracts.digests import derive_seed
from contracts.errors import DataError, NotApplicable
from sources.example_set import ExampleSet
from tasks.base import require


@dataclass(frozen=True, eq=False)
class Cohort:
    """R clients and what is known of them.

    Attributes:
        update: what they shared.
        memory: what they did not.
        example_id: int64 (R, B).
        client: int64 (R,), the same number at every rate.
        p: float64 (R,), the largest rate of the client's dropout calls.
        labels: int64 (R, B), that the attacks work with.
        right: bool (R, B), read off the gradient rightly.
        batchnorm: "none", "running" or "batch".
        box: (low, high) of valid inputs.
        seeds: one a client.
    """

    net: Instrumented
    update: Update
    memory: ClientMemory
    example_id: np.ndarray
    client: np.ndarray
    p: np.ndarray
    labels: Tensor
    right: Tensor
    batchnorm: str
    box: Box
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.p)

    def rows(self, chosen: np.ndarray | slice) -> Cohort:
        at = np.arange(len(self))[chosen]
        rows = torch.from_numpy(at).to(self.labels.device)
        return Cohort(
            self.net,
            self.update.rows(rows),
            self.memory.rows(rows),
            self.example_id[at],
            self.client[at],
            self.p[at],
            self.labels[rows],
            self.right[rows],
            self.batchnorm,
            self.box,
            tuple(self.seeds[i] for i in at),
        )


def checked(data: ExampleSet, *, batch: int) -> ExampleSet:
    """The training split, if it can be audited.

    Raises:
        NotApplicable: no classes.
        DataError: fewer training examples than a client has, an id used twice, or labels out of range.
    """
    require(data, "gradient inversion", "classes")
    train = data.part("train")
    if len(train) < batch:
        raise DataError(f"{data.name}: {len(train)} training examples, a client needs batch = {batch}")
    ids, counts = np.unique(train.example_id, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{data.name}: ids are used more than once", example_ids=ids[counts > 1])
    outside = (train.y < 0) | (train.y >= data.num_classes)
    if outside.any():
        raise DataError(f"{data.name}: labels outside 0..{data.num_classes - 1}", example_ids=train.example_id[outside])
    return train


def choose(train: ExampleSet, *, num: int, batch: int, seed: int) -> ExampleSet:
    """``num`` examples at random, rounded to whole clients (at least one), by ascending id whatever the rows' order."""
    count = max(1, min(num, len(train)) // batch) * batch
    generator = np.random.default_rng(derive_seed("examples", seed))
    return train.subset(np.sort(generator.choice(np.sort(train.example_id), count, replace=False)))


def modes(
    model: nn.Module, input_shape: tuple[int, ...], *, batch: int, rate: float | None
) -> tuple[list[tuple[Instrumented, str]], list[str]]:
    """The model as clients train it: once, or with BatchNorm by running and by batch statistics; and remarks.

    Raises:
        NotApplicable: as :func:`instrument_dropout`; batch statistics that are undefined are a remark.
    """
    net = instrument_dropout(model, input_shape=input_shape, batch=batch, rate=rate)
    remarks = []
    if net.origin == "none" and rate is not None:
        remarks.append("no hidden layer after which dropout could be inserted")
    if not net.has_batchnorm:
        return [(net, "none")], remarks
    found = [(net, "running")]
    try:
        by_batch = instrument_dropout(model, input_shape=input_shape, batch=batch, rate=rate, batch_statistics=True)
        found.append((by_batch, "batch"))
    except NotApplicable as error:
        remarks.append(str(error))
    return found, remarks


def cohort(
    net: Instrumented,
    chosen: ExampleSet,
    *,
    box: Box,
    rates: Sequence[float],
    batchnorm: str,
    seed: int,
    known: bool = False,
) -> Cohort:
    """The clients' training, and the labels that the server reads off what they share.

    Args:
        chosen: whole clients of ``net.batch`` examples each, in this order.
        rates: audited where dropout is inserted; of a model's own dropout only "off" (0) can be asked for besides.
        known: the attacks work with the true labels.

    Raises:
        NotApplicable: the output layer is not linear with one row a logit.
        DataError: inputs or gradients that are not finite; names the examples.
    """
    x = torch.from_numpy(chosen.inputs(slice(0, len(chosen)))).reshape(-1, net.batch, *net.input_shape)
    y = torch.from_numpy(chosen.y.copy()).reshape(-1, net.batch)
    if int(y.max()) >= net.num_outputs:
        raise NotApplicable(f"the model gives {net.num_outputs} logits, too few for the labels of {chosen.name}")
    ids = chosen.example_id.reshape(-1, net.batch)
    settings = list(_settings(net, rates))
    each, times = len(x), len(settings)
    site_rates = torch.tensor([row for row in settings for _ in range(each)], dtype=torch.float64)
    site_rates = site_rates.reshape(each * times, len(net.sites))
    p = np.array([max(row, default=0.0) for row in settings for _ in range(each)])
    all_ids = np.tile(ids, (times, 1))
    seeds = tuple(derive_seed("client", seed, repr(float(q)), *map(int, i)) for q, i in zip(p, all_ids, strict=True))
    labels = y.repeat(times, 1).to(net.device)
    update, memory = share(
        net, x.repeat(times, *[1] * (x.dim() - 1)), labels, seeds=seeds, rates=site_rates, ids=all_ids.tolist()
    )
    weight, bias = output_gradients(net, update)
    if any(g is not None and g.shape[1] != net.num_outputs for g in (weight, bias)):
        raise NotApplicable(
            f"the last linear layer has not one row a logit ({net.num_outputs}): labels cannot be read off"
        )
    recovered = recover_labels(weight, bias, batch=net.batch)
    right = right_labels(recovered, labels)
    # A slot that nothing was read for still needs a label to work with.
    used = labels if known else recovered.clamp_min(0)
    return Cohort(
        net,
        update,
        memory,
        all_ids,
        np.tile(np.arange(each), times),
        p,
        used,
        right,
        batchnorm,
        (box[0].to(x).to(net.device, net.dtype), box[1].to(x).to(net.device, net.dtype)),
        seeds,
    )


def valid_box(train: ExampleSet, *, block: int = 4096) -> Box:
    """Bounds of the model's inputs, broadcast against one example: what a server knows of the data's format.

    Images: the range of their raw values over the training split, through the data's scaling. Features, whose units
    differ: the range of all scaled values.

    Raises:
        DataError: values that are not finite, or one value everywhere.
    """
    images = len(train.input_shape) == 3
    low, high = np.inf, -np.inf
    for start in range(0, len(train), block):
        rows = slice(start, min(start + block, len(train)))
        values = np.asarray(train.x[rows]) if images else train.inputs(rows)
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"{train.name}: values are not finite", example_ids=train.example_id[rows][~finite])
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low == high:
        raise DataError(f"{train.name}: every value of the training split is {low:g}: there is nothing to rebuild")
    ends = np.array([low, high], np.float64)
    if not images:
        return torch.tensor(ends[0]), torch.tensor(ends[1])
    scaled = [(end - train.center.astype(np.float64)) * train.scale for end in ends]
    return torch.from_numpy(np.minimum(*scaled)), torch.from_numpy(np.maximum(*scaled))


def _settings(net: Instrumented, rates: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """Rates of the dropout calls, one tuple a setting, by ascending rate."""
    off = (0.0,) * len(net.sites)
    if net.origin == "own":
        yield from ([off] if 0 in rates else [])
        yield net.rates
    elif net.origin == "none":
        yield off
    else:
        for p in sorted(set(rates)):
            yield (p,) * len(net.sites)
