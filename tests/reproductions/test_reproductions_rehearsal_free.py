"""What is claimed of rehearsal-free learning is claimed of the method: plain fine-tuning in its place meets none of
it."""

from __future__ import annotations

import pytest

from reproductions.rehearsal_free import Found, flip_claims, mlp_claims

PLAIN = Found(accuracy=0.28, lost=1.0)
MEASURED = {  # near the means over five seeds
    "bce": PLAIN,
    "ce": Found(accuracy=0.28, lost=1.0),
    "bce, pre-trained": Found(accuracy=0.28, lost=1.0),
    "l2 alone": Found(accuracy=0.27, lost=0.9),
    "l2 alone, pre-trained": Found(accuracy=0.28, lost=0.9),
    "predkd": Found(accuracy=0.40, lost=0.15),
    "predkd, pre-trained": Found(accuracy=0.43, lost=0.2),
    "L2 0.01": Found(accuracy=0.39, lost=0.05),
    "L2 0.1": Found(accuracy=0.38, lost=0.02),
    "EWC 100": Found(accuracy=0.43, lost=0.10),
    "Feat 0.01": Found(accuracy=0.35, lost=0.02),
}
FLIP = {
    "random": Found(accuracy=0.42, lost=0.09),
    "random, L2": Found(accuracy=0.38, lost=0.01),
    "pre-trained": Found(accuracy=0.45, lost=0.2),
    "pre-trained, L2": Found(accuracy=0.455, lost=0.12),
}


def failed(claims: list) -> set[str]:
    return {claim.name for claim in claims if not claim.passed}


def test_what_was_measured_meets_every_claim() -> None:
    assert failed(mlp_claims(MEASURED)) == failed(flip_claims(FLIP)) == set()


def test_plain_fine_tuning_in_place_of_the_method_meets_no_claim_of_an_advantage() -> None:
    plain = dict.fromkeys(MEASURED, PLAIN)
    assert failed(mlp_claims(plain)) == {
        "1. PredKD with BCE: final accuracy",
        "1. PredKD with BCE: forgetting",
        "2. PredKD above L2 alone",
        "3. PredKD, pre-trained: final accuracy",
    }
    same = dict.fromkeys(FLIP, Found(accuracy=0.42, lost=0.09))
    assert failed(flip_claims(same)) == {"5. from random weights: forgetting that L2 0.1 takes away"}


@pytest.mark.parametrize("name", ["L2 0.01", "L2 0.1", "EWC 100", "Feat 0.01"])
def test_a_penalty_that_wins_or_forgets_more_is_found(name: str) -> None:
    won = MEASURED | {name: Found(accuracy=0.50, lost=0.0)}
    assert failed(mlp_claims(won)) == {f"4. PredKD + {name}: gain in accuracy"}
    lost = MEASURED | {name: Found(accuracy=0.38, lost=0.3)}
    assert failed(mlp_claims(lost)) == {f"4. PredKD + {name}: change of forgetting"}


def test_a_plain_model_that_remembers_or_a_penalty_that_repairs_the_classifier_is_found() -> None:
    assert "1. plain BCE: forgetting" in failed(mlp_claims(MEASURED | {"bce": Found(accuracy=0.45, lost=0.2)}))
    repaired = failed(mlp_claims(MEASURED | {"l2 alone": Found(accuracy=0.40, lost=0.2)}))
    assert repaired == {"2. L2 without PredKD: final accuracy", "2. PredKD above L2 alone"}
    costs = FLIP | {"pre-trained, L2": Found(accuracy=0.36, lost=0.1)}
    assert failed(flip_claims(costs)) == {"5. pre-trained convolutional encoder: gain of L2 0.1"}
