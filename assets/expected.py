"""What the sizes of a plan allow, said before any work is done: how often would exact removal pass, and what is missing
if never."""

from __future__ import annotations

import numpy as np

from assets import in_use
from assets.needs import pool_and_population, read_of_references
from assets.unlearning import NONE
from contracts.digests import derive_seed
from contracts.methods import attack, curator, unlearner
from contracts.subject import GIVEN, NO_REFERENCES, RETRAIN, Subject
from sources.example_set import ExampleSet
from tasks.base import require


def of_references(subject: Subject, data: ExampleSet) -> list[str]:
    """How the plan's reference models come about and what they can carry, as sentences; none where nothing reads them.

    Raises:
        ConfigError, DataError: given models that do not fit the plan or the data.
        NotApplicable: a policy that cannot make any for these data.
    """
    from recipes.policies import adapter_config, of_another_recipe

    plan = subject.ensemble
    policy, half = plan.policy.name, plan.num_models // 2
    if policy == NO_REFERENCES:
        return [
            "No reference models: what can do without them is run, and a pass by attacks without them clears nobody."
        ]
    if not read_of_references(subject):
        return (
            [] if policy == RETRAIN else [f"Nothing listed reads reference models: policy {policy} is not looked at."]
        )
    if policy == GIVEN:
        return _of_given(subject, data)
    pool = len(pool_and_population(subject, data)[0])
    sides = f"each on a random half of {pool:,} examples: {half} with and {half} without each of them."
    if policy == RETRAIN:
        return [f"{plan.num_models} reference models, trained by {subject.recipe.name}, {sides}"]
    require(data, "ensemble.policy adapters", "losses", "tokens")
    config = adapter_config(subject)
    said = (
        f"{plan.num_models} reference models, adapters of rank {config.rank} on one {subject.model.name}, {sides} Of a "
        "pretrained base it is taken on trust that it never saw these examples."
    )
    return [said, *filter(None, [of_another_recipe(subject)])]


def _of_given(subject: Subject, data: ExampleSet) -> list[str]:
    from recipes.given import given_set, refuse_other_models
    from recipes.plan import model_builder

    given = given_set(data, ensemble=subject.ensemble)
    refuse_other_models(given, model_builder(subject, data))
    sides, unseen = given.sides(), int((data.split[given.pool] == "test").sum())
    left_out = given.num_known - len(given.pool)
    said = [
        f"{len(given.files)} given reference models: {len(given.pool):,} examples are in and out of "
        f"{subject.ensemble.each_side} of them at least ({int(sides.min())} to {int(sides.max())} on the smaller "
        f"side), {left_out:,} more that some saw are not and are left out; {len(given.population):,} test examples "
        "that none saw are the population."
    ]
    if not unseen:
        said.append(
            "No test example is among those that the given models saw: attacks have no unseen examples to compare "
            "with, and will be inconclusive."
        )
    return [
        *said,
        f"That {subject.recipe.name} made them is tested on one of them; where it did not, nothing passes by them.",
    ]


def expectations(subject: Subject, data: ExampleSet) -> list[str]:
    """Sentences for people; none for a plan that removes nothing."""
    plan = subject.unlearning
    if plan is None:
        return []
    said = []
    split = next(s for s in subject.splits if s.name == plan.split)
    spec = curator.get(split.method).spec
    if not spec.random:
        num = None if spec.needs else _forgotten(subject, data, split.name, split.method, split.config).size
        said.append(f"The split {split.name} is not random. " + against_retrainings(subject, num))
    elif not spec.needs:
        said.append(_of_random(subject, data, split.method, split.config, split.name))
    if plan.decides != NONE and not unlearner.get(plan.decides).spec.exact:
        audited = any(choice.name == "shadow_unlearning" for choice in subject.analyses)
        said.append(
            f"{plan.decides} is approximate: it passes only with U-LiRA over shadow runs"
            + ("." if audited else ", and the plan does not list the analysis shadow_unlearning.")
        )
    return [*said, *in_use.sentences(subject)]


def against_retrainings(subject: Subject, num: int | None) -> str:
    """What verdict the number of examples can carry where a set is judged by retrainings without it; None: not known
    yet."""
    from attacks.planning import against_retraining_allows

    assert subject.unlearning is not None
    judged = f"It is judged against {subject.unlearning.retrainings} retrainings without it"
    if num is None:
        return f"{judged}; a few rows, or rows that move together such as a class, may stay inconclusive."
    removal = f"exact removal of {num:,} example{'s' * (num != 1)} passes in"
    chance, trace = against_retraining_allows(
        num, retrainings=subject.unlearning.retrainings, thresholds=subject.thresholds
    )
    if chance < 0.8:
        return f"{judged}: {removal} at most {chance:.0%} of audits, whatever the model; else it is inconclusive."
    return (
        f"{judged}: {removal} 4 of 5 audits only where the untouched model knows them at least {trace:.1f} standard "
        "deviations better than those do; else it is inconclusive."
    )


def _forgotten(subject: Subject, data: ExampleSet, name: str, method: str, chosen: dict[str, object]) -> np.ndarray:
    """Ids of the examples that a split of the plan forgets."""
    found = curator.get(method)
    seed = derive_seed(subject.seed, "split", name) % 2**31
    members = found(data.part("train"), config=found.spec.config.from_mapping(chosen), seed=seed)
    return members.filter(members["role"] == "forget")["example_id"].to_numpy()


def _of_random(subject: Subject, data: ExampleSet, method: str, chosen: dict[str, object], name: str) -> str:
    from attacks.planning import pass_probability, why_not

    forget = _forgotten(subject, data, name, method, chosen)
    pool, _ = pool_and_population(subject, data)
    inside, unseen = data.example_id[pool], int((data.split[pool] == "test").sum())
    num = int(np.isin(forget, inside).sum())
    with_references = [choice.name for choice in subject.attacks if attack.get(choice.name).spec.references]
    limits, references = subject.thresholds, subject.ensemble.each_side
    lacking = why_not(num, unseen, uses_references=bool(with_references), num_references=references, thresholds=limits)
    tested = int((data.split == "test").sum())
    out = "are not in the pool" if subject.ensemble.policy.name == GIVEN else "are kept out of every model"
    rest = f" ({tested:,} test rows, of which {tested - unseen:,} {out})" if tested > unseen else ""
    sizes = f"{num:,} forgotten examples against {unseen:,} unseen ones{rest}"
    if lacking:
        return f"{sizes} cannot carry a pass: {lacking}. The audit will be inconclusive at best."
    assert subject.unlearning is not None
    chance = pass_probability(
        num,
        unseen,
        plain=len(subject.attacks) - len(with_references),
        reference=len(with_references),
        models=subject.unlearning.seeds,
        num_references=references,
        thresholds=limits,
    )
    return (
        f"{sizes}: exact removal would pass the attacks with probability {chance:.2f}; else it is inconclusive, and "
        f"fails in at most {limits.alpha:.0%}."
    )
