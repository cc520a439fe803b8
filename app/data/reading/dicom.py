"""The reader of DICOM files, by pydicom: levels as their window shows them.

Numbers in parentheses are tags of the standard, "Part 3" its PS3.3. Nothing that is written, counted or said holds
what a file says of a person, and so no text of an error that its header may have gone into.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.files import one_line
from app.data.reading.raster import NoImage, Raster, ReadOptions, Unreadable, frame_of
from app.errors import missing_extra

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

GRAY = ("MONOCHROME1", "MONOCHROME2")
OUTER = (0.5, 99.5)  # per cent of the levels, between which an image without a window is shown
OWN_RANGE = "scaled by their own range"
EXTRA = "dicom"  # of this package, which brings the libraries


def need_pydicom() -> None:
    """Check that pydicom is there.

    Raises:
        UsageError: it is not.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise missing_extra("DICOM files", "pydicom", EXTRA) from error


def read_by_pydicom(data: bytes, options: ReadOptions) -> Raster:
    """Read a DICOM file: gray levels through modality LUT and window or VOI LUT, palettes and colours as RGB."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it has to say is said here, or harmless
    file = _parse(data)
    kind = _value(file, "Modality") or "unknown"
    if not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise NoImage(f"DICOM files without an image ({str(kind)[:16]})")
    try:
        rows, columns = int(file.Rows), int(file.Columns)
        count = int(file.get("NumberOfFrames") or 1)
        photometric = str(file.PhotometricInterpretation)
        depth = int(file.get("BitsStored") or file.BitsAllocated)
        largest = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    except Exception as error:  # a header may lack or garble anything
        raise Unreadable("damaged (its header lacks what describes the image)") from error
    if rows * columns > largest:
        raise Unreadable(f"over the limit of {largest:,} pixels, scale it down")
    frame = frame_of(count, options.frame)
    notes: tuple[str, ...] = (f"frame {frame + 1} of several",) if count > 1 else ()
    notes += (
        ("with writing burned into the picture",) if str(_value(file, "BurnedInAnnotation")).upper() == "YES" else ()
    )
    stored = _stored(file, frame if count > 1 else None)
    try:
        with np.errstate(all="ignore"):
            if photometric in GRAY:
                shown = _shown(file, stored, depth)
                notes += (shown.rule,)
                pixels = _inverted(shown.pixels, stored, file) if photometric == GRAY[0] else shown.pixels
                notes += ("of MONOCHROME1, inverted",) if photometric == GRAY[0] else ()
            else:
                pixels, more = _coloured(file, stored, photometric, depth)
                notes += more
    except Unreadable:
        raise
    except Exception as error:  # attributes that contradict each other, in ways nobody has listed
        raise Unreadable(f"damaged (its attributes do not fit together, {type(error).__name__})") from error
    return Raster(np.ascontiguousarray(pixels), notes=notes, depth=depth, patient=_patient(file))


def _parse(data: bytes) -> Dataset:
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        file = dcmread(io.BytesIO(data), force=True)
        if len(file) == 0:
            raise Unreadable("not a DICOM file, whatever its name says")
        if "TransferSyntaxUID" not in file.file_meta:  # of before DICOM had such a header
            little = file.original_encoding[1] is not False
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if file.original_encoding[0] else explicit
    except Unreadable:
        raise
    except Exception as error:  # it parses whatever it is given, and stumbles upon anything
        raise Unreadable("not a DICOM file, or its header is damaged") from error
    return file


def _stored(file: Dataset, frame: int | None) -> NDArray[Any]:
    """Return the stored values of one frame: (H, W) or (H, W, 3), YBR turned into RGB."""
    from pydicom.pixels.utils import pixel_array

    syntax = file.file_meta.TransferSyntaxUID
    try:
        values: NDArray[Any] = pixel_array(file, index=frame, decoding_plugin=_decoder(syntax))
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise Unreadable(f"damaged ({one_line(error)[:80]})") from error
        raise Unreadable(str(missing_extra(f"compressed as {syntax.name}", "its decoder", EXTRA))) from error
    except MemoryError:
        raise
    except Exception as error:  # of the decoders: about pixels, not about persons
        raise Unreadable(f"damaged ({one_line(error)[:80]})") from error
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise Unreadable(f"of {values.ndim} dimensions, not a picture")
    return values


def _decoder(syntax: UID) -> str:
    """The one decoder of a transfer syntax, chosen for what it does with damaged files: it says so.

    pylibjpeg's of JPEG-LS may never come back, its of run lengths panics; GDCM's (if it is there) ends the process.
    """
    from pydicom import uid

    if not syntax.is_encapsulated:
        return ""
    chosen = {uid.RLELossless: "pydicom", uid.JPEGBaseline8Bit: "pillow"}
    chosen |= dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls")
    return chosen.get(syntax, "pylibjpeg")


@dataclass(frozen=True)
class _Shown:
    """Gray levels as uint8 (H, W), and the rule that chose black and white, in words that are counted."""

    pixels: NDArray[np.uint8]
    rule: str


def _shown(file: Dataset, stored: NDArray[Any], depth: int) -> _Shown:
    """Show gray values: by the VOI LUT or the first window, by the bits that they fill, or by their own range.

    A window that shows nothing of an image that has contrast is not used.
    """
    from pydicom.pixels.processing import apply_modality_lut

    levels = apply_modality_lut(stored, file).astype(np.float64)
    for rule, view in (("shown by their VOI LUT", _by_table), ("shown by their window", _by_window)):
        found = view(file, levels)
        if found is not None and (np.ptp(found) > 0 or np.ptp(levels) == 0):
            return _Shown(_without_padding(found, stored, file), rule)
    plain = np.array_equal(levels, stored) and levels.min() >= 0 and stored.dtype.kind in "iu"
    if plain and depth <= 16 and levels.max() >= 2 ** (depth - 1):
        return _Shown(_between(levels, 0, 2**depth - 1), f"of {depth} bits")
    inside = levels[np.isfinite(levels) & ~_padding(stored, file)]
    if inside.size == 0:
        raise Unreadable("holds nothing but padding")
    black, white = np.percentile(inside, OUTER)
    return _Shown(_without_padding(_between(levels, float(black), float(white)), stored, file), OWN_RANGE)


def _by_table(file: Dataset, levels: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    """Show levels by the VOI LUT (0028,3010), Part 3 C.11.2.1.1; None if there is none that can be used."""
    from pydicom.pixels.processing import apply_voi

    table = file.get("VOILUTSequence")
    if not table or "LUTDescriptor" not in table[0] or "LUTData" not in table[0]:
        return None
    if not np.array_equal(levels, np.rint(levels)):
        return None  # a table has entries for whole numbers
    try:
        found = apply_voi(levels.astype(np.int64), file)
        bits = int(table[0].LUTDescriptor[2])
    except Exception:  # a damaged table leaves the window, or the range of the levels
        return None
    return _between(found.astype(np.float64), 0, float(max(2**bits - 1, found.max(), 1)))


def _by_window(file: Dataset, levels: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    """Show levels by the first window (0028,1050), Part 3 C.11.2.1.2; None if there is none that can be used."""
    from pydicom.pixels.processing import apply_windowing

    if file.get("WindowCenter") in (None, "") or file.get("WindowWidth") in (None, ""):
        return None
    try:
        black, white = apply_windowing(np.array([-1e30, 1e30]), file)
        return _between(apply_windowing(levels, file), float(black), float(white))
    except Exception:  # a width below 1, a function that nobody knows: as if there were none
        return None


def _between(levels: NDArray[np.float64], black: float, white: float) -> NDArray[np.uint8]:
    """Return uint8: 0 for ``black`` and below, 255 for ``white`` and above."""
    width = white - black or 1.0
    scaled = np.nan_to_num((levels - black) / width, nan=0.0, posinf=1.0, neginf=0.0)
    shown: NDArray[np.uint8] = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    return shown


def _padding(stored: NDArray[Any], file: Dataset) -> NDArray[np.bool_]:
    """Which pixels are none, but fill the frame (0028,0120); a range of values if (0028,0121) says so."""
    value = file.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    limit = file.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (stored >= low) & (stored <= high)


def _without_padding(pixels: NDArray[np.uint8], stored: NDArray[Any], file: Dataset) -> NDArray[np.uint8]:
    return np.where(_padding(stored, file), np.uint8(0), pixels)


def _inverted(pixels: NDArray[np.uint8], stored: NDArray[Any], file: Dataset) -> NDArray[np.uint8]:
    """Turn levels of which the lowest is white (MONOCHROME1); what is padding stays black."""
    return _without_padding(255 - pixels, stored, file)


def _coloured(
    file: Dataset, stored: NDArray[Any], photometric: str, depth: int
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return uint8 (H, W, 3) of a palette or of colours of any depth, and what to note."""
    from pydicom.pixels.processing import apply_color_lut

    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, file)[:, :, :3]
        bits = 16 if colours.dtype.itemsize > 1 else 8
        return _between(colours.astype(np.float64), 0, 2**bits - 1), ("with a palette of colours",)
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise Unreadable(f"of kind {photometric[:32]}, with an array of {stored.shape}, which is not read")
    if depth == 8 and stored.dtype == np.uint8:
        return stored, ()
    return _between(stored.astype(np.float64), 0, 2.0**depth - 1), (f"colours of {depth} bits",)


def _value(file: Dataset, name: str) -> Any:
    """Return an attribute; None if it is not there or cannot be decoded, in ways that pydicom does not list."""
    try:
        return file.get(name)
    except Exception:
        return None


def _patient(file: Dataset) -> str | None:
    number = str(_value(file, "PatientID") or "").strip()
    return hashlib.sha256(number.encode("utf-8", "replace")).hexdigest() if number else None
