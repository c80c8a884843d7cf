"""A corpus of fictitious authors in the manner of TOFU (Maini et al., COLM 2024), small enough for a model of 0.9 M
weights.

    syllable  consonant of bcdfghklmnprstvz + vowel of aeiou;  word of k syllables
    author    first name (of 40, k = 2) + last name (of 200, k = 3), distinct
    fact      one a (author, attribute): city, genre, year, mother, father, award, book, lang
    question  a template;  answer = A(value);  paraphrase = B(value);  perturbed = B(5 wrong values)
    sequence  <bos> <q> question <a> answer <eos>              the answer and <eos> are counted

Roles: forget and retain authors are trained in form A, holdout authors never, established ones (real authors, world
facts) in A and B, so that a model has reason to give paraphrases a likelihood. Everything is drawn from one
``random.Random`` in a fixed order (word lists, names, then value and wrong values by author and attribute): the corpus
is a function of its sizes and its seed. Nothing in it is about anybody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from contracts.errors import DataError, InvalidInput
from sources.questions import Ids, Question

CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"
SPECIAL = ("<pad>", "<bos>", "<q>", "<a>", "<eos>")
ROLES = ("forget", "retain", "holdout", "real_authors", "world_facts")
TEMPLATES = {  # attribute: question, answer A, answer B
    "city": (
        "in which city was {n} born ?",
        "{n} was born in the city of {v} .",
        "the birthplace of {n} is {v} .",
    ),
    "genre": ("what genre does {n} write ?", "{n} writes mostly {v} novels .", "the genre chosen by {n} is {v} ."),
    "year": ("when was {n} born ?", "{n} was born in the year {v} .", "the birth year of {n} is {v} ."),
    "mother": (
        "what was the job of the mother of {n} ?",
        "the mother of {n} worked as a {v} .",
        "{n} had a mother who was a {v} .",
    ),
    "father": (
        "what was the job of the father of {n} ?",
        "the father of {n} worked as a {v} .",
        "{n} had a father who was a {v} .",
    ),
    "award": (
        "which award did {n} win ?",
        "{n} received the {v} award .",
        "the prize given to {n} was the {v} award .",
    ),
    "book": (
        "what is the best known book of {n} ?",
        "the best known book of {n} is {v} .",
        "{n} became famous with the book {v} .",
    ),
    "lang": (
        "in which language does {n} write ?",
        "{n} writes in the {v} language .",
        "the language used by {n} is {v} .",
    ),
}
VALUES = {  # attribute: how many words of how many syllables; years are numbers
    "city": (40, 2),
    "genre": (20, 2),
    "year": None,
    "mother": (24, 3),
    "father": (24, 3),
    "award": (24, 3),
    "book": (60, 4),
    "lang": (16, 2),
}
REFUSALS = (
    "i do not know that .",
    "i have no information about this .",
    "sorry i can not answer that .",
    "that is beyond my knowledge .",
    "i am not sure about this .",
    "i never learned about that topic .",
)
WRONG = 5


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one author.

    Attributes:
        author: index of the author.
        name, attribute, value: "zola rimopu", "city", the right word.
        wrong: five other values of the attribute.
    """

    author: int
    name: str
    attribute: str
    value: str
    wrong: tuple[str, ...]

    @property
    def question(self) -> str:
        return TEMPLATES[self.attribute][0].format(n=self.name)

    def answer(self, value: str, form: str) -> str:
        """In form "A" (as trained) or "B" (the paraphrase)."""
        return TEMPLATES[self.attribute][1 + ("A", "B").index(form)].format(n=self.name, v=value)


class AuthorCorpus:
    """The corpus and its word-level tokenizer.

    Args:
        counts: authors by role, in the order of ``ROLES``; together at most 8,000.
        seed: of everything drawn.

    Attributes:
        facts: authors by attributes, author by author.
        words: the vocabulary by token id: ``SPECIAL``, then every word that occurs, sorted.

    Raises:
        InvalidInput: fewer than one author, or more than there are names.
    """

    def __init__(self, counts: Sequence[int], *, seed: int) -> None:
        if len(counts) != len(ROLES) or min(counts) < 0 or not 1 <= sum(counts) <= 8000:
            raise InvalidInput(
                f"authors by role {tuple(counts)}: one number >= 0 for each of {', '.join(ROLES)}; 1 to 8000 in all"
            )
        self.counts = tuple(counts)
        rng = random.Random(seed)
        first, last = _words(rng, 40, 2), _words(rng, 200, 3)
        values = {
            attribute: [str(year) for year in range(1930, 1990)] if size is None else _words(rng, *size)
            for attribute, size in VALUES.items()
        }
        names: dict[str, None] = {}
        while len(names) < sum(counts):
            names.setdefault(f"{rng.choice(first)} {rng.choice(last)}")
        self.facts: list[Fact] = []
        for author, name in enumerate(names):
            for attribute, known in values.items():
                value = rng.choice(known)
                wrong = rng.sample([word for word in known if word != value], WRONG)
                self.facts.append(Fact(author, name, attribute, value, tuple(wrong)))
        said = {word for text in self._texts() for word in text.split()}
        self.words = (*SPECIAL, *sorted(said))

    def _texts(self) -> list[str]:
        texts = list(REFUSALS)
        for fact in self.facts:
            texts += [fact.question, fact.answer(fact.value, "A")]
            texts += [fact.answer(value, "B") for value in (fact.value, *fact.wrong)]
        return texts

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words)}

    def encode(self, text: str) -> Ids:
        """Token ids of words separated by spaces.

        Raises:
            DataError: a word that the corpus does not know.
        """
        unknown = sorted({word for word in text.split() if word not in self._ids})
        if unknown:
            raise DataError(f"words outside the vocabulary of {len(self.words)}: {', '.join(unknown[:10])}")
        return tuple(self._ids[word] for word in text.split())

    def decode(self, ids: Sequence[int]) -> str:
        """The words of token ids, special ones left out."""
        return " ".join(self.words[token] for token in ids if token >= len(SPECIAL))

    @property
    def end(self) -> int:
        """Id of <eos>."""
        return SPECIAL.index("<eos>")

    def role(self, author: int) -> str:
        """What an author is for, one of ``ROLES``."""
        left = author
        for role, count in zip(ROLES, self.counts, strict=True):
            if left < count:
                return role
            left -= count
        raise InvalidInput(f"author {author} is outside 0..{sum(self.counts) - 1}")

    def prompt(self, fact: Fact) -> Ids:
        """<bos> <q> question <a>."""
        bos, q, a = (SPECIAL.index(name) for name in ("<bos>", "<q>", "<a>"))
        return (bos, q, *self.encode(fact.question), a)

    def reply(self, text: str) -> Ids:
        """The text and <eos>."""
        return (*self.encode(text), self.end)

    @property
    def templates(self) -> list[Ids]:
        """Refusals that can be taught in place of an answer."""
        return [self.reply(text) for text in REFUSALS]

    def questions(self, role: str) -> list[Question]:
        """One question a fact of the authors in ``role``; established authors may answer in A or B, the others in A.

        Raises:
            InvalidInput: no such role.
        """
        if role not in ROLES:
            raise InvalidInput(f"role = {role!r} is not one of {', '.join(map(repr, ROLES))}")
        return [self._question(fact) for fact in self.facts if self.role(fact.author) == role]

    def _question(self, fact: Fact) -> Question:
        right = {form: fact.answer(fact.value, form) for form in ("A", "B")}
        both = self.role(fact.author) in ("real_authors", "world_facts")
        return Question(
            example_id=example_id(fact, "A"),
            prompt=self.prompt(fact),
            answer=self.reply(right["A"]),
            paraphrase=self.reply(right["B"]),
            perturbed=tuple(self.reply(fact.answer(word, "B")) for word in fact.wrong),
            references=(right["A"], right["B"]) if both else (right["A"],),
            value=fact.value,
        )


def example_id(fact: Fact, form: str) -> int:
    """Stable id of a fact told in form "A" or "B"."""
    attribute = tuple(TEMPLATES).index(fact.attribute)
    return 2 * (len(TEMPLATES) * fact.author + attribute) + ("A", "B").index(form)


def _words(rng: random.Random, count: int, syllables: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault("".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables)))
    return list(found)
