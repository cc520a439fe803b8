"""Images that are equal, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data.files import Images
from app.data.overlap import fingerprints

# A perceptual hash has 64 bits (Zauner 2010). Of 10,000 adult chest X-rays 346 pairs differ in 4 and most are of
# different people, so that the hash only names candidates; the pixels decide.
BITS, CORRELATION = 6, 0.98
BLOCK = 512


def perceptual_hashes(images: Sequence[Images] | Images) -> NDArray[np.uint64]:
    """Return the 64 bits of each image's perceptual hash; images are uint8 (H, W) or (H, W, 3)."""
    bits = [np.packbits(imagehash.phash(Image.fromarray(image)).hash).view(">u8")[0] for image in images]
    return np.array(bits, np.uint64)


def near_pairs(first: Images, second: Images | None = None) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places of images that are nearly the same, and not equal.

    Nearly: their hashes differ in ``BITS`` at most, and their pixels correlate by ``CORRELATION`` at least. Of images
    that are equal, the first stands for all.

    Args:
        first: uint8 (N, H, W) or (N, H, W, 3).
        second: likewise, of the same size; None: each pair within ``first`` once.
    """
    ours = _distinct(first)
    theirs = ours if second is None else _distinct(second)
    others = first if second is None else second
    hashes = perceptual_hashes([first[place] for place in ours])
    their_hashes = hashes if second is None else perceptual_hashes([others[place] for place in theirs])
    for begin in range(0, len(ours), BLOCK):
        close = np.bitwise_count(hashes[begin : begin + BLOCK, None] ^ their_hashes[None]) <= BITS
        for here, there in zip(*np.nonzero(close), strict=True):
            one, other = ours[int(here) + begin], theirs[int(there)]
            if second is None and one >= other:
                continue
            if _alike(first[one], others[other]):
                yield one, other


def _distinct(images: Images) -> list[int]:
    """Return the place of the first of each group of images whose pixels are equal."""
    return sorted({mark: place for place, mark in reversed(list(enumerate(fingerprints(images))))}.values())


def equal_groups(images: Images) -> list[list[int]]:
    """Return the places of images whose pixels are equal, group by group."""
    groups: dict[bytes, list[int]] = {}
    for place, mark in enumerate(fingerprints(images)):
        groups.setdefault(mark, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _alike(one: Images, other: Images) -> bool:
    """Whether the gray levels of two images that are not equal correlate by ``CORRELATION``, as Pearson has it."""
    a, b = (np.asarray(Image.fromarray(image).convert("L"), np.float64).ravel() for image in (one, other))
    if np.array_equal(a, b):
        return not np.array_equal(one, other)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return norm > 0 and float(a @ b) / norm >= CORRELATION
