"""Images that two sets share are found by their pixels, whatever holds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.data import fingerprints, load_dataset, load_unlabelled, say_overlap, shared_test_images


@pytest.fixture
def phantoms(default_phantoms: Path) -> Path:
    return default_phantoms


def test_equal_pixels_have_equal_fingerprints_and_others_have_not():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    assert len(set(fingerprints(images))) == 50
    assert fingerprints(images) == fingerprints(np.asfortranarray(images))
    assert fingerprints(images) == fingerprints(np.repeat(images[..., None], 3, axis=3)), "gray as RGB"
    coloured = np.repeat(images[..., None], 3, axis=3)
    coloured[:, 5, 5, 2] ^= 1
    assert not set(fingerprints(coloured)) & set(fingerprints(images)), "one value of one pixel"
    for changed in (images[:, ::-1], images[:, :, ::-1], images.transpose(0, 2, 1), images ^ 1):
        assert not set(fingerprints(changed)) & set(fingerprints(images))


@pytest.mark.parametrize("form", ["npz", "mapped", "rgb", "folder"])
def test_copies_are_counted_under_another_name_and_in_another_form(phantoms, tmp_path, form):
    data = load_dataset("breastmnist", path=phantoms / "breastmnist.npz")
    copied, other = data.test.images[:7], data.train.images[:30]
    images = np.concatenate([other, copied, copied[:2]])
    path = tmp_path / "scans"
    if form == "folder":
        path.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(path / f"{number:03d}.png")
    else:
        np.savez(path, images=np.repeat(images[..., None], 3, axis=3) if form == "rgb" else images)
        path = path.with_suffix(".npz")
    mapped = {"cache": tmp_path / "cache", "mmap_above": 0} if form == "mapped" else {}
    scans = load_unlabelled("scans", path=path, **mapped)
    assert isinstance(scans.images, np.memmap) == (form == "mapped")
    pneumonia = load_dataset("pneumoniamnist", path=phantoms / "pneumoniamnist.npz")
    assert shared_test_images(scans, [data, pneumonia]) == {
        "breastmnist": {"images": len(data.test), "shared": 7},
        "pneumoniamnist": {"images": len(pneumonia.test), "shared": 0},
    }
    assert shared_test_images(replace(scans, images=scans.images[:30]), [data])["breastmnist"]["shared"] == 0


def test_what_is_nearly_the_same_is_said():
    only = say_overlap("A", "scans", "all", images=50, shared=0, near=2)
    assert only == "2 of 50 test images of A are nearly the same as images of pretraining, scans."
    both = say_overlap("A", "scans", "all", images=50, shared=1, near=2)
    assert both.endswith("are among the images of pretraining, scans, and 2 more are nearly the same as some.")
    assert say_overlap("A", "scans", "all", images=50, shared=0, near=0) == ""


def test_a_test_image_that_is_there_twice_counts_twice(phantoms):
    data = load_dataset("breastmnist", path=phantoms / "breastmnist.npz")
    whole = load_unlabelled("breastmnist", path=phantoms / "breastmnist.npz")
    doubled = replace(data.test, images=np.repeat(data.test.images, 2, 0), labels=np.repeat(data.test.labels, 2, 0))
    data = replace(data, splits=data.splits | {"test": doubled})
    assert shared_test_images(whole, [data]) == {"breastmnist": {"images": len(doubled), "shared": len(doubled)}}


def test_the_sentence_says_how_many_of_what():
    assert say_overlap("A", "B", "all", images=10, shared=0) == ""
    assert say_overlap("A", "A", "all", images=1234, shared=1234) == (
        "All 1,234 test images of A are among the images of pretraining, A (its train, val and test splits)."
    )
    assert say_overlap("A", "B", "train", images=10, shared=3) == (
        "3 of 10 test images of A are among the images of pretraining, B."
    )
