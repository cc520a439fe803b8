"""What a folder of images holds, before anything is made of it."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.data.files import Images, atomic_write
from app.data.own.duplicates import equal_groups, near_pairs
from app.data.own.labels import find_patients
from app.data.reading import Counted, ReadingSummary, ReadOptions, read_squares, uncounted

SIZE = 64  # pixels of the squares that are compared and shown
COLUMNS, ROWS = 16, 8  # of the contact sheet
LISTED = 10  # names that a line holds


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        reading: what was done with the files.
        sides: how many images by width and height.
        depths: how many by bits of a sample, and whether in colours.
        patients: how many are known.
        unknown: of how many images the patient is not known.
        equal: groups of images whose pixels, at ``SIZE``, are equal, by name.
        near: pairs of images of nearly the same pixels.
    """

    reading: ReadingSummary
    sides: Counter[tuple[int, int]]
    depths: Counter[str]
    patients: int
    unknown: int
    equal: list[list[str]]
    near: list[tuple[str, str]]

    def lines(self) -> list[str]:
        """Say it, a line for each question."""
        low, high = self.reading.sides
        several = [f"{count} of {w}x{h}" for (w, h), count in self.sides.most_common(5) if count > 1]
        sides = f"; the most are {', '.join(several)}" if several else ""
        return [
            self.reading.line(),
            f"sizes: {low:,} to {high:,} px at the longer side, {len(self.sides)} different ones{sides}",
            f"depths: {', '.join(f'{count} {what}' for what, count in self.depths.most_common())}",
            f"patients: {self.patients}{f'; not known of {self.unknown} images' if self.unknown else ''}",
            f"equal images: {_listed([' = '.join(group) for group in self.equal])}",
            f"nearly equal images: {_listed([f'{one} = {other}' for one, other in self.near])}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, with every name."""
        return {
            "reading": self.reading.as_json(),
            "sizes": [[width, height, count] for (width, height), count in self.sides.most_common()],
            "depths": dict(self.depths),
            "patients": self.patients,
            "images_without_patient": self.unknown,
            "equal": self.equal,
            "near": [list(pair) for pair in self.near],
        }


def check_images(
    source: Path,
    *,
    sheet: Path | None = None,
    patient_regex: str | None = None,
    options: ReadOptions | None = None,
    progress: Counted = uncounted,
) -> Check:
    """Look through all images below a folder.

    Args:
        source: a folder, or an image file.
        sheet: where to draw some of them, as PNG.
        patient_regex: finds the patient in an image's path.
        options: what the user decides of reading images.
        progress: told how many of how many files are read.

    Raises:
        InputError: none is an image, or too many cannot be read.
    """
    squares = read_squares(source, SIZE, options, progress)
    images = squares.array()
    names = [seen.name for seen in squares.seen]
    patients: list[str | None] = [seen.patient for seen in squares.seen]
    if patient_regex is not None:
        patients = [*find_patients(squares.paths, patient_regex, show=options.shown if options else str)]
    if sheet is not None:
        with atomic_write(sheet) as file:
            file.write(contact_sheet(images))
    return Check(
        reading=squares.reading,
        sides=Counter((seen.width, seen.height) for seen in squares.seen),
        depths=Counter(f"{'colour' if seen.channels == 3 else 'gray'} of {seen.depth} bits" for seen in squares.seen),
        patients=len({*patients} - {None}),
        unknown=patients.count(None),
        equal=[[names[place] for place in group] for group in equal_groups(images)],
        near=[(names[a], names[b]) for a, b in near_pairs(images)],
    )


def contact_sheet(images: Images) -> bytes:
    """Draw up to ``COLUMNS`` by ``ROWS`` of the images, evenly chosen, as a PNG; uint8 (N, S, S) or (N, S, S, 3)."""
    count = min(len(images), COLUMNS * ROWS)
    chosen = images[np.linspace(0, len(images) - 1, count).astype(int)]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    side = images.shape[1] + 1
    sheet = np.full((rows * side, columns * side, *images.shape[3:]), 64, np.uint8)
    for place, image in enumerate(chosen):
        top, left = place // columns * side, place % columns * side
        sheet[top : top + side - 1, left : left + side - 1] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _listed(words: list[str]) -> str:
    if not words:
        return "none"
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return f"{len(words)}: {', '.join(words[:LISTED])}{more}"
