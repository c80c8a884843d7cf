"""Identity of data that were audited before payloads and columns existed: digests, ids, inputs, bit by bit as they were
then.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sources.loading import load

# name -> data digest, SHA-256 of all inputs, sum of the ids, first digits of the SHA-256 of all content hashes
KNOWN = {
    "digits": (
        "c8499613e43f2fe339cdce990ba92ac183b720112e84073a68d753ee75525ee7",
        "9f578524b6cec1fc800cc52dfc87ebe56264983d490aa72a4bd928ba2570ec77",
        1613706,
        "02c6e25f0dd48920",
    ),
    "table": (
        "e811172168102b961b30a0551573cf00ea8eadebcdcd05c4c45ab142fc1edd36",
        "02142b9314d8095e58cd7aa3bf871f7ba10e1bddb7d8d5d1d0ef44c84f7eb463",
        6870593713174139,
        "7838af6873c01c37",
    ),
    "images": (
        "76ca00e49770b57022ca51e39dec290ba23977cd5c1968c74dd3434b5eacd457",
        "ac5392e7024f95f136f5485c5bd48146de2a2cb453909768a460b5f32a7d1b44",
        7185770656560040,
        "3b2bc8822bcbc6ee",
    ),
    "values": (
        "005eb30c5653acc1a8360f95695a6e4e22a1d77cb422775b87e380e367341202",
        "e7959592f1604c444c0636fab4109a19ce1a1fdb7de2dfbfcb4eb7398e28e03a",
        625486900668595,
        "0424a7fdaf3b1887",
    ),
}


def _table(root: Path) -> tuple[str, dict[str, object]]:
    rng = np.random.default_rng(11)
    lines = ["height,town,label,person"]
    for i in range(40):
        height, town = 150 + int(rng.integers(0, 500)) / 10, ["Ulm", "Bonn", "Köln"][int(rng.integers(3))]
        lines.append(f"{height},{town},{['no', 'yes'][i % 2]},p{i % 7}")
    (root / "people.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "table", {"file": "people.csv", "label": "label", "owner": "person"}


def _images(root: Path) -> tuple[str, dict[str, object]]:
    rng = np.random.default_rng(12)
    arrays = {"x_train": rng.integers(0, 256, (30, 6, 5), dtype=np.uint8), "y_train": np.arange(30) % 3}
    np.savez(
        root / "pics.npz", **arrays, x_test=rng.integers(0, 256, (12, 6, 5), dtype=np.uint8), y_test=np.arange(12) % 3
    )
    return "npz", {"file": "pics.npz"}


def _values(root: Path) -> tuple[str, dict[str, object]]:
    rng = np.random.default_rng(12)
    rng.integers(0, 256, (30, 6, 5), dtype=np.uint8), rng.integers(0, 256, (12, 6, 5), dtype=np.uint8)
    x = rng.integers(-50, 50, (40, 3)).astype(np.float32) / 8
    np.savez(root / "vals.npz", x=x, y=rng.integers(-50, 50, 40) / 16)
    return "npz", {"file": "vals.npz"}


@pytest.mark.parametrize("name", list(KNOWN))
def test_data_keep_their_identity(name, tmp_path):
    if name == "digits":
        source, config = "sklearn", {"dataset": "digits"}
    else:
        source, config = {"table": _table, "images": _images, "values": _values}[name](tmp_path)
        config["root"] = str(tmp_path)
    data = load(source, config, seed=3)
    inputs = hashlib.sha256(np.ascontiguousarray(data.inputs(slice(None))).tobytes()).hexdigest()
    contents = hashlib.sha256("".join(data.content_hash.tolist()).encode()).hexdigest()[:16]
    assert (data.digest, inputs, int(data.example_id.sum() % 2**53), contents) == KNOWN[name]
    assert not data.columns
