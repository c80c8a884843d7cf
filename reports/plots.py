"""Pictures as PNG bytes: histogram, ROC on log axes, lines with bands, bars, dots with their spread or interval, sheets
of examples.

Matplotlib's object interface with the Agg canvas only: no window system, no pyplot state, no user style file, no clock.
The same input gives the same bytes with the same matplotlib: metadata is fixed, the font (DejaVu Sans) ships with it.
Charts are drawn once, dark on white; a page turns their lightness round for readers who prefer dark (a filter in its
style).

Text that comes from data is drawn as given: matplotlib's own mathematics is off, so a label like "$x^$" is no error.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from contracts.errors import InvalidInput
from contracts.methods import Picture
from reports.series import Histogram

# The series colours keep a contrast of at least 3 to white and differ in lightness (deuteranopia) when taken in this
# order. None is a colour that the page gives to a verdict: green, red, ochre and violet say pass, fail, inconclusive
# and broken, nothing else.
_INK, _MUTED, _RULE, _GROUND, _BAR = "#22262e", "#6b7078", "#d9d8d2", "#ffffff", "#8aa9c4"
_SERIES = ("#1f5a8c", "#c0408a", "#13898c", "#59616c", "#3f8fd0", "#6d1f52")
_LIMIT = {"color": _INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}  # a limit of the plan, in every chart
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (1, 3)))
_DPI = 160
PICTURE_CHANNELS = (1, 3)
_TRUE, _PREDICTED = (0, 200, 90), (233, 30, 140)
TRUTH_AND_PREDICTION = "true outline green, predicted one magenta"


def histogram_png(
    values: ArrayLike | Histogram,
    *,
    title: str = "",
    xlabel: str,
    ylabel: str = "examples",
) -> bytes:
    """Bars of counts with vertical marks at the quantiles (their value written beside).

    Args:
        values: (N,) numbers, or an already binned :class:`Histogram`. No finite value at all draws an empty frame
            that says so.
    """
    data = values if isinstance(values, Histogram) else Histogram.of(values)

    def draw(axes: Axes) -> None:
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if not data.counts.size:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no finite value", ha="center", va="center", color=_MUTED, transform=axes.transAxes)
            return
        axes.stairs(data.counts, data.edges, fill=True, color=_BAR)
        top = float(data.counts.max())
        axes.set_ylim(0, top * 1.28)
        axes.set_xlim(float(data.edges[0]), float(data.edges[-1]))
        # Marks step down so that neighbouring quantiles do not print over one another.
        for step, (q, value) in enumerate(data.quantiles):
            height = 1.19 - 0.085 * step
            axes.plot([value, value], [0, top * height], color=_INK, linewidth=0.9)
            middle = 0.5 * (data.edges[0] + data.edges[-1])
            side = "left" if value <= middle else "right"
            axes.annotate(
                f"{_quantile_name(q)} {_short(value)}",
                (value, top * height),
                xytext=(4 if side == "left" else -4, -2),
                textcoords="offset points",
                ha=side,
                va="top",
                fontsize=8,
                color=_INK,
            )
        axes.grid(axis="y", color=_RULE, linewidth=0.6)

    return _figure(draw, title=title, size=(6.4, 2.9))


def roc_png(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    n_neg: int,
    title: str = "",
    intervals: pl.DataFrame | None = None,
    order: Sequence[str] = (),
) -> bytes:
    """ROC on log-log axes over [1 / n_neg, 1], with the line of guessing (tpr = fpr).

    Args:
        curves: name -> (fpr, tpr), each (P,) in [0, 1], nondecreasing; drawn as steps (only attained points are
            claimed).
        n_neg: non-members tested, >= 1; below 1 / n_neg the curve has nothing to say and nothing is drawn.
        intervals: rows of ``audits.attack_reports`` (attack, tpr, tpr_lo, tpr_hi, fpr, fpr_lo, fpr_hi) whose attack
            names a curve: drawn as a cross of its two intervals at (fpr, tpr). Rows with nulls are not drawn.
        order: names that decide the colours, so that one name has one colour in several charts; the curves' own when
            not given.

    Raises:
        InvalidInput: no curve, or ``n_neg`` < 1.
    """
    if not curves or n_neg < 1:
        raise InvalidInput(f"roc_png: {len(curves)} curves and n_neg = {n_neg}; at least one of each is needed")
    least_tpr = min(
        (float(t[t > 0].min()) for _, t in (_rates(c) for c in curves.values()) if (t > 0).any()), default=1.0
    )
    x_low = 1.0 / max(n_neg, 2)
    y_low = max(min(x_low, least_tpr), 1e-6)

    def draw(axes: Axes) -> None:
        line = np.geomspace(x_low, 1, 50)
        axes.plot(line, line, color=_MUTED, linewidth=0.9, linestyle=(0, (2, 2)), label="guessing")
        for name, curve in curves.items():
            number = _place(name, order or list(curves))
            fpr, tpr = _rates(curve)
            colour = _SERIES[number % len(_SERIES)]
            # At the left edge the curve has the best tpr of any rate up to there.
            left = fpr <= x_low * (1 + 1e-9)
            start = float(tpr[left].max()) if left.any() else 0.0
            inside = ~left
            xs, ys = np.concatenate([[x_low], fpr[inside]]), np.concatenate([[start], tpr[inside]])
            ys = np.maximum(ys, y_low * 0.5)
            axes.step(
                xs, ys, where="post", color=colour, linewidth=1.7, linestyle=_DASHES[number % len(_DASHES)], label=name
            )
            if intervals is not None:
                _crosses(axes, intervals.filter(pl.col("attack") == name), colour, x_low)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(x_low, 1)
        axes.set_ylim(y_low, 1.12)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"false-positive rate  (from 1/{n_neg:,})".replace(",", "\u2009"))
        axes.set_ylabel("true-positive rate")
        axes.grid(color=_RULE, linewidth=0.6)
        axes.legend(loc="lower right", frameon=True, facecolor=_GROUND, edgecolor="none", framealpha=0.85)

    return _figure(draw, title=title, size=(5.2, 4.4))


def dots_png(
    groups: Mapping[str, ArrayLike],
    *,
    title: str = "",
    xlabel: str,
    threshold: float | None = None,
    threshold_label: str = "",
) -> bytes:
    """One line a group: every value as a faint dot, the mean as a full one, one standard deviation as a bar.

    Args:
        groups: name -> (S,) values, one a seed, in the order drawn from top to bottom. NaN is left out; a group without
            a value keeps its line and says so. With one value there is no spread and no bar is drawn.
        threshold: a vertical line with its label.

    Raises:
        InvalidInput: no group.
    """
    if not groups:
        raise InvalidInput("dots_png: at least one group is needed")

    def draw(axes: Axes) -> None:
        for row, values in enumerate(groups.values()):
            array = np.asarray(values, dtype=np.float64).ravel()
            array = array[np.isfinite(array)]
            if not array.size:
                axes.text(
                    0.01,
                    row,
                    "no value",
                    va="center",
                    fontsize=8,
                    color=_MUTED,
                    transform=axes.get_yaxis_transform(),
                )
                continue
            colour = _SERIES[0]
            if array.size > 1:
                axes.errorbar(
                    array.mean(), row, xerr=array.std(ddof=1), color=colour, linewidth=1.6, capsize=3.5, zorder=3
                )
                axes.plot(
                    array, np.full(array.size, row), "o", color=colour, alpha=0.4, markersize=4, markeredgewidth=0
                )
            axes.plot(array.mean(), row, "o", color=colour, markersize=6.5, markeredgewidth=0, zorder=4)
        if threshold is not None:
            axes.axvline(threshold, **_LIMIT)
            axes.annotate(
                threshold_label,
                (threshold, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -3),
                ha="left",
                va="top",
                textcoords="offset points",
                fontsize=8,
                color=_INK,
            )
        axes.set_yticks(range(len(groups)), [_clipped(n) for n in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, 0.0) if left >= 0 else left, right + 0.04 * (right - left))
        axes.set_xlabel(xlabel)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_RULE, linewidth=0.6)

    return _figure(draw, title=title, size=(6.4, 1.1 + 0.36 * len(groups)))


def intervals_png(
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    xlabel: str,
    order: Sequence[str],
    chance: float = 0.5,
    limits: Sequence[float] = (),
) -> bytes:
    """Figures with their intervals: a row a group, in it one mark a series, each with its whisker.

    Args:
        groups: group -> series -> (value, low, high), groups from top to bottom.
        order: names that decide colour and mark, as in :func:`roc_png`.
        chance: a thin line, where nothing is found; ``limits``: the plan's, dashed.

    Raises:
        InvalidInput: nothing to draw.
    """
    if not any(groups.values()):
        raise InvalidInput("intervals_png: at least one figure is needed")
    present = [name for name in order if any(name in group for group in groups.values())]
    step = 0.8 / max(len(present), 1)

    def draw(axes: Axes) -> None:
        axes.axvline(chance, color=_MUTED, linewidth=0.9)
        for limit in limits:
            axes.axvline(limit, **_LIMIT)
        for number, name in enumerate(present):
            colour, marker = _style(_place(name, order))
            rows = [(at, *group[name]) for at, group in enumerate(groups.values()) if name in group]
            at, value, low, high = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
            place = at + step * (number - (len(present) - 1) / 2)
            axes.hlines(place, low, high, color=colour, linewidth=1.5)
            axes.plot(value, place, marker, color=colour, markersize=4.5, markeredgewidth=0, label=_clipped(name))
        for edge in range(1, len(groups)):
            axes.axhline(edge - 0.5, color=_RULE, linewidth=0.6)
        axes.set_yticks(range(len(groups)), [_clipped(n) for n in groups])
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", color=_RULE, linewidth=0.6)
        axes.get_figure().legend(loc="outside lower center", ncols=min(len(present), 5), frameon=False)

    lines = sum(len(group) for group in groups.values())
    return _figure(draw, title="", size=(6.4, max(2.4, 1.2 + 0.13 * lines + 0.16 * len(groups))))


def against_time_png(
    points: Mapping[str, tuple[float, float, float, float]], *, ylabel: str, limit: float | None = None
) -> bytes:
    """A dot a name with its interval, against the seconds it took; the names stand beside the dots.

    Args:
        points: name -> (seconds, value, low, high); seconds below 0.01 are drawn there (a logarithmic axis has no
            zero).
        limit: of the plan, dashed.

    Raises:
        InvalidInput: no point.
    """
    if not points:
        raise InvalidInput("against_time_png: at least one point is needed")

    def draw(axes: Axes) -> None:
        if limit is not None:
            axes.axhline(limit, **_LIMIT)
            axes.annotate(
                "limit", (1, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color=_INK
            )
        seconds = [max(point[0], 0.01) for point in points.values()]
        axes.set_xscale("log")
        axes.set_xlim(min(seconds) / 1.6, max(seconds) * 4)  # space for the names
        for x, (_, value, low, high) in zip(seconds, points.values(), strict=True):
            axes.plot([x, x], [low, high], color=_SERIES[0], linewidth=1.4)
            axes.plot([x], [value], "o", color=_SERIES[0], markersize=5, markeredgewidth=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _named(axes, {name: (x, point[1]) for x, (name, point) in zip(seconds, points.items(), strict=True)})
        axes.set_xlabel("seconds")
        axes.set_ylabel(ylabel)
        axes.grid(color=_RULE, linewidth=0.6)

    return _figure(draw, title="", size=(5.2, 2.7))


def _named(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """A name beside each point, moved up until it lies over no other name."""
    taken: list[tuple[float, float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(point))
        label = _clipped(name, 20)
        right, moved = x + 0.03 + 0.021 * len(label), y
        while any(left < right and x < other and abs(moved - at) < 0.1 for left, other, at in taken):
            moved += 0.02
        taken.append((x, right, moved))
        axes.text(x + 0.02, moved, label, transform=axes.transAxes, va="center", fontsize=8, color=_INK)


def _place(name: str, order: Sequence[str]) -> int:
    """The number that decides a name's colour, mark and dashes; a name outside the order comes after it."""
    return order.index(name) if name in order else len(order)


def _style(number: int) -> tuple[str, str]:
    return _SERIES[number % len(_SERIES)], _MARKERS[(number + number // len(_SERIES)) % len(_MARKERS)]


def rows_of(picture: Picture, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that a picture draws: those of its ``where``, with a value, that its axis can show."""
    rows = frame.filter(*[pl.col(c) == v for c, v in picture.where]).drop_nulls([picture.x, picture.y])
    return rows.filter(pl.col(picture.x) > 0) if picture.log_x else rows  # a logarithmic axis has no zero


def table_png(picture: Picture, frame: pl.DataFrame) -> bytes:
    """A table as its declaration asks: lines with bands, a scatter, bars or dots with whiskers, or all dots
    of one ``x`` in a row.

    Args:
        frame: rows of the picture's table; those that ``picture.where`` leaves out, or without a value, are not drawn.
            None left draws an empty frame that says so.
    """
    rows = rows_of(picture, frame)
    xlabel, ylabel = picture.x.replace("_", " "), picture.y.replace("_", " ")
    whiskers = bool(picture.low and picture.high)
    if picture.kind == "dots" and rows.height and not whiskers:
        groups = {
            str(name): part[picture.y].to_numpy() for (name,), part in rows.group_by(picture.x, maintain_order=True)
        }
        return dots_png(groups, title=picture.title, xlabel=ylabel)
    bars = picture.kind in ("bars", "dots")  # one a row, names on the left

    def draw(axes: Axes) -> None:
        if rows.is_empty():
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no row", ha="center", va="center", color=_MUTED, transform=axes.transAxes)
        elif bars:
            _bars(axes, rows, picture)
        else:
            _lines(axes, rows, picture, joined=picture.kind == "lines")
        axes.set_xlabel(ylabel if bars else xlabel)
        if not bars:
            axes.set_ylabel(ylabel)
        axes.grid(axis="x" if bars else "both", color=_RULE, linewidth=0.6)

    height = 1.1 + 0.3 * max(rows.height, 1) if bars else 3.6
    return _figure(draw, title=picture.title, size=(6.4, height))


def _lines(axes: Axes, rows: pl.DataFrame, picture: Picture, *, joined: bool) -> None:
    groups = rows.group_by(picture.series, maintain_order=True) if picture.series else [(("",), rows)]
    for number, ((name,), part) in enumerate(groups):
        part = part.sort(picture.x)
        colour = _SERIES[number % len(_SERIES)]
        x = part[picture.x].to_numpy()
        axes.plot(
            x,
            part[picture.y],
            color=colour,
            linewidth=1.7,
            marker="o" if joined else _style(number)[1],
            markersize=3.5 if joined else 5,
            linestyle=_DASHES[(number + number // len(_SERIES)) % len(_DASHES)] if joined else "none",
            label=_clipped(str(name)),
        )
        if picture.low and picture.high:
            band = part.drop_nulls([picture.low, picture.high])
            ends = band[picture.x], band[picture.low], band[picture.high]
            if joined:
                axes.fill_between(*ends, color=colour, alpha=0.16, linewidth=0)
            else:
                axes.vlines(*ends, color=colour, linewidth=1.2)
    if picture.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    if picture.series:
        axes.legend(loc="best", frameon=True, facecolor=_GROUND, edgecolor="none", framealpha=0.85, fontsize=8)


def _bars(axes: Axes, rows: pl.DataFrame, picture: Picture) -> None:
    names = [" ".join(str(row[c]) for c in filter(None, (picture.series, picture.x))) for row in rows.to_dicts()]
    values = rows[picture.y].to_numpy().astype(np.float64)
    place = np.arange(len(names))
    if picture.kind == "bars":
        axes.barh(place, values, color=_BAR, height=0.7)
    else:
        axes.plot(values, place, "o", color=_SERIES[0], markersize=6)
    if picture.low and picture.high:
        low, high = (rows[c].to_numpy().astype(np.float64) for c in (picture.low, picture.high))
        whiskers = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
        axes.errorbar(values, place, xerr=whiskers, fmt="none", color=_INK, linewidth=1.0, capsize=2.5)
    axes.set_yticks(place, [_clipped(n) for n in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def is_picture(shape: Sequence[int]) -> bool:
    """Whether one example of this shape can be shown as a picture: (H, W), or (C, H, W) with C in {1, 3}.

    >>> is_picture((1, 8, 8)), is_picture((30,))
    (True, False)
    """
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in PICTURE_CHANNELS)


def example_png(x: NDArray[Any], *, low: float | None = None, high: float | None = None, min_side: int = 64) -> bytes:
    """One example as a PNG, enlarged by a whole factor (no smoothing) until its longer side is at least ``min_side``.

    Args:
        x: (H, W) or (C, H, W), C in {1, 3}. uint8 is shown as it is, bool as black and white; other numbers are
            mapped linearly from [low, high] to [0, 255], with the example's own least and greatest value by default.
        low, high: the values shown as black and white.
        min_side: pixels, in [1, 1024].

    Raises:
        InvalidInput: not the shape of a picture, empty, or with NaN or infinite values.
    """
    pixels = _pixels(np.asarray(x)[None], low, high)[0]
    factor = max(1, math.ceil(min_side / max(pixels.shape[:2])))
    return _png(
        Image.fromarray(
            np.kron(pixels, np.ones((factor, factor, 1), np.uint8)).squeeze(-1)
            if pixels.shape[2] == 1
            else pixels.repeat(factor, 0).repeat(factor, 1)
        )
    )


def outlined(
    images: NDArray[Any], true: NDArray[np.bool_], predicted: NDArray[np.bool_] | None = None, *, min_side: int = 96
) -> NDArray[np.uint8]:
    """Examples with the outline of their mask, and of a predicted one: RGB, enlarged until the lines are thin.

    The true outline lies just outside its mask and the predicted one just inside, so that both are seen where they
    agree.

    Args:
        images: (N, C, H, W), as :func:`example_png`; floats share one scale over all of them.
        true: (N, H, W).
        predicted: (N, H, W), or None.
        min_side: the images are enlarged by a whole factor until their longer side is at least so many pixels.

    Returns:
        uint8 (N, 3, k H, k W).

    Raises:
        InvalidInput: as :func:`example_png`, or masks that do not fit the images.
    """
    for mask in (true, predicted):
        if mask is not None and mask.shape != (len(images), *images.shape[2:]):
            raise InvalidInput(f"masks {mask.shape} do not fit images {images.shape}")
    pixels = _pixels(np.asarray(images), None, None)
    factor = max(1, math.ceil(min_side / max(pixels.shape[1:3])))
    drawn = np.repeat(pixels, 3, 3) if pixels.shape[3] == 1 else pixels.copy()
    drawn = drawn.repeat(factor, 1).repeat(factor, 2)
    for mask, colour, outside in ((true, _TRUE, True), (predicted, _PREDICTED, False)):
        if mask is None:
            continue
        large = mask.repeat(factor, 1).repeat(factor, 2)
        drawn[_edge(~large if outside else large)] = colour
    return np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))


def _edge(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of masks (N, H, W) beside a pixel of the image that is not of them."""
    inner = np.pad(masks, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = (inner[:, :-2, 1:-1], inner[:, 2:, 1:-1], inner[:, 1:-1, :-2], inner[:, 1:-1, 2:])
    return masks & ~np.logical_and.reduce(around)


def grid_png(
    images: NDArray[Any],
    captions: Sequence[str] = (),
    *,
    lengths: Sequence[int] = (),
    title: str = "",
) -> bytes:
    """A sheet of examples, one caption under each.

    Args:
        images: (N, H, W) or (N, C, H, W), as :func:`example_png`; floats share one scale over the sheet. 1 <= N <= 64.
        captions: () or N of them.
        lengths: images in each row, N in all; the places a shorter row leaves stay empty. () for rows of eight.

    Raises:
        InvalidInput: as :func:`example_png`, no image or more than 64, another number of captions, or lengths that are
            not of N images.
    """
    images = np.asarray(images)
    count = images.shape[0] if images.ndim else 0
    if not 1 <= count <= 64 or (captions and len(captions) != count):
        raise InvalidInput(f"grid_png: {count} images (1 to 64 fit) with {len(captions)} captions")
    lengths = lengths or [min(8, count - start) for start in range(0, count, 8)]
    if min(lengths) < 1 or sum(lengths) != count:
        raise InvalidInput(f"grid_png: rows of {list(lengths)} for {count} images")
    pixels = _pixels(images, None, None)
    rows, columns = len(lengths), max(lengths)
    places = [row * columns + column for row, length in enumerate(lengths) for column in range(length)]
    figure = Figure(figsize=(columns * 0.95, rows * (1.18 if captions else 0.95) + (0.35 if title else 0.0)), dpi=_DPI)

    def fill() -> None:
        for number, place in enumerate(places):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.set_axis_off()
            axes.imshow(
                pixels[number].squeeze(-1) if pixels.shape[3] == 1 else pixels[number],
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
            if captions:
                axes.text(
                    0.5,
                    -0.08,
                    captions[number],
                    ha="center",
                    va="top",
                    fontsize=6.5,
                    transform=axes.transAxes,
                    color=_INK,
                )

    return _save(figure, fill, title=title, chart=False)


def _clipped(text: str, most: int = 32) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _rates(curve: tuple[ArrayLike, ArrayLike]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(curve[0], dtype=np.float64), np.asarray(curve[1], dtype=np.float64)


def _crosses(axes: Axes, rows: pl.DataFrame, colour: str, x_low: float) -> None:
    wanted = ["fpr", "fpr_lo", "fpr_hi", "tpr", "tpr_lo", "tpr_hi"]
    for fpr, fpr_lo, fpr_hi, tpr, tpr_lo, tpr_hi in rows.select(wanted).drop_nulls().iter_rows():
        x = max(fpr, x_low)
        axes.plot([max(fpr_lo, x_low), max(fpr_hi, x_low)], [tpr, tpr], color=colour, linewidth=0.8, alpha=0.75)
        axes.plot([x, x], [max(tpr_lo, 1e-6), tpr_hi], color=colour, linewidth=0.8, alpha=0.75)
        axes.plot([x], [tpr], "o", color=colour, markersize=4, markeredgewidth=0)


def _pixels(images: NDArray[Any], low: float | None, high: float | None) -> NDArray[np.uint8]:
    """(N, H, W) or (N, C, H, W) -> (N, H, W, C) uint8."""
    if not is_picture(images.shape[1:]) or 0 in images.shape:
        raise InvalidInput(
            f"an example of shape {images.shape[1:]} is not a picture: (H, W), (1, H, W) or (3, H, W) is"
        )
    stack = images[:, None] if images.ndim == 3 else images
    if stack.dtype == np.bool_:
        stack = stack.astype(np.uint8) * 255
    elif stack.dtype != np.uint8:
        values = stack.astype(np.float64)
        if not np.isfinite(values).all():
            raise InvalidInput("a picture with NaN or infinite values cannot be shown")
        bottom = float(values.min()) if low is None else low
        top = float(values.max()) if high is None else high
        span = top - bottom
        unit = np.clip((values - bottom) / span, 0, 1) if span > 0 else np.zeros_like(values)
        stack = np.rint(unit * 255).astype(np.uint8)
    return np.ascontiguousarray(stack.transpose(0, 2, 3, 1))


def _figure(draw: Callable[[Axes], None], *, title: str, size: tuple[float, float]) -> bytes:
    figure = Figure(figsize=(size[0], size[1] + (0.25 if title else 0)), dpi=_DPI)

    def fill() -> None:
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes)

    return _save(figure, fill, title=title)


def _save(figure: Figure, fill: Callable[[], None], *, title: str, chart: bool = True) -> bytes:
    style = {
        "figure.facecolor": _GROUND,
        "axes.facecolor": _GROUND,
        "axes.edgecolor": _MUTED,
        "axes.linewidth": 0.7,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "font.size": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8.5,
        "font.family": ["DejaVu Sans"],
        "axes.formatter.use_mathtext": False,
        "text.parse_math": False,
    }
    with mpl.rc_context():
        mpl.rcParams.update({k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")})
        mpl.rcParams.update(style)
        figure.set_facecolor(_GROUND)
        figure.set_layout_engine("constrained")
        canvas = FigureCanvasAgg(figure)
        fill()
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        canvas.draw()
        image = Image.frombuffer("RGBA", canvas.get_width_height(physical=True), canvas.buffer_rgba()).convert("RGB")
    # A palette is enough for a chart (grounds, inks and their antialiasing) and a third of the bytes.
    few = {"method": Image.Quantize.FASTOCTREE, "dither": Image.Dither.NONE}
    return _png(image.quantize(256, **few) if chart else image)  # type: ignore[arg-type]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _quantile_name(q: float) -> str:
    return "median" if q == 0.5 else f"{q * 100:g} %"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "\u2212")
