import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.data import load_unlabelled, write_phantoms
from app.data.reading import ReadOptions
from app.errors import InputError, StorageError, UsageError

RNG = np.random.default_rng(11)
PIXELS = RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8)


def rejected(path, error=InputError, **options):
    with pytest.raises(error) as caught:
        load_unlabelled("mine", path=path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "chest.npz"
    np.savez_compressed(path, images=PIXELS)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "b").mkdir(parents=True)
    for name, pixels in zip(("b/2.png", "b/1.PNG", "a.png"), PIXELS, strict=False):
        Image.fromarray(pixels).save(root / name)
    (root / ".hidden.png").write_bytes(b"not an image")
    (root / "notes.txt").write_text("not an image")
    return root


class TestNpz:
    def test_images(self, npz):
        data = load_unlabelled("chest", path=npz)
        assert np.array_equal(data.images, PIXELS)
        assert data.sha256 == hashlib.sha256(npz.read_bytes()).hexdigest()
        entry = json.loads(json.dumps(data.describe()))
        assert entry == {
            "sha256": data.sha256, "size": 28, "task": "none", "labels": {}, "channels": 1,
            "splits": {"all": 9}, "class_counts": {}, "licence": "not stated", "source": str(npz),
            "title": "chest", "modality": "not stated", "role": "pretrain",
        }  # fmt: skip

    def test_medmnist_layout_joins_the_splits(self, tmp_path):
        (path,) = write_phantoms(tmp_path, counts={"chestmnist": (30, 20, 25)})
        whole = load_unlabelled("chestmnist", path=path)
        train = load_unlabelled("chestmnist", path=path, split="train")
        with np.load(path) as content:
            joined = np.concatenate([content[f"{s}_images"] for s in ("train", "val", "test")])
        assert np.array_equal(whole.images, joined)
        assert np.array_equal(train.images, joined[:30])
        assert whole.synthetic
        assert whole.title == "ChestMNIST (SYNTHETIC)"
        assert whole.describe()["splits"] == {"all": 75}
        assert train.describe()["splits"] == {"train": 30}

    def test_subset(self, npz):
        one = load_unlabelled("chest", path=npz, subset=4, seed=1)
        again = load_unlabelled("chest", path=npz, subset=4, seed=1)
        assert one.images.shape == (4, 28, 28)
        assert np.array_equal(one.images, again.images)
        assert {image.tobytes() for image in one.images} <= {image.tobytes() for image in PIXELS}
        assert len(load_unlabelled("chest", path=npz, subset=99)) == 9

    def test_wrong_size(self, npz):
        assert "images is 28x28, but size 64 was asked for" in rejected(npz, size=64)

    def test_other_keys(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path, pixels=PIXELS)
        assert "has no 'images' or 'train_images' (only pixels)" in rejected(path)

    def test_splits_that_differ_in_channels(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path, train_images=PIXELS, val_images=PIXELS, test_images=np.stack([PIXELS] * 3, axis=-1))
        assert "differ in channels" in rejected(path)

    def test_missing_file_and_unknown_split(self, tmp_path, npz):
        assert "no such file" in rejected(tmp_path / "none.npz")
        assert "choose one of all, train, train_val" in rejected(npz, error=UsageError, split="test")


class TestCache:
    def test_maps_the_same_pixels_and_is_used_again(self, npz, tmp_path):
        cache = tmp_path / "cache"
        first = load_unlabelled("chest", path=npz, cache=cache, mmap_above=100)
        assert isinstance(first.images, np.memmap)
        assert np.array_equal(first.images, PIXELS)
        (file,) = cache.iterdir()
        assert first.sha256 in file.name
        before = file.stat().st_mtime_ns
        load_unlabelled("chest", path=npz, cache=cache, mmap_above=100)
        assert file.stat().st_mtime_ns == before

    def test_small_input_stays_in_memory(self, npz, tmp_path):
        data = load_unlabelled("chest", path=npz, cache=tmp_path / "cache")
        assert not isinstance(data.images, np.memmap)
        assert not (tmp_path / "cache").exists()

    def test_changed_source_never_meets_the_old_cache(self, npz, tmp_path):
        cache = tmp_path / "cache"
        load_unlabelled("chest", path=npz, cache=cache, mmap_above=0)
        np.savez_compressed(npz, images=255 - PIXELS)
        data = load_unlabelled("chest", path=npz, cache=cache, mmap_above=0)
        assert np.array_equal(data.images, 255 - PIXELS)
        assert len(list(cache.iterdir())) == 2

    def test_splits_have_their_own_cache(self, tmp_path):
        (path,) = write_phantoms(tmp_path, counts={"chestmnist": (30, 20, 25)})
        cache = tmp_path / "cache"
        sizes = [len(load_unlabelled("c", path=path, split=s, cache=cache, mmap_above=0)) for s in ("train", "all")]
        assert sizes == [30, 75]

    @pytest.mark.parametrize("damage", [b"", b"junk", None])
    def test_damaged_cache_is_rebuilt(self, npz, tmp_path, damage):
        cache = tmp_path / "cache"
        load_unlabelled("chest", path=npz, cache=cache, mmap_above=0)
        (file,) = cache.iterdir()
        file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
        data = load_unlabelled("chest", path=npz, cache=cache, mmap_above=0)
        assert np.array_equal(data.images, PIXELS)

    def test_damaged_source_leaves_no_cache(self, npz, tmp_path):
        cache = tmp_path / "cache"
        damaged = bytearray(npz.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        npz.write_bytes(damaged)
        assert "truncated, damaged or no .npz" in rejected(npz, cache=cache, mmap_above=0)
        assert list(cache.iterdir()) == []

    def test_full_disk(self, npz, tmp_path, monkeypatch):
        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        data = load_unlabelled("chest", path=npz, cache=tmp_path / "cache", mmap_above=0)
        assert np.array_equal(data.images, PIXELS), "done without"
        assert list((tmp_path / "cache").iterdir()) == []


class TestFolder:
    def test_sorted_by_relative_name_and_exact_at_the_same_size(self, folder):
        data = load_unlabelled("mine", path=folder)
        assert np.array_equal(data.images, PIXELS[[2, 1, 0]])
        assert (data.channels, len(data), data.split) == (1, 3, "all")

    def test_sha256_follows_content_and_names(self, folder):
        before = load_unlabelled("mine", path=folder).sha256
        assert load_unlabelled("mine", path=folder).sha256 == before
        (folder / "a.png").rename(folder / "c.png")
        renamed = load_unlabelled("mine", path=folder).sha256
        Image.fromarray(PIXELS[5]).save(folder / "c.png")
        assert len({before, renamed, load_unlabelled("mine", path=folder).sha256}) == 3

    def test_one_colour_image_makes_all_rgb(self, folder):
        colour = RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(colour).save(folder / "z.png")
        data = load_unlabelled("mine", path=folder)
        assert data.images.shape == (4, 28, 28, 3)
        assert np.array_equal(data.images[3], colour)
        assert np.array_equal(data.images[0], np.stack([PIXELS[2]] * 3, axis=-1))

    def test_gray_content_saved_as_rgb_is_gray(self, tmp_path):
        Image.fromarray(np.stack([PIXELS[0]] * 3, axis=-1)).save(tmp_path / "a.png")
        assert np.array_equal(load_unlabelled("mine", path=tmp_path).images, PIXELS[:1])

    def test_centre_square_of_a_wide_image(self, tmp_path):
        wide = np.zeros((28, 60), np.uint8)
        wide[:, 16:44] = PIXELS[0]
        Image.fromarray(wide).save(tmp_path / "a.png")
        data = load_unlabelled("mine", path=tmp_path, options=ReadOptions(fit="crop"))
        assert np.array_equal(data.images, PIXELS[:1])
        assert "1 not square, cut" in data.reading.line()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("colours", [False, True])
    def test_a_wide_image_is_padded_with_black(self, tmp_path, dtype, colours):
        if colours and dtype != np.uint8:
            pytest.skip("there are no such files")
        wide = np.full((30, 60), {np.uint8: 255, np.uint16: 65535, np.float32: -5}[dtype], dtype)
        wide[:, 30:] = {np.uint8: 51, np.uint16: 51 * 257, np.float32: 5}[dtype]
        Image.fromarray(np.stack([wide, wide // 2, wide], -1) if colours else wide).save(tmp_path / "a.tif")
        [image] = load_unlabelled("mine", path=tmp_path).images
        if colours:
            image = image[:, :, 0]
        left, right = (0, 255) if dtype == np.float32 else (255, 51)
        assert (image[:7] == 0).all()
        assert (image[21:] == 0).all()
        assert (image[7:21, :11] == left).all()
        assert (image[7:21, 17:] == right).all()

    def test_how_images_are_read_is_part_of_what_they_are(self, folder, tmp_path):
        ways = [ReadOptions(), ReadOptions(fit="crop"), ReadOptions(frame=2), ReadOptions(max_unreadable=0.5)]
        sums = [load_unlabelled("mine", path=folder, options=way).sha256 for way in ways]
        assert len(set(sums)) == 3
        assert sums[0] == sums[3]

    def test_resize_is_antialiased(self, tmp_path):
        board = np.indices((280, 280)).sum(axis=0) % 2 * 255  # a plain subsampling would give 0 or 255
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
        images = load_unlabelled("mine", path=tmp_path).images
        assert images.shape == (1, 28, 28)
        assert abs(images.astype(int) - 127).max() <= 2

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(tmp_path / "a.png")
        assert np.array_equal(load_unlabelled("mine", path=tmp_path).images, PIXELS[:1])

    def test_jpeg_and_palette(self, tmp_path):
        smooth = np.linspace(0, 255, 28).astype(np.uint8)[None].repeat(28, axis=0)
        Image.fromarray(smooth).save(tmp_path / "a.jpeg", quality=95)
        Image.fromarray(smooth).convert("P").save(tmp_path / "b.png")
        images = load_unlabelled("mine", path=tmp_path).images
        assert images.shape == (2, 28, 28)
        assert abs(images.astype(int) - smooth).max() <= 6

    def test_cache_is_reused_without_decoding(self, folder, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        first = load_unlabelled("mine", path=folder, cache=cache)
        assert isinstance(first.images, np.memmap)

        def refuse(*args, **kwargs):
            raise AssertionError("decoded again")

        monkeypatch.setattr("app.data.reading.squares.read_raster", refuse)
        again = load_unlabelled("mine", path=folder, cache=cache)
        assert np.array_equal(again.images, PIXELS[[2, 1, 0]])

    @pytest.mark.parametrize("while_doing", ["open", "read_bytes"])
    @pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
    def test_storage_that_fails_for_a_moment_costs_no_image(self, folder, tmp_path, monkeypatch, while_doing, number):
        """Neither while the files are hashed nor while they are decoded."""
        real, cache = getattr(Path, while_doing), tmp_path / "cache"

        def fail(path, *args, **options):
            if path.name == "2.png":
                raise OSError(number, os.strerror(number))
            return real(path, *args, **options)

        monkeypatch.setattr(Path, while_doing, fail)
        assert "again" in rejected(folder, StorageError, cache=cache)
        monkeypatch.undo()
        assert np.array_equal(load_unlabelled("mine", path=folder, cache=cache).images, PIXELS[[2, 1, 0]])

    def test_what_a_file_system_refused_is_asked_for_again(self, folder, tmp_path, monkeypatch):
        real, cache = Path.read_bytes, tmp_path / "cache"

        def refuse(path):
            if path.name == "2.png":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        half = ReadOptions(max_unreadable=0.5)
        assert len(load_unlabelled("mine", path=folder, cache=cache, options=half)) == 2
        monkeypatch.undo()
        assert len(load_unlabelled("mine", path=folder, cache=cache)) == 3

    def test_sizes_have_their_own_cache(self, folder, tmp_path):
        cache = tmp_path / "cache"
        assert load_unlabelled("mine", path=folder, cache=cache).images.shape == (3, 28, 28)
        assert load_unlabelled("mine", path=folder, cache=cache, size=64).images.shape == (3, 64, 64)

    def test_no_images(self, tmp_path):
        assert "holds no images that can be read" in rejected(tmp_path)

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_truncated_image_is_named(self, tmp_path, mode):
        file = tmp_path / "a.png"
        Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).convert(mode).save(file)
        file.write_bytes(file.read_bytes()[:-900])
        assert "1 of 1 images cannot be read: a.png (damaged (" in rejected(tmp_path)

    def test_foreign_content_is_named(self, tmp_path):
        file = tmp_path / "a.jpg"
        file.write_bytes(b"<html>login first</html>")
        assert "1 of 1 images cannot be read: a.jpg (not an image, whatever its name says)" in rejected(tmp_path)
