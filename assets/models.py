"""Stage 2, models: the audited model, its early checkpoints, and the one reference ensemble that serves every
method."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets.provider import early_seeds
from assets.stage import APPLIES, Output, Run, Stage
from contracts import schema
from contracts.digests import digest
from contracts.errors import ConfigError, InvalidInput, NotApplicable, NotReady
from contracts.methods import recipe
from contracts.subject import ADAPTERS, GIVEN, RETRAIN, Subject
from recipes.plan import device_of, model_builder, recipe_config, trained_builder, trainer, tried_model, versions
from recipes.schedule import SupervisedConfig, num_epochs
from reports import plots
from tasks.base import Reading
from warehouse import empty

if TYPE_CHECKING:
    from torch import nn

    from assets.workspace import Workspace
    from recipes.ensemble import ReferenceEnsemble
    from sources.example_set import ExampleSet


def training(subject: Subject) -> dict[str, Any]:
    """What every trained model of a subject depends on, the versions of source, recipe and model among it."""
    chosen = subject.model
    if subject.outputs_only:  # nothing is trained, and what was stored is known by its file's digest
        return {"model": {"name": chosen.name}, "recipe": {}, "versions": {}, "seed": subject.seed, "device": "cpu"}
    raw = {"inputs": chosen.inputs} if chosen.inputs != "standardised" else {}
    return {
        "model": {"name": chosen.name, "config": chosen.config, **raw},  # where its file lies makes no other model
        "recipe": {"name": subject.recipe.name, "config": recipe_config(subject)},
        "versions": versions(subject),
        "seed": subject.seed,
        "device": subject.device,
    }


def trained_by(stage: Stage) -> str:
    """Digest of the part of a stage's configuration that :func:`training` gives: equal for the models of stages that
    were made by the same recipe on the same architecture, by the same versions of their code."""
    return digest({name: stage.config[name] for name in ("model", "recipe", "versions", "seed", "device")})


def target(subject: Subject, examples: Stage) -> Stage:
    """``[subject, models, target]``: the model under audit and its readings of every example."""
    if subject.outputs_only:
        return Stage(
            subject=subject,
            path=("models", "target"),
            doc="What the model under audit said of every example, as it was stored; there is no model.",
            config={**training(subject), "source": subject.source},
            reads="model",
            deps=(examples,),
            tables=(schema.CHECKPOINTS,),
            kinds=frozenset({"safetensors"}),
            work=_stored_outputs,
        )
    if subject.model.checkpoint:
        return Stage(
            subject=subject,
            path=("models", "target"),
            doc="The model under audit as it was given, not trained here, with its readings of every example.",
            config={**training(subject), "given": True},
            reads="model",
            deps=(examples,),
            tables=(schema.CHECKPOINTS,),
            kinds=frozenset({"torch", "safetensors"}),
            work=_given,
        )
    return Stage(
        subject=subject,
        path=("models", "target"),
        doc="The model under audit, trained on the whole training split, with its readings of every example.",
        config=training(subject),
        deps=(examples,),
        tables=(schema.CHECKPOINTS,),
        kinds=frozenset({"torch", "safetensors"}),
        trains=True,
        work=_target,
    )


def _target(run: Run) -> Output:
    subject = run.subject
    tried_model(subject, run.train)
    started = time.perf_counter()
    model = trainer(subject, run.data).one(
        run.train, subject.seed, checkpoints=run.checkpoints(), progress=run.progress
    )
    return _audited_model(run, model, time.perf_counter() - started)


def _given(run: Run) -> Output:
    model, sha256 = given_model(run.subject, run.data, run.workspace)
    output = _audited_model(run, model, 0.0)
    file = run.subject.model.checkpoint
    return dataclasses.replace(output, metadata={**output.metadata, "checkpoint": file, "checkpoint_sha256": sha256})


def _stored_outputs(run: Run) -> Output:
    from recipes.predict import reading_of_outputs
    from sources.outputs import outputs_of

    logits, zeros = outputs_of(run.subject.source.config)
    reading = reading_of_outputs(run.data, logits)
    made = {"trained_by": trained_by(run.stage)}
    stored = run.save(_said(run.data, reading, logits), made, READINGS)
    row = {
        "artifact_id": stored.name,
        "role": "target",
        "recipe": "",
        "seed": run.subject.seed,
        "epochs": 0,
        "num_parameters": 0,
    }
    row |= {"wall_s": 0.0, "retains": None, **fit_of(run, reading)}
    return Output(
        tables=[(schema.CHECKPOINTS, pl.DataFrame([row], schema_overrides=_COLUMNS), {"role": "target"})],
        artifacts=[stored],
        members=run.train.example_id,
        metadata={"examples": len(logits), "rows_with_a_probability_of_0": zeros, **fit_of(run, reading)},
        pictures={"loss": loss_picture(run, reading)},
    )


def given_model(subject: Subject, data: ExampleSet, workspace: Workspace) -> tuple[nn.Module, str]:
    """The model that a plan names with the weights of its checkpoint, in eval mode on the device, and the file's
    SHA-256.

    Raises:
        ConfigError: the architecture cannot be audited, there is no such file, or its arrays are of another model:
            names them.
        DataError: no safetensors.
    """
    from recipes.checkpoints import load_arrays, read_checkpoint

    tried_model(subject, data)
    model = trained_builder(subject, data)(0)
    path, sha256 = workspace.checkpoint(subject)
    arrays = read_checkpoint(path)
    try:
        load_arrays(model, arrays)
    except InvalidInput as error:
        raise ConfigError(f"checkpoint {path.name} is not of model {subject.model.name!r}: {error}") from error
    return model.to(device_of(subject)).eval(), sha256


def _audited_model(run: Run, model: nn.Module, wall_s: float) -> Output:
    """Weights, readings of every example with the outputs behind them, and the row of models.checkpoints."""
    from recipes.checkpoints import to_arrays
    from recipes.predict import read_with_outputs
    from recipes.retention import retained_of

    subject, data = run.subject, run.data
    # One vector an example: a recommender's scores of all items for every interaction would be N x K numbers nobody
    # reads.
    reading, outputs = read_with_outputs(model, data, outputs=data.task.gives("features"))
    made = {"trained_by": trained_by(run.stage)}
    weights = run.save(to_arrays(model), {"role": "target", "seed": subject.seed, **made}, "weights")
    said = run.save(_said(data, reading, outputs), made, READINGS)
    artifacts = [weights, said]
    if kept := retained_of(model).arrays():
        artifacts.append(run.save(kept, made, RETAINED))
    row = checkpoint_row(run, weights.name, "target", subject.seed, model, reading, wall_s)
    return Output(
        tables=[(schema.CHECKPOINTS, pl.DataFrame([row], schema_overrides=_COLUMNS), {"role": "target"})],
        artifacts=artifacts,
        members=run.train.example_id,
        metadata={k: v for k, v in row.items() if v is not None and k not in ("artifact_id", "wall_s", "retains")}
        | {"retained_besides_weights": _in_words(row["retains"])},
        pictures={"loss": loss_picture(run, reading)},
    )


READINGS = "readings"
RETAINED = "retained"  # what the recipe still holds of the data besides the weights


def _said(data: ExampleSet, reading: Reading, outputs: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {"example_id": data.example_id, "reading": reading.values}
    return arrays if outputs is None else {**arrays, "logits": outputs}


_NULLABLE = {"train_loss": pl.Float64, "train_quality": pl.Float64, "test_quality": pl.Float64}
_COLUMNS = {**_NULLABLE, "retains": pl.String}


def checkpoint_row(
    run: Run, artifact: str, role: str, seed: int, model: nn.Module, reading: Reading | None, wall_s: float
) -> dict[str, Any]:
    """One row of models.checkpoints; loss and quality from the readings of every example where there are any."""
    from recipes.fitting import smallest_batch

    config: Any = recipe_config(run.subject)
    given = role == "target" and run.subject.model.checkpoint
    epochs = 0 if given else getattr(config, "epochs", 0)
    if isinstance(config, SupervisedConfig) and not given:
        epochs = num_epochs(len(run.train), config, smallest=smallest_batch(model))
    row: dict[str, Any] = {
        "artifact_id": artifact,
        "role": role,
        "recipe": "" if given else run.subject.recipe.name,
        "seed": seed,
        "epochs": epochs,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        **fit_of(run, reading),
        "retains": None if given else retained(run.subject),
        "wall_s": wall_s,
    }
    return row


def retained(subject: Subject) -> str:
    """What the plan's recipe keeps of its data besides the weights, joined by commas: a forget request must reach it
    too."""
    return ", ".join(recipe.get(subject.recipe.name).spec.retains)


def _in_words(retains: str | None) -> str:
    return "not known: it was not trained here" if retains is None else retains or "nothing"


def fit_of(run: Run, reading: Reading | None) -> dict[str, float | None]:
    """Mean loss on the training split and mean quality on both, from the readings of every example where there are
    any."""
    if reading is None:
        return dict.fromkeys(_NULLABLE)
    train = run.data.split == "train"
    return {
        "train_loss": float(reading.loss[train].mean()),
        "train_quality": float(reading.quality[train].mean()),
        "test_quality": float(reading.quality[~train].mean()),
    }


def loss_picture(run: Run, reading: Reading) -> bytes:
    """Losses span many decades once a model interpolates, so their logarithm is drawn."""
    values = np.log10(np.maximum(reading.loss, 1e-12))
    return plots.histogram_png(values, title="Loss of the audited model", xlabel=f"log10 {run.data.task.spec.loss}")


def early(subject: Subject, examples: Stage) -> Stage:
    """``[subject, models, early]``: R models stopped early, which EL2N and GraNd read."""
    return Stage(
        subject=subject,
        path=("models", "early"),
        doc=f"{subject.early.seeds} models from independent initialisations, stopped at epoch {subject.early.epoch} of "
        "the full recipe.",
        config={**training(subject), "early": subject.early},
        deps=(examples,),
        tables=(schema.CHECKPOINTS,),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "safetensors"}),
        trains=True,
        work=_early,
    )


def _early(run: Run) -> Output:
    from recipes.checkpoints import to_arrays
    from recipes.early import early_models

    subject = run.subject
    seeds = early_seeds(subject)
    started = time.perf_counter()
    try:
        models = early_models(
            model_builder(subject, run.data),
            run.train,
            recipe=subject.recipe.name,
            config=recipe_config(subject),
            seeds=seeds,
            epoch=subject.early.epoch,
            device=device_of(subject),
            progress=run.progress,
        )
    except NotApplicable as error:
        none = (schema.CHECKPOINTS, empty(schema.CHECKPOINTS), {"role": "early"})
        return Output(tables=[none], warnings={APPLIES: str(error)})
    wall_s = (time.perf_counter() - started) / len(seeds)
    made = {"role": "early", "epoch": subject.early.epoch, "trained_by": trained_by(run.stage)}
    artifacts = [
        run.save(to_arrays(model), {**made, "seed": seed}, f"seed{r}")
        for r, (seed, model) in enumerate(zip(seeds, models, strict=True))
    ]
    rows = [
        checkpoint_row(run, artifact.name, "early", seed, model, None, wall_s) | {"epochs": subject.early.epoch}
        for artifact, seed, model in zip(artifacts, seeds, models, strict=True)
    ]
    return Output(
        tables=[(schema.CHECKPOINTS, pl.DataFrame(rows, schema_overrides=_COLUMNS), {"role": "early"})],
        artifacts=artifacts,
        members=run.train.example_id,
        metadata={
            "models": len(models),
            "epoch": subject.early.epoch,
            "retained_besides_weights": _in_words(retained(subject)),
        },
        warnings={APPLIES: ""},
    )


def load_early(run: Run, stage: Stage) -> list[nn.Module]:
    """The stored early models.

    Raises:
        NotApplicable: there are none for this subject, and why.
    """
    _refuse_missing(run, stage)
    return [load_model(run, stage, f"seed{r}") for r in range(run.subject.early.seeds)]


def load_model(run: Run, stage: Stage, name: str = "weights") -> nn.Module:
    """A stored model in eval mode on the subject's device, digest verified.

    Raises:
        NotReady: another recipe, architecture or code trained it than the plan names now.
    """
    arrays, meta = run.load(stage, name)
    refuse_other_training(run, stage, meta)
    return of_arrays(run, arrays)


def of_arrays(run: Run, arrays: Mapping[str, np.ndarray], prefix: str = "") -> nn.Module:
    """A fresh model of the plan with the arrays whose names begin with ``prefix``, in eval mode on the device."""
    from recipes.checkpoints import load_arrays

    model = trained_builder(run.subject, run.data)(0)
    load_arrays(model, {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})
    return model.to(device_of(run.subject)).eval()  # type: ignore[no-any-return]


def ensemble(subject: Subject, examples: Stage, *, outputs: bool = False) -> Stage:
    """``[subject, models, ensemble]``: keep[M, N] and reading[M, N, 4] of M models on parts of the pool, made as the
    plan's policy says (``recipes.policies``).

    Args:
        outputs: a method that the plan lists reads whole outputs, so they are kept too where the task gives them.
    """
    plan = subject.ensemble
    return Stage(
        subject=subject,
        path=("models", "ensemble"),
        doc=f"{_MADE[plan.policy.name].format(all=plan.num_models, half=plan.num_models // 2, side=plan.each_side)} "
        f"Serves memorization, LiRA and RMIA. Resumable by {plan.block} models.",
        config={**training(subject), **_made_by(subject), **({"outputs": True} if outputs else {})},
        reads="references" if plan.policy.name == GIVEN else "",
        deps=(examples,),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "safetensors"}),
        trains=plan.policy.name != GIVEN,
        work=lambda run: _ensemble(run, outputs=outputs),
    )


_MADE = {
    RETRAIN: "{all} models of the same recipe, each on a random half of the pool: every pool example is in exactly "
    "{half} of them.",
    ADAPTERS: "{all} adapters on one base, each on a random half of the pool: every pool example is in exactly {half} "
    "of them.",
    GIVEN: "{all} models that were brought with a table of the rows that each saw: every pool example is in and out of "
    "{side} of them at least.",
}


def _made_by(subject: Subject) -> dict[str, Any]:
    """What reference models depend on besides :func:`training`. Where the files of given ones lie makes no others:
    their digest is in the key."""
    plan = subject.ensemble
    if plan.policy.name != GIVEN:
        return {"ensemble": plan}
    return {"ensemble": {"num_models": plan.num_models}, "policy": {"name": GIVEN, "each_side": plan.each_side}}


def _ensemble(run: Run, *, outputs: bool) -> Output:
    from recipes.policies import reference_ensemble

    try:
        result = reference_ensemble(
            run.subject,
            run.data,
            outputs=outputs and run.data.task.gives("outputs"),
            checkpoints=run.checkpoints(),
            progress=run.progress,
        )
    except NotApplicable as error:
        return Output(warnings={APPLIES: str(error)})
    quality = result.readings.quality
    inside, outside = float(quality[result.keep].mean()), float(quality[~result.keep].mean())
    brought = _brought(run)
    meta = {**result.meta(), "trained_by": trained_by(run.stage), **brought}
    stored = run.save(result.to_arrays(), meta)
    sides = result.keep[:, result.pool].sum(0)
    given = [{"file": name, "sha256": of} for files in brought.values() for name, of in files.items()]
    return Output(
        artifacts=[stored],
        members=result.example_id[result.pool],
        metadata={
            "models": len(result.keep),
            "pool": int(result.pool.sum()),
            "population": int((~result.pool).sum()),
            f"{run.data.task.spec.quality} inside": inside,
            f"{run.data.task.spec.quality} outside": outside,
            **({"models that saw an example": f"{sides.min()} to {sides.max()}", "given": given} if given else {}),
        },
    )


def _brought(run: Run) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of given reference models, by name; nothing where none were given."""
    from recipes.given import fingerprints

    policy = run.subject.ensemble.policy
    return {"given": fingerprints(policy)} if policy.name == GIVEN else {}


def load_ensemble(run: Run, stage: Stage) -> ReferenceEnsemble:
    """The stored ensemble.

    Raises:
        NotApplicable: there is none for this subject, and why.
        NotReady: another recipe, architecture or code trained it than the plan names now.
    """
    from recipes.ensemble import ReferenceEnsemble

    _refuse_missing(run, stage)
    arrays, meta = run.load(stage)
    refuse_other_training(run, stage, meta)
    return ReferenceEnsemble.from_arrays(arrays, meta)


def stored_models(run: Run, stage: Stage) -> dict[str, str]:
    """Name -> digest of the artifacts of a stage of models, for a job that is given them; none where it has made
    none."""
    store = run.warehouse.artifacts
    if stage.path[1] == "early":
        names = [f"{stage.asset(run.request)}/seed{r}" for r in range(run.subject.early.seeds)]
    else:
        names = [f"{stage.asset(run.request)}/result"]
    _refuse_missing(run, stage)
    return {name: store.sha256(name) for name in names}


def refuse_other_training(run: Run, stage: Stage, meta: Mapping[str, Any]) -> None:
    """Raise :class:`NotReady` unless stored models, by their ``meta``, were trained as the plan now says.

    Models that are compared with each other (the audited one and its references) must be made alike. A stage that is
    brought up to date by itself could otherwise read what an older plan, recipe or model left behind.
    """
    if meta.get("trained_by") != trained_by(stage):
        raise NotReady(
            f"{stage.asset(run.request)} was trained by another recipe, architecture or version of them than the plan "
            f"of {run.subject.subject} names now; run: palimpsest audit {run.subject.subject}"
        )


def _refuse_missing(run: Run, stage: Stage) -> None:
    """Raise :class:`NotApplicable` with the reason for which a stage has made no models."""
    if reason := run.why_not(stage):
        raise NotApplicable(reason)
