"""Which difference of two methods a study can find: before it is run, from its sizes and expected variances."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes half a second to load, and `plan` answers at once

LEVEL = 0.05  # of a test, at which a difference is called settled


@dataclass(frozen=True)
class Variances:
    """Variances of a paired difference in AUROC.

    Attributes:
        seed: of one seed's difference, of all that differs from seed to seed; few-shot draws are averaged in it.
        common: of what all seeds share: that these and no other test images were drawn.
    """

    seed: float
    common: float


@dataclass(frozen=True)
class Detectable:
    """What a study can find out.

    Attributes:
        settled: half-width that the interval is expected to have: smaller differences are settled by luck alone.
        found: difference that is settled in 4 of 5 such studies.
    """

    settled: float
    found: float


def baseline_of(methods: Collection[str]) -> str | None:
    """Return the control that the other methods are compared with: random if it is there, else imagenet."""
    return next((m for m in ("random", "imagenet") if m in methods), None)


def compared(methods: Collection[str]) -> list[tuple[str, str]]:
    """Return which methods a report subtracts from which: every one minus the control, and BYOL+ minus BYOL."""
    baseline = baseline_of(methods)
    pairs = [(m, baseline) for m in methods if baseline and m != baseline]
    return [*pairs, ("byol_plus", "byol")] if {"byol", "byol_plus"} <= set(methods) else pairs


def mean_variances(found: Sequence[Variances]) -> Variances:
    """Average those of several comparisons.

    Not their median, which is too small where seeds are few: that of a variance of three is 0.69 times its mean
    (chi-squared with two degrees of freedom).
    """
    return Variances(float(np.mean([one.seed for one in found])), float(np.mean([one.common for one in found])))


def auroc_variance(area: float, positives: int, negatives: int) -> float:
    """Variance of an AUROC over test images (Hanley and McNeil, Radiology 143, 1982, equations 1 and 2)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return spread / (positives * negatives)


def macro_variance(area: float, class_counts: Sequence[int], images: int, *, labels: bool = False) -> float:
    """Variance of a macro-averaged AUROC, each class against the rest, taken to be independent.

    Two classes have one curve, two ``labels`` of a multi-label task one each.  Without images, or without others, there
    is none.
    """
    counts = [n for n in class_counts if 0 < n < images]
    if len(class_counts) == 2 and not labels:
        counts = counts[:1]
    each = [auroc_variance(area, n, images - n) for n in counts]
    return sum(each) / len(each) ** 2 if each else math.nan


def paired_variance(variance: float, correlation: float) -> float:
    """Variance of the difference of two AUROCs of equal variance on the same images (Hanley and McNeil 1983)."""
    return 2 * variance * (1 - correlation)


def half_width(
    alpha: float, df: int, spread: float | NDArray[np.float64], common: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Half-width of ``statistics.mixed_interval`` from the variances of a mean over seeds (``df``) and over images."""
    t, z = special.stdtrit(df, 1 - alpha / 2), special.ndtri(1 - alpha / 2)
    return np.asarray(np.sqrt(t**2 * spread + z**2 * common))


def power(difference: float, variances: Variances, seeds: int, alpha: float = LEVEL) -> float:
    """Probability that ``mixed_interval`` settles a difference in its own direction.

    The mean is normal and independent of the variance over seeds, a multiple of a chi-squared: the
    normal probability of passing the half-width is averaged over the quantiles of that.
    """
    levels = (np.arange(400) + 0.5) / 400
    drawn = special.chdtri(seeds - 1, levels) / (seeds - 1) * variances.seed / seeds
    half = half_width(alpha, seeds - 1, drawn, variances.common)
    error = math.sqrt(variances.seed / seeds + variances.common)
    return float(np.mean(special.ndtr((difference - half) / error)))


def detectable(variances: Variances, seeds: int, *, wanted: float = 0.8, alpha: float = LEVEL) -> Detectable | None:
    """Return what ``seeds`` seeds can find out at ``alpha``, without a correction for many comparisons.

    None for one seed, or without variance: one seed cannot say how another would end.
    """
    from scipy import optimize

    total = variances.seed + variances.common
    if seeds < 2 or not math.isfinite(total) or total <= 0:
        return None
    settled = float(half_width(alpha, seeds - 1, variances.seed / seeds, variances.common))

    def lacking(difference: float) -> float:
        return power(difference, variances, seeds, alpha) - wanted

    return Detectable(settled, float(optimize.brentq(lacking, 0.0, 20 * settled)))
