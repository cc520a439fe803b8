"""What a study will be able to tell, said before anything is spent: a line for each test set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from app.data import Dataset
from app.science.power import (
    LEVEL,
    Detectable,
    Variances,
    compared,
    detectable,
    macro_variance,
    mean_variances,
    paired_variance,
)
from app.science.protocols import PROTOCOLS
from app.settings import Config
from app.stages.budgets import budgets
from app.storage import Store

# What is expected where there is no pilot: a little above the means of the studies of RESULTS.md.
AREA = 0.88  # AUROC
CORRELATION = 0.8  # of two methods' AUROCs over the drawing of test images
SEED = 0.02  # standard deviation of a paired difference over seeds
DRAW = 0.04  # over the draws of one seed


def expected(data: Dataset, draws: int | None) -> Variances:
    """Variances of a paired difference on a test set; ``draws`` is None for a protocol that sees all labels."""
    several = data.test.labels.shape[1] > 1
    images = macro_variance(AREA, data.class_counts("test"), len(data.test), labels=several)
    return Variances(SEED**2 + (DRAW**2 / draws if draws else 0.0), paired_variance(images, CORRELATION))


def of_pilot(store: Store, run_id: str) -> dict[tuple[str, str], Variances]:
    """Mean variances of a finished run's comparisons, by data set and protocol.

    Raises:
        InputError: there is no such run.
    """
    from app.report.collect import collect
    from app.report.compare import Analysis

    found: dict[tuple[str, str], list[Variances]] = {}
    for c in Analysis(collect(store, run_id), resamples=1).comparisons:
        if c.joint is not None and c.joint.known:
            found.setdefault((c.dataset, c.protocol), []).append(c.joint.variances)
    return {key: mean_variances(each) for key, each in found.items()}


def curve_lines(config: Config, labelled: Sequence[Dataset]) -> Iterator[str]:
    """Say which points of label curves are left out, for want of labels."""
    for protocol in config.study.protocols:
        for data in labelled if PROTOCOLS[protocol].few else ():
            if lacking := budgets(getattr(config.protocols, protocol), data)[1]:
                asked = ", ".join(map(str, lacking))
                yield f"{data.title}, {protocol}: the label curve leaves out k = {asked}, more than a class has images"


def comparisons(config: Config) -> int:
    """How many comparisons the report will make, for which Holm's correction is."""
    study = config.study
    return len(compared({*study.baselines, *study.methods})) * len(study.datasets) * len(study.protocols)


def power_lines(config: Config, labelled: Sequence[Dataset], pilot: dict[tuple[str, str], Variances]) -> Iterator[str]:
    """Say for each test set which differences in AUROC will be settled, alone and among all comparisons.

    Those within the expected half-width are not to be expected.  Holm's correction asks most of the comparison whose
    p-value is the smallest: as much as Bonferroni's.
    """
    seeds, count = len(config.study.seeds), comparisons(config)
    for data in labelled:
        patients = data.test.patient_numbers
        whose = "" if patients is None else f" of {patients.max() + 1:,} patients"
        head = f"{data.title}, {len(data.test):,} test images{whose}, {seeds} seed{'s' if seeds > 1 else ''}"
        guessed = whose and not all((data.name, protocol) in pilot for protocol in config.study.protocols)
        doubt = "; images of one patient are taken as independent, so expect to tell less" if guessed else ""
        limits: dict[str, tuple[Detectable, Detectable]] = {}
        for protocol in config.study.protocols:
            draws = getattr(config.protocols, protocol).draws if PROTOCOLS[protocol].few else None
            variances = pilot.get((data.name, protocol)) or expected(data, draws)
            alone, among = detectable(variances, seeds), detectable(variances, seeds, alpha=LEVEL / max(count, 1))
            if alone is not None and among is not None:
                limits[protocol] = alone, among
        if not limits:
            why = "one seed cannot say how another would end" if seeds < 2 else "no class has a curve"
            yield f"{head}: no difference in AUROC can be settled; {why}"
            continue
        same: dict[tuple[str, str, str], list[str]] = {}
        for name, (alone, among) in limits.items():
            same.setdefault((_up(alone.settled), _up(alone.found), _up(among.found)), []).append(name)
        for (low, high, first), names in same.items():
            corrected = f" (corrected for {count} comparisons: {first})" if count > 1 else ""
            yield (
                f"{head}: differences in AUROC under {low} cannot be expected to be settled, {high} is in 4 of 5 "
                f"studies{corrected}: {', '.join(names)}{doubt}"
            )


def _up(value: float) -> str:
    return f"{math.ceil(value * 100) / 100:.2f}"
