"""Images that are equal, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

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
    import imagehash

    bits = [np.packbits(imagehash.phash(Image.fromarray(image)).hash).view(">u8")[0] for image in images]
    return np.array(bits, np.uint64)


@dataclass(frozen=True)
class _Marked:
    """Images, the places of those that are different, and the hashes of these."""

    images: Images
    places: list[int]
    hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, images: Images, known: Set[bytes] = frozenset()) -> _Marked:
        """Mark the first of each group of equal images, of those whose fingerprints are not ``known``."""
        seen, places = set(known), list[int]()
        for place, mark in enumerate(fingerprints(images)):
            if mark not in seen:
                seen.add(mark)
                places.append(place)
        return cls(images, places, perceptual_hashes([images[place] for place in places]))

    def near(self, other: _Marked) -> Iterator[tuple[int, int]]:
        """Yield each pair of places, in ours and in the other's, of images that are nearly the same."""
        for begin in range(0, len(self.places), BLOCK):
            close = np.bitwise_count(self.hashes[begin : begin + BLOCK, None] ^ other.hashes[None]) <= BITS
            for here, there in zip(*np.nonzero(close), strict=True):
                ours, theirs = self.places[int(here) + begin], other.places[int(there)]
                if (self is not other or ours < theirs) and _alike(self.images[ours], other.images[theirs]):
                    yield ours, theirs


def near_pairs(images: Images) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places of images that are nearly the same, and not equal.

    Nearly: their hashes differ in ``BITS`` at most, and their pixels correlate by ``CORRELATION`` at least. Of images
    that are equal, the first stands for all. ``images`` is uint8 (N, H, W) or (N, H, W, 3).
    """
    marked = _Marked.of(images)
    yield from marked.near(marked)


def near_test_images(pretraining: Images, tests: Mapping[str, Images]) -> dict[str, int]:
    """Count the images of each test split that are nearly the same as some of pretraining, and equal to none.

    All have the same height and width; equal ones of a test split count once.
    """
    ours, known = _Marked.of(pretraining), set(fingerprints(pretraining))
    return {name: len({place for _, place in ours.near(_Marked.of(test, known))}) for name, test in tests.items()}


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
