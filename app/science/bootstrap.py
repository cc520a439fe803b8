"""The bootstrap over test images: a metric under many re-weightings of them, the same for all methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.science.statistics import Counts, Floats, strata

_CHUNK_ELEMENTS = 2_000_000  # images x resamples held at once: keeps the bootstrap's memory near 50 MB


class WeightedMetric(Protocol):
    """A metric of one set of predictions under many re-weightings of the test images at once."""

    def __call__(self, y: NDArray[Any], score: NDArray[Any], counts: Counts, /) -> Floats:
        """Return shape ``(B,)`` for ``counts`` of shape ``(N, B)``: how often each image was drawn."""
        ...


def _resamples(y: NDArray[Any], n: int, seed: int) -> Iterator[Counts]:
    """Yield draws with replacement, as counts of shape ``(N, up to chunk)``, ``n`` columns in all.

    Class by class, so that every resample has the class counts of the test set and its AUROC is defined;
    images with several labels are drawn as they come, since their label combinations are too many to keep
    fixed.
    """
    classes, images = strata(y), np.shape(y)[0]
    generator = np.random.default_rng(seed)
    chunk = max(1, min(n, _CHUNK_ELEMENTS // max(1, images)))
    for start in range(0, n, chunk):
        columns = min(chunk, n - start)
        counts = np.empty((images, columns), dtype=np.int32)
        for members in classes:
            picks = generator.integers(0, len(members), size=(len(members), columns))
            flat = np.bincount((picks * columns + np.arange(columns)).ravel(), minlength=picks.size)
            counts[members] = flat.reshape(len(members), columns)
        yield counts


def bootstrap_means(
    metric: WeightedMetric,
    y: NDArray[Any],
    groups: Sequence[Sequence[NDArray[Any]]],
    n: int = 2000,
    seed: int = 0,
) -> Floats:
    """Mean metric of each group of predictions under the same ``n`` resamples -> shape ``(len(groups), n)``.

    A group holds the scores of one method's runs (seeds, draws) on one test set.  All groups see the same
    resamples, so two rows may be subtracted: that is the paired bootstrap.
    """
    chunks = [
        np.stack([np.mean([metric(y, score, counts) for score in scores], axis=0) for scores in groups])
        for counts in _resamples(y, n, seed)
    ]
    return np.asarray(np.concatenate(chunks, axis=1), dtype=np.float64)
