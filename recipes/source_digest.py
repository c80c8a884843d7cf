"""What code a user's ``module:callable`` is: a digest of its source file and of the files beside it that it imports.

    files = the module, the packages it lies in, and, again and again, what these import from the same folder
    digest = SHA-256 of (name, SHA-256 of the bytes) of every file

The folder is the plan's (``model.folder``), or the one on Python's path that holds the module; from a folder of
installed packages (``site-packages``) only the module's own package counts. Imports are read from the source and
resolved by path: nothing is imported, so that a plan is recognised without loading what it trains. Not covered: what a
module imports by a computed name, and other distributions, whose versions the user pins.

The plan's folder is searched last, after this program's own packages and everything that is installed: no file in it
can replace one of these. A file of such a name would never be read, so it is refused.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from contracts.digests import digest
from contracts.errors import ConfigError

_ROOT = Path(__file__).resolve().parent.parent  # of this program's packages


def source_digest(module: str, *, folder: str = "") -> str:
    """64 hex digits that change when the code of ``module`` (``a`` or ``a.b.c``) changes.

    Args:
        folder: where the plan says that the module lies; "" searches Python's path.

    Raises:
        ConfigError: there is no such module, it has no file, its source is not Python, or a file of the folder has the
            name of something that is found before it.
    """
    return digest(sorted(_sources(module, folder).items()))


def _sources(module: str, own_folder: str) -> dict[str, str]:
    """Name -> SHA-256 of every file that the code of ``module`` is."""
    top, _, _ = module.partition(".")
    folder, installed = (Path(own_folder), False) if own_folder else _folder(top, module)
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if installed and name.partition(".")[0] != top:
            continue
        for part in _with_parents(name):  # importing a.b.c runs a, then a.b, then a.b.c
            path = _file(folder, part)
            if path is None or part in found:
                continue
            if own_folder and "." not in part:
                _refuse_hidden(part, path, folder)
            content = path.read_bytes()
            found[part] = hashlib.sha256(content).hexdigest()
            waiting += _imports(content, part, path, of=module)
    if module not in found:
        raise ConfigError(f"model module {module!r} has no source file in {folder}")
    return found


def _refuse_hidden(name: str, path: Path, folder: Path) -> None:
    """Refuse a file of the user's folder whose name means something else to Python here, which comes first."""
    whose, where = "a module of Python's own library", name
    if name not in sys.stdlib_module_names:
        spec = None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
        if not places or Path(str(places[0])).resolve().parent == folder.resolve():
            return
        where = str(places[0])
        ours = Path(where).parent in (_ROOT, *(Path(p) for p in sys.path if p.endswith("-packages")))
        whose = "a package of this program or of its libraries" if ours else "another module"
    raise ConfigError(
        f"{path} cannot be imported: {name!r} is also the name of {whose} ({where}), which comes first; rename the file"
    )


def _folder(top: str, module: str) -> tuple[Path, bool]:
    """The folder on the path that holds the top-level module, and whether it is one of installed packages."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"model module {module!r} cannot be found: {error}") from error
    places = (
        []
        if spec is None
        else [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location else ())]
    )
    if not places:
        raise ConfigError(f"model module {module!r} cannot be found as a file on Python's path: {', '.join(sys.path)}")
    folder = Path(str(places[0])).parent
    return folder, folder.name in ("site-packages", "dist-packages")


def _file(folder: Path, name: str) -> Path | None:
    base = folder.joinpath(*name.split("."))
    candidates = (
        base / "__init__.py",
        base.with_name(f"{base.name}.py"),
        *sorted(base.parent.glob(f"{base.name}.*.so")),
    )
    return next((path for path in candidates if path.is_file()), None)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _imports(content: bytes, name: str, path: Path, *, of: str) -> list[str]:
    """Full names of everything that a source file may import."""
    if path.suffix != ".py":
        return []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"model module {of!r}: {path} is not Python: {error}") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [each for each in names if each.strip(".")]
