"""How many labels one method saves another: where a curve over labels reaches what the other has with fewer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.science.statistics import Floats, Tested, image_covariance, mixed_interval, shared_covariance

GRID = 240  # numbers of labels that are looked at, evenly on a logarithmic scale


@dataclass(frozen=True)
class Curve:
    """AUROC over labels of one method, draws averaged.

    Attributes:
        labels: numbers of training labels, ascending, (K,).
        areas: AUROC of each seed, (K, S).
        components: what each test image adds to their error, (K, S, N).
    """

    labels: Floats
    areas: Floats
    components: Floats

    def at(self, labels: float) -> tuple[Floats, Floats]:
        """Interpolate, linearly in the logarithm of ``labels``: areas (S,) and components (S, N)."""
        place = np.interp(math.log(labels), np.log(self.labels), np.arange(len(self.labels)))
        low = min(int(place), len(self.labels) - 2) if len(self.labels) > 1 else 0
        high, share = min(low + 1, len(self.labels) - 1), place - low
        return (
            (1 - share) * self.areas[low] + share * self.areas[high],
            (1 - share) * self.components[low] + share * self.components[high],
        )

    def mean(self, y: NDArray[Any], index: int, patients: NDArray[Any] | None = None) -> Tested:
        """Mean AUROC at a point with its interval over seeds and test images (or ``patients``)."""
        covariance = image_covariance(y, self.components[index], patients)
        return mixed_interval(self.areas[index], shared_covariance(covariance))


@dataclass(frozen=True)
class LabelsNeeded:
    """How many labels the control needs for what the other method has with ``labels``.

    ``low`` and ``high`` are the ends of the 95 % interval.  All are infinite beyond the greatest number of labels that
    was tried, and 0 where the smallest does or fewer; the ends are NaN where there is no interval.
    """

    labels: float
    needed: float
    low: float
    high: float

    @property
    def saved(self) -> float:
        """Labels saved; negative where the control does with fewer."""
        return self.needed - self.labels


def difference(
    ours: tuple[Floats, Floats],
    theirs: tuple[Floats, Floats],
    y: NDArray[Any],
    patients: NDArray[Any] | None = None,
) -> Tested:
    """Paired difference in AUROC of areas (S,) with components (S, N), same seeds, with its joint interval."""
    own = ours[1] - theirs[1]
    return mixed_interval(ours[0] - theirs[0], shared_covariance(image_covariance(y, own, patients)))


def labels_needed(
    ours: Curve, control: Curve, labels: float, y: NDArray[Any], patients: NDArray[Any] | None = None
) -> LabelsNeeded:
    """Find the labels with which the control reaches the AUROC of ``ours`` at ``labels``, and an interval.

    The estimate is the first number of labels at which the control's mean curve is as high, 0 if it begins so: it may
    have been as high with fewer.  The interval holds
    every number at which the paired difference of the two is not told from zero by ``mixed_interval``, that is, by
    seeds, draws and test images together: a confidence set by inverting a test (Lehmann and Romano, Testing
    Statistical Hypotheses, section 3.5), which needs no bootstrap of a quantity that may be infinite.

    Args:
        ours: the curve of the method.
        control: the control's, with the same seeds and test images.
        labels: how many labels ``ours`` has.
        y: labels of the test images.
        patients: whose they are, (N,), if that is known.
    """
    target = ours.at(labels)
    grid = np.geomspace(control.labels[0], control.labels[-1], GRID)
    if grid[0] < labels < grid[-1]:  # of its neighbours alone it could not be told whether it is possible
        grid = np.union1d(grid, [labels])
    gaps = [difference(target, control.at(float(n)), y, patients) for n in grid]
    if math.isnan(gaps[0].mean):
        return LabelsNeeded(labels, math.nan, math.nan, math.nan)
    reached = np.array([gap.mean <= 0 for gap in gaps])
    needed = 0.0 if reached[0] else float(grid[reached.argmax()]) if reached.any() else math.inf
    if not gaps[0].known:
        return LabelsNeeded(labels, needed, math.nan, math.nan)
    possible = np.array([gap.low <= 0 <= gap.high for gap in gaps])
    if not possible.any():  # between two points of the grid, or beyond an end
        end = math.inf if gaps[-1].low > 0 else 0.0 if gaps[0].high < 0 else needed
        return LabelsNeeded(labels, needed, end, end)
    low = 0.0 if possible[0] else float(grid[possible.argmax()])
    high = math.inf if possible[-1] else float(grid[len(grid) - 1 - possible[::-1].argmax()])
    return LabelsNeeded(labels, needed, low, high)
