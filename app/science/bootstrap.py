"""The bootstrap over test images, or patients: a metric under many re-weightings, the same for all methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.science.statistics import Counts, Floats, strata

_CHUNK_ELEMENTS = 500_000  # images x resamples held at once: what a cache holds; 2,000,000 take four times as long


class WeightedMetric(Protocol):
    """A metric of one set of predictions under many re-weightings of the test images at once."""

    def __call__(self, y: NDArray[Any], score: NDArray[Any], counts: Counts, /) -> Floats:
        """Return shape ``(B,)`` for ``counts`` of shape ``(N, B)``: how often each image was drawn."""
        ...


def _drawn(y: NDArray[Any], patients: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the patients, numbered from 0, that are drawn among each other: those of one class, by their rarest."""
    classes = strata(y)
    rarest = np.empty(patients.max() + 1, dtype=np.int64)
    for c in sorted(range(len(classes)), key=lambda c: -len(classes[c])):
        rarest[patients[classes[c]]] = c
    return [members for c in range(len(classes)) if len(members := np.flatnonzero(rarest == c))]


def _resamples(y: NDArray[Any], n: int, seed: int, patients: NDArray[Any] | None = None) -> Iterator[Counts]:
    """Yield draws with replacement, as counts of shape ``(N, up to chunk)``, ``n`` columns in all.

    Class by class, so that every resample has the class counts of the test set and its AUROC is defined;
    images with several labels are drawn as they come, since their label combinations are too many to keep
    fixed.  Patients are drawn with all their images, within the rarest class that they have one of.
    """
    images = np.shape(y)[0]
    place = np.arange(images) if patients is None else np.unique(patients, return_inverse=True)[1]
    together, units = _drawn(y, place), int(place.max()) + 1
    generator = np.random.default_rng(seed)
    chunk = max(1, min(n, _CHUNK_ELEMENTS // max(1, images)))
    for start in range(0, n, chunk):
        columns = min(chunk, n - start)
        counts = np.empty((units, columns), dtype=np.int32)
        for members in together:
            picks = generator.integers(0, len(members), size=(len(members), columns))
            flat = np.bincount((picks * columns + np.arange(columns)).ravel(), minlength=picks.size)
            counts[members] = flat.reshape(len(members), columns)
        yield counts if patients is None else counts[place]


def bootstrap_means(
    metric: WeightedMetric,
    y: NDArray[Any],
    groups: Sequence[Sequence[NDArray[Any]]],
    n: int = 2000,
    seed: int = 0,
    patients: NDArray[Any] | None = None,
) -> Floats:
    """Mean metric of each group of predictions under the same ``n`` resamples -> shape ``(len(groups), n)``.

    A group holds the scores of one method's runs (seeds, draws) on one test set.  All groups see the same
    resamples, so two rows may be subtracted: that is the paired bootstrap.  ``patients`` tells whose each image is.
    """
    chunks = [
        np.stack([np.mean([metric(y, score, counts) for score in scores], axis=0) for scores in groups])
        for counts in _resamples(y, n, seed, patients)
    ]
    return np.asarray(np.concatenate(chunks, axis=1), dtype=np.float64)
