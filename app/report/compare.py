"""From records to statements: means with intervals, paired differences and what may be said about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.report.collect import CellKey, Labels, Result, Study, mean_components
from app.science.bootstrap import bootstrap_means
from app.science.power import LEVEL, baseline_of, compared
from app.science.statistics import (
    Floats,
    Interval,
    Tested,
    delong_interval,
    holm,
    image_covariance,
    mixed_interval,
    paired_t_difference,
    percentile_interval,
    shared_covariance,
    t_interval,
    weighted_auroc,
)

RESAMPLES = 2000

Verdict = Literal["better", "worse", "unsettled", "none", "unknown"]


def joint_verdict(joint: Tested, adjusted: float) -> Verdict:
    """Say what an interval over all kinds of chance allows whose p-value after Holm's correction is ``adjusted``."""
    if not joint.excludes_zero:
        return "none" if joint.known else "unknown"
    if not adjusted < LEVEL:
        return "unsettled"
    return "better" if joint.mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """AUROC of ``method`` minus AUROC of ``baseline`` on one dataset and protocol.

    ``joint`` is the interval over seeds, draws and test images together, None without predictions of both; ``adjusted``
    its p-value after Holm's correction for all comparisons of the study.  ``seeds`` is the paired t-interval over the
    seeds that both have, and ``images`` the paired bootstrap interval over test images, None without predictions.
    """

    dataset: str
    protocol: str
    method: str
    baseline: str
    seeds: Interval
    images: Interval | None
    joint: Tested | None = None
    adjusted: float = math.nan

    @property
    def difference(self) -> float:
        """Mean difference over the common seeds; NaN if there are none."""
        return self.seeds.mean

    @property
    def verdict(self) -> Verdict:
        """What may be said.

        ``better`` and ``worse`` are settled; ``unsettled`` means that an interval excludes zero, but the joint one only
        before the correction, or there is none (one seed, or no predictions); ``none`` that zero is inside; ``unknown``
        that there is no interval.
        """
        if self.joint is not None and self.joint.known:
            return joint_verdict(self.joint, self.adjusted)
        intervals = [i for i in (self.seeds, self.images) if i is not None and i.known]
        if not intervals:
            return "unknown"
        return "unsettled" if any(i.excludes_zero for i in intervals) else "none"


class Analysis:
    """The numbers of a study, each computed once and then kept."""

    def __init__(self, study: Study, resamples: int = RESAMPLES) -> None:
        self.study = study
        self.resamples = resamples
        self._distributions: dict[tuple[str, ...], NDArray[np.float64]] = {}
        self._components: dict[str, tuple[float, Floats]] = {}

    def results(self, dataset: str, protocol: str, method: str) -> tuple[Result, ...]:
        """Finished jobs of a cell."""
        return self.study.cells.get((dataset, protocol, method), ())

    def metric(self, key: CellKey, name: str) -> Interval:
        """Mean of a test metric over the finished seeds of a cell with its t-interval."""
        return t_interval(_by_seed(self.results(*key), name))

    def delong(self, result: Result) -> Interval | None:
        """DeLong interval of the saved model's AUROC; None unless the task is binary and scores are there."""
        y = self.study.test_labels.get(result.record.dataset)
        if y is None or result.chosen is None or result.record.task != "binary-class":
            return None
        return delong_interval(y, result.chosen, patients=self.patients(result.record.dataset))

    def patients(self, dataset: str) -> NDArray[np.int64] | None:
        """Whose each test image is, (N,); None where that is not known, or no patient has several."""
        return self.study.test_patients.get(dataset)

    def confusion(self, key: CellKey) -> NDArray[np.float64] | None:
        """Confusion matrix (rows = truth), mean count over the finished seeds; None where there is none."""
        matrices = [r.record.confusion_matrix for r in self.results(*key) if r.record.confusion_matrix]
        if not matrices or len({np.shape(m) for m in matrices}) != 1:
            return None
        return np.asarray(np.mean(matrices, axis=0), dtype=np.float64)

    @cached_property
    def baseline(self) -> str | None:
        """The method that others are compared with: random if the study has it, else imagenet."""
        return baseline_of(self.study.methods)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every method minus the baseline, and BYOL+ minus BYOL, where both cells have a finished job."""
        found = [
            self._compare(dataset, protocol, method, baseline)
            for dataset in self.study.datasets
            for protocol in self.study.protocols(dataset)
            for method, baseline in compared(self.study.methods)
            if self.results(dataset, protocol, method) and self.results(dataset, protocol, baseline)
        ]
        adjusted = holm([c.joint.p if c.joint else math.nan for c in found])
        return tuple(replace(c, adjusted=p) for c, p in zip(found, adjusted, strict=True))

    @cached_property
    def against_baseline(self) -> Mapping[CellKey, Comparison]:
        """Comparisons with the baseline by cell."""
        return {(c.dataset, c.protocol, c.method): c for c in self.comparisons if c.baseline == self.baseline}

    def _compare(self, dataset: str, protocol: str, method: str, baseline: str) -> Comparison:
        key, other = (dataset, protocol, method), (dataset, protocol, baseline)
        return compare_cells(key, baseline, (self, self.results(*key)), (self, self.results(*other)))

    def by_seed(self, y: Labels, results: Sequence[Result]) -> tuple[Floats, Floats]:
        """AUROC of each seed, ascending, (S,), and what each test image adds to its error, (S, N): means over draws."""
        areas, components = zip(*(self.components_of(y, r) for r in results), strict=True)
        return seed_means(_seeds(results), areas), seed_means(_seeds(results), components)

    def components_of(self, y: Labels, result: Result) -> tuple[float, Floats]:
        """Mean AUROC of a job's draws, and what each test image adds to its error, (N,)."""
        if result.record.key not in self._components:
            self._components[result.record.key] = mean_components(y, result.draws)
        return self._components[result.record.key]

    def distribution(self, y: Labels, results: Sequence[Result]) -> NDArray[np.float64]:
        """Bootstrap means over the seeds of some jobs; all see the same resamples (drawn from ``y`` and one seed)."""
        key = tuple(r.record.key for r in results)
        if key not in self._distributions:
            patients = self.patients(results[0].record.dataset)
            found = bootstrap_means(weighted_auroc, y, [r.draws for r in results], self.resamples, patients=patients)
            self._distributions[key] = seed_means(_seeds(results), found).mean(axis=0)
        return self._distributions[key]


def compare_cells(
    key: CellKey,
    baseline: str,
    ours: tuple[Analysis, tuple[Result, ...]],
    theirs: tuple[Analysis, tuple[Result, ...]],
    *,
    same_images: bool = True,
) -> Comparison:
    """Subtract some jobs' AUROC from that of others, over the seeds that both have.

    Args:
        key: dataset, protocol and method, for which the comparison stands.
        baseline: what is subtracted, by name.
        ours: jobs, with the analysis of their study.
        theirs: those that are subtracted, of the same study or another.
        same_images: all were judged on the same test images; else there is no interval over images.
    """
    (us, mine), (them, others) = ours, theirs
    common = {r.record.seed for r in mine} & {r.record.seed for r in others}
    mine, others = _only(mine, common), _only(others, common)
    seeds = paired_t_difference(_by_seed(mine), _by_seed(others))
    y = us.study.test_labels.get(key[0])
    if y is None or not mine or not same_images or any(not r.draws for r in (*mine, *others)):
        return Comparison(*key, baseline, seeds, None)
    (areas, own), (their_areas, their_own) = us.by_seed(y, mine), them.by_seed(y, others)
    covariance = image_covariance(y, own - their_own, us.patients(key[0]))
    joint = mixed_interval(areas - their_areas, shared_covariance(covariance))
    images = None
    if np.isfinite(covariance).all():  # else a class has a single image, which every resample has
        images = percentile_interval(joint.mean, us.distribution(y, mine) - them.distribution(y, others), len(y))
    return Comparison(*key, baseline, seeds, images, joint)


def _only(results: Sequence[Result], seeds: set[int]) -> tuple[Result, ...]:
    return tuple(r for r in results if r.record.seed in seeds)


def seed_means(seeds: Sequence[int], values: ArrayLike) -> Floats:
    """Average what jobs have, (J, ...), over those of each seed, ascending: (S, ...).

    A seed has several where encoders of other pretrainings are judged by it, too.
    """
    of, x = np.asarray(seeds), np.asarray(values, dtype=np.float64)
    return np.array([x[of == seed].mean(axis=0) for seed in np.unique(of)])


def _seeds(results: Iterable[Result]) -> list[int]:
    return [r.record.seed for r in results]


def _by_seed(results: Sequence[Result], name: str = "auroc") -> Floats:
    """A test metric of each seed, ascending."""
    return seed_means(_seeds(results), [r.record.metrics.get(name, math.nan) for r in results])
