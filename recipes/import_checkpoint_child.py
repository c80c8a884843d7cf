"""The process that reads a legacy checkpoint. Run by recipes.import_checkpoint, by path, isolated; not for import.

    python -I import_checkpoint_child.py INPUT OUTPUT MAX_BYTES MEMORY_BYTES CPU_SECONDS

Exit status 0: OUTPUT holds safetensors. 3: the file was refused, with the reason as the last line of stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import re
import resource
import sys
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NESTED = ("state_dict", "model_state_dict", "model")


class _Refused(Exception):
    pass


def _limit(which: int, value: int) -> None:
    """Lower a limit; a hard limit that is lower already stays."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _leave_network() -> None:
    """A network namespace of its own, with nothing in it. Needs Linux and its permission; else the process keeps it."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _address_space() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main(source: str, target: str, max_bytes: int, memory_bytes: int, cpu_seconds: int) -> None:
    # Before PyTorch starts threads: a process with threads may not leave its user namespace.
    _leave_network()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, cpu_seconds)

    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    _limit(resource.RLIMIT_FSIZE, max_bytes + 2**20)
    if Path("/proc/self/statm").exists():
        _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    try:
        # An open file, not its name: given a name, torch chooses the reader by the suffix.
        with Path(source).open("rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message is long, and advises to switch the safety off: pass on only what was found.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {found[1]}" if found else "not tensors and plain containers"
        what += "; save the weights alone: torch.save(model.state_dict(), FILE)"
        raise _Refused(f"not loadable with weights_only=True: {what}") from None
    except Exception as error:  # hostile bytes can make a parser raise anything; whatever it is, the file is refused
        raise _Refused(f"not a readable torch checkpoint ({type(error).__name__}: {error})") from None
    try:
        save_file(_plain(_state_dict(loaded, torch), torch, max_bytes), target)
    except (MemoryError, RuntimeError) as error:
        raise _Refused(f"its tensors cannot be copied ({type(error).__name__}: {error})") from None


def _state_dict(loaded, torch):
    """The mapping name -> tensor in what was loaded."""

    def named(value) -> bool:
        return (
            isinstance(value, dict)
            and bool(value)
            and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
        )

    if named(loaded):
        found = loaded
    elif isinstance(loaded, dict) and (keys := [k for k in _NESTED if named(loaded.get(k))]):
        found = loaded[keys[0]]
    else:
        what = (
            f"a dict with keys {sorted(map(str, loaded))[:10]}" if isinstance(loaded, dict) else type(loaded).__name__
        )
        raise _Refused(f"no state dict (names with tensors) in it, but {what}")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _plain(tensors, torch, max_bytes: int):
    """Dense, finite, contiguous copies that share no memory."""
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise _Refused(f"tensor {name!r} is sparse, quantized or complex")
    # A few bytes can pretend to be a huge tensor through a stride of 0: count before copying.
    size = sum(value.numel() * max(value.element_size(), 4) for value in tensors.values())
    if size > max_bytes:
        raise _Refused(f"its tensors take {size} bytes; at most {max_bytes} are allowed")
    plain = {}
    for name, value in tensors.items():
        value = value.detach()
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise _Refused(f"tensor {name!r} holds values that are not finite")
        plain[name] = value.clone(memory_format=torch.contiguous_format)
    return plain


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except _Refused as refusal:
        sys.stderr.write("\n" + " ".join(str(refusal).split()) + "\n")
        sys.exit(3)
