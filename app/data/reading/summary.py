"""What was done with the files of a folder, in a line and in a record."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from app.data.reading.search import left_out

NAMED = 10  # files that a message names


@dataclass
class Reading:
    """What was done with the files of a folder, for the terminal and the record.

    Attributes:
        read: how many images.
        kinds: how many by suffix.
        left_out: how many files were not read, by reason.
        unreadable: name and reason of each image that could not be read.
        notes: how many images were treated in some way.
    """

    read: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """Say it in one line."""
        kinds = ", ".join(f"{count} {suffix[1:]}" for suffix, count in self.kinds.most_common())
        parts = [f"{self.read} images read ({kinds})"]
        parts += [f"{count} {note}" for note, count in self.notes.most_common()]
        if self.left_out:
            parts.append(left_out(self.left_out))
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable: {named(self.unreadable)}")
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, names as text."""
        readable = {
            os.fsencode(name).decode("utf-8", "backslashreplace"): reason for name, reason in self.unreadable.items()
        }
        return {"read": self.read, "kinds": dict(self.kinds), "left_out": dict(self.left_out), "unreadable": readable,
                "notes": dict(self.notes)}  # fmt: skip

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Reading:
        """Return the reading of which this is the ``as_json``."""
        counters = {name: Counter(value[name]) for name in ("kinds", "left_out", "notes")}
        return cls(read=int(value["read"]), unreadable=dict(value["unreadable"]), **counters)


def named(unreadable: dict[str, str]) -> str:
    """Name the first files that could not be read, with their reasons, and count the others."""
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:NAMED]]
    more = len(unreadable) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
