"""Seeded choices of samples: tiny stratified subsets and the k-per-class draws of few-shot learning."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from app.errors import UsageError

Indices = NDArray[np.int64]

# Spawn keys that keep these draws apart from each other and from any other use of the same seed.
_SUBSET, _FEW_SHOT = 0x73756273, 0x66657773


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def uniform_subset(count: int, n: int, *, seed: int, stream: int = 0) -> Indices:
    """Return ``min(n, count)`` sorted indices of ``range(count)``, drawn without replacement."""
    _check_subset(n)
    if n >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(_generator(seed, _SUBSET, stream).choice(count, n, replace=False)).astype(np.int64)


def stratified_subset(labels: NDArray[np.int64], n: int, *, seed: int, stream: int = 0) -> Indices:
    """Return at most ``n`` sorted indices that keep the class shares, and every class while ``n`` allows it.

    ``labels`` is (N, L) int64. One column: shares by largest remainder, at least one per class. Several
    columns (multi-label): one positive of each label first, the rest uniformly. ``stream`` separates splits.
    """
    _check_subset(n)
    count = len(labels)
    if n >= count:
        return np.arange(count, dtype=np.int64)
    rng = _generator(seed, _SUBSET, stream)
    order = rng.permutation(count)
    if labels.shape[1] > 1:
        first: list[int] = []
        for column in range(labels.shape[1]):
            positives = order[labels[order, column] == 1]
            if len(first) < n and len(positives) and not (labels[first, column] == 1).any():
                first.append(int(positives[0]))
        rest = order[~np.isin(order, first)]
        return np.sort(np.concatenate([np.array(first, np.int64), rest[: n - len(first)]])).astype(np.int64)
    classes, sizes = np.unique(labels[:, 0], return_counts=True)
    quota = shares(sizes, n)
    ranked = labels[order, 0]
    chosen = [order[ranked == value][:take] for value, take in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def shares(sizes: Indices, n: int) -> Indices:
    """Split ``n`` in proportion to ``sizes`` (int64, all > 0, sum >= n), at least 1 each while ``n`` allows.

    The parts sum to ``n`` and none exceeds its size. Largest-remainder rule; ties go to the larger class.
    """
    floor = np.minimum(sizes, 1) if n >= len(sizes) else np.zeros_like(sizes)
    ideal = n * sizes / sizes.sum()
    quota: Indices = np.maximum(np.floor(ideal).astype(np.int64), floor)
    by_size = np.argsort(-sizes, kind="stable")
    while quota.sum() > n:
        excess = np.where(quota > floor, quota - ideal, -np.inf)
        quota[by_size[np.argmax(excess[by_size])]] -= 1
    while quota.sum() < n:
        need = np.where(quota < sizes, ideal - quota, -np.inf)
        quota[by_size[np.argmax(need[by_size])]] += 1
    return quota


def few_shot_draw(
    labels: NDArray[np.int64],
    k: int,
    seed: int,
    draw: int,
    *,
    class_names: Sequence[str],
    dataset: str,
    protocols: Sequence[str] = ("few_shot",),
) -> Indices:
    """Return the sorted training indices (int64) of few-shot draw number ``draw``: ``k`` per class.

    ``labels`` is (N, L) int64. One column: exactly ``k`` of each class in ``range(len(class_names))``,
    without replacement. Several columns (multi-label): the union of ``k`` positives of each label. Draws are
    keyed by (seed, draw) and independent of each other. Raises UsageError if a class has fewer than ``k``; the message
    names the settings of ``protocols``, those that ask for so many.
    """
    if k < 1:
        raise UsageError(f"k={k} is not a number of images per class; use {_settings(protocols, 1)} or more")
    members = class_members(labels, len(class_names))
    smallest = min(range(len(members)), key=lambda index: len(members[index]))
    size = len(members[smallest])
    if size == 0:
        raise UsageError(
            f"class {smallest} '{class_names[smallest]}' of {dataset} has no training images; "
            "few-shot needs some of every class: use more data or another dataset"
        )
    if k > size:
        raise UsageError(
            f"k={k} is larger than class {smallest} '{class_names[smallest]}' of {dataset}, "
            f"which has {size} training images; use {_settings(protocols, size)} or less"
        )
    rng = _generator(seed, _FEW_SHOT, draw)
    chosen = [rng.choice(indices, k, replace=False) for indices in members]
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def class_members(labels: NDArray[np.int64], n_classes: int) -> list[Indices]:
    """Return the indices of each class, or of each label's positives; ``labels`` is (N, L) int64."""
    single = labels.shape[1] == 1
    return [np.flatnonzero(labels[:, 0] == index if single else labels[:, index] == 1) for index in range(n_classes)]


def _settings(protocols: Sequence[str], k: int) -> str:
    return " ".join(f"--set protocols.{protocol}.k={k}" for protocol in protocols)


def draw_overlap(draws: Sequence[NDArray[np.int64]]) -> float | None:
    """Return the draws' mean pairwise Jaccard index (shared / joint size); None for fewer than two."""
    pairs = [len(np.intersect1d(one, other)) / len(np.union1d(one, other)) for one, other in combinations(draws, 2)]
    return float(np.mean(pairs)) if pairs else None


def _check_subset(n: int) -> None:
    if n < 1:
        raise UsageError(f"a subset of {n} images is empty; ask for 1 or more")
