"""Labels saved: where one curve reaches another, and how sure that is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.bench.coverage import World, differences
from app.science.efficiency import Curve, difference, labels_needed
from app.science.statistics import auroc_components

LABELS = np.array([2.0, 4, 10, 20, 40, 100, 200])
Y = np.repeat([0, 1], 30)


def straight(offset: float, seeds: int = 4, noise: float = 0.0) -> Curve:
    """AUROC 0.05 more with each doubling; image components of zero."""
    rng = np.random.default_rng(0)
    areas = 0.5 + offset + 0.05 * np.log2(LABELS)[:, None] + noise * rng.normal(size=(1, seeds))
    return Curve(LABELS, areas, np.zeros((len(LABELS), seeds, len(Y))))


def test_labels_needed_are_where_the_control_is_as_high() -> None:
    found = labels_needed(straight(0.05), straight(0.0), 20, Y)  # one doubling ahead
    assert found.needed == pytest.approx(40, rel=0.02)
    assert found.saved == pytest.approx(20, rel=0.05)
    behind = labels_needed(straight(-0.05), straight(0.0), 20, Y)
    assert behind.needed == pytest.approx(10, rel=0.03)
    assert behind.saved < 0


def test_the_interval_is_where_the_difference_is_not_told_from_zero() -> None:
    control = straight(0.0)
    rng = np.random.default_rng(1)
    ours = Curve(LABELS, straight(0.05).areas + 0.01 * rng.normal(size=(1, 4)), straight(0.0).components)
    found = labels_needed(ours, control, 20, Y)
    assert found.low < found.needed < found.high
    for end, side in ((found.low, -1), (found.high, 1)):
        inside, outside = (difference(ours.at(20), control.at(end * 2 ** (side * by)), Y) for by in (-0.05, 0.05))
        assert not inside.excludes_zero
        assert outside.excludes_zero


@pytest.mark.parametrize("gain", [0.0112, 0.0114])
def test_as_many_labels_are_possible_just_where_the_difference_with_them_is_not_told(gain: float) -> None:
    """Although the nearest points of the grid, with fewer labels and with more, say otherwise or nothing."""
    spread = np.array([-0.01, 0, 0.005, 0.005])
    control, ours = straight(0.0), Curve(LABELS, straight(gain).areas + spread, straight(0.0).components)
    for labels in LABELS[1:-1]:
        at_once = difference(ours.at(labels), control.at(labels), Y)
        assert (labels_needed(ours, control, labels, Y).low > labels) == at_once.excludes_zero


def test_what_the_control_never_reaches_or_always_has_is_open_ended() -> None:
    far = labels_needed(straight(0.3), straight(0.0), 100, Y)
    assert (far.needed, far.high, far.saved) == (math.inf, math.inf, math.inf)
    below = labels_needed(straight(-0.3), straight(0.0), 4, Y)
    assert (below.needed, below.low, below.high) == (0, 0, 0)


def test_one_seed_has_an_estimate_and_no_interval() -> None:
    found = labels_needed(straight(0.05, seeds=1), straight(0.0, seeds=1), 20, Y)
    assert found.needed == pytest.approx(40, rel=0.02)
    assert math.isnan(found.low)


def test_a_curve_is_interpolated_in_the_logarithm() -> None:
    area, _ = straight(0.0).at(math.sqrt(4 * 10))
    np.testing.assert_allclose(area, 0.5 + 0.05 * math.log2(math.sqrt(40)))
    np.testing.assert_allclose(straight(0.0).at(200)[0], straight(0.0).areas[-1])


def test_the_interval_holds_the_true_number_of_labels_in_simulated_studies() -> None:
    """Gaps grow with the logarithm of the labels, the same for all; 150 studies, whose standard error is 1.8 %."""
    rng, held = np.random.default_rng(5), 0
    labels = np.array([10.0, 20, 40, 80, 160])
    truth, slope = 80.0, 0.25
    for _ in range(150):
        curves = []
        world = World(40, 60, (0.0, 0.0), seeds=0.1, draws=0.1)
        y, noise = world.study(3, 1, rng)
        shift = np.array([slope * np.log2(truth / 20), 0.0])
        for method in (0, 1):
            gap = 0.6 + shift[method] + slope * np.log2(labels / 10)
            pairs = [[auroc_components(y, noise[method, s, 0] + g * y) for s in range(3)] for g in gap]
            curves.append(
                Curve(
                    labels, np.array([[a for a, _ in p] for p in pairs]), np.array([[c for _, c in p] for p in pairs])
                )
            )
        found = labels_needed(curves[0], curves[1], 20, y)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 150 <= 1.0
    assert differences(y, noise)[0].shape == (3, 1)
