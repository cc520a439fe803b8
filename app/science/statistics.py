"""How sure a number is: intervals over seeds, over test images, and for differences of two methods.

Two sources of chance answer different questions:

* *Seeds*: would another run of the same recipe give the same?  t-intervals over seeds (:func:`t_interval`,
  :func:`paired_t_difference`).
* *Test images*: would another test set of the same size give the same?  :func:`delong_interval` for a binary AUROC,
  :func:`app.science.bootstrap.bootstrap_means` for any task.

The interval that is shown first, :func:`mixed_interval`, answers both at once; :func:`holm` adjusts many of them.

Everywhere ``y`` holds integer labels: shape ``(N,)`` (or ``(N, 1)``) with class numbers, or ``(N, L)`` of 0/1
for L > 1 independent labels (one below 0 is missing, and left out).  A score is float, larger means more likely:
``(N,)``, ``(N, 1)`` or ``(N, 2)`` (last column = the positive class) for binary labels, ``(N, C)`` for C classes,
``(N, L)`` for L labels.  ``patients`` tells, by any whole numbers of shape ``(N,)``, whose each image is: another test
set has other patients, and images of one are alike.  Without it every image is taken for a patient of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from app.science.power import Variances, half_width

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval.

    ``n`` is the number of independent things it was computed from (seeds, or test images).  ``low`` and
    ``high`` are NaN where no interval exists, as with one seed.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the distance of the two ends; NaN where there is no interval."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Whether both ends are finite numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; False where there is no interval."""
        return self.known and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Tested(Interval):
    """An interval with the test that it comes from.

    ``spread`` and ``common`` are the variances of the mean over seeds and over test images, and ``p`` is the two-sided
    p-value of a mean of zero: 1 minus the greatest confidence at which the interval excludes zero. All are NaN where
    there is no interval.
    """

    spread: float
    common: float
    p: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.spread + self.common)

    @property
    def variances(self) -> Variances:
        """What foresees others like it."""
        return Variances(self.spread * self.n, self.common)


# --- over seeds ------------------------------------------------------------------------------------


def t_interval(values: Sequence[float] | Floats, confidence: float = 0.95) -> Interval:
    """Mean of independent values (one per seed) with Student's t-interval, ``mean ± t * s / sqrt(n)``.

    One value gives its mean and NaN ends: a single run says nothing about the next.  No values, or a NaN
    among them, give NaN throughout.  The ends are not clipped, so an interval of a score may pass 1.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"t_interval needs a flat sequence, got shape {x.shape}")
    n = int(x.size)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired_t_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats, confidence: float = 0.95) -> Interval:
    """Mean of ``a[i] - b[i]`` over seeds with its t-interval; both in the same order of seeds."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"paired values need equal shapes, got {x.shape} and {y.shape}")
    return t_interval(x - y, confidence)


# --- over seeds, draws and test images together ----------------------------------------------------


def mixed_interval(values: Sequence[float] | Floats, shared: float, confidence: float = 0.95) -> Tested:
    """Mean of one value per seed, with its interval over seeds *and* the test images on which all were judged.

    The variance is that of the mixed model of Obuchowski and Rockette (Commun. Stat. Simul. 24, 1995), with seeds for
    readers and images for cases, ``s^2 / S + c``: s^2 is the variance of the S values and c their covariance through
    the common images, at least 0.  The spread of the values holds all that differs from seed to seed: initialisation,
    order, few-shot draws (nested in seeds: give the mean over a seed's draws), and how seed and images interact; c is
    what it cannot show, as all see the same images.  The half-width joins those of both parts after Howe (JASA 69,
    1974), ``sqrt(t^2 s^2 / S + z^2 c)`` with S - 1 degrees of freedom: the t-interval over seeds where images do not
    matter, DeLong's where seeds do not.

    Not the percentiles of a bootstrap of seeds, draws and images: its variance over S seeds is too small by (S - 1) / S
    and it takes no heed of the t-distribution (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).  Nor
    Hillis' degrees of freedom (Stat. Med. 26, 2007): with three seeds a nominal 95 % then covers 92 to 93 %.
    ``python -m app bench coverage`` measures all of them.

    Args:
        values: one per seed, such as paired differences in AUROC.
        shared: c, the mean covariance of two seeds' values over the drawing of test images (:func:`shared_covariance`).
        confidence: of the interval.

    Returns:
        The mean with its interval; NaN ends for fewer than two values, or if anything is NaN.
    """
    x = np.asarray(values, dtype=np.float64)
    n = int(x.size)
    mean = float(x.mean()) if n else math.nan
    if n < 2 or not math.isfinite(mean + shared):
        return Tested(mean, math.nan, math.nan, n, math.nan, math.nan, math.nan)
    spread, common = float(x.var(ddof=1)) / n, max(shared, 0.0)
    half = float(half_width(1 - confidence, n - 1, spread, common))
    return Tested(mean, mean - half, mean + half, n, spread, common, _p_value(mean, n - 1, spread, common))


def _p_value(mean: float, df: int, spread: float, common: float) -> float:
    if mean == 0:
        return 1.0
    if spread + common == 0:
        return 0.0
    lowest = 1e-15  # of a p-value: no finite sample knows it better

    def excess(log: float) -> float:
        return float(half_width(math.exp(log), df, spread, common)) - abs(mean)

    if excess(math.log(lowest)) <= 0:
        return lowest
    return math.exp(float(optimize.brentq(excess, math.log(lowest), 0.0)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Stat. 6, 1979), in the order given.

    Rejecting where one is at most alpha keeps the chance of any false rejection within alpha, whatever the dependence.
    A NaN stays one and does not count.
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    greatest = 0.0
    for rank, (p, i) in enumerate(known):
        greatest = max(greatest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = greatest
    return adjusted


def auroc_components(y: NDArray[Any], score: NDArray[Any]) -> tuple[float, Floats]:
    """AUROC (macro average as in :func:`weighted_auroc`) and what each image adds to its error, shape ``(N,)``.

    DeLong's structural components, centred and divided by the size of their class: the variance of the sum over a
    stratified sample is DeLong's.  Averages over classes, draws and seeds, and differences, of AUROCs have the same
    averages and differences as components, which is what makes covariances cheap.  NaN where no class has a curve; the
    components are NaN too where a class has a single image, of whose kind nothing tells how it varies.
    """
    components: Floats = np.zeros(np.shape(y)[0])
    areas = []
    for positive, s, images in _one_against_rest(y, score):
        m, n = int(positive.sum()), int((~positive).sum())
        if not m or not n:
            continue
        above, below = (np.full(m, math.nan), np.full(n, math.nan)) if np.isnan(s).any() else _placements(positive, s)
        area = float(above.mean())
        own = np.full(len(s), math.nan)
        if min(m, n) > 1:
            own[positive], own[~positive] = (above - area) / m, (below - area) / n
        components[images] += own
        areas.append(area)
    if not areas:
        return math.nan, np.full_like(components, math.nan)
    return float(np.mean(areas)), components / len(areas)


def image_covariance(y: NDArray[Any], components: Floats, patients: NDArray[Any] | None = None) -> Floats:
    """Covariance, shape ``(S, S)``, of S AUROCs (or differences) over test sets like this one.

    Args:
        y: labels; classes are strata, as in the bootstrap.
        components: what each image adds to the error of each, shape ``(S, N)`` (:func:`auroc_components`).
        patients: of each image; their components are summed then, after Obuchowski (Biometrics 53, 1997).
    """
    if patients is not None:
        return _patient_covariance(y, components, patients)
    covariance: Floats = np.zeros((len(components), len(components)))
    for members in strata(y):
        if len(members) > 1:
            own = components[:, members]
            own = own - own.mean(axis=1, keepdims=True)
            covariance += own @ own.T * (len(members) / (len(members) - 1))
    return covariance


def _patient_covariance(y: NDArray[Any], components: Floats, patients: NDArray[Any]) -> Floats:
    """Sum the covariances of patients' sums within classes and, as a patient may have images of several, between them.

    Each is scaled by I / (I - 1) for I patients: of the class, or between classes of all.  NaN for a single patient,
    and where a class is of one alone whose images differ.
    """
    names, place = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return np.full((len(components), len(components)), math.nan)

    def scatter(sums: Floats, count: int) -> Floats:
        return np.asarray(sums @ sums.T * (count / (count - 1)))

    together: Floats = np.zeros((len(components), len(names)))
    within: Floats = np.zeros((len(components), len(components)))
    for members in strata(y):
        count = len(np.unique(place[members]))
        own = components[:, members]
        own = own - own.mean(axis=1, keepdims=True)
        if count == 1 and own.any():
            return np.full_like(within, math.nan)
        if count > 1:
            sums = np.array([np.bincount(place[members], row, len(names)) for row in own], dtype=np.float64)
            together += sums
            within += scatter(sums, count) - scatter(sums, len(names))
    return scatter(together, len(names)) + within


def shared_covariance(covariance: Floats) -> float:
    """Mean of the elements off the diagonal: how two of S values move together; NaN for one value."""
    count = len(covariance)
    if count < 2:
        return math.nan
    return float((covariance.sum() - np.trace(covariance)) / (count * (count - 1)))


# --- over test images: AUROC of one binary test set ------------------------------------------------


def _binary(y: NDArray[Any], score: NDArray[Any]) -> tuple[NDArray[np.bool_], Floats]:
    """Return the positives as a mask and the positive class's score, both of shape ``(N,)``."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    s = np.asarray(score, dtype=np.float64)
    if s.ndim == 2 and s.shape[1] in (1, 2):
        s = s[:, -1]
    if labels.ndim != 1 or s.shape != labels.shape:
        raise ValueError(f"not a binary problem: labels {np.shape(y)}, scores {np.shape(score)}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("binary labels must be 0 or 1")
    return labels == 1, s


def _placements(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """DeLong's placement values through midranks (Sun & Xu 2014), O(N log N).

    Returns for each positive the share of negatives below it, and for each negative the share of positives
    above it; ties count one half.
    """
    pos, neg = score[positive], score[~positive]
    m, n = pos.size, neg.size
    ranks = stats.rankdata(np.concatenate([pos, neg]))  # midranks
    return (ranks[:m] - stats.rankdata(pos)) / n, 1.0 - (ranks[m:] - stats.rankdata(neg)) / m


def delong_variance(y: NDArray[Any], score: NDArray[Any]) -> tuple[float, float]:
    """AUROC and its variance after DeLong, DeLong & Clarke-Pearson (1988), with Sun & Xu's (2014) midranks.

    NaN for both where a class is absent; the variance is NaN where a class has a single image.
    """
    positive, s = _binary(y, score)
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0 or np.isnan(s).any():
        return math.nan, math.nan
    v10, v01 = _placements(positive, s)
    variance = math.nan if min(m, n) < 2 else float(v10.var(ddof=1) / m + v01.var(ddof=1) / n)
    return float(v10.mean()), variance


def delong_interval(
    y: NDArray[Any], score: NDArray[Any], confidence: float = 0.95, patients: NDArray[Any] | None = None
) -> Interval:
    """Interval of a binary AUROC over test images: ``auc ± z * sqrt(variance)``, clipped to [0, 1].

    ``n`` is the number of test images.  A perfect separation has variance 0 and so an interval of no
    width: the method cannot see further than its test set.  With ``patients`` the variance is Obuchowski's (1997), NaN
    where a class has a single one.
    """
    auc, variance = delong_variance(y, score)
    if patients is not None and math.isfinite(variance):
        few = min(len(np.unique(patients[members])) for members in strata(y)) < 2
        own = auroc_components(y, score)[1][None]
        variance = math.nan if few else float(image_covariance(y, own, patients)[0, 0])
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance)
    low, high = np.clip([auc - half, auc + half], 0, 1)
    return Interval(auc, float(low), float(high), int(np.shape(y)[0]))


# --- over test images: AUROC of any task, re-weighted ----------------------------------------------


def _one_against_rest(
    y: NDArray[Any], score: NDArray[Any]
) -> list[tuple[NDArray[np.bool_], Floats, NDArray[np.bool_] | slice]]:
    """Split any task into binary ones: a list of (positives, score, the images that count), one for binary labels."""
    labels, s = np.asarray(y), np.asarray(score, dtype=np.float64)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if s.ndim == 1:
        s = s[:, None]
    if labels.shape[0] != s.shape[0]:
        raise ValueError(f"{labels.shape[0]} labels but {s.shape[0]} scores")
    if labels.ndim == 2:
        if labels.shape != s.shape:
            raise ValueError(f"labels {labels.shape} and scores {s.shape} must have one column per label")
        known = [labels[:, c] >= 0 for c in range(s.shape[1])]
        return [(labels[k, c] == 1, s[k, c], slice(None) if k.all() else k) for c, k in enumerate(known)]
    if s.shape[1] <= 2:
        return [(*_binary(labels, s), slice(None))]
    return [(labels == c, s[:, c], slice(None)) for c in range(s.shape[1])]


def weighted_auroc(y: NDArray[Any], score: NDArray[Any], counts: Counts) -> Floats:
    """AUROC under each column of ``counts`` (shape ``(N, B)``) -> shape ``(B,)``; ties count one half.

    Macro average of one class against the rest, or of the labels.  A class without positives or without
    negatives has no curve and is left out, as in :mod:`app.science.metrics`; NaN where none has one, or for NaN
    scores.
    """
    total: Floats = np.zeros(counts.shape[1])
    defined: Floats = np.zeros(counts.shape[1])
    for positive, s, images in _one_against_rest(y, score):
        if np.isnan(s).any():
            return np.full(counts.shape[1], math.nan)
        order = np.argsort(s, kind="stable")
        ranked, is_positive = s[order], positive[order]
        drawn = counts[images][order]
        hits = drawn[is_positive].astype(np.float64)
        negatives = np.zeros((len(s) + 1, counts.shape[1]), dtype=np.int32)
        drawn[is_positive] = 0
        np.cumsum(drawn, axis=0, out=negatives[1:])
        below = negatives[np.searchsorted(ranked, ranked[is_positive], side="left")]
        up_to = negatives[np.searchsorted(ranked, ranked[is_positive], side="right")]
        wins = np.einsum("pb,pb->b", hits, below + up_to) / 2
        pairs = hits.sum(axis=0) * negatives[-1]
        there = pairs > 0
        total[there] += wins[there] / pairs[there]
        defined += there
    return np.divide(total, defined, out=np.full_like(total, math.nan), where=defined > 0)


def strata(y: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the images of each class; all in one where they have several labels, whose combinations are too many."""
    labels = np.asarray(y)
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else np.zeros(len(labels), dtype=np.int64)
    return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def percentile_interval(estimate: float, samples: Floats, images: int, confidence: float = 0.95) -> Interval:
    """Percentile interval of bootstrap ``samples`` around ``estimate``; NaN ends if a sample is NaN."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high), images)
