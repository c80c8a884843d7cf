"""What a file or folder is that no source reads, and what to do with it: the cause behind "no known kind of data"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sources.files import PICTURES, entries, head, is_junk
from sources.table_files import kind_of, shards

_KINDS = (  # how it begins, what it is, what to do
    (b"\xff\xfe", "UTF-16 text, as Excel saves 'Unicode text'", "save it as 'CSV UTF-8'"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it: unzstd"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give the folder"),
    (b"Rar!", "a RAR archive", "unpack it and give the folder"),
    (b"\x89HDF", "an HDF5 file", "save its arrays x and y with numpy.savez"),
    (b"\x93NUMPY", "a single array (.npy)", "save values and labels together: numpy.savez('data.npz', x=..., y=...)"),
    (b"ARROW1", "an Arrow (Feather) file", "save it as Parquet: polars.read_ipc(path).write_parquet('data.parquet')"),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream, as Hugging Face's save_to_disk leaves it",
        "save it as Parquet: datasets.Dataset.from_file(path).to_parquet('data.parquet')",
    ),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"MATLAB", "a MATLAB file", "save its arrays with numpy.savez: scipy.io.loadmat reads them"),
    (b"%PDF", "a PDF", "give the data behind it"),
)


def cause(path: Path) -> str:
    """A sentence without its full stop."""
    if path.is_dir():
        return _of_folder(path)
    start = head(path, 65_536)
    if not start:
        return "it is empty"
    for magic, what, then in _KINDS:
        if start.startswith(magic):
            return f"it is {what}; {then}"
    if start.startswith(b"PK"):
        workbook = b"[Content_Types].xml" in start or b"xl/" in start
        return (
            "it is an Excel workbook; save the sheet as CSV"
            if workbook
            else "it is a zip archive; unpack it and give the folder"
        )
    if start.startswith(PICTURES):
        return (
            "it is a single picture; give the folder that holds one sub-folder of pictures a class, --data "
            f"{path.parent}"
        )
    if b"\0" in start:
        zeros = Counter(at % 2 for at, byte in enumerate(start[:2000]) if byte == 0)
        if sum(zeros.values()) > 0.3 * len(start[:2000]) and min(zeros[0], zeros[1]) == 0:
            return "it is UTF-16 text without a mark; save it as UTF-8"
        return "its bytes are no text and no format that is known here"
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return (
                f"byte {start[error.start]:#04x} at {error.start:,} is not UTF-8 (an older encoding, such as "
                "Windows-1252 or Latin-1?); save it as UTF-8"
            )
        text = start[: error.start].decode("utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip()]
    first = lines[0].strip()[:60] if lines else ""
    if not first:
        return "it holds blank lines only"
    return (
        f"it is text without columns (it begins {first!r}); a table has a header row of at least two names between , ; "
        "| or tabs"
    )


def _of_folder(folder: Path) -> str:
    """Of a folder that is no image folder, no folder of shards and no IDX pair."""
    inside = entries(folder)
    if not inside:
        junk = sorted(p.name for p in folder.iterdir() if is_junk(p))
        return f"it is empty but for {', '.join(junk[:5])}" if junk else "it is empty"
    folders = [e for e in inside if e.is_dir()]
    files = [e for e in inside if not e.is_dir()]
    if how := _saved_to_disk(folder):
        return f"it is a Hugging Face data set as save_to_disk leaves it; save it as Parquet: {how}"
    pictures = [f for f in files if head(f, 8).startswith(PICTURES)]
    if pictures and not folders:
        return (
            f"{len(pictures)} pictures lie directly in it; the class of a picture is the sub-folder it lies in "
            "(cat/1.png, dog/2.png)"
        )
    empty = [f.name for f in folders if not any(p.is_file() and not is_junk(p) for p in f.rglob("*"))]
    if folders and empty:
        return f"{len(empty)} of its {len(folders)} sub-folders hold no file: {', '.join(empty[:10])}"
    within = next((f for f in folders if shards(f)), None)
    if within is not None:
        return f"its tables lie in a folder of it; give that one: --data {within}"
    tables = [f for f in files if kind_of(f)]
    if tables and len(tables) < len(files):
        others = next(f.name for f in files if f not in tables)
        largest = max(tables, key=lambda file: file.stat().st_size)
        return f"beside tables it holds other files ({others}); give one table, such as --data {largest}"
    if tables and folders:
        return f"it holds tables ({tables[0].name}) and folders ({folders[0].name}); give one of them"
    kinds = Counter(p.suffix.lower() or "no suffix" for p in folder.rglob("*") if p.is_file() and not is_junk(p))
    return "it holds " + ", ".join(f"{n} files {kind}" for kind, n in kinds.most_common(4))


def _saved_to_disk(folder: Path) -> str:
    """How to save as Parquet what ``datasets`` wrote into this folder with save_to_disk; "" for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        return "for split, part in datasets.load_from_disk(path).items(): part.to_parquet(f'data/{split}.parquet')"
    if (folder / "dataset_info.json").is_file() and any(folder.glob("*.arrow")):
        return "datasets.load_from_disk(path).to_parquet('data.parquet')"
    return ""
