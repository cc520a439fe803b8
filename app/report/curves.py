"""Figures of curves: pretraining over the epochs, and ROC."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from app.report.collect import Labels, PretrainRun, Result
from app.report.style import MUTED, WIDEST, Figure, canvas_of, finish, method_colour, others_of


def pretraining_curves(runs: Sequence[PretrainRun], names: Mapping[str, str]) -> Figure | None:
    """Loss, standard deviation of the target projections and what the monitor saw over the epochs; None without curves.

    The monitor's AUROCs are of validation images, and begin at epoch 0, without pretraining.
    """
    runs = [run for run in runs if run.curves]
    if not runs:
        return None
    panels = [("loss", "Loss"), ("target_std", "Target std"), ("knn_auroc", "k-NN AUROC (validation)")]
    if any(_series(run, "few_shot_auroc") for run in runs):  # older runs have none, nor those with too few images
        panels.append(("few_shot_auroc", "Few-shot AUROC (validation)"))
    methods = list(dict.fromkeys(run.record.method for run in runs))
    with canvas_of(WIDEST, 3.1) as canvas:
        grid = canvas.subplots(1, len(panels), squeeze=False)[0]
        ends = []
        for axes, (quantity, title) in zip(grid, panels, strict=True):
            for method in methods:
                colour = method_colour(method, others_of(methods))
                series = [_series(run, quantity) for run in runs if run.record.method == method]
                series = [s for s in series if s]
                for s in series if len(series) > 1 else ():
                    axes.plot(list(s), list(s.values()), color=colour, linewidth=0.8, alpha=0.4)
                shared = sorted(set.intersection(*(set(s) for s in series))) if series else []
                if not shared:
                    continue
                mean = [float(np.mean([s[x] for s in series])) for x in shared]
                marker = "o" if len(shared) < 3 else None
                axes.plot(shared, mean, color=colour, linewidth=2, marker=marker, markersize=4)
                ends.append(f"{names[method]} {title[0].lower()}{title[1:]} from {mean[0]:.3f} to {mean[-1]:.3f}")
            axes.set_title(title)
            axes.set_xlabel("epoch")
        canvas.legend(
            handles=[
                Line2D([], [], color=method_colour(m, others_of(methods)), linewidth=2, label=names[m]) for m in methods
            ],
            loc="outside upper left",
            ncols=6,
        )
        alt = "Pretraining curves, mean over seeds: " + "; ".join(ends) + "."
        return finish(canvas, "pretraining", alt)


def _series(run: PretrainRun, quantity: str) -> dict[float, float]:
    """Epoch (fractional) -> value."""
    steps = run.record.steps / run.record.epochs if run.record.steps and run.record.epochs else 1.0
    points = ((p.get("step", math.nan) / steps, p.get(quantity, math.nan)) for p in run.curves)
    return {round(x, 4): y for x, y in points if math.isfinite(x) and math.isfinite(y)}


_FPR = np.linspace(0, 1, 201)


def roc_curve(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """True positive rate at 201 equally spaced false positive rates; None where a class is absent or a score is NaN."""
    if positive.all() or not positive.any() or np.isnan(score).any():
        return None
    from sklearn import metrics  # takes a second to load

    fpr, tpr, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    return np.asarray(np.interp(_FPR, fpr, tpr))  # at a vertical step numpy takes its upper end


def macro_roc(y: Labels, scores: NDArray[np.float64], task: str) -> NDArray[np.float64] | None:
    """ROC curve of one model, macro-averaged over one class against the rest (or over labels) where not binary."""
    if task == "binary-class":
        curves = [roc_curve(y[:, 0] == 1, scores[:, -1])]
    elif task == "multi-label, binary-class":
        known = [y[:, c] >= 0 for c in range(scores.shape[1])]  # the others are missing
        curves = [roc_curve(y[k, c] == 1, scores[k, c]) for c, k in enumerate(known)]
    else:
        curves = [roc_curve(y[:, 0] == c, scores[:, c]) for c in range(scores.shape[1])]
    there = [c for c in curves if c is not None]
    return np.asarray(np.mean(there, axis=0), dtype=np.float64) if there else None


def roc_curves(
    name: str,
    title: str,
    labels: Labels,
    protocols: Sequence[str],
    methods: Sequence[str],
    results: Callable[[str, str], Sequence[Result]],
    names: Mapping[str, str],
) -> Figure | None:
    """ROC curves: a panel for each protocol, thin = a seed, thick = mean over seeds; None without predictions."""
    curves: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for protocol in protocols:
        for method in methods:
            found = [
                macro_roc(labels, r.chosen, r.record.task) for r in results(protocol, method) if r.chosen is not None
            ]
            there = [c for c in found if c is not None]
            if there:
                curves.setdefault(protocol, {})[method] = there
    if not curves:
        return None
    columns = min(4, len(curves))
    lines, side = math.ceil(len(curves) / columns), min(3.35, WIDEST / columns)
    with canvas_of(max(4.6, columns * side), 0.35 + lines * (side + 0.4)) as canvas:
        grid = canvas.subplots(lines, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(curves) :]:
            axes.set_visible(False)
        for axes, (protocol, by_method) in zip(grid.flat, curves.items(), strict=False):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            for method, seeds in by_method.items():
                colour = method_colour(method, others_of(methods))
                for line in seeds if len(seeds) > 1 else ():
                    axes.plot([0, *_FPR], [0, *line], color=colour, linewidth=0.7, alpha=0.35)
                axes.plot([0, *_FPR], [0, *np.mean(seeds, axis=0)], color=colour, linewidth=1.9)
            axes.set_title(names[protocol])
            axes.set_xlabel("false positive rate")
            axes.set_box_aspect(1)
            axes.set_xlim(-0.01, 1.01)
            axes.set_ylim(-0.01, 1.01)
        for left in grid[:, 0]:
            left.set_ylabel("true positive rate")
        shown = [m for m in methods if any(m in by_method for by_method in curves.values())]
        canvas.legend(
            handles=[
                Line2D([], [], color=method_colour(m, others_of(methods)), linewidth=2, label=names[m]) for m in shown
            ],
            loc="outside upper left",
            ncols=6,
        )
        panels = ", ".join(names[p] for p in curves)
        alt = f"ROC curves of {title} ({panels}) for {', '.join(names[m] for m in shown)}; the areas are in the tables."
        return finish(canvas, f"roc-{name}", alt)
