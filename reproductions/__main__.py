"""``python -m reproductions data_diet 15 --seed 3 --json``: exit 0 if every claim passed, 1 if not, 2 on misuse."""

from __future__ import annotations

import argparse
import json
import sys

from contracts.errors import InvalidInput, UnknownName
from reproductions import find, reproductions, run


def _say(done: int, total: int, what: str) -> None:
    print(f"\r{what}: {done}/{total}\x1b[K", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run those named (all when none is) and print a table, or one JSON object a line with ``--json``."""
    every = ", ".join(f"{known.name} ({known.card}: {known.paper})" for known in reproductions())
    parser = argparse.ArgumentParser(prog="python -m reproductions", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="NAME", help=f"a paper's short name or number; known: {every}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a paper on standard output")
    options = parser.parse_args(arguments)
    passed = True
    try:
        chosen = [find(name) for name in options.which] or list(reproductions())
        for known in chosen:
            result = run(known.name, options.seed, _say)
            passed &= result["passed"]
            if options.json:
                print(json.dumps(result), flush=True)
                continue
            word = "passed" if result["passed"] else "FAILED"
            print(f"{known.name} ({known.paper}), seed {options.seed}: {word} in {result['wall_s']} s")
            for claim in result["claims"]:
                mark = "ok  " if claim["passed"] else "FAIL"
                print(f"  {mark} {claim['name']}: {claim['measured']} ({claim['direction']} {claim['threshold']})")
    except (InvalidInput, UnknownName) as error:
        parser.error(str(error))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
