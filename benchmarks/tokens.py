"""Memory of the way from texts to stored examples, at 10^5 and at 10^7 tokens.

    python -m benchmarks.tokens [--num 10000000] [--seed 0] [--json]

The product's own way, in a child process for each size: source ``text`` reads JSON lines, tokenizes and validates them;
the stage ``data/examples`` records the examples in the warehouse; the tokens are written into a payload file, and
opened again. Before that the same is done with few texts, so that what is loaded once is there. What is compared is

    working memory = peak of anonymous memory during it - (columns of the examples, held by the set and again by the
                     table that is stored: one row an example, whatever a text takes)

which may grow by 10% while the tokens grow a hundredfold. Tokens lie in a file without a name while they are made
(``sources.spool``). Linux only. Exit 1 when the bound is missed.
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

BOUND, LENGTH, FEW = 1.1, 500, 10_000
TOKENIZERS = {"bytes": 1, "words": 5}  # characters a token


def write(path: Path, num: int, letters: int, seed: int) -> None:
    """Texts of 500 tokens of so many characters; every tenth is a test text."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for row in range(num // LENGTH):
            text = rng.integers(97, 102, LENGTH * letters).astype(np.uint8)
            if letters > 1:
                text[letters - 1 :: letters] = 32
            split = "test" if row % 10 == 9 else "train"
            file.write(json.dumps({"text": text.tobytes().decode(), "split": split}) + "\n")


def stored(folder: Path, tokenizer: str) -> tuple[int, int]:
    """From the texts in a folder to the warehouse and a payload file: tokens, and bytes of the columns."""
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
    columns = [data.example_id, data.y, data.split, data.owner, data.content_hash, data.origin]
    return int(data.x.num_tokens), sum(np.asarray(column).nbytes for column in columns)


def working(folder: str, tokenizer: str, num: int, seed: int) -> dict[str, Any]:
    """Working memory in bytes; run in a process of its own."""
    import torch  # noqa: F401 - every audit loads it

    home = Path(folder)
    for name, tokens in (("few", FEW), ("many", num)):
        (home / name).mkdir()
        write(home / name / "texts.jsonl", tokens, TOKENIZERS[tokenizer], seed)
    stored(home / "few", tokenizer)
    peak = Peak()
    peak.start()
    tokens, columns = stored(home / "many", tokenizer)
    return {"tokens": tokens, "bytes": peak.stop() - 2 * columns}


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for tokenizer in TOKENIZERS:
        found = []
        for num in (o.num // 100, o.num):
            with tempfile.TemporaryDirectory() as folder:
                found.append(in_child(working, folder, tokenizer, num, o.seed))
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
