"""Thresholds: Youden's J by brute force, ties, and labels that have none."""

from __future__ import annotations

import numpy as np
import pytest

from app.science.metrics import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL, decide
from app.science.thresholds import choose_thresholds


def two(positive: np.ndarray) -> np.ndarray:
    return np.stack([1 - positive, positive], 1)


def youden(truth: np.ndarray, said: np.ndarray) -> float:
    return said[truth == 1].mean() - said[truth == 0].mean()


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_greater_j(seed):
    rng = np.random.default_rng(seed)
    truth = np.arange(40) % 2
    score = np.round(1 / (1 + np.exp(-rng.normal(truth, 1))), rng.integers(1, 6))  # few digits: many ties
    [chosen] = choose_thresholds(truth[:, None], two(score), BINARY)
    ours = youden(truth, decide(two(score), BINARY, [chosen])[:, 0])
    assert ours == pytest.approx(max(youden(truth, score > at) for at in (-1, *score)))


def test_it_lies_between_two_scores_and_of_equals_nearest_to_a_half():
    truth, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert choose_thresholds(truth[:, None], two(score), BINARY) == [pytest.approx(0.5)]
    # J is 1/2 at 0.25 and at 0.75 and 0 between them: both as far from a half, the first is taken
    truth, score = np.array([0, 1, 0, 1]), np.array([0.2, 0.3, 0.7, 0.8])
    assert choose_thresholds(truth[:, None], two(score), BINARY)[0] in (pytest.approx(0.25), pytest.approx(0.75))


@pytest.mark.parametrize(
    ("truth", "score"),
    [([0, 0, 0], [0.1, 0.5, 0.9]), ([1, 1, 1], [0.1, 0.5, 0.9]), ([0, 1, 0], [0.3, 0.3, 0.3]), ([1, 0], [0.1, 0.9])],
    ids=["all no", "all yes", "all equal", "worse than chance"],
)
def test_where_nothing_tells_them_apart_it_is_a_half(truth, score):
    assert choose_thresholds(np.array(truth)[:, None], two(np.array(score)), BINARY) == [0.5]


def test_each_label_has_its_own_and_missing_ones_do_not_count():
    labels = np.array([[0, 1], [1, -1], [-1, 0], [1, 1]])
    scores = np.array([[0.2, 0.4], [0.3, 0.0], [0.99, 0.1], [0.4, 0.3]])
    assert choose_thresholds(labels, scores, MULTI_LABEL) == [pytest.approx(0.25), pytest.approx(0.2)]
    assert decide(scores, MULTI_LABEL, [0.25, 0.2]).tolist() == [[0, 1], [1, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL])
def test_of_several_classes_the_likeliest_wins(task):
    scores = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    assert choose_thresholds(np.array([[0], [2]]), scores, task) == []
    assert decide(scores, task, []).tolist() == [[1], [0]]
