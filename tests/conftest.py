"""What holds for every test: no network, no telemetry, fixed threads, no display, no state in the repository."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import promises
import pytest
import threadpoolctl

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "tests" / "guard"

# Before anything heavy is imported: OpenMP reads its thread count once, at load.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.update(
    MPLBACKEND="Agg",
    DAGSTER_DISABLE_TELEMETRY="1",
    GX_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    DO_NOT_TRACK="1",
    PYTHONPATH=os.pathsep.join(filter(None, (str(GUARD), os.environ.get("PYTHONPATH", "")))),
)


def _load_guard() -> ModuleType:
    there = sys.modules.get("sitecustomize")  # a worker of a parallel run is a child process: it has the guard already
    if there is not None and Path(str(there.__file__)).parent == GUARD:
        return there
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install()
    return module


_guard = _load_guard()
# numpy is loaded by pytest plugins before this file, so its BLAS did not see the variables above.
_blas = threadpoolctl.threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))

hypothesis.settings.register_profile("palimpsest", deadline=None, print_blob=True)
hypothesis.settings.load_profile("palimpsest")


def pytest_configure(config: pytest.Config) -> None:
    promises.register(config)


@functools.cache
def _scope(nodeid: str) -> str:
    """Tests of one scope go to one worker: a file's share its fixtures, those that look at one of the finished states
    of ``tests/pipelines`` share that. Of the battery it is the tests in one world, whose models are trained once; in
    the first, which most methods are asked in and which costs little, those of one method: they fill the gaps at the
    end."""
    file, _, rest = nodeid.partition("::")
    if "/battery/" in file:
        method, world = rest.split("-")[:2], rest.rstrip("]").split("-")[2:3]
        return f"{file}::{'-'.join(method)}" if world in ([], ["classes"]) else f"{file}::{world[0]}"
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((state for state in ("audited_home", "erasure_world") if state in text), file)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes on one worker comes first, what comes in small pieces last; else in the order drawn."""
    first = {"gallery": 0, "pipelines": 1, "battery": 3}

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        whole_world = folder == "battery" and "-" not in _scope(item.nodeid)
        return 1 if whole_world else first.get(folder, 2)

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are shared out to workers."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # by number of tests, which says little of their time

    class ByCostlyFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByCostlyFixtures(config, log)


@pytest.fixture(scope="session", autouse=True)
def _state_outside_the_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(tmp_path_factory.mktemp("palimpsest")))
        yield


@pytest.fixture
def network_guard() -> ModuleType:
    """The socket guard; ``attempts`` lists what was refused."""
    return _guard


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    """Fails the test that tried to reach the network, also when the library swallowed the refusal."""
    _guard.attempts.clear()
    yield
    assert not _guard.attempts, f"this test tried to reach the network: {_guard.attempts}"


@contextmanager
def _global_rng_is_left_alone() -> Iterator[None]:
    import numpy as np
    import torch

    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - what is tested
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "PyTorch's global generator was moved"
    assert np.array_equal(before[1], np.random.get_state()[1]), "numpy's global generator was moved"  # noqa: NPY002
    assert before[2] == random.getstate(), "Python's global generator was moved"


@pytest.fixture
def rng_left_alone() -> Callable[[], AbstractContextManager[None]]:
    """``with rng_left_alone():`` fails when a global generator is not as it was."""
    return _global_rng_is_left_alone
