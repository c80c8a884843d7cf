"""LiRA and RMIA for 64 audited models at once, against forming the log-odds once. Run: python -m benchmarks.membership

64 models x 60,000 examples x 10 classes (float32 logits, as an ensemble stores them) and 2,000 population points;
every model serves once as the target with the other 63 as its references. Everything starts from the logits and a
fresh ``Evidence``, its checks included; "lira + rmia" is one audit that runs both on one ``Evidence``, where they share
the log-odds.
Interleaved in one process, medians of ``--repeats``; exit status 1 above ``LIMIT``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from attacks.membership import Evidence, signals
from contracts.methods import attack

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
    return Evidence(
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


def measure(given: Evidence, repeats: int) -> dict[str, float]:
    """Median seconds of forming the log-odds and of each attack, each from bare logits."""

    def run(*names: str) -> None:
        fresh = Evidence(**{f: getattr(given, f) for f in given.__dataclass_fields__})  # nothing cached
        for name in names:
            method = attack.get(name)
            method(fresh, config=method.spec.config(), seed=0)

    jobs: dict[str, Callable[[], object]] = {
        "log_odds": lambda: signals.log_odds(given.target_logits, given.labels),
        "lira + rmia": lambda: run("lira_online", "rmia_online"),
        "lira_online": lambda: run("lira_online"),
        "rmia_online": lambda: run("rmia_online"),
        "rmia_offline": lambda: run("rmia_offline"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--points", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    took = measure(evidence(args.models, args.examples, args.classes, args.points), args.repeats)
    ratio = took["lira + rmia"] / took["log_odds"]
    for name, seconds in took.items():
        print(f"{name:14s} {seconds:7.3f} s   {seconds / took['log_odds']:5.2f} x log-odds")
    print(f"LiRA + RMIA online, {args.models} targets: {ratio:.2f} x the log-odds (limit {LIMIT:g})")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
