"""The one table of readers: which kinds of files are read, and by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.data.files import file_error
from app.data.reading.pillow import read_by_pillow
from app.data.reading.raster import Raster, Unreadable


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
        read_by_pillow,
    ),
)  # fmt: skip


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
