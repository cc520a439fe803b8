"""What a record and a plan hold, as JSON in the store; how files are published, and verified when read back.

Writers, readers and the tests' fakes share the models. Nothing here needs torch: planning, listing and reporting
read records without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from app.errors import InputError
from app.jobs import keys
from app.jobs.claims import LostClaim
from app.settings import DataName
from app.storage import Store, sha256

Number = Annotated[  # JSON has no NaN: null stands for it
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value, return_type=float | None),
]


class Model(BaseModel):
    """What is JSON in the store; a reader passes over what it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


# --- the plan


class PlannedPretraining(Model):
    """A pretraining of the plan; ``args`` follow ``python -m app``, and the caller adds ``--store``."""

    key: str
    args: tuple[str, ...]
    needs: ClassVar[None] = None


class PlannedDownstream(Model):
    """A downstream job of the plan.

    Attributes:
        needs: the pretraining that must have finished; None if there is none.
        frozen: its encoder sees each image once, which a CPU is enough for; None in older plans, which leave it to the
            protocol's name.
    """

    key: str
    needs: str | None
    args: tuple[str, ...]
    frozen: bool | None = None


PlannedJob = PlannedPretraining | PlannedDownstream


class Plan(Model):
    """The jobs that a run is to do."""

    version: Literal[1] = 1
    run_id: str
    pretrain: tuple[PlannedPretraining, ...]
    downstream: tuple[PlannedDownstream, ...]


class DatasetInfo(Model):
    """What is said of a data set; ``class_counts[split]`` has one count per class or label."""

    sha256: str
    size: int
    task: str
    labels: Mapping[str, str]
    channels: int
    splits: Mapping[str, int]
    class_counts: Mapping[str, tuple[int, ...]]
    licence: str
    source: str
    title: str
    modality: str
    role: str  # downstream, pretrain, or both
    notes: tuple[str, ...] = ()  # what was made of labels that leave a doubt
    reading: Mapping[str, Any] = {}  # of a folder: what was read, how, and what was left out
    origin: Mapping[str, Any] = {}  # of an imported set: its source's checksum, its patients
    unlabelled: Mapping[str, int] = {}  # with both roles: which of its splits are pretrained on, and how many images


class TestImages(Model):
    """Images of a test split, how many of them are pretrained on, and how many nearly so; None: nobody looked."""

    images: int
    shared: int
    near: int | None = None


class Overlap(Model):
    """Images that test splits share with the pretraining set, of which this split, so many images, is pretrained on."""

    pretraining: DataName
    split: str
    images: int
    test: Mapping[DataName, TestImages]


class Experiment(Model):
    """``experiment.json``: what is to be done, with which settings, on which data.

    Attributes:
        synthetic: the data are phantoms.
        science: what makes two plans the same: settings that decide results, and the data's checksums.
        monitor: the labelled set that the k-NN monitor reads.
    """

    version: Literal[1] = 1
    run_id: str
    preset: str
    synthetic: bool
    config: Mapping[str, Any]
    science: Mapping[str, Any]
    monitor: str | None
    plan: Plan
    data: Mapping[DataName, DatasetInfo]
    overlap: Overlap | None = None  # None if nothing is pretrained, or the plan is older than the comparison
    created: str


# --- a job's record


class FileEntry(Model):
    """Size in bytes and SHA-256 of a file beside a record."""

    size: int
    sha256: str


class Pointer(FileEntry):
    """An object of the store that is not beside the record."""

    key: str


class Record(Model):
    """What every finished job says of itself.

    Attributes:
        key: the job's name.
        method: how the encoder was pretrained; for one that was not, where it is from.
        science: what decides the result; ``identity`` is its SHA-256.
        config: all settings, those that decide nothing included.
        environment: versions, commit and machine.
        data: data sets by name, with their checksums.
        files: what was published beside the record, by name; added when it is.
    """

    version: Literal[1] = 1
    kind: str
    run_id: str
    key: str
    method: str
    seed: int
    synthetic: bool
    identity: str
    science: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Number]
    timings: Mapping[str, Number]
    finished: str
    files: Mapping[str, FileEntry] = {}

    def plain(self) -> dict[str, Any]:
        """Return the record as ``publish`` takes it: plain values, without the files."""
        return self.model_dump(mode="json", exclude={"files"})


class PretrainRecord(Record):
    """``record.json`` of a pretraining; ``metrics`` are what was measured last."""

    kind: Literal["pretrain"] = "pretrain"
    steps: int
    epochs: int


class FewShotDraw(Model):
    """One choice of k images per class: their places in the training split, and what came of it on the test split."""

    draw: int
    indices: tuple[int, ...]
    metrics: Mapping[str, Number]
    best_epoch: int


class CurvePoint(Model):
    """A point of a label curve: a classifier trained on so many labels; ``budget``: k per class, or a share."""

    budget: str
    draw: int
    labels: int
    best_epoch: int
    auroc: Number


class ConfidentError(Model):
    """A test image that the saved model is wrong about: class numbers, and how sure it is."""

    image: int
    truth: int
    predicted: int
    probability: float


class DownstreamRecord(Record):
    """``record.json`` of a downstream job.

    Attributes:
        metrics: of the test split; of several draws their mean.
        validation: likewise of the validation split.
        confusion_matrix: of the saved model on the test split, rows are the truth; None if multi-label.
        per_class_auroc: of the saved model.
        chosen_draw: whose model is saved.
        draw_overlap: mean Jaccard index of two draws' images.
        thresholds: of the saved model, chosen on the validation split: one for P(1) if binary, one per label if
            multi-label, none otherwise; None in records older than them.
        errors: of the saved model, the surest first; ``errors.png`` shows the images.
        label_curve: what came of fewer and more labels; scores are in ``label_curve.safetensors``.
        encoder: the frozen encoder that the saved head is for; None if the saved model is whole, or none is kept.
    """

    kind: Literal["downstream"] = "downstream"
    dataset: DataName
    init: str
    protocol: str
    task: str
    labels: Mapping[str, str]
    validation: Mapping[str, Number]
    confusion_matrix: tuple[tuple[int, ...], ...] | None
    per_class_auroc: tuple[Number, ...]
    best_epoch: int
    curves: tuple[Mapping[str, Any], ...]
    chosen_draw: int | None
    draws: tuple[FewShotDraw, ...]
    draw_overlap: float | None
    thresholds: tuple[float, ...] | None = None
    encoder: Pointer | None = None
    label_curve: tuple[CurvePoint, ...] = ()
    errors: tuple[ConfidentError, ...] = ()


# --- publishing and reading


def pointer(key: str, data: bytes | memoryview) -> dict[str, Any]:
    """Describe an object for the record that names it: ``key``, ``size`` in bytes, ``sha256``."""
    return {"key": key, "size": len(data), "sha256": sha256(data)}


def publish(
    store: Store,
    folder: str,
    files: dict[str, bytes],
    record: dict[str, Any],
    *,
    confirm: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the files of a job, then, last, the ``record.json`` that names them; there is one record, once.

    Args:
        store: where to.
        folder: the job's key prefix.
        files: contents by name inside the folder.
        record: the record without its ``files``.
        confirm: raises if the job is no longer ours; asked before every write.

    Returns:
        The record as written, with ``files``: name to size and SHA-256.

    Raises:
        LostClaim: there is a record already.
    """
    for name, data in files.items():
        confirm()
        store.write(f"{folder}/{name}", data)
    record = record | {"files": {name: {"size": len(d), "sha256": sha256(d)} for name, d in files.items()}}
    confirm()
    if store.create(keys.record(folder), to_json(record)) is None:
        raise LostClaim(f"{store.uri}/{keys.record(folder)}: another process has published the result meanwhile")
    return record


def to_json(value: dict[str, Any]) -> bytes:
    """Write ``value`` as JSON: as every record and pointer is written."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    """Publish ``value`` as JSON."""
    store.write(key, to_json(value))


def read_json(store: Store, key: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingObject: it is not there.
        InputError: it is not a JSON object.
    """
    return parse_json(store, key, store.read(key))


def parse_json(store: Store, key: str, data: bytes) -> dict[str, Any]:
    """Return the JSON object that was read under ``key``.

    Raises:
        InputError: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.uri}/{key}: damaged, not JSON ({error}); delete it and run the job again") from error
    if not isinstance(value, dict):
        raise InputError(f"{store.uri}/{key}: damaged, not a JSON object; delete it and run the job again")
    return value


def read_record(store: Store, folder: str) -> dict[str, Any]:
    """Read a job's record.

    Raises:
        MissingObject: the job is not done.
        InputError: it is no record.
    """
    key = keys.record(folder)
    record = read_json(store, key)
    files = record.get("files")
    if (
        not isinstance(record.get("science"), dict)
        or not isinstance(record.get("identity"), str)
        or not isinstance(files, dict)
        or not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in files.values())
    ):
        raise InputError(f"{store.uri}/{key}: damaged, not a record; delete it and run the job again, or --overwrite")
    return record


def read_downstream(store: Store, folder: str) -> DownstreamRecord:
    """Read the record of a downstream job.

    Raises:
        MissingObject: the job is not done.
        InputError: it is no such record.
    """
    try:
        return DownstreamRecord.model_validate(read_record(store, folder))
    except ValidationError as error:
        raise InputError(
            f"{store.uri}/{keys.record(folder)}: not the record of a downstream job; give one of runs/…/downstream/"
        ) from error


def read_plan(store: Store, run_id: str) -> Plan:
    """Read the plan of a run.

    Raises:
        MissingObject: the run was not planned.
        InputError: the plan is damaged.
    """
    key = keys.experiment(run_id)
    try:
        return Plan.model_validate(read_json(store, key).get("plan"))
    except ValidationError as error:
        raise InputError(f"{store.uri}/{key}: damaged, has no plan; delete it and run `plan` again") from error


def read_verified(store: Store, key: str, expected: Mapping[str, Any]) -> bytes:
    """Read an object and compare it with the ``size`` and ``sha256`` of its pointer.

    Raises:
        MissingObject: it is not there.
        InputError: it is not what was published.
    """
    data = store.read(key)
    if len(data) != expected["size"] or sha256(data) != expected["sha256"]:
        raise InputError(
            f"{store.uri}/{key}: damaged, its SHA-256 is not the recorded one; delete it and run the job again"
        )
    return data
