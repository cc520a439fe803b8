"""Figures of counts: images of each class, and confusion matrices."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from app.jobs.records import DatasetInfo
from app.report.style import GRID, HEAT, INK, MUTED, SMALLEST_TEXT, SPLITS, WIDEST, Figure, canvas_of, finish


def class_histogram(name: str, info: DatasetInfo) -> Figure | None:
    """Images of each class, stacked by split (the paper's Fig. 8-10); None without class counts."""
    splits = [s for s in ("train", "val", "test") if info.class_counts.get(s)]
    if not splits:
        return None
    counts = np.array([info.class_counts[s] for s in splits])
    totals = counts.sum(axis=0)
    labels = [info.labels.get(str(c), str(c)) for c in range(counts.shape[1])]
    rows = np.arange(len(labels))
    with canvas_of(4.9, 0.85 + 0.36 * len(labels)) as canvas:
        axes: Axes = canvas.subplots()
        left = np.zeros(len(labels))
        for split, row in zip(splits, counts, strict=True):
            axes.barh(rows, row, left=left, height=0.62, color=SPLITS[split], label=split)
            left += row
        images = sum(info.splits.get(s, 0) for s in splits) or int(totals.sum())
        for y, total in zip(rows, totals, strict=True):
            axes.annotate(
                f"{total:,} · {total / images:.1%}",
                (float(total), float(y)),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
                fontsize=SMALLEST_TEXT,
            )
        axes.set_yticks(rows, [textwrap.fill(label, 26) for label in labels], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1, int(totals.max())) * 1.32)
        axes.grid(False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("images")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        canvas.legend(loc="outside upper left", ncols=3, handlelength=1, handleheight=1)
        parts = "; ".join(f"{label} {total:,}" for label, total in zip(labels, totals, strict=True))
        return finish(canvas, f"classes-{name}", f"Class histogram of {info.title}: {parts} images.")


def panel_side(n_classes: int) -> float:
    """Return the inches that a confusion matrix takes, its ticks included, so that its counts can be read."""
    return 1.5 + 0.2 * n_classes if n_classes <= 8 else 0.4 + 0.32 * n_classes


def confusion_matrices(
    name: str,
    title: str,
    labels: Sequence[str],
    panels: Sequence[tuple[str, str, NDArray[np.float64]]],
    rows: Sequence[str],
) -> Figure | None:
    """Confusion matrices (row, heading, counts): rows = truth, shade = share of the row, number = count.

    ``rows`` names the rows of panels to draw, from top to bottom.  None without panels.
    """
    rows = [row for row in rows if any(row == p[0] for p in panels)]
    panels = [panel for panel in panels if panel[0] in rows]
    if not panels:
        return None
    headings = list(dict.fromkeys(heading for _, heading, _ in panels))
    size = len(labels)
    side = panel_side(size)
    ticks = [textwrap.fill(label, 12) for label in labels] if size <= 3 else [str(c) for c in range(size)]
    fit = max(1, int((WIDEST - 1.2) // side))  # panels beside each other
    drawn = {(row, heading): counts for row, heading, counts in panels}
    lines: list[tuple[str, list[str]]] = []
    for row in rows:
        there = [heading for heading in headings if (row, heading) in drawn]
        lines += [(row, there[start : start + fit]) for start in range(0, len(there), fit)]
    columns = max(len(there) for _, there in lines)
    with canvas_of(max(4.6, columns * side + 1.2), len(lines) * side + 0.5) as canvas:
        grid = canvas.subplots(len(lines), columns, squeeze=False)
        above: dict[int, str] = {}
        for (row, there), line in zip(lines, grid, strict=True):
            for axes in line[len(there) :]:
                axes.set_visible(False)
            for j, (axes, heading) in enumerate(zip(line, there, strict=False)):
                _matrix(axes, drawn[row, heading])
                axes.set_title("" if above.get(j) == heading else heading, fontweight="normal")
                above[j] = heading
                axes.set_xticks(range(size), ticks)
                axes.set_yticks(range(size), [""] * size if j else ticks)
            line[0].set_ylabel(row, color=INK, fontsize=9.5, fontweight="bold", labelpad=10)
        said = "; ".join(
            f"{row}, {heading}: {np.trace(counts) / counts.sum():.1%} on the diagonal"
            for row, heading, counts in panels
            if counts.sum()
        )
        return finish(canvas, f"confusion-{name}", f"Confusion matrices of {title}. {said}.")


def _matrix(axes: Axes, counts: NDArray[np.float64]) -> None:
    size = len(counts)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    for i, j in np.ndindex(size, size):
        # Opacity instead of a colour map: the same drawing works on a light and on a dark page.
        opacity = round(float(share[i, j]), 2)
        axes.add_artist(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=HEAT, alpha=opacity, linewidth=0))
        if size <= 12:
            text = axes.text(
                j,
                i,
                f"{counts[i, j]:.0f}",
                ha="center",
                va="center",
                fontsize=10 if size <= 3 else SMALLEST_TEXT,
                color="#ffffff" if share[i, j] > 0.55 else INK,
            )
            text.set_in_layout(False)  # it lies inside the axes; measuring hundreds of them is slow
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
