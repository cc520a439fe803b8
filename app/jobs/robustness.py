"""``robustness.json``: what a trained model's AUROC becomes on test images that were made worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from app.jobs import keys
from app.jobs.records import DownstreamRecord, Number, Record


class RobustnessRecord(Record):
    """It lies beside the record of the job whose saved model was judged.

    Attributes:
        metrics: ``auroc`` of the test images as they are, and ``loss``, what corruptions take from it on average.
        auroc: of the test images under each corruption, at each strength from the weakest on.
    """

    kind: Literal["robustness"] = "robustness"
    auroc: Mapping[str, tuple[Number, ...]]


def science_of(record: DownstreamRecord, strengths: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    """Return what decides how robust a job's saved model is: the model and its test images, and what they go through.

    Args:
        record: of the job.
        strengths: of each corruption.
    """
    weights = {name: record.files[name].sha256 for name in (keys.MODEL, keys.HEAD) if name in record.files}
    encoder = {} if record.encoder is None else {"encoder": record.encoder.sha256}
    return {
        "job": record.identity,
        "weights": weights | encoder,
        "corruptions": {kind: list(values) for kind, values in strengths.items()},
    }
