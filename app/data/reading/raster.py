"""What a reader makes of one image file: its levels in full size, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Unreadable(Exception):
    """An image cannot be read, or is over a limit; the text says why."""


# Ranges of levels that fill no number of bits, from the narrowest on.
RANGES = ("of values from 0 to 1", "of values from 0 to 255", "scaled by their own range")


@dataclass(frozen=True)
class Span:
    """Levels of an image that fill no number of bits.

    Attributes:
        low: the lowest.
        high: the highest.
        inner: from where to where they reach without the outer half per cent at each end.
    """

    low: float
    high: float
    inner: tuple[float, float]

    @property
    def range(self) -> int:
        """Which of the ``RANGES`` is the narrowest that holds them."""
        return 2 if self.low < 0 or self.high > 255 else int(self.high > 1)

    def ends(self, of_range: int) -> tuple[float, float]:
        """From where to where one of the ``RANGES`` reaches."""
        return ((0, 1), (0, 255), self.inner)[of_range]


@dataclass(frozen=True)
class Raster:
    """Pixels as a reader gives them.

    Attributes:
        pixels: uint8 (H, W) or (H, W, 3); or gray levels or colours of more bits, float32 of the same shapes.
        bits: how many bits the levels fill, where they have more than 8; None for uint8, and where there is a span.
        sure: the file itself says so, the levels need not be asked.
        span: of levels that fill no number of bits: fractions, or such as go below 0.
        inverted: white is 0, as in some TIFF files.
        notes: what was done to them, in words that are counted.
    """

    pixels: NDArray[Any]
    bits: int | None = None
    sure: bool = False
    span: Span | None = None
    inverted: bool = False
    notes: tuple[str, ...] = ()


def levels_of(values: NDArray[Any], *, whole: bool, significant: int | None = None) -> Raster:
    """Find out what levels of more than 8 bits are.

    Whole numbers from 0 fill a number of bits, which an sBIT chunk may give; others have a range of their own. Infinite
    ones become the lowest.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise Unreadable("holds no finite values")
    low, high = float(values[finite].min()), float(values[finite].max())
    if not finite.all():
        values = np.where(finite, values, low)
    values = values.clip(-1e37, 1e37).astype(np.float32)  # resizing overshoots, and float32 ends at 3.4e38
    if low >= 0 and high <= 65535 and whole:
        bits = max(8, int(high).bit_length())
        if significant is not None and significant > 8 and high < 2**significant:
            return Raster(values, significant, True)
        return Raster(values, bits, significant is not None)
    begin, end = np.percentile(values, (0.5, 99.5))
    return Raster(values, span=Span(low, high, (float(begin), float(end))))
