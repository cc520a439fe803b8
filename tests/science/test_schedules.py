import math

import pytest

from app.science.schedules import ema_momentum, learning_rate


def rate(step, *, warmup=0, cosine=True, total=100):
    return learning_rate(step, peak=0.5, total_steps=total, warmup_steps=warmup, cosine=cosine)


def test_warmup_is_linear_and_its_first_step_already_moves():
    assert [rate(step, warmup=5) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_cosine_begins_at_the_peak_is_half_in_the_middle_and_ends_near_0():
    assert rate(0) == 0.5
    assert rate(50) == pytest.approx(0.25)
    assert rate(99) == pytest.approx(0.25 * (1 + math.cos(math.pi * 0.99)))
    assert rate(100) == pytest.approx(0)
    assert rate(20, warmup=20) == 0.5
    assert rate(60, warmup=20) == pytest.approx(0.25)


def test_without_cosine_the_rate_stays_at_the_peak():
    assert {rate(step, cosine=False) for step in range(100)} == {0.5}
    assert rate(0, cosine=False, warmup=2) == 0.25


def test_rate_rises_then_falls_and_is_never_negative():
    rates = [rate(step, warmup=10) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert min(rates) >= 0


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (3, 5), (2, 2)])
def test_short_runs_have_a_rate(total, warmup):
    assert all(0 < rate(step, total=total, warmup=warmup) <= 0.5 for step in range(total))


def test_momentum_goes_from_base_to_1():
    def momentum(step):
        return ema_momentum(step, base=0.99, total_steps=200, cosine=True)

    assert momentum(0) == 0.99
    assert momentum(100) == pytest.approx(0.995)
    assert momentum(200) == 1
    values = [momentum(step) for step in range(201)]
    assert values == sorted(values)


def test_momentum_without_cosine_is_constant():
    assert {ema_momentum(step, base=0.99, total_steps=50, cosine=False) for step in range(50)} == {0.99}
