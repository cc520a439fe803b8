"""What a study can find, against simulated studies and a published example."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.science import statistics as st
from app.science.power import (
    Variances,
    auroc_variance,
    detectable,
    macro_variance,
    mean_variances,
    paired_variance,
    power,
)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("variances", [Variances(5e-4, 4e-4), Variances(4e-4, 0.0), Variances(1e-5, 6e-4)])
def test_what_is_detectable_is_settled_in_four_of_five_simulated_studies(seeds: int, variances: Variances) -> None:
    limit = detectable(variances, seeds)
    assert limit is not None
    rng = np.random.default_rng(seeds)
    common = math.sqrt(variances.common) * rng.normal(size=(1500, 1))
    values = limit.found + common + math.sqrt(variances.seed) * rng.normal(size=(1500, seeds))
    intervals = [st.mixed_interval(row, variances.common) for row in values]
    assert np.mean([i.low > 0 for i in intervals]) == pytest.approx(0.8, abs=0.035)
    half = math.sqrt(np.mean([i.half_width**2 for i in intervals]))
    assert half == pytest.approx(limit.settled, rel=0.05)


def test_power_is_near_that_of_a_published_example() -> None:
    """Van Dyke's data planned for 10 readers and 165 cases: 0.8054 by Hillis' test (RJafroc); ours is stricter."""
    share = 114 / 165
    error, cov2_3 = 0.0008022883 - 0.0003466137, 0.0003440748 - 0.0002390284
    variances = Variances(2 * (0.0002004025 + share * (error - cov2_3)), 2 * share * cov2_3)
    assert 0.77 < power(0.043800322, variances, 10) < 0.8054
    assert power(0.0, variances, 10) == pytest.approx(0.02, abs=0.01)


def test_auroc_variance_is_that_of_many_test_sets() -> None:
    """Hanley and McNeil's assumes exponential scores, for which it is exact."""
    rng = np.random.default_rng(0)
    rate = 0.25  # P(exponential of mean 1 > exponential of mean rate) = 1 / (1 + rate)
    areas = []
    y = np.repeat([1, 0], [40, 60])
    for _ in range(2000):
        score = np.concatenate([rng.exponential(size=40), rng.exponential(size=60) * rate])
        areas.append(st.auroc_components(y, score)[0])
    assert np.mean(areas) == pytest.approx(0.8, abs=0.005)
    assert np.var(areas) == pytest.approx(auroc_variance(0.8, 40, 60), rel=0.1)


def test_macro_variance_counts_a_binary_curve_once_and_leaves_out_absent_classes() -> None:
    one = auroc_variance(0.9, 30, 70)
    assert macro_variance(0.9, [30, 70], 100) == pytest.approx(one)
    assert macro_variance(0.9, [30, 30, 40, 0], 100) == pytest.approx((2 * one + auroc_variance(0.9, 40, 60)) / 9)
    assert math.isnan(macro_variance(0.9, [100, 0], 100))
    two = (auroc_variance(0.9, 1, 99) + auroc_variance(0.9, 50, 50)) / 4
    for counts in ([1, 50], [50, 1]):
        assert macro_variance(0.9, counts, 100, labels=True) == pytest.approx(two), "two labels have two curves"
    assert paired_variance(one, 0.5) == pytest.approx(one)


def test_nothing_is_detectable_with_one_seed_or_without_a_curve() -> None:
    assert detectable(Variances(1e-4, 1e-4), 1) is None
    assert detectable(Variances(1e-4, math.nan), 3) is None


def test_more_seeds_find_smaller_differences_down_to_what_the_images_allow() -> None:
    limits = [detectable(Variances(4e-4, 3e-4), seeds) for seeds in (2, 3, 5, 10, 1000)]
    settled = [limit.settled for limit in limits if limit]
    assert settled == sorted(settled, reverse=True)
    assert settled[-1] == pytest.approx(1.96 * math.sqrt(3e-4), rel=0.01)


def test_variances_are_averaged_over_comparisons() -> None:
    """Of three seeds the median of many estimates would be too small by a third."""
    rng, truth = np.random.default_rng(0), Variances(4e-4, 3e-4)
    drawn = math.sqrt(truth.seed) * rng.normal(size=(3000, 3))
    found = mean_variances([st.mixed_interval(row, truth.common).variances for row in drawn])
    assert found.seed == pytest.approx(truth.seed, rel=0.08)
    assert found.common == pytest.approx(truth.common)
