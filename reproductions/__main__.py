"""``python -m reproductions 26 15 --seed 3 --json``: exit 0 if every claim of every card passed, 1 if not, 2 on misuse."""

from __future__ import annotations

import argparse
import json
import sys

from contracts.errors import InvalidInput, UnknownName
from reproductions import cards, run


def _say(done: int, total: int, what: str) -> None:
    print(f"\r{what}: {done}/{total}\x1b[K", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the cards named (all when none is) and print a table, or one JSON object a line with ``--json``."""
    parser = argparse.ArgumentParser(prog="python -m reproductions", description=__doc__)
    parser.add_argument("cards", nargs="*", type=int, metavar="NN", help=f"method cards; known: {cards()}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a card on standard output")
    options = parser.parse_args(arguments)
    passed = True
    for card in options.cards or cards():
        try:
            result = run(card, options.seed, _say)
        except (InvalidInput, UnknownName) as error:
            parser.error(str(error))
        passed &= result["passed"]
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(f"card {card}, seed {options.seed}: {'passed' if result['passed'] else 'FAILED'} in {result['wall_s']} s")
        for claim in result["claims"]:
            mark = "ok  " if claim["passed"] else "FAIL"
            print(f"  {mark} {claim['name']}: {claim['measured']} ({claim['direction']} {claim['threshold']})")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
