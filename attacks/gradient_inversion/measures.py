"""What is measured of the inversions: a row an example, the summary with exact intervals, the pictures' rows.

    median's interval   [x_(k), x_(n - k + 1)], the largest k with 2 P(Bin(n, 1/2) < k) <= alpha; no shape assumed; none
                        for n < 6
    labels              Clopper-Pearson

Examples are taken as independent draws from the training split, given the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from attacks.gradient_inversion.cohort import Cohort
from attacks.gradient_inversion.engine import Inverted
from attacks.gradient_inversion.labels import right_labels
from attacks.gradient_inversion.quality import in_order, matched, mse, psnr, ssim
from attacks.gradient_inversion.tables import IMAGES, ROWS, SUMMARY, setting
from sources.example_set import ExampleSet
from sources.frames import frame_of
from stats import clopper_pearson

ALPHA = 0.05


def measured(attack: str, part: Cohort, found: Inverted) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of ``dropout_inversion``, and of ``inversion_images``: one an example of the cohort."""
    truth = part.memory.x
    order = matched(truth, found.x)
    rebuilt = in_order(found.x, order)
    num, batch = truth.shape[:2]
    structure = ssim(truth, rebuilt, box=part.box)
    right = part.right
    if attack == "dlg":
        right = right_labels(found.targets.argmax(dim=-1), part.memory.labels)

    def each(values: NDArray[np.generic] | Tensor) -> NDArray[np.generic]:
        """A value a client, for each of its examples."""
        return np.repeat(np.asarray(values), batch)

    p, batchnorm = each(part.p), part.batchnorm
    same: dict[str, object] = {
        "example_id": part.example_id.ravel(),
        "attack": [attack] * (num * batch),
        "dropout_p": p,
        "batchnorm": [batchnorm] * (num * batch),
        "psnr": _flat(psnr(truth, rebuilt, box=part.box)),
    }
    rows = frame_of(
        ROWS,
        {
            **same,
            "setting": [setting(attack, float(q), batchnorm) for q in p],
            "label": part.memory.labels.flatten().cpu().numpy(),
            "label_correct": right.flatten().cpu().numpy(),
            "ssim": np.full(num * batch, np.nan) if structure is None else _flat(structure),
            "mse": _flat(mse(truth, rebuilt)),
            "grad_loss": each(found.distance.double().clamp(0, 2).cpu()),
            "mask_accuracy": _mask_accuracy(part, found, order) if attack == "dia" else np.full(num * batch, np.nan),
            "iterations": each(found.iterations.cpu()),
            "grad_norm": each(part.update.norm().cpu()),
            "client": each(part.client),
            "seed": each(np.array(part.seeds, np.int64)),
        },
    )
    panel = [setting(attack, float(q), batchnorm) for q in p]
    images = frame_of(IMAGES, {**same, "panel": panel, "image": _vectors(rebuilt)})
    return rows, images


def originals(chosen: ExampleSet, *, batchnorm: str) -> pl.DataFrame:
    """The examples themselves, as rows of ``inversion_images``."""
    num = len(chosen)
    return frame_of(
        IMAGES,
        {
            "example_id": chosen.example_id,
            "attack": ["original"] * num,
            "dropout_p": np.zeros(num),
            "batchnorm": [batchnorm] * num,
            "panel": ["original"] * num,
            "psnr": np.full(num, np.nan),
            "image": _vectors(torch.from_numpy(chosen.inputs(slice(0, num)))[:, None]),
        },
    )


def summarise(
    rows: pl.DataFrame, *, origin: str, remarks: Sequence[str], refused: Mapping[tuple[str, float, str], str]
) -> pl.DataFrame:
    """The summary table.

    Args:
        rows: all rows of ``dropout_inversion``.
        origin: of the dropout.
        remarks: true of every row.
        refused: (attack, dropout_p, batchnorm) of attacks that do not apply, and why.
    """
    ig = rows.filter(pl.col("attack") == "ig").select("example_id", "dropout_p", "batchnorm", ig="psnr")
    joined = rows.join(ig, on=["example_id", "dropout_p", "batchnorm"], how="left", maintain_order="left")
    keys = ("attack", "dropout_p", "batchnorm")
    out = []
    for key, part in joined.group_by(keys, maintain_order=True):
        values = part["psnr"].drop_nulls().to_numpy()
        gain = (part["psnr"] - part["ig"]).drop_nulls().to_numpy() if key[0] != "ig" else np.empty(0)
        right = int(part["label_correct"].sum())
        lowest, highest = clopper_pearson(right, part.height, alpha=ALPHA)
        out.append(
            {
                **dict(zip(keys, key, strict=True)),
                "dropout": origin,
                "n": part.height,
                **_with_interval("median_psnr", "psnr", values),
                **_with_interval("over_ig", "over_ig", gain),
                **{f"median_{c}": part[c].median() for c in ("ssim", "grad_loss", "mask_accuracy")},
                "labels_right": right / part.height,
                "labels_low": float(lowest),
                "labels_high": float(highest),
                "mean_iterations": part["iterations"].mean(),
                "note": "; ".join(remarks),
            }
        )
    empty = dict.fromkeys(c.name for c in SUMMARY.columns)
    out += [
        {
            **empty,
            "attack": a,
            "dropout_p": p,
            "batchnorm": b,
            "dropout": origin,
            "n": 0,
            "note": "; ".join([why, *remarks]),
        }
        for (a, p, b), why in refused.items()
    ]
    return frame_of(SUMMARY, out)


def median_interval(values: NDArray[np.float64], *, alpha: float = ALPHA) -> tuple[float, float] | None:
    """Exact interval of the median at level 1 - alpha; None when there are too few values for one.

    >>> median_interval(np.arange(1.0, 9.0))
    (1.0, 8.0)
    """
    num = len(values)
    k = int(binom.ppf(alpha / 2, num, 0.5)) if num else 0
    while k > 0 and 2 * binom.cdf(k - 1, num, 0.5) > alpha:
        k -= 1
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[num - k])


def _with_interval(name: str, prefix: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    ends = median_interval(values) or (None, None)
    return {
        name: float(np.median(values)) if len(values) else None,
        f"{prefix}_low": ends[0],
        f"{prefix}_high": ends[1],
    }


def _mask_accuracy(part: Cohort, found: Inverted, order: Tensor) -> NDArray[np.float64]:
    """Share of an example's mask entries, over all calls, where rounding what was found gives the client's."""
    num, batch = order.shape
    hits, total = torch.zeros(num, batch), torch.zeros(num, batch)
    for mask, truth, reached in zip(found.masks, part.memory.masks, part.memory.reached, strict=True):
        if mask.shape[1] != batch:  # a call that does not keep the examples apart
            continue
        right = (in_order(mask, order) >= 0.5) == (truth >= 0.5)
        hits += (right & reached).flatten(2).sum(2).cpu()
        total += reached.flatten(2).sum(2).cpu()
    return torch.where(total > 0, hits / total, torch.nan).flatten().double().numpy()


def _flat(values: Tensor) -> NDArray[np.float64]:
    out: NDArray[np.float64] = values.double().flatten().cpu().numpy()
    return out


def _vectors(x: Tensor) -> list[list[float]]:
    rows: list[list[float]] = x.double().flatten(0, 1).flatten(1).tolist()
    return rows
