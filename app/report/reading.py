"""Read one object that a job left, and say in a few words why it cannot be used."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from app.errors import InputError
from app.jobs import keys
from app.jobs.records import DownstreamRecord, PretrainRecord, Record, read_verified
from app.jobs.robustness import RobustnessRecord, science_of
from app.report.objects import Damaged, parse
from app.science.statistics import auroc_components
from app.science.strengths import STRENGTHS
from app.storage import MissingObject, Store

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class CurveMean:
    """A point of a job's label curve, draws averaged: AUROC, and what each test image adds to its error, (N,)."""

    budget: str
    labels: float
    draws: int
    area: float
    components: NDArray[np.float64] = field(repr=False)


def read_listed(store: Store, folder: str, name: str, record: Record) -> bytes:
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


def read_predictions(store: Store, folder: str, name: str, record: DownstreamRecord, labels: Labels | None) -> Scores:
    """Read the scores that a record lists, of as many images as there are labels."""
    try:
        scores = parse_predictions(read_listed(store, folder, name, record))
    except ValueError as error:
        raise Damaged(f"{name} is damaged ({error})") from error
    if labels is not None and len(scores) != len(labels):
        raise Damaged(f"{name} has {len(scores)} rows for {len(labels)} images")
    return scores


def read_label_curve(store: Store, folder: str, record: DownstreamRecord, truth: Labels) -> tuple[CurveMean, ...]:
    """Read the scores of a label curve, and average its draws."""
    try:
        tensors = safetensors.numpy.load(read_listed(store, folder, keys.LABEL_CURVE, record))
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


def read_embedding(store: Store, folder: str, record: DownstreamRecord) -> NDArray[np.float64]:
    """Read where the validation images lie in a plane, (N, 2)."""
    try:
        places = np.loadtxt(io.BytesIO(read_listed(store, folder, keys.EMBEDDING, record)), delimiter=",", ndmin=2)
    except ValueError as error:
        raise Damaged(f"{keys.EMBEDDING} is damaged ({error})") from error
    if places.shape[1] != 2:
        raise Damaged(f"{keys.EMBEDDING} is damaged (not two columns)")
    return np.asarray(places, dtype=np.float64)


def read_robustness(store: Store, folder: str, record: DownstreamRecord) -> RobustnessRecord:
    """Read what corrupted test images do to the saved model of a job."""
    try:
        found = parse(RobustnessRecord, store.read(keys.robustness(folder)))
    except (Damaged, InputError) as error:
        raise Damaged(f"its robustness is damaged ({error}); run `robustness --overwrite`") from error
    shape = {kind: len(values) for kind, values in found.auroc.items()}
    if found.science != science_of(record, STRENGTHS) or shape != {kind: len(s) for kind, s in STRENGTHS.items()}:
        raise Damaged("its robustness is that of another model, or under other corruptions; run `robustness` again")
    return found


def mean_components(y: Labels, draws: Sequence[Scores]) -> tuple[float, NDArray[np.float64]]:
    """Mean AUROC of a job's draws, and what each test image adds to its error, (N,)."""
    each = [auroc_components(y, scores) for scores in draws]
    return float(np.mean([area for area, _ in each])), np.asarray(np.mean([own for _, own in each], axis=0))


def read_curves(store: Store, folder: str, record: PretrainRecord) -> tuple[Mapping[str, float], ...]:
    """Read ``curves.jsonl``: the numbers of each line."""
    lines = read_listed(store, folder, keys.CURVES, record).splitlines()
    try:
        points = [json.loads(line) for line in lines if line.strip()]
        return tuple(
            {k: float(v) for k, v in point.items() if isinstance(v, int | float)}
            for point in points
            if isinstance(point, dict)
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise Damaged(f"{keys.CURVES} is damaged (not JSON lines of numbers)") from error
