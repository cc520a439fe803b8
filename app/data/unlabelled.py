"""Unlabelled images for pretraining: an .npz or a folder of PNG and JPEG files, as one uint8 array."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from app.data.catalog import licence_of, modality_of, title_of
from app.data.datasets import SPLITS, image_shape, read_images
from app.data.files import (
    MMAP_ABOVE,
    Images,
    cached_images,
    digest_of,
    file_error,
    one_line,
    open_cache,
    open_npz,
)
from app.data.subsets import uniform_subset
from app.errors import InputError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg")
GRAY_MODES = ("1", "L", "LA")


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images without labels. ``images``: uint8 (N, H, W) or (N, H, W, 3), possibly memory-mapped.

    ``split`` is "all", or "train" where only the training images of a split file were taken. ``sha256`` is
    that of the file's bytes; for a folder, that of the sorted list of its files' names and SHA-256.
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

    def __len__(self) -> int:
        return len(self.images)

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
        }


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
) -> Unlabelled:
    """Load the images of ``path`` for pretraining.

    ``path`` is an .npz with an array ``images``; or an .npz in MedMNIST's layout, whose train, val and test
    images are joined in this order (``split="train"`` takes the first only); or a folder, searched
    recursively for PNG and JPEG files in the order of their names (hidden files are left out). A folder's
    images are cut to their central square and resized with an antialiased bicubic filter; 16-bit gray is
    scaled by 1/257; they are gray if every image is, else RGB. ``subset`` keeps that many, drawn uniformly
    with ``seed``.

    With ``cache``, .npz images of more than ``mmap_above`` bytes and all folders, whose decoding is slow, are
    kept there as .npy and memory-mapped. Raises InputError for missing, damaged or ill-shaped input.
    """
    path = Path(path)
    if split not in ("all", "train"):
        raise UsageError(f"unknown pretraining split '{split}'; choose all or train")
    if path.is_dir():
        loaded = _load_folder(name, path, size, cache)
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
            keys = [f"{part}_images" for part in SPLITS] if split == "all" else ["train_images"]
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


def _load_folder(name: str, path: Path, size: int, cache: Path | None) -> Unlabelled:
    files = _image_files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{digest_of(file)}  {file.relative_to(path).as_posix()}\n".encode())
    sha256 = digest.hexdigest()
    key = f"{sha256}-{size}"
    gray_shape = (len(files), size, size)
    if cache is not None:
        for shape in (gray_shape, (*gray_shape, 3)):
            if (cached := open_cache(cache, key, shape)) is not None:
                return _unlabelled(name, path, cached, sha256, size, "all", False)
    gray = all(_is_gray(file, size) for file in files)
    shape = gray_shape if gray else (*gray_shape, 3)
    images = None
    if cache is not None:
        images = cached_images(cache, key, shape, lambda: (image.tobytes() for image in _decode_all(files, size, gray)))
    if images is None:
        images = np.empty(shape, np.uint8)
        for index, image in enumerate(_decode_all(files, size, gray)):
            images[index] = image
    return _unlabelled(name, path, images, sha256, size, "all", False)


def _unlabelled(
    name: str, path: Path, images: Images, sha256: str, size: int, split: str, synthetic: bool
) -> Unlabelled:
    return Unlabelled(
        name=name,
        title=title_of(name, synthetic=synthetic),
        images=images,
        sha256=sha256,
        source=str(path),
        licence=licence_of(name, synthetic=synthetic),
        modality=modality_of(name),
        synthetic=synthetic,
        size=size,
        channels=3 if images.ndim == 4 else 1,
        split=split,
    )


def _image_files(folder: Path) -> list[Path]:
    try:
        found = [
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        ]
    except OSError as error:
        raise file_error(error, folder, "reading") from error
    if not found:
        raise InputError(f"{folder}: holds no PNG or JPEG images; give a folder of images or an .npz")
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _decode_all(files: list[Path], size: int, gray: bool) -> Iterator[Images]:
    for file in files:
        image = _decode(file, size)
        yield image if gray or image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _is_gray(file: Path, size: int) -> bool:
    with _opened(file) as image:
        if image.mode in GRAY_MODES or image.mode.startswith("I"):
            return True  # the header tells; decoding would double the work
    return _decode(file, size).ndim == 2


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{file}: not a readable PNG or JPEG image; replace or remove it") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise file_error(error, file, "reading") from error
        raise InputError(f"{file}: damaged image ({one_line(error)}); replace or remove it") from error


def _decode(file: Path, size: int) -> Images:
    """Return one image as uint8 (size, size) if it is gray in content, else (size, size, 3)."""
    with _opened(file) as opened:
        image = ImageOps.exif_transpose(opened)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        wide = image.mode.startswith("I")
        if wide:  # Pillow would clip 16-bit gray at 255 instead of scaling it
            image = image.convert("F")
        elif image.mode in GRAY_MODES:
            image = image.convert("L")
        else:
            image = image.convert("RGB")
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    if wide:
        return np.clip(np.rint(pixels / 257.0), 0, 255).astype(np.uint8)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, 0])
    return pixels
