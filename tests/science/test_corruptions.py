"""Corruptions of test images: what each does, at any size, and that draws repeat themselves."""

import numpy as np
import pytest
from scipy import ndimage

from app.science import corruptions
from app.science.corruptions import corrupt
from app.science.strengths import STRENGTHS

KEY = ("breastmnist",)


def smooth(size, channels=1, count=3):
    """Images that vary over a quarter of their side, as uint8."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, size, size, channels))
    found = ndimage.gaussian_filter(noise, (0, size / 8, size / 8, 0))
    found = 255 * (found - found.min()) / (found.max() - found.min())
    return np.rint(found if channels == 3 else found[..., 0]).astype(np.uint8)


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 64])
def test_each_level_takes_images_further_from_what_they_were(kind, channels, size):
    images = smooth(size, channels)
    before = images.copy()
    worse = [corrupt(images, kind, level, KEY) for level in range(1, 6)]
    assert all(w.shape == images.shape and w.dtype == np.uint8 for w in worse)
    np.testing.assert_array_equal(images, before)
    apart = [np.abs(w.astype(float) - images).mean() for w in worse]
    assert all(a < b for a, b in zip([0, *apart], apart, strict=False)), apart


def test_strengths_are_five_steps_each_from_the_weakest():
    assert set(STRENGTHS) == {"noise", "blur", "contrast", "brightness", "resolution"}
    for kind, steps in STRENGTHS.items():
        down = kind in ("contrast", "resolution")
        assert list(steps) == sorted(set(steps), reverse=down)
        assert len(steps) == 5


def test_noise_has_its_standard_deviation_and_is_each_images_own():
    images = np.full((6, 64, 64), 128, np.uint8)
    first, strongest = (corrupt(images, "noise", level, KEY).astype(float) - 128 for level in (1, 5))
    assert first.std() == pytest.approx(255 * STRENGTHS["noise"][0], rel=0.03)
    assert np.corrcoef(first.reshape(6, -1)).max(initial=0, where=~np.eye(6, dtype=bool)) < 0.1
    assert np.corrcoef(first.ravel(), strongest.ravel())[0, 1] > 0.95, "levels differ by the strength of one draw"


def test_draws_depend_on_the_key_and_the_image_alone(monkeypatch):
    images = smooth(28, count=5)
    whole = corrupt(images, "noise", 3, KEY)
    np.testing.assert_array_equal(corrupt(images, "noise", 3, KEY), whole)
    np.testing.assert_array_equal(corrupt(images[:2], "noise", 3, KEY), whole[:2])
    assert (corrupt(images, "noise", 3, ("other",)) != whole).any()
    monkeypatch.setattr(corruptions, "BATCH_PIXELS", 2 * 28 * 28)
    for kind in STRENGTHS:
        cut = corrupt(images, kind, 3, KEY)
        monkeypatch.undo()
        np.testing.assert_array_equal(cut, corrupt(images, kind, 3, KEY))
        monkeypatch.setattr(corruptions, "BATCH_PIXELS", 2 * 28 * 28)


@pytest.mark.parametrize("size", [28, 64])
def test_blur_is_scipys_gaussian_filter(size):
    images = smooth(size)
    sigma = STRENGTHS["blur"][4] * size
    expected = ndimage.gaussian_filter(images.astype(float), (0, sigma, sigma), mode="mirror")
    np.testing.assert_allclose(corrupt(images, "blur", 5, KEY), expected, atol=0.6)


def test_contrast_and_brightness_by_their_formulas():
    images = smooth(28)
    mean = images.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(corrupt(images, "contrast", 5, KEY), mean + 0.4 * (images - mean), atol=0.51)
    np.testing.assert_allclose(corrupt(images, "brightness", 5, KEY), np.minimum(1.5 * images, 255), atol=0.51)


def test_what_few_pixels_cannot_hold_is_lost_and_what_they_can_is_kept():
    stripes = np.tile(np.array([0, 200], np.uint8), (1, 32, 16))
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (1, 32, 1))
    assert np.ptp(corrupt(stripes, "resolution", 5, KEY)[:, 4:-4, 4:-4]) < 20
    inside = (slice(None), slice(None), slice(4, -4))
    np.testing.assert_allclose(corrupt(ramp, "resolution", 5, KEY)[inside], ramp[inside], atol=3)


def test_no_images_stay_none():
    assert corrupt(np.zeros((0, 28, 28), np.uint8), "blur", 1, KEY).shape == (0, 28, 28)
