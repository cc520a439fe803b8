"""Operating points and calibration against hand counts, scikit-learn and what is true by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, recall_score

from app.science.clinical import (
    calibration,
    confident_errors,
    independent_images,
    rate_interval,
    rates,
    rescale,
    temperature,
    threshold_for,
)  # fmt: skip
from app.science.metrics import BINARY, MULTI_CLASS
from app.science.statistics import image_covariance

LABELS = np.array([0] * 10 + [1] * 5)
SCORES = np.array([*np.linspace(0.05, 0.5, 10), 0.2, 0.42, 0.48, 0.7, 0.9])


def test_the_threshold_has_the_rate_that_is_asked_and_most_of_the_other() -> None:
    at = threshold_for(LABELS, SCORES, specificity=0.9)
    assert 0.45 < at < 0.48  # 9 of 10 negatives are at most 0.45; 3 of 5 positives above
    (sensitivity, _), (specificity, _) = rates(LABELS, SCORES, at)
    assert (sensitivity, specificity) == (0.6, 0.9)
    at = threshold_for(LABELS, SCORES, sensitivity=0.8)
    (sensitivity, _), (specificity, _) = rates(LABELS, SCORES, at)
    assert (sensitivity, specificity) == (0.8, 0.8)


@pytest.mark.parametrize("asked", [0.5, 0.9, 1.0])
def test_no_other_threshold_is_better(asked: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=80)
    s = np.round(rng.random(80) + 0.4 * y, 2)  # with ties
    every = [rates(y, s, t) for t in [-1, *np.unique(s)]]
    best = max(sens for (sens, _), (spec, _) in every if spec >= asked)
    assert rates(y, s, threshold_for(y, s, specificity=asked))[0][0] == pytest.approx(best)
    best = max(spec for (sens, _), (spec, _) in every if sens >= asked)
    assert rates(y, s, threshold_for(y, s, sensitivity=asked))[1][0] == pytest.approx(best)


def test_rates_are_scikit_learns_and_their_components_have_the_binomials_variance() -> None:
    (sensitivity, own), (specificity, _) = rates(LABELS, SCORES, 0.45)
    assert sensitivity == recall_score(LABELS, SCORES > 0.45)
    assert specificity == recall_score(LABELS, SCORES > 0.45, pos_label=0)
    variance = image_covariance(LABELS, own[None])[0, 0]
    assert variance == pytest.approx(sensitivity * (1 - sensitivity) / 4)  # p (1 - p) / (n - 1)
    assert math.isnan(threshold_for(np.zeros(3, int), SCORES[:3], specificity=0.9))


@pytest.mark.parametrize("right", range(7))
def test_a_rates_interval_is_wilsons_and_never_a_point(right: int) -> None:
    want = stats.binomtest(right, 6).proportion_ci(method="wilson")
    for seeds in (1, 3):
        got = rate_interval([right / 6] * seeds, 6)
        assert (got.low, got.high, got.n) == (pytest.approx(want.low), pytest.approx(want.high), seeds)
        assert got.half_width > 0.1
    apart = rate_interval([right / 6, right / 6 + 0.1, right / 6 - 0.1], 6)
    assert apart.half_width > rate_interval([right / 6], 6).half_width
    assert not rate_interval([math.nan], 0).known


def test_images_of_one_patient_tell_a_rate_no_better() -> None:
    labels, right = np.repeat([0, 1], 30), np.tile(np.repeat([1.0, 0.0], [21, 9]), 2)
    patients = np.arange(60) // 3  # each with three equal images
    own = np.where(labels == 1, right - 0.7, 0.0)[None] / 30
    assert independent_images(labels, 1, own, None) == 30
    assert independent_images(labels, 1, own, patients) == pytest.approx(10 * 0.9 * 30 / 29, rel=1e-6)
    assert independent_images(labels, 1, 0 * own, patients) == 10
    assert independent_images(labels[:30], 1, own[:, :30], patients[:30]) == 0


def test_the_temperature_undoes_what_was_done_to_true_probabilities() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1, 1, 1], size=6000)
    labels = (true.cumsum(axis=1) < rng.random((6000, 1))).sum(axis=1)
    sure = rescale(true, 0.4)
    assert temperature(labels, sure) == pytest.approx(2.5, rel=0.05)
    before, after = calibration(labels, sure, MULTI_CLASS), calibration(labels, rescale(sure, 2.5), MULTI_CLASS)
    assert after.error < 0.03 < before.error
    assert after.brier < before.brier
    np.testing.assert_allclose(rescale(true, 1.0), true)


def test_calibration_by_hand_and_by_scikit_learn() -> None:
    labels, p = np.array([0, 1, 1, 1]), np.array([0.1, 0.1, 0.9, 0.9])
    got = calibration(labels, np.stack([1 - p, p], 1), BINARY)
    assert got.error == pytest.approx((abs(0.1 - 0.5) * 2 + abs(0.9 - 1) * 2) / 4)
    assert got.brier == pytest.approx(brier_score_loss(labels, p))
    np.testing.assert_allclose(got.bins, [[0.1, 0.5, 2], [0.9, 1.0, 2]])


def test_confident_errors_are_wrong_and_sorted() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.7, 0.3]])
    assert confident_errors(np.array([1, 1, 0, 1]), scores, 2).tolist() == [2, 0]
    assert confident_errors(np.array([0, 1, 1, 0]), scores, 2).tolist() == []
