import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from app.data import (
    TASKS,
    catalog,
    default_roots,
    find_file,
    known,
    load_dataset,
    load_unlabelled,
    parse_task,
    take_subset,
)
from app.data.phantoms import write_phantoms
from app.errors import AppError, InputError, UsageError

REAL = Path(os.environ["BYOL_TEST_DATA"]) if "BYOL_TEST_DATA" in os.environ else None
COUNTS = {"pneumoniamnist": (60, 20, 30), "dermamnist": (70, 21, 28), "chestmnist": (40, 20, 25)}


def arrays(n=(12, 6, 6), size=28, rgb=False, classes=3):
    """Return a small own dataset whose labels run through the classes in turn."""
    rng = np.random.default_rng(7)
    made = {}
    for split, count in zip(("train", "val", "test"), n, strict=True):
        shape = (count, size, size, 3) if rgb else (count, size, size)
        made[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
    return made


def save(path, **changed):
    content = {key: value for key, value in (arrays() | changed).items() if value is not None}
    np.savez_compressed(path, **content)
    return path


def rejected(path, error=InputError, **options):
    """Return the message that loading ``path`` ends with, checked to be one line with the path."""
    with pytest.raises(error) as caught:
        load_dataset("mine", path=path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, seed=3, counts=COUNTS)
    return root


class TestCatalog:
    def test_is_the_table_of_medmnist(self):
        from medmnist.info import INFO

        ours = {name: one for name, one in catalog().items() if name != "cifar10"}
        assert sorted(ours) == sorted(name for name in INFO if not name.endswith("3d"))
        for name, one in ours.items():
            info = INFO[name]
            assert (one.title, one.task, one.channels) == (
                info["python_class"],
                info["task"],
                info["n_channels"],
            )
            assert one.labels == info["label"]
            assert one.licence == info["license"]
            for size, tail in ((28, ""), (64, "_64"), (128, "_128"), (224, "_224")):
                assert (one.urls[size], one.md5[size]) == (info[f"url{tail}"], info[f"MD5{tail}"])
            assert one.task in TASKS
        for name in INFO.keys() - ours.keys():
            with pytest.raises(UsageError, match=f"{name} is a 3D set"):
                known(name)

    def test_importing_data_loads_no_heavy_package(self):
        code = (
            "import sys, app.data; app.data.catalog(); "
            "print([m for m in ('torch', 'medmnist', 'pandas', 'sklearn') if m in sys.modules])"
        )
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_names_the_nearest_known_set(self):
        with pytest.raises(UsageError, match="did you mean breastmnist"):
            known("brestmnist")

    def test_3d_sets_are_refused(self):
        with pytest.raises(UsageError, match="3D set; choose one of the 2D sets: pathmnist"):
            known("organmnist3d")

    @pytest.mark.parametrize(
        ("short", "task"), zip(("binary", "multi-class", "multi-label", "ordinal"), TASKS, strict=True)
    )
    def test_short_task_words(self, short, task):
        assert parse_task(short) == task
        assert parse_task(task) == task

    def test_unknown_task_word(self):
        with pytest.raises(UsageError, match="unknown task 'regression'; choose one of binary"):
            parse_task("regression")


class TestLoadDataset:
    def test_equals_the_arrays_of_the_file(self, phantoms):
        path = phantoms / "pneumoniamnist.npz"
        data = load_dataset("pneumoniamnist", path=path)
        with np.load(path) as npz:
            for split in ("train", "val", "test"):
                assert np.array_equal(data.splits[split].images, npz[f"{split}_images"])
                assert np.array_equal(data.splits[split].labels, npz[f"{split}_labels"])
                assert data.splits[split].labels.dtype == np.int64
                assert data.splits[split].images.dtype == np.uint8
        assert data.train is data.splits["train"]
        assert (len(data.train), len(data.val), len(data.test)) == (60, 20, 30)

    def test_describe_is_the_record_entry(self, phantoms):
        import hashlib

        path = phantoms / "dermamnist.npz"
        data = load_dataset("dermamnist", path=path)
        entry = json.loads(json.dumps(data.describe("downstream")))
        assert list(entry) == [
            "sha256", "size", "task", "labels", "channels", "splits", "class_counts", "licence", "source",
            "title", "modality", "role",
        ]  # fmt: skip
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["splits"] == {"train": 70, "val": 21, "test": 28}
        assert entry["task"] == "multi-class"
        assert entry["labels"]["3"] == "dermatofibroma"
        assert (entry["channels"], entry["size"], entry["role"]) == (3, 28, "downstream")
        assert entry["source"] == str(path)
        for split in ("train", "val", "test"):
            expected = [int((data.splits[split].labels == c).sum()) for c in range(7)]
            assert entry["class_counts"][split] == expected
            assert sum(expected) == entry["splits"][split]

    def test_multi_label_counts_are_positives(self, phantoms):
        data = load_dataset("chestmnist", path=phantoms / "chestmnist.npz")
        assert data.task == "multi-label, binary-class"
        assert data.n_classes == 14
        assert data.train.labels.shape == (40, 14)
        assert data.class_counts("train") == [int(v) for v in data.train.labels.sum(axis=0)]

    def test_synthetic_mark_is_read_and_shown(self, phantoms, tmp_path):
        data = load_dataset("pneumoniamnist", path=phantoms / "pneumoniamnist.npz")
        assert data.synthetic
        assert data.title == "PneumoniaMNIST (SYNTHETIC)"
        assert data.licence == "none needed (generated)"
        own = load_dataset("mine", path=save(tmp_path / "own.npz"))
        assert not own.synthetic

    def test_suffixed_name_takes_the_table_of_its_base(self, tmp_path):
        path = save(tmp_path / "d.npz", **arrays(rgb=True))
        data = load_dataset("dermamnist_reconstructed", path=path)
        assert data.title == "DermaMNIST (reconstructed)"
        assert data.labels == dict(known("dermamnist").labels)
        assert (data.licence, data.modality) == ("CC BY-NC 4.0", "Dermatoscope")
        # three of the seven classes occur in the file, all seven are counted
        assert data.class_counts("train") == [4, 4, 4, 0, 0, 0, 0]

    def test_known_name_refuses_another_task(self, phantoms):
        with pytest.raises(UsageError, match="pneumoniamnist is 'binary-class', not 'multi-class'"):
            load_dataset("pneumoniamnist", path=phantoms / "pneumoniamnist.npz", task="multi-class")

    def test_known_name_refuses_other_channels(self, tmp_path):
        path = save(tmp_path / "d.npz")
        with pytest.raises(InputError, match="has 1-channel images, but dermamnist has 3"):
            load_dataset("dermamnist", path=path)

    def test_own_data_infers_the_task(self, tmp_path):
        three = load_dataset("mine", path=save(tmp_path / "a.npz"))
        assert (three.task, three.labels) == (
            "multi-class",
            {"0": "class 0", "1": "class 1", "2": "class 2"},
        )
        two = load_dataset("mine", path=save(tmp_path / "b.npz", **arrays(classes=2)))
        assert (two.task, two.n_classes) == ("binary-class", 2)
        columns = {f"{s}_labels": np.eye(4, dtype=np.int64)[np.arange(n) % 4] for s, n in
                   (("train", 12), ("val", 6), ("test", 6))}  # fmt: skip
        columns["train_labels"][0] = 1  # not one-hot
        many = load_dataset("mine", path=save(tmp_path / "c.npz", **columns))
        assert (many.task, many.n_classes) == ("multi-label, binary-class", 4)
        assert many.class_counts("val") == [2, 2, 1, 1]
        assert (many.licence, many.modality, many.title) == ("not stated", "not stated", "mine")

    def test_own_data_takes_the_task_given(self, tmp_path):
        data = load_dataset("mine", path=save(tmp_path / "a.npz"), task="ordinal")
        assert (data.task, data.n_classes) == ("ordinal-regression", 3)

    def test_flat_labels_bools_and_a_last_axis_of_one_are_accepted(self, tmp_path):
        made = arrays(classes=2)
        changed = {key: value[:, 0].astype(bool) for key, value in made.items() if "labels" in key}
        changed |= {key: value[..., None] for key, value in made.items() if "images" in key}
        data = load_dataset("mine", path=save(tmp_path / "a.npz", **changed))
        assert data.train.labels.shape == (12, 1)
        assert data.channels == 1
        assert np.array_equal(data.train.images, made["train_images"])

    def test_fortran_order_keeps_the_pixels(self, tmp_path):
        made = arrays()
        data = load_dataset("mine", path=save(tmp_path / "a.npz", train_images=np.asfortranarray(made["train_images"])))
        assert np.array_equal(data.train.images, made["train_images"])
        assert data.train.images.flags.c_contiguous

    def test_other_sizes(self, tmp_path):
        path = save(tmp_path / "a.npz", **arrays(size=64, rgb=True))
        assert load_dataset("mine", path=path, size=64).train.images.shape == (12, 64, 64, 3)

    def test_cache_maps_the_same_pixels(self, tmp_path):
        made = arrays()
        path = save(tmp_path / "a.npz", val_images=np.asfortranarray(made["val_images"]))
        data = load_dataset("mine", path=path, cache=tmp_path / "cache", mmap_above=10)
        for split in ("train", "val", "test"):
            assert isinstance(data.splits[split].images, np.memmap)
            assert np.array_equal(data.splits[split].images, made[f"{split}_images"])
        small = load_dataset("mine", path=path, cache=tmp_path / "unused", mmap_above=10**6)
        assert not isinstance(small.train.images, np.memmap)
        assert not (tmp_path / "unused").exists()

    def test_subset_is_stratified_seeded_and_reproducible(self, phantoms):
        path = phantoms / "dermamnist.npz"
        whole = load_dataset("dermamnist", path=path)
        one = load_dataset("dermamnist", path=path, subset=14, seed=1)
        again = take_subset(whole, 14, seed=1)
        other = take_subset(whole, 14, seed=2)
        assert [len(split) for split in one.splits.values()] == [14, 14, 14]
        assert min(one.class_counts("train")) >= 1
        assert np.array_equal(one.train.images, again.train.images)
        assert not np.array_equal(one.train.images, other.train.images)
        assert one.sha256 == whole.sha256
        assert take_subset(whole, 10_000).class_counts("test") == whole.class_counts("test")

    def test_splits_that_are_not_asked_for_need_not_be_there(self, tmp_path):
        """The others are what they are beside them, subsets included."""
        whole = load_dataset("mine", path=save(tmp_path / "whole.npz"), subset=4, seed=1)
        path = save(tmp_path / "part.npz", test_images=None, test_labels=None)
        part = load_dataset("mine", path=path, subset=4, seed=1, splits=("train", "val"))
        assert set(part.splits) == set(part.describe("downstream")["splits"]) == {"train", "val"}
        for split in ("train", "val"):
            assert np.array_equal(part.splits[split].images, whole.splits[split].images)
            assert np.array_equal(part.splits[split].labels, whole.splits[split].labels)
        with pytest.raises(KeyError, match="test"):
            _ = part.test

    def test_empty_subset_is_refused(self, phantoms):
        with pytest.raises(UsageError, match="a subset of 0 images is empty"):
            load_dataset("dermamnist", path=phantoms / "dermamnist.npz", subset=0)


class TestBadInput:
    def test_missing_file(self, tmp_path):
        assert "no such file" in rejected(tmp_path / "none.npz")

    def test_folder(self, tmp_path):
        assert "is a folder" in rejected(tmp_path)

    def test_not_a_zip(self, tmp_path):
        path = tmp_path / "a.npz"
        path.write_bytes(b"hello" * 100)
        assert "truncated, damaged or no .npz" in rejected(path)

    def test_empty_file(self, tmp_path):
        path = tmp_path / "a.npz"
        path.touch()
        assert "truncated, damaged or no .npz" in rejected(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path, share):
        path = save(tmp_path / "a.npz")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "truncated, damaged or no .npz" in rejected(path)

    @pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
    def test_one_flipped_byte_anywhere_in_the_pixels(self, tmp_path, writer):
        path = tmp_path / "a.npz"
        writer(path, **arrays())
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("train_images.npy")
            middle = entry.header_offset + 200 + entry.compress_size // 2
        damaged = bytearray(path.read_bytes())
        damaged[middle] ^= 0x10
        path.write_bytes(damaged)
        assert "truncated, damaged or no .npz" in rejected(path)

    def test_header_that_claims_more_than_there_is(self, tmp_path):
        path = save(tmp_path / "a.npz")
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["train_images.npy"] = members["train_images.npy"].replace(b"(12, 28", b"(99, 28")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        assert "does not have the length that its header says" in rejected(path)

    def test_missing_key(self, tmp_path):
        message = rejected(save(tmp_path / "a.npz", val_labels=None))
        assert "has no array 'val_labels' (it has train_images" in message

    def test_pickled_objects(self, tmp_path):
        labels = np.array([{"class": 1}] * 12, dtype=object)
        assert "pickled Python objects" in rejected(save(tmp_path / "a.npz", train_labels=labels))

    def test_float_images(self, tmp_path):
        path = save(tmp_path / "a.npz", test_images=np.zeros((6, 28, 28), np.float32))
        assert "test_images is float32; scale it to 0-255 and save it as uint8" in rejected(path)

    def test_float_labels(self, tmp_path):
        path = save(tmp_path / "a.npz", test_labels=np.full((6, 1), 0.5))
        assert "test_labels holds fractions; save the labels as whole numbers" in rejected(path)

    @pytest.mark.parametrize("shape", [(12, 784), (12, 28, 28, 4), (12, 3, 28, 28), (12, 1, 28, 28, 3)])
    def test_wrong_shape(self, tmp_path, shape):
        path = save(tmp_path / "a.npz", train_images=np.zeros(shape, np.uint8))
        assert f"train_images has shape {shape}" in rejected(path)

    def test_wrong_size(self, tmp_path):
        path = save(tmp_path / "a.npz", **arrays(size=64))
        assert "train_images is 64x64, but size 28 was asked for" in rejected(path, size=28)

    def test_not_square(self, tmp_path):
        path = save(tmp_path / "a.npz", train_images=np.zeros((12, 28, 30), np.uint8))
        assert "train_images is 28x30" in rejected(path)

    def test_other_number_of_labels(self, tmp_path):
        path = save(tmp_path / "a.npz", train_labels=np.zeros((11, 1), np.int64))
        assert "train_images has 12 images but train_labels has 11 labels" in rejected(path)

    def test_empty_split(self, tmp_path):
        made = arrays(n=(12, 0, 6))
        assert "val_images is empty" in rejected(save(tmp_path / "a.npz", **made))

    def test_splits_of_other_channels(self, tmp_path):
        path = save(tmp_path / "a.npz", val_images=np.zeros((6, 28, 28, 3), np.uint8))
        assert "val_images differs from train_images in channels" in rejected(path)

    def test_splits_of_other_label_columns(self, tmp_path):
        path = save(tmp_path / "a.npz", val_labels=np.zeros((6, 2), np.int64))
        assert "val_labels has 2 columns but train_labels has 1" in rejected(path)

    @pytest.mark.parametrize(("value", "split"), [(3, "val"), (-1, "test")])
    def test_label_out_of_range(self, tmp_path, value, split):
        path = save(tmp_path / "a.npz", **{f"{split}_labels": np.full((6, 1), value)})
        message = rejected(path)
        assert f"{split}_labels holds {value}" in message
        assert ("'multi-class' needs 0..2" if value > 0 else "labels count from 0") in message

    def test_label_out_of_range_of_a_known_set(self, tmp_path):
        path = save(tmp_path / "a.npz")
        with pytest.raises(InputError, match=r"train_labels holds 2, but 'binary-class' needs 0\.\.1"):
            load_dataset("breastmnist", path=path)

    def test_columns_that_do_not_fit_the_task(self, tmp_path):
        path = save(tmp_path / "a.npz")
        with pytest.raises(InputError, match=r"train_labels has 1 columns, but .* needs 14 columns of 0/1"):
            load_dataset("chestmnist", path=path)

    @pytest.mark.parametrize(
        "train", [np.full((12, 1), 1), np.arange(12)[:, None] % 2 + 1, np.arange(24).reshape(12, 2)]
    )
    def test_task_that_cannot_be_told(self, tmp_path, train):
        columns = {f"{s}_labels": np.zeros((6, train.shape[1]), np.int64) for s in ("val", "test")}
        path = save(tmp_path / "a.npz", train_labels=train, **columns)
        message = rejected(path)
        assert f"write mine={path}:TASK with TASK one of binary" in message

    def test_class_numbers_beyond_reason(self, tmp_path):
        path = save(tmp_path / "a.npz", train_labels=np.full((12, 1), 10**12))
        assert "number the classes 0, 1, 2" in rejected(path, task="multi-class")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_no_permission(self, tmp_path):
        path = save(tmp_path / "a.npz")
        path.chmod(0)
        assert "change the owner or the permissions" in rejected(path, error=UsageError)

    def test_permission_error_is_a_usage_error(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.npz")

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(zipfile, "ZipFile", refuse)
        assert "no permission" in rejected(path, error=UsageError)

    def test_every_truncation_point_is_an_input_error(self, tmp_path):
        whole = save(tmp_path / "a.npz", **arrays(n=(3, 3, 3))).read_bytes()
        path = tmp_path / "cut.npz"
        for end in range(0, len(whole), 97):
            path.write_bytes(whole[:end])
            with pytest.raises(AppError) as caught:
                load_dataset("mine", path=path)
            assert caught.value.exit_code == 66


class TestFindFile:
    def test_order_of_roots_and_of_names(self, tmp_path):
        first, second = tmp_path / "1", tmp_path / "2"
        first.mkdir()
        second.mkdir()
        assert find_file("breastmnist", 28, [first, second]) is None
        (second / "breastmnist.npz").touch()
        assert find_file("breastmnist", 28, [first, second]) == second / "breastmnist.npz"
        (first / "breastmnist_28.npz").touch()
        assert find_file("breastmnist", 28, [first, second]) == first / "breastmnist_28.npz"
        (first / "breastmnist.npz").touch()
        assert find_file("breastmnist", 28, [first, second]) == first / "breastmnist.npz"

    def test_other_sizes_need_their_suffix(self, tmp_path):
        (tmp_path / "breastmnist.npz").touch()
        assert find_file("breastmnist", 64, [tmp_path]) is None
        (tmp_path / "breastmnist_64.npz").touch()
        assert find_file("breastmnist", 64, [tmp_path]) == tmp_path / "breastmnist_64.npz"

    def test_default_roots(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
        assert default_roots() == [tmp_path / ".medmnist"]
        monkeypatch.setenv("MEDMNIST_ROOT", "/data/medmnist")
        assert default_roots(Path("here")) == [Path("here"), Path("/data/medmnist"), tmp_path / ".medmnist"]


@pytest.mark.skipif(REAL is None, reason="BYOL_TEST_DATA names no folder of real files")
class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "train", "val", "test"),
        [
            ("pneumoniamnist", [1214, 3494], [135, 389], [234, 390]),
            ("breastmnist", [147, 399], [21, 57], [42, 114]),
            (
                "dermamnist_reconstructed",
                [228, 359, 769, 80, 779, 4693, 99],
                [33, 52, 110, 12, 111, 671, 14],
                [66, 103, 220, 23, 223, 1341, 29],
            ),
        ],
    )
    def test_class_counts(self, name, train, val, test):
        data = load_dataset(name, path=REAL / f"{name}.npz")
        assert [data.class_counts(split) for split in ("train", "val", "test")] == [train, val, test]
        assert not data.synthetic

    def test_equals_what_medmnist_loads(self):
        from medmnist import BreastMNIST

        theirs = BreastMNIST("test", root=str(REAL), download=False)
        ours = load_dataset("breastmnist", path=REAL / "breastmnist.npz")
        assert np.array_equal(ours.test.images, theirs.imgs)
        assert np.array_equal(ours.test.labels, theirs.labels)

    @pytest.mark.parametrize("size", [28, 64])
    def test_unlabelled(self, size, tmp_path):
        path = REAL / f"nihcxr_unlabeled_{size}.npz"
        data = load_unlabelled("nih", path=path, size=size, cache=tmp_path, mmap_above=0)
        assert data.images.shape == (10_000, size, size)
        with np.load(path) as npz:
            assert np.array_equal(data.images, npz["images"])
