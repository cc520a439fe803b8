"""How a job starts, saves and stops, without a training inside."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.config import load_config
from app.errors import Interrupted, StorageError, UsageError
from app.jobs.checkpoint import CheckpointWriter, load_checkpoint, pack
from app.jobs.claims import LostClaim
from app.jobs.job import Job, open_job
from app.jobs.records import PretrainRecord, publish, read_json
from app.jobs.run import Run
from app.progress import Progress
from app.runtime import StopRequest
from app.storage import FolderStore
from tests.checkpoints import save_checkpoint

FOLDER = "runs/r/pretrain/byol-s0"
SCIENCE = {"seed": 0, "rate": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def opened(store: FolderStore, *settings: str, science: dict[str, Any] = SCIENCE, overwrite: bool = False):
    config = load_config("smoke", settings)
    return open_job(Run(store, "r", config), FOLDER, science, progress=Progress("test"), overwrite=overwrite)


def record(**changes: Any) -> PretrainRecord:
    plain: dict[str, Any] = {
        "run_id": "r", "key": "byol-s0", "method": "byol", "seed": 0, "synthetic": True, "identity": "1" * 64,
        "science": SCIENCE, "config": {}, "environment": {}, "data": {}, "metrics": {}, "timings": {},
        "finished": "2026-11-22T08:00:00Z", "steps": 9, "epochs": 1,
    }  # fmt: skip
    return PretrainRecord(**plain | changes)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.full((3,), float(step))}


def step(job: Job, number: int) -> None:
    job.after_step(number, lambda: state(number), f"step {number} of 9")


def stop_at(store: FolderStore, number: int, *settings: str) -> None:
    """Begin the job, send a SIGTERM to this process, and do a step."""
    with opened(store, *settings) as job:
        assert job.record is None
        os.kill(os.getpid(), signal.SIGTERM)
        step(job, number)


@contextmanager
def storage_down(monkeypatch: pytest.MonkeyPatch):
    """Every write fails, as on a full disk or without a network."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


def test_done_claimed_resumed_fresh_in_this_order(store: FolderStore, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(store) as job:
        assert job.restore() is None
    with pytest.raises(Interrupted, match="SIGTERM: stopped at step 3 of 9 with a checkpoint"):
        stop_at(store, 3)
    with opened(store) as job:
        restored = job.restore()
        assert restored is not None
        assert torch.equal(restored["w"], torch.full((3,), 3.0))
        published = job.publish({"x.bin": b"1"}, record())
    assert not store.exists(f"{FOLDER}/latest.json")
    capsys.readouterr()
    with opened(store) as job:
        assert job.record == published
    assert "already done" in capsys.readouterr().err
    assert read_json(store, f"{FOLDER}/claim.json")["owner"] is None


def test_checkpoints_of_an_owner_that_died_after_its_record_are_dropped(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        stop_at(store, 3)
    with monkeypatch.context() as patch, opened(store) as job:
        patch.setattr("app.jobs.job.drop_checkpoints", lambda *_: None)
        job.publish({"x.bin": b"1"}, record())
    assert list(store.list(f"{FOLDER}/checkpoints"))
    with opened(store) as job:
        assert job.record is not None
    assert not list(store.list(f"{FOLDER}/checkpoints"))
    assert not store.exists(f"{FOLDER}/latest.json")


def test_another_experiment_is_refused_with_the_difference(store: FolderStore) -> None:
    other = SCIENCE | {"rate": 0.25}
    with pytest.raises(Interrupted):
        stop_at(store, 1)
    with (
        pytest.raises(UsageError, match=r"checkpoint of another experiment \(rate: 0.5 -> 0.25\)"),
        opened(store, science=other) as job,
    ):
        job.restore()
    with opened(store) as job:
        job.publish({}, record())
    with (
        pytest.raises(UsageError, match=r"result of another experiment \(rate: 0.5 -> 0.25\)"),
        opened(store, science=other),
    ):
        pytest.fail("opened")


def test_overwrite_starts_afresh(store: FolderStore) -> None:
    with opened(store) as job:
        job.publish({"x.bin": b"old"}, record())
    save_checkpoint(store, FOLDER, 5, state(5), keep=1)
    with opened(store, overwrite=True, science=SCIENCE | {"rate": 1}) as job:
        assert job.record is None
        assert not store.exists(f"{FOLDER}/record.json"), "not done any more"
        assert job.restore() is None
        job.publish({"x.bin": b"new"}, record(science=SCIENCE | {"rate": 1}))
    assert store.read(f"{FOLDER}/x.bin") == b"new"
    assert read_json(store, f"{FOLDER}/record.json")["science"]["rate"] == 1


def test_checkpoints_every_so_many_steps(store: FolderStore) -> None:
    with opened(store, "runtime.checkpoint_steps=2", "runtime.keep=9") as job:
        for number in range(1, 8):
            step(job, number)
            job.writer.flush()
        steps = [entry["step"] for entry in read_json(store, f"{FOLDER}/latest.json")["checkpoints"]]
    assert steps == [6, 4, 2]


def test_training_goes_on_while_storage_is_away_and_the_upload_follows(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.patience.seconds = 60
    with opened(store, "runtime.checkpoint_steps=1") as job:
        with storage_down(monkeypatch):
            begin = time.monotonic()
            for number in range(1, 200):
                step(job, number)
            assert time.monotonic() - begin < 5, "no step waited for storage"
            assert job.writer.busy
        job.writer.flush(60)
        step(job, 200)
        job.writer.flush(60)
        steps = [entry["step"] for entry in read_json(store, f"{FOLDER}/latest.json")["checkpoints"]]
    assert steps == [200, 1]


def test_69_when_patience_is_over(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.patience.seconds = 0.3

    def train() -> None:
        with opened(store, "runtime.checkpoint_steps=1") as job, storage_down(monkeypatch):
            for number in range(1, 600):
                step(job, number)
                time.sleep(0.05)

    with pytest.raises(StorageError, match="the disk is full") as caught:
        train()
    assert caught.value.exit_code == 69


def test_checkpoints_are_saved_by_the_minute(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless steps are counted: ``runtime.checkpoint_minutes`` after the one before, and no sooner."""
    clock = [1000.0]
    monkeypatch.setattr("app.jobs.job.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with opened(store, "runtime.checkpoint_steps=null", "runtime.checkpoint_minutes=10") as job:
        saved = []
        for number, minutes in enumerate((4, 5.9, 0.2, 9.8, 0.3), 1):
            clock[0] += 60 * minutes
            step(job, number)
            job.writer.flush()
            saved.append(len(list(store.list(f"{FOLDER}/checkpoints"))))
    assert saved == [0, 0, 1, 1, 2]


def test_a_signal_while_storage_is_away_is_69_within_the_grace_period(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.patience.seconds = 600
    store.patience.reached = True
    took: list[float] = []

    def stop() -> None:
        with opened(store, "runtime.grace_seconds=4") as job, storage_down(monkeypatch):
            begin = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                step(job, 4)
            finally:
                took.append(time.monotonic() - begin)

    with pytest.raises(StorageError, match="stopped at step 4 of 9, and its checkpoint is not saved"):
        stop()
    assert took[0] < 4


def test_who_lost_the_claim_neither_saves_nor_publishes(store: FolderStore) -> None:
    key = f"{FOLDER}/claim.json"
    with opened(store) as job:
        taken = store.read(key).replace(b'"generation": 1', b'"generation": 2')
        store.write(key, taken)
        with pytest.raises(LostClaim):
            job.publish({"x.bin": b"stale"}, record())
        job.writer.submit(7, state(7))
        with pytest.raises(LostClaim):
            job.writer.flush()
        with pytest.raises(LostClaim):
            step(job, 8)
    assert not store.exists(f"{FOLDER}/x.bin")
    assert not store.exists(f"{FOLDER}/record.json")
    assert not list(store.list(f"{FOLDER}/checkpoints"))
    assert store.read(key) == taken


def test_who_finds_the_same_result_published_returns_it(store: FolderStore) -> None:
    with opened(store) as job:
        theirs = publish(store, FOLDER, {"x.bin": b"1"}, record(method="another").plain())
        assert job.publish({"x.bin": b"1"}, record(method="us")) == theirs
    assert read_json(store, f"{FOLDER}/record.json")["method"] == "another"


def test_an_earlier_owner_cannot_move_the_pointer_of_a_later_one(store: FolderStore) -> None:
    save_checkpoint(store, FOLDER, 5, state(5), keep=2, generation=1)
    save_checkpoint(store, FOLDER, 6, state(6), keep=2, generation=3)
    before = set(store.list())
    with pytest.raises(LostClaim, match="another process has taken the job over"):
        save_checkpoint(store, FOLDER, 7, state(7), keep=2, generation=2)
    assert set(store.list()) == before, "not even its checkpoint stays"
    loaded = load_checkpoint(store, FOLDER, warn=print)
    assert loaded is not None
    assert loaded["step"] == 6


def test_taking_over_marks_the_checkpoints(store: FolderStore) -> None:
    save_checkpoint(store, FOLDER, 5, state(5), keep=2, generation=4)
    with opened(store) as job:
        assert job.claim.generation == 5, "above what the checkpoints carry, though the claim was gone"
        assert read_json(store, f"{FOLDER}/latest.json")["generation"] == 5


def test_what_is_packed_is_apart_from_the_original() -> None:
    images = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    value = {"a": [images, 1, "x", None], "b": (2.5, {"c": torch.ones(2)})}
    packed = pack(value)
    images.zero_()
    value["a"].append(3)
    copy = torch.load(io.BytesIO(packed), weights_only=True)
    assert copy["a"][0].sum() > 0
    assert copy["a"][0].stride() == images.stride(), "the memory layout decides the order of sums"
    assert copy["a"][1:] == [1, "x", None]
    assert copy["b"][0] == 2.5


def test_the_writer_writes_what_was_there_when_asked(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    original = FolderStore.write
    monkeypatch.setattr(FolderStore, "write", lambda self, *a: (gate.wait(10), original(self, *a))[1])
    writer = CheckpointWriter(store, FOLDER, keep=2, generation=0)
    live = state(1)
    writer.submit(1, live)
    live["w"].fill_(99.0)
    live["step"] = 99
    assert writer.busy
    with pytest.raises(StorageError, match="could not be saved in time"):
        writer.flush(0.05)
    gate.set()
    writer.flush()
    assert writer.saved_step == 1
    loaded = load_checkpoint(store, FOLDER, warn=print)
    assert loaded is not None
    assert loaded["step"] == 1
    assert torch.equal(loaded["w"], torch.ones(3))


def test_the_writer_reports_its_error_once(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(store, FOLDER, keep=2, generation=0)
    with storage_down(monkeypatch):
        writer.submit(1, state(1))
        with pytest.raises(StorageError):
            writer.flush()
    writer.check()
    writer.submit(2, state(2))
    writer.flush()
    assert writer.saved_step == 2


def test_what_hangs_ends_with_69_after_the_grace_period() -> None:
    import subprocess
    import sys

    code = (
        "import os, signal, time\n"
        "from app.runtime import StopRequest\n"
        "with StopRequest(0.5):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert done.stderr == "error: SIGTERM: not done after 0.5 s of grace; run the same command again\n"
    assert time.monotonic() - begin < 30


def test_the_grace_period_counts_down_from_the_signal() -> None:
    heard: list[float] = []
    with StopRequest(50.0, heard.append) as stop:
        assert stop.left == float("inf")
        os.kill(os.getpid(), signal.SIGINT)
        assert 49 < stop.left <= 50
    assert heard == [50.0]
