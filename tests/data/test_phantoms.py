import time

import numpy as np
import pytest

from app.data import PHANTOM_COUNTS, is_phantom, known, load_dataset, make_phantoms, write_phantoms
from app.errors import UsageError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    start = time.process_time()
    paths = write_phantoms(root)
    return root, paths, time.process_time() - start


def pooled(images):
    """Return images (N, 28, 28, …) in [0, 1], each 2x2 pixels their mean, as rows."""
    return (images.reshape(len(images), 14, 2, 14, 2, -1) / 255.0).mean(axis=(2, 4)).reshape(len(images), -1)


def linear_auroc(data):
    """Return the mean one-against-rest test AUROC of logistic regression on pixels of half the resolution."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train, test = (pooled(split.images) for split in (data.train, data.test))
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-3
    model = LogisticRegression(C=4e-3, max_iter=500)
    model.fit((train - mean) / deviation, data.train.labels[:, 0])
    scores = model.predict_proba((test - mean) / deviation)
    truth = data.test.labels[:, 0]
    return float(np.mean([roc_auc_score(truth == c, scores[:, c]) for c in range(data.n_classes)]))


def test_default_files_are_written_quickly(written):
    root, paths, seconds = written
    assert paths == [root / f"{name}.npz" for name in PHANTOM_COUNTS]
    assert seconds < 20  # of the processor; about 2


@pytest.mark.parametrize("name", sorted(PHANTOM_COUNTS))
def test_layout_is_medmnists(written, name):
    data = load_dataset(name, path=written[0] / f"{name}.npz")
    assert tuple(len(split) for split in data.splits.values()) == PHANTOM_COUNTS[name]
    assert data.synthetic
    assert data.channels == known(name).channels
    for split in data.splits:
        assert min(data.class_counts(split)) >= 1
    with np.load(written[0] / f"{name}.npz") as npz:
        assert npz["synthetic"].dtype == bool
        assert npz["train_labels"].dtype == np.uint8


def test_every_class_has_enough_for_few_shot(written):
    for name in ("pneumoniamnist", "breastmnist", "dermamnist"):
        assert min(load_dataset(name, path=written[0] / f"{name}.npz").class_counts("train")) >= 20


def test_balance_follows_the_real_sets(written):
    pneumonia = load_dataset("pneumoniamnist", path=written[0] / "pneumoniamnist.npz")
    assert pneumonia.class_counts("train")[1] / 800 == pytest.approx(3494 / 4708, abs=0.01)
    assert pneumonia.class_counts("test")[1] / 624 == pytest.approx(390 / 624, abs=0.01)
    derma = load_dataset("dermamnist", path=written[0] / "dermamnist.npz").class_counts("train")
    assert derma[5] / 900 > 0.6
    assert derma[5] == max(derma)


@pytest.mark.parametrize("name", ["pneumoniamnist", "breastmnist", "dermamnist"])
def test_classes_overlap_for_a_linear_model(written, name):
    auroc = linear_auroc(load_dataset(name, path=written[0] / f"{name}.npz"))
    assert 0.68 < auroc < 0.95


@pytest.mark.parametrize("name", ["pneumoniamnist", "breastmnist"])
def test_mean_brightness_does_not_give_the_class_away(written, name):
    data = load_dataset(name, path=written[0] / f"{name}.npz")
    bright = data.train.images.mean(axis=(1, 2))
    first, second = (bright[data.train.labels[:, 0] == c] for c in (0, 1))
    assert abs(first.mean() - second.mean()) < bright.std()


@pytest.mark.parametrize("name", sorted(PHANTOM_COUNTS))
def test_images_vary_and_use_the_range(written, name):
    images = load_dataset(name, path=written[0] / f"{name}.npz").train.images.astype(float)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert images.std(axis=0).mean() > 12
    assert images.min() < 40
    assert images.max() > 220
    assert (images == 255).mean() < 0.10


def test_colour_phantoms_have_colour(written):
    images = load_dataset("dermamnist", path=written[0] / "dermamnist.npz").train.images.astype(float)
    red, green, blue = images.mean(axis=(0, 1, 2))
    assert red > green + 20
    assert red > blue + 20


def test_same_seed_gives_the_same_bytes(tmp_path):
    counts = {"breastmnist": (20, 8, 8), "dermamnist": (30, 14, 14), "chestmnist": (20, 20, 20)}
    one = write_phantoms(tmp_path / "1", seed=5, counts=counts)
    two = write_phantoms(tmp_path / "2", seed=5, counts=counts)
    three = write_phantoms(tmp_path / "3", seed=6, counts=counts)
    for a, b, c in zip(one, two, three, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.read_bytes() != c.read_bytes()


def test_splits_share_no_image():
    made = make_phantoms("pneumoniamnist", (40, 40, 40))
    joined = np.concatenate([made[f"{s}_images"].reshape(40, -1) for s in ("train", "val", "test")])
    assert len(np.unique(joined, axis=0)) == 120


def test_other_sizes_have_their_suffix(tmp_path):
    (path,) = write_phantoms(tmp_path, counts={"dermamnist": (14, 7, 7)}, size=64)
    assert path.name == "dermamnist_64.npz"
    assert load_dataset("dermamnist", path=path, size=64).train.images.shape == (14, 64, 64, 3)


@pytest.mark.parametrize("count", [7, 8, 20, 100])
def test_class_counts_sum_at_any_number(count):
    made = make_phantoms("dermamnist", (count, count, count))
    assert len(made["train_labels"]) == count
    assert len(np.unique(made["train_labels"])) == 7


def test_too_few_images_for_the_classes(tmp_path):
    with pytest.raises(UsageError, match="dermamnist: 6 val images are too few for 7 classes"):
        write_phantoms(tmp_path, counts={"dermamnist": (14, 6, 7)})
    with pytest.raises(UsageError, match="13 images are too few for 14 labels"):
        write_phantoms(tmp_path, counts={"chestmnist": (13, 20, 20)})
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_and_size(tmp_path):
    with pytest.raises(UsageError, match="no phantom of 'pathmnist'; choose from chestmnist"):
        write_phantoms(tmp_path, counts={"pathmnist": (10, 10, 10)})
    with pytest.raises(UsageError, match="no size 33"):
        write_phantoms(tmp_path, size=33)


def test_a_real_file_is_never_overwritten(tmp_path):
    path = tmp_path / "breastmnist.npz"
    np.savez(path, train_images=np.zeros((2, 28, 28), np.uint8))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is not a phantom and will not be overwritten"):
        write_phantoms(tmp_path, counts={"breastmnist": (8, 8, 8)})
    assert path.read_bytes() == before
    assert not is_phantom(path)


def test_a_phantom_is_replaced(tmp_path):
    (path,) = write_phantoms(tmp_path, counts={"breastmnist": (8, 8, 8)}, seed=1)
    before = path.read_bytes()
    write_phantoms(tmp_path, counts={"breastmnist": (8, 8, 8)}, seed=2)
    assert is_phantom(path)
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["breastmnist.npz"]
