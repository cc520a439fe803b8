"""What a search over settings, or an ablation, leaves as JSON in the store: a record of each trial, and one of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from app.jobs.records import DatasetInfo, Model, Number, Record
from app.settings import DataName, ProtocolName


class TrialRecord(Record):
    """``record.json`` of a trial; ``metrics`` are validation AUROCs, see ``trial.score_name``.

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


class Arm(Model):
    """The trials of some settings in an ablation, one for each seed.

    Attributes:
        settings: those that were turned back, by name, with what they were turned to.
        runs: names of the trials' runs, in the store.
        scores: by protocol, for each seed the mean validation AUROC over the data sets; NaN if the trial failed.
        failed: what ended the first that failed.
    """

    settings: Mapping[str, Any]
    runs: tuple[str, ...]
    scores: Mapping[ProtocolName, tuple[Number, ...]]
    failed: str | None = None


class AblationRecord(Model):
    """``ablation.json``: what each setting of a preset brings; no test split was opened for it.

    Attributes:
        science: what makes two ablations one that grew: settings, data and method.
        preset: that was ablated.
        against: the preset that settings were turned back to.
        whole: the preset as it is.
        control: its network from its own start, without pretraining.
        arms: one setting turned back in each.
        left_out: settings that were not judged, and why.
    """

    version: Literal[1] = 1
    kind: Literal["ablation"] = "ablation"
    run_id: str
    synthetic: bool
    science: Mapping[str, Any]
    preset: str
    against: str
    seeds: tuple[int, ...]
    data: Mapping[DataName, DatasetInfo]
    whole: Arm
    control: Arm
    arms: tuple[Arm, ...]
    left_out: Mapping[str, str]
    environment: Mapping[str, Any]
    finished: str
