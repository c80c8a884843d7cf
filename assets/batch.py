"""Batches of forget requests, and the models that those of a batch share: trained for the first, found there by the
others.

    batch    in the order of the requests, as many as name at most a fifth of the training examples together
    leaves   = what any request of the batch names (role ``forget`` of one is role ``beside`` of the others)
    same     a job of the other request that differs in nothing but where it reads and writes, on sets whose union and
             whose rest are the same

Each request has its results under its own name: figures are measured anew on its own examples, and an erasure of one
takes what it has to out of those of the others. What is found is what a job of its own would have given, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.measured import Measured
from assets.stage import Run, Stage
from contracts.digests import digest
from contracts.jobs import UnlearnJob, times_of
from contracts.requests import RequestState
from tasks.base import Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from warehouse.requests import Requests

Ids = Mapping[str, "NDArray[np.int64]"]
MOST = 0.2  # share of the training examples that a batch names, unless one request alone names more


def batches(sizes: Mapping[str, int], num_train: int) -> list[list[str]]:
    """Requests that are removed together: as many as may be, in their order.

    Args:
        sizes: id of a request, in order -> training examples that it names.
        num_train: examples of the training split.

    >>> batches({"a": 5, "b": 10, "c": 10, "d": 90, "e": 1}, 100)
    [['a', 'b'], ['c'], ['d'], ['e']]
    """
    found: list[list[str]] = []
    room = 0.0
    for request_id, num in sizes.items():
        if not found or num > room:
            found.append([])
            room = MOST * num_train
        found[-1].append(request_id)
        room -= num
    return found


def put_together(
    requests: Requests, request_ids: Sequence[str], *, num_train: int, each: bool = False
) -> list[list[str]]:
    """The batches of these requests, on record. One that was begun in a batch, or by itself, goes on as it was begun.

    Args:
        request_ids: in the order in which they are run.
        num_train: examples of the training split.
        each: every request by itself.
    """
    entries = {request_id: requests.get(request_id) for request_id in request_ids}
    fresh = {r: e.num_examples or 0 for r, e in entries.items() if e.state is RequestState.VERIFIED}
    made = [[r] for r in fresh] if each else batches(fresh, num_train)
    for batch in made:
        requests.together(batch)
    return made


def leaving(ids: Ids) -> NDArray[np.int64]:
    """Ids, ascending, of all that is removed together, given a split's ids by role."""
    return np.union1d(ids["forget"], ids.get("beside", ids["forget"]))


def found_job(run: Run, job: UnlearnJob, split: Stage) -> bool:
    """Whether another request of the batch has had this job done; if so its models, measured on this request's own
    examples, are stored as the job's output.

    Args:
        split: the stage that chose the sets.
    """
    store = run.warehouse.artifacts
    ids, _ = store.load(job.members)
    for other in _others(run):
        members, output = f"{split.asset(other)}/result", f"{run.stage.asset(other)}/result"
        if not (store.exists(members) and store.exists(output)):
            continue
        theirs, _ = store.load(members)
        arrays, meta = store.load(output)
        twin = dataclasses.replace(job, members=members, members_sha256=store.sha256(members), output=output)
        whole = any(name.startswith("0.") for name in arrays)  # an erasure may have taken the weights
        if whole and meta["job"] == digest(twin) and _same(ids, theirs):
            _measured(run, job, ids, arrays, meta)
            store.save_json(times_of(job.output), store.load_json(times_of(output)))
            return True
    return False


def found_retrainings(run: Run, work: str, num: int) -> dict[str, np.ndarray] | None:
    """The arrays of the retrainings of another request of the batch; None where there are none.

    Args:
        work: digest of what they depend on, as it stands in their meta.
        num: examples that they were asked about.
    """
    store = run.warehouse.artifacts
    for other in _others(run):
        name = f"{run.stage.asset(other)}/result"
        if store.exists(name):
            arrays, meta = store.load(name)
            if meta.get("work") == work and len(arrays["example_id"]) == num:
                return dict(arrays)
    return None


def _others(run: Run) -> Iterator[str]:
    yield from run.warehouse.requests.batch(run.request).others if run.request else ()


def _same(ids: Ids, theirs: Ids) -> bool:
    return np.array_equal(leaving(ids), leaving(theirs)) and np.array_equal(ids["retain"], theirs["retain"])


def _measured(run: Run, job: UnlearnJob, ids: Ids, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Store a job's output made of another's models."""
    from recipes.checkpoints import load_arrays
    from recipes.plan import device_of, trained_builder

    build, device, store = trained_builder(run.subject, run.data), device_of(run.subject), run.warehouse.artifacts

    def model_of(weights: Mapping[str, np.ndarray]) -> Any:
        model = build(0)
        load_arrays(model, weights)
        return model.to(device).eval()

    measured = Measured(run.data, ids, original=model_of(store.load(job.target)[0]), runs=len(meta["runs"]))
    rows = []
    for s, row in enumerate(meta["runs"]):
        metrics, prefix = {}, f"{s}."
        if row["status"] == "ok":
            model = model_of({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
            metrics = measured.of(s, model, Reading(arrays["reading"][s]), seed=row["seed"])
        rows.append({**row, **measured.sizes, **metrics})
    store.save(job.output, {**arrays, **measured.arrays}, {**meta, "job": digest(job), "runs": rows})
