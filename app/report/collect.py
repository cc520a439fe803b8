"""Read everything that a run left in the store, and name what is not there."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from app.data import say_overlap
from app.errors import InputError
from app.jobs import keys
from app.jobs.records import (
    DownstreamRecord,
    Experiment,
    Plan,
    PlannedJob,
    PretrainRecord,
    Record,
    read_verified,
)
from app.report.experiment import find_experiment
from app.report.objects import Damaged, parse
from app.science.statistics import auroc_components
from app.storage import MissingObject, Store

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]

# The order of tables and figures; what is not named here comes after, by name.
METHOD_ORDER = ("random", "imagenet", "byol", "byol_plus")
PROTOCOL_ORDER = ("finetune", "linear_probe", "few_shot", "few_shot_frozen")


@dataclass(frozen=True)
class PretrainRun:
    """A finished pretraining job and its curves: one mapping for each line of ``curves.jsonl``."""

    record: PretrainRecord
    curves: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class CurveMean:
    """A point of a job's label curve, draws averaged: AUROC, and what each test image adds to its error, (N,)."""

    budget: str
    labels: float
    draws: int
    area: float
    components: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Result:
    """A finished downstream job with its test scores, each of shape (N, C).

    ``chosen`` belongs to the saved model and ``draws`` to every few-shot draw (otherwise it holds
    ``chosen`` alone); ``curve`` has the points of its label curve but for the one of ``draws``. What is missing or
    damaged stays empty, and ``Study.missing`` says so.
    """

    record: DownstreamRecord
    chosen: Scores | None = field(repr=False, default=None)
    draws: tuple[Scores, ...] = field(repr=False, default=())
    curve: tuple[CurveMean, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Missing:
    """Something that the plan or a record promises and the store does not hold whole."""

    kind: Literal["pretrain", "downstream", "data"]
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}: {self.reason}"


CellKey = tuple[str, str, str]  # dataset, protocol, method


@dataclass(frozen=True)
class Study:
    """All that a run left behind, read and checked.

    ``cells`` maps (dataset, protocol, method) to the finished jobs ordered by seed; ``planned`` maps it to
    the seeds that the plan names (so a cell may be planned and empty).  ``test_labels`` has shape (N, L)
    for each dataset.
    """

    experiment: Experiment
    pretraining: tuple[PretrainRun, ...]
    cells: Mapping[CellKey, tuple[Result, ...]]
    planned: Mapping[CellKey, tuple[int, ...]]
    test_labels: Mapping[str, Labels]
    samples: Mapping[str, bytes]
    missing: tuple[Missing, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets with downstream cells, planned or done, in the order of the experiment."""
        named = {dataset for dataset, _, _ in (*self.cells, *self.planned)}
        known = [name for name in self.experiment.data if name in named]
        return (*known, *sorted(named.difference(known)))

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods with downstream cells, planned or done."""
        return in_order({method for _, _, method in (*self.cells, *self.planned)}, METHOD_ORDER)

    def protocols(self, dataset: str) -> tuple[str, ...]:
        """Protocols of a dataset, planned or done."""
        return in_order({p for d, p, _ in (*self.cells, *self.planned) if d == dataset}, PROTOCOL_ORDER)

    @property
    def overlaps(self) -> dict[str, str]:
        """A sentence for each dataset of whose test images some are pretrained on."""
        overlap = self.experiment.overlap
        if overlap is None:
            return {}
        pretraining = self.title(overlap.pretraining)
        told = {
            name: say_overlap(self.title(name), pretraining, overlap.split, **counts.model_dump())
            for name, counts in overlap.test.items()
        }
        return {name: sentence for name, sentence in told.items() if sentence}

    @property
    def finished_cells(self) -> list[CellKey]:
        """Cells with a finished job, in the order of datasets, protocols and methods."""
        keys = ((d, p, m) for d in self.datasets for p in self.protocols(d) for m in self.methods)
        return [key for key in keys if key in self.cells]

    def title(self, dataset: str) -> str:
        """Display name of a dataset."""
        info = self.experiment.data.get(dataset)
        return info.title if info else dataset


def in_order(names: Iterable[str], order: tuple[str, ...]) -> tuple[str, ...]:
    """Sort names by ``order``, unknown ones last by name."""
    return tuple(sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n)))


# --- reading one object -----------------------------------------------------------------------------


def _read_listed(store: Store, folder: str, name: str, record: Record) -> bytes:
    """Read a file that a record lists, and compare it with the SHA-256 there."""
    entry = record.files.get(name)
    if entry is None:
        raise Damaged(f"the record lists no {name}")
    try:
        return read_verified(store, f"{folder}/{name}", entry.model_dump())
    except MissingObject as error:
        raise Damaged(f"{name} is missing") from error
    except InputError as error:
        raise Damaged(f"{name} is damaged (its SHA-256 is not the recorded one)") from error


def parse_predictions(data: bytes) -> Scores:
    """Read MedMNIST's evaluator CSV (``index,score,score,…``, no header) -> scores (N, C) by ascending index.

    Raises:
        ValueError: not numbers, rows of different lengths, no rows, or indices that are not 0 … N-1.
    """
    if not data.strip():
        raise ValueError("no scores")
    table = np.loadtxt(io.BytesIO(data), delimiter=",", dtype=np.float64, ndmin=2)
    if table.shape[1] < 2:
        raise ValueError("no scores")
    order = np.argsort(table[:, 0], kind="stable")
    if not np.array_equal(table[order, 0], np.arange(len(table))):
        raise ValueError("indices are not 0 to N-1")
    return np.ascontiguousarray(table[order, 1:])


def _predictions(store: Store, folder: str, name: str, record: DownstreamRecord, labels: Labels | None) -> Scores:
    try:
        scores = parse_predictions(_read_listed(store, folder, name, record))
    except ValueError as error:
        raise Damaged(f"{name} is damaged ({error})") from error
    if labels is not None and len(scores) != len(labels):
        raise Damaged(f"{name} has {len(scores)} rows for {len(labels)} test images")
    return scores


def _label_curve(store: Store, folder: str, record: DownstreamRecord, truth: Labels) -> tuple[CurveMean, ...]:
    try:
        tensors = safetensors.numpy.load(_read_listed(store, folder, keys.LABEL_CURVE, record))
    except safetensors.SafetensorError as error:
        raise Damaged(f"{keys.LABEL_CURVE} is damaged ({error})") from error
    points = []
    for budget, trained in groupby(record.label_curve, key=lambda point: point.budget):
        labels = [point.labels for point in trained]
        scores = tensors.get(budget)
        if scores is None or scores.ndim != 3 or scores.shape[:2] != (len(labels), len(truth)):
            raise Damaged(f"{keys.LABEL_CURVE} is damaged (not the scores of {len(labels)} draws for {budget})")
        points.append(CurveMean(budget, float(np.mean(labels)), len(labels), *mean_components(truth, list(scores))))
    return tuple(points)


def mean_components(y: Labels, draws: Sequence[Scores]) -> tuple[float, NDArray[np.float64]]:
    """Mean AUROC of a job's draws, and what each test image adds to its error, (N,)."""
    each = [auroc_components(y, scores) for scores in draws]
    return float(np.mean([area for area, _ in each])), np.asarray(np.mean([own for _, own in each], axis=0))


def _curves(store: Store, folder: str, record: PretrainRecord) -> tuple[Mapping[str, float], ...]:
    lines = _read_listed(store, folder, keys.CURVES, record).splitlines()
    try:
        points = [json.loads(line) for line in lines if line.strip()]
        return tuple(
            {k: float(v) for k, v in point.items() if isinstance(v, int | float)}
            for point in points
            if isinstance(point, dict)
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise Damaged(f"{keys.CURVES} is damaged (not JSON lines of numbers)") from error


def _check_same_experiment(record: Record, experiment: Experiment) -> None:
    """Refuse a record of other settings or other data than the experiment's, which `plan --overwrite` can leave."""
    settings, science = experiment.config, record.science
    planned = {
        "network": settings.get("network", {}),
        "pretrain": settings.get("pretrain", {}),
        "views": {**settings.get("views", {}), **settings.get("views_plus", {})},
        "protocol": settings.get("protocols", {}).get(getattr(record, "protocol", None), {}),
    }
    for part, values in planned.items():
        for name, value in science.get(part, {}).items():
            if name != "init" and name in values and values[name] != value:  # weights are named by their checksum
                raise Damaged(f"of another experiment ({part}.{name} is {value}, the plan says {values[name]})")
    for name, entry in record.data.items():
        if name in experiment.data and entry.get("sha256") != experiment.data[name].sha256:
            raise Damaged(f"of another experiment (its {name} is another file)")


# --- the whole run ----------------------------------------------------------------------------------


def collect(store: Store, run_id: str) -> Study:
    """Read a run's experiment, records, curves, predictions, test labels and sample pictures.

    A record that is absent or damaged is named in ``Study.missing``; so are files that a record promises.
    Records outside the plan are read too.

    Raises:
        InputError: there is no such run, or its ``experiment.json`` is damaged.
        StorageError: the store cannot be reached.
    """
    root = keys.run(run_id)
    experiment = find_experiment(store, run_id)
    missing: list[Missing] = []
    labels = _test_labels(store, experiment, missing)
    cells = _downstream(store, root, experiment, labels, missing)
    return Study(
        experiment=experiment,
        pretraining=_pretraining(store, root, experiment, missing),
        cells=cells,
        planned=_planned_cells(experiment.plan),
        test_labels=labels,
        samples=_samples(store, experiment),
        missing=tuple(missing),
    )


def _jobs(store: Store, root: str, kind: str, planned: tuple[PlannedJob, ...]) -> list[tuple[str, bool]]:
    """Job keys with whether a record is there: the plan's first, then any others found."""
    folder = f"{root}/{kind}"
    found = keys.finished(folder, store.list(folder))
    names = [job.key for job in planned]
    return [(key, key in found) for key in (*names, *sorted(found.difference(names)))]


def _pretraining(store: Store, root: str, experiment: Experiment, missing: list[Missing]) -> tuple[PretrainRun, ...]:
    runs = []
    for key, found in _jobs(store, root, keys.PRETRAIN, experiment.plan.pretrain):
        folder = f"{root}/{keys.PRETRAIN}/{key}"
        if not found:
            missing.append(Missing("pretrain", key, "no record"))
            continue
        try:
            record = parse(PretrainRecord, store.read(keys.record(folder)))
            _check_same_experiment(record, experiment)
        except (Damaged, InputError) as error:
            missing.append(Missing("pretrain", key, str(error)))
            continue
        curves: tuple[Mapping[str, float], ...] = ()
        try:
            curves = _curves(store, folder, record)
        except Damaged as error:
            missing.append(Missing("pretrain", key, str(error)))
        runs.append(PretrainRun(record, curves))
    return tuple(sorted(runs, key=lambda run: (run.record.method, run.record.seed, run.record.key)))


def _downstream(
    store: Store, root: str, experiment: Experiment, labels: Mapping[str, Labels], missing: list[Missing]
) -> dict[CellKey, tuple[Result, ...]]:
    cells: dict[CellKey, list[Result]] = {}
    for key, found in _jobs(store, root, keys.DOWNSTREAM, experiment.plan.downstream):
        folder = f"{root}/{keys.DOWNSTREAM}/{key}"
        if not found:
            missing.append(Missing("downstream", key, "no record"))
            continue
        try:
            record = parse(DownstreamRecord, store.read(keys.record(folder)))
            _check_same_experiment(record, experiment)
        except (Damaged, InputError) as error:
            missing.append(Missing("downstream", key, str(error)))
            continue
        result = Result(record)
        truth = labels.get(record.dataset)
        try:
            chosen = _predictions(store, folder, keys.PREDICTIONS, record, truth)
            result = Result(record, chosen, () if record.draws else (chosen,))
            names = [keys.draw_predictions(draw.draw) for draw in record.draws]
            if names:
                draws = tuple(_predictions(store, folder, name, record, truth) for name in names)
                result = Result(record, chosen, draws)
            if record.label_curve and truth is not None:
                result = replace(result, curve=_label_curve(store, folder, record, truth))
        except Damaged as error:
            missing.append(Missing("downstream", key, f"{error}; its metrics are shown all the same"))
        cells.setdefault((record.dataset, record.protocol, record.method), []).append(result)
    return {key: tuple(sorted(results, key=lambda r: (r.record.seed, r.record.key))) for key, results in cells.items()}


def _planned_cells(plan: Plan) -> dict[CellKey, tuple[int, ...]]:
    """Seeds of each cell."""
    planned: dict[CellKey, list[int]] = {}
    for job in plan.downstream:
        if name := keys.Downstream.parse(job.key):
            planned.setdefault((name.dataset, name.protocol, name.method), []).append(name.seed)
    return {key: tuple(sorted(seeds)) for key, seeds in planned.items()}


def _test_labels(store: Store, experiment: Experiment, missing: list[Missing]) -> dict[str, Labels]:
    labels: dict[str, Labels] = {}
    folder = f"{keys.run(experiment.run_id)}/{keys.DOWNSTREAM}"
    jobs = [planned.key for planned in experiment.plan.downstream]
    jobs += keys.finished(folder, store.list(folder))
    wanted = {job.dataset for name in jobs if (job := keys.Downstream.parse(name))}
    for name in experiment.data:
        if name not in wanted:
            continue
        key = keys.test_labels(experiment.run_id, name)
        what = key.removeprefix(f"{keys.run(experiment.run_id)}/")
        try:
            values = np.asarray(json.loads(store.read(key))["labels"], dtype=np.int64)
        except MissingObject:
            missing.append(Missing("data", what, "not there; no interval over test images, no ROC curve"))
            continue
        except (InputError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            missing.append(Missing("data", what, f"damaged ({type(error).__name__})"))
            continue
        if values.ndim not in (1, 2):
            missing.append(Missing("data", what, f"damaged (of shape {values.shape})"))
            continue
        labels[name] = values[:, None] if values.ndim == 1 else values
    return labels


def _samples(store: Store, experiment: Experiment) -> dict[str, bytes]:
    pictures = {}
    for name in experiment.data:
        with suppress(InputError):  # missing or damaged: the page does without
            pictures[name] = store.read(keys.sample_sheet(experiment.run_id, name))
    return pictures
