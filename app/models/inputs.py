"""Images to predict or embed: an image, a folder of images, or an .npz in MedMNIST's layout."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.datasets import image_shape
from app.data.files import digest_of, open_npz
from app.data.origin import read_origin
from app.data.reading import ReadOptions, read_squares
from app.progress import Progress

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Images with their names.

    Attributes:
        source: where they are from, as it was given.
        names: of their files; of an .npz that was not imported split and place, such as ``test/17``.
        images: uint8, (N, size, size) or (N, size, size, 3).
        unreadable: files that could not be read, with the reason.
        sha256: of an .npz.
        split: of an .npz: train, val, test, or "" for its array ``images``.
        as_judged: these are just the images that a study judged its model on.
    """

    source: str
    names: list[str]
    images: Images
    unreadable: dict[str, str]
    sha256: str | None = None
    split: str | None = None
    as_judged: bool = False

    def in_channels(self, channels: int | None) -> Pictures:
        """Return the images in as many channels as a model was trained on, 1 or 3; None leaves them as they are.

        Colours become luminance (ITU-R BT.601, as Pillow has it), a gray image three equal channels.
        """
        if channels == 1 and self.images.ndim == 4:
            red, green, blue = (self.images[..., index].astype(np.uint32) for index in range(3))
            luminance = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
            return replace(self, images=luminance.astype(np.uint8))
        if channels == 3 and self.images.ndim == 3:
            return replace(self, images=np.repeat(self.images[..., None], 3, axis=-1))
        return self


def read_pictures(source: Path, *, size: int, split: str = "test", options: ReadOptions | None = None) -> Pictures:
    """Read the images to be looked at, and say in one line what was read and what was left out.

    Args:
        source: an image, a folder, or an .npz.
        size: height and width that the model takes; files are resized, an .npz must have it.
        split: which images of an .npz with splits.
        options: what the user decides of reading files.

    Raises:
        InputError: there are no images, or they are damaged or of another size.
    """
    if source.suffix.lower() == ".npz":
        return _read_npz(source, size, split, options or ReadOptions())
    squares = read_squares(source, size, options)
    Progress("images").say(f"{source}: {squares.reading.line()}")
    if squares.guessed:
        Progress("images").say(
            f"WARNING: {source}: what is black and white in {squares.guessed} images of more than 8 bits is told from "
            "these images alone, since the model learned from none of such levels, or does not say so; among others "
            "the same image may get other predictions"
        )
    named = list(squares.items())
    return Pictures(
        source=str(source),
        names=[_text(name) for name, _ in named],
        images=np.stack([image for _, image in named]),
        unreadable={_text(name): reason for name, reason in squares.reading.unreadable.items()},
    )


def _read_npz(path: Path, size: int, split: str, options: ReadOptions) -> Pictures:
    with open_npz(path) as npz:
        split = "" if "images" in npz.keys and f"{split}_images" not in npz.keys else split
        key = f"{split}_images" if split else "images"
        images: Images = npz.read(key).reshape(image_shape(npz, key, size))
        origin = read_origin(npz, {split: len(images)})
    numbered = [f"{split or 'images'}/{index}" for index in range(len(images))]
    return Pictures(
        source=str(path),
        names=[options.shown(name) for name in origin.files[split]] if origin and split in origin.files else numbered,
        images=images,
        unreadable={},
        sha256=digest_of(path),
        split=split,
    )


def _text(name: str) -> str:
    """A file's name as text that any file can hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
