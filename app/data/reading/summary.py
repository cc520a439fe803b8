"""What was done with the files of a folder, in a line and in a record."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from app.data.reading.raster import Levels
from app.data.reading.search import left_out

COUNTERS = ("kinds", "left_out", "no_image", "notes")
NAMED = 10  # files that a message names


@dataclass
class ReadingSummary:
    """What was done with the files of a folder, for the terminal and the record.

    Attributes:
        read: how many images.
        kinds: how many by suffix.
        left_out: how many files were not read, by reason.
        no_image: how many files of kinds that are read hold none, by what they are.
        unreadable: name and reason of each image that could not be read.
        notes: how many images were treated in some way.
        sides: the longer side of the smallest and of the largest picture, in pixels.
        levels: what was black and white in images of more than 8 bits.
    """

    read: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    no_image: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    sides: tuple[int, int] = (0, 0)
    levels: Levels = field(default_factory=Levels)

    def line(self) -> str:
        """Say it in one line."""
        kinds = ", ".join(f"{count} {suffix[1:]}" for suffix, count in self.kinds.most_common())
        parts = [f"{self.read} images read ({kinds})"]
        parts += [f"{count} {note}" for note, count in self.notes.most_common()]
        if beside := self.left_out + self.no_image:
            parts.append(left_out(beside))
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable: {named(self.unreadable)}")
        return "; ".join(parts)

    def plan(self, size: int) -> str:
        """Say in one line what becomes of the images: ``12,431 images, 512-3,056 px, resized to 64 px``."""
        low, high = self.sides
        pixels = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        resized = f"kept at {size} px" if low == high == size else f"resized to {size} px"
        larger = " (the smaller ones enlarged)" if low < size else ""
        return f"{self.read:,} images, {pixels} px, {resized}{larger}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, names as text."""
        readable = {
            os.fsencode(name).decode("utf-8", "backslashreplace"): reason for name, reason in self.unreadable.items()
        }
        counters = {name: dict(getattr(self, name)) for name in COUNTERS}
        return {
            "read": self.read, **counters, "unreadable": readable, "sides": list(self.sides),
            "levels": self.levels.as_json(),
        }  # fmt: skip

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> ReadingSummary:
        """Return the reading of which this is the ``as_json``."""
        counters = {name: Counter(value[name]) for name in COUNTERS}
        low, high = value["sides"]
        return cls(
            read=int(value["read"]), unreadable=dict(value["unreadable"]), sides=(int(low), int(high)),
            levels=Levels.of_json(value["levels"]), **counters,
        )  # fmt: skip


def named(unreadable: dict[str, str]) -> str:
    """Name the first files that could not be read, with their reasons, and count the others."""
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:NAMED]]
    more = len(unreadable) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
