"""What a clinician asks of a classifier: operating points, and whether its probabilities can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from app.science.metrics import BINARY, Ints
from app.science.statistics import Floats, Interval, image_covariance, t_interval

BINS = 15  # of the expected calibration error, as Guo et al. (ICML 2017)
_TINY = 1e-12  # below it a probability is taken for this


def threshold_for(labels: Ints, scores: Floats, *, sensitivity: float = 0.0, specificity: float = 0.0) -> float:
    """Choose on validation data what P(1) has to exceed for a yes, so that one of the two rates is at least as asked.

    Of the thresholds that do, the one that gives most of the other rate; it lies in the middle between two scores.

    Args:
        labels: 0 and 1, (N,).
        scores: P(1), (N,).
        sensitivity: the least share of the positives above the threshold; or
        specificity: the least share of the negatives that are not.

    Returns:
        The threshold; NaN if a class is absent.
    """
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    if not len(positive) or not len(negative):
        return math.nan
    ranked = np.unique(scores)
    between = np.concatenate([[-math.inf], (ranked[1:] + ranked[:-1]) / 2, [math.inf]])
    hit = 1 - np.searchsorted(positive, between, side="right") / len(positive)
    spared = np.searchsorted(negative, between, side="right") / len(negative)
    slack = 1e-9  # of the divisions
    if specificity:
        return float(between[(spared >= specificity - slack).argmax()])  # the lowest, which misses fewest
    return float(between[len(between) - 1 - (hit >= sensitivity - slack)[::-1].argmax()])


def rates(labels: Ints, scores: Floats, threshold: float) -> tuple[tuple[float, Floats], tuple[float, Floats]]:
    """Sensitivity and specificity of ``scores > threshold``, each with what every image adds to its error, (N,).

    The components are those of a share, as ``statistics.auroc_components`` has them of an AUROC.  All is NaN for a
    threshold of NaN, which nothing could be chosen by.
    """
    yes = scores > threshold
    found = []
    for members, right in ((labels == 1, yes), (labels == 0, ~yes)):
        count = int(members.sum())
        share = float(right[members].mean()) if count and not math.isnan(threshold) else math.nan
        found.append((share, np.where(members, right - share, 0.0) / max(count, 1)))
    return found[0], found[1]


def wilson_ends(rate: float, images: float) -> tuple[float, float]:
    """Ends of Wilson's 95 % interval (JASA 22, 1927) of a rate of so many images; NaN for none.

    It has a width for a rate of 0 or 1 too, where the variance of what was seen is 0.
    """
    if not images > 0:
        return math.nan, math.nan
    z2 = special.ndtri(0.975) ** 2
    middle = (rate + z2 / (2 * images)) / (1 + z2 / images)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * images)) / images) / (1 + z2 / images)
    return middle - half, middle + half


def rate_interval(rates_of_seeds: Sequence[float], images: float) -> Interval:
    """Mean of a rate over seeds with its 95 % interval over seeds and test images; of one seed over images.

    The distances to the ends of Wilson's interval over images, as though all seeds erred on the same ones, and of the
    t-interval over seeds are added as squares (Zou and Donner, Stat. Med. 27, 2008).

    Args:
        rates_of_seeds: the rate of each.
        images: of the class, on which all were judged; fewer where images of one patient are alike.
    """
    seeds = t_interval(rates_of_seeds)
    low, high = wilson_ends(seeds.mean, images)
    apart = seeds.half_width if seeds.known else 0.0
    return Interval(
        seeds.mean,
        seeds.mean - math.hypot(seeds.mean - low, apart),
        seeds.mean + math.hypot(high - seeds.mean, apart),
        seeds.n,
    )


def independent_images(labels: Ints, label: int, components: Floats, patients: Ints | None) -> float:
    """How many images of a class would tell a rate as well if each were another patient's: images over design effect.

    Args:
        labels: 0 and 1, (N,).
        label: the class.
        components: what each image adds to the rate's error, by seed, (S, N).
        patients: of each image, (N,), if they are known.

    Returns:
        At most the images there are; the patients, where no image differs from another.
    """
    images = int((labels == label).sum())
    if patients is None or not images:
        return float(images)
    alone, whose = float(np.trace(image_covariance(labels, components))), len(np.unique(patients[labels == label]))
    if alone == 0 or whose == 1:
        return float(whose)
    return images / max(1.0, float(np.trace(image_covariance(labels, components, patients))) / alone)


def temperature(labels: Ints, scores: Floats) -> float:
    """Temperature that divides the logits so that validation data are likeliest (Guo et al., ICML 2017).

    Args:
        labels: class numbers, (N,).
        scores: probabilities of the classes, (N, C).

    Returns:
        More than 1 where the probabilities are too sure of themselves; between 0.02 and 50.
    """

    def loss(log: float) -> float:
        scaled = rescale(scores, math.exp(log))
        return float(-np.log(np.maximum(scaled[np.arange(len(labels)), labels], _TINY)).mean())

    return math.exp(float(optimize.minimize_scalar(loss, bounds=(math.log(0.02), math.log(50)), method="bounded").x))


def rescale(scores: Floats, by: float) -> Floats:
    """Divide the logits of probabilities (N, C) by a temperature."""
    logits = np.log(np.maximum(scores, _TINY)) / by
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Calibration:
    """How probabilities compare with what is.

    Attributes:
        error: expected calibration error: mean distance of confidence and accuracy over the bins, weighted by images.
        brier: mean squared distance of the probabilities from the truth, summed over classes (over P(1) if binary).
        bins: of each bin with images, its mean confidence, the share that is right, and its images, (B, 3).
    """

    error: float
    brier: float
    bins: Floats


def calibration(labels: Ints, scores: Floats, task: str) -> Calibration:
    """Compare probabilities (N, C) with class numbers (N,): of the positive class if binary, else of the likeliest."""
    truth = np.eye(scores.shape[1])[labels]
    if task == BINARY:
        confidence, right = scores[:, 1], labels == 1
        brier = float(((scores[:, 1] - right) ** 2).mean())
    else:
        confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
        brier = float(((scores - truth) ** 2).sum(axis=1).mean())
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [(confidence[at == b].mean(), right[at == b].mean(), (at == b).sum()) for b in np.unique(at)]
    table = np.asarray(bins, dtype=np.float64)
    error = float((np.abs(table[:, 0] - table[:, 1]) * table[:, 2]).sum() / len(labels))
    return Calibration(error, brier, table)


def confident_errors(labels: Ints, scores: Floats, count: int) -> Ints:
    """Places of the images that are wrong and most sure of it, ``count`` at most: labels (N,), probabilities (N, C)."""
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    return np.asarray(wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:count])
