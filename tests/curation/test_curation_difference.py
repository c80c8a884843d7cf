"""What changed between two versions, against a plain loop over ids; and folders that are read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import DataError, IntegrityError
from contracts.progress import silent
from curation.difference import CHANGES, INDEX_SCHEMA, REASONS_SCHEMA, Version, difference, in_words
from curation.export.formats import MANIFEST, export_set
from curation.export.index import EXCLUDED, INDEX, index_csv, index_of, read_version
from palimpsest.testing.worlds import class_examples, numbers

_ROW = st.tuples(st.sampled_from(["train", "test"]), st.sampled_from([None, "a", "b"]), st.sampled_from(["", "x", "y"]))
_EXAMPLES = st.dictionaries(st.integers(0, 12), _ROW, max_size=10)
_REASONS = st.dictionaries(st.integers(0, 12), st.tuples(st.sampled_from("kd"), st.sampled_from(["", "r"])))


def version(name: str, examples: dict, reasons: dict) -> Version:
    return Version(
        name,
        pl.DataFrame([(e, *row) for e, row in examples.items()], schema=INDEX_SCHEMA, orient="row"),
        pl.DataFrame([(e, *row) for e, row in reasons.items()], schema=REASONS_SCHEMA, orient="row"),
    )


@given(_EXAMPLES, _EXAMPLES, _REASONS, _REASONS)
@settings(max_examples=150, deadline=None)
def test_a_difference_is_what_a_loop_over_ids_finds(old: dict, new: dict, why_old: dict, why_new: dict) -> None:
    wanted = []
    for example in sorted({*old, *new}):
        told = next(((w, why[example]) for w, why in (("now", why_new), ("before", why_old)) if example in why), None)
        reason = "" if told is None else f"{told[0]}: " + (f"{told[1][1]} ({told[1][0]})" if told[1][1] else told[1][0])
        if example not in old:
            wanted.append((example, "came", None, new[example][1], reason))
        elif example not in new:
            wanted.append((example, "left", old[example][1], None, reason))
        else:
            (split, label, content), (split_, label_, content_) = old[example], new[example]
            if content and content_ and content != content_:
                wanted.append((example, "content", content, content_, ""))
            if None not in (label, label_) and label != label_:
                wanted.append((example, "label", label, label_, ""))
            if split != split_:
                wanted.append((example, "split", split, split_, ""))
    before, after = version("old", old, why_old), version("new", new, why_new)
    found = difference(before, after)
    assert found.rows() == wanted
    said = in_words(found, before, after)
    for change in CHANGES:
        assert (change in said.partition("):")[2]) == (change in found["change"].to_list())
    back = difference(after, before)
    assert (back["change"] == "left").sum() == (found["change"] == "came").sum()


def test_an_example_twice_is_refused() -> None:
    one = version("one", {1: ("train", "a", "x")}, {})
    twice = Version("two", pl.concat([one.examples, one.examples]), one.reasons)
    with pytest.raises(DataError, match="two has examples twice") as refused:
        difference(one, twice)
    assert refused.value.example_ids == (1,)


def test_a_folder_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = class_examples()
    excluded = pl.DataFrame({"example_id": [999], "role": ["drop"], "reason": ['so, "it" is']})

    monkeypatch.setattr("curation.export.index._BLOCK", 7)  # the index is told in parts
    assert "".join(index_csv(data)) == index_of(data).write_csv()

    def documents(files: object) -> dict[str, Any]:
        return {INDEX: index_csv(data), EXCLUDED: excluded.write_csv()}

    made = {"asset": "s/curation/a"}
    export_set(data, tmp_path / "out", format="npz", made=made, documents=documents, progress=silent)
    found = read_version(tmp_path / "out")
    assert found.examples.equals(index_of(data)) and found.reasons.equals(excluded)
    assert found.name.endswith("(s/curation/a)") and found.examples["example_id"].is_sorted()
    labels = dict(zip(data.example_id.tolist(), np.array(data.class_names)[data.y].tolist(), strict=True))
    assert dict(found.examples.select("example_id", "label").iter_rows()) == labels
    target = index_of(numbers().examples)
    assert [float(text) for text in target["label"]] == numbers().examples.by_id().y.tolist()


def test_a_folder_of_before_is_refused(tmp_path: Path) -> None:
    data = class_examples()
    export_set(data, tmp_path / "out", format="npz", made={}, documents=lambda files: {}, progress=silent)
    with pytest.raises(IntegrityError, match="exported by an earlier release"):
        read_version(tmp_path / "out")
    assert "made" in json.loads((tmp_path / "out" / MANIFEST).read_text())
