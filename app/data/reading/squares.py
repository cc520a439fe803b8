"""The images of a folder as uint8 squares of one size.

Three things are told apart: files that are no images, or cannot be read, or are over a limit. They are left out,
counted and named.
"""

from __future__ import annotations

import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.files import Images
from app.data.reading.raster import RANGES, Levels, NoImage, Raster, ReadOptions, Seen, Unreadable
from app.data.reading.readers import read_raster, reader_of
from app.data.reading.search import Found, find_images, one_image
from app.data.reading.summary import ReadingSummary, named
from app.errors import AppError, InputError, StorageError
from app.machine import cores

FEW = 0.1  # of a folder's deep images: what so few of them fill is not what their instrument has
# An instrument of fewer bits beside another: so many of the deep images, at least two, and so many depths between
# theirs and the other's that none fills.
MANY, GAP = 0.25, 1
SPOOL = 256 * 2**20  # bytes of squares that are kept in memory, before they go to a temporary file

Square = Images | NDArray[np.uint16] | NDArray[np.float32]
Counted = Callable[[int, int], None]


def uncounted(done: int, total: int) -> None:
    """Tell nobody how far the reading is."""


class Squares:
    """The images of a folder as squares: padded or cut to a square, resized with an antialiased bicubic filter.

    Levels of more than 8 bits are divided by what their bits can hold: those that the file says, else those that their
    instrument has, as told by all such images of the folder (``instruments``): darker images stay darker, and images of
    12 bits in files of 16 become as bright as any. Fractions and negative numbers have the range that nearly all such
    images of the folder need: 0 to 1, 0 to 255, or, for Hounsfield units and the like, that of each image without its
    outer half per cent at each end. Each file is decoded once; what comes of it waits in a temporary file until all are
    known.

    Args:
        folder: whose files they are.
        found: the files.
        size: side of the squares in pixels.
        options: what the user decides.
        progress: told how many of how many files are done.

    Attributes:
        paths: of the images that were read, relative to the folder, with slashes.
        seen: what is known of each image that was read, in their order.
        shape: (N, size, size) if every image is gray in content, else (N, size, size, 3).
        reading: what was done.
        guessed: of how many images black and white are told by these images, not by them or by the options' levels.
        refused: the file system refused a file, which it may give another time.

    Raises:
        StorageError: the file system fails, which passes.
        InputError: more of the images cannot be read than may be; all are named. Or none is an image.
        UsageError: a library that a kind of files needs is not installed.
    """

    def __init__(
        self,
        folder: Path,
        found: Found,
        size: int,
        options: ReadOptions | None = None,
        progress: Counted = uncounted,
    ) -> None:
        self.reading = reading = ReadingSummary(left_out=found.left_out.copy())
        self.refused = False
        self.paths: list[str] = []
        self.seen: list[Seen] = []
        self._size, self._options, self._rasters = size, options or ReadOptions(), list[Raster]()
        self._kinds: list[tuple[np.dtype[Any], int]] = []
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - it lives as long as this does
        weakref.finalize(self, self._spool.close)
        for reader in {reader_of(file) for file in found.files}:
            if reader is not None:
                reader.check()
        squares = _in_threads(found.files, size, self._options)
        for done, (file, square) in enumerate(zip(found.files, squares, strict=True), 1):
            progress(done, len(found.files))
            if isinstance(square, NoImage):
                reading.no_image[str(square)] += 1
                continue
            if isinstance(square, Exception):
                name, reason = self._name(file, folder), reason_of(square, file)
                if isinstance(square, StorageError):  # it passes, and says nothing of the image
                    raise StorageError(f"{folder / name}: {reason}")
                reading.unreadable[name] = reason
                self.refused |= isinstance(square, AppError)
                continue
            pixels, raster, seen = square
            self.paths.append(file.relative_to(folder).as_posix())
            self.seen.append(replace(seen, name=self._name(file, folder)))
            self._spool.write(pixels.tobytes())
            self._kinds.append((pixels.dtype, pixels.ndim))
            self._rasters.append(raster)
            reading.kinds[_kind(file)] += 1
            reading.notes.update(raster.notes)
            if seen.width != seen.height:
                reading.notes["not square, " + ("padded" if self._options.fit == "pad" else "cut")] += 1
        reading.read = len(self._rasters)
        if len(reading.unreadable) > self._options.max_unreadable * len(found.files):
            raise InputError(
                f"{folder}: {len(reading.unreadable)} of {len(found.files)} images cannot be read: "
                f"{named(reading.unreadable)}; replace or remove them, or raise --max-unreadable or "
                "reading.max_unreadable"
            )
        if not self.seen:
            raise InputError(f"{folder}: holds no image that can be read; {reading.line()}; give another folder")
        sides = [max(seen.width, seen.height) for seen in self.seen]
        reading.sides = (min(sides), max(sides))
        known, told = self._options.levels or Levels(), _levels(self._rasters)
        self.guessed = sum(not known.hold(raster) for raster in self._rasters)
        reading.levels = Levels(known.bits or told.bits, told.range if known.range is None else known.range)
        reading.notes.update(scale[2] for raster in self._rasters if (scale := self._scale(raster)))
        self._gray = all(dimensions == 2 for _, dimensions in self._kinds)
        self.shape = (reading.read, size, size) if self._gray else (reading.read, size, size, 3)

    def _name(self, file: Path, folder: Path) -> str:
        return self._options.shown(file.relative_to(folder).as_posix())

    def _scale(self, raster: Raster) -> tuple[float, float, str] | None:
        """Which levels are black and white, and how that is said; None for uint8."""
        if raster.span is not None:
            of_range = max(raster.span.range, self.reading.levels.range or 0)
            return *raster.span.ends(of_range), RANGES[of_range]
        if raster.bits is None:
            return None
        bits = raster.bits if raster.sure else self.reading.levels.bits_of(raster.bits)
        return 0, 2**bits - 1, f"of {bits} bits"

    def array(self) -> Images:
        """Return all of them as one array of ``shape``."""
        images = np.empty(self.shape, np.uint8)
        for index, square in enumerate(self):
            images[index] = square
        return images

    def items(self) -> Iterator[tuple[str, Images]]:
        """Yield the name of each image with its pixels, as ``__iter__`` does."""
        return zip((seen.name for seen in self.seen), self, strict=True)

    def __iter__(self) -> Iterator[Images]:
        """Yield uint8, (size, size) or (size, size, 3), in the files' order."""
        self._spool.seek(0)
        for seen, raster, (dtype, dimensions) in zip(self.seen, self._rasters, self._kinds, strict=True):
            shape = (self._size, self._size, 3)[:dimensions]
            square = np.frombuffer(self._spool.read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
            if scale := self._scale(raster):
                black, white, _ = scale
                # a range of next to nothing is noise of float32
                width = max(white - black, 3e-5 * max(abs(black), abs(white)), 1e-12)
                scaled = (square.astype(np.float64) - black) / width
                square = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
            if raster.inverted:
                square = 255 - square
            if seen.width != seen.height and (scale or raster.inverted) and self._options.fit == "pad":
                top, left, height, width = _content(seen.height, seen.width, self._size)
                padded = np.zeros_like(square)
                padded[top : top + height, left : left + width] = square[top : top + height, left : left + width]
                square = padded
            yield square if self._gray or dimensions == 3 else np.repeat(square[:, :, None], 3, axis=2)


def read_squares(source: Path, size: int, options: ReadOptions | None = None, progress: Counted = uncounted) -> Squares:
    """Read every image below a folder, or one image file, as uint8 squares of ``size`` pixels.

    The one door for commands: ``for name, pixels in read_squares(source, size).items()``; ``reading.line()`` of what
    comes back says what was read, how, and what was left out.

    Raises:
        InputError: no images, or too many that cannot be read.
        UsageError: no permission.
    """
    if source.is_dir():
        return Squares(
            source, find_images(source, anonymise=options is not None and options.anonymise), size, options, progress
        )
    return Squares(source.parent, Found(files=[one_image(source)]), size, options, progress)


def _levels(rasters: Sequence[Raster]) -> Levels:
    """Tell black and white from all images of a folder."""
    bits = instruments(raster.bits for raster in rasters if raster.bits and not raster.sure)
    spans = sorted(raster.span.range for raster in rasters if raster.span)
    return Levels(tuple(sorted({*bits.values()})), spans[-1 - int(FEW * len(spans))] if spans else None)


def instruments(depths: Iterable[int]) -> dict[int, int]:
    """Tell from the bits that images fill the bits that the instruments have which made them.

    An instrument's images fill its bits or, where they are darker, fewer: it has those that more than a ``FEW`` reach.
    ``MANY`` images below a ``GAP`` of depths that none fills are another instrument's.

    Args:
        depths: the number of bits that each image fills.

    Returns:
        The bits of the instrument, for each number of bits that an image fills.
    """
    counts = Counter(depths)
    made_by: list[list[int]] = []  # each instrument: the depths that its images fill
    for depth in sorted(counts):
        many = made_by and sum(counts[below] for below in made_by[-1]) >= max(2, MANY * counts.total())
        if many and depth - made_by[-1][-1] > GAP:
            made_by.append([depth])
        elif made_by:
            made_by[-1].append(depth)
        else:
            made_by = [[depth]]
    bits = dict[int, int]()
    for filled in made_by:
        images = sorted(depth for depth in counts.elements() if depth in filled)
        usual = images[-1 - int(FEW * len(images))]
        bits |= {depth: max(depth, usual) for depth in filled}
    return bits


def _kind(file: Path) -> str:
    """The suffix by which a file is counted; one that is read for its first bytes is DICOM, whatever it ends with."""
    reader, suffix = reader_of(file), file.suffix.lower()
    return suffix if reader is None or suffix in reader.suffixes else reader.suffixes[0]


def reason_of(error: Exception, file: Path) -> str:
    """Return what an error says of a file without the path that it may begin with."""
    return str(error).removeprefix(str(AppError(f"{file}: ")))


Read = tuple[Square, Raster, Seen]


def _in_threads(files: Sequence[Path], size: int, options: ReadOptions) -> Iterator[Read | Unreadable | AppError]:
    """Read and resize the files in order, on all cores: Pillow lets go of Python meanwhile."""
    count = cores()
    with warnings.catch_warnings(), ThreadPoolExecutor(count) as pool:
        warnings.simplefilter("ignore")  # Pillow's: what they warn of is counted, or harmless
        for begin in range(0, len(files), 64 * count):  # so that no more than these are held in full size
            yield from pool.map(lambda file: _square_of(file, size, options), files[begin : begin + 64 * count])


def _square_of(file: Path, size: int, options: ReadOptions) -> Read | Unreadable | AppError:
    try:
        raster = read_raster(file, options)
    except (Unreadable, AppError) as error:
        return error
    height, width = raster.pixels.shape[:2]
    square = _square(raster, size, options)
    seen = Seen(file.name, width, height, raster.depth, 3 if square.ndim == 3 else 1, raster.patient, raster.sha256)
    return square, replace(raster, pixels=np.empty(0)), seen  # the pixels in full size are let go


def _content(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Where a picture lies in a padded square of ``size``: top, left, height and width."""
    longer = max(height, width)
    high, wide = (max(1, round(side * size / longer)) for side in (height, width))
    return (size - high) // 2, (size - wide) // 2, high, wide


def _square(raster: Raster, size: int, options: ReadOptions) -> Square:
    """Make a square, and resize; uint8, or uint16 for levels of more bits, or float32 for others."""
    pixels = raster.pixels
    height, width = pixels.shape[:2]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    top, left, high, wide = 0, 0, size, size
    if options.fit == "crop":
        side = min(height, width)
        at, down = (width - side) / 2, (height - side) / 2
        box = (at, down, at + side, down + side)
    else:
        top, left, high, wide = _content(height, width, size)

    def resize(plane: NDArray[Any]) -> NDArray[Any]:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC, box=box))

    if pixels.dtype == np.uint8 or pixels.ndim == 2:
        resized = resize(pixels)
    else:
        resized = np.stack([resize(pixels[:, :, channel]) for channel in range(3)], axis=-1)
    if raster.bits is not None:
        resized = np.rint(resized).clip(0, 65535).astype(np.uint16)
    if (high, wide) == (size, size):
        square = resized
    else:
        square = np.zeros((size, size, *resized.shape[2:]), resized.dtype)
        square[top : top + high, left : left + wide] = resized
    if square.ndim == 3 and (square == square[:, :, :1]).all():
        square = np.ascontiguousarray(square[:, :, 0])
    return square
