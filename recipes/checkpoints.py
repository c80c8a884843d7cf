"""A model as named arrays, and back, strictly. Where the bytes go is the business of a CheckpointStore.

Parameters and persistent buffers under the names of ``state_dict()``; tied parameters appear under every name.
No pickle: only what safetensors can hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from contracts.errors import DataError, InvalidInput


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and persistent buffers, C-contiguous, by name."""
    return {name: np.array(value.detach().cpu().numpy(), order="C") for name, value in model.state_dict().items()}


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file that somebody else wrote, by name.

    A ``module.`` that all names share (DataParallel) is cut off; 16-bit floats become float32, which holds them
    exactly.

    Raises:
        DataError: not safetensors, or it cannot be read.
    """
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is no readable safetensors file ({error}); a .pt or .pth file is brought in by palimpsest "
            "import-checkpoint"
        ) from None
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    half = (torch.float16, torch.bfloat16)
    return {name: (value.float() if value.dtype in half else value).numpy() for name, value in found.items()}


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy ``arrays`` into ``model``. Nothing is changed unless everything fits.

    Raises:
        InvalidInput: a missing or unexpected name, another shape, another kind of number, or a value that is not
            finite.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(arrays)), sorted(set(arrays) - set(own))
    if missing or extra:
        raise InvalidInput(f"the arrays do not fit the model: missing {_some(missing)}; unexpected {_some(extra)}")
    for name, target in own.items():
        value = np.asarray(arrays[name])
        if value.shape != tuple(target.shape):
            raise InvalidInput(f"array {name!r} has shape {value.shape}; the model needs {tuple(target.shape)}")
        wanted = torch.empty(0, dtype=target.dtype).numpy().dtype
        if value.dtype != wanted:
            raise InvalidInput(f"array {name!r} has dtype {value.dtype}; the model needs {wanted}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InvalidInput(f"array {name!r} holds {int((~np.isfinite(value)).sum())} values that are not finite")
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(torch.from_numpy(np.array(arrays[name], order="C")))


def describe(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """JSON-able facts for a manifest: digest, dtype and shape of every array, number of values."""
    return {
        "arrays": {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in sorted(arrays.items())},
        "num_values": int(sum(a.size for a in arrays.values())),
        "sha256": arrays_digest(arrays),
    }


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian values, in the order of the names."""
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(np.ascontiguousarray(array))
    return state.hexdigest()


def _some(names: list[str]) -> str:
    return (", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")) or "nothing"
