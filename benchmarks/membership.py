"""LiRA and RMIA for 64 audited models at once, against forming the log-odds once. Run: python -m benchmarks.membership

64 models x 60,000 examples x 10 classes (float32 logits, as an ensemble stores them) and 2,000 population points; every
model serves once as the target with the other 63 as its references. Everything starts from the logits and a fresh
``Evidence``, its checks included; "lira + rmia" is one audit that runs both on one ``Evidence``, where they share the
log-odds. Pairs of CPU times, turn by turn in one process, so that other load on the machine slows both sides alike; the
median ratio of ``--repeats`` pairs; exit status 1 above ``LIMIT``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np

from attacks.membership import Evidence
from benchmarks._common import Row, options, paired_ratio, report
from contracts.methods import attack
from tasks import signals

LIMIT = 4.0


def evidence(models: int, examples: int, classes: int, points: int, seed: int = 0) -> Evidence:
    """Logits of models that fit their own half: z_y raised by 2 where the example was in training."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples)
    keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    logits = rng.normal(0, 2, (models, examples, classes)).astype(np.float32)
    logits[:, np.arange(examples), labels] += 4 + 2 * keep
    z_labels = rng.integers(classes, size=points)
    z = rng.normal(0, 2, (models, points, classes)).astype(np.float32)
    z[:, np.arange(points), z_labels] += 4
    return Evidence.of_logits(
        example_id=np.arange(examples),
        labels=labels,
        target_logits=logits,
        reference_logits=logits,
        keep=keep,
        population_labels=z_labels,
        population_target_logits=z,
        population_reference_logits=z,
        target_index=np.arange(models),
    )


def ratio(given: Evidence, *names: str, repeats: int) -> float:
    """CPU time of these attacks on one fresh Evidence / CPU time of forming the log-odds of the logits behind its
    readings once."""

    def attacks() -> None:
        fresh = Evidence(**{f: getattr(given, f) for f in given.__dataclass_fields__})  # nothing cached
        for name in names:
            method = attack.get(name)
            method(fresh, config=method.spec.config(), seed=0)

    whole = given.outputs
    return paired_ratio(attacks, lambda: signals.log_odds(whole.target, whole.labels), repeats=repeats)


def rows(o: argparse.Namespace) -> Iterator[Row]:
    given = evidence(o.models, o.examples, o.classes, o.points, seed=o.seed)
    for names in (("lira_online", "rmia_online"), ("lira_online",), ("rmia_online",), ("rmia_offline",)):
        what = f"{' + '.join(names)} / log-odds"
        yield Row(f"{o.models} targets", what, ratio(given, *names, repeats=o.repeats), LIMIT)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--points", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=7)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
