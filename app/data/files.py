"""Reading .npz archives strictly, hashing, atomic writing, and the memory-mapped cache.

Every failure becomes one line with the file, what is wrong with it and what to do.
"""

import contextlib
import errno
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from app.atomic import replacing
from app.errors import AppError, InputError, StorageError, UsageError, os_error

Images = NDArray[np.uint8]

MMAP_ABOVE = 256 * 2**20
_CHUNK = 2**20


def one_line(error: BaseException) -> str:
    """Return the text of ``error`` on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def file_error(error: OSError, path: Path, doing: str) -> AppError:
    """Translate an operating system error met while ``doing`` ("reading", "writing") ``path``."""
    if doing == "reading" and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path}: no such file; check the path, or run `data fetch`")
    return os_error(error, path, doing)


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of the bytes of ``path`` ("sha256" or "md5")."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise file_error(error, path, "reading") from error
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name ``path`` once it is whole; see ``replacing``.

    Raises:
        AppError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise file_error(error, path, "writing") from error


@dataclass(frozen=True)
class Header:
    """Shape and dtype of one array of an archive, known without reading its data."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


class NpzReader:
    """An open .npz archive: headers are cheap, data is read on request and checked against its CRC."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self.keys = [name.removesuffix(".npy") for name in archive.namelist()]

    def header(self, key: str) -> Header:
        """Return shape and dtype of array ``key``; InputError if it is missing, pickled or damaged."""
        with self._member(key) as (member, header):
            del member
            return header

    def read(self, key: str) -> NDArray[Any]:
        """Return array ``key`` in memory, C-contiguous."""
        with self._member(key) as (member, header):
            data = np.empty(header.shape, header.dtype, order="F" if header.fortran_order else "C")
            flat = data.reshape(-1, order="A").view(np.uint8) if data.size else np.empty(0, np.uint8)
            done = 0
            while done < flat.nbytes:
                chunk = member.read(min(_CHUNK, flat.nbytes - done))
                if not chunk:
                    raise EOFError(f"{key} ends after {done} of {flat.nbytes} bytes")
                flat[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
                done += len(chunk)
            member.read(1)  # zipfile compares the CRC only when it meets the end
            return np.ascontiguousarray(data) if data.ndim else data

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the raw C-order bytes of array ``key`` without holding it in memory."""
        if self.header(key).fortran_order:
            yield self.read(key).tobytes()
            return
        with self._member(key) as (member, _):
            while chunk := member.read(_CHUNK):
                yield chunk

    def flag(self, key: str) -> bool:
        """Return whether the archive has a scalar ``key`` that is true."""
        return key in self.keys and bool(np.all(self.read(key)))

    @contextlib.contextmanager
    def _member(self, key: str) -> Iterator[tuple[IO[bytes], Header]]:
        if key not in self.keys:
            have = ", ".join(self.keys) or "nothing"
            raise InputError(f"{self.path}: has no array '{key}' (it has {have}); save it under this name")
        with _reading(self.path), self._archive.open(f"{key}.npy") as member:
            shape, fortran, dtype = _npy_header(member, key)
            if dtype.hasobject:
                raise InputError(
                    f"{self.path}: array '{key}' holds pickled Python objects, which are never loaded; "
                    "save plain numbers"
                )
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if member.tell() + size != self._archive.getinfo(f"{key}.npy").file_size:
                raise ValueError(f"array '{key}' does not have the length that its header says")
            yield member, Header(tuple(shape), dtype, fortran)


def _npy_header(member: IO[bytes], key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array '{key}' is in .npy format version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(member)
    except Exception as error:  # numpy parses it as Python, which fails in more ways than it says
        raise ValueError(f"the header of array '{key}' cannot be read: {one_line(error)[:80]}") from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise file_error(error, path, "reading") from error
    except (zipfile.BadZipFile, EOFError, zlib.error, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{path}: truncated, damaged or no .npz ({one_line(error)}); copy or fetch it again"
        ) from error
    except RuntimeError as error:  # zipfile's word for an encrypted member
        raise InputError(f"{path}: {one_line(error)}; save it without encryption") from error


def is_archive(path: Path) -> bool:
    """Say whether ``path`` has what every .npz has at its end; a truncated one has not."""
    return zipfile.is_zipfile(path)


def is_truncated(path: Path) -> bool:
    """Say whether ``path`` begins as an .npz does and lacks what it ends with."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and not is_archive(path)


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzReader]:
    """Open ``path`` for reading; InputError if it is missing or no .npz, UsageError without permission."""
    with contextlib.ExitStack() as stack:
        with _reading(path):
            reader = NpzReader(path, stack.enter_context(zipfile.ZipFile(path)))
        yield reader


def cached_images(
    cache: Path, key: str, shape: tuple[int, ...], produce: Callable[[], Iterable[bytes]]
) -> Images | None:
    """Return ``cache/<key>.npy`` memory-mapped (read-only uint8 of ``shape``), writing it first if absent.

    ``key`` holds the SHA-256 of the source, so a changed source never meets an old cache; a damaged cache
    file is written anew. ``produce`` yields the C-order bytes. None if the cache cannot be written, or read: it
    is to be done without.
    """
    if (images := open_cache(cache, key, shape)) is not None:
        return images
    path = cache / f"{key}.npy"
    try:
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in produce():
                file.write(chunk)
    except (UsageError, StorageError):  # what is wrong with the source will be said when it is read without a cache
        return None
    return open_cache(cache, key, shape)


def open_cache(cache: Path, key: str, shape: tuple[int, ...]) -> Images | None:
    """Return ``cache/<key>.npy`` memory-mapped, or None if absent, damaged or not uint8 of ``shape``."""
    path = cache / f"{key}.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):  # truncated, foreign or out of reach: rebuilt by the caller
        return None
    if images.dtype != np.uint8 or images.shape != shape:
        return None
    return images  # type: ignore[no-any-return]
