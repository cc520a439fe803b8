"""Features by an encoder, and nearest neighbours."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.models.embed import Embedding, nearest, neighbour_sheet
from app.models.inputs import Pictures, read_pictures
from app.models.trained import load_encoder, load_trained
from app.science.networks import normalise, to_float


def test_features_are_the_encoders_and_every_format_holds_the_same(made, call, tmp_path):
    job = f"{made.store.uri}/{made.job('multi_class_rgb')}"
    suffixes = ["npz", "csv"]
    for suffix in suffixes:
        code, out, err = call(
            "embed", "--model", job, made.files["multi_class_rgb"], "--out", tmp_path / f"f.{suffix}", "--device", "cpu"
        )
        assert code == 0, err
        assert out.strip() == str(tmp_path / f"f.{suffix}")
    saved = np.load(tmp_path / "f.npz")
    images = np.load(made.files["multi_class_rgb"])["train_images"]
    encoder = load_trained(made.store, made.job("multi_class_rgb")).classifier.encoder
    with torch.no_grad():
        expected = encoder(normalise(to_float(torch.from_numpy(images)))).numpy()
    assert np.allclose(saved["features"], expected, atol=1e-6)
    assert list(saved["files"]) == [f"train/{index}" for index in range(24)]
    rows = list(csv.reader((tmp_path / "f.csv").open()))
    assert rows[0] == ["file", *(f"f{index}" for index in range(32))]
    assert np.allclose(np.array(rows[1:])[:, 1:].astype(float), expected, atol=1e-5)


def test_parquet_holds_the_same(made, call, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    job = f"{made.store.uri}/{made.job('binary_gray')}"
    code, _, err = call("embed", "--model", job, made.files["binary_gray"], "--out", tmp_path / "f.parquet")
    assert code == 0, err
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names[:2] == ["file", "f0"]
    assert table.num_rows == 24


def test_nearest_is_the_largest_cosine():
    features = np.array([[1, 0], [10, 1], [0, 3], [-1, 0], [0, 0]], np.float32)
    places, similar = nearest(features, np.array([2, 0], np.float32), 3)
    assert places.tolist() == [0, 1, 2]
    assert similar == pytest.approx([1, 10 / np.sqrt(101), 0])


def test_an_image_is_its_own_nearest_neighbour(made, call, tmp_path):
    images = np.load(made.files["binary_gray"])["train_images"]
    Image.fromarray(images[7]).save(tmp_path / "query.png")
    job = f"{made.store.uri}/{made.job('binary_gray')}"
    code, out, err = call(
        "embed", "--model", job, made.files["binary_gray"], "--out", tmp_path / "f.npz", "--neighbours",
        tmp_path / "query.png", "--sheet", tmp_path / "sheet.png", "--count", 3, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert out.split() == [str(tmp_path / "f.npz"), str(tmp_path / "sheet.png")]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    query, first = sheet[6:118, 6:118], sheet[6:118, 124:236]
    assert np.array_equal(query, first)
    assert Image.open(tmp_path / "sheet.png").size == (6 + 4 * 118, 6 + 146)


def test_fewer_images_than_neighbours_are_all_shown():
    few = Embedding("m", Pictures("", ["a", "bä"], np.zeros((2, 28, 28), np.uint8), {}), np.eye(2, dtype=np.float32))
    assert Image.open(io.BytesIO(neighbour_sheet(few, few, 8))).size == (6 + 3 * 118, 6 + 2 * 146)


@pytest.mark.parametrize(
    ("out", "said"), [("f.txt", ".npz, .csv or .parquet"), ("f.parquet", "'.[parquet]' in a clone")]
)
def test_what_cannot_be_written_is_said_before_anything_is_read(call, tmp_path, monkeypatch, out, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call("embed", "--model", "runs/r/pretrain/byol-s0", tmp_path / "none", "--out", tmp_path / out)
    assert code == 2
    assert said in err


def test_colours_go_into_an_encoder_as_what_it_was_trained_on(made, call, tmp_path):
    """A gray classifier's: their luminance, and not three channels that it never saw differ."""
    job, gray = made.job("binary_gray"), tmp_path / "gray.npz"
    images = read_pictures(made.files["binary_rgb"], size=28).images
    np.savez(gray, images=Pictures("", [], images, {}).in_channels(1).images)
    found = []
    for source in (made.files["binary_rgb"], gray):
        code, _, err = call(
            "embed", "--model", f"{made.store.uri}/{job}", source, "--split", "test", "--out", tmp_path / "f.npz",
            "--device", "cpu",
        )  # fmt: skip
        assert code == 0, err
        found.append(np.load(tmp_path / "f.npz")["features"])
    np.testing.assert_array_equal(*found)


def test_an_encoder_of_a_classifier_is_the_classifiers(made):
    for protocol in ("finetune", "linear_probe"):
        job = made.job("binary_gray", protocol)
        encoder, metadata = load_encoder(made.store, job)
        expected = load_trained(made.store, job).classifier.encoder
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), expected.parameters(), strict=True))
        assert metadata["input_size"] == "28"
