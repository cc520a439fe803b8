"""Intervals hold the truth as often as they say: simulated studies, in short; `bench coverage` does it at length."""

from __future__ import annotations

import numpy as np
import pytest

from app.bench.coverage import METHODS, WORLDS, World, bench_coverage, components, coverage, differences
from app.science.statistics import auroc_components, image_covariance, mixed_interval, shared_covariance

SMALL = World(30, 40, (1.6, 1.3))


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_mixed_interval_holds_the_truth(seeds):
    """Of 300 studies of nominal 95 %, which has a standard error of 1.3 %."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(300):
        y, scores = SMALL.study(seeds, 1, rng)
        each, components = differences(y, scores)
        interval = mixed_interval(each.mean(1), shared_covariance(image_covariance(y, components.mean(1))))
        held += interval.low <= SMALL.truth <= interval.high
    assert 0.92 <= held / 300 <= 0.99


def test_what_looks_at_one_kind_of_chance_alone_holds_it_less_often():
    found = coverage(World(30, 40, (1.6, 1.3), seeds=0.4), seeds=3, draws=1, studies=100)
    assert found["images"].held < 0.85
    assert found["bootstrap"].held < found["mixed"].held
    assert found["mixed"].held >= 0.92


def test_the_expected_difference_is_that_of_many_studies():
    rng = np.random.default_rng(0)
    means = [differences(*SMALL.study(2, 1, rng))[0].mean() for _ in range(400)]
    assert np.mean(means) == pytest.approx(SMALL.truth, abs=4 * np.std(means) / 20)


def test_the_table_has_a_row_for_each_world_and_design(monkeypatch):
    monkeypatch.setattr("app.bench.coverage.WORLDS", {"small": SMALL})
    lines = list(bench_coverage(studies=2, seed=0))
    rows = [line for line in lines if line.startswith("| small")]
    assert [row.split("|")[2].strip() for row in rows] == ["3 x 1", "3 x 5", "5 x 5", "10 x 5"]
    assert all(row.count("%") == len(METHODS) for row in rows)
    assert len(WORLDS) == 5


def test_components_of_many_scores_are_those_of_each():
    y, scores = SMALL.study(2, 3, np.random.default_rng(0))
    scores = np.round(scores, 1)  # with ties
    areas, own = components(y, scores)
    for at in np.ndindex(2, 2, 3):
        area, each = auroc_components(y, scores[at])
        assert areas[at] == pytest.approx(area)
        np.testing.assert_allclose(own[at], each, atol=1e-12)
