"""What the chaos tests share: how long they are, processes to kill, a store to damage."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load
from torch import Tensor

from app.data import write_phantoms
from app.storage import FolderStore, S3Store, Store, open_store, sha256
from tests.processes import SMALL, Launcher, Process
from tests.servers import Proxy, Weed

FULL = os.environ.get("CHAOS") == "full"  # `make chaos CHAOS=short` and .ci/run take the short form
STUDY = [
    "--preset", "smoke", "--threads", "1", "--device", "cpu",
    "--set", "data.subset=48", "--set", "data.phantoms=never", "--set", "study.methods=[byol]",
    "--set", "study.datasets=[breastmnist]", "--set", "study.protocols=[linear_probe,few_shot_frozen]",
    "--set", "pretrain.batch_size=16", "--set", "pretrain.monitor_every=50", "--set", "pretrain.warmup_epochs=0",
    "--set", "network.projector_hidden=2048", "--set", "network.predictor_hidden=256",
    "--set", "network.projection=128", "--set", "runtime.kernels=plain",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.s3)


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
            command, "--store", self.uri, *args, environment=self.environment | {SMALL: "1"} | (environment or {})
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
    """The encoder of a pretraining with these settings that nothing interrupts and that saves nothing, in a folder."""
    known: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def make(*settings: str) -> dict[str, Tensor]:
        if settings not in known:
            folder = tmp_path_factory.mktemp("reference")
            options = [word for setting in settings for word in ("--set", setting)]
            process = launcher.start(
                "pretrain", "--run-id", "r", "--method", "byol", "--data-root", str(phantoms), "--store", str(folder),
                *STUDY, *options, environment={SMALL: "1"},
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
