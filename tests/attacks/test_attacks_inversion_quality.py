"""MSE, PSNR, SSIM and matching against their definitions, brute force, and known values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.gradient_inversion import matched, mse, psnr, ssim
from attacks.gradient_inversion.measures import median_interval
from attacks.gradient_inversion.quality import in_order
from contracts.errors import InvalidInput
from explain.image_quality import MAX_PSNR

BOX = (torch.tensor(0.0), torch.tensor(1.0))


def naive_ssim(x, y):
    """Window by window, from the formula; one channel (H, W) in [0, 1]."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i, j in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
        a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
        cov = (window * (a - ma) * (b - mb)).sum()
        values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_is_its_formula_window_by_window():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 15, 13, generator=generator), torch.rand(2, 1, 3, 15, 13, generator=generator)
    y[1] = 0.7 * x[1] + 0.3 * y[1]
    found = ssim(x, y, box=BOX)
    for r in range(2):
        expected = np.mean([naive_ssim(x[r, 0, c].double().numpy(), y[r, 0, c].double().numpy()) for c in range(3)])
        assert found[r, 0].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_equal_inverted_and_small_images():
    x = torch.rand(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ssim(x, x, box=BOX).item() == pytest.approx(1.0, abs=1e-12)
    assert ssim(x, 1 - x, box=BOX).item() < 0
    assert ssim(torch.rand(1, 1, 7), torch.rand(1, 1, 7), box=BOX) is None


def test_psnr_knows_the_box_and_not_the_scale():
    x = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert psnr(x, x, box=BOX).tolist() == [[MAX_PSNR] * 3] * 2
    noisy = x + 0.01
    scaled = psnr(x * 7 - 2, noisy * 7 - 2, box=(torch.tensor(-2.0), torch.tensor(5.0)))
    assert scaled.numpy() == pytest.approx(40.0, abs=1e-3) and psnr(x, noisy, box=BOX).numpy() == pytest.approx(
        40.0, abs=1e-3
    )
    assert mse(x, noisy).numpy() == pytest.approx(1e-4, rel=1e-3)


@given(st.integers(0, 10_000))
def test_matching_is_the_cheapest_permutation(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)
    order = matched(x, y)
    for r in range(2):
        costs = {p: float((x[r] - y[r][list(p)]).square().sum()) for p in itertools.permutations(range(4))}
        assert costs[tuple(order[r].tolist())] == pytest.approx(min(costs.values()), rel=1e-5)


def test_a_shuffled_batch_is_put_back():
    x = torch.rand(1, 6, 1, 3, 3)
    shuffled = x[:, torch.tensor([3, 5, 0, 1, 4, 2])]
    assert torch.equal(in_order(shuffled, matched(x, shuffled)), x)


def test_shapes_must_match():
    with pytest.raises(InvalidInput, match="must match"):
        mse(torch.zeros(1, 1, 3), torch.zeros(1, 1, 4))


@given(st.integers(0, 60))
def test_the_medians_interval_is_the_narrowest_that_covers(num):
    ends = median_interval(np.arange(num, dtype=float))
    if num < 6:
        assert ends is None
        return
    k = int(ends[0]) + 1
    assert ends == (k - 1, num - k)

    def misses(k):
        return 2 * sum(math.comb(num, i) for i in range(k)) / 2**num

    assert misses(k) <= 0.05 < misses(k + 1)
