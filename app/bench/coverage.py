"""How often 95 % intervals of a difference hold the truth: simulated studies, whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from app.science.statistics import (
    Floats,
    Interval,
    image_covariance,
    mixed_interval,
    percentile_interval,
    shared_covariance,
    t_interval,
)

METHODS = {
    "mixed": "all together, as shown first",
    "hillis": "all together, Hillis",
    "bootstrap": "all together, bootstrap percentiles",
    "seeds": "seeds alone, t",
    "images": "images alone, DeLong",
}
RESAMPLES = 400
BOOTSTRAPPED = 5  # every fifth study alone, for time


@dataclass(frozen=True)
class World:
    """Where simulated studies come from: two methods, judged on a binary test set.

    A model's score of an image is ``gap * y`` plus noise of variance 1, of which the share ``common`` belongs to the
    image (all models find the same images hard) and ``method`` to image and method. The gap varies with the
    seed (in part for both methods alike) and with the draw, each method by itself. So the expected AUROC is
    ``Phi(gap / sqrt(2 + variance of the gap))``.

    Attributes:
        negatives: images of class 0.
        positives: images of class 1.
        gaps: mean distance of the classes, by method.
        seeds: standard deviation of the gap over seeds; half of its variance is common to both methods.
        draws: standard deviation of the gap over draws.
        common: share of the noise that belongs to the image.
        method: share of the noise that belongs to image and method.
    """

    negatives: int
    positives: int
    gaps: tuple[float, float]
    seeds: float = 0.15
    draws: float = 0.2
    common: float = 0.5
    method: float = 0.2

    @property
    def truth(self) -> float:
        """Expected difference in AUROC."""
        variance = self.seeds**2 + self.draws**2
        ours, theirs = (stats.norm.cdf(gap / math.sqrt(2 + variance)) for gap in self.gaps)
        return float(ours - theirs)

    def study(self, seeds: int, draws: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        """Draw a study: labels (N,) and scores (2, seeds, draws, N)."""
        y = np.repeat([0, 1], [self.negatives, self.positives])
        shape = (2, seeds, draws, len(y))
        alike, own = rng.normal(size=(1, seeds, 1)), rng.normal(size=(2, seeds, 1))
        gap = np.array(self.gaps)[:, None, None] + self.seeds * math.sqrt(0.5) * (alike + own)
        gap = gap + self.draws * rng.normal(size=(2, seeds, draws))
        noise = math.sqrt(self.common) * rng.normal(size=(1, 1, 1, len(y)))
        noise = noise + math.sqrt(self.method) * rng.normal(size=(2, 1, 1, len(y)))
        noise = noise + math.sqrt(1 - self.common - self.method) * rng.normal(size=shape)
        return y, gap[..., None] * y + noise


WORLDS = {
    "BreastMNIST's size (156), no difference": World(42, 114, (1.7, 1.7)),
    "BreastMNIST's size (156), a difference": World(42, 114, (2.0, 1.7)),
    "PneumoniaMNIST's size (624), a difference": World(234, 390, (2.3, 1.9)),
    "2,000 images, a difference, seeds vary much": World(1000, 1000, (1.4, 1.2), seeds=0.3),
    "156 images, seeds hardly vary": World(42, 114, (1.9, 1.7), seeds=0.02, draws=0.02),
}


def components(y: NDArray[np.int64], scores: Floats) -> tuple[Floats, Floats]:
    """``statistics.auroc_components`` of many scores (..., N) at once: AUROCs (...) and components (..., N)."""
    positive = y == 1
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = stats.rankdata(scores, axis=-1)
    own = np.empty(scores.shape)
    own[..., positive] = (ranks[..., positive] - stats.rankdata(scores[..., positive], axis=-1)) / (n * m)
    own[..., ~positive] = (m - ranks[..., ~positive] + stats.rankdata(scores[..., ~positive], axis=-1)) / (n * m)
    areas = own[..., positive].sum(axis=-1)
    own[..., positive] -= (areas / m)[..., None]
    own[..., ~positive] -= (areas / n)[..., None]
    return areas, own


def differences(y: NDArray[np.int64], scores: Floats) -> tuple[Floats, Floats]:
    """Differences in AUROC (seeds, draws) of a study, and what each image adds to their error (seeds, draws, N)."""
    areas, own = components(y, scores)
    return areas[0] - areas[1], own[0] - own[1]


def intervals(
    y: NDArray[np.int64], scores: Floats, rng: np.random.Generator, *, bootstrap: bool = True
) -> dict[str, Interval]:
    """Every kind of interval of the difference of a study's two methods; the bootstrap's, which is slow, if asked."""
    each, parts = differences(y, scores)
    by_seed, own = each.mean(axis=1), parts.mean(axis=1)
    mean = float(by_seed.mean())
    half = 1.96 * math.sqrt(image_covariance(y, own.mean(axis=0, keepdims=True))[0, 0])
    shared = shared_covariance(image_covariance(y, own))
    return {
        "mixed": mixed_interval(by_seed, shared),
        "hillis": hillis_interval(by_seed, shared),
        "seeds": t_interval(by_seed),
        "images": Interval(mean, mean - half, mean + half, len(y)),
    } | ({"bootstrap": _hierarchical_bootstrap(y, each, parts, rng)} if bootstrap else {})


def hillis_interval(values: Floats, shared: float) -> Interval:
    """Obuchowski and Rockette's 95 % interval with the degrees of freedom of Hillis (Stat. Med. 26, 2007)."""
    count, mean = len(values), float(np.mean(values))
    spread, common = float(np.var(values, ddof=1)) / count, max(shared, 0.0)
    df = (count - 1) * ((spread + common) / spread) ** 2
    half = float(stats.t.ppf(0.975, df)) * math.sqrt(spread + common)
    return Interval(mean, mean - half, mean + half, count)


def _hierarchical_bootstrap(y: NDArray[np.int64], each: Floats, parts: Floats, rng: np.random.Generator) -> Interval:
    """Percentiles of a bootstrap that draws seeds, draws within each, and images within classes.

    An AUROC is followed through the resampling of images to first order, by its components: exactly takes hours.
    """
    seeds, draws, images = parts.shape
    weights = np.empty((images, RESAMPLES))
    for members in (np.flatnonzero(y == label) for label in (0, 1)):
        weights[members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES).T
    moved = each[..., None] + parts @ (weights - 1)
    chosen = rng.integers(seeds, size=(RESAMPLES, seeds, 1))
    within = rng.integers(draws, size=(RESAMPLES, seeds, draws))
    resampled = moved[chosen, within, np.arange(RESAMPLES)[:, None, None]].mean(axis=(1, 2))
    return percentile_interval(float(each.mean()), resampled, images)


@dataclass(frozen=True)
class Coverage:
    """What became of one kind of interval over many studies."""

    held: float
    half_width: float


def coverage(world: World, *, seeds: int, draws: int, studies: int, seed: int = 0) -> dict[str, Coverage]:
    """Simulate studies and count how often each kind of interval holds the expected difference."""
    rng = np.random.default_rng([seed, seeds, draws])
    found = [intervals(*world.study(seeds, draws, rng), rng, bootstrap=i % BOOTSTRAPPED == 0) for i in range(studies)]
    of_kind = {kind: [one[kind] for one in found if kind in one] for kind in METHODS}
    return {
        kind: Coverage(
            float(np.mean([i.low <= world.truth <= i.high for i in each])), float(np.mean([i.half_width for i in each]))
        )
        for kind, each in of_kind.items()
    }


def bench_coverage(*, studies: int, seed: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: each world by seeds and draws, coverage (mean half-width) by kind."""
    yield f"Of {studies:,} simulated studies each, how often a 95 % interval held the truth (its mean half-width);"
    yield f"the bootstrap's in every {BOOTSTRAPPED}th study:"
    yield ""
    yield f"| studies | seeds x draws | {' | '.join(METHODS.values())} |"
    yield f"| :-- | --: |{' --: |' * len(METHODS)}"
    for name, world in WORLDS.items():
        for seeds, draws in ((3, 1), (3, 5), (5, 5), (10, 5)):
            found = coverage(world, seeds=seeds, draws=draws, studies=studies, seed=seed)
            cells = [f"{100 * found[kind].held:.1f} % ({found[kind].half_width:.3f})" for kind in METHODS]
            yield f"| {name} | {seeds} x {draws} | {' | '.join(cells)} |"
