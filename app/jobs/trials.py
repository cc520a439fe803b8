"""What a search over settings leaves, as JSON in the store: a record for each trial, and one of them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from app.jobs.records import DatasetInfo, Model, Number, Record
from app.settings import DataName


class TrialRecord(Record):
    """``record.json`` of a trial of ``tune``; ``metrics`` are its probes' validation AUROCs by data set.

    Attributes:
        epochs: of its pretraining; 0 for a control, which has none.
        failed: what ended it, None if nothing did; then ``metrics`` are empty.
    """

    kind: Literal["trial"] = "trial"
    epochs: int
    failed: str | None = None


class TrialResult(Model):
    """What came of some settings at a rung.

    Attributes:
        run: name of the trial's run, in the store.
        settings: those that were tried, by name.
        epochs: of the pretraining; 0 for a control.
        scores: validation AUROC of the linear probe by data set.
        mean: of the scores; NaN if the trial failed.
        gain: the mean less that of the same network without pretraining; None for a control.
        failed: what ended it.
    """

    run: str
    settings: Mapping[str, Any]
    epochs: int
    scores: Mapping[DataName, Number]
    mean: Number
    gain: Number | None
    failed: str | None = None


class TuneRecord(Model):
    """``tune.json``: what was searched from, what was tried, and what is best; no test split was opened for it.

    Attributes:
        science: what makes two searches one that grew: settings, data, method and seed.
        search: what was tried, as asked for.
        data: the data sets; only splits that were read are described.
        controls: each network of the search without pretraining.
        trials: rung by rung, the best of each first.
        best: settings of the best trial of the last rung.
    """

    version: Literal[1] = 1
    kind: Literal["tune"] = "tune"
    run_id: str
    synthetic: bool
    science: Mapping[str, Any]
    search: Mapping[str, Any]
    data: Mapping[DataName, DatasetInfo]
    controls: tuple[TrialResult, ...]
    trials: tuple[TrialResult, ...]
    best: Mapping[str, Any]
    environment: Mapping[str, Any]
    finished: str
