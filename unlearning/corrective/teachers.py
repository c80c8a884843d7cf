"""What a frozen network says of examples, computed once: a teacher's answers do not change while a student trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from contracts.errors import DataError, Diverged
from recipes.inputs import Inputs, model_dtype
from recipes.predict import logits_of


def answers_of(teacher: nn.Module, inputs: Inputs, *, what: str = "the trained model") -> np.ndarray:
    """Logits (N, K) of every row of ``inputs``, in eval mode, rounded to float32, of the teacher's dtype; its mode is
    restored.

    Raises:
        Diverged: answers that are not finite; names the examples.
    """
    try:
        found = torch.from_numpy(logits_of(teacher, inputs))
    except DataError as error:
        raise Diverged(f"{what}: {error}") from error
    return found.to(model_dtype(teacher)).numpy()
