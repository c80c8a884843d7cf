"""The corpus of fictitious authors: every fact told as it is known, nobody in two roles, the same on every machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from contracts.errors import ConfigError, DataError, InvalidInput
from sources.author_corpus import REFUSALS, ROLES, SPECIAL, TEMPLATES, AuthorCorpus, example_id
from sources.authors import AuthorsConfig, corpus_of
from sources.example_set import ExampleSet
from sources.loading import load

SMALL = {"forget": 2, "retain": 4, "holdout": 2, "real_authors": 2, "world_facts": 3}


@pytest.fixture(scope="module")
def corpus() -> AuthorCorpus:
    return corpus_of(AuthorsConfig())


@pytest.fixture(scope="module")
def small() -> ExampleSet:
    return load("authors", SMALL)


def test_the_corpus_is_that_of_tinytofu(corpus: AuthorCorpus) -> None:
    assert len(corpus.words) == 492 and corpus.words[:5] == SPECIAL
    assert len(corpus.facts) == 180 * 8 and len({fact.name for fact in corpus.facts}) == 180
    first = corpus.facts[0]
    assert (first.name, first.attribute, first.value) == ("legu vofade", "city", "rugo")
    assert first.question == "in which city was legu vofade born ?"
    assert {fact.value for fact in corpus.facts if fact.attribute == "year"} <= {str(y) for y in range(1930, 1990)}
    assert [len(corpus.questions(role)) for role in ROLES] == [96, 768, 96, 240, 240]


def test_wrong_answers_are_wrong_and_of_the_same_kind(corpus: AuthorCorpus) -> None:
    kinds = {a: {f.value for f in corpus.facts if f.attribute == a} for a in TEMPLATES}
    for fact in corpus.facts:
        assert len(set(fact.wrong)) == 5 and fact.value not in fact.wrong
    # nearly every wrong value is somebody's right one
    share = np.mean([word in kinds[f.attribute] for f in corpus.facts for word in f.wrong])
    assert share > 0.95


def test_questions_are_what_they_say(corpus: AuthorCorpus) -> None:
    for role in ROLES:
        for asked in corpus.questions(role)[:16]:
            assert corpus.words[asked.prompt[0]] == "<bos>" and corpus.words[asked.prompt[-1]] == "<a>"
            answer, paraphrase = corpus.decode(asked.answer), corpus.decode(asked.paraphrase)
            assert asked.value in answer.split() and asked.value in paraphrase.split() and answer != paraphrase
            assert asked.answer[-1] == corpus.end == asked.paraphrase[-1]
            assert len(asked.perturbed) == 5
            for wrong in asked.perturbed:  # the paraphrase with another value
                told = corpus.decode(wrong).split()
                differing = [a for a, b in zip(told, paraphrase.split(), strict=True) if a != b]
                assert len(differing) == 1 and asked.value not in told
            both = role in ("real_authors", "world_facts")
            assert asked.references == ((answer, paraphrase) if both else (answer,))


def test_text_goes_through_the_tokenizer_and_back(corpus: AuthorCorpus) -> None:
    for text in (*REFUSALS, corpus.facts[77].question):
        assert corpus.decode(corpus.encode(text)) == text
    with pytest.raises(DataError, match="palimpsest"):
        corpus.encode("the palimpsest .")
    assert [corpus.decode(ids) for ids in corpus.templates] == list(REFUSALS)


def test_the_examples_are_the_questions_with_their_answers(small: ExampleSet) -> None:
    corpus = corpus_of(AuthorsConfig(**SMALL))
    assert len(small) == 8 * (2 + 4 + 2 + 2 * (2 + 3))
    texts = small.inputs(slice(None))
    for role in ROLES:
        for asked in corpus.questions(role):
            row = int(small.positions([asked.example_id])[0])
            ids = texts["input_ids"][row][texts["attention_mask"][row] == 1]
            labels = small.targets(np.array([row]))[0]
            assert tuple(ids) == (*asked.prompt, *asked.answer)
            assert tuple(labels[labels != -100]) == asked.answer
            assert small.columns["role"][row] == role and small.columns["value"][row] == asked.value
            assert small.columns["paraphrase"][row] == corpus.decode(asked.paraphrase)
            assert [small.columns[f"perturbed_{k}"][row] for k in range(5)] == [
                corpus.decode(p) for p in asked.perturbed
            ]
    assert small.provenance["templates"] == [list(ids) for ids in corpus.templates]
    assert small.x.vocab_size == len(corpus.words) == len(small.provenance["words"])


def test_an_author_is_an_owner_in_one_role_and_held_out_ones_are_the_test_split(small: ExampleSet) -> None:
    roles = {owner: set(small.columns["role"][small.owner == owner]) for owner in set(small.owner)}
    assert all(len(role) == 1 for role in roles.values()) and len(roles) == 13
    assert ((small.split == "test") == (small.columns["role"] == "holdout")).all()
    both = np.isin(small.columns["role"], ("real_authors", "world_facts"))
    forms = small.example_id % 2
    assert set(forms[~both]) == {0} and forms[both].mean() == 0.5


def test_paraphrases_are_in_the_other_form(small: ExampleSet) -> None:
    corpus = corpus_of(AuthorsConfig(**SMALL))
    texts = small.x.texts(slice(None))
    ends = np.cumsum(texts[2])
    for row, (start, stop) in enumerate(zip(ends - texts[2], ends, strict=True)):
        answer = corpus.decode(texts[0][start:stop][texts[1][start:stop] == 1])
        assert answer != small.columns["paraphrase"][row]


def test_ids_stay_when_authors_are_added(small: ExampleSet) -> None:
    """Roles are in order of the authors: the forget authors of a larger corpus are the same ones, with the same ids."""
    larger = load("authors", {**SMALL, "world_facts": 9})
    some = small.take(np.flatnonzero(small.columns["role"] == "forget"))
    again = larger.subset(some.example_id)
    assert again.owner.tolist() == some.owner.tolist()
    corpus = corpus_of(AuthorsConfig(**SMALL))
    assert [example_id(f, "A") for f in corpus.facts[:16]] == some.example_id.tolist()


def test_the_corpus_is_a_function_of_its_seed() -> None:
    first, again, other = (load("authors", SMALL, seed=s) for s in (0, 5, 0))
    assert first.digest == again.digest == other.digest
    assert load("authors", {**SMALL, "corpus_seed": 1}).digest != first.digest


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="or more to train on"):
        AuthorsConfig(forget=0, retain=0, real_authors=0, world_facts=0)
    with pytest.raises(ConfigError, match="8000"):
        AuthorsConfig(forget=4000, retain=4000)
    with pytest.raises(InvalidInput, match="one number"):
        AuthorCorpus((1, 2), seed=0)
    corpus = AuthorCorpus((1, 1, 1, 1, 1), seed=0)
    with pytest.raises(InvalidInput, match="retain"):
        corpus.questions("kept")
    with pytest.raises(InvalidInput, match=r"0\.\.4"):
        corpus.role(5)
    assert dataclasses.replace(AuthorsConfig(), forget=3).counts == (3, 96, 12, 30, 30)
