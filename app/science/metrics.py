"""Scores of predictions: scikit-learn's, arranged as MedMNIST's Evaluator arranges them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL = (
    "binary-class", "multi-class", "multi-label, binary-class", "ordinal-regression",
)  # fmt: skip

METRICS = ("accuracy", "precision", "recall", "f1", "auroc", "balanced_accuracy")

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def decide(scores: Floats, task: str, thresholds: Sequence[float] = ()) -> Ints:
    """Turn scores into labels: the likelier class, or, for a multi-label task, every label over 0.5.

    Args:
        scores: (N, C): P(class) in every column (two for a binary task), or P(label) if multi-label.
        task: MedMNIST's name of the task.
        thresholds: in place of 0.5, as ``thresholds.choose_thresholds`` gives them.

    Returns:
        (N, 1) class numbers, or (N, C) of 0 and 1 if multi-label.
    """
    if task == MULTI_LABEL:
        return (scores > (thresholds or 0.5)).astype(np.int64)
    if task == BINARY:
        return (scores[:, 1:] > (thresholds or 0.5)).astype(np.int64)
    best: Ints = scores.argmax(1, keepdims=True).astype(np.int64)
    return best


def per_class_auroc(labels: Ints, scores: Floats, task: str) -> list[float]:
    """Area under the ROC curve of each class against the rest.

    A class that is absent, or the only one present, has no curve: NaN.

    Args:
        labels: (N, 1) class numbers, or (N, L) of 0 and 1 if multi-label, below 0 where one is missing.
        scores: (N, C), as for ``decide``.
        task: MedMNIST's name of the task.

    Returns:
        One value if binary (P(1) against class 1), one per class or label otherwise.
    """
    if task == MULTI_LABEL:
        truth = labels
    elif task == BINARY:
        truth, scores = labels[:, :1], scores[:, 1:]
    else:
        truth = (labels[:, :1] == np.arange(scores.shape[1])).astype(np.int64)
    known = [(t[t >= 0], s[t >= 0]) for t, s in zip(truth.T, scores.T, strict=True)]
    return [float(sk.roc_auc_score(t, s)) if 0 < t.sum() < len(t) else float("nan") for t, s in known]


def auroc(labels: Ints, scores: Floats, task: str) -> float:
    """Mean of ``per_class_auroc`` over the classes that have one (MedMNIST's AUC); NaN if none has."""
    areas = [area for area in per_class_auroc(labels, scores, task) if not np.isnan(area)]
    return float(np.mean(areas)) if areas else float("nan")


def or_none(value: float) -> float | None:
    """Return a figure as JSON has it, which knows no NaN."""
    return None if math.isnan(value) else value


def evaluate(labels: Ints, scores: Floats, task: str) -> dict[str, float]:
    """Compute every metric of ``METRICS``.

    Precision, recall and F1 are macro averages over the classes (for a multi-label task over the labels;
    accuracy and balanced accuracy are then means over the labels too). A class never predicted has
    precision 0. ``balanced_accuracy`` is the mean recall of the classes present, which is what the paper
    prints as "AUC" on the binary sets.

    Args:
        labels: (N, 1) class numbers, or (N, L) of 0 and 1 if multi-label; one below 0 is missing, and left out.
        scores: (N, C), as for ``decide``.
        task: MedMNIST's name of the task.
    """
    predicted = decide(scores, task)
    if task == MULTI_LABEL and (labels < 0).any():
        return _evaluate_known(labels, scores, predicted)
    with warnings.catch_warnings():
        # A tiny test split may lack a class that is predicted; its recall then counts for nothing.
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true", category=UserWarning)
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        if task == MULTI_LABEL:
            balanced = np.mean([sk.balanced_accuracy_score(t, p) for t, p in zip(labels.T, predicted.T, strict=True)])
            accuracy = np.mean(labels == predicted)
            truth, guess = labels, predicted
        else:
            truth, guess = labels[:, 0], predicted[:, 0]
            balanced, accuracy = sk.balanced_accuracy_score(truth, guess), sk.accuracy_score(truth, guess)
        precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, guess, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auroc": auroc(labels, scores, task),
        "balanced_accuracy": float(balanced),
    }


def _evaluate_known(labels: Ints, scores: Floats, predicted: Ints) -> dict[str, float]:
    """Compute the metrics of a multi-label task label by label, each on the images for which it is known."""
    known = [(t[t >= 0], p[t >= 0]) for t, p in zip(labels.T, predicted.T, strict=True) if (t >= 0).any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above: a label that is always or never there
        balanced = [sk.balanced_accuracy_score(t, p) for t, p in known]
    each = [sk.precision_recall_fscore_support(t, p, average="binary", zero_division=0)[:3] for t, p in known]
    precision, recall, f1 = np.mean(each, axis=0) if each else (np.nan, np.nan, np.nan)
    return {
        "accuracy": float(np.mean((predicted == labels)[labels >= 0])) if each else float("nan"),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auroc": auroc(labels, scores, MULTI_LABEL),
        "balanced_accuracy": float(np.mean(balanced)) if each else float("nan"),
    }


def confusion_matrix(labels: Ints, scores: Floats, task: str) -> list[list[int]] | None:
    """Count test images by true class (rows) and predicted class (columns); None if multi-label."""
    if task == MULTI_LABEL:
        return None
    matrix = sk.confusion_matrix(labels[:, 0], decide(scores, task)[:, 0], labels=np.arange(scores.shape[1]))
    return [[int(count) for count in row] for row in matrix]
