"""What test images that were made worse take from the AUROC of each saved model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from app.report.blocks import Block
from app.report.collect import CellKey
from app.report.compare import Analysis, seed_means
from app.report.efficiency import FEWEST
from app.report.names import MINUS, mean_and_half_width, method_name, number, protocol_name, signed, span
from app.report.style import INK, WIDEST, canvas_of, finish, legend, look, others_of
from app.report.table import Cell, Column, Row, Table
from app.science.statistics import paired_t_difference, t_interval
from app.science.strengths import STRENGTHS

LEVELS = len(next(iter(STRENGTHS.values())))
Floats = NDArray[np.float64]


def by_seed(analysis: Analysis, key: CellKey) -> dict[int, Floats]:
    """AUROC of each seed's models that were judged, (kinds, 1 + LEVELS): as the images are, then at each strength."""
    judged = [(r.record.seed, r.robustness) for r in analysis.results(*key) if r.robustness is not None]
    seeds = [seed for seed, _ in judged]
    areas = [[(found.metrics["auroc"], *found.auroc[kind]) for kind in STRENGTHS] for _, found in judged]
    return dict(zip(sorted(set(seeds)), seed_means(seeds, areas), strict=True))


def losses(areas: Floats) -> Floats:
    """What each kind of corruption takes from the AUROC, (kinds,): the mean over its strengths."""
    return np.asarray(areas[:, 0] - areas[:, 1:].mean(axis=1))


def robustness_table(analysis: Analysis) -> Table:
    """What corruptions take from AUROC, and the paired difference of that from the baseline's."""
    rows, baseline = [], analysis.baseline
    for dataset, protocol, method in analysis.study.finished_cells:
        found = by_seed(analysis, (dataset, protocol, method))
        if not found:
            continue
        control = by_seed(analysis, (dataset, protocol, baseline)) if baseline and baseline != method else {}
        common = sorted(found.keys() & control.keys())
        lost = {seed: float(losses(areas).mean()) for seed, areas in found.items()}
        apart = paired_t_difference([lost[s] for s in common], [float(losses(control[s]).mean()) for s in common])
        cells = [
            Cell(mean_and_half_width(t_interval(list(lost.values())))),
            *(Cell(number(value)) for value in np.mean([losses(areas) for areas in found.values()], axis=0)),
            Cell(signed(apart.mean) if common else "", note=f"n = {apart.n}" if 0 < apart.n < len(found) else ""),
            Cell(span(apart) if common else ""),
        ]
        head = f"{analysis.study.title(dataset)} · {protocol_name(protocol)}"
        rows.append(Row(head, method_name(method), tuple(cells)))
    against = f"mean loss {MINUS} {method_name(baseline)}'s" if baseline else "mean loss"
    return Table(
        "robustness",
        "What corruptions of the test images take from AUROC",
        ("Dataset", "Method"),
        (
            Column("mean", "loss"),
            *(Column(kind, "loss") for kind in STRENGTHS),
            Column("difference", against),
            Column("95 % interval", against),
        ),
        tuple(rows),
        (
            "Loss: AUROC of the test images as they are minus that of the same images under a corruption, mean over "
            f"{LEVELS} strengths; mean: over all corruptions. ± and intervals are t over seeds, on these test images, "
            "not corrected for the number of comparisons; below 0 the method loses less. Few-shot: the saved model.",
            "Corruptions after Hendrycks and Dietterich 2019 and MedMNIST-C (Di Salvo et al. 2024).",
        ),
    )


def robustness_figures(analysis: Analysis, names: Mapping[str, str]) -> list[Block]:
    """Mean AUROC over the strength of corruption: a figure for each dataset, a panel for each protocol."""
    study, blocks = analysis.study, []
    for dataset in study.datasets:
        panels = {
            protocol: cells
            for protocol in study.protocols(dataset)
            if (cells := {m: f for m in study.methods if (f := by_seed(analysis, (dataset, protocol, m)))})
        }
        if not panels:
            continue
        with canvas_of(WIDEST if len(panels) > 1 else 4.6, 3.4) as canvas:
            grid = canvas.subplots(1, len(panels), squeeze=False, sharey=True)[0]
            said = []
            for axes, (protocol, cells) in zip(grid, panels.items(), strict=True):
                for method, found in cells.items():
                    curves = np.stack([areas.mean(axis=0) for areas in found.values()])
                    _curve(axes, curves, look(method, others_of(study.methods)))
                    ends = ", ".join(number(value) for value in curves.mean(axis=0))
                    said.append(f"{names[protocol]}, {names[method]} {ends}")
                axes.set_title(names[protocol])
                axes.set_xlabel("strength")
                axes.set_xticks(range(LEVELS + 1), ["none", *map(str, range(1, LEVELS + 1))])
            grid[0].set_ylabel("mean test AUROC")
            legend(canvas, [m for m in study.methods if any(m in cells for cells in panels.values())], names)
            alt = f"{study.title(dataset)}: mean test AUROC without corruption and at strengths 1 to {LEVELS}. "
            figure = finish(canvas, f"robustness-{dataset}", f"{alt}{'; '.join(said)}.")
        few = max(len(found) for cells in panels.values() for found in cells.values()) < FEWEST
        chance = "Small markers are seeds." if few else "Bands: 95 % t-intervals over seeds."
        blocks.append(
            Block(figure, f"{study.title(dataset)}. Test AUROC, mean over {', '.join(STRENGTHS)} and seeds. {chance}")
        )
    return blocks


def _curve(axes: Axes, curves: Floats, colour_and_marker: tuple[str, str]) -> None:
    """Draw the mean of some seeds' curves, (S, 1 + LEVELS), with an interval, or the seeds where they are too few."""
    colour, marker = colour_and_marker
    at = range(LEVELS + 1)
    if len(curves) >= FEWEST:
        ends = [t_interval(values) for values in curves.T]
        low, high = (np.clip([getattr(i, side) for i in ends], 0, 1) for side in ("low", "high"))
        axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
    else:
        for values in curves if len(curves) > 1 else ():
            axes.plot(at, values, color=colour, linestyle="none", marker=marker, markersize=3.5, alpha=0.5)
    axes.plot(at, curves.mean(axis=0), color=colour, linewidth=1.8, marker=marker, markersize=4.5)
    axes.tick_params(axis="y", colors=INK)
