"""The error tree. Every error says what is wrong, where, what is allowed, and (where it can) what to do next.

PalimpsestError
|-- InvalidInput (ValueError)   a parameter, a name or data outside its allowed range
|   |-- ConfigError             a configuration field
|   |-- IllegalName             a subject, model, method or file name
|   |-- DataError               the examples themselves (ids, labels, values, shapes)
|   `-- NotApplicable           a method asked to work on a task or model it is not defined for
|-- UnknownName (LookupError)   nothing of that name is registered or stored
|-- NameTaken                   a second registration of one name
|-- UnsafeFile                  refused before it is read: pickle, bomb, path that leaves its root
|-- IntegrityError              stored bytes do not match the digest recorded for them
|-- NotReady                    something an operation needs has not been made yet
|   |-- Erased                  it was made, and erased for a forget request: it cannot be rebuilt
|   `-- NotTrusted              it was made, and missed a condition of its own declaration
|-- StateError                  a transition that the current state does not allow
|-- LockTimeout                 another writer holds the warehouse
|-- CheckBroken                 a check could not run; distinct from "the data is bad"
|-- Diverged                    an optimisation left the numbers that mean anything, or gives one answer to everything
|-- NotTheModel                 what a method gave back is not what its arrays give in a fresh model
`-- JobFailed                   a child process ended without its result
    `-- JobLost                 it was killed: another run may be spared that
"""

from __future__ import annotations

import difflib
import errno
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class PalimpsestError(Exception):
    """Base of every error raised on purpose by this project."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the message, as the command prints it."""
        return [in_words(self)]


class InvalidInput(PalimpsestError, ValueError):
    """Something given lies outside what is allowed."""


class ConfigError(InvalidInput):
    """A configuration field is missing, unknown, of the wrong type or out of range."""


class IllegalName(InvalidInput):
    """A name does not match ``^[a-z0-9][a-z0-9_-]{0,63}$``."""


class DataError(InvalidInput):
    """The data cannot be audited as it is. The message names at most ten of the examples concerned: by ``where`` they
    lie (a file, a row of a table), which a person can look up, else by their ids.
    """

    def __init__(self, message: str, *, example_ids: Iterable[int] = (), where: Iterable[str] = ()) -> None:
        self.example_ids = tuple(int(i) for i in example_ids)
        self.where = tuple(map(str, where))
        named = _places(self.where) or (f"example ids: {_some(self.example_ids)}" if self.example_ids else "")
        super().__init__(message + (f" ({named})" if named else ""))


class NotApplicable(InvalidInput):
    """A method was asked to work on a task or a model that it is not defined for."""


class UnknownName(PalimpsestError, LookupError):
    """No such thing; the message lists the known ones, and those that are spelt alike.

    Args:
        where: the field that names it (``analyses.pruning_curve.config.score``), for one that a configuration names.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], *, where: str = "") -> None:
        self.kind, self.name, self.known, self.where = kind, name, tuple(sorted(known)), where
        asked = str(name)
        longer = [one for one in self.known if asked and one.startswith(asked)]
        alike = list(dict.fromkeys([*longer, *difflib.get_close_matches(asked, self.known)]))[:3]
        near = f" (near: {', '.join(alike)})" if alike else ""
        at = f"{where}: " if where else ""
        super().__init__(f"{at}unknown {kind} {name!r}{near}; known: {', '.join(self.known) or '(none)'}")


class NameTaken(PalimpsestError):
    """A name was registered a second time."""


class UnsafeFile(PalimpsestError):
    """A file was refused before its content was used."""


class IntegrityError(PalimpsestError):
    """Stored bytes differ from what was recorded when they were written."""


class NotReady(PalimpsestError):
    """Something this operation needs has not been produced yet; the message names the command that makes it."""


class Erased(NotReady):
    """It was made, and erased for a forget request; says for which and when."""


class NotTrusted(NotReady):
    """A stored result that missed its gates, or whose method does not apply here: kept, and refused to whoever asks for
    it."""


class StateError(PalimpsestError):
    """The current state does not allow this step."""


class LockTimeout(PalimpsestError):
    """The single-writer lock was not obtained in time."""


class CheckBroken(PalimpsestError):
    """A data check could not be carried out. Never to be read as passed, nor as bad data."""


class Diverged(PalimpsestError):
    """An optimisation ended in non-finite numbers or in a model that gives one answer to everything.

    A finding about the method and its configuration, not a crash: the run is recorded with status "diverged".
    """


class NotTheModel(PalimpsestError):
    """What a method gave back is not a model of this plan: saved and loaded into a fresh one, structure or outputs
    change."""


class JobFailed(PalimpsestError):
    """A job process ended without leaving a valid result."""


class JobLost(JobFailed):
    """A job process was killed before it could leave a result."""


def _some(items: Sequence[object], limit: int = 10) -> str:
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown}, ... {len(items)} in all"


def _places(where: Sequence[str]) -> str:
    """As ``_some``; rows of one file are listed behind its name: "people.csv rows 2, 4"."""
    files = {place.rpartition(" row ")[0] for place in where}
    if len(where) > 1 and len(files) == 1 and (file := files.pop()):
        return f"{file} rows {_some([place.rpartition(' row ')[2] for place in where])}"
    return _some(where)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


def may_pass(error: BaseException) -> bool:
    """Whether the same work, done again, may well succeed: a killed process, a busy lock, a hiccup of disk or
    memory."""
    transient = isinstance(error, OSError) and error.errno in _TRANSIENT
    return transient or no_memory(error) or isinstance(error, (JobLost, LockTimeout))


def no_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its accelerator: torch says it by errors of its own."""
    kind = type(error).__name__
    allocator = kind == "OutOfMemoryError" or (kind == "RuntimeError" and "can't allocate memory" in str(error))
    return allocator or isinstance(error, MemoryError)


def in_words(error: BaseException) -> str:
    """One message for a person: what happened, where, and what to do where that is known.

    >>> in_words(ConfigError("lr = -1 must be > 0"))
    'ConfigError: lr = -1 must be > 0'
    """
    if isinstance(error, PalimpsestError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        if error.errno in _FULL:
            return (
                f"the disk is full{where}. What was finished is kept; free some space, or set PALIMPSEST_HOME to a "
                "disk with space, and run the same command again"
            )
        if error.errno in _NOT_WRITABLE:
            return (
                f"no access ({(error.strerror or '').lower()}){where}. To write elsewhere, set PALIMPSEST_HOME to a "
                "folder of yours"
            )
        return f"{error.strerror}{where}"
    said = " ".join(str(error).split()) or "no reason given"
    if no_memory(error) and type(error) is not MemoryError:  # which brings words of its own
        return (
            f"the memory is not enough ({said[:200]}). Smaller inputs (pictures, lists), a smaller model or batch, or "
            "fewer models at once (ensemble.block) take less"
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"
