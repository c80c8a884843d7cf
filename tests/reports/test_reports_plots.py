from __future__ import annotations

import colorsys
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from PIL import Image

from contracts.errors import InvalidInput
from contracts.methods import Picture
from reports import plots
from reports.series import Histogram

HOSTILE = "$\\frac{<script>$ [x](javascript:1) _{^"
CURVE = (np.array([0, 0.01, 0.5, 1]), np.array([0, 0.2, 0.8, 1]))
INTERVALS = pl.DataFrame(
    {
        "attack": [HOSTILE, HOSTILE],
        "tpr": [0.2, None],
        "tpr_lo": [0.1, None],
        "tpr_hi": [0.3, None],
        "fpr": [0.01, None],
        "fpr_lo": [0.0, None],
        "fpr_hi": [0.05, None],
    }
)
LINES = Picture(table="t", title=HOSTILE, x="budget", y="err", series="rule", low="lo", high="hi", log_x=True)
ROWS = pl.DataFrame(
    {
        "budget": [1e3, 1e4, 1e3, 1e4],
        "err": [0.5, 0.25, 0.4, None],
        "lo": [0.4, None, 0.3, 0.2],
        "hi": [0.6, None, 0.5, 0.4],
        "rule": [HOSTILE, HOSTILE, "b", "b"],
    }
)
CHARTS: dict[str, Callable[..., bytes]] = {
    "histogram": lambda **k: plots.histogram_png(np.linspace(0, 1, 50) ** 2, title=HOSTILE, xlabel=HOSTILE, **k),
    "empty histogram": lambda **k: plots.histogram_png([float("nan")], xlabel="x", **k),
    "roc": lambda **k: plots.roc_png({HOSTILE: CURVE, "b": CURVE}, n_neg=100, title=HOSTILE, intervals=INTERVALS, **k),
    "dots": lambda **k: plots.dots_png(
        {HOSTILE: [1, 2, float("nan")], "one": [3.0], "none": []},
        xlabel=HOSTILE,
        threshold=2.5,
        threshold_label=HOSTILE,
        **k,
    ),
    "lines": lambda **k: plots.table_png(LINES, ROWS, **k),
    "scatter": lambda **k: plots.table_png(dataclasses.replace(LINES, kind="scatter"), ROWS, **k),
    "bars": lambda **k: plots.table_png(dataclasses.replace(LINES, kind="bars"), ROWS, **k),
    "empty table": lambda **k: plots.table_png(LINES, ROWS.clear(), **k),
    "sheet": lambda **k: plots.grid_png(np.eye(8)[None].repeat(3, 0), [HOSTILE, "b", "c"], title=HOSTILE, **k),
}


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


@pytest.mark.parametrize("name", CHARTS)
def test_charts_repeat_to_the_byte_whatever_the_users_settings(name: str) -> None:
    before = dict(mpl.rcParams)
    first = CHARTS[name]()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10}):
        assert CHARTS[name]() == first
    assert dict(mpl.rcParams) == before
    image = opened(first)
    assert image.format == "PNG"
    assert not image.info, "no text, no time, no software name in the file"


def axes_of(call: Callable[[], bytes]) -> Axes:
    """The axes that a chart drew on."""
    seen: list[Axes] = []
    original = plots._figure

    def spy(draw: Callable[[Axes], None], **kwargs: Any) -> bytes:
        return original(lambda axes: (draw(axes), seen.append(axes))[0], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_figure", spy)
        call()
    return seen[0]


def test_hostile_text_is_drawn_as_it_is() -> None:
    """A label that is broken mathematics must neither raise nor be typeset: its two dollar signs are drawn."""
    with_maths = opened(plots.histogram_png([1, 2], xlabel="$a$")).convert("L")
    without = opened(plots.histogram_png([1, 2], xlabel="a")).convert("L")
    dark = [(np.asarray(i) < 128).sum() for i in (with_maths, without)]
    assert dark[0] > dark[1] + 20


def test_the_roc_starts_at_one_over_n_neg() -> None:
    axes = axes_of(lambda: plots.roc_png({"a": CURVE}, n_neg=250, intervals=INTERVALS.with_columns(attack=pl.lit("a"))))
    seen = {
        "xlim": axes.get_xlim(),
        "scales": (axes.get_xscale(), axes.get_yscale()),
        "lines": [np.column_stack(line.get_data()) for line in axes.lines],
    }
    assert seen["xlim"] == pytest.approx((1 / 250, 1.0))
    assert seen["scales"] == ("log", "log")
    guess, curve, cross_x, cross_y, _ = seen["lines"]  # the row of nulls draws nothing
    assert np.allclose(guess[:, 0], guess[:, 1])
    assert curve[:, 0].min() == pytest.approx(1 / 250)
    assert curve[curve[:, 0] == 0.01, 1].tolist() == [0.2]
    assert cross_x[:, 0].tolist() == pytest.approx([1 / 250, 0.05])
    assert cross_y[:, 1].tolist() == [0.1, 0.3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.roc_png({}, n_neg=5),
        lambda: plots.roc_png({"a": CURVE}, n_neg=0),
        lambda: plots.dots_png({}, xlabel="x"),
        lambda: plots.intervals_png({}, xlabel="x", order=[]),
        lambda: plots.against_time_png({}, ylabel="y"),
        lambda: plots.grid_png(np.zeros((0, 4, 4))),
        lambda: plots.grid_png(np.zeros((2, 4, 4)), ["one"]),
        lambda: plots.grid_png(np.zeros((3, 4, 4)), lengths=[2]),
        lambda: plots.grid_png(np.zeros((3, 4, 4)), lengths=[3, 0]),
        lambda: plots.example_png(np.zeros(30)),
        lambda: plots.example_png(np.zeros((2, 4, 4))),
        lambda: plots.example_png(np.full((4, 4), np.nan)),
        lambda: plots.example_png(np.zeros((0, 4), np.uint8)),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Callable[[], bytes]) -> None:
    with pytest.raises(InvalidInput):
        call()


def test_a_sheet_has_the_rows_that_were_asked_for() -> None:
    """Nine images in rows of 3, 1, 2, 3: each in its own row and column, and nothing in the places left over."""
    figures: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda figure, fill, **_: (fill(), figures.append(figure), b"")[2])
        plots.grid_png(np.arange(9)[:, None, None] * np.ones((9, 4, 4)), list("abcdefghi"), lengths=[3, 1, 2, 3])
        plots.grid_png(np.zeros((11, 4, 4)))
    sheet, plain = ([axes.get_subplotspec() for axes in figure.axes] for figure in figures)
    where = [(place.rowspan.start, place.colspan.start) for place in sheet]
    assert where == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert [axes.texts[0].get_text() for axes in figures[0].axes] == list("abcdefghi")
    assert [axes.images[0].get_array()[0, 0] for axes in figures[0].axes] == np.rint(np.arange(9) * 255 / 8).tolist()
    assert (plain[7].rowspan.start, plain[7].colspan.start) == (0, 7) and plain[8].rowspan.start == 1


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7)])
def test_an_enlarged_picture_holds_the_pixels_unchanged(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = np.asarray(opened(plots.example_png(x, min_side=64)))
    factor = 10  # the least whole factor with 7 * factor >= 64
    assert image.shape[:2] == (5 * factor, 7 * factor)
    small = image[factor // 2 :: factor, factor // 2 :: factor]
    assert np.array_equal(small, x.reshape(shape[-2:]) if len(shape) == 2 or shape[0] == 1 else x.transpose(1, 2, 0))


def test_floats_are_mapped_from_their_range() -> None:
    x = np.array([[-1.0, 0.0], [1.0, 3.0]])
    own = np.asarray(opened(plots.example_png(x, min_side=1)))
    fixed = np.asarray(opened(plots.example_png(x, low=-1, high=1, min_side=1)))
    assert own.ravel().tolist() == [0, 64, 128, 255]
    assert fixed.ravel().tolist() == [0, 128, 255, 255]
    assert np.asarray(opened(plots.example_png(np.full((2, 2), 5.0), min_side=1))).ravel().tolist() == [0, 0, 0, 0]
    assert np.asarray(opened(plots.example_png(x > 0, min_side=1))).ravel().tolist() == [0, 0, 255, 255]


def test_a_million_values_cost_a_histogram() -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    assert len(plots.histogram_png(values, xlabel="x")) < 40_000
    assert plots.histogram_png(values, xlabel="x") == plots.histogram_png(Histogram.of(values), xlabel="x")


def test_dots_are_the_seeds_around_their_mean_with_one_deviation() -> None:
    axes = axes_of(
        lambda: plots.dots_png({"a": [1.0, 3.0, float("nan")], "one": [5.0], "none": []}, xlabel="x", threshold=4.0)
    )
    means = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6.5]
    assert means == [2.0, 5.0]
    (bar,) = [c.get_segments()[0] for c in axes.collections]
    assert bar[:, 0].tolist() == pytest.approx([2 - 2**0.5, 2 + 2**0.5])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "one", "none"]
    assert "no value" in [t.get_text() for t in axes.texts]
    assert axes.get_xlim()[0] <= 0, "a distance is drawn from zero"


def test_bars_are_the_counts_and_marks_the_quantiles() -> None:
    values = np.arange(1001) / 1000
    axes = axes_of(lambda: plots.histogram_png(values, xlabel="x"))
    assert axes.patches[0].get_data().values.sum() == 1001
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.5, 0.9, 0.99])
    assert [t.get_text() for t in axes.texts] == ["median 0.5", "90 % 0.9", "99 % 0.99"]


def test_a_table_is_drawn_as_lines_with_their_bands_by_series() -> None:
    axes = axes_of(lambda: plots.table_png(LINES, ROWS))
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[1e3, 0.5], [1e4, 0.25]] and second.get_xydata().tolist() == [[1e3, 0.4]]
    assert len(axes.collections) == 2, "a band a series, where both ends are known"
    assert axes.get_xscale() == "log" and "1,000" in [t.get_text() for t in axes.get_xticklabels()]
    only = axes_of(lambda: plots.table_png(dataclasses.replace(LINES, where=(("rule", "b"),)), ROWS))
    assert len(only.lines) == 1


def test_a_scatter_has_dots_and_whiskers_and_no_line() -> None:
    axes = axes_of(lambda: plots.table_png(dataclasses.replace(LINES, kind="scatter"), ROWS))
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[1e3, 0.5], [1e4, 0.25]] and second.get_xydata().tolist() == [[1e3, 0.4]]
    assert {line.get_linestyle() for line in axes.lines} == {"None"} and first.get_marker() != second.get_marker()
    [whisker], [other] = (lines.get_segments() for lines in axes.collections)
    assert whisker.tolist() == [[1e3, 0.4], [1e3, 0.6]] and other.tolist() == [[1e3, 0.3], [1e3, 0.5]]
    at_zero = ROWS.with_columns(budget=pl.Series([0.0, 1e4, 1e3, 1e4]))
    assert len(axes_of(lambda: plots.table_png(LINES, at_zero)).lines[0].get_xdata()) == 1, "no zero on such an axis"


def test_more_series_than_colours_still_differ() -> None:
    rows = pl.DataFrame({"budget": [1.0] * 9, "err": [0.1] * 9, "rule": [str(i) for i in range(9)]})
    axes = axes_of(lambda: plots.table_png(dataclasses.replace(LINES, low="", high=""), rows))
    assert len({(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in axes.lines}) == 9


def test_dots_with_bounds_are_one_a_row_with_whiskers() -> None:
    axes = axes_of(lambda: plots.table_png(dataclasses.replace(LINES, kind="dots"), ROWS.drop_nulls()))
    assert axes.lines[0].get_xdata().tolist() == [0.5, 0.4] and axes.containers and not axes.patches
    assert len(axes.get_yticklabels()) == 2


def test_bars_of_a_table_carry_their_whiskers() -> None:
    axes = axes_of(lambda: plots.table_png(dataclasses.replace(LINES, kind="bars"), ROWS.drop_nulls()))
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.4]
    assert len(axes.get_yticklabels()) == 2 and axes.containers, "a name a bar, and whiskers"


def test_figures_have_their_intervals_and_an_attack_one_colour_in_every_picture() -> None:
    order = ["loss", "rmia", "lira"]
    groups = {"target": {"rmia": (0.6, 0.55, 0.65)}, "retrain": {"loss": (0.5, 0.4, 0.6), "rmia": (0.52, 0.5, 0.54)}}
    axes = axes_of(lambda: plots.intervals_png(groups, xlabel="area", order=order, limits=[0.4, 0.6]))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["target", "retrain"]
    marks = {line.get_label(): line for line in axes.lines if line.get_label() in order}
    assert marks["rmia"].get_xdata().tolist() == [0.6, 0.52] and marks["loss"].get_xdata().tolist() == [0.5]
    whiskers = sorted(tuple(seg[:, 0]) for c in axes.collections for seg in c.get_segments())
    assert whiskers == [(0.4, 0.6), (0.5, 0.54), (0.55, 0.65)]
    limits = [line.get_xdata()[0] for line in axes.lines if line.get_color() == plots._LIMIT["color"]]
    assert limits == [0.4, 0.6]
    roc = axes_of(lambda: plots.roc_png({"rmia": CURVE}, n_neg=100, order=order))
    (curve,) = [line for line in roc.lines if line.get_label() == "rmia"]
    assert curve.get_color() == marks["rmia"].get_color() != marks["loss"].get_color()


def test_a_gap_stands_against_its_time() -> None:
    points = {"retrain": (4.0, 0.0, 0.0, 0.0), "finetune": (0.5, 3.0, 1.5, 5.8), "none": (0.0, 4.0, 3.0, 5.0)}
    axes = axes_of(lambda: plots.against_time_png(points, ylabel="gap", limit=5.0))
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(4.0, 0.0), (0.5, 3.0), (0.01, 4.0)] and axes.get_xscale() == "log"
    assert {"retrain", "finetune", "none"} <= {t.get_text() for t in axes.texts}


def test_no_series_has_the_colour_of_a_verdict() -> None:
    """On the page green, red, ochre and violet say how something was judged; a chart beside them must not seem to."""
    css = (Path(plots.__file__).parent / "templates" / "audit.css").read_text()
    names = ("pass", "fail", "inconclusive", "broken")
    verdicts = [re.search(rf"--{name}: (#[0-9a-f]{{6}})", css)[1] for name in names]  # type: ignore[index]
    for series in (*plots._SERIES, plots._BAR):
        for verdict in verdicts:
            apart = abs(_hue(series) - _hue(verdict))
            assert min(apart, 1 - apart) > 0.06 or _grey(series), (series, verdict)


def _hue(colour: str) -> float:
    return colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]


def _grey(colour: str) -> bool:
    return colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[1] < 0.2
