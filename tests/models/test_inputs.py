"""New images are read as those that a model learned from, whatever lies beside them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from app.config import load_config
from app.data import load_dataset
from app.data.own import LabelSource, import_images
from app.data.reading import Levels, ReadOptions
from app.errors import InputError
from app.jobs.records import read_record, write_json
from app.jobs.run import Run
from app.models.inputs import read_pictures
from app.models.predict import recorded_scores
from app.models.trained import load_trained, reading_of
from app.stages import downstream
from app.storage import FolderStore


class Own(NamedTuple):
    folder: Path
    npz: Path
    job: str


def twelve_bits(rng: np.random.Generator, top: int) -> np.ndarray:
    """Noise that is not square, up to ``top``, in 16 bits of file."""
    return rng.integers(0, top, (30, 44)).astype(np.uint16)


@pytest.fixture(scope="module")
def own(made, tmp_path_factory) -> Own:
    """A set of images of 12 bits, one class darker than the other, cut to squares, and a classifier of it."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(3)
    for number in range(40):
        path = root / "scans" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(twelve_bits(rng, (1500, 4096)[number % 2])).save(path)
    import_images(
        root / "scans", root / "mine.npz", size=28, labels=LabelSource(), split="50/25/25",
        options=ReadOptions(fit="crop"),
    )  # fmt: skip
    run = Run(made.store, "own", load_config("smoke", made.settings, sources=[f"mine={root / 'mine.npz'}"]))
    downstream.run(run, dataset="mine", init="random", protocol="finetune", seed=0)
    return Own(root / "scans", root / "mine.npz", "runs/own/downstream/mine/random/finetune/s0")


def test_a_set_and_a_model_keep_how_images_were_read(made, own):
    with np.load(own.npz) as npz:
        assert json.loads(str(npz["description"]))["reading"]["levels"] == {"bits": [12], "range": None}
    assert load_dataset("mine", path=own.npz).read_as == {
        "reading": {"fit": "crop", "levels": {"bits": [12], "range": None}}
    }
    assert reading_of(made.store, own.job) == ("crop", Levels((12,)))


@pytest.mark.parametrize("kind", ["dark", "light"])
def test_an_image_by_itself_is_predicted_as_among_the_others(made, own, call, tmp_path, kind):
    test = load_dataset("mine", path=own.npz).test
    place = next(place for place, name in enumerate(test.files) if name.startswith(kind))
    recorded = recorded_scores(made.store, own.job, load_trained(made.store, own.job))[place]
    alone, beside = own.folder / test.files[place], tmp_path / "beside"
    beside.mkdir()
    shutil.copy(alone, beside / "a.png")
    for number in range(9):  # of another instrument, which tells nothing of the first
        Image.fromarray(twelve_bits(np.random.default_rng(number), 65536)).save(beside / f"b{number}.png")
    for source in (alone, beside):
        code, out, err = call("predict", "--model", f"{made.store.uri}/{own.job}", source, "--device", "cpu")
        assert code == 0, err
        row = next(csv.DictReader(out.splitlines()))
        assert [float(row["p(dark)"]), float(row["p(light)"])] == pytest.approx(recorded, abs=1e-4)
        assert ("WARNING" in err) == (source == beside)
        assert ("black and white in 9 images of more than 8 bits" in err) == (source == beside)


def test_features_too(made, own, call, tmp_path):
    test = load_dataset("mine", path=own.npz).test
    place = next(place for place, name in enumerate(test.files) if name.startswith("dark"))
    model, features = f"{made.store.uri}/{own.job}", []
    for source in (own.npz, own.folder / test.files[place]):
        out = tmp_path / f"{source.stem}.npz"
        code, _, err = call("embed", "--model", model, source, "--split", "test", "--out", out, "--device", "cpu")
        assert code == 0, err
        features.append(np.load(out)["features"])
    assert np.allclose(features[0][place], features[1][0], atol=1e-5)


def test_of_a_model_that_knows_no_such_images_it_is_said(made, call, tmp_path):
    Image.fromarray(twelve_bits(np.random.default_rng(0), 4096)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "plain.png")
    model = f"{made.store.uri}/{made.job('binary_gray')}"
    for name in ("deep", "plain"):
        code, _, err = call("predict", "--model", model, tmp_path / f"{name}.png", "--device", "cpu")
        assert code == 0, err
        assert ("WARNING" in err) == (name == "deep")


@pytest.mark.parametrize(("top", "range_"), [(0.9, 0), (200.0, 1), (3000.0, 2)])
def test_so_are_fractions_and_others(tmp_path, top, range_):
    """The range of a folder's floats; a narrower one beside is the same image in it."""
    rng = np.random.default_rng(1)
    values = rng.random((28, 28)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    one = read_pictures(tmp_path / "a.tif", size=28, options=ReadOptions(levels=Levels(range=range_)))
    for number in range(9):
        Image.fromarray(values * top).save(tmp_path / f"b{number}.tif")
    assert np.array_equal(read_pictures(tmp_path, size=28).images[0], one.images[0])


@pytest.mark.parametrize("value", [None, {}, {"bits": [40], "range": None}, {"bits": "12"}, {"bits": [], "range": 7}])
def test_what_are_no_levels_is_refused(value):
    with pytest.raises(ValueError, match="no levels"):
        Levels.of_json(value)
    assert Levels.of_json(Levels((12, 16), 1).as_json()) == Levels((12, 16), 1)


@pytest.mark.parametrize(
    "change",
    [{"data": None}, {"data": {}}, {"data": {"mine": {"reading": []}}}, {"data": {"mine": {"reading": {"levels": 3}}}},
     {"config": []}],
)  # fmt: skip
def test_a_damaged_record_is_one_line(made, own, tmp_path, change):
    store = FolderStore(tmp_path)
    write_json(store, f"{own.job}/record.json", read_record(made.store, own.job) | change)
    with pytest.raises(InputError, match="its record is damaged"):
        reading_of(store, own.job)
