"""Images that two data sets share, whatever their names: equal pixels, told by a hash of each image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from app.data.datasets import Dataset
from app.data.files import Images
from app.data.unlabelled import Unlabelled


def fingerprints(images: Images) -> list[bytes]:
    """Return a hash of each image's pixels.

    ``images`` is uint8 (N, H, W) or (N, H, W, 3), possibly memory-mapped. An RGB image of three equal channels has
    the hash of the gray one.
    """
    return [hashlib.blake2b(_plane(image).tobytes(), digest_size=16).digest() for image in images]


def _plane(image: Images) -> Images:
    gray = image.ndim == 3 and bool((image == image[:, :, :1]).all())
    return image[:, :, 0] if gray else image


def shared_test_images(pretraining: Unlabelled, labelled: Sequence[Dataset]) -> dict[str, dict[str, int]]:
    """Count the test images of each labelled set that are among the images of pretraining, pixel by pixel.

    An image that was cropped, scaled or compressed otherwise counts as another one.

    Returns:
        By name of the set: ``images``, those of its test split, and ``shared``, how many of them are in both.
    """
    seen = set(fingerprints(pretraining.images)) if labelled else set()
    return {
        data.name: {
            "images": len(data.test),
            "shared": sum(each in seen for each in fingerprints(data.test.images)),
        }
        for data in labelled
    }


def say_overlap(title: str, pretraining: str, split: str, *, images: int, shared: int, near: int | None = None) -> str:
    """Say in a sentence how many test images of a set the pretraining sees; "" if none.

    Args:
        title: of the labelled set.
        pretraining: title of the set that is pretrained on.
        split: of it; ``all`` joins a file's training, validation and test images.
        images: of the test split.
        shared: how many of them are pretrained on.
        near: how many more are nearly the same as an image of pretraining; None if that was not looked at.
    """
    if not shared and near:
        of = f"{near:,} of {images:,} test images of {title}"
        return f"{of} are nearly the same as images of pretraining, {pretraining}."
    if not shared:
        return ""
    many = f"All {images:,}" if shared == images else f"{shared:,} of {images:,}"
    parts = " (its train, val and test splits)" if split == "all" and title == pretraining else ""
    nearly = f", and {near:,} more are nearly the same as some" if near else ""
    return f"{many} test images of {title} are among the images of pretraining, {pretraining}{parts}{nearly}."
