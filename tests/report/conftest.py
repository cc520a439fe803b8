"""Runs that are written once for all tests of the report."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable

import pytest

from tests.report.runs import OWN, PROTOCOLS, written
from tests.report.test_report import FakeRun

Once = Callable[[str, Callable[[], FakeRun]], FakeRun]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Writes a run, unless another of pytest's processes has written it: then it is read."""
    shared = tmp_path_factory.getbasetemp().parent

    def get(name: str, write: Callable[[], FakeRun]) -> FakeRun:
        if "PYTEST_XDIST_WORKER" not in os.environ:  # what lies there is another session's
            return write()
        file = shared / f"{name}.pickle"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                file.write_bytes(pickle.dumps(write()))
        run: FakeRun = pickle.loads(file.read_bytes())
        return run

    return get


@pytest.fixture(scope="session")
def widest(once: Once) -> FakeRun:
    """As much as a report can be asked to show beside each other."""
    every = {"methods": ("random", "imagenet", "byol", "byol_plus"), "protocols": PROTOCOLS}
    return once("widest", lambda: written(**every, clinical=True, curve=("1", "5", "50")))


@pytest.fixture(scope="session")
def own(once: Once) -> FakeRun:
    few = {"datasets": OWN, "protocols": ("finetune", "few_shot")}
    return once("own", lambda: written(**few, clinical=True, curve=("1", "5", "50")))


@pytest.fixture(scope="session")
def full(once: Once) -> FakeRun:
    return once("full", lambda: written(shrink=6, seeds=(0, 1, 2)))


@pytest.fixture(scope="session")
def curved(once: Once) -> FakeRun:
    curve = ("1", "5", "10", "50", "100%")
    return once("curved", lambda: written(shrink=6, seeds=(0, 1, 2), protocols=("few_shot_frozen",), curve=curve))
