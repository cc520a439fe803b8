"""Downloads of the published files: resumable, verified by MD5, published atomically."""

import contextlib
import errno
import fcntl
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from app.atomic import sync_folder
from app.data import cifar10
from app.data.catalog import Known, known
from app.data.files import digest_of, file_error, is_truncated, one_line
from app.errors import AppError, InputError, StorageError, UsageError

_CHUNK = 2**18
_READ_TIMEOUT = 60.0


class _Transient(Exception):
    """A failure of the connection or server that another try may cure."""


class _Restart(Exception):
    """The partial file does not fit what the server has: start from nothing."""


def fetch(
    names: Sequence[str],
    *,
    root: Path,
    size: int = 28,
    mirror: str | None = None,
    offline: bool = False,
    connect_timeout: float = 5.0,
    retries: int = 2,
    by_hand: Path | None = None,
) -> list[Path]:
    """Put the published files of ``names`` at ``size`` pixels into ``root``; return their paths, in order.

    A file that is there with the right MD5 is kept. A download continues the ``<file>.part`` of an earlier
    one (HTTP Range), is checked against the published MD5, and only then gets its name. ``mirror`` replaces
    the publisher's host: a base URL, or a folder, that has the files under their usual names.
    ``connect_timeout`` is in seconds; after a lost connection come ``retries`` more tries.
    ``known(name).licence`` has the licence. Errors name ``by_hand``, ``root`` by default, as the folder for a file that
    is brought there in another way.

    Raises InputError for a wrong checksum, a file the mirror lacks, or an absent file when ``offline``;
    StorageError if the host is unreachable or the disk full; UsageError for an unknown name or size, no
    permission, or refused credentials.
    """
    sets = [known(name) for name in names]
    for one in sets:
        if size not in one.urls:
            raise UsageError(f"{one.name} has no size {size}; choose one of {', '.join(map(str, one.urls))}")
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, root, "creating") from error
    place = by_hand or root
    paths = [_fetch_one(one, root, place, size, mirror, offline, connect_timeout, retries) for one in sets]
    return [cifar10.as_npz(path) if path.name == cifar10.ARCHIVE else path for path in paths]


def file_name(one: Known, size: int) -> str:
    """Return the name of the published file: the last part of its URL's path, such as pathmnist_64.npz."""
    return urllib.parse.urlsplit(one.urls[size]).path.rsplit("/", 1)[-1]


def _fetch_one(
    one: Known,
    root: Path,
    place: Path,
    size: int,
    mirror: str | None,
    offline: bool,
    connect_timeout: float,
    retries: int,
) -> Path:
    name, md5 = file_name(one, size), one.md5[size]
    path = root / name
    if path.exists():
        found = digest_of(path, "md5")
        if found != md5 and not is_truncated(path):  # a truncated archive is of no use to anybody: it is replaced
            raise InputError(
                f"{path}: is another file (MD5 {found}) than the published one ({md5}); move it away and fetch again"
            )
        if found == md5:
            return path
    by_hand = f"or place the file at {place / name} by hand (MD5 {md5})"
    if offline:
        raise InputError(f"{place / name}: not there, and offline; fetch it online from {one.urls[size]}, {by_hand}")
    source = _source(one.urls[size], name, mirror)
    part = root / f"{name}.part"
    with _locked(part) as file:
        found = digest_of(part, "md5")  # an earlier run may have stopped just before publishing
        while found != md5:
            resumed = _size_of(file) > 0
            try:
                if isinstance(source, Path):
                    _copy(source, file, by_hand)
                else:
                    _download(source, file, connect_timeout, retries, by_hand)
            except OSError as error:
                raise file_error(error, part, "writing") from error
            found = digest_of(part, "md5")
            if found != md5 and resumed:  # the old part may be to blame: try the whole file once
                file.truncate(0)
            elif found != md5:
                part.unlink()
                raise InputError(f"{source}: wrong checksum (MD5 {found}, not {md5}); try another --mirror, {by_hand}")
        try:
            os.fsync(file.fileno())
            part.replace(path)
            sync_folder(root)
        except OSError as error:
            raise file_error(error, path, "writing") from error
    return path


def _source(url: str, name: str, mirror: str | None) -> str | Path:
    if mirror is None:
        return url
    try:
        parts = urllib.parse.urlsplit(mirror)
    except ValueError as error:
        raise UsageError("--mirror: not an address; give an http(s) URL or a folder") from error
    if "@" in parts.netloc or parts.query:
        raise UsageError("--mirror …: credentials do not belong into the address; download by hand and give the folder")
    if parts.scheme in ("http", "https"):
        return f"{mirror.rstrip('/')}/{name}"
    if parts.scheme not in ("", "file"):
        raise UsageError(f"--mirror {mirror}: is neither; give an http(s) URL or a folder")
    folder = Path(urllib.request.url2pathname(parts.path) if parts.scheme else mirror)
    return folder / name


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Open ``part`` for appending, alone: two downloads of one file must not write into each other."""
    while True:
        try:
            file = part.open("ab")
        except OSError as error:
            raise file_error(error, part, "writing") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"{part}: another process is downloading this file; try again when it has finished"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # some network folders have no locks
                    raise file_error(error, part, "locking") from error
            # The holder before us may have published (renamed) or removed the file that we opened.
            if not (part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())):
                continue
            try:
                yield file
            finally:
                if _size_of(file) == 0:
                    part.unlink(missing_ok=True)
            return


def _size_of(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _copy(source: Path, file: IO[bytes], by_hand: str) -> None:
    try:
        original = source.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such file in the mirror; give another --mirror, {by_hand}") from error
    except OSError as error:
        raise file_error(error, source, "reading") from error
    with original:
        file.truncate(0)
        shutil.copyfileobj(original, file, _CHUNK)
        file.flush()


def _download(
    url: str,
    file: IO[bytes],
    connect_timeout: float,
    retries: int,
    by_hand: str,
) -> None:
    opener = urllib.request.build_opener(_PatientHTTP, _PatientHTTPS)
    reason = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(0.5 * 2 ** (attempt - 1), 8.0))
        try:
            try:
                _request(opener, url, file, connect_timeout, by_hand)
            except _Restart:
                file.truncate(0)
                _request(opener, url, file, connect_timeout, by_hand)
            return
        except _Transient as error:
            reason = one_line(error)
    raise StorageError(f"{url}: cannot be reached ({reason}); try again, give a --mirror (URL or folder), {by_hand}")


def _request(
    opener: urllib.request.OpenerDirector,
    url: str,
    file: IO[bytes],
    connect_timeout: float,
    by_hand: str,
) -> None:
    """Append to ``file`` what it lacks of ``url``."""
    start = _size_of(file)
    headers = {"User-Agent": "medmnist-fetch", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=connect_timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the part is as long as the file, or longer
            raise _Restart from error
        raise _refusal(error, url, by_hand) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(one_line(error)) from error
    with response:
        if start and response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise _Restart
        elif start:  # the server does not know ranges and sends the whole file
            file.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        done = start
        try:
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
        finally:
            file.flush()  # what has arrived counts for the next try
    if total is not None and done < total:
        raise _Transient(f"the connection closed after {done} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(one_line(error)) from error
    return chunk


def _refusal(error: urllib.error.HTTPError, url: str, by_hand: str) -> AppError | _Transient:
    if error.code in (401, 403, 407):
        return UsageError(f"{url}: access refused (HTTP {error.code}); check the address, {by_hand}")
    if error.code in (404, 410):
        return InputError(f"{url}: no such file (HTTP {error.code}); give another --mirror, {by_hand}")
    return _Transient(f"HTTP {error.code}")


class _HTTPConnection(http.client.HTTPConnection):
    """Short patience to connect, longer to read: a slow download is not an unreachable host."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_READ_TIMEOUT)


class _HTTPSConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_READ_TIMEOUT)


class _PatientHTTP(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _PatientHTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req)
