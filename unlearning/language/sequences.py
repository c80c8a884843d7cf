"""Prompts and answers of a language data set, as batches: what the descent and the measurements read.

    sequence = prompt ++ answer          prompt: the tokens before the first counted one
    labels   = the token itself where it counts, -100 on the prompt and on padding (at the right)

A batch is indexed once: ids, mask and labels come from one gather of one list of rows. Indexing them one after the
other with fresh random rows is an easy slip in retain terms, trains noise, and makes every method with one look
worse than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from contracts.errors import DataError
from recipes.inputs import Inputs
from sources.example_set import ExampleSet
from tasks.base import Batch, require
from tasks.language import NOT_COUNTED

_BLOCK = 256  # sequences looked at together


class Sequences:
    """The token sequences of a data set in the order of their ids, whatever order they came in.

    Args:
        data: examples of a task that gives "tokens".
        device: where batches are wanted.
        who: the method, for messages.

    Attributes:
        example_id: (N,) int64, ascending.

    Raises:
        NotApplicable: the examples are no token sequences.
        DataError: tokens outside the vocabulary, or a sequence in which nothing counts.
    """

    def __init__(self, data: ExampleSet, *, device: torch.device | str, who: str) -> None:
        require(data, who, "tokens")
        data.check_targets()
        self.data, self.device, self.who = data.by_id(), torch.device(device), who
        self.example_id: np.ndarray = self.data.example_id
        self._inputs = Inputs(self.data, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        return len(self.example_id)

    def batch(self, rows: Tensor) -> Batch:
        """The sequences ``rows`` (B,) of positions, padded to the longest of them."""
        return self._inputs.batch(rows)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The tokens of each sequence before its first counted one.

        Raises:
            DataError: a sequence without prompt or answer, or with a prompt that goes on after the answer has begun.
        """
        return [prompt for start in range(0, len(self), _BLOCK) for prompt in self._prompts(start)]

    def _prompts(self, start: int) -> list[list[int]]:
        batch = self.batch(torch.arange(start, min(start + _BLOCK, len(self))))
        real = batch.inputs["attention_mask"].bool()
        counted = batch.targets != NOT_COUNTED
        first = counted.int().argmax(1)
        after = torch.arange(counted.shape[1], device=self.device)[None] >= first[:, None]
        bad = (first == 0) | (counted != (real & after)).any(1)
        if bad.any():
            raise DataError(
                f"{self.who} needs a prompt, and an answer that ends the sequence",
                example_ids=batch.example_id[bad].tolist(),
            )
        ids = batch.inputs["input_ids"].cpu()
        return [row[:n].tolist() for row, n in zip(ids, first.tolist(), strict=True)]

    @cached_property
    def answers(self) -> list[list[int]]:
        """The counted tokens of each sequence, after its prompt.

        Raises:
            DataError: as :attr:`prompts`.
        """
        found, prompts = [], self.prompts
        for start in range(0, len(self), _BLOCK):
            batch = self.batch(torch.arange(start, min(start + _BLOCK, len(self))))
            lengths = batch.inputs["attention_mask"].sum(1).tolist()
            ids = batch.inputs["input_ids"].tolist()
            found += [row[len(prompts[start + n]) : lengths[n]] for n, row in enumerate(ids)]
        return found

    def answered(self, rows: Tensor, answers: Sequence[Sequence[int]]) -> Batch:
        """The prompts of ``rows`` with other answers (token ids, end of sequence included)."""
        chosen = rows.tolist()
        prompts = [self.prompts[row] for row in chosen]
        return padded(prompts, answers, example_id=self.example_id[chosen], device=self.device)


def padded(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    example_id: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    pad: int = 0,
) -> Batch:
    """Prompts and answers as one batch, padded at the right.

    Args:
        prompts, answers: token ids, one of each a sequence; what is counted is the answer.
        example_id: (B,) int64; 0 .. B - 1 when not given.
        pad: id of the padding, which the attention mask hides.

    Raises:
        DataError: an empty prompt or answer.
    """
    if any(not p or not a for p, a in zip(prompts, answers, strict=True)):
        raise DataError("a sequence without prompt or answer: nothing to predict, or nothing to predict it from")
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = np.full((len(prompts), longest), pad, np.int64)
    labels = np.full_like(ids, NOT_COUNTED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = [*prompt, *answer]
        labels[row, len(prompt) : end] = answer
    lengths = np.array([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])
    mask = (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)
    names = np.arange(len(prompts)) if example_id is None else example_id
    return Batch(
        inputs={"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)},
        targets=torch.from_numpy(labels).to(device),
        example_id=torch.from_numpy(np.asarray(names, np.int64)).to(device),
    )


def template_answers(data: ExampleSet, given: Sequence[Sequence[int]], *, who: str) -> list[list[int]]:
    """The template answers as token ids: those of the configuration, else those that the data set brings.

    A data set brings them as ``provenance["templates"]``, lists of token ids, end of sequence included.

    Raises:
        NotApplicable: examples that are no texts.
        DataError: there are none, or one is empty.
    """
    require(data, who, "tokens")
    found = [list(map(int, ids)) for ids in given or data.provenance.get("templates", ())]
    if not found or not all(found):
        raise DataError(
            f"{who} needs template answers ('I do not know that'): token ids, end of sequence included, in its field "
            f"templates, or with the data ({data.name} brings none)"
        )
    return found
