"""The reader of what Pillow reads: PNG, JPEG, TIFF, WebP and others.

Metadata that is broken (EXIF, texts, colour profiles) costs an image nothing.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from app.data.files import Images, one_line
from app.data.reading.raster import Raster, ReadOptions, Unreadable, frame_of, levels_of

GRAY = ("1", "L", "LA", "La")
ORIENTATION = 0x0112  # EXIF's tag
# By how much the channels of a gray image may differ after lossy compression.
LOSSY = {"JPEG": 3, "MPO": 3, "WEBP": 4, "JPEG2000": 3}
# Chunks that a PNG's pixels depend on; the others may be damaged, or too large, without harm.
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}


def read_by_pillow(data: bytes, options: ReadOptions) -> Raster:
    """Read what Pillow reads; a PNG that it refuses for its metadata is read without them."""
    notes: tuple[str, ...] = ()
    try:
        return _decode(data, options, notes)
    except Unreadable:
        bare = _without_metadata(data)
        if bare is None or bare == data:
            raise
        return _decode(bare, options, ("with broken or oversized metadata, which were left out",))


def _decode(data: bytes, options: ReadOptions, notes: tuple[str, ...]) -> Raster:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in ("TIFF", "GIF", "WEBP") and (count := getattr(image, "n_frames", 1)) > 1:
                image.seek(frame := frame_of(count, options.frame))
                notes = (*notes, f"frame {frame + 1} of several")
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
    turned = ("turned as their EXIF says",) if 2 <= orientation <= 8 else ()
    return replace(raster, pixels=_turn(raster.pixels, orientation), notes=(*notes, *raster.notes, *turned))


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
        raster = levels_of(levels, whole=image.mode != "F", significant=16 if scaled else _significant_bits(data))
        raster = replace(raster, depth=32 if image.mode in ("I", "F") else 16)
        if getattr(image, "tag_v2", {}).get(262) != 0:
            return raster
        return replace(raster, inverted=True, notes=(*raster.notes, "with white as 0, inverted"))
    image.load()
    deep = max(getattr(image, "tag_v2", {}).get(258, (8,))) > 8 if header is None else header[0] > 8
    if deep and np.asarray(image.convert("RGB")).max(initial=0) < 64:
        raise Unreadable("colours that do not fill their 16 bits, of which the upper 8 alone can be read: save 8 bits")
    depth = 16 if deep else 1 if image.mode == "1" else 8
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return replace(_laid_on_black(image), depth=depth)
    pixels = _plain(image)
    if pixels.ndim == 3 and image.format in LOSSY and int(np.ptp(pixels, axis=2).max()) <= LOSSY[image.format]:
        pixels = np.asarray(image.convert("L"))
    notes = ("of CMYK colours",) if image.mode == "CMYK" else ("of 1 bit",) if depth == 1 else ()
    return Raster(pixels, notes=notes, depth=depth)


def _plain(image: Image.Image) -> Images:
    mode = "L" if image.mode in GRAY else "RGB"
    pixels: Images = np.asarray(image if image.mode == mode else image.convert(mode))
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


with contextlib.suppress(ImportError):  # formats that Pillow knows only after their plugins are loaded
    Image.init()
