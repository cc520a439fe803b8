"""Trackers get what the record holds, and can do a job no harm."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from app.errors import UsageError
from app.jobs import tracking
from app.jobs.tracking import need_trackers, points_of, track
from app.options import Asked

RECORD = {
    "kind": "downstream", "run_id": "r", "key": "d/random/finetune/s0", "method": "random", "dataset": "d",
    "init": "random", "protocol": "finetune", "seed": 0, "synthetic": True, "identity": "2" * 64,
    "metrics": {"auroc": 0.9, "f1": None},
    "curves": [{"epoch": 1, "val_loss": 0.5, "val_auroc": None}, {"epoch": 2, "val_loss": 0.4, "val_auroc": 0.8}],
}  # fmt: skip
PRETRAINED = {"kind": "pretrain", "run_id": "r", "key": "byol-s0", "metrics": {"loss": 1.5}}
LINES = b'{"step": 3, "epoch": 1, "loss": 2.0, "knn_dataset": "d:val"}\n{"step": 6, "epoch": 2, "loss": 1.5}\n'


def test_the_points_are_the_curves_and_the_metrics():
    assert list(points_of(RECORD, {})) == [
        ("val_loss", 0.5, 1), ("val_loss", 0.4, 2), ("val_auroc", 0.8, 2), ("test/auroc", 0.9, 2),
    ]  # fmt: skip
    assert list(points_of(PRETRAINED, {"curves.jsonl": LINES})) == [
        ("loss", 2.0, 3),
        ("loss", 1.5, 6),
        ("final/loss", 1.5, 6),
    ]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for the library that notes what it is told."""
    told: list[tuple[Any, ...]] = []

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            told.append(("experiment", name))
            return "7"

        def create_run(self, place: str, run_name: str, tags: dict[str, str]) -> Any:
            told.append(("run", place, run_name, tags["protocol"]))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="x"))

        def log_batch(self, run: str, metrics: list[Any]) -> None:
            told.append(("metrics", run, [(name, value, step) for name, value, _, step in metrics]))

        def set_terminated(self, run: str) -> None:
            told.append(("ended", run))

    library, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    vars(library)["MlflowClient"], vars(entities)["Metric"] = Client, lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    vars(library)["Client"] = Client
    return told


def test_mlflow_gets_one_run_for_each_job_with_all_its_points(mlflow):
    track(RECORD, {}, tensorboard=None, warn=pytest.fail)
    assert mlflow == [
        ("experiment", "r"), ("run", "7", "d/random/finetune/s0", "finetune"),
        ("metrics", "x", list(points_of(RECORD, {}))), ("ended", "x"),
    ]  # fmt: skip


def test_a_tracker_that_fails_is_one_line_without_secrets(mlflow, monkeypatch):
    def fail(self: Any, *_: Any, **__: Any) -> Any:
        raise ConnectionError("http://user:secret@127.0.0.1:9\nis away")

    monkeypatch.setattr(sys.modules["mlflow"].Client, "create_experiment", fail)
    said: list[str] = []
    track(RECORD, {}, tensorboard=None, warn=said.append)
    assert said == ["MLflow: http://127.0.0.1:9 is away; the job's result is published all the same"]


def test_without_the_libraries_a_wish_is_refused_and_an_environment_is_not(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    need_trackers(None)
    with pytest.raises(UsageError, match=r"--tensorboard: tensorboard is not installed; pip install '\.\[track\]'"):
        need_trackers("logs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said: list[str] = []
    track(RECORD, {}, tensorboard=None, warn=said.append)
    assert len(said) == 1
    assert "MLFLOW_TRACKING_URI: mlflow is not installed" in said[0]


def test_nothing_is_told_unless_asked_for(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "_try", lambda *_: pytest.fail("a tracker is called"))
    track(RECORD, {}, tensorboard=None, warn=pytest.fail)


def test_tensorboard_reads_what_was_written(tmp_path: Path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track(RECORD, {}, tensorboard=str(tmp_path), warn=pytest.fail)
    events = EventAccumulator(str(tmp_path / "r/d/random/finetune/s0"))
    events.Reload()
    read = [(name, round(e.value, 6), e.step) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    assert sorted(read) == sorted(points_of(RECORD, {}))


@pytest.mark.parametrize("folder", ["logs", "a: b", "12", "null", "lögs #1"])
def test_the_option_is_the_setting_whatever_the_folder_is_called(folder):
    assert Asked(preset="smoke", tensorboard=folder).config().runtime.tensorboard == folder
    assert Asked(preset="smoke").config().runtime.tensorboard is None
