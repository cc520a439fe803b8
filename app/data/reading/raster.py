"""What a reader makes of one image file: its levels in full size, and what is known of them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class Unreadable(Exception):
    """An image cannot be read, or is over a limit; the text says why."""


class NoImage(Unreadable):
    """A file is whole, and of a kind that is read, but holds no picture: a DICOM report, a plan, a directory."""


Fit = Literal["pad", "crop"]


@dataclass(frozen=True)
class Levels:
    """What is black and white in images of more than 8 bits that do not say so themselves.

    Attributes:
        bits: of the instruments that made the images, from the fewest on; none without such images.
        range: the narrowest of the ``RANGES`` that holds nearly all levels which fill no bits; None without such.
    """

    bits: tuple[int, ...] = ()
    range: int | None = None

    def bits_of(self, filled: int) -> int:
        """Return the bits of the instrument that made an image which fills so many."""
        return next((bits for bits in self.bits if bits >= filled), filled)

    def hold(self, raster: Raster) -> bool:
        """Say whether black and white of an image are known: it says so itself, or is within these levels."""
        if raster.span is not None:
            return self.range is not None and raster.span.range <= self.range
        return raster.bits is None or raster.sure or raster.bits <= max(self.bits, default=0)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"bits": list(self.bits), "range": self.range}

    @classmethod
    def of_json(cls, value: Any) -> Levels:
        """Return the levels of which this is the ``as_json``.

        Raises:
            ValueError: of none.
        """
        bits, of_range = (value.get("bits"), value.get("range")) if isinstance(value, dict) else (None, None)
        if not isinstance(bits, list) or not all(type(each) is int and 8 <= each <= 16 for each in bits):
            raise ValueError(f"{value!r}: no levels")
        if of_range not in (None, 0, 1, 2):
            raise ValueError(f"{value!r}: no levels")
        return cls(tuple(sorted(bits)), of_range)


@dataclass(frozen=True)
class ReadOptions:
    """What a user decides of reading images.

    Attributes:
        fit: what becomes of images that are not square: ``pad`` adds black at two sides, ``crop`` takes the centre.
        frame: which frame of files that hold several, counted from 1; None refuses them.
        max_unreadable: share of the images that may be unreadable, 0 to 1.
        anonymise: hash the names of files wherever they are kept or said.
        levels: of the images that a model learned from, which is to see others alike; None: the images read tell them.
        key: of these hashes. It is drawn anew and kept nowhere, since who can guess a name could else try it out.
    """

    fit: Fit = "pad"
    frame: int | None = None
    max_unreadable: float = 0.01
    anonymise: bool = False
    levels: Levels | None = None
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False, compare=False)

    @classmethod
    def asked(
        cls, fit: str, frame: int | None, per_cent: float, anonymise: bool, levels: Levels | None = None
    ) -> ReadOptions:
        """Return what the options of a command say; ``per_cent`` of the images may be unreadable, 0 to 100.

        Raises:
            UsageError: ``fit`` is unknown.
        """
        from app.options import one_of

        return cls(one_of("--fit", fit, Fit), frame, per_cent / 100, anonymise, levels)

    def shown(self, name: str) -> str:
        """Return a file's name as it may be told: itself, or 16 hex digits of its keyed hash."""
        if not self.anonymise:
            return name
        return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), key=self.key, digest_size=8).hexdigest()


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
class Seen:
    """What is known of an image that was read, beside its pixels.

    Attributes:
        name: its file, relative to the folder, with slashes; or what stands for it.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        depth: bits of a sample in the file.
        channels: 1, or 3 for colours.
        patient: a digest of whose image it is, where the file says so; never to be written anywhere.
        sha256: of the file, hex.
    """

    name: str
    width: int
    height: int
    depth: int
    channels: int
    patient: str | None
    sha256: str


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
        depth: bits of a sample in the file.
        patient: a digest of whose image it is, to tell patients apart; never to be written anywhere.
        sha256: of the file, hex.
    """

    pixels: NDArray[Any]
    bits: int | None = None
    sure: bool = False
    span: Span | None = None
    inverted: bool = False
    notes: tuple[str, ...] = ()
    depth: int = 8
    patient: str | None = None
    sha256: str = ""


def frame_of(count: int, frame: int | None) -> int:
    """Return which of ``count`` frames to read, counted from 0.

    Raises:
        Unreadable: there are several and none was chosen, or there is no such frame.
    """
    if frame is None and count > 1:
        raise Unreadable(f"holds {count} pictures, save each as a file, or choose one by --frame or reading.frame")
    if frame is not None and count > 1 and not 1 <= frame <= count:
        raise Unreadable(f"holds {count} pictures, and none is number {frame}")
    return 0 if frame is None or count == 1 else frame - 1


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
