"""What a model says word by word: found exactly in models that know stated texts, and no pass without power."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from attacks.extraction import ExtractionConfig, extraction, judge_extraction
from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.subject import Thresholds
from contracts.verdicts import TARGET, Verdict
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens
from stats import clopper_pearson

WORDS, LENGTH = 30, 10
CONFIG = ExtractionConfig(prefix=4, suffix=4)


class Reciter(nn.Module):
    """Says the next token of every text that it knows, and token 0 after anything else."""

    def __init__(self, known: list[np.ndarray]) -> None:
        super().__init__()
        self.next = {tuple(text[:t].tolist()): int(text[t]) for text in known for t in range(1, len(text))}
        self.scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = torch.zeros(*input_ids.shape, WORDS)
        for row, ids in enumerate(input_ids.tolist()):
            for t in range(len(ids)):
                logits[row, t, self.next.get(tuple(ids[: t + 1]), 0)] = 1
        return logits * self.scale


def texts(num: int, *, seed: int = 0) -> list[np.ndarray]:
    """Different from their first four tokens on, none with a 0."""
    rng = np.random.default_rng(seed)
    heads = rng.permutation(26**3)[:num]
    first = np.stack([heads // 676, heads // 26 % 26, heads % 26, np.zeros(num, np.int64)], axis=1) + 1
    return [np.concatenate([head, rng.integers(1, WORDS, LENGTH - 4)]).astype(np.int32) for head in first]


def examples(of: list[np.ndarray], split: list[str], planted: list[str] | None = None) -> ExampleSet:
    num, rng = len(of), np.random.default_rng(1)
    return ExampleSet(
        name="texts",
        task="language",  # type: ignore[arg-type]
        x=Tokens.of(of, vocab_size=WORDS),
        y=np.zeros(num, np.int64),
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.array(split, "<U5"),
        owner=np.full(num, ""),
        content_hash=np.array([text.tobytes().hex()[:64].ljust(64, "0") for text in of]),
        class_names=(),
        center=np.zeros((), np.float32),
        scale=np.ones((), np.float32),
        columns={} if planted is None else {"planted": np.array(planted)},
    ).validate()


def world(*, known: int, planted_known: int = 8) -> tuple[ExampleSet, Reciter]:
    """40 member texts of which the first are known, 8 planted ones three times each, 20 held-out ones."""
    of = texts(68)
    member, planted, unseen = of[:40], of[40:48], of[48:]
    data = examples(
        [*member, *(text for text in planted for _ in range(3)), *unseen],
        ["train"] * 64 + ["test"] * 20,
        ["no"] * 40 + ["yes"] * 24 + ["no"] * 20,
    )
    return data, Reciter([*member[:known], *planted[:planted_known]])


def run(data: ExampleSet, model: nn.Module, config: ExtractionConfig = CONFIG) -> dict[str, pl.DataFrame]:
    return extraction(data, config=config, seed=0, model=model)


def verdict(tables: dict[str, pl.DataFrame]):
    ((about, finding),) = judge_extraction(tables, Thresholds())
    assert about == TARGET and finding.what == "extraction"
    return finding


@pytest.mark.parametrize(("known", "planted_known"), [(0, 8), (13, 8), (40, 3)])
def test_exactly_the_texts_that_are_known_are_said(known: int, planted_known: int) -> None:
    data, model = world(known=known, planted_known=planted_known)
    tables = run(data, model)
    rows = {row["part"]: row for row in tables["extraction_summary"].iter_rows(named=True)}
    for part, num, said in (("member", 40, known), ("planted", 8, planted_known), ("held_out", 20, 0)):
        assert (rows[part]["num_texts"], rows[part]["num_reproduced"]) == (num, said)
        low, high = clopper_pearson(said, num, alpha=0.05)
        assert (rows[part]["share_lo"], rows[part]["share_hi"]) == (
            pytest.approx(float(low)),
            pytest.approx(float(high)),
        )
    found = tables["extraction"]
    flat, _, lengths = data.x.texts(slice(None))
    whole = {
        int(i): tuple(t.tolist()) for i, t in zip(data.example_id, np.split(flat, np.cumsum(lengths)[:-1]), strict=True)
    }
    for row in found.iter_rows(named=True):
        text = whole[row["example_id"]]
        assert row["reproduced"] == all(model.next.get(text[:t]) == text[t] for t in range(4, 8))
        assert row["right"] == (1.0 if row["reproduced"] else 0.0)  # no text holds the token that ignorance says
    assert set(found.filter(part="planted")["copies"]) == {3} and set(found.filter(part="member")["copies"]) == {1}


def test_one_wrong_token_is_not_word_by_word() -> None:
    data, _ = world(known=0)
    flat, _, lengths = data.x.texts(slice(None))
    changed = [text.copy() for text in np.split(flat, np.cumsum(lengths)[:-1])[:40]]
    for text in changed:
        text[7] = text[7] % (WORDS - 1) + 1  # the last of the four
    found = run(data, Reciter(changed))["extraction"].filter(part="member")
    assert not found["reproduced"].any() and (found["right"] == 0.75).all()
    shorter = run(data, Reciter(changed), dataclasses.replace(CONFIG, suffix=3))["extraction"].filter(part="member")
    assert shorter["reproduced"].all()


def test_no_pass_without_planted_texts_that_are_found() -> None:
    data, model = world(known=0)
    good = verdict(run(data, model))
    assert good.verdict is Verdict.PASS and "planted texts 8 of 8" in good.sentence
    blind = verdict(run(data, world(known=0, planted_known=2)[1]))
    assert blind.verdict is Verdict.INCONCLUSIVE and "more copies" in blind.sentence
    bare = dataclasses.replace(data, columns={})
    none = verdict(run(bare, Reciter([])))
    assert none.verdict is Verdict.INCONCLUSIVE and "Nothing was planted" in none.sentence
    told = verdict(run(*world(known=20)))
    assert told.verdict is Verdict.FAIL and "20 of 40" in told.sentence and told.value == 0.5
    still = verdict(run(data, world(known=20, planted_known=0)[1]))
    assert still.verdict is Verdict.FAIL  # what is found needs no power


def test_too_few_texts_say_what_would_be_enough() -> None:
    of = texts(20)
    data = examples(
        [*of[:10], *of[10:18], *of[18:]], ["train"] * 18 + ["test"] * 2, ["no"] * 10 + ["yes"] * 8 + ["no"] * 2
    )
    found = verdict(run(data, Reciter(of[10:18])))
    assert found.verdict is Verdict.INCONCLUSIVE and "36 texts" in found.sentence
    assert float(clopper_pearson(0, 36)[1]) <= 0.1 < float(clopper_pearson(0, 34)[1])


def test_order_batch_and_copies_change_nothing(tmp_path) -> None:
    data, model = world(known=13)
    plain = run(data, model)
    turned = data.take(np.random.default_rng(3).permutation(len(data)))
    for other in (run(turned, model), run(data, model, dataclasses.replace(CONFIG, batch=3))):
        for name, table in plain.items():
            keys = ["example_id"] if "example_id" in table.columns else ["part"]
            assert table.sort(keys).drop("loss").equals(other[name].sort(keys).drop("loss"))
    few = run(data, model, dataclasses.replace(CONFIG, most=5))["extraction"]
    assert few["part"].value_counts(sort=True)["count"].to_list() == [5, 5, 5]


def test_texts_that_are_too_short_are_left_out_and_counted() -> None:
    of = texts(12)
    cut = [text[:6] for text in of[:3]] + of[3:]
    data = examples(cut, ["train"] * 9 + ["test"] * 3)
    (row,) = run(data, Reciter(of))["extraction_summary"].filter(part="member").iter_rows(named=True)
    assert (row["num_texts"], row["num_short"], row["num_reproduced"]) == (6, 3, 6)
    with pytest.raises(DataError, match=r"40 \+ 4 tokens"):
        run(data, Reciter(of), dataclasses.replace(CONFIG, prefix=40))
    odd = dataclasses.replace(data, columns={"planted": np.array(["maybe"] * 12)})
    with pytest.raises(ConfigError, match="yes and no"):
        run(odd, Reciter(of))


def test_it_is_for_texts() -> None:
    from palimpsest.testing.worlds import class_examples

    with pytest.raises(NotApplicable, match="sequence of tokens"):
        run(class_examples(20), Reciter([]))
