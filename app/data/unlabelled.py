"""Unlabelled images for pretraining: an .npz or a folder of image files, as one uint8 array."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app.data.catalog import licence_of, modality_of, title_of
from app.data.datasets import SPLITS, image_shape, read_images
from app.data.files import MMAP_ABOVE, Images, atomic_write, cached_images, digest_of, open_cache, open_npz
from app.data.reading import Counted, ReadingSummary, ReadOptions, Squares, find_images, reason_of, uncounted
from app.data.subsets import uniform_subset
from app.errors import AppError, InputError, StorageError, UsageError
from app.machine import as_text

PRETRAIN_SPLITS = {"all": SPLITS, "train": SPLITS[:1], "train_val": SPLITS[:2]}
RULES = 4  # of reading images: what others made of the same files are other images


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images without labels. ``images``: uint8 (N, H, W) or (N, H, W, 3), possibly memory-mapped.

    ``split`` is "all", or "train" or "train_val" where only those images of a split file were taken. ``sha256`` is
    that of the file's bytes; for a folder, that of the sorted list of its files' names and SHA-256, and of how they are
    read. ``reading`` says
    what was done with a folder's files.
    """

    name: str
    title: str
    images: Images
    sha256: str
    source: str
    licence: str
    modality: str
    synthetic: bool
    size: int
    channels: int
    split: str
    reading: ReadingSummary | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def read_as(self) -> dict[str, Any]:
        """How image files became these squares, for a record; {} where that is not known."""
        return {"reading": {"levels": self.reading.levels.as_json()}} if self.reading else {}

    def describe(self, role: str = "pretrain") -> dict[str, Any]:
        """Return the JSON-ready entry for the run's record."""
        return {
            "sha256": self.sha256,
            "size": self.size,
            "task": "none",
            "labels": {},
            "channels": self.channels,
            "splits": {self.split: len(self)},
            "class_counts": {},
            "licence": self.licence,
            "source": self.source,
            "title": self.title,
            "modality": self.modality,
            "role": role,
        } | ({"reading": self.reading.as_json()} if self.reading else {})


def load_unlabelled(
    name: str,
    *,
    path: Path,
    size: int = 28,
    split: str = "all",
    subset: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    mmap_above: int = MMAP_ABOVE,
    options: ReadOptions | None = None,
    progress: Counted = uncounted,
) -> Unlabelled:
    """Load the images of ``path`` for pretraining.

    ``path`` is an .npz with an array ``images``; or an .npz in MedMNIST's layout, whose train, val and test
    images are joined in this order (``split="train"`` takes the first only, ``"train_val"`` the first two); or a
    folder, whose image files are read as ``reading.find_images`` and ``reading.Squares`` say, with ``options``;
    ``progress`` is told how many of how many are done. ``subset`` keeps that many, drawn uniformly with ``seed``.

    With ``cache``, .npz images of more than ``mmap_above`` bytes and all folders, whose decoding is slow, are
    kept there as .npy and memory-mapped. Raises InputError for missing, damaged or ill-shaped input.
    """
    path = Path(path)
    if split not in PRETRAIN_SPLITS:
        raise UsageError(f"unknown pretraining split '{split}'; choose one of {', '.join(PRETRAIN_SPLITS)}")
    if path.is_dir():
        loaded = _load_folder(name, path, size, cache, options or ReadOptions(), progress)
    else:
        loaded = _load_npz(name, path, size, split, cache, mmap_above)
    if subset is None:
        return loaded
    return replace(loaded, images=np.asarray(loaded.images[uniform_subset(len(loaded), subset, seed=seed)]))


def _load_npz(name: str, path: Path, size: int, split: str, cache: Path | None, mmap_above: int) -> Unlabelled:
    with open_npz(path) as npz:
        if "images" in npz.keys:
            keys, split = ["images"], "all"
        elif "train_images" in npz.keys:
            keys = [f"{part}_images" for part in PRETRAIN_SPLITS[split]]
        else:
            have = ", ".join(npz.keys) or "nothing"
            raise InputError(f"{path}: has no 'images' or 'train_images' (only {have}); save 'images'")
        shapes = [image_shape(npz, key, size) for key in keys]
        if len({shape[1:] for shape in shapes}) > 1:
            raise InputError(f"{path}: its splits differ in channels; save all gray or all RGB")
        shape = (sum(one[0] for one in shapes), *shapes[0][1:])
        sha256 = digest_of(path)
        mapped = cache if int(np.prod(shape, dtype=np.int64)) > mmap_above else None
        images = read_images(npz, keys, shape, sha256, mapped)
        synthetic = npz.flag("synthetic")
    return _unlabelled(name, path, images, sha256, size, split, synthetic)


def _load_folder(
    name: str, path: Path, size: int, cache: Path | None, options: ReadOptions, progress: Counted
) -> Unlabelled:
    found = find_images(path, anonymise=options.anonymise)
    digest = hashlib.sha256(f"{RULES} {options.fit} {options.frame}\n".encode())
    for file in found.files:
        digest.update(
            _digest(file, path, options).encode() + b"  " + os.fsencode(file.relative_to(path).as_posix()) + b"\n"
        )
    sha256 = digest.hexdigest()
    key = f"{sha256}-{size}"
    note = f"{key}-anonymised.json" if options.anonymise else f"{key}.json"
    if cache is not None and (kept := _kept(cache, key, note)) is not None:
        images, reading = kept
        reading.left_out = found.left_out
        return _unlabelled(name, path, images, sha256, size, "all", False, reading)
    squares = Squares(path, found, size, options, progress)
    mapped = None
    if cache is not None and not squares.refused:
        mapped = cached_images(cache, key, squares.shape, lambda: (square.tobytes() for square in squares))
        with contextlib.suppress(AppError), atomic_write(cache / note) as file_of_note:
            file_of_note.write(json.dumps({"shape": squares.shape, "reading": squares.reading.as_json()}).encode())
    images = squares.array() if mapped is None else mapped
    return _unlabelled(name, path, images, sha256, size, "all", False, squares.reading)


def _digest(file: Path, folder: Path, options: ReadOptions) -> str:
    try:
        return digest_of(file)
    except StorageError as error:  # it passes, and says nothing of the image
        name = options.shown(file.relative_to(folder).as_posix())
        raise StorageError(f"{folder / name}: {reason_of(error, file)}") from error
    except AppError:
        return "unreadable"  # it will be counted and named as such


def _kept(cache: Path, key: str, note: str) -> tuple[Images, ReadingSummary] | None:
    """Return the images of a folder as they were read before; None if they are to be read."""
    try:
        value = json.loads((cache / note).read_bytes())
        reading, shape = ReadingSummary.of_json(value["reading"]), tuple(value["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    images = open_cache(cache, key, shape)
    return None if images is None else (images, reading)


def _unlabelled(
    name: str,
    path: Path,
    images: Images,
    sha256: str,
    size: int,
    split: str,
    synthetic: bool,
    reading: ReadingSummary | None = None,
) -> Unlabelled:
    return Unlabelled(
        name=name,
        title=title_of(name, synthetic=synthetic),
        images=images,
        sha256=sha256,
        source=as_text(str(path)),
        licence=licence_of(name, synthetic=synthetic),
        modality=modality_of(name),
        synthetic=synthetic,
        size=size,
        channels=3 if images.ndim == 4 else 1,
        split=split,
        reading=reading,
    )
