"""What a frozen network says of examples, computed once: a teacher's answers do not change while a student trains.

logits (N, K) in eval mode, float32; of a batch, by example id
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sources.example_set import ExampleSet
from tasks.base import Batch
from unlearning.descent import finite_logits


@dataclass(frozen=True, eq=False)
class Teacher:
    """Answers of a network on a set of examples.

    Attributes:
        example_id: int64 (N,), ascending, on the CPU.
        answers: (N, K) in that order, on the network's device and of its dtype.
    """

    example_id: Tensor
    answers: Tensor

    @classmethod
    def of(cls, model: nn.Module, data: ExampleSet, *, what: str = "the trained model") -> Teacher:
        """``model`` on ``data``; its mode is restored.

        Raises:
            Diverged: answers that are not finite; names the examples.
        """
        ordered = data.by_id()
        like = next(model.parameters())
        logits = torch.from_numpy(finite_logits(model, ordered, what=what))
        return cls(torch.from_numpy(ordered.example_id), logits.to(like.device, like.dtype))

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) of the examples of a batch, all of which are among those of this teacher."""
        return self.answers[torch.searchsorted(self.example_id, batch.example_id).to(self.answers.device)]
