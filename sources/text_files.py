"""Which files are texts for a language model, and the .txt files of a folder.

A table is one of texts where it has a column of that name, or of prompts and answers, and no column besides but those
that say whose, when, or which a row is: a label or a number to learn from makes it a table of examples.
"""

from __future__ import annotations

from pathlib import Path

from contracts.errors import DataError, UnsafeFile
from sources.files import check_size, files_below, inside
from sources.table_files import column_names, is_tables

TEXTS = ("text", "content", "document", "body")
PROMPTS = tuple(
    (prompt, answer)
    for prompt in ("prompt", "question", "instruction")
    for answer in ("answer", "completion", "response", "output")
)
ROLES = {
    "owner": ("owner",),
    "split": ("split",),
    "step": ("step",),
    "domain": ("domain",),
    "client": ("client",),
    "group": ("group",),
}
_BESIDE = (
    "id",
    "example_id",
    "user",
    "user_id",
    "author",
    "author_id",
    "title",
    "url",
    "source",
    "date",
    "language",
    "lang",
)
_SHOWN = 10


def is_texts(path: Path) -> bool:
    """True for a folder of .txt files, and for a table of texts by the names of its columns."""
    if is_text_folder(path):
        return True
    names = [name.lower() for name in column_names(path)] if is_tables(path) else []
    texts = [name for name in names if name in TEXTS]
    pairs = [pair for pair in PROMPTS if pair[0] in names and pair[1] in names]
    known = {*texts, *_BESIDE, *(name for called in ROLES.values() for name in called)}
    known |= set(pairs[0]) if pairs else set()
    return bool(pairs or len(texts) == 1) and set(names) <= known


def is_text_folder(path: Path) -> bool:
    """True for a folder, with folders in it or not, that holds .txt files alone, which are no shards of one table."""
    if not path.is_dir():
        return False
    try:
        files = list(files_below(path, path))
    except (DataError, UnsafeFile):
        return False
    if not files or any(file.suffix.lower() != ".txt" for file in files):
        return False
    headers = [tuple(column_names(file)) for file in files[:20]]
    return len(headers[0]) < 2 or len(set(headers)) > 1


def read_texts(root: Path, *, max_bytes: int) -> tuple[list[Path], list[str], list[str]]:
    """Every .txt file below a folder: paths, names relative to it, texts; in the order of the names.

    Raises:
        UnsafeFile: links out of the root, or more than ``max_bytes`` together.
        DataError: none, or files that are no UTF-8 text, all of them named.
    """
    paths = [path for path in files_below(root, root) if path.suffix.lower() == ".txt"]
    if not paths:
        raise DataError(f"{root} holds no .txt files")
    names = [path.relative_to(root).as_posix() for path in paths]
    order = sorted(range(len(names)), key=names.__getitem__)
    names, paths = [names[at] for at in order], [inside(root, names[at]) for at in order]
    check_size(sum(path.stat().st_size for path in paths), max_bytes, root.name)
    texts, bad = [], []
    for name, path in zip(names, paths, strict=True):
        try:
            texts.append(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
        except UnicodeDecodeError as error:
            bad.append(f"{name} (byte {error.object[error.start]:#04x} at {error.start:,})")
    if bad:
        more = f", ... {len(bad)} in all" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} of {len(names)} files are not UTF-8: {', '.join(bad[:_SHOWN])}{more}; save them as UTF-8"
        )
    return paths, names, texts
