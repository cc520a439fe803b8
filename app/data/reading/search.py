"""Which files of a folder are images, and what lies beside them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from app.data.files import file_error
from app.data.reading.readers import COMPANIONS, READERS, reader_of
from app.errors import InputError

# What programs hide beside images: previews, copies, waste baskets, folders of other systems.
HIDDEN = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
          "desktop.ini", "ehthumbs.db"}  # fmt: skip
INDEX = "dicomdir"  # the list of what a DICOM medium holds


@dataclass
class Found:
    """The image files of a folder and what lies beside them.

    ``anonymise``: kinds that are not read are not named, since what follows a point may be part of a person's name.
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    anonymise: bool = False


def find_images(folder: Path, *, anonymise: bool = False) -> Found:
    """Search a folder and its subfolders, linked ones too, for image files, in the order of their names' bytes.

    Raises:
        InputError: there are none, or next to all files are of kinds that are not read.
        UsageError: the folder cannot be read.
    """
    found, seen = Found(anonymise=anonymise), set[tuple[int, int]]()
    _search(folder, folder, found, seen)
    found.files.sort(key=lambda file: os.fsencode(file.relative_to(folder)))
    others = sum(count for reason, count in found.left_out.items() if reason.startswith("of kind"))
    if not found.files or others >= 9 * len(found.files):
        beside = f"; {left_out(found.left_out)}" if found.left_out else ""
        raise InputError(
            f"{folder}: holds {len(found.files) or 'no'} images that can be read ({_kinds()}){beside}; convert the "
            "others, give another folder, or an .npz"
        )
    return found


def one_image(file: Path) -> Path:
    """Return a file that is given by itself, if it is there and of a kind that is read.

    Raises:
        InputError: it is not.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file or folder; check the path")
    if reader_of(file) is None:
        raise InputError(f"{file}: of a kind that is not read ({_kinds()}); convert it, or give a folder")
    return file


def _kinds() -> str:
    return ", ".join(sorted({suffix[1:] for reader in READERS for suffix in reader.suffixes}))


def _search(root: Path, folder: Path, found: Found, seen: set[tuple[int, int]]) -> None:
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder that was or is being searched
            found.left_out["links to folders that are read anyway"] += 1
            return
        seen.add((here.st_dev, here.st_ino))
        names = sorted(os.listdir(os.fsencode(folder)))
    except OSError as error:
        if folder == root:
            raise file_error(error, folder, "reading") from error
        found.left_out["folders that cannot be read"] += 1
        return
    for name in names:
        path = folder / os.fsdecode(name)
        if name.startswith(b".") or os.fsdecode(name).lower() in HIDDEN:
            found.left_out["hidden files or folders"] += 1
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            found.left_out["links that lead nowhere"] += 1
            continue
        suffix = path.suffix.lower()
        if stat.S_ISDIR(mode):
            _search(root, path, found, seen)
        elif not stat.S_ISREG(mode):
            found.left_out["no files"] += 1
        elif os.fsdecode(name).lower() == INDEX:
            found.left_out["indexes of DICOM media"] += 1
        elif reader_of(path) is not None:
            found.files.append(path)
        elif suffix not in COMPANIONS:
            kind = suffix if suffix and not found.anonymise else "unknown" if suffix else "unknown, without a suffix"
            found.left_out[f"of kind {kind}"] += 1


def left_out(counts: Counter[str]) -> str:
    """Say how many files are left out, and why."""
    why = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(8))
    return f"{sum(counts.values())} left out: {why}"
