"""Curves and metrics of finished jobs for MLflow and TensorBoard, for whoever uses them: never needed, never fatal."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.errors import missing_extra
from app.jobs import keys
from app.storage.answers import one_line

MLFLOW = "MLFLOW_TRACKING_URI"
PLACE = ("step", "epoch", "draw")  # where on a curve a line is
BATCH = 1000  # metrics that MLflow takes in one request

Point = tuple[str, float, int]  # name, value, step


def need_trackers(tensorboard: str | None) -> None:
    """See, before a job starts, that what is asked for by name is installed.

    Raises:
        UsageError: TensorBoard is not.
    """
    if tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise missing_extra("--tensorboard", "tensorboard", "track")


def track(
    record: Mapping[str, Any], files: Mapping[str, bytes], *, tensorboard: str | None, warn: Callable[[str], None]
) -> None:
    """Hand a published job's curves and metrics to TensorBoard, and to MLflow where ``MLFLOW_TRACKING_URI`` is set.

    Args:
        record: of the job.
        files: what was published beside it.
        tensorboard: a folder; None for none.
        warn: told in a line what a tracker failed with, whatever it was: the result is published.
    """
    if tensorboard is not None:
        _try("TensorBoard", lambda: _to_tensorboard(record, list(points_of(record, files)), tensorboard), warn)
    if os.environ.get(MLFLOW):
        _try("MLflow", lambda: _to_mlflow(record, list(points_of(record, files))), warn)


def points_of(record: Mapping[str, Any], files: Mapping[str, bytes]) -> Iterator[Point]:
    """Yield the points of a job's curves, and its last metrics: of the test split, or of the end of a pretraining."""
    lines: Sequence[Mapping[str, Any]] = record.get("curves") or []
    if keys.CURVES in files:
        lines = [json.loads(line) for line in files[keys.CURVES].splitlines()]
    last = 0
    for line in lines:
        last = int(line.get("step") or line.get("epoch") or 0)
        yield from ((name, float(v), last) for name, v in line.items() if name not in PLACE and _is_number(v))
    kind = "test" if record["kind"] == "downstream" else "final"
    yield from ((f"{kind}/{name}", float(v), last) for name, v in record["metrics"].items() if _is_number(v))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _try(name: str, send: Callable[[], None], warn: Callable[[str], None]) -> None:
    try:
        send()
    except Exception as error:  # a tracker is somebody else's: nothing of it may end a job
        warn(f"{name}: {one_line(error)}; the job's result is published all the same")


def _to_tensorboard(record: Mapping[str, Any], points: Sequence[Point], folder: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(os.path.join(folder, record["run_id"], *record["key"].split("/"))) as writer:
        for name, value, step in points:
            writer.add_scalar(name, value, step)


def _to_mlflow(record: Mapping[str, Any], points: Sequence[Point]) -> None:
    if importlib.util.find_spec("mlflow") is None:
        raise missing_extra(MLFLOW, "mlflow", "track")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # its own patience is minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    experiment = client.get_experiment_by_name(record["run_id"])
    place = experiment.experiment_id if experiment else client.create_experiment(record["run_id"])
    told = ("kind", "method", "dataset", "init", "protocol", "seed", "synthetic", "identity")
    tags = {name: str(record[name]) for name in told if name in record}
    run = client.create_run(place, run_name=record["key"], tags=tags).info.run_id
    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, step) for name, value, step in points]
    for begin in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[begin : begin + BATCH])
    client.set_terminated(run)
