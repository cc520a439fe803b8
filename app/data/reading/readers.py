"""The one table of readers: which kinds of files are read, and by what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from app.data.files import file_error
from app.data.reading.dicom import need_pydicom, read_by_pydicom
from app.data.reading.pillow import read_by_pillow
from app.data.reading.raster import Raster, ReadOptions, Unreadable

# What lies beside images and is none: not worth a word.
COMPANIONS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".yaml", ".yml", ".html", ".pdf", ".log",
              ".xlsx", ".xls", ".db", ".py", ".sh", ".sha256", ".md5", ".license", ".parquet"}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """What reads one kind of files.

    Attributes:
        suffixes: of the files, in lower case.
        read: makes a raster of a file's bytes; raises Unreadable.
        check: raises UsageError if a library that this needs is not installed.
    """

    suffixes: tuple[str, ...]
    read: Callable[[bytes, ReadOptions], Raster]
    check: Callable[[], None] = lambda: None


PILLOW = Reader(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif", ".pgm", ".ppm",
     ".pnm", ".jp2", ".j2k", ".tga", ".pcx"),
    read_by_pillow,
)  # fmt: skip
DICOM = Reader((".dcm", ".dicom", ".dic", ".ima"), read_by_pydicom, need_pydicom)
READERS = (PILLOW, DICOM)


def reader_of(file: Path) -> Reader | None:
    """Return what reads a file, by its suffix, or by its first bytes, since DICOM files often have none.

    None if nothing reads it; a file that cannot be opened is of no kind.
    """
    suffix = file.suffix.lower()
    for reader in READERS:
        if suffix in reader.suffixes:
            return reader
    if suffix in COMPANIONS:
        return None
    try:
        with file.open("rb") as opened:
            return DICOM if opened.read(132)[128:] == b"DICM" else None
    except OSError:
        return None


def read_raster(file: Path, options: ReadOptions | None = None) -> Raster:
    """Read one image file by the reader of its kind.

    Raises:
        Unreadable: it is no image, damaged, or over a limit.
        UsageError: a library that it needs is not installed.
        AppError: the file system refuses it.
    """
    reader = reader_of(file)
    if reader is None:
        raise Unreadable("of a kind that is not read")
    reader.check()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise file_error(error, file, "reading") from error
    if not data:
        raise Unreadable("empty")
    return replace(reader.read(data, options or ReadOptions()), sha256=hashlib.sha256(data).hexdigest())
