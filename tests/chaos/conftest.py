"""What the chaos tests share: how long they are, processes to kill, a store to damage."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load
from torch import Tensor

from app.data import write_phantoms
from app.storage import FolderStore, S3Store, Store, open_store, sha256
from tests.servers import Proxy, Weed

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("CHAOS") == "full"  # `make chaos`; `make test` runs the short form
STUDY = [
    "--preset", "smoke", "--threads", "1", "--device", "cpu",
    "--set", "data.subset=48", "--set", "data.phantoms=never", "--set", "study.methods=[byol]",
    "--set", "study.datasets=[breastmnist]", "--set", "study.protocols=[linear_probe,few_shot_frozen]",
    "--set", "pretrain.batch_size=16", "--set", "pretrain.monitor_every=50", "--set", "pretrain.warmup_epochs=0",
    "--set", "network.projector_hidden=3072", "--set", "network.predictor_hidden=256",
    "--set", "network.projection=128", "--set", "runtime.kernels=plain",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.s3)


class Process:
    """One forked ``python -m app …``."""

    def __init__(self, launcher: Launcher, pid: int, log: Path) -> None:
        self._launcher, self.pid, self.log = launcher, pid, log

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        status: int | None = self._launcher.ask({"poll": self.pid})
        return status

    def wait(self, seconds: float = 600) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (status := self.poll()) is not None:
                return status
            time.sleep(0.02)
        raise TimeoutError(f"still running after {seconds} s:\n{self.text[-3000:]}")

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def errors(self) -> list[str]:
        """Lines of its output that are no progress."""
        return [line for line in self.text.splitlines() if not line.startswith("{")]


class Launcher:
    """Forks processes; see launcher.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.launcher"],
            cwd=ROOT,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *args: str, environment: dict[str, str] | None = None) -> Process:
        log = self._folder / f"{secrets.token_hex(4)}.log"
        pid = self.ask({"run": list(args), "env": environment or {}, "log": str(log)})
        return Process(self, pid, log)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    made = Launcher(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, counts=dict.fromkeys(("chestmnist", "pneumoniamnist", "breastmnist"), (48, 24, 24)))
    return root


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    """A well-behaved proxy; tests make it misbehave."""
    made = Proxy(weed.url)
    yield made
    made.close()


class Place:
    """A store on the S3 server, which jobs reach through the proxy and the test reaches directly."""

    def __init__(self, weed: Weed, proxy: Proxy, launcher: Launcher, phantoms: Path) -> None:
        self.weed, self.proxy, self.launcher, self.phantoms = weed, proxy, launcher, phantoms
        self.uri = f"s3://{weed.bucket}/{secrets.token_hex(4)}"
        self.environment = weed.environment | {"AWS_ENDPOINT_URL_S3": proxy.url}
        self.store = open_store(f"{self.uri}?endpoint={weed.url}")

    def start(self, command: str, *args: str, environment: dict[str, str] | None = None) -> Process:
        return self.launcher.start(
            command, "--store", self.uri, *args, environment=self.environment | (environment or {})
        )

    def pretrain(self, *settings: str, environment: dict[str, str] | None = None) -> Process:
        options = [word for setting in settings for word in ("--set", setting)]
        return self.start(
            "pretrain", "--run-id", "r", "--method", "byol", "--data-root", str(self.phantoms), *STUDY, *options,
            environment=environment,
        )  # fmt: skip


@pytest.fixture
def place(s3_environment: Weed, proxy: Proxy, launcher: Launcher, phantoms: Path) -> Place:
    return Place(s3_environment, proxy, launcher, phantoms)


@pytest.fixture(scope="session")
def reference(
    launcher: Launcher, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Tensor]]:
    """The encoder of a pretraining that nothing interrupts, in a folder."""
    known: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def make(*settings: str) -> dict[str, Tensor]:
        if settings not in known:
            folder = tmp_path_factory.mktemp("reference")
            options = [word for setting in settings for word in ("--set", setting)]
            process = launcher.start(
                "pretrain", "--run-id", "r", "--method", "byol", "--data-root", str(phantoms), "--store", str(folder),
                *STUDY, *options,
            )  # fmt: skip
            assert process.wait() == 0, process.text
            known[settings] = encoder(FolderStore(folder))
        return known[settings]

    return make


FOLDER = "runs/r/pretrain/byol-s0"


def encoder(store: Store) -> dict[str, Tensor]:
    return load(store.read(f"{FOLDER}/encoder.safetensors"))


def verify(store: Store) -> int:
    """Read every object of the store against its own checksum, and every record's files against the record.

    Returns the number of objects; there are no unfinished uploads beside them.
    """
    keys = list(store.list())
    for key in keys:
        data = store.read(key)  # compares the SHA-256
        if key.endswith("/record.json"):
            for name, entry in json.loads(data)["files"].items():
                content = store.read(f"{key.removesuffix('/record.json')}/{name}")
                assert (len(content), sha256(content)) == (entry["size"], entry["sha256"]), name
    if isinstance(store, S3Store):
        pending = store._client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", [])
        assert pending == [], "unfinished uploads"
    return len(keys)
