"""What the sizes of a plan allow, said before any work is done: how often would exact removal pass, and what is missing if never."""

from __future__ import annotations

import numpy as np

from assets.unlearning import NONE, RETRAIN
from contracts.digests import derive_seed
from contracts.methods import attack, curator, unlearner
from contracts.subject import Subject
from sources import ExampleSet


def expectations(subject: Subject, data: ExampleSet) -> list[str]:
    """Sentences for people; none for a plan that removes nothing."""
    plan = subject.unlearning
    if plan is None:
        return []
    said = []
    split = next(s for s in subject.splits if s.name == plan.split)
    spec = curator.get(split.method).spec
    if not spec.random:
        said.append(
            f"The split {split.name} is not random: it is judged by {plan.retrainings} retrainings without it. Whether exact removal passes "
            "depends on how much they vary; a few rows, or rows that move together such as a class, may stay inconclusive."
        )
    elif not spec.needs and data.task == "classification":
        said.append(_of_random(subject, data, split.method, split.config, split.name))
    if plan.decides not in (NONE, RETRAIN) and not unlearner.get(plan.decides).spec.exact:
        audited = any(choice.name == "shadow_unlearning" for choice in subject.analyses)
        said.append(
            f"{plan.decides} is approximate: it passes only with U-LiRA over shadow runs"
            + ("." if audited else ", and the plan does not list the analysis shadow_unlearning.")
        )
    return said


def _of_random(subject: Subject, data: ExampleSet, method: str, chosen: dict[str, object], name: str) -> str:
    from attacks.planning import pass_probability, why_not
    from recipes.design import pool_and_population

    found = curator.get(method)
    seed = derive_seed(subject.seed, "split", name) % 2**31
    members = found(data.part("train"), config=found.spec.config.from_mapping(chosen), seed=seed)
    forget = members.filter(members["role"] == "forget")["example_id"].to_numpy()
    pool, _ = pool_and_population(data, ensemble=subject.ensemble, seed=derive_seed(subject.seed, "ensemble") % 2**31)
    inside, unseen = data.example_id[pool], int((data.split[pool] == "test").sum())
    num = int(np.isin(forget, inside).sum())
    with_references = [choice.name for choice in subject.attacks if attack.get(choice.name).spec.references]
    limits, references = subject.thresholds, subject.ensemble.num_models // 2
    lacking = why_not(num, unseen, uses_references=bool(with_references), num_references=references, thresholds=limits)
    sizes = f"{num:,} forgotten examples against {unseen:,} unseen ones"
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
    return f"{sizes}: exact removal would pass the attacks with probability {chance:.2f}; else it is inconclusive, and fails in at most {limits.alpha:.0%}."
