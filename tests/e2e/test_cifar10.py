"""CIFAR-10 from the archive, which is fetched, to a figure beside published ones: all of the preset but its length."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small

from app.config import load_config
from app.data import cifar10, download, fetch, known, load_dataset, load_unlabelled
from app.errors import InputError
from app.jobs.run import Run, load_labelled
from app.models.knn import vote
from app.stages import downstream, pretrain
from app.storage import FolderStore

RECORDS = np.random.default_rng(0).integers(0, 256, (6, 40, 3073), dtype=np.uint8)
RECORDS[:, :, 0] = np.arange(40) % 10
RECORDS[:, :, 1:] //= 8  # dark noise, brighter by class
RECORDS[:, :, 1:] += 20 * RECORDS[:, :, :1]


def archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, records in zip([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], RECORDS, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = records.nbytes
            tar.addfile(member, io.BytesIO(records.tobytes()))
    return made.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has the archive, small as it is."""
    folder = tmp_path_factory.mktemp("site")
    (folder / cifar10.ARCHIVE).write_bytes(archive())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def published(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = hashlib.md5(archive()).hexdigest()
    small_one = dataclasses.replace(known("cifar10"), urls={32: f"{site}/{cifar10.ARCHIVE}"}, md5={32: md5})
    monkeypatch.setattr(download, "known", lambda name: small_one)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)


def test_from_the_archive_to_votes_on_its_test_images(tmp_path, published, monkeypatch):
    [path] = fetch(["cifar10"], root=tmp_path, size=32)
    data = load_dataset("cifar10", path=path, size=32)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 180, "val": 20, "test": 40}
    assert (data.task, data.channels, data.class_names[3]) == ("multi-class", 3, "cat")
    record = RECORDS[2, 7]  # the 88th training image: its label, then planes of red, green and blue
    assert data.train.labels[87, 0] == record[0]
    np.testing.assert_array_equal(data.train.images[87], record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
    np.testing.assert_array_equal(data.val.labels[:, 0], RECORDS[4, 20:, 0])
    np.testing.assert_array_equal(data.test.labels[:, 0], RECORDS[5, :, 0])
    assert len(load_unlabelled("cifar10", path=path, size=32, split="train_val")) == 200
    before = path.stat().st_mtime_ns
    assert fetch(["cifar10"], root=tmp_path, size=32, offline=True) == [path]
    assert path.stat().st_mtime_ns == before

    small.use(monkeypatch.setattr)
    settings = [
        "pretrain.epochs=1", "pretrain.batch_size=50", "pretrain.monitor_every=1", "pretrain.knn_neighbours=20",
        "network.projector_hidden=32", "network.predictor_hidden=32", "protocols.linear_probe.epochs=3",
    ]  # fmt: skip
    store = FolderStore(tmp_path / "store")
    run = Run(store, "r", load_config("cifar10-byol", settings, data_root=str(tmp_path)))
    learned = pretrain.run(run, method="byol", seed=0)
    assert learned["data"]["cifar10"]["images"] == 200
    probe = downstream.run(run, dataset="cifar10", init="byol-s0", protocol="linear_probe", seed=0)
    assert 0 <= probe["metrics"]["accuracy"] <= 1
    told = list(vote(run.config, model="runs/r/pretrain/byol-s0", dataset="cifar10", store=store.uri))
    assert told[0] == "CIFAR-10, 20 neighbours of 200 for 40 test images"
    assert float(told[1].split()[2].rstrip(",")) > 0.3  # of ten classes that differ in brightness


def test_what_cannot_be_had_is_said_in_a_line(tmp_path, site):
    with pytest.raises(InputError, match=r"not there, and offline; fetch it online from https://www.cs.toronto") as one:
        fetch(["cifar10"], root=tmp_path, size=32, offline=True)
    with pytest.raises(InputError, match=r"wrong checksum .* place the file at") as other:
        fetch(["cifar10"], root=tmp_path, size=32, mirror=site)
    run = Run(FolderStore(tmp_path / "store"), "r", load_config("cifar10-byol", data_root=str(tmp_path)))
    with pytest.raises(
        InputError, match=r"data fetch --dataset cifar10 --size 32`, or give --data cifar10=FILE"
    ) as none:
        load_labelled(run, "cifar10")
    for found in (one, other, none):
        assert "\n" not in str(found.value)
        assert found.value.exit_code == 66


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"no archive"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, damage):
    place = tmp_path / cifar10.ARCHIVE
    place.write_bytes(damage(archive()))
    with pytest.raises(InputError, match=r"as published \(.*\); fetch it again"):
        cifar10.as_npz(place)
    assert list(tmp_path.glob("*.npz")) == []
