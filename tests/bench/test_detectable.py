"""Studies settle the difference that is foreseen for them as often as is said; `bench detectable` does it at length."""

from __future__ import annotations

import pytest

from app.bench.coverage import World
from app.bench.detectable import apart, bench_detectable, foreseen

SMALL = World(300, 400, (1.1, 1.1))


@pytest.mark.parametrize("truth", [0.07, -0.07])
def test_one_method_is_moved_to_the_difference_asked_for(truth):
    moved = apart(SMALL, truth)
    assert moved is not None
    assert moved.truth == pytest.approx(truth)
    assert moved.gaps[1] == SMALL.gaps[1]
    assert apart(SMALL, 15 * truth) is None


def test_four_of_five_studies_settle_the_difference_foreseen():
    """More of them where it is a gain, and fewer where it is a loss: an AUROC varies less the nearer it is to 1."""
    found = foreseen(SMALL, seeds=8, draws=2, studies=300)
    assert (found.gains + found.losses) / 2 == pytest.approx(0.8, abs=0.06)
    assert found.losses < found.gains
    assert found.half_width == pytest.approx(found.settled, rel=0.1)


def test_the_table_has_a_row_for_each_world_and_design(monkeypatch):
    monkeypatch.setattr("app.bench.detectable.WORLDS", {"small": SMALL})
    monkeypatch.setattr("app.bench.detectable.PILOTS", 3)
    rows = [line for line in bench_detectable(studies=2, seed=0) if line.startswith("| small")]
    assert [row.split("|")[2].strip() for row in rows] == ["3 x 1", "3 x 5", "5 x 20", "10 x 5"]
