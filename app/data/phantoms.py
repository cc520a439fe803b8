"""Phantoms: synthetic images in MedMNIST's shape, for machines without the real files and for the tests.

``painters.py`` makes the images; here are their labels, their numbers and the files.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.catalog import SIZES, file_names
from app.data.files import atomic_write, open_npz
from app.data.painters import PAINTERS, Labels
from app.errors import InputError, UsageError

PHANTOM_COUNTS: Mapping[str, tuple[int, int, int]] = {
    "chestmnist": (1400, 200, 400),
    "pneumoniamnist": (800, 150, 624),
    "breastmnist": (400, 80, 156),
    "dermamnist": (900, 160, 400),
}
"""Images in train, val and test, by default."""

_CHUNK = 128

# Training shares of the real sets (MedMNIST's class counts; ChestMNIST: positives among 78,468 images).
_SHARES = {
    "pneumoniamnist": (1214, 3494),
    "breastmnist": (147, 399),
    "dermamnist": (228, 359, 769, 80, 779, 4693, 99),
}
_CHEST_PREVALENCE = (0.10, 0.05, 0.12, 0.18, 0.05, 0.06, 0.04, 0.05, 0.05, 0.04, 0.04, 0.04, 0.04, 0.03)


def write_phantoms(
    root: Path,
    *,
    seed: int = 0,
    counts: Mapping[str, tuple[int, int, int]] | None = None,
    size: int = 28,
) -> list[Path]:
    """Write phantom .npz files in MedMNIST's layout into ``root``; return their paths.

    ``counts`` maps dataset names (of ``PHANTOM_COUNTS``, the default) to numbers of train, val and test
    images. ``size`` is the side in pixels. Each file holds an array ``synthetic`` that is true, by which the
    loaders mark everything made of it. The same arguments give the same bytes (on one machine, with the
    same library versions).

    Raises UsageError for an unknown name, a split too small for one image per class, or if a file that is not
    a phantom stands in the way.
    """
    wanted = PHANTOM_COUNTS if counts is None else counts
    if size not in SIZES:
        raise UsageError(f"phantoms have no size {size}; choose one of {', '.join(map(str, SIZES))}")
    if unknown := sorted(set(wanted) - set(PHANTOM_COUNTS)):
        raise UsageError(f"there is no phantom of '{unknown[0]}'; choose from {', '.join(PHANTOM_COUNTS)}")
    paths = []
    for name, sizes in wanted.items():
        path = Path(root) / file_names(name, size)[0]
        if path.exists() and not is_phantom(path):
            raise UsageError(f"{path}: is not a phantom and will not be overwritten; choose another folder")
        arrays = make_phantoms(name, sizes, seed=seed, size=size)
        with atomic_write(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays, synthetic=np.array(True))
        paths.append(path)
    return paths


def is_phantom(path: Path) -> bool:
    """Return whether the .npz at ``path`` is marked synthetic; a damaged file is not."""
    try:
        with open_npz(path) as npz:
            return npz.flag("synthetic")
    except InputError:
        return False


def make_phantoms(
    name: str, counts: tuple[int, int, int], *, seed: int = 0, size: int = 28
) -> dict[str, NDArray[np.uint8]]:
    """Return {train,val,test}_{images,labels} of the phantom ``name``, all uint8; labels are (N, L)."""
    paint = PAINTERS[name]
    arrays: dict[str, NDArray[np.uint8]] = {}
    for stream, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        key = (list(PHANTOM_COUNTS).index(name), stream)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0x7068616E, *key))))
        labels = _chest_labels(rng, count) if name == "chestmnist" else _class_labels(rng, name, split, count)
        images = [paint(rng, labels[start : start + _CHUNK], size) for start in range(0, count, _CHUNK)]
        arrays[f"{split}_images"] = np.concatenate(images)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


def _class_labels(rng: np.random.Generator, name: str, split: str, count: int) -> Labels:
    """Return (count, 1) labels with the real set's shares, but enough of each class for few-shot learning."""
    wanted = np.array(_SHARES[name], np.int64)
    if name == "pneumoniamnist" and split == "test":
        wanted = np.array((234, 390), np.int64)  # the real test split has another balance
    classes = len(wanted)
    if count < classes:
        raise UsageError(f"{name}: {count} {split} images are too few for {classes} classes; ask for more")
    # The rarest real class would have 10 of 900 images, fewer than the 20 that few-shot learning draws.
    floor = max(1, min(24, count // (3 * classes)))
    sizes = np.maximum(wanted * count // wanted.sum(), floor)
    sizes[np.argmax(sizes)] += count - sizes.sum()
    return rng.permutation(np.repeat(np.arange(classes), sizes))[:, None]


def _chest_labels(rng: np.random.Generator, count: int) -> Labels:
    """Return (count, 14) labels of 0/1 with at least one positive per label."""
    findings = len(_CHEST_PREVALENCE)
    if count < findings:
        raise UsageError(f"chestmnist: {count} images are too few for {findings} labels; ask for more")
    labels = (rng.random((count, findings)) < np.array(_CHEST_PREVALENCE)).astype(np.int64)
    labels[rng.permutation(count)[:findings], np.arange(findings)] = 1
    return labels
