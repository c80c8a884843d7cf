"""The process of one unlearning job: reads the job file, runs the method over its seeds, writes one artifact.

It opens no database: the audited model and the ids of the split come as artifacts with their digests, the data from its
source, compared by digest.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from dagster_pipes import PipesContext, open_dagster_pipes

from assets.batch import leaving
from assets.measured import Measured
from assets.provider import JobProvider
from contracts.digests import canonical_json, digest
from contracts.errors import Diverged, IntegrityError, NotTheModel, in_words
from contracts.jobs import UnlearnJob, times_of
from contracts.methods import unlearner
from contracts.subject import Subject
from pipelines.home import state_home
from pipelines.launchers import finished
from recipes.plan import device_of, load_examples, trained_builder
from tasks.base import Reading
from warehouse import ArtifactStore, fsio


def run_job(job: UnlearnJob, *, home: Path, folder: Path) -> dict[str, Any]:
    """Do the job and return the meta of its output artifact.

    The artifact holds ``reading`` (S, N, 4) of every example of the data set, ``example_id`` (N,), ``non_member`` (S,
    F) bool by the efficacy attack, ``forget`` (F,) their ids, and the weights of seed s under ``<s>.<parameter>``;
    ``logits`` (S, N, K) float32 where the job asks for outputs and the task gives them; of numbers ``predicted`` (S, F)
    and ``relearned`` (S, 2), batches and whether they were enough. Its meta holds one row of metrics a seed. What it
    took is stored beside it: times differ between equal runs. What the split has ``beside`` the forget set is removed
    with it, and is not measured.

    Every run starts from its own copy of the audited model and of the sets, and what is measured is what the result's
    arrays give in a fresh model (``recipes.as_saved``). Of a run that diverged or was refused nothing is measured: the
    untouched model's readings stand in, so that shapes fit, and its status says so.

    Raises:
        IntegrityError: the data, the model or the split is not the one the job was made for.
    """
    from recipes.as_saved import as_saved
    from recipes.checkpoints import load_arrays, to_arrays
    from recipes.predict import read_with_outputs

    subject = Subject.from_mapping(job.subject)
    store = ArtifactStore(home / "artifacts")
    data = load_examples(subject)
    _same("data set", data.digest, job.data_version)
    _same(job.target, store.sha256(job.target), job.target_sha256)
    _same(job.members, store.sha256(job.members), job.members_sha256)
    weights, _ = store.load(job.target)
    ids, _ = store.load(job.members)
    leaves = leaving(ids)
    train = data.part("train")
    build, device = trained_builder(subject, data), device_of(subject)
    model = build(0)
    load_arrays(model, weights)
    model = model.to(device).eval()
    method = unlearner.get(job.method.name)
    config = method.spec.config.from_mapping(job.method.config)

    def stored(stage: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        artifact = next(a for a in job.inputs if a.split("/")[-2:] == [stage, name])
        _same(artifact, store.sha256(artifact), job.inputs[artifact])
        return store.load(artifact)

    def progress(done: int, total: int, what: str) -> None:
        nonlocal said
        if time.monotonic() - said > 0.2:
            said = time.monotonic()
            state = {"done": step * 1000 + 1000 * done // max(total, 1), "total": 1000 * len(job.seeds), "what": what}
            fsio.write_bytes(folder / "progress.json", canonical_json(state).encode())

    said, step = 0.0, 0
    rows: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    readings: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    whole = job.outputs and data.task.gives("outputs")
    measured = Measured(data, ids, original=model, runs=len(job.seeds))
    arrays: dict[str, np.ndarray] = {"example_id": data.example_id}
    provider = JobProvider(subject, data, model, load=stored, progress=progress)
    untouched: tuple[Reading, np.ndarray | None] | None = None  # read where a run has no result
    for step, seed in enumerate(job.seeds):
        started = time.perf_counter()
        status, reason, metrics = "ok", "", {}
        try:
            result = method(
                copy.deepcopy(model),
                retain=train.subset(ids["retain"]),
                forget=train.subset(leaves),
                config=config,
                seed=seed,
                progress=progress,
                **provider.provided(method.spec),
            )
            wall_s = time.perf_counter() - started
            result, reading, outputs = as_saved(result, build, data, what=job.method.name, outputs=whole)
            metrics = measured.of(step, result, reading, seed=seed)
        except (Diverged, NotTheModel) as error:
            sys.stderr.write(f"{job.method.name}, seed {seed}: {error}\n")
            status, reason = "diverged" if isinstance(error, Diverged) else "refused", str(error)
            result, wall_s = model, time.perf_counter() - started
            untouched = untouched or read_with_outputs(model, data, outputs=whole)
            reading, outputs = untouched
        readings.append(reading.values)
        logits += [] if outputs is None else [outputs]
        arrays |= {f"{step}.{name}": value for name, value in to_arrays(result).items()}
        rows.append({"seed": seed, **measured.sizes, **metrics, "status": status, "reason": reason})
        times.append({"seed": seed, "wall_s": wall_s, "rte": wall_s / 60})
    meta = {"job": digest(job), "method": job.method.name, "runs": rows}
    store.save_json(times_of(job.output), times)
    kept = {"reading": np.stack(readings), **measured.arrays} | ({"logits": np.stack(logits)} if whole else {})
    store.save(job.output, arrays | kept, meta)
    return meta


def _same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise IntegrityError(f"{what} has digest {found}, but the job was made for {expected}; run the audit again")


def prepare() -> None:
    """Load what every job runs on, before it is known which comes."""
    import torch

    importlib.import_module("recipes.as_saved")
    importlib.import_module("unlearning.metrics")
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # the first optimiser of a process loads PyTorch's compiler


def main(path: Path) -> None:
    """A job in the process of its own: ``path`` is its job.json; under Dagster Pipes when its starter set it up."""
    job = UnlearnJob.from_mapping(json.loads(path.read_bytes()))
    with fsio.locked_folder(path.parent), open_dagster_pipes():  # never two at once, whoever started the other
        pipes = PipesContext.get()
        pipes.log.info(f"job {job.job_id}: {job.method.name} over {len(job.seeds)} seeds")
        if finished(job, state_home()):
            return
        try:
            meta = run_job(job, home=state_home(), folder=path.parent)
        except Exception as error:  # a user's model may raise anything; the launcher reads the last line
            sys.stderr.write(f"{traceback.format_exc()}\n{in_words(error)}\n")
            raise SystemExit(1) from None
        pipes.log.info(f"job {job.job_id}: done, {len(meta['runs'])} runs")
