"""Language: every counted token of a sequence is to be predicted from the tokens before it.

    z_t = logits after tokens 0 .. t          p_t = softmax(z_{t-1})[x_t]          C = the counted positions t >= 1

    loss            -(1/|C|) sum_{t in C} log p_t                                  mean NLL a token, nats
    signal          (1/|C|) sum_{t in C} [log p_t - log(1 - p_t)]                  mean token log-odds
    log_likelihood  (1/|C|) sum_{t in C} log p_t                                   a mean: totals over hundreds of
                    tokens saturate RMIA
    quality         share of C where the largest logit is the token's, the first of equals

The mean of the log-odds is to a sequence what the logit-scaled confidence of Carlini et al. (IEEE S&P 2022) is to one
label: a sum of many terms that are themselves near normal, so it is unbounded and near normal over models, where the
loss has a floor at 0 that members crowd against. In float64 and in log space (``tasks.signals``), from the logits of
the other tokens: 1 - p_t of a float32 softmax is 0 for a memorised token.

Shapes: B sequences, T tokens, V words. Targets are labels (B, T) int64: the token itself where it counts, -100 where it
    does
not (prompt, padding). The shift by one is done here and nowhere else: the label at t is compared with the logits
at t - 1, and the label at 0, which nothing predicts, is never counted. The numbers of a sequence depend on its own
tokens alone, so padding and neighbours in a batch do not change them beyond the rounding of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import READING, Batch, Constants, Examples, OutputTask, Reading, answers
from tasks.signals import log_odds, loss_from_log_odds, token_statistics

if TYPE_CHECKING:
    from torch import Tensor, nn

NOT_COUNTED = -100
_TOKENS = 2048  # run at a time: their logits are 0.4 GB for 50,000 words


def logits_of(outputs: Any) -> Any:
    """Logits (B, T, V) of what a model answers: the tensor itself, or the field ``logits`` (transformers)."""
    return getattr(outputs, "logits", outputs)


def token_log_probs(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of every token given those before it, with gradient: the shift by one.

    Args:
        outputs: what the model answers to sequences (B, T): logits (B, T, V), or an object that has them as ``logits``.
        labels: (B, T) int64 in [0, V), or -100 where a token is not counted.

    Returns:
        (B, T - 1) log-probabilities of tokens 1 .. T - 1, float32 or wider, 0 where not counted; and (B, T - 1) bool,
        counted.

    Raises:
        DataError: a sequence without a counted token after its first; says in which rows of the batch.
    """
    from torch.nn import functional as F

    logits = logits_of(outputs)[:, :-1]
    aims = labels[:, 1:]
    counted = aims != NOT_COUNTED
    if not bool(counted.any(dim=1).all()):
        rows = (~counted.any(dim=1)).nonzero().flatten().tolist()
        raise DataError(f"no token is counted after the first one in rows {rows[:10]} of a batch of {len(labels)}")
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    # Tokens in a row, words last as they lie: over words in the middle the same takes twice the time.
    nll = F.cross_entropy(logits.flatten(0, 1), aims.flatten(), ignore_index=NOT_COUNTED, reduction="none")
    return -nll.view(aims.shape), counted


@task(
    TaskSpec(
        name="language",
        doc="The next token of a sequence, where it counts.",
        source="Carlini et al., IEEE S&P 2022 (signal of one label), averaged over tokens",
        gives=(*EVERY_TASK, "tokens"),
        quality="token accuracy",
        loss="mean negative log-likelihood a token (nats)",
    )
)
class Language(OutputTask):
    """See the file."""

    def losses_of(self, outputs: Any, targets: Any) -> Tensor:
        """Mean NLL (B,) of the counted tokens from logits (B, T, V) and labels (B, T).

        Raises:
            DataError: a sequence without a counted token.
        """
        logp, counted = token_log_probs(outputs, targets)
        return -logp.sum(1) / counted.sum(1)

    def read(self, model: nn.Module, batch: Batch) -> Reading:
        """As every task; some thousand tokens are run at a time, and only the logits of counted ones leave the
        device."""
        parts = [_reading(*some).values for some in _counted_logits(model, batch)]
        return Reading(np.concatenate(parts) if parts else np.empty((0, len(READING))))

    def read_tokens(self, model: nn.Module, batch: Batch, *, factor: float = 1.0) -> NDArray[np.float32]:
        """(B, T, 3), run as :meth:`read` is; at t what is said of token t, so that the first is NaN."""
        found = np.full((*batch.targets.shape, 3), np.nan, np.float32)
        done = 0
        for logits, tokens, counted in _counted_logits(model, batch):
            logits = logits if factor == 1.0 else logits * np.float32(factor)
            found[done : done + len(counted), 1:][counted] = token_statistics(logits, tokens)
            done += len(counted)
        return found

    def token_logits(
        self, model: nn.Module, batch: Batch
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]]:
        """As every task that has tokens."""
        yield from _counted_logits(model, batch)

    def reading_of(self, outputs: NDArray[Any], targets: NDArray[Any], constants: Constants) -> Reading:
        """From logits (..., B, T, V) and labels (B, T).

        Raises:
            DataError: a sequence without a counted token.
        """
        counted = targets[:, 1:] != NOT_COUNTED
        return _reading(outputs[..., :-1, :][..., counted, :], targets[:, 1:][counted], counted)

    def num_outputs(self, data: Examples) -> int:
        """The words of the vocabulary."""
        return int(data.x.vocab_size)

    def check_targets(self, data: Examples) -> None:
        """Tokens of the vocabulary, and one that counts behind the first of every sequence; labels beside them say
        nothing.

        Raises:
            DataError: names the examples.
        """
        for message, rows in data.x.faults():
            if rows.any():
                raise data.refusal(message, rows)
        if data.y.any():
            raise data.refusal("texts are their own targets: labels beside them must be 0", data.y != 0)

    def describe(self, data: Examples) -> str:
        return "the next token"


def _counted_logits(
    model: nn.Module, batch: Batch
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]]:
    """Some sequences at a time: the logits (P, V) and tokens (P,) at their P counted positions, and where these are,
    (b, T - 1) bool."""
    import torch

    labels, rows = batch.targets, max(1, _TOKENS // batch.targets.shape[1])
    for at in range(0, len(batch), rows):
        some = Batch(
            {name: values[at : at + rows] for name, values in batch.inputs.items()},
            labels[at : at + rows],
            batch.example_id[at : at + rows],
            batch.constants,
        )
        aims = some.targets[:, 1:]
        counted = aims != NOT_COUNTED
        with torch.no_grad():
            chosen = logits_of(answers(model, some))[:, :-1][counted].to(torch.float32).cpu().numpy()
        yield chosen, aims[counted].cpu().numpy(), counted.cpu().numpy()


def _reading(logits: NDArray[Any], tokens: NDArray[Any], counted: NDArray[np.bool_]) -> Reading:
    """From the logits (..., P, V) and the tokens (P,) at the P counted positions of ``counted`` (B, T - 1), row by
    row."""
    lengths = counted.sum(1)
    if (lengths == 0).any():
        raise DataError(f"no token is counted in rows {np.flatnonzero(lengths == 0)[:10].tolist()} of a batch")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.add.reduceat(values, starts, axis=-1, dtype=np.float64) / lengths
        return means

    phi = log_odds(logits, tokens)
    loss = mean(loss_from_log_odds(phi))
    hits = logits.argmax(-1) == tokens
    return Reading.of(loss=loss, signal=mean(phi), log_likelihood=-loss, quality=mean(hits))
