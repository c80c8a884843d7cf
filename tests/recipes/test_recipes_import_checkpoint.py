"""A legacy checkpoint is data or it is refused; nothing in it ever runs."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import re
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import InvalidInput, JobFailed, UnsafeFile
from recipes import import_checkpoint as module
from recipes.checkpoints import load_arrays
from recipes.import_checkpoint import import_checkpoint
from recipes.models import build

ROOT = Path(__file__).resolve().parents[2]


class _Touch:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def _saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _model():
    return build("mlp", {"hidden": [4]}, input_shape=(3,), num_outputs=2, seed=0)


def _import_all(folder, contents, **limits):
    """Import several files, two children at a time: name -> arrays or the error."""

    def one(item):
        name, content = item
        path = folder / name
        path.write_bytes(content)
        try:
            return name, import_checkpoint(path, output=folder / f"{name}.out", **limits)
        except Exception as error:
            return name, error

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, contents.items()))


@pytest.mark.journey
def test_state_dicts_come_back_bit_for_bit(tmp_path):
    """As they are; nested, under DataParallel's prefix and in half precision; in torch's format before 1.6."""
    state = _model().state_dict()
    nested = {"epoch": 3, "state_dict": {f"module.{n}": v.half() for n, v in state.items()}, "args": {"lr": 0.1}}
    found = _import_all(
        tmp_path,
        {
            "plain.pt": _saved(state),
            "nested.bin": _saved(nested),
            "legacy": _saved(state, _use_new_zipfile_serialization=False),
        },
    )
    for name, arrays in found.items():
        assert isinstance(arrays, dict), (name, arrays)
        for key, value in state.items():
            value = value.half().float() if name == "nested.bin" else value
            assert np.array_equal(arrays[key], value.numpy()) and arrays[key].dtype == np.float32
        load_arrays(_model(), arrays)
        assert (tmp_path / f"{name}.out").exists(), "the safetensors file is the caller's"


@pytest.mark.journey
@pytest.mark.promise("B3", "B4")
def test_nothing_inside_runs(tmp_path):
    marker = tmp_path / "marker"
    touch = _Touch(marker)
    hostile = {
        "zip.pt": (_saved({"weight": torch.ones(2), "extra": touch}), "system"),
        "legacy.pt": (_saved({"extra": touch}, _use_new_zipfile_serialization=False), "system"),
        "renamed.safetensors": (_saved({"extra": touch}), "system"),
        "bare.pt": (pickle.dumps(touch, protocol=2), "weights_only=True"),
        "garbage.pt": (b"\x80\x02" + bytes(range(64)), "weights_only=True|not a readable"),
    }
    found = _import_all(tmp_path, {name: content for name, (content, _) in hostile.items()})
    assert not marker.exists()
    for name, (_, reason) in hostile.items():
        error = found[name]
        assert isinstance(error, UnsafeFile) and re.search(reason, str(error)), (name, error)
        assert not (tmp_path / f"{name}.out").exists()
    # The canaries are live: what is refused here would have run.
    pickle.loads(pickle.dumps(touch))
    assert marker.exists()


def _child():
    """The child's functions, in this process; only its ``main`` sets limits."""
    spec = importlib.util.spec_from_file_location("import_checkpoint_child", module._CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    return child


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        ([torch.ones(2)], "no state dict .* but list"),
        ({}, "no state dict"),
        ({"epoch": 1, "weights": {"a": torch.ones(1)}}, "keys .*'epoch', 'weights'"),
        ({"model": {"a": 1}}, "no state dict"),
        ({"weight": torch.tensor([1.0, torch.nan])}, "not finite"),
        ({"weight": torch.tensor([1.0, torch.inf]).half()}, "not finite"),
        ({"weight": torch.eye(3).to_sparse()}, "sparse"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, "complex"),
        ({"weight": torch.zeros(1).expand(2**40)}, str(4 * 2**40)),
    ],
)
def test_what_is_not_a_dense_finite_state_dict_is_refused(loaded, reason):
    child = _child()
    with pytest.raises(child._Refused, match=reason):
        child._plain(child._state_dict(loaded, torch), torch, 2**30)


def test_tensors_that_share_memory_are_taken_apart():
    child, base = _child(), torch.arange(6.0)
    plain = child._plain({"a": base[:4], "b": base[2:], "c": base.view(2, 3).t()}, torch, 2**20)
    assert [t.untyped_storage().nbytes() for t in plain.values()] == [16, 16, 24]
    assert torch.equal(plain["c"], base.view(2, 3).t()) and all(t.is_contiguous() for t in plain.values())


@pytest.mark.promise("B4")
def test_a_child_over_its_memory_is_refused(tmp_path):
    content = {"big.pt": _saved({"weight": torch.zeros(1).expand(2**28)})}
    error = _import_all(tmp_path, content, memory_bytes=2**28)["big.pt"]
    assert isinstance(error, UnsafeFile) and "cannot be copied" in str(error)


def _zip(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"hello, world", "neither a torch zip"),
        (struct.pack("<Q", 2) + b"{}" + bytes(8), "safetensors"),
        (b"PK\x03\x04 but no more", "damaged archive"),
        (_zip({"a.txt": b"x"}), "not one that torch.save wrote"),
        (_zip({"m/data.pkl": b"x", "m/constants.pkl": b"x"}), "TorchScript.*save the weights alone"),
        (_zip({"m/data.pkl": b"x", "m/code/f.py": b"x"}), "TorchScript.*save the weights alone"),
        (_zip({"m/data.pkl": bytes(10**6)}, zipfile.ZIP_DEFLATED), "compressed"),
        (bytes(10**6 + 1), "1000001 bytes"),
    ],
)
def test_files_refused_by_content_before_any_child_starts(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: pytest.fail("a child was started"))
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UnsafeFile, match=reason):
        import_checkpoint(path, output=tmp_path / "out", max_bytes=10**6)


def test_an_archive_that_claims_to_unpack_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: pytest.fail("a child was started"))
    content = bytearray(_zip({"m/data.pkl": b"x" * 100}))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    (tmp_path / "bomb.pt").write_bytes(content)
    with pytest.raises(UnsafeFile, match="unpacks to more than"):
        import_checkpoint(tmp_path / "bomb.pt", output=tmp_path / "out", max_bytes=10**6)


def test_paths_are_checked(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(InvalidInput, match="cannot be read"):
        import_checkpoint(path, output=tmp_path / "out")
    with pytest.raises(UnsafeFile, match="regular"):
        import_checkpoint(tmp_path, output=tmp_path / "out")
    path.write_bytes(_saved({"weight": torch.ones(1)}))
    for output in (path, tmp_path / "absent" / "out"):
        with pytest.raises(InvalidInput, match="new file"):
            import_checkpoint(path, output=output)


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        ((-9, ""), UnsafeFile, "signal 9"),
        ((1, "Traceback\nModuleNotFoundError: torch"), JobFailed, "ModuleNotFoundError"),
        ((3, "\x1b[31mred"), UnsafeFile, r"\?\[31mred"),
        ((0, ""), JobFailed, "no readable result"),
    ],
)
def test_how_a_child_ends_decides_what_is_said(tmp_path, monkeypatch, result, error, words):
    calls = []

    def run(command, **options):
        calls.append(command)
        return module.subprocess.CompletedProcess(command, result[0], "", result[1])

    monkeypatch.setattr(module.subprocess, "run", run)
    path = tmp_path / "model.pt"
    path.write_bytes(_saved({"weight": torch.ones(1)}))
    with pytest.raises(error, match=words):
        import_checkpoint(path, output=tmp_path / "out")
    assert len(calls) == 1, "a refused file was tried a second time"
    assert "-I" in calls[0]


@pytest.mark.promise("B4")
def test_no_code_of_this_project_loads_pickles_another_way():
    packages = (
        "contracts",
        "sources",
        "recipes",
        "scoring",
        "curation",
        "unlearning",
        "attacks",
        "warehouse",
        "reports",
    )
    files = [
        f for package in (*packages, "assets", "pipelines", "reproductions") for f in (ROOT / package).rglob("*.py")
    ]
    loads = [f.name for f in files if "torch.load(" in f.read_text().replace("``torch.load(", "")]
    assert loads == ["import_checkpoint_child.py"]
    child = (ROOT / "recipes" / "import_checkpoint_child.py").read_text()
    assert child.count("torch.load(") == 1 and "weights_only=True)" in child
    for file in files:
        text = file.read_text()
        assert not re.search(r"weights_only\s*=\s*False|pickle\.loads?\(|allow_pickle\s*=\s*True", text), file
