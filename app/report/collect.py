"""Read everything that a run left in the store, and name what is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.data import say_overlap
from app.errors import InputError
from app.jobs import keys
from app.jobs.records import DownstreamRecord, Experiment, Plan, PlannedJob, PretrainRecord, Record
from app.jobs.robustness import RobustnessRecord
from app.report.experiment import find_experiment
from app.report.objects import Damaged, parse
from app.report.reading import (
    CurveMean,
    Labels,
    Scores,
    mean_components,
    parse_predictions,
    read_curves,
    read_embedding,
    read_label_curve,
    read_listed,
    read_predictions,
    read_robustness,
)
from app.storage import MissingObject, Store

__all__ = ["CurveMean", "Labels", "Scores", "collect", "mean_components", "parse_predictions"]

# The order of tables and figures; what is not named here comes after, by name.
METHOD_ORDER = ("random", "imagenet", "byol", "byol_plus")
PROTOCOL_ORDER = ("finetune", "linear_probe", "few_shot", "few_shot_frozen")


@dataclass(frozen=True)
class PretrainRun:
    """A finished pretraining job and its curves: one mapping for each line of ``curves.jsonl``."""

    record: PretrainRecord
    curves: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Result:
    """A finished downstream job with its test scores, each of shape (N, C).

    ``chosen`` belongs to the saved model and ``draws`` to every few-shot draw (otherwise it holds
    ``chosen`` alone); ``curve`` has the points of its label curve but for the one of ``draws``. ``validation`` has
    the scores of the validation images, ``errors`` a PNG of the surest errors, ``embedding`` a place in the plane for
    each validation image; jobs older than them have none. ``robustness`` is there once the command of that name has
    judged the model. What is missing or damaged stays empty, and ``Study.missing`` says so.
    """

    record: DownstreamRecord
    chosen: Scores | None = field(repr=False, default=None)
    draws: tuple[Scores, ...] = field(repr=False, default=())
    curve: tuple[CurveMean, ...] = field(repr=False, default=())
    validation: Scores | None = field(repr=False, default=None)
    errors: bytes | None = field(repr=False, default=None)
    embedding: NDArray[np.float64] | None = field(repr=False, default=None)
    robustness: RobustnessRecord | None = field(repr=False, default=None)


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
    the seeds that the plan names (so a cell may be planned and empty).  ``test_labels`` and ``val_labels`` have shape
    (N, L) for each dataset; plans older than the latter have none.  ``test_patients`` tells whose each test image is,
    (N,), where patients are known and have several; ``test_subgroups`` its group, "" where it is not known, (N,), by
    the name of what tells groups apart.
    """

    experiment: Experiment
    pretraining: tuple[PretrainRun, ...]
    cells: Mapping[CellKey, tuple[Result, ...]]
    planned: Mapping[CellKey, tuple[int, ...]]
    test_labels: Mapping[str, Labels]
    val_labels: Mapping[str, Labels]
    samples: Mapping[str, bytes]
    missing: tuple[Missing, ...]
    test_patients: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    test_subgroups: Mapping[str, Mapping[str, NDArray[np.str_]]] = field(default_factory=dict)

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
    labels, patients, subgroups = _labels(store, experiment, keys.test_labels, missing)
    val_labels, _, _ = _labels(store, experiment, keys.val_labels, None)
    cells = _downstream(store, root, experiment, labels, val_labels, missing)
    return Study(
        experiment=experiment,
        pretraining=_pretraining(store, root, experiment, missing),
        cells=cells,
        planned=_planned_cells(experiment.plan),
        test_labels=labels,
        val_labels=val_labels,
        samples=_samples(store, experiment),
        missing=tuple(missing),
        test_patients=patients,
        test_subgroups=subgroups,
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
            curves = read_curves(store, folder, record)
        except Damaged as error:
            missing.append(Missing("pretrain", key, str(error)))
        runs.append(PretrainRun(record, curves))
    return tuple(sorted(runs, key=lambda run: (run.record.method, run.record.seed, run.record.key)))


def _downstream(
    store: Store,
    root: str,
    experiment: Experiment,
    labels: Mapping[str, Labels],
    val_labels: Mapping[str, Labels],
    missing: list[Missing],
) -> dict[CellKey, tuple[Result, ...]]:
    cells: dict[CellKey, list[Result]] = {}
    there = set(store.list(f"{root}/{keys.DOWNSTREAM}"))
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
            chosen = read_predictions(store, folder, keys.PREDICTIONS, record, truth)
            result = Result(record, chosen, () if record.draws else (chosen,))
            names = [keys.draw_predictions(draw.draw) for draw in record.draws]
            if names:
                draws = tuple(read_predictions(store, folder, name, record, truth) for name in names)
                result = Result(record, chosen, draws)
            if record.label_curve and truth is not None:
                result = replace(result, curve=read_label_curve(store, folder, record, truth))
            result = _with_extras(store, folder, result, val_labels.get(record.dataset))
            if keys.robustness(folder) in there:
                result = replace(result, robustness=read_robustness(store, folder, record))
        except Damaged as error:
            missing.append(Missing("downstream", key, f"{error}; its metrics are shown all the same"))
        cells.setdefault((record.dataset, record.protocol, record.method), []).append(result)
    return {key: tuple(sorted(results, key=lambda r: (r.record.seed, r.record.key))) for key, results in cells.items()}


def _with_extras(store: Store, folder: str, result: Result, truth: Labels | None) -> Result:
    """Add what newer jobs leave beside their test scores."""
    record, files = result.record, result.record.files
    if keys.VAL_PREDICTIONS in files and truth is not None:
        result = replace(result, validation=read_predictions(store, folder, keys.VAL_PREDICTIONS, record, truth))
    if keys.ERRORS in files:
        result = replace(result, errors=read_listed(store, folder, keys.ERRORS, record))
    if keys.EMBEDDING in files and truth is not None:
        places = read_embedding(store, folder, record)
        if len(places) != len(truth):
            raise Damaged(f"{keys.EMBEDDING} has {len(places)} rows for {len(truth)} images")
        result = replace(result, embedding=places)
    return result


def _planned_cells(plan: Plan) -> dict[CellKey, tuple[int, ...]]:
    """Seeds of each cell."""
    planned: dict[CellKey, list[int]] = {}
    for job in plan.downstream:
        if name := keys.Downstream.parse(job.key):
            planned.setdefault((name.dataset, name.protocol, name.method), []).append(name.seed)
    return {key: tuple(sorted(seeds)) for key, seeds in planned.items()}


def _labels(
    store: Store, experiment: Experiment, place: Callable[[str, str], str], missing: list[Missing] | None
) -> tuple[dict[str, Labels], dict[str, NDArray[np.int64]], dict[str, dict[str, NDArray[np.str_]]]]:
    """Read labels, patients and subgroups of a split; what is not there is named in ``missing`` unless that is None."""
    labels: dict[str, Labels] = {}
    patients: dict[str, NDArray[np.int64]] = {}
    subgroups: dict[str, dict[str, NDArray[np.str_]]] = {}
    folder = f"{keys.run(experiment.run_id)}/{keys.DOWNSTREAM}"
    jobs = [planned.key for planned in experiment.plan.downstream]
    jobs += keys.finished(folder, store.list(folder))
    wanted = {job.dataset for name in jobs if (job := keys.Downstream.parse(name))}
    for name in experiment.data:
        if name not in wanted:
            continue
        key = place(experiment.run_id, name)
        what = key.removeprefix(f"{keys.run(experiment.run_id)}/")
        try:
            known = json.loads(store.read(key))
            values = np.asarray(known["labels"], dtype=np.int64)
            if values.ndim not in (1, 2):
                raise ValueError(f"of shape {values.shape}")
            if "patients" in known:
                whose = np.asarray(known["patients"], dtype=np.int64)
                if whose.shape != values.shape[:1]:
                    raise ValueError(f"{whose.shape} patients")
                patients[name] = whose
            if "subgroups" in known:
                groups = {str(what): np.asarray(cells, dtype=np.str_) for what, cells in known["subgroups"].items()}
                if any(cells.shape != values.shape[:1] for cells in groups.values()):
                    raise ValueError(f"subgroups of other than {len(values)} images")
                subgroups[name] = groups
            labels[name] = values[:, None] if values.ndim == 1 else values
        except MissingObject:
            reason = "not there; no interval over test images, no ROC curve"
        except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"damaged ({type(error).__name__})"
        if name not in labels and missing is not None:
            missing.append(Missing("data", what, reason))
    return labels, patients, subgroups


def _samples(store: Store, experiment: Experiment) -> dict[str, bytes]:
    pictures = {}
    for name in experiment.data:
        with suppress(InputError):  # missing or damaged: the page does without
            pictures[name] = store.read(keys.sample_sheet(experiment.run_id, name))
    return pictures
