"""A language model with low-rank adapters: what trains, what is saved, and what is computed once.

    saved      the adapters alone: ``state_dict`` leaves the frozen base out, which whoever loads them builds again
    computed   blocks 0 .. k-1 below the first adapted block are frozen and the same for every set of adapters, so the
               hidden states that enter block k are computed once a text and kept; a step runs the blocks above

The states of a text are those of the text alone, one sequence without padding, so they do not depend on what it is
batched with; under causal attention what follows a token changes nothing before it. They are kept by the text's
tokens, for all models of this process on bases with equal weights below block k, of the last such base alone, up to
``MOST_BYTES``.

It is done where it gives the same answers, and only there: a decoder of transformers (``model.model`` with ``layers``)
without dropout below block k, whose blocks are all of one kind, whose logits on a short text are bit for bit those of
the undivided model. Any other model is run whole.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.language import logits_of

MOST_BYTES = 2 * 2**30
_PROBE = 6  # tokens of the short text on which both ways are compared


class Adapted(nn.Module):
    """A model of peft, read and trained as any causal language model: ``model(input_ids=, attention_mask=)``.

    Args:
        model: what ``peft.get_peft_model`` gave; taken over.
        first: the lowest adapted block, k; 0 runs everything at every call.
    """

    def __init__(self, model: nn.Module, *, first: int = 0) -> None:
        super().__init__()
        self.model = model
        self._lower = _Lower.of(model, first) if first else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """Logits (B, T, V), or what the model itself answers where more is asked of it (decoding with a cache)."""
        lower = self._lower
        if lower is None or more or not lower.applies(self.model, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return lower.answer(input_ids, attention_mask)

    @property
    def generate(self) -> Any:
        """That of the model, which keeps keys and values while it decodes."""
        return self.model.generate

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters alone."""
        return {n: v for n, v in super().state_dict(*args, **kwargs).items() if "lora_" in n}

    def whole_state(self) -> dict[str, Tensor]:
        """Adapters and base."""
        return super().state_dict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapted:
        # A new object with copied modules; the states below are of texts and of weights, and shared by their copies.
        made = Adapted.__new__(Adapted)
        memo[id(self)] = made
        nn.Module.__init__(made)
        made.model = copy.deepcopy(self.model, memo)
        made.training = self.training
        made._lower = None if self._lower is None else self._lower.over(made.model)
        return made


class _Lower:
    """The frozen blocks below the first adapted one, and what enters it, by text."""

    def __init__(self, model: nn.Module, first: int, states: _States) -> None:
        causal: Any = model.base_model.model  # type: ignore[union-attr]
        decoder = causal.model
        self.first, self.states, self.head = first, states, causal.lm_head
        self.below = _part(decoder, decoder.layers[:first], norm=nn.Identity())
        self.above = _part(decoder, decoder.layers[first:], norm=decoder.norm)
        self.weights = [p for _, p in sorted(self.below.named_parameters())]
        self.stamp = self._stamp()

    @classmethod
    def of(cls, model: nn.Module, first: int) -> _Lower | None:
        """None where the model cannot be divided, or would answer otherwise."""
        causal: Any = getattr(getattr(model, "base_model", None), "model", None)
        decoder = getattr(causal, "model", None)
        if not all(hasattr(decoder, name) for name in ("layers", "norm")) or not hasattr(causal, "lm_head"):
            return None
        if not 0 < first < len(decoder.layers) or len(set(getattr(decoder.config, "layer_types", None) or ())) > 1:
            return None
        drops = (m.p for layer in decoder.layers[:first] for m in layer.modules() if isinstance(m, nn.Dropout))
        if any(drops) or getattr(decoder.config, "attention_dropout", 0):
            return None
        found = cls(model, first, _States.of(_digest(_named(decoder, first))))
        return found if found._same_as(model) else None

    def over(self, model: nn.Module) -> _Lower:
        """The same of a copy of the model, with the states that are known."""
        return _Lower(model, self.first, self.states)

    def applies(self, model: nn.Module, mask: Tensor | None) -> bool:
        """Whether the states are of these weights, and every text begins at the left."""
        if any(p.requires_grad for p in self.weights) or self.stamp != self._stamp():
            return False
        return mask is None or (mask.ndim == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()))

    def answer(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(input_ids) if mask is None else mask
        lengths = mask.sum(dim=1).tolist()
        rows = [self._of_text(ids[:length]) for ids, length in zip(input_ids, lengths, strict=True)]
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        missing = input_ids.shape[1] - states.shape[1]
        states = nn.functional.pad(states, (0, 0, 0, missing)) if missing else states
        if torch.is_grad_enabled():
            states.requires_grad_(False)
        found: Any = self.above(inputs_embeds=states, attention_mask=mask, use_cache=False)
        logits: Tensor = self.head(found.last_hidden_state)
        return logits

    def _of_text(self, ids: Tensor) -> Tensor:
        """(T, H) what enters the first adapted block."""
        key = ids.cpu().numpy().tobytes()
        known = self.states.get(key)
        if known is None:
            with torch.no_grad():
                known = self.below(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            self.states.put(key, known)
        return known.to(ids.device)

    def _same_as(self, model: nn.Module) -> bool:
        training, words = model.training, self.head.weight.shape[0]
        ids = (torch.arange(1, _PROBE + 1, device=self.head.weight.device) % words)[None]
        model.eval()
        try:
            with torch.no_grad():
                whole = logits_of(model(input_ids=ids, attention_mask=torch.ones_like(ids)))
                same = torch.equal(whole, self.answer(ids, None))
        finally:
            model.train(training)
        return same

    def _stamp(self) -> list[int]:
        """Changes with every change of a weight in place."""
        return [p._version for p in self.weights]


class _States:
    """States by the tokens of a text, (T, H) each, where they were computed."""

    _last: tuple[str, _States] | None = None

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}
        self._bytes = 0

    @classmethod
    def of(cls, digest: str) -> _States:
        """Those of the base with this digest: the last one's are kept."""
        if cls._last is None or cls._last[0] != digest:
            cls._last = (digest, cls())
        return cls._last[1]

    def get(self, key: bytes) -> Tensor | None:
        return self._kept.get(key)

    def put(self, key: bytes, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if self._bytes + size <= MOST_BYTES:
            self._kept[key] = states
            self._bytes += size

    def __len__(self) -> int:
        return len(self._kept)


def _part(decoder: Any, layers: Iterable[nn.Module], *, norm: nn.Module) -> Any:
    """The decoder with some of its blocks and another last norm: the very same modules, nothing copied."""
    part = copy.copy(decoder)
    part._modules = {**decoder._modules, "layers": nn.ModuleList(layers), "norm": norm}
    return part


def _named(decoder: Any, first: int) -> list[tuple[str, Tensor]]:
    below = ((n, v) for n, v in decoder.state_dict().items() if not n.startswith(("layers.", "norm.")))
    blocks = ((f"{k}.{n}", v) for k, layer in enumerate(decoder.layers[:first]) for n, v in layer.state_dict().items())
    return sorted([*below, *blocks])


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    state = hashlib.sha256()
    for name, value in named:
        state.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0{value.device.type}\0".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
