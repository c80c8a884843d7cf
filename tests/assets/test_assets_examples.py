"""Sheets of examples: every group is on them, in the order of its number, whatever the size of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assets import analyses
from assets.data import _told
from assets.examples import MOST, SHEET, examples_in
from contracts.identity import owner_token
from contracts.methods import Picture, analysis
from reports import plots
from sources.example_set import ExampleSet
from sources.loading import load

SHEET_OF = Picture(table="t", title="Sheet", kind="examples", x="example_id", y="projection", series="concept")


@pytest.fixture(scope="module")
def digits() -> ExampleSet:
    return load("sklearn", {"dataset": "digits"})


def table(digits: ExampleSet, sizes: list[int], *, seed: int) -> pl.DataFrame:
    """Groups c_0, c_1, ... of these sizes, in no order."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"c_{i}" for i in range(len(sizes))], sizes)
    return pl.DataFrame(
        {
            "concept": names,
            "example_id": rng.permutation(digits.example_id)[: len(names)],
            "projection": rng.normal(size=len(names)),
        }
    ).sample(fraction=1, shuffle=True, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sizes", [[8] * 11, [8, 3, 8], [1, 8], [9] * 40, [2] * 64])
def test_every_group_has_its_share_of_the_sheet_and_its_best_examples(digits, sizes, seed) -> None:
    frame = table(digits, sizes, seed=seed)
    groups = examples_in(digits, SHEET_OF, frame)
    assert [g.heading for g in groups] == [f"concept c_{i}" for i in range(len(sizes))], "c_10 follows c_9"
    share = min(MOST, SHEET // len(sizes))
    assert [len(g.example_id) for g in groups] == [min(size, share) for size in sizes]
    for i, group in enumerate(groups):
        best = frame.filter(concept=f"c_{i}").sort("projection", descending=True)["example_id"].head(share)
        assert group.example_id.tolist() == best.to_list()


def test_more_groups_than_places_keep_the_best(digits) -> None:
    frame = table(digits, [3] * 100, seed=0)
    best = frame.group_by("concept").agg(pl.col("projection").max()).sort("projection", descending=True).head(SHEET)
    groups = examples_in(digits, SHEET_OF, frame)
    assert {g.heading.removeprefix("concept ") for g in groups} == set(best["concept"])
    assert all(len(g.example_id) == 1 for g in groups)


def test_numbers_are_sorted_as_numbers(digits) -> None:
    frame = table(digits, [2, 2, 2], seed=1)
    for values in ([10, 9, 100], [0.5, 0.25, 0.125]):
        named = frame.with_columns(
            concept=pl.col("concept").replace_strict(dict(zip(("c_0", "c_1", "c_2"), values, strict=True)))
        )
        headings = [float(g.heading.split()[-1]) for g in examples_in(digits, SHEET_OF, named)]
        assert headings == sorted(values)


def a_run(data: ExampleSet, *, previews: bool) -> Any:
    return SimpleNamespace(data=data, subject=SimpleNamespace(previews=previews))


def test_no_picture_of_an_example_and_no_word_of_the_data_goes_to_dagster(digits) -> None:
    """Its records are no data store: charts of what a method named, and figures, unless the plan asks for more."""
    closed, open_ = (a_run(digits, previews=previews) for previews in (False, True))
    assert analyses._png(closed, SHEET_OF, table(digits, [3, 3], seed=2)) is None
    for spec in (method.spec for method in analysis):
        for drawn in spec.tables:
            kept = {c.name for c in drawn.columns if c.name in analyses._shown(closed, drawn)}
            assert not kept & analyses._OF_THE_DATA
            assert {c.name for c in drawn.columns if c.dtype in ("int64", "float64", "bool")} <= kept
            assert kept | {c.name for c in drawn.columns if c.dtype == "str"} == set(analyses._shown(open_, drawn))


@pytest.mark.parametrize(("sizes", "lengths"), [([8] * 10, [6] * 10), ([8, 3, 8], [8, 3, 8]), ([1] * 20, ())])
def test_the_sheet_of_the_dagster_page_has_a_row_for_every_group(digits, sizes, lengths, monkeypatch) -> None:
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        plots,
        "grid_png",
        lambda images, captions, *, lengths, title: drawn.append((images, captions, lengths)) or b"png",
    )
    frame, run = table(digits, sizes, seed=2), a_run(digits, previews=True)
    assert analyses._png(run, SHEET_OF, frame) == b"png"
    ((images, captions, rows),) = drawn
    assert rows == lengths and len(images) == len(captions)
    assert set(captions) == {f"c_{i}" for i in range(len(sizes))}, "no group is left out"
    monkeypatch.undo()
    assert analyses._png(run, SHEET_OF, frame).startswith(b"\x89PNG")


def test_the_folder_of_an_owner_is_stored_as_the_token(tmp_path: Path) -> None:
    """Beside the salted token the path must not say whose picture it is."""
    for k in range(12):
        folder = tmp_path / f"person{k % 3}" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 20 * k, np.uint8)).save(folder / f"{k}.png")
    data = load("image_folder", {"root": str(tmp_path), "label_level": 2, "owner_level": 1})
    tokens = {owner: owner_token(owner, salt=b"salt") for owner in set(data.owner.tolist())}
    told = _told(data, tokens)
    assert not any("person" in at for at in told) and len(set(told)) == 12
    assert told[0] == "/".join([tokens[data.owner[0]], *data.origin[0].split("/")[1:]])


def test_a_chart_without_a_row_is_not_drawn(digits) -> None:
    """Every way in which nothing is left to draw, beside one that draws."""
    rows = pl.DataFrame({"x": [0.0, 0.0], "y": [1.0, None], "kind": ["a", "b"]})
    pictures = {
        "drawn": Picture(table="t", title="drawn", x="x", y="y"),
        "left out": Picture(table="t", title="left out", x="x", y="y", where=(("kind", "c"),)),
        "without a value": Picture(table="t", title="without a value", x="x", y="y", where=(("kind", "b"),)),
        "off its axis": Picture(table="t", title="off its axis", x="x", y="y", log_x=True),
    }
    assert [name for name, p in pictures.items() if analyses._png(a_run(digits, previews=False), p, rows)] == ["drawn"]
