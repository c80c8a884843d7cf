"""Fictitious authors as examples: questions about them and their answers, for a language model that must forget some.

    example   <bos> <q> question <a> answer <eos>, the answer and <eos> counted
    owner     the author                     id   2 (8 author + attribute) + (0: form A, 1: form B)
    columns   group      the attribute asked for            role        forget, retain, holdout, real_authors,
              world_facts value      the right word                     paraphrase  the right answer in other words
              perturbed_0 .. perturbed_4   wrong answers, in the words of the paraphrase

Authors in ``holdout`` are the test split; everybody else's answers are trained, in form A, and of the established ones
(real_authors, world_facts) in B as well. Template answers ("i do not know that .") come with the data as token ids, in
``provenance["templates"]``. The corpus itself is in ``sources.author_corpus``: ``corpus_of(config)`` gives its
questions and its tokenizer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from contracts.errors import ConfigError
from contracts.methods import SourceSpec, source
from contracts.params import Config, param
from sources.assemble import assemble
from sources.author_corpus import ROLES, WRONG, AuthorCorpus, Fact, example_id
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens

_OTHER = {"A": "B", "B": "A"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorsConfig(Config):
    """Authors by role; the defaults are those of TinyTOFU."""

    forget: int = param(12, ge=0, le=8000, unit="authors", doc="trained, to be forgotten")
    retain: int = param(96, ge=0, le=8000, unit="authors", doc="trained, to be kept")
    holdout: int = param(12, ge=1, le=8000, unit="authors", doc="never trained: the test split")
    real_authors: int = param(30, ge=0, le=8000, unit="authors", doc="trained in both forms; asked as real authors")
    world_facts: int = param(30, ge=0, le=8000, unit="authors", doc="trained in both forms; asked as world facts")
    corpus_seed: int = param(0, ge=0, lt=2**31, doc="of names, facts and wrong answers")

    def check(self) -> None:
        if sum(self.counts) > 8000 or sum(self.counts) == self.holdout:
            raise ConfigError(
                f"AuthorsConfig: {sum(self.counts)} authors in all, {self.holdout} of them never trained; at most "
                "8000, and one or more to train on"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Authors by role, in the order of ``ROLES``."""
        return tuple(getattr(self, role) for role in ROLES)


def corpus_of(config: AuthorsConfig) -> AuthorCorpus:
    """The corpus behind the examples: questions, wrong answers, tokenizer."""
    return AuthorCorpus(config.counts, seed=config.corpus_seed)


@source(
    SourceSpec(
        name="authors",
        doc="Fictitious authors, asked about in words: a language model's question-answer pairs; needs no file.",
        source="in the manner of Maini et al., TOFU, COLM 2024, arXiv 2401.06121; generated, nobody's data",
        config=AuthorsConfig,
        self_contained=True,
    )
)
def authors(*, config: AuthorsConfig, seed: int) -> ExampleSet:
    """The corpus as examples; the same for every ``seed`` (its own is ``corpus_seed``).

    Raises:
        ConfigError: no author to train on, or more authors than there are names.
    """
    corpus = corpus_of(config)
    told = [(fact, form) for fact in corpus.facts for form in _forms(corpus, fact)]
    prompts = [corpus.prompt(fact) for fact, _ in told]
    replies = [corpus.reply(fact.answer(fact.value, form)) for fact, form in told]
    roles = [corpus.role(fact.author) for fact, _ in told]
    columns = {
        "role": roles,
        "group": [fact.attribute for fact, _ in told],
        "value": [fact.value for fact, _ in told],
        "paraphrase": [fact.answer(fact.value, _OTHER[form]) for fact, form in told],
        **{f"perturbed_{k}": [fact.answer(fact.wrong[k], _OTHER[form]) for fact, form in told] for k in range(WRONG)},
    }
    return assemble(
        Tokens.of(
            [np.array([*p, *r], np.int32) for p, r in zip(prompts, replies, strict=True)],
            [np.repeat([0, 1], [len(p), len(r)]).astype(np.uint8) for p, r in zip(prompts, replies, strict=True)],
            vocab_size=len(corpus.words),
            encoding=hashlib.sha256("\n".join(corpus.words).encode()).hexdigest(),
        ),
        np.zeros(len(told), np.int64),
        name="authors",
        task="language",
        class_names=(),
        seed=seed,
        test_fraction=0.5,
        example_id=np.array([example_id(fact, form) for fact, form in told], np.int64),
        split=np.where(np.array(roles) == "holdout", "test", "train"),
        owner=np.array([fact.name for fact, _ in told]),
        columns={name: np.array(values) for name, values in columns.items()},
        provenance={
            "source": "authors",
            "split": "authors in holdout are the test split",
            "licence": "public domain (random syllables)",
            "templates": [list(ids) for ids in corpus.templates],
            "words": list(corpus.words),
        },
    )


def _forms(corpus: AuthorCorpus, fact: Fact) -> tuple[str, ...]:
    return ("A", "B") if corpus.role(fact.author) in ("real_authors", "world_facts") else ("A",)
