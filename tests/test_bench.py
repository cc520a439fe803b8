"""The measure of what checkpoints cost: it runs, says what it measured, and leaves nothing behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from app.config import load_config
from app.data import write_phantoms
from app.errors import UsageError
from app.stages.bench.checkpoint import Turn, _ratio, _summary, bench_checkpoint
from app.storage import FolderStore
from tests import small

CORES = len(os.sched_getaffinity(0))
SETTINGS = [
    "data.subset=32",
    "data.phantoms=never",
    "pretrain.batch_size=16",
    "runtime.threads=1",
    "runtime.device=cpu",
]


def test_turns_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)
    names = ("chestmnist", "pneumoniamnist", "breastmnist", "dermamnist")
    write_phantoms(tmp_path / "data", counts=dict.fromkeys(names, (32, 16, 16)))
    config = load_config("smoke", SETTINGS, data_root=str(tmp_path / "data"))
    store = FolderStore(tmp_path / "store")
    lines = list(bench_checkpoint(store, config, every=0.5, rounds=2, server=os.getpid()))
    assert [line.split(":")[0] for line in lines] == [
        "without checkpoints", "with checkpoints", "training time, with over without",
        "CPU time of this process, with over without", "checkpoint", "CPU time of the storage server, apart",
        f"training time, with over without, had the server not shared our {CORES} busy cores",
    ]  # fmt: skip
    assert float(re.findall(r"\d\.\d{4}", lines[2])[0]) > 0.3
    assert float(re.findall(r"([\d.]+) MB", lines[4])[0]) > 0.5
    assert list(store.list()) == []


def test_the_ratio_is_of_the_time_a_step_takes() -> None:
    plain, saved = Turn(100, 10.0, 20.0, 0.0), Turn(98, 10.1, 20.5, 1.5)
    assert _ratio(saved, plain) == pytest.approx((10.1 / 98) / 0.1)
    text = "\n".join(_summary([plain], [saved], 5_000_000, True))
    assert "with over without: 1.0306" in text
    assert "1.50 s a checkpoint" in text
    alone = ((10.1 - 1.5 / CORES) / 98) / 0.1  # what training would have taken with the cores to itself
    assert text.endswith(f"busy cores: {alone:.4f}")


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)
    names = ("chestmnist", "pneumoniamnist", "breastmnist", "dermamnist")
    write_phantoms(tmp_path / "data", counts=dict.fromkeys(names, (32, 16, 16)))
    config = load_config("smoke", SETTINGS, data_root=str(tmp_path / "data"))
    with pytest.raises(UsageError, match="--server-pid 999999999: there is no such process"):
        list(bench_checkpoint(FolderStore(tmp_path / "s"), config, every=0.1, rounds=1, server=999_999_999))
