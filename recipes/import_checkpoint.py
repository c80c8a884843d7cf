"""Legacy ``.pt`` files in, arrays out, without ever running what is inside.

A torch file is a pickle, and a pickle is a program. So: (1) the file is looked at by content and refused unless it is a
torch zip or torch's older bare pickle, within size limits; (2) a child process with limits on CPU time, memory, file
size and, where the kernel allows it, without network, reads it with ``torch.load(weights_only=True)`` (a list of
allowed types, no code); (3) the child writes plain tensors as safetensors, which the parent reads. A file that
``weights_only=True`` does not take is refused. There is no second way of reading it.
"""

from __future__ import annotations

import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from contracts.errors import InvalidInput, JobFailed, UnsafeFile

_CHILD = Path(__file__).with_name("import_checkpoint_child.py")
_REFUSED = 3  # exit status by which the child says that it refused the file; its reason is on stderr
_MAX_ENTRIES = 100_000


def import_checkpoint(
    path: Path,
    *,
    output: Path,
    max_bytes: int = 4 * 2**30,
    memory_bytes: int = 8 * 2**30,
    cpu_seconds: int = 300,
) -> dict[str, np.ndarray]:
    """The tensors of a legacy checkpoint by name.

    A state dict, or a dict that holds one as ``state_dict``, ``model_state_dict`` or ``model``. A ``module.`` that all
    names share (DataParallel) is cut off; 16-bit floats become float32, which holds them exactly.

    Args:
        path: the file; its suffix does not matter.
        output: where the child writes safetensors; must not exist, its folder must. Left for the caller to keep or
            remove.
        max_bytes: largest file, largest unpacked archive and largest sum of tensors.
        memory_bytes: what the child may take beyond what PyTorch itself takes.
        cpu_seconds: CPU time of the child; its wall time is bounded by twice that.

    Raises:
        InvalidInput: no such file, or ``output`` exists.
        UnsafeFile: not a torch checkpoint, not loadable with ``weights_only=True``, no state dict in it, values that
            are not finite, or over a limit.
        JobFailed: the child could not do its work.
    """
    _check_content(path, max_bytes)
    if output.exists() or not output.parent.is_dir():
        raise InvalidInput(f"{output} must be a new file in a folder that exists")
    limits = [str(max_bytes), str(memory_bytes), str(cpu_seconds)]
    # -I: neither the caller's environment nor the current folder influences what the child imports.
    command = [sys.executable, "-I", str(_CHILD), str(path.resolve()), str(output.resolve()), *limits]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=2 * cpu_seconds + 60, check=False)
    except subprocess.TimeoutExpired:
        output.unlink(missing_ok=True)
        raise UnsafeFile(f"{path} was refused: reading it took more than {2 * cpu_seconds + 60} s") from None
    if child.returncode:
        output.unlink(missing_ok=True)
        reason = (child.stderr.strip().splitlines() or [""])[-1][:500]
        reason = "".join(c if c.isprintable() else "?" for c in reason)  # it may quote names out of the file
        if child.returncode == _REFUSED:
            raise UnsafeFile(f"{path} was refused: {reason}")
        if child.returncode < 0:
            raise UnsafeFile(f"{path} was refused: reading it went over a limit (signal {-child.returncode})")
        raise JobFailed(f"importing {path} ended with status {child.returncode}: {reason}")
    try:
        return load_file(output)
    except (OSError, SafetensorError) as error:
        raise JobFailed(f"importing {path} left no readable result: {error}") from error


def _check_content(path: Path, max_bytes: int) -> None:
    """Refuse by what the file is, before a byte of it is unpickled."""
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile(f"{path} was refused: not a regular file")
    if not 0 < status.st_size <= max_bytes:
        raise UnsafeFile(f"{path} was refused: {status.st_size} bytes; between 1 and {max_bytes} are allowed")
    with path.open("rb") as file:
        magic = file.read(16)
    if magic.startswith(b"PK\x03\x04"):
        _check_archive(path, max_bytes)
    elif magic[8:9] == b"{":
        raise UnsafeFile(f"{path} was refused: this looks like safetensors, which needs no import")
    elif magic[:1] != b"\x80":
        raise UnsafeFile(f"{path} was refused: neither a torch zip archive nor a torch pickle (starts {magic[:8]!r})")


def _check_archive(path: Path, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsafeFile(f"{path} was refused: a damaged archive ({error})") from error
    names = [e.filename for e in entries]
    if len(entries) > _MAX_ENTRIES or sum(e.file_size for e in entries) > max_bytes:
        raise UnsafeFile(
            f"{path} was refused: its archive unpacks to more than {max_bytes} bytes or {_MAX_ENTRIES} files"
        )
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
        raise UnsafeFile(
            f"{path} was refused: a TorchScript archive, which holds code; save the weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise UnsafeFile(f"{path} was refused: its archive is compressed, which torch never does")
    if sum(n.endswith("/data.pkl") for n in names) != 1:
        raise UnsafeFile(f"{path} was refused: an archive, but not one that torch.save wrote")
