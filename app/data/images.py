"""Image files: the one door through which pictures of any kind come in, as uint8 squares.

Three things are told apart: files that are no images, or cannot be read, or are over a limit. They are left out,
counted and named; metadata that is broken (EXIF, texts, colour profiles) costs an image nothing. A reader of another
kind of file is one more entry of ``READERS``.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
import warnings
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from app.data.files import Images, file_error, one_line
from app.errors import AppError, InputError, StorageError
from app.machine import cores

MAX_UNREADABLE = 0.01  # of the images; more of them end the run
FEW = 0.1  # of a folder's deep images: what so few of them fill is not what their instrument has
# An instrument of fewer bits beside another: so many of the deep images, at least two, and so many depths between
# theirs and the other's that none fills.
MANY, GAP = 0.25, 1
SPOOL = 256 * 2**20  # bytes of squares that are kept in memory, before they go to a temporary file
NAMED = 10  # files that a message names
# What programs hide beside images: previews, copies, waste baskets, folders of other systems.
HIDDEN = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
          "desktop.ini", "ehthumbs.db"}  # fmt: skip
# What lies beside images and is none: not worth a word.
COMPANIONS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".yaml", ".yml", ".html", ".pdf", ".log",
              ".xlsx", ".xls", ".db", ".py", ".sh", ".sha256", ".md5", ".license"}  # fmt: skip
GRAY = ("1", "L", "LA", "La")
ORIENTATION = 0x0112  # EXIF's tag
# By how much the channels of a gray image may differ after lossy compression.
LOSSY = {"JPEG": 3, "MPO": 3, "WEBP": 4, "JPEG2000": 3}
# Chunks that a PNG's pixels depend on; the others may be damaged, or too large, without harm.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}


Square = Images | NDArray[np.uint16] | NDArray[np.float32]


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


# ---- which files ----


@dataclass
class Found:
    """The image files of a folder and what lies beside them."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file, or a folder, that is not read."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, str(path))


def find_images(folder: Path) -> Found:
    """Search a folder and its subfolders, linked ones too, for image files, in the order of their names' bytes.

    Raises:
        InputError: there are none, or next to all files are of kinds that are not read.
        UsageError: the folder cannot be read.
    """
    found, seen = Found(), set[tuple[int, int]]()
    _search(folder, folder, found, seen)
    found.files.sort(key=lambda file: os.fsencode(file.relative_to(folder)))
    others = sum(count for reason, count in found.left_out.items() if reason.startswith("of kind"))
    if not found.files or others >= 9 * len(found.files):
        beside = f"; {left_out(found.left_out)}" if found.left_out else ""
        kinds = ", ".join(sorted({suffix[1:] for reader in READERS for suffix in reader.suffixes}))
        raise InputError(
            f"{folder}: holds {len(found.files) or 'no'} images that can be read ({kinds}){beside}; convert the "
            "others, give another folder, or an .npz"
        )
    return found


def _search(root: Path, folder: Path, found: Found, seen: set[tuple[int, int]]) -> None:
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder that was or is being searched
            found.leave_out("links to folders that are read anyway", folder)
            return
        seen.add((here.st_dev, here.st_ino))
        names = sorted(os.listdir(os.fsencode(folder)))
    except OSError as error:
        if folder == root:
            raise file_error(error, folder, "reading") from error
        found.leave_out("folders that cannot be read", folder)
        return
    for name in names:
        path = folder / os.fsdecode(name)
        if name.startswith(b".") or os.fsdecode(name).lower() in HIDDEN:
            found.leave_out("hidden files or folders", path)
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            found.leave_out("links that lead nowhere", path)
            continue
        suffix = path.suffix.lower()
        if stat.S_ISDIR(mode):
            _search(root, path, found, seen)
        elif not stat.S_ISREG(mode):
            found.leave_out("no files", path)
        elif any(suffix in reader.suffixes for reader in READERS):
            found.files.append(path)
        elif suffix not in COMPANIONS:
            found.leave_out(f"of kind {suffix}" if suffix else "of kind unknown, without a suffix", path)


def left_out(counts: Counter[str]) -> str:
    """Say how many files are left out, and why."""
    why = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(8))
    return f"{sum(counts.values())} left out: {why}"


# ---- one file ----


def read_raster(file: Path) -> Raster:
    """Read one image file by the reader of its kind.

    Raises:
        Unreadable: it is no image, damaged, or over a limit.
        AppError: the file system refuses it.
    """
    suffix = file.suffix.lower()
    reader = next(reader for reader in READERS if suffix in reader.suffixes)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise file_error(error, file, "reading") from error
    if not data:
        raise Unreadable("empty")
    return reader.read(data)


def _read_by_pillow(data: bytes) -> Raster:
    """Read what Pillow reads; a PNG that it refuses for its metadata is read without them."""
    notes: tuple[str, ...] = ()
    try:
        return _decode(data, notes)
    except Unreadable:
        bare = _without_metadata(data)
        if bare is None or bare == data:
            raise
        return _decode(bare, ("with broken or oversized metadata, which were left out",))


def _decode(data: bytes, notes: tuple[str, ...]) -> Raster:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("TIFF", "GIF", "WEBP") and (count := getattr(image, "n_frames", 1)) > 1:
                raise Unreadable(f"holds {count} pictures, save each as a file")
            raster = _raster(image, data)
            orientation = _orientation(image)  # after loading: Pillow turns a TIFF itself, and drops the tag
    except Image.DecompressionBombError as error:
        raise Unreadable(f"over the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, scale it down") from error
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not an image, whatever its name says") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble upon in files that are not what they say
        raise Unreadable(f"damaged ({one_line(error)[:80]})") from error
    return replace(raster, pixels=_turn(raster.pixels, orientation), notes=(*notes, *raster.notes))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where the metadata cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever is wrong with the metadata, the pixels are sound
        return 1


def _turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror pixels as EXIF's numbers 2 to 8 say; others leave them."""
    turned = pixels
    if orientation in (5, 6, 7, 8):
        turned = turned.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _raster(image: Image.Image, data: bytes) -> Raster:
    """Turn an opened image into gray levels or colours: 8 bits as they are, more bits as floats."""
    header = _png_header(data)
    if header is not None:
        for name, begin, end in _png_chunks(data):  # Pillow does not look at the checksums of pixels
            if name in PNG_CHUNKS and zlib.crc32(data[begin + 4 : end - 4]) != int.from_bytes(
                data[end - 4 : end], "big"
            ):
                raise Unreadable(f"damaged (the checksum of {name.decode()} is wrong)")
    if image.mode.startswith(("I", "F")):
        scaled = _is_scaled(image)  # asked first: what is loaded has no tiles
        levels = np.asarray(image).astype(np.float32 if image.mode != "I" else np.float64)
        raster = _levels(levels, whole=image.mode != "F", significant=16 if scaled else _significant_bits(data))
        if getattr(image, "tag_v2", {}).get(262) != 0:
            return raster
        return replace(raster, inverted=True, notes=(*raster.notes, "with white as 0, inverted"))
    image.load()
    deep = max(getattr(image, "tag_v2", {}).get(258, (8,))) > 8 if header is None else header[0] > 8
    if deep and np.asarray(image.convert("RGB")).max(initial=0) < 64:
        raise Unreadable("colours that do not fill their 16 bits, of which the upper 8 alone can be read: save 8 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _laid_on_black(image)
    pixels = _plain(image)
    if pixels.ndim == 3 and image.format in LOSSY and int(np.ptp(pixels, axis=2).max()) <= LOSSY[image.format]:
        pixels = np.asarray(image.convert("L"))
    return Raster(pixels)


def _plain(image: Image.Image) -> Images:
    pixels: Images = np.asarray(image.convert("L" if image.mode in GRAY else "RGB"))
    return pixels


def _laid_on_black(image: Image.Image) -> Raster:
    """What is transparent hides colours that nobody sees: it becomes black."""
    gray = image.mode in ("LA", "La", "L", "1")
    seen = image.convert("RGBA")
    alpha = np.asarray(seen)[:, :, 3:].astype(np.uint16)
    if (unseen := not alpha.any()) or (alpha == 255).all():  # a program that left the channel empty hides nothing
        plain = np.asarray(seen.convert("L")) if gray else np.ascontiguousarray(np.asarray(seen)[:, :, :3])
        return Raster(plain, notes=("with transparency 0 throughout, which was ignored",) if unseen else ())
    colours = ((np.asarray(seen)[:, :, :3] * alpha + 127) // 255).astype(np.uint8)
    return Raster(colours[:, :, 0] if gray else colours, notes=("with transparency, laid on black",))


def _levels(values: NDArray[Any], *, whole: bool, significant: int | None = None) -> Raster:
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


def _is_scaled(image: Image.Image) -> bool:
    """Whether Pillow has scaled the levels to 16 bits by what the file names as their largest, as of a PGM.

    65535 says as little of the instrument as the 16 bits of a PNG.
    """
    if image.format != "PPM" or image.mode != "I" or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return False
    args = image.tile[0].args
    return isinstance(args, tuple) and args[-1] != 65535


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk of a PNG: its name, and from where to where it reaches with length and checksum."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, min(at + 12 + length, len(data))
        at += 12 + length


def _png_header(data: bytes) -> tuple[int, int] | None:
    """Bit depth and colour type of a PNG; None for another kind of file."""
    return (data[24], data[25]) if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 26 else None


def _significant_bits(data: bytes) -> int | None:
    """What a PNG's sBIT chunk says: how many of the 16 bits the instrument filled."""
    if _png_header(data) is None:
        return None
    for name, begin, _ in _png_chunks(data):
        if name == b"sBIT":
            return data[begin + 8] if begin + 8 < len(data) and 0 < data[begin + 8] <= 16 else None
        if name == b"IDAT":
            break
    return None


def _without_metadata(data: bytes) -> bytes | None:
    """Return a PNG with the chunks alone that its pixels depend on; None for another kind of file."""
    if _png_header(data) is None:
        return None
    return data[:8] + b"".join(data[begin:end] for name, begin, end in _png_chunks(data) if name in PNG_CHUNKS)


@dataclass(frozen=True)
class Reader:
    """What reads one kind of files.

    Attributes:
        suffixes: of the files, in lower case.
        read: makes a raster of a file's bytes; raises Unreadable.
    """

    suffixes: tuple[str, ...]
    read: Callable[[bytes], Raster]


READERS: tuple[Reader, ...] = (
    Reader(
        (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif", ".pgm", ".ppm",
         ".pnm", ".jp2", ".j2k", ".tga", ".pcx"),
        _read_by_pillow,
    ),
)  # fmt: skip


# ---- a folder ----


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
            parts.append(f"{len(self.unreadable)} unreadable: {_named(self.unreadable)}")
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


def _named(unreadable: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:NAMED]]
    more = len(unreadable) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class Squares:
    """The images of a folder as squares: cut to their central square, resized with an antialiased bicubic filter.

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

    Attributes:
        shape: (N, size, size) if every image is gray in content, else (N, size, size, 3).
        reading: what was done.
        refused: the file system refused a file, which it may give another time.

    Raises:
        StorageError: the file system fails, which passes.
        InputError: more than ``MAX_UNREADABLE`` of the images cannot be read; all are named.
    """

    def __init__(self, folder: Path, found: Found, size: int) -> None:
        self.reading = reading = Reading(left_out=found.left_out.copy())
        self.refused = False
        self._size, self._rasters = size, list[Raster]()
        self._kinds: list[tuple[np.dtype[Any], int]] = []
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - it lives as long as this does
        weakref.finalize(self, self._spool.close)
        for file, square in zip(found.files, _in_threads(found.files, size), strict=True):
            if isinstance(square, Exception):
                reading.unreadable[os.path.relpath(file, folder)] = str(square)
                self.refused |= isinstance(square, AppError)
                continue
            pixels, raster = square
            self._spool.write(pixels.tobytes())
            self._kinds.append((pixels.dtype, pixels.ndim))
            self._rasters.append(raster)
            reading.kinds[file.suffix.lower()] += 1
            reading.notes.update(raster.notes)
        reading.read = len(self._rasters)
        if len(reading.unreadable) > MAX_UNREADABLE * len(found.files):
            raise InputError(
                f"{folder}: {len(reading.unreadable)} of {len(found.files)} images cannot be read: "
                f"{_named(reading.unreadable)}; replace or remove them"
            )
        self._bits = instruments(raster.bits for raster in self._rasters if raster.bits and not raster.sure)
        spans = sorted(raster.span.range for raster in self._rasters if raster.span)
        self._range = spans[-1 - int(FEW * len(spans))] if spans else 0
        reading.notes.update(scale[2] for raster in self._rasters if (scale := self._scale(raster)))
        self._gray = all(dimensions == 2 for _, dimensions in self._kinds)
        self.shape = (reading.read, size, size) if self._gray else (reading.read, size, size, 3)

    def _scale(self, raster: Raster) -> tuple[float, float, str] | None:
        """Which levels are black and white, and how that is said; None for uint8."""
        if raster.span is not None:
            of_range = max(raster.span.range, self._range)
            return *raster.span.ends(of_range), RANGES[of_range]
        if raster.bits is None:
            return None
        bits = raster.bits if raster.sure else self._bits[raster.bits]
        return 0, 2**bits - 1, f"of {bits} bits"

    def __iter__(self) -> Iterator[Images]:
        """Yield uint8, (size, size) or (size, size, 3), in the files' order."""
        self._spool.seek(0)
        for raster, (dtype, dimensions) in zip(self._rasters, self._kinds, strict=True):
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
            yield square if self._gray or dimensions == 3 else np.repeat(square[:, :, None], 3, axis=2)


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


def _in_threads(files: Sequence[Path], size: int) -> Iterator[tuple[Square, Raster] | Unreadable | AppError]:
    """Read and resize the files in order, on all cores: Pillow lets go of Python meanwhile."""
    count = cores()
    with warnings.catch_warnings(), ThreadPoolExecutor(count) as pool:
        warnings.simplefilter("ignore")  # Pillow's: what they warn of is counted, or harmless
        for begin in range(0, len(files), 64 * count):  # so that no more than these are held in full size
            yield from pool.map(lambda file: _square_of(file, size), files[begin : begin + 64 * count])


def _square_of(file: Path, size: int) -> tuple[Square, Raster] | Unreadable | AppError:
    try:
        raster = read_raster(file)
    except StorageError:  # it passes, and says nothing of the image
        raise
    except (Unreadable, AppError) as error:
        return error
    # the pixels in full size are let go; what was found out about them stays
    return _square(raster, size), replace(raster, pixels=np.empty(0))


def _square(raster: Raster, size: int) -> Square:
    """Cut to the central square and resize; uint8, or uint16 for levels of more bits, or float32 for others."""
    pixels = raster.pixels
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)

    def resize(plane: NDArray[Any]) -> NDArray[Any]:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))

    if pixels.dtype == np.uint8 or pixels.ndim == 2:
        square = resize(pixels)
    else:
        square = np.stack([resize(pixels[:, :, channel]) for channel in range(3)], axis=-1)
    if raster.bits is not None:
        square = np.rint(square).clip(0, 65535).astype(np.uint16)
    if square.ndim == 3 and (square == square[:, :, :1]).all():
        square = np.ascontiguousarray(square[:, :, 0])
    return square


with contextlib.suppress(ImportError):  # formats that Pillow knows only after their plugins are loaded
    Image.init()
