"""What all figures share: one quiet style, one colour and one marker for each method.

Colours are opaque hexadecimal values from ``PALETTE`` so that the page can exchange them for its theme (see
``for_page``).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

INK, MUTED, GRID, SURFACE = "#1f2a37", "#5f6b78", "#dfe4ea", "#fefefe"
SPLITS = {"train": "#2f6f8f", "val": "#7fb2c6", "test": "#c3dbe4"}
HEAT = "#0a6fb9"
# After Okabe & Ito: told apart with every common colour blindness, and by marker where colour fails.
LOOKS = {
    "random": ("#6b7684", "s"),
    "imagenet": ("#a8559b", "^"),
    "byol": ("#0a6fb8", "o"),
    "byol_plus": ("#d1570c", "D"),
}
OTHER_LOOKS = (("#0b8a6a", "v"), ("#8a6d01", "P"), ("#7a52c7", "X"))
# Light colour -> CSS variable of the page.
PALETTE = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    HEAT: "--heat",
    **{colour: f"--split-{name}" for name, colour in SPLITS.items()},
    **{colour: f"--m-{name.replace('_', '-')}" for name, (colour, _) in LOOKS.items()},
    **{colour: f"--m-other-{i}" for i, (colour, _) in enumerate(OTHER_LOOKS)},
}
WIDEST = 10.4  # inches: what the page shows at full size, so that no text in it is smaller than 11 pixels
SMALLEST_TEXT = 8.5  # points, 11.3 pixels

# Any: matplotlib types the keys of a style as some 300 literals.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same everywhere
    "font.size": 9,
    "text.parse_math": False,  # a class name may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": SMALLEST_TEXT,
    "ytick.labelsize": SMALLEST_TEXT,
    "legend.frameon": False,
    "legend.fontsize": SMALLEST_TEXT,
    "figure.facecolor": SURFACE,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


@dataclass(frozen=True)
class Figure:
    """A figure as a standalone SVG document, with its text alternative; ``width`` in CSS pixels."""

    name: str
    svg: str
    alt: str
    width: int


def method_colour(method: str, others: Sequence[str] = ()) -> str:
    """Colour of a method; checkpoints take theirs by their place among ``others``."""
    return look(method, others)[0]


def look(method: str, others: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a method; see ``method_colour``."""
    if method in LOOKS:
        return LOOKS[method]
    return OTHER_LOOKS[others.index(method) % len(OTHER_LOOKS) if method in others else 0]


@contextmanager
def canvas_of(width: float, height: float) -> Iterator[Canvas]:
    """Give an empty figure, its size in inches (``WIDEST`` at most), in our style meanwhile."""
    with mpl.rc_context(_STYLE):
        yield Canvas(figsize=(width, height), layout="constrained")


def finish(canvas: Canvas, name: str, alt: str) -> Figure:
    """Draw a figure as SVG text: equal drawings give equal bytes."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", _shorten, svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Figure(name, svg, alt, round(float(canvas.get_figwidth()) * 96))


def _shorten(tag: re.Match[str]) -> str:
    """Cut the coordinates inside a tag to a hundredth of a point, which nobody sees."""
    return re.sub(r"(?<=\d)\.(\d\d)\d+", r".\1", tag[0])


def for_page(figure: Figure) -> str:
    """Turn a standalone SVG into an element of the page: its colours and font, unique ids, a text alternative."""
    svg = figure.svg[figure.svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib writes a viewBox"
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", rest)
    rest = rest.replace(SURFACE, "none").replace("'DejaVu Sans'", "var(--font)")
    for colour, variable in PALETTE.items():
        rest = rest.replace(colour, f"var({variable})")
    alt = figure.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{alt}">{rest}'


def legend(canvas: Canvas, methods: Sequence[str], names: Mapping[str, str], *, extra: Sequence[Line2D] = ()) -> None:
    """Name the methods above a figure, and what else is drawn."""
    handles = [
        Line2D([], [], color=look(m, methods)[0], marker=look(m, methods)[1], markersize=5, label=names[m])
        for m in methods
    ]
    canvas.legend(handles=[*handles, *extra], loc="outside upper left", ncols=6, handlelength=1.6, columnspacing=1.8)


def others_of(methods: Sequence[str]) -> list[str]:
    """Return the methods that have no colour of their own: checkpoints."""
    return [m for m in methods if m not in LOOKS]
