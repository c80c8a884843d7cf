"""What some attacks read besides the readings of whole examples: single tokens, and the model before its training.

    [subject, models, base]             readings of what the plan's recipe starts from
    [subject, audits, token_readings]   what every audited and every unlearned model says of every token, its
                                        temperature taken out (``attacks.membership.temperature``)

Either is there where a listed attack reads it (``AttackSpec``), and is made once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from assets import models, needs
from assets.stage import APPLIES, Output, Run, Stage
from assets.unlearning import Scope
from contracts.errors import NotApplicable
from contracts.methods import attack
from contracts.subject import GIVEN, Subject
from recipes.plan import model_builder
from tasks.base import require

if TYPE_CHECKING:
    from torch import nn

    from attacks.membership import Evidence

BASE, TOKENS = "base", "token_readings"


def base(subject: Subject, examples: Stage) -> Stage | None:
    """``[subject, models, base]``; None where no listed attack reads it."""
    if not any(attack.get(choice.name).spec.base for choice in subject.attacks):
        return None
    return Stage(
        subject=subject,
        path=("models", BASE),
        doc="The model before its training, a pretrained one or a random initialisation: its readings of every "
        "example, which attacks subtract.",
        config=models.training(subject),
        deps=(examples,),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "safetensors"}),
        work=_base,
    )


def _base(run: Run) -> Output:
    from recipes.plan import device_of
    from recipes.predict import read

    if run.subject.outputs_only or run.subject.model.checkpoint:
        return Output(warnings={APPLIES: "what a given model was before its training is not known"})
    model = model_builder(run.subject, run.data)(run.subject.seed).to(device_of(run.subject))
    reading = read(model, run.data)
    stored = run.save({"example_id": run.data.example_id, "reading": reading.values}, {})
    return Output(artifacts=[stored], metadata={"examples": len(reading), **models.fit_of(run, reading)})


def tokens(
    subject: Subject, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]
) -> Stage | None:
    """``[subject, audits, token_readings]`` of the models of a scope; None where no listed attack reads tokens."""
    if not any("tokens" in attack.get(choice.name).spec.wants for choice in subject.attacks):
        return None
    per_request = scope is not None and scope.per_request
    given = subject.ensemble.policy.name == GIVEN and "ensemble" in upstream  # which examples no model saw, they say
    return Stage(
        subject=subject,
        path=(f"{scope.prefix if scope else ''}audits", TOKENS),
        doc="What every audited and every unlearned model says of every token: its log-probability, and mean and "
        "spread of log-probabilities there, at the temperature that suits the population best.",
        config={**models.training(subject), "population": None if given else subject.ensemble.population_fraction},
        version=2,  # without the models' temperatures
        deps=(upstream["examples"], upstream["target"], *jobs.values(), *([upstream["ensemble"]] if given else [])),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "safetensors"}),
        per_request=per_request,
        work=lambda run: _tokens(run, upstream, scope, jobs),
    )


def _tokens(run: Run, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]) -> Output:
    from attacks.membership.temperature import inverse_temperature
    from recipes.predict import read_tokens, token_logits

    try:
        if run.subject.outputs_only:
            raise NotApplicable("there are only a model's outputs, and none of single tokens")
        require(run.data, "what reads single tokens", "tokens")
    except NotApplicable as error:
        return Output(warnings={APPLIES: str(error)})
    told: dict[str, np.ndarray] = {"example_id": run.data.example_id}
    points = run.data.take(needs.pool_and_population(run.subject, run.data)[1])
    wanted, factors = list(_models(run, upstream, scope, jobs)), {}
    for done, (key, load) in enumerate(wanted):
        model = load()
        factors[key] = inverse_temperature(*token_logits(model, points))
        told[key] = read_tokens(model, run.data, factor=factors[key])
        run.progress(done + 1, len(wanted), "token readings")
    # NaN marks what does not count, and artefacts hold finite numbers: the marks are stored beside the readings.
    counted = np.isfinite(told[wanted[0][0]][:, :, 0]) if wanted else np.empty((0, 0), bool)
    kept = {key: np.nan_to_num(values) if values.ndim == 3 else values for key, values in told.items()}
    stored = run.save(kept | {"counted": counted}, {"inverse_temperature": factors})
    return Output(
        artifacts=[stored],
        members=run.train.example_id,
        metadata={"models": len(wanted), "inverse_temperature": factors},
    )


def _models(
    run: Run, upstream: Mapping[str, Stage], scope: Scope | None, jobs: Mapping[str, Stage]
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Key and loader of every model of the scope, in the order in which attacks look at them."""
    found: list[tuple[str, Callable[[], nn.Module]]] = []
    if not run.stage.per_request:
        found.append((_key("target", 0), lambda: models.load_model(run, upstream["target"])))
    for method, stage in jobs.items() if scope is not None else ():
        arrays, meta = run.load(stage)
        for s, row in enumerate(meta["runs"]):
            if row["status"] == "ok":
                found.append((_key(method, row["seed"]), lambda s=s, a=arrays: models.of_arrays(run, a, f"{s}.")))  # type: ignore[misc]
    return found


def _key(method: str, seed: int) -> str:
    return f"{method}/{seed}"


def added(
    run: Run,
    evidence: Evidence,
    audited: Sequence[tuple[str, int]],
    *,
    base: Stage | None,
    tokens: Stage | None,
) -> Evidence:
    """The evidence with what the attack reads besides.

    Args:
        audited: (method, seed) of each audited model, in the evidence's order; ("target", 0) of the plan's own.
        base, tokens: the stages that it reads; None for what it does not.

    Raises:
        NotApplicable: one of them has nothing, and why.
    """
    import dataclasses

    from attacks.membership.tokens import TokenReadings, zlib_bytes

    rows = run.data.positions(evidence.example_id)
    if base is not None:
        _refuse_missing(run, base)
        evidence = dataclasses.replace(evidence, base=run.load(base)[0]["reading"][rows])
    if tokens is not None and (base is None or not run.why_not(tokens)):  # what is compared with a base needs none
        _refuse_missing(run, tokens)
        arrays, _ = run.load(tokens)
        marks = arrays["counted"][rows][None, :, :, None]
        said = np.stack([arrays[_key(method, seed)][rows] for method, seed in audited])
        told = TokenReadings(target=np.where(marks, said, np.float32(np.nan)), zlib_bytes=zlib_bytes(run.data)[rows])
        evidence = dataclasses.replace(evidence, tokens=told)
    return evidence


def _refuse_missing(run: Run, stage: Stage) -> None:
    if reason := run.why_not(stage):
        raise NotApplicable(reason)
