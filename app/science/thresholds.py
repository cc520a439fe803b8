"""From probabilities to a decision: thresholds chosen on validation data."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

from app.science.metrics import BINARY, MULTI_LABEL, Floats, Ints

RULE = "Youden's J (sensitivity + specificity - 1) on the validation split"


def choose_thresholds(labels: Ints, scores: Floats, task: str) -> list[float]:
    """Choose what a probability has to exceed for a yes: where Youden's J is greatest (Youden 1950).

    It lies in the middle between the two neighbouring scores; of equal choices the nearest to 0.5 is taken. Where no
    threshold tells yes from no better than chance, or all labels are the same, it is 0.5.

    Args:
        labels: of validation images, (N, 1) class numbers, or (N, L) of 0 and 1, below 0 where one is missing.
        scores: (N, C), as for ``metrics.decide``.
        task: MedMNIST's name of the task.

    Returns:
        One threshold for P(1) if binary, one for each label if multi-label, none otherwise: the likeliest class wins.
    """
    if task == BINARY:
        return [_youden(labels[:, 0], scores[:, 1])]
    if task == MULTI_LABEL:
        return [_youden(truth, score) for truth, score in zip(labels.T, scores.T, strict=True)]
    return []


def _youden(truth: Ints, score: Floats) -> float:
    truth, score = truth[truth >= 0], score[truth >= 0]
    if not 0 < truth.sum() < len(truth):
        return 0.5
    false, true, lowest = roc_curve(truth, score, drop_intermediate=False)
    gain = np.round(true - false, 12)[1:-1]  # the ends call all images yes, or none
    if not len(gain) or gain.max() <= 0:
        return 0.5
    between = (lowest[1:-1] + lowest[2:]) / 2  # the lowest score that is a yes, and the highest that is none
    best = between[gain == gain.max()]
    return float(best[np.abs(best - 0.5).argmin()])
