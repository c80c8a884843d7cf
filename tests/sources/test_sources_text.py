"""Texts: what other tools wrote comes back token by token; prompts do not count; pieces of a document stay on one side;
ids do not depend on order; everything that is refused names where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked
from sources.loading import detect, load
from sources.payloads.tokens import NOT_COUNTED
from sources.text_files import is_texts
from sources.tokenizers import Bytes, FromFolder, Words

BOS, EOS, SEP, UNK = 1, 2, 3, 4


def _pairs(num=24):
    return [
        {"prompt": f"Who is {i}?", "answer": f"Näme {i}, «{'x' * (i % 5)}»", "owner": f"o{i % 3}", "step": i // 6}
        for i in range(num)
    ]


def _jsonl(path: Path, rows) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def _write(folder: Path, kind: str, rows) -> Path:
    frame = pl.DataFrame(rows)
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        return _jsonl(path, rows)
    frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path)
    return path


def _row(data, row):
    """One example as (tokens, the tokens that count)."""
    one = data.take(np.array([row]))
    ids = one.inputs(slice(None))["input_ids"][0]
    labels = one.targets(slice(None))[0]
    return ids.tolist(), labels[labels != NOT_COUNTED].tolist()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_prompts_and_answers_come_back_as_bytes(tmp_path, kind):
    rows = _pairs()
    path = _write(tmp_path, kind, rows)
    found = detect(path)
    assert found.name == "text"
    assert found.config == {
        "root": str(tmp_path),
        "file": path.name,
        "prompt": "prompt",
        "answer": "answer",
        "owner": "owner",
        "step": "step",
    }
    data = load("text", found.config, seed=1)
    assert data.task.name == "language" and data.class_names == () and not data.y.any()
    for at, row in enumerate(rows):
        ids, counted = _row(data, at)
        prompt, answer = ([4 + b for b in row[k].encode()] for k in ("prompt", "answer"))
        assert ids == [BOS, *prompt, SEP, *answer, EOS]
        assert counted == [*answer, EOS]
        assert Bytes().decode(ids[len(prompt) + 2 :]) == row["answer"]
    assert data.owner.tolist() == [row["owner"] for row in rows]
    assert data.columns["step"].tolist() == [row["step"] for row in rows]
    assert data.origin[3] == f"{path.name} row 4"
    assert data.x.vocab_size == 260


def test_three_ways_to_write_them_are_one_data_set(tmp_path):
    config = {"root": str(tmp_path), "prompt": "prompt", "answer": "answer", "owner": "owner", "step": "step"}
    made = [load("text", config | {"file": _write(tmp_path, k, _pairs()).name}) for k in ("jsonl", "parquet", "csv")]
    assert len({data.digest for data in made}) == 1


def test_words_are_those_of_the_training_split(tmp_path):
    rows = [{"text": f"the word{i} runs", "split": "train" if i < 8 else "test"} for i in range(12)]
    rows[9]["text"] = "the word3 sleeps"
    data = load(
        "text",
        {
            "root": str(tmp_path),
            "file": _jsonl(tmp_path / "t.jsonl", rows).name,
            "split": "split",
            "tokenizer": "words",
        },
    )
    vocabulary = sorted({w for row in rows[:8] for w in row["text"].split()})
    place = {word: 5 + at for at, word in enumerate(vocabulary)}
    assert data.x.vocab_size == 5 + len(vocabulary)
    for at, row in enumerate(rows):
        words = [place.get(w, UNK) for w in row["text"].split()]
        assert _row(data, at) == ([BOS, *words, EOS], [*words, EOS])
    few = load(
        "text", {"root": str(tmp_path), "file": "t.jsonl", "split": "split", "tokenizer": "words", "min_count": 2}
    )
    assert few.x.vocab_size == 5 + 2  # "the" and "runs"
    one = load(
        "text", {"root": str(tmp_path), "file": "t.jsonl", "split": "split", "tokenizer": "words", "max_words": 1}
    )
    assert one.x.vocab_size == 6 and _row(one, 0)[0] == [BOS, UNK, UNK, 5, EOS]  # of equals, the first by the alphabet
    assert few.digest != data.digest and few.example_id.tolist() == data.example_id.tolist()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    import tokenizers

    folder = tmp_path_factory.mktemp("hf") / "tok"
    folder.mkdir()
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(
        [row["prompt"] + row["answer"] for row in _pairs()], vocab_size=300, special_tokens=["<s>", "</s>"]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return folder, made


def test_a_hugging_face_tokenizer_of_a_folder(tmp_path, tokenizer_folder):
    folder, made = tokenizer_folder
    rows = _pairs()
    (tmp_path / "tok").mkdir()
    for file in folder.iterdir():
        (tmp_path / "tok" / file.name).write_bytes(file.read_bytes())
    config = {
        "root": str(tmp_path),
        "file": _jsonl(tmp_path / "t.jsonl", rows).name,
        "prompt": "prompt",
        "answer": "answer",
    }
    data = load("text", config | {"tokenizer": "tok"})
    for at, row in enumerate(rows):
        prompt, answer = (made.encode(row[k]).ids for k in ("prompt", "answer"))
        assert _row(data, at) == ([0, *prompt, *answer, 1], [*answer, 1])
    assert data.x.vocab_size == made.get_vocab_size() and data.x.pad == 1
    assert data.example_id.tolist() == load("text", config).example_id.tolist()
    assert FromFolder(tmp_path.resolve(), "tok").decode([0, *answer, 1]) == rows[-1]["answer"]


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path, tokenizer_folder):
    config = {
        "root": str(tmp_path),
        "file": _jsonl(tmp_path / "t.jsonl", _pairs()).name,
        "prompt": "prompt",
        "answer": "answer",
    }
    for name, says in (("../tok", UnsafeFile), ("nowhere", DataError)):
        with pytest.raises(says):
            load("text", config | {"tokenizer": name})
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{]")
    with pytest.raises(DataError, match=r"tok/tokenizer\.json cannot be read"):
        load("text", config | {"tokenizer": "tok"})
    (tmp_path / "tok" / "tokenizer.json").write_bytes((tokenizer_folder[0] / "tokenizer.json").read_bytes())
    (tmp_path / "tok" / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(DataError, match="'<end>', which is no token"):
        load("text", config | {"tokenizer": "tok"})
    (tmp_path / "tok" / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(DataError, match="no JSON object"):
        load("text", config | {"tokenizer": "tok"})


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(st.sampled_from("aé漢😀 b"), min_size=1, max_size=40).filter(str.strip), min_size=4, max_size=9
    ),
    most=st.integers(6, 20),
)
def test_pieces_of_a_text_are_the_text_and_no_character_is_cut(tmp_path_factory, texts, most):
    folder = tmp_path_factory.mktemp("pieces")
    pl.DataFrame({"text": texts, "id": range(len(texts))}).write_parquet(folder / "t.parquet")
    config = {"root": str(folder), "file": "t.parquet", "max_tokens": most}
    try:
        data = load("text", config)
    except DataError as error:
        assert "group" in str(error) and len(set(texts)) == 1
        return
    of = np.array([int(o.rpartition(" ")[2]) - 1 for o in data.origin])
    for at, text in enumerate(texts):
        rows = np.flatnonzero(of == at)
        pieces = [_row(data, row)[0] for row in rows]
        assert all(piece[0] == BOS and 2 <= len(piece) <= most for piece in pieces)
        assert [piece[-1] == EOS for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert "".join(Bytes().decode(piece) for piece in pieces) == text
        assert len({data.split[row] for row in rows}) == 1
        if "group" in data.columns:
            assert len({data.columns["group"][row] for row in rows}) == 1
        else:
            assert len(rows) == 1


def test_any_order_and_any_deletion_leaves_the_other_ids(tmp_path):
    rows = [{"text": f"text number {i} " + "long " * (i % 9), "client": f"c{i % 4}"} for i in range(30)]
    config = {"root": str(tmp_path), "max_tokens": 20, "client": "client", "tokenizer": "words"}

    def ids(rows, name):
        data = load("text", config | {"file": _jsonl(tmp_path / name, rows).name})
        texts = [tuple(_row(data, at)[0]) for at in range(len(data))]
        return dict(zip(data.example_id.tolist(), texts, strict=True)), data

    before, whole = ids(rows, "a.jsonl")
    order = np.random.default_rng(0).permutation(30).tolist()
    after, moved = ids([rows[i] for i in order], "b.jsonl")
    assert before == after and moved.digest == whole.digest
    left, _ = ids([row for at, row in enumerate(rows) if at != 7], "c.jsonl")
    assert left.keys() < before.keys() and len(before) - len(left) == 1
    assert set(whole.columns) == {"client"}


def test_a_group_column_is_what_the_split_is_drawn_by(tmp_path):
    rows = [{"text": f"line {i}", "group": f"book {i % 6}"} for i in range(60)]
    data = load("text", {"root": str(tmp_path), "file": _jsonl(tmp_path / "t.jsonl", rows).name, "group": "group"})
    sides = {g: set(data.split[data.columns["group"] == g].tolist()) for g in np.unique(data.columns["group"])}
    assert all(len(s) == 1 for s in sides.values()) and {"train", "test"} == set.union(*sides.values())
    assert "by group" in data.provenance["split"]


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_is_refused(tmp_path):
    rows = [{"prompt": "p" * n, "answer": "a" * 5} for n in (3, 30, 8, 9)]
    config = {"root": str(tmp_path), "prompt": "prompt", "answer": "answer", "max_tokens": 16}
    data = load("text", config | {"file": _jsonl(tmp_path / "t.jsonl", rows).name})
    assert [len(_row(data, at)[0]) for at in range(4)] == [11, 16, 16, 16]
    assert all(len(_row(data, at)[1]) == 6 for at in range(4))
    assert any("2 prompts lose their beginning" in note for note in data.provenance["notes"])
    rows += [{"prompt": "p", "answer": "a" * n} for n in (13, 14, 40)]
    with pytest.raises(DataError, match=r"2 answers are longer than max_tokens = 16.*t\.jsonl rows 6, 7"):
        load("text", config | {"file": _jsonl(tmp_path / "t.jsonl", rows).name})


def _folder(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_a_folder_of_texts(tmp_path):
    files = {f"{who}/{i}.txt": f"Dear {who}, this is letter {i}.\r\nYours" for who in ("ann", "bo") for i in range(6)}
    root = _folder(tmp_path / "letters", files | {".hidden": "x"})
    found = detect(root, Asked(owner="1"))
    assert (found.name, found.config) == ("text", {"root": str(root), "owner": "1"})
    data = load(found.name, found.config)
    assert data.owner.tolist() == ["ann"] * 6 + ["bo"] * 6 and data.origin.tolist() == sorted(files)
    assert Bytes().decode(_row(data, 0)[0]) == "Dear ann, this is letter 0.\nYours"
    given_ = _folder(tmp_path / "given", {f"{s}/{i}.txt": f"{s} {i}" for s in ("train", "test") for i in range(4)})
    assert load("text", {"root": str(given_)}).split.tolist() == ["test"] * 4 + ["train"] * 4
    cut = load("text", {"root": str(root), "max_tokens": 20})
    assert set(cut.columns["group"].tolist()) == set(files) and len(cut) > 12


@pytest.mark.parametrize(
    ("files", "config", "says"),
    [
        (
            {"a.txt": b"\xff\xfe", "b.txt": b"ok \x80", "c.txt": "fine"},
            {},
            r"2 of 3 files are not UTF-8: a\.txt .*b\.txt",
        ),
        ({"a.txt": " \n", "b.txt": "", "c.txt": "fine"}, {}, r"2 texts are empty \(a\.txt, b\.txt\)"),
        ({"a/a.txt": "x y", "b.txt": "z"}, {"owner": "1"}, r"1 texts lie in no folder of level 1.*b\.txt"),
        ({"a.md": "x"}, {}, r"holds no \.txt files"),
        ({"a.txt": "x y " * 300}, {}, "all 3 examples are of the group"),
    ],
)
def test_bad_folders_are_refused_with_all_that_is_wrong(tmp_path, files, config, says):
    root = _folder(tmp_path / "f", files)
    with pytest.raises(DataError, match=says):
        load("text", {"root": str(root), **config})


@pytest.mark.parametrize(
    ("rows", "config", "says"),
    [
        ([{"text": "a b"}, {"text": None}, {"text": " "}], {}, r"'text' is missing.*row 2"),
        ([{"text": "a b"}, {"text": "b c"}, {"text": "  "}], {}, r"1 texts are empty.*row 3"),
        ([{"text": 3}, {"text": 4}], {"text": "text"}, "'text' is Int64, not text"),
        ([{"words": "a", "n": 1}], {}, "none of the columns 'words', 'n' is called text"),
        ([{"text": "a", "n": 1}], {"text": "txt"}, "no column 'txt'"),
        ([{"text": "a", "n": 1}], {"client": "who"}, "no column 'who'"),
        (
            [{"text": "a", "client": None}, {"text": "b", "client": "c"}],
            {"client": "client"},
            r"'client' is missing.*row 1",
        ),
        ([{"text": "a", "id": 1.5}], {"id": "id"}, "whole numbers, not 1.5"),
        ([{"text": "a " * 400, "id": 1}, {"text": "b", "id": 2}], {"id": "id"}, "a piece cannot have the id"),
    ],
)
def test_bad_tables_are_refused_by_row(tmp_path, rows, config, says):
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=says):
        load("text", {"root": str(tmp_path), "file": "t.parquet", **config})


@pytest.mark.parametrize(
    "config",
    [
        {"file": "t.jsonl", "prompt": "p"},
        {"file": "t.jsonl", "text": "t", "prompt": "p", "answer": "a"},
        {"file": "t.jsonl", "prompt": "p", "answer": "p"},
        {"text": "t"},
        {"max_tokens": 3},
    ],
)
def test_fields_that_contradict_each_other_are_refused(tmp_path, config):
    with pytest.raises(ConfigError, match="TextConfig"):
        load("text", {"root": str(tmp_path), **config})


@pytest.mark.parametrize(
    ("columns", "is_text"),
    [
        (["text", "owner"], True),
        (["Question", "Answer", "split"], True),
        (["text", "label"], False),
        (["text", "age"], False),
        (["prompt", "price"], False),
        (["height", "weight"], False),
        (["text", "title", "url"], True),
    ],
)
def test_a_table_is_one_of_texts_only_where_nothing_else_could_be_learnt(tmp_path, columns, is_text):
    pl.DataFrame({name: ["some words, here", "and there"] for name in columns}).write_csv(tmp_path / "t.csv")
    assert is_texts(tmp_path / "t.csv") == is_text


def test_shards_of_a_table_called_txt_stay_a_table(tmp_path):
    for at in range(2):
        (tmp_path / f"part{at}.txt").write_text("a,b,label\n" + "\n".join(f"{i},{i * 2},{i % 2}" for i in range(20)))
    assert not is_texts(tmp_path)
    for file in tmp_path.iterdir():
        file.write_text("Dear Ann, how are you?\nFine, " + file.name)
    assert not is_texts(tmp_path)  # equal first lines of two cells are a header
    (tmp_path / "part0.txt").write_text("Dear Bo, it rains.\nFine")
    assert is_texts(tmp_path)


@given(text=st.text())
def test_bytes_and_words_say_where_each_token_ends(text):
    for made in (Bytes(), Words()):
        ids, ends = made.encode(text)
        assert len(ids) == len(ends) and (np.diff(ends) >= 0).all() and (not len(ends) or ends[-1] <= len(text))
    assert Bytes().decode(Bytes().encode(text).ids.tolist()) == text
    words = Words()
    ids, ends = words.encode(text)
    starts = [0, *ends[:-1]][: len(ends)]
    assert [text[a:b].split() for a, b in zip(starts, ends, strict=True)] == [[words.words[i - 5]] for i in ids]
