"""Whether studies find the difference that ``plan`` says they can: simulated ones, which have just that difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from app.bench.coverage import World, components
from app.science.efficiency import difference
from app.science.power import detectable, mean_variances
from app.science.statistics import Tested

PILOTS = 100  # simulated studies that the variances are taken from
WORLDS = {
    "BreastMNIST's size (156)": World(42, 114, (1.1, 1.1)),
    "PneumoniaMNIST's size (624)": World(234, 390, (1.5, 1.5)),
    "2,000 images, seeds vary much": World(1000, 1000, (1.1, 1.1), seeds=0.3),
    "156 images, seeds hardly vary": World(42, 114, (1.1, 1.1), seeds=0.02, draws=0.02),
}


@dataclass(frozen=True)
class Foreseen:
    """What was foreseen of a kind of study, and what came: differences in AUROC.

    Attributes:
        settled: half-width of the interval that was foreseen.
        half_width: the mean of those that came, without a difference.
        found: difference that was foreseen to be settled in 4 of 5 studies.
        gains: share of the studies where the method is better by ``found`` that settled it; NaN where none can be.
        losses: share of those where it is worse by ``found``.
    """

    settled: float
    half_width: float
    found: float
    gains: float
    losses: float


def judge(world: World, seeds: int, draws: int, rng: np.random.Generator) -> Tested:
    """Draw a study and return the interval of its two methods' difference that a report shows first."""
    y, scores = world.study(seeds, draws, rng)
    areas, own = (each.mean(axis=2) for each in components(y, scores))
    return difference((areas[0], own[0]), (areas[1], own[1]), y)


def apart(world: World, truth: float) -> World | None:
    """Move the first method of ``world`` until the expected difference in AUROC is ``truth``; None if it cannot be."""

    def moved(gap: float) -> World:
        return replace(world, gaps=(gap, world.gaps[1]))

    least, most = -10.0, 10.0  # AUROCs of 0 and 1
    if not moved(least).truth < truth < moved(most).truth:
        return None
    return moved(float(optimize.brentq(lambda gap: moved(gap).truth - truth, least, most)))


def foreseen(world: World, *, seeds: int, draws: int, studies: int, seed: int = 0) -> Foreseen:
    """Foresee from pilots without a difference, as ``plan --pilot`` does; simulate studies with what was foreseen."""
    rng = np.random.default_rng([seed, seeds, draws])
    pilots = [judge(world, seeds, draws, rng) for _ in range(PILOTS)]
    limit = detectable(mean_variances([pilot.variances for pilot in pilots]), seeds)
    assert limit is not None, "several seeds, which vary"

    def came(truth: float) -> list[Tested]:
        moved = apart(world, truth)
        return [judge(moved, seeds, draws, rng) for _ in range(studies)] if moved else []

    def share(settled: Sequence[bool]) -> float:
        return float(np.mean(settled)) if settled else math.nan

    return Foreseen(
        limit.settled,
        float(np.mean([one.half_width for one in came(0.0)])),
        limit.found,
        share([one.low > 0 for one in came(limit.found)]),
        share([one.high < 0 for one in came(-limit.found)]),
    )


def bench_detectable(*, studies: int, seed: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: each world by seeds and draws, foreseen and simulated."""
    yield f"{studies:,} simulated studies each: how wide intervals are, and how often the difference of which 80 % was"
    yield "foreseen is settled, as a gain and as a loss:"
    yield ""
    yield "| studies | seeds x draws | half-width: foreseen | simulated | difference | gains settled | losses settled |"
    yield "| :-- | --: | --: | --: | --: | --: | --: |"
    for name, world in WORLDS.items():
        for seeds, draws in ((3, 1), (3, 5), (5, 20), (10, 5)):
            found = foreseen(world, seeds=seeds, draws=draws, studies=studies, seed=seed)
            shares = ("n/a" if math.isnan(share) else f"{100 * share:.1f} %" for share in (found.gains, found.losses))
            widths = f"{found.settled:.3f} | {found.half_width:.3f} | {found.found:.3f}"
            yield f"| {name} | {seeds} x {draws} | {widths} | {' | '.join(shares)} |"
