"""Cost of the score EL2N against the bare forward passes over the same images, in the same run; and its memory.

    python -m benchmarks.el2n [--repeats 30] [--json]

- CPU-time ratio, one thread: the whole score (inputs read, EL2N, EL1N, margins, GraNd of the output layer, spreads,
  table) to reading the same images 28 x 28 and passing them forward, the two turn by turn, median of the paired ratios;
  for one model and for three (the bare passes then read the images once a model, as a loop over models would).
- Memory: 2 million examples in a process of its own. What scoring adds at its peak to what holds the data, the model
  and the table returned, as a ratio to those.

Exit 1 when a bound is missed. CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks._common import CLASSES, SHAPE, Row, images, options, paired_ratio, report
from benchmarks.grand import MODELS
from recipes.models import build
from scoring.el2n import EL2NConfig, el2n

BOUND, MEMORY_BOUND = 1.1, 1.1
# Images and batch, a tenth of a second a pass. What a layer gives out stays below the size at which the C allocator
# maps fresh pages every time: faulting them in is half of a CNN's pass at 1024 images, on either side, and varies with
# the load.
SIZES = {"mlp": (20_480, 1024), "cnn": (1024, 128), "resnet_gn": (256, 64), "vit": (512, 64)}
MANY = 2_000_000
_KEPT = 31 << 20  # bytes: freed once, the C allocator keeps what is freed after, up to twice this


def cost(models: list[nn.Module], *, num: int, batch: int, repeats: int, seed: int) -> float:
    data, config = images(num, SHAPE, seed), EL2NConfig(batch=batch)
    # In a fresh process, pages given back and faulted in again land on one side or the other by chance: 5% of a pass.
    torch.empty(_KEPT, dtype=torch.uint8)

    def forward() -> None:
        with torch.inference_mode():
            for model in models:
                for start in range(0, num, config.batch):
                    model(torch.from_numpy(data.inputs(slice(start, start + config.batch))))

    return paired_ratio(lambda: el2n(data, config=config, seed=0, early_models=models), forward, repeats=repeats)


def memory(seed: int) -> float:
    """Peak of resident memory while 2 million examples are scored / resident before + table."""
    data = images(MANY, (1, 4, 4), seed)
    model = build("mlp", {"hidden": (64,)}, input_shape=(1, 4, 4), num_outputs=CLASSES, seed=seed).eval()
    el2n(data.subset(data.example_id[:10_000]), config=EL2NConfig(), seed=0, early_models=[model])  # warm
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    frame = el2n(data, config=EL2NConfig(), seed=0, early_models=[model, model])
    return _resident("VmHWM") / (before + frame.estimated_size())


def _resident(field: str) -> float:
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in status if line.startswith(field))


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for label, name, config, _ in MODELS:
        models = [build(name, config, input_shape=SHAPE, num_outputs=CLASSES, seed=s).eval() for s in range(3)]
        for used in (models[:1], models):
            num, batch = SIZES[name]
            repeats = -(-o.repeats // len(used))
            ratio = cost(used, num=num, batch=batch, repeats=repeats, seed=o.seed)
            yield Row(label, f"EL2N / forward, {len(used)} models", ratio, BOUND)
    command = [sys.executable, "-m", "benchmarks.el2n", "--memory-only", "--seed", str(o.seed)]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    yield Row("MLP, 2 million examples", "peak / (data + table)", peak, MEMORY_BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="pairs for one model; a third for three")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    torch.set_num_threads(1)
    if o.memory_only:
        print(memory(o.seed))
        return 0
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
