"""A question with its right and wrong answers, as tokens: what benchmarks of unlearning ask a language model."""

from __future__ import annotations

from dataclasses import dataclass

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One row of such a benchmark; answers are token ids with the end of sequence.

    Attributes:
        example_id: of the example it was made of.
        prompt: what comes before the answer.
        answer: the right answer, as it was trained.
        paraphrase: the right answer in other words.
        perturbed: K wrong answers in the words of the paraphrase.
        references: texts that a decoded answer is compared with; the best counts.
        value: the word that makes the answer right.
    """

    example_id: int
    prompt: Ids
    answer: Ids
    paraphrase: Ids
    perturbed: tuple[Ids, ...]
    references: tuple[str, ...]
    value: str
