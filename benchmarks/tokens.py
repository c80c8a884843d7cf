"""Memory of the way from texts to stored examples, at 10^5 and at 10^7 tokens of as many texts.

    python -m benchmarks.tokens [--num 10000000] [--seed 0] [--json]

The product's own way, in a child process for each size: source ``text`` reads JSON lines, tokenizes and validates them;
the stage ``data/examples`` records the examples in the warehouse; the tokens are written into a payload file, and
opened again. Before that the same is done with few texts, so that what is loaded once is there. The peak of anonymous
memory may grow by 10% while the texts grow a hundredfold, from 5 tokens to 500 each. A text has a row in tables, with a
hash, an origin and an id, which takes what it takes however long the text is: their number is the same on both sides.
Tokens lie in a file without a name while they are made (``sources.spool``). Linux only. Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Row, in_child, options, report
from benchmarks.streaming import Peak
from contracts.subject import Subject

BOUND, LENGTH, FEW = 1.1, 500, 20
TOKENIZERS = {"bytes": 1, "words": 5}  # characters a token


def write(path: Path, num: int, length: int, letters: int, seed: int) -> None:
    """``num`` texts of ``length`` tokens of so many characters; every tenth is a test text."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for row in range(num):
            text = rng.integers(97, 102, length * letters).astype(np.uint8)
            if letters > 1:
                text[letters - 1 :: letters] = 32
            split = "test" if row % 10 == 9 else "train"
            file.write(json.dumps({"text": text.tobytes().decode(), "split": split}) + "\n")


def stored(folder: Path, tokenizer: str) -> int:
    """From the texts in a folder to the warehouse and a payload file: the tokens."""
    from assets import Workspace, subject_stages
    from assets.stage import materialize
    from sources.payloads.files import open_payload, write_payload

    config = {"root": str(folder), "file": "texts.jsonl", "split": "split", "tokenizer": tokenizer}
    plan = {"subject": "texts", "source": {"name": "text", "config": config}}
    subject = Subject.from_mapping({**plan, "model": "tiny_llama", "recipe": "causal_lm"})
    workspace = Workspace(folder / "state", launcher=None)  # type: ignore[arg-type]  # nothing is launched
    examples = next(stage for stage in subject_stages(subject) if stage.path == ("data", "examples"))
    materialize(examples, workspace, run_id="r", request=None, context=None)
    data = workspace.examples(subject)
    digest = write_payload(folder / "tokens.safetensors", data.x, example_id=data.example_id)
    again = open_payload(folder / "tokens.safetensors", sha256=digest)
    assert len(again.example_id) == len(data) and workspace.warehouse.query("FROM data.examples").height == len(data)
    return int(data.x.num_tokens)


def working(folder: str, tokenizer: str, num: int, length: int, seed: int) -> dict[str, Any]:
    """Peak of memory in bytes; run in a process of its own."""
    import torch  # noqa: F401 - every audit loads it

    home = Path(folder)
    for name, texts in (("few", FEW), ("many", num)):
        (home / name).mkdir()
        write(home / name / "texts.jsonl", texts, length, TOKENIZERS[tokenizer], seed)
    stored(home / "few", tokenizer)
    peak = Peak()
    peak.start()
    tokens = stored(home / "many", tokenizer)
    return {"tokens": tokens, "bytes": peak.stop()}


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for tokenizer in TOKENIZERS:
        found = []
        for length in (LENGTH // 100, LENGTH):
            with tempfile.TemporaryDirectory() as folder:
                found.append(in_child(working, folder, tokenizer, o.num // LENGTH, length, o.seed))
        few, many = found
        what = f"{few['tokens']:,} -> {many['tokens']:,} tokens, {few['bytes'] >> 20} -> {many['bytes'] >> 20} MiB"
        yield Row(tokenizer, what, many["bytes"] / few["bytes"], BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=10_000_000)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
