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
    """Yield the pairs of places of images that are nearly the same, equal ones too.

    Nearly: their hashes differ in ``BITS`` at most, and their pixels correlate by ``CORRELATION`` at least.

    Args:
        first: uint8 (N, H, W) or (N, H, W, 3).
        second: likewise, of the same size; None: each pair within ``first`` once.
    """
    ours = perceptual_hashes(first)
    theirs = ours if second is None else perceptual_hashes(second)
    others = first if second is None else second
    for begin in range(0, len(ours), BLOCK):
        close = np.bitwise_count(ours[begin : begin + BLOCK, None] ^ theirs[None]) <= BITS
        for here, there in zip(*np.nonzero(close), strict=True):
            one, other = int(here) + begin, int(there)
            if second is None and one >= other:
                continue
            if _correlation(first[one], others[other]) >= CORRELATION:
                yield one, other


def equal_groups(images: Images) -> list[list[int]]:
    """Return the places of images whose pixels are equal, group by group."""
    groups: dict[bytes, list[int]] = {}
    for place, mark in enumerate(fingerprints(images)):
        groups.setdefault(mark, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _correlation(one: Images, other: Images) -> float:
    """Pearson's correlation of two images' gray levels; 1 for two that are equal, 0 beside one without contrast."""
    a, b = (np.asarray(Image.fromarray(image).convert("L"), np.float64).ravel() for image in (one, other))
    if np.array_equal(a, b):
        return 1.0
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0
