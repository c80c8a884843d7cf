"""How a plan's reference models come about: its ``ensemble.policy``, read here and nowhere below.

    retrain   recipes.ensemble            the plan's recipe on random halves of the pool, M times
    adapters  recipes.language.adapters   low-rank adapters on one base, each on its half
    given     recipes.given               models that the user brings, with the rows that each of them saw
    none                                  there are none; a plan that lists what reads them is refused as it loads

The base of adapters is what the plan's model is before any training: a fresh initialisation, which saw nothing, or a
pretrained model, of which whoever brings it says that it never saw the pool's rows. Where the plan's recipe is ``lora``
these are the models that it would train, on the audited model's own base and without as many copies of that; under any
other recipe they are models of another recipe than the audited one, and what rests on them cannot clear it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from contracts.subject import ADAPTERS, GIVEN, NO_REFERENCES, RETRAIN, Subject
from recipes.plan import device_of, model_builder, recipe_config
from sources.example_set import ExampleSet
from tasks.base import require

if TYPE_CHECKING:
    from recipes.ensemble import ReferenceEnsemble
    from recipes.language.lora import LoraConfig

_ADAPTED = "lora"  # the recipe whose models adapters are


def reference_ensemble(
    subject: Subject,
    data: ExampleSet,
    *,
    outputs: bool = False,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    progress: Progress = silent,
) -> ReferenceEnsemble:
    """The plan's reference models and what they say of pool and population.

    Args:
        outputs: keep the whole outputs too.
        checkpoints: keeps what is done, for a run that is taken up again.
        progress: called with (done, in all, "reference models").

    Raises:
        NotApplicable: the policy has none, or cannot make any for these data.
        Others: as of the policy's own function.
    """
    make = _MAKE[subject.ensemble.policy.name]
    return make(subject, data, outputs=outputs, checkpoints=checkpoints, progress=progress)


def seed_of(subject: Subject) -> int:
    """The seed of the design and, with its number, of every reference model."""
    return derive_seed(subject.seed, "ensemble") % 2**31


def of_another_recipe(subject: Subject) -> str:
    """Why reference models are made otherwise than the audited model, as a sentence; "" where the plan does not say so
    (of given ones nobody here knows)."""
    if subject.ensemble.policy.name != ADAPTERS or subject.recipe.name == _ADAPTED:
        return ""
    return (
        f"The audited model is trained by {subject.recipe.name} and its reference models are adapters ({_ADAPTED}): "
        "attacks on them can find members, and what would pass by them is inconclusive."
    )


def adapter_config(subject: Subject) -> LoraConfig:
    """The configuration of the adapters: the plan's own recipe's where that is ``lora``, else the policy's.

    Raises:
        ConfigError: outside its range; or both are stated.
    """
    from recipes.language.lora import LoraConfig

    stated = subject.ensemble.policy.config
    if subject.recipe.name != _ADAPTED:
        return LoraConfig.from_mapping(stated)
    if stated:
        raise ConfigError(
            f"ensemble.policy.config is for a plan whose recipe is not {_ADAPTED}: here the adapters are made as the "
            "audited model is, as recipe.config says"
        )
    return LoraConfig.from_mapping(subject.recipe.config)


def _retrained(subject: Subject, data: ExampleSet, **more: Any) -> ReferenceEnsemble:
    from recipes.ensemble import train_ensemble

    return train_ensemble(
        model_builder(subject, data),
        data,
        recipe=subject.recipe.name,
        config=recipe_config(subject),
        ensemble=subject.ensemble,
        seed=seed_of(subject),
        device=device_of(subject),
        **more,
    )


def _adapted(
    subject: Subject, data: ExampleSet, *, outputs: bool, checkpoints: CheckpointStore, progress: Progress
) -> ReferenceEnsemble:
    from recipes.ensemble import refuse_no_outputs
    from recipes.language.adapters import adapter_ensemble

    require(data, "the policy adapters", "losses", "tokens")
    refuse_no_outputs(data, outputs)
    return adapter_ensemble(
        model_builder(subject, data)(subject.seed),
        data,
        config=adapter_config(subject),
        ensemble=subject.ensemble,
        seed=seed_of(subject),
        device=device_of(subject),
        checkpoints=checkpoints,
        progress=progress,
    )


def _given(
    subject: Subject, data: ExampleSet, *, outputs: bool, checkpoints: CheckpointStore, progress: Progress
) -> ReferenceEnsemble:
    from recipes.given import given_ensemble

    return given_ensemble(
        model_builder(subject, data),
        data,
        ensemble=subject.ensemble,
        device=device_of(subject),
        outputs=outputs,
        progress=progress,
    )


def _none(subject: Subject, data: ExampleSet, **more: Any) -> ReferenceEnsemble:
    raise NotApplicable(f"{subject.subject} has no reference models: its ensemble.policy is {NO_REFERENCES}")


_MAKE: dict[str, Callable[..., ReferenceEnsemble]] = {
    RETRAIN: _retrained,
    ADAPTERS: _adapted,
    GIVEN: _given,
    NO_REFERENCES: _none,
}
