"""The one way a method becomes known: a decorator beside the function in a file of its family's folder, or an entry
point of another package.

A taken name raises, an unknown one lists the known. Entry points (``palimpsest.scores`` and so on) are modules
or functions whose import runs the decorator; they are loaded on the first look-up, once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, Protocol, TypeVar

from contracts.errors import NameTaken, UnknownName
from contracts.identity import check_name


class Named(Protocol):
    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=Named)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Method(Generic[S]):
    """A registered function with its declaration. Calling it calls the function."""

    spec: S
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Registry(Generic[S]):
    """Named methods of one kind.

    Args:
        kind: singular word for messages ("score").
        group: entry-point group that other packages use ("palimpsest.scores").
        homes: packages ("scoring") every module of which is imported on the first look-up, so that a method is known by
            its file's place; a module that needs a heavy library imports it when it is used.
    """

    def __init__(self, kind: str, *, group: str, homes: tuple[str, ...]) -> None:
        self.kind, self.group, self.homes = kind, group, homes
        self._methods: dict[str, Method[S]] = {}
        self._loaded = False

    def __call__(self, spec: S) -> Callable[[F], F]:
        """Decorator: register the function under ``spec.name`` and return it unchanged."""
        check_name(spec.name, kind=self.kind)

        def register(function: F) -> F:
            taken = self._methods.get(spec.name)
            if taken is not None:
                raise NameTaken(
                    f"{self.kind} {spec.name!r} is already registered by "
                    f"{taken.function.__module__}.{taken.function.__qualname__}"
                )
            self._methods[spec.name] = Method(spec, function)
            return function

        return register

    def get(self, name: str) -> Method[S]:
        """The method of that name.

        Raises:
            UnknownName: with the list of the known ones.
        """
        self._load()
        if name not in self._methods:
            raise UnknownName(self.kind, name, self._methods)
        return self._methods[name]

    def names(self) -> tuple[str, ...]:
        self._load()
        return tuple(sorted(self._methods))

    def __iter__(self) -> Iterator[Method[S]]:
        return iter([self._methods[n] for n in self.names()])

    def registered(self) -> tuple[Method[S], ...]:
        """Those that are known by now; nothing is imported to find more."""
        return tuple(self._methods.values())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            for home in self.homes:
                _import_all(home)
            for point in metadata.entry_points(group=self.group):
                point.load()
        except BaseException:
            self._loaded = False
            raise


def _import_all(package: str) -> None:
    """Import a package and every module below it, in the order of their names."""
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{package}."):
        importlib.import_module(found.name)
