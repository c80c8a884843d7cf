"""Many descents at once: the models of shadow runs, each with sets, labels, weights and batch orders of its own.

    theta (M, ...),  batch of model m at its step t: rows idx[m, :B_m], weights w[m, b] / B_m, 0 on padding
    L = sum_m sum_b w[m, b] / B_m l(f(theta_m, x[idx[m, b]]), t[m, b])           one backward, M separate gradients

Every plan keeps its own stream of batches, drawn as ``descend`` draws them, so the result is that of ``descend`` on
each plan to rounding (1e-9 of the largest weight in float64; in float32 what 1e-6 a step grows to). Models need not
have equally many examples or steps: batches are padded and masked, and a model that is done is copied out and gets
weights of 0 while the others go on. Penalties and projections work on views of each model's own weights; a penalty
that all plans share (``==``) is asked for once for all of them, where vmap can. A model that leaves the finite numbers
touches no other one: products are batched over models, never summed over them.

Taken: classes with the task's own loss or with one of the outputs (``Pass.of_outputs``), an optimiser that works
element by element, layers that stay, rates that change in step (those that have as many steps an epoch share a stack),
and
    mlp    recipes.mlp without dropout (``recipes.stacked_mlp``): CPU and CUDA
    vmap   what vmap can run (``recipes.stacked_vmap``), on CUDA
Everything else runs one after another by ``descend``: BatchNorm, which mixes the examples of a batch; dropout, whose
draws would depend on who shares the stack; numbers to predict; losses of a method's own that want the model; a rule to
stop by; whatever else a plan may say that is not known here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from contracts.errors import ConfigError, Diverged, NotApplicable
from contracts.methods import UnlearnerSpec
from contracts.progress import Progress, silent
from contracts.registry import Method
from recipes import stacked_mlp, stacked_vmap
from recipes.fitting import batch_statistics, deterministic
from recipes.inputs import Inputs
from recipes.recsys_models import is_ranker
from recipes.stacked import CHUNK_BYTES
from recipes.stacked_mlp import StackedMLP
from recipes.stacked_vmap import StackedVmap
from sources.example_set import ExampleSet
from sources.payloads.base import Payload
from tasks.base import OutputTask
from unlearning.descent import Descent, Pass, check_unlearned, descend, hold, sizes_of, was_useful
from unlearning.masks import Held

Path = Literal["auto", "mlp", "vmap", "loop"]
Outcome = nn.Module | Diverged
_ELEMENTWISE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
# The examples of a chunk of models, beside its weights and activations (``recipes.stacked.CHUNK_BYTES``).
_EXAMPLE_BYTES = 2**28
_PLAN_BYTES = 2**30  # inputs that plans hold in memory at a time
_CLOSE = 0.01  # of mean qualities: between them rounding may decide
_BLOCK = 2**18  # positions of examples that are laid out at a time
_KNOWN = {  # of a plan's fields; one with another in use takes the loop
    *("model", "passes", "retain", "config", "seed", "name", "draws"),
    *("penalty", "project", "optimizer", "stop", "rate", "frozen"),
}


def unlearn_many(
    method: Method[UnlearnerSpec],
    models: Sequence[nn.Module],
    *,
    retain: Sequence[ExampleSet],
    forget: Sequence[ExampleSet],
    config: Any,
    seeds: Sequence[int],
    progress: Progress = silent,
    **needs: Any,
) -> list[Outcome]:
    """Every model after a registered unlearner whose declaration has a ``plan``.

    Args:
        method: of ``contracts.methods.unlearner``.
        models: M trained models, none of which is changed.
        retain, forget: M sets each.
        config: of the method, the same for all.
        seeds: M.
        progress: called with (models done, models, name).
        needs: what the method is given besides.

    Returns:
        In the order of ``models``: the unlearned model in eval mode, or the ``Diverged`` that it ended in.

    Raises:
        ConfigError: not one set and seed a model.
        NotApplicable: the method says no plan.
        Others: as the method raises.
    """
    name, total = method.spec.name, len(models)
    if not total == len(retain) == len(forget) == len(seeds):
        raise ConfigError(
            f"{name}: {total} models, {len(retain)} retain sets, {len(forget)} forget sets and {len(seeds)} seeds: one "
            "each is needed"
        )
    if method.spec.plan is None:
        raise NotApplicable(f"{name} says no plan of its descent: call it for each model")
    found: list[Outcome] = []
    sizes = [_input_bytes(kept) + _input_bytes(gone) for kept, gone in zip(retain, forget, strict=True)]
    while len(found) < total:
        block = range(len(found), min(len(found) + max(_PLAN_BYTES // max(1, *sizes), 1), total))
        plans: dict[int, Descent] = {}
        failed: dict[int, Diverged] = {}
        for i in block:
            given = {"retain": retain[i], "forget": forget[i], "config": config, "seed": seeds[i]}
            try:
                plans[i] = method.spec.plan(models[i], **given, **needs)
            except Diverged as error:
                failed[i] = error
        done = dict(zip(plans, descend_many(list(plans.values()), progress=silent), strict=True)) | failed
        found += [done[i] for i in block]
        progress(len(found), total, name)
    return found


def _input_bytes(data: ExampleSet) -> int:
    return 0 if isinstance(data.x, Payload) else data.num_examples * int(np.prod(data.input_shape)) * 4


def descend_many(
    plans: Sequence[Descent], *, progress: Progress, path: Path = "auto", chunk: int | None = None
) -> list[Outcome]:
    """Carry out every plan: see the head of this file.

    Args:
        progress: called with (plans done, plans, name of the method).
        path: "auto", or one of the paths by name.
        chunk: models at a time; None: what fits the cache (CPU) or a memory bound (CUDA). Changes speed only.

    Returns:
        In the order of ``plans``: the changed copy of each model in eval mode, or the ``Diverged`` it ended in.

    Raises:
        NotApplicable: a path asked for by name that a plan cannot take; what ``descend`` raises.
    """
    found: dict[int, Outcome] = {}
    # Every plan's passes are drawn here, once: the loop, where it must be taken, visits the very same. Only those of
    # plans with a rule to stop by are left to the loop, which may not come to the last.
    drawn = [
        [list(plan.passes(epoch)) for epoch in range(plan.config.epochs)] if plan.stop is None else [] for plan in plans
    ]
    groups: dict[Any, list[int]] = {}
    for number, (plan, passes) in enumerate(zip(plans, drawn, strict=True)):
        groups.setdefault(_kind(plan, passes, path), []).append(number)
    for (stack, *_), numbers in groups.items():
        # Those with most steps first: plans that are stacked together end at about the same time.
        numbers.sort(key=lambda i: -_num_steps(plans[i], drawn[i]))
        size = 1 if stack == "loop" else chunk or _chunk_size(plans[numbers[0]], drawn[numbers[0]])
        for own in np.array_split(np.array(numbers), -(-len(numbers) // size)):  # alike in size
            together = own.tolist()
            if len(together) > 1 or path not in ("auto", "loop"):
                done = _Chunk([plans[i] for i in together], [drawn[i] for i in together], stack).outcomes()
            else:
                done = [_alone(plans[i], drawn[i]) for i in together]
            found |= dict(zip(together, done, strict=True))
            progress(len(found), len(plans), plans[together[0]].name)
    return [found[i] for i in range(len(plans))]


def _alone(plan: Descent, passes: list[list[Pass]]) -> Outcome:
    try:
        return descend(plan if plan.stop else replace(plan, passes=passes.__getitem__), progress=silent)
    except Diverged as error:
        return error


def _num_steps(plan: Descent, passes: list[list[Pass]]) -> int:
    return sum(sum(_counts(plan, epoch)) for epoch in passes)


def _counts(plan: Descent, visited: Sequence[Pass]) -> list[int]:
    """Steps of each pass of an epoch."""
    return [len(sizes_of(len(one), plan.config.batch)) for one in visited]


def _kind(plan: Descent, passes: list[list[Pass]], path: Path) -> tuple[Any, ...]:
    """The path of a plan, and what those that share a stack have in common.

    Raises:
        NotApplicable: it cannot take the path asked for by name.
    """
    stack, why = ("loop", "asked for") if path == "loop" else _stack_of(plan, passes, path)
    if path != "auto" and stack != path:
        raise NotApplicable(f"{plan.name}: path {path!r} cannot be taken: {why}; use 'auto'")
    if stack == "loop":
        return ("loop",)
    arrays = tuple((key, p.shape, p.dtype, p.requires_grad, p.device) for key, p in plan.model.named_parameters())
    buffers = tuple((key, b.shape, b.dtype) for key, b in plan.model.named_buffers())
    steps = () if plan.rate is None else tuple(sum(_counts(plan, epoch)) for epoch in passes)
    kind = type(plan.model), repr(plan.model), arrays, buffers, plan.config.digest(), plan.name
    own = next((one.of_outputs for epoch in passes for one in epoch), None)
    return stack, *kind, plan.optimizer, plan.rate, steps, tuple(plan.frozen), own


def _stack_of(plan: Descent, passes: list[list[Pass]], path: Path) -> tuple[str, str]:
    """(path, why it is the loop)."""
    if plan.stop is not None:
        return "loop", "the plan has a rule to stop by"
    for field in fields(Descent):
        if field.name not in _KNOWN and getattr(plan, field.name) != field.default:
            return "loop", f"{field.name} of the plan is not known here"
    model = plan.model
    visited = [one for epoch in passes for one in epoch]
    parts = {id(part): part for one in visited for part in one.parts}.values()
    if not all(part.data.task.gives("outputs", "classes") for part in parts) or is_ranker(model):
        return "loop", "what is learnt is no class"
    if any(one.losses is not None for one in visited):
        return "loop", "a pass has a loss of its own"
    if any(one.of_outputs != visited[0].of_outputs for one in visited):
        return "loop", "the passes have several losses"
    if any(isinstance(part.data.x, Payload) for part in parts):
        return "loop", "the examples are no arrays of one shape"
    if not isinstance(plan.optimizer([nn.Parameter(torch.zeros(1))], plan.config), _ELEMENTWISE):
        return "loop", "the optimiser is not known to work element by element"
    if layer := batch_statistics(model):
        return "loop", f"BatchNorm ({layer}) mixes the examples of a batch"
    if stacked_mlp.is_plain(model) and path != "vmap":
        return "mlp", ""
    device = next(model.parameters()).device
    if path == "mlp" or (path == "auto" and device.type == "cpu"):
        return "loop", "the model is no recipes.mlp.MLP without dropout"
    part = next((part for part in parts if len(part)), None)
    if part is None:
        return "loop", "there is nothing to visit"
    reason = stacked_vmap.fits([model, model], part.gather(torch.arange(min(2, len(part)), device=device)))
    return ("loop", reason) if reason else ("vmap", "")


def _chunk_size(plan: Descent, passes: list[list[Pass]]) -> int:
    """Models at a time: weights, gradients, two moments and the activations of a batch, and their examples, in
    bounds."""
    weights = sum(p.numel() for p in plan.model.parameters())
    parts = {id(part): part for epoch in passes for one in epoch for part in one.parts}.values()
    shape = max((int(np.prod(part.data.input_shape)) for part in parts), default=1)
    width = min(plan.config.batch, max((len(one) for epoch in passes for one in epoch), default=1))
    units = 3 * sum(p.shape[0] for p in plan.model.parameters() if p.ndim > 1)  # before, after, gradient
    first = next(plan.model.parameters())
    examples = sum(len(part) for part in parts) * shape
    size = min(
        CHUNK_BYTES[first.device.type] // ((4 * weights + width * (shape + units)) * first.element_size()),
        _EXAMPLE_BYTES // max(examples * first.element_size(), 1),
    )
    return int(np.clip(size, 1, 64))


class _Stream:
    """The batches of one plan from its first step to its last, as rows of the chunk's joint examples and targets."""

    def __init__(self, plan: Descent, passes: list[list[Pass]], places: dict[int, int]) -> None:
        self.plan, self.places, self._rows = plan, places, dict[int, tuple[np.ndarray, ...]]()
        self._steps = self._all(passes)

    def fill(self, rows: np.ndarray, aims: np.ndarray, weights: np.ndarray) -> list[tuple[int, int, int]]:
        """The next steps, at most S, written into (S, W) positions of examples and of targets, and weights; (examples,
        epoch, all steps as ``descend`` counts them) of each. Nothing is written where no example is."""
        told = []
        for place, (own, aim, weight, epoch, total) in zip(range(len(rows)), self._steps, strict=False):
            size = len(own)
            rows[place, :size], aims[place, :size], weights[place, :size] = own, aim, weight
            told.append((size, epoch, total))
        return told

    def _all(self, passes: list[list[Pass]]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]]:
        config, order, done = self.plan.config, self.plan.order(), 0
        for epoch, visited in enumerate(passes):
            # The orders of all passes of an epoch are drawn before its first step, as ``descend`` draws them.
            orders = [torch.randperm(len(one), generator=order).numpy() for one in visited]
            total = done + (config.epochs - epoch) * sum(_counts(self.plan, visited))
            for one, at in zip(visited, orders, strict=True):
                rows, aims, weights = (each[at] for each in self._of(one))
                begin = 0
                for size in sizes_of(len(one), config.batch):
                    end, done = begin + size, done + 1
                    yield rows[begin:end], aims[begin:end], weights[begin:end] / size, epoch, total
                    begin = end

    def _of(self, one: Pass) -> tuple[np.ndarray, ...]:
        """Positions of a pass's examples and targets, and its weights, (n,) each."""
        if id(one) not in self._rows:
            parts = [(self.places[id(part)], len(part)) for part in one.parts]
            aims = [(self.places[id(aim)], len(aim)) for aim in _aims(one)]
            joined = [np.concatenate([start + np.arange(size) for start, size in some]) for some in (parts, aims)]
            self._rows[id(one)] = (*joined, one.weights.cpu().numpy())
        return self._rows[id(one)]


def _aims(one: Pass) -> list[Tensor]:
    """What the examples of each part of a pass are trained towards."""
    return [part.targets if own is None else own for part, own in zip(one.parts, one.targets, strict=True)]


def _judged(plan: Descent, student: nn.Module) -> Outcome:
    """The student of a plan that has been carried out, or why it is none.

    What the model was like before is asked only where the student is no good: it decides nothing else.
    """
    try:
        return check_unlearned(plan, student, useful_before=True)
    except Diverged as error:
        found = error
    try:
        return found if was_useful(plan) else check_unlearned(plan, student, useful_before=False)
    except Diverged as error:
        return error


def _starts(each: Mapping[int, Sized]) -> dict[int, int]:
    """Where each begins when they are joined."""
    ends = np.cumsum([0, *map(len, each.values())]).tolist()
    return dict(zip(each, ends, strict=False))


class _Chunk:
    """Plans that are carried out together, those with most steps first."""

    def __init__(self, plans: list[Descent], passes: list[list[list[Pass]]], stack: str) -> None:
        self.plans = plans
        self.students = [copy.deepcopy(plan.model).train() for plan in plans]
        self.held = [
            hold(student, [student.get_submodule(name) for name in plan.frozen])
            for plan, student in zip(plans, self.students, strict=True)
        ]
        self.stack = (StackedMLP if stack == "mlp" else StackedVmap)(self.students, label_smoothing=0.0)
        named = list(self.students[0].named_parameters())
        self.trained = [(key, p.shape) for key, p in named if p.requires_grad]
        # Of an MLP all weights are stacked, by vmap those that train.
        self.places = [k for k, (_, p) in enumerate(named) if p.requires_grad]
        if stack == "vmap":
            self.places = list(range(len(self.trained)))
        visited = [one for own in passes for epoch in own for one in epoch]
        parts: dict[int, Inputs] = {id(part): part for one in visited for part in one.parts}
        aims: dict[int, Tensor] = {id(aim): aim for one in visited for aim in _aims(one)}
        places = _starts(parts) | _starts(aims)
        self.device = next(self.students[0].parameters()).device
        self.x = torch.cat([part.block(0, len(part)) for part in parts.values()]) if parts else torch.empty(0)
        self.targets = torch.cat([*aims.values()]) if aims else torch.empty(0)
        self.streams = [_Stream(plan, own, places) for plan, own in zip(plans, passes, strict=True)]
        self.width = max((size for one in visited for size in sizes_of(len(one), plans[0].config.batch)), default=0)
        self.losses = visited[0].of_outputs if visited else None
        self.penalty = plans[0].penalty if all(plan.penalty == plans[0].penalty for plan in plans) else None

    def outcomes(self) -> list[Outcome]:
        """Each plan's student, or why there is none."""
        if self.plans[0].config.epochs and len(self.x):
            with deterministic(self.device):
                self._descend()
        for parameter in (p for own in self.held for p in own):
            parameter.requires_grad_(True)
        fine = self._plainly_useful() if isinstance(self.stack, StackedMLP) else [False] * len(self.plans)
        judged = zip(self.plans, self.students, fine, strict=True)
        return [student.eval() if good else _judged(plan, student.eval()) for plan, student, good in judged]

    def _descend(self) -> None:
        params = [self.stack.params[k].detach() for k in self.places]
        rate = self.plans[0].rate
        optimizer = self.plans[0].optimizer(params, self.plans[0].config)  # type: ignore[arg-type]
        for group in optimizer.param_groups:
            # One walk through memory instead of one an operation, as it lies: gradients have the same strides, below.
            group["fused"] = all(p.is_contiguous() for p in params)
        every, done = len(self.plans), 0
        ended: set[int] = set()
        held = self._held_together()
        penalised = any(plan.penalty is not None for plan in self.plans)
        room: dict[int, Tensor] = {}  # fresh memory of some MB a step would cost more than what is done in it
        for told, rows, aims, weights in self._batches():
            for number in range(every):
                if number not in told and number not in ended:
                    ended.add(number)
                    self._copy_out(params, number)
            done += 1
            width = rows.shape[1]
            if width not in room:
                room[width] = self.x.new_empty((every * width, *self.x.shape[1:]))
            x = torch.index_select(self.x, 0, rows.flatten(), out=room[width]).view(every, width, *self.x.shape[1:])
            targets = self.targets.index_select(0, aims.flatten()).view(every, width, *self.targets.shape[1:])
            grads = self.stack.gradients(x, targets, weights, losses=self.losses)
            grads = [grads[k] for k in self.places]
            if penalised:
                self._add_penalties(params, grads, {number: epoch for number, (epoch, _) in told.items()})
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else grad.contiguous()
            if rate is not None:
                total = next(iter(told.values()))[1]  # all are at the same of as many steps
                for group in optimizer.param_groups:
                    group["lr"] = self.plans[0].config.lr * rate(done - 1, total)
            optimizer.step()
            if held is not None:
                held.restore(self._every(params))
                continue
            for number, (_, total) in told.items():
                project = self.plans[number].project
                if project is not None:
                    with torch.no_grad():
                        project(self._own(params, number), done, total)  # type: ignore[arg-type]
        for number in set(range(every)) - ended:
            self._copy_out(params, number)

    def _batches(self) -> Iterator[tuple[dict[int, tuple[int, int]], Tensor, Tensor, Tensor]]:
        """(epoch and number of all steps of each model that has a batch, positions of examples and of targets, weights)
        of each step, (M, W) on the device; a weight of 0 and some position where there is no example."""
        every = len(self.plans)
        steps = max(1, _BLOCK // (every * self.width))
        while True:
            places = np.zeros((2, steps, every, self.width), np.int64)
            weights = np.zeros((steps, every, self.width))
            told = [
                stream.fill(*(each[:, number] for each in (*places, weights)))
                for number, stream in enumerate(self.streams)
            ]
            rows, aims = torch.from_numpy(places).to(self.device)
            factors = torch.from_numpy(weights).to(self.device, self.x.dtype)
            for step in range(max(map(len, told))):
                here = {number: own[step] for number, own in enumerate(told) if step < len(own)}
                width = max(size for size, _, _ in here.values())
                at = {number: (epoch, total) for number, (_, epoch, total) in here.items()}
                yield at, *(each[step, :, :width] for each in (rows, aims, factors))
            if max(map(len, told)) < steps:
                return

    @torch.no_grad()
    def _plainly_useful(self) -> list[bool]:
        """Of each model, whether it is finite and better on the retained examples than the best constant answer by more
        than rounding can say: all are asked at once. One that is not is looked at as ``descend`` looks at it."""
        ended = StackedMLP(self.students, label_smoothing=0.0)  # the stack went on with those that ended early
        like = ended.params[0]
        watched = [Inputs(plan.watched, dtype=like.dtype, device=like.device) for plan in self.plans]
        task, longest = watched[0].data.task, max(map(len, watched))
        if not isinstance(task, OutputTask) or any(own.data.task != task for own in watched):
            return [False] * len(watched)
        x = like.new_zeros((len(watched), longest, *watched[0].data.input_shape))
        for room, own in zip(x, watched, strict=True):
            room[: len(own)] = own.block(0, len(own))
        said = ended.logits(x).transpose(1, 2).float().cpu().numpy()
        whole = torch.stack([torch.isfinite(p).flatten(1).all(1) for p in ended.params]).all(0).tolist()
        found = []
        for own, outputs, finite in zip(watched, said, whole, strict=True):
            with np.errstate(all="ignore"):
                values = task.reading_of(outputs[: len(own)], own.targets.cpu().numpy(), own.data.constants)
            quality = float(values.quality.mean()) if len(own) and finite and np.isfinite(values.values).all() else 0.0
            found.append(quality > task.constant_quality(own.data) + _CLOSE if len(own) else False)
        return found

    def _own(self, params: Sequence[Tensor], number: int) -> dict[str, Tensor]:
        """Views of one model's weights, by name and in their own shapes."""
        return {key: p[number].view(shape) for (key, shape), p in zip(self.trained, params, strict=True)}

    def _every(self, params: Sequence[Tensor]) -> dict[str, Tensor]:
        """Views of all models' weights, by name and in their own shapes behind the axis of models."""
        return {key: p.view(len(p), *shape) for (key, shape), p in zip(self.trained, params, strict=True)}

    def _held_together(self) -> Held | None:
        """What every plan holds, as one, where this is all that is done after a step; models that are done may be held,
        too: they have been copied out."""
        held = [plan.project for plan in self.plans]
        own = [one for one in held if isinstance(one, Held)]
        return Held.together(own) if len(own) == len(held) else None

    def _add_penalties(self, params: Sequence[Tensor], grads: list[Tensor | None], epochs: dict[int, int]) -> None:
        """Add the gradient of each model's penalty to its own, in place; ``epochs`` of those that have a batch."""
        if self.penalty is not None:
            try:
                self._add_penalty(params, grads, epochs, self.penalty)
                return
            except Exception:  # of many types are vmap's reports of what it cannot do; the function's own come again
                self.penalty = None
        leaves: list[Tensor] = []
        places: list[tuple[int, int]] = []
        total: Tensor | float = 0.0
        for number, epoch in epochs.items():
            penalty = self.plans[number].penalty
            if penalty is not None:
                # Leaves of its own: the gradient of a view of the stack would be as large as the stack.
                own = {key: p.detach().requires_grad_() for key, p in self._own(params, number).items()}
                total = total + penalty(own, epoch)
                leaves += own.values()
                places += [(k, number) for k in range(len(own))]
        if not isinstance(total, Tensor) or not total.requires_grad:
            return
        for (k, number), found in zip(places, torch.autograd.grad(total, leaves, allow_unused=True), strict=True):
            if found is not None:
                whole = grads[k]
                if whole is None:
                    whole = grads[k] = torch.zeros_like(params[k])
                whole[number] += found.view_as(whole[number])

    def _add_penalty(
        self,
        params: Sequence[Tensor],
        grads: list[Tensor | None],
        epochs: dict[int, int],
        penalty: Callable[[dict[str, Tensor], int], Tensor],
    ) -> None:
        """As :meth:`_add_penalties`, one function for all models: each epoch that some are in is one call of it."""
        own = {key: p.detach().requires_grad_() for key, p in self._every(params).items()}
        at = torch.tensor([epochs.get(number, -1) for number in range(len(self.plans))], device=self.device)
        each = [vmap(partial(lambda e, p: penalty(p, e), epoch))(own)[at == epoch] for epoch in set(epochs.values())]
        total = torch.cat(each).sum()
        found = torch.autograd.grad(total, list(own.values()), allow_unused=True) if total.requires_grad else ()
        for k, gradient in enumerate(found):
            if gradient is not None:
                whole = grads[k]
                grads[k] = gradient.view_as(params[k]) if whole is None else whole.add_(gradient.view_as(whole))

    @torch.no_grad()
    def _copy_out(self, params: list[Tensor], number: int) -> None:
        own = self._own(params, number)
        for key, p in self.students[number].named_parameters():
            if key in own:
                p.copy_(own[key])
