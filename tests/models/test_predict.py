"""Predictions of trained models: equal to the recorded ones, of any kind of input, at the model's threshold."""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import InputError
from app.jobs.records import read_downstream
from app.models import heatmaps
from app.models.heatmaps import draw_heatmaps, shown_classes
from app.models.inputs import Pictures, read_pictures
from app.models.predict import (
    Prediction,
    check_own_test,
    own_data,
    own_test_pictures,
    predict_pictures,
    recorded_scores,
)
from app.models.trained import load_trained
from app.science.metrics import decide
from app.science.networks import normalise, to_float
from tests.models.made import SETS, Made


def place(made: Made, job: str) -> str:
    return f"{made.store.uri}/{job}"


@pytest.mark.parametrize("name", SETS)
def test_the_studys_test_images_give_the_recorded_predictions(made, name, call, tmp_path):
    job, out = made.job(name), tmp_path / "p.json"
    code, _, err = call("predict", "--model", place(made, job), made.files[name], "--out", out, "--device", "cpu")
    assert code == 0, err
    assert "20 predictions equal to the recorded ones" in err
    said = json.loads(out.read_text())
    scores = np.array([list(row["probabilities"].values()) for row in said["predictions"]])
    recorded = recorded_scores(made.store, job, load_trained(made.store, job))
    assert np.abs(scores - recorded).max() < 1e-5
    record = read_downstream(made.store, job)
    assert list(said["thresholds"].values()) == list(record.thresholds or ())
    decided = decide(scores, record.task, record.thresholds or ())
    names = said["classes"]
    for row, one in zip(said["predictions"], decided, strict=True):
        expected = [names[i] for i in np.flatnonzero(one)] if record.task.startswith("multi-label") else names[one[0]]
        assert row["predicted"] == expected


@pytest.mark.parametrize("job", [("binary_gray", "linear_probe"), ("multi_class_rgb", "few_shot")])
def test_heads_and_chosen_draws_predict_what_is_recorded_without_an_input(made, job, call):
    code, out, err = call("predict", "--model", place(made, made.job(*job)), "--device", "cpu")
    assert code == 0, err
    assert "20 predictions equal to the recorded ones" in err
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["file"] for row in rows] == [f"test/{index}" for index in range(20)]


def test_of_a_subset_the_subset_is_compared(made):
    made.train("binary_gray", "finetune", "data.subset=12", seed=5)
    trained = load_trained(made.store, made.job("binary_gray", seed=5))
    own = own_test_pictures(own_data(made.store, trained))
    assert len(own.images) == 12
    whole = read_pictures(made.files["binary_gray"], size=28)
    for pictures in (own, whole):
        check_own_test(made.store, made.job("binary_gray", seed=5), predict_pictures(trained, pictures))


def test_other_weights_than_the_recorded_ones_are_noticed(made, call, tmp_path):
    """The record's predictions are another model's."""
    record = made.train("binary_gray", "finetune", seed=6)
    trained = load_trained(made.store, made.job("binary_gray", seed=6))
    trained.classifier.head.bias.data += 0.01
    pictures = read_pictures(made.files["binary_gray"], size=28)
    with pytest.raises(InputError, match=r"differ from the recorded ones by 0\.0\d+ \(image \d+ most\)"):
        check_own_test(made.store, made.job("binary_gray", seed=6), predict_pictures(trained, pictures))
    assert record["thresholds"]


def test_a_folder_and_an_image_of_other_kinds(made, call, tmp_path):
    """Resized, made gray for a gray model, names kept, what is unreadable named."""
    rng, folder = np.random.default_rng(0), tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (30, 50, 3), np.uint8)).save(folder / "sub/b, c.jpg")
    out = tmp_path / "p.csv"
    model = place(made, made.job("binary_gray"))
    code, _, err = call("predict", "--model", model, folder, "--out", out, "--device", "cpu")
    assert code == 0, err
    rows = list(csv.DictReader(out.open()))
    assert [row["file"] for row in rows] == ["a.png", "sub/b, c.jpg"]
    for row in rows:
        no, yes = float(row["p(class 0)"]), float(row["p(class 1)"])
        assert no + yes == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == ("class 1" if yes > float(row["threshold"]) else "class 0")
    code, text, _ = call("predict", "--model", model, folder / "a.png", "--device", "cpu")
    assert code == 0
    assert len(text.splitlines()) == 2


def test_a_gray_image_is_three_equal_channels_and_colours_become_luminance(made):
    gray, rgb = (load_trained(made.store, made.job(f"binary_{colours}")) for colours in ("gray", "rgb"))
    images = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3), np.uint8)
    coloured = Pictures("", list("abcd"), images, {})
    plain = coloured.in_channels(1)
    by_pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.array_equal(plain.images, by_pillow)
    assert np.array_equal(predict_pictures(gray, coloured).scores, predict_pictures(gray, plain).scores)
    assert np.allclose(predict_pictures(rgb, plain).scores, predict_pictures(rgb, plain.in_channels(3)).scores)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--model", "model.safetensors", "x.png"], 2, "names no job"),
        (["--model", "runs/r/downstream/d/random/finetune/s9", "x.png"], 66, "no finished job"),
        (["--model", "runs/r/pretrain/byol-s0", "x.png"], 66, "classifies nothing"),
        (["--model", "{job}", "none.png"], 66, "none.png"),
        (["--model", "{job}", "{npz}", "--split", "fourth"], 66, "has no array 'fourth_images'"),
        (["--model", "{job}", "{npz}", "--out", "p.txt"], 2, ".csv or .json"),
    ],
)
def test_what_cannot_be_is_one_line(made, call, args, code, said):
    words = [arg.format(job=made.job("binary_gray"), npz=made.files["binary_gray"]) for arg in args]
    found, _, err = call("predict", *words, "--store", made.store.uri, "--device", "cpu")
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert found == code, err
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize("gone", ["model.safetensors", "head.safetensors", "encoder"])
def test_a_model_that_is_gone_or_was_not_kept_names_the_way_out(made, call, gone):
    protocol: Any = "finetune" if gone.startswith("model") else "linear_probe"
    record = made.train("binary_rgb", protocol, seed=8)
    job = made.job("binary_rgb", protocol, seed=8)
    made.store.delete(record["encoder"]["key"] if gone == "encoder" else f"{job}/{gone}")
    code, _, err = call("predict", "--model", place(made, job), made.files["binary_rgb"], "--device", "cpu")
    assert code == 66
    assert "--overwrite --set runtime.keep_models=all" in err or "head.safetensors: there is no such object" in err
    made.store.delete(f"{job}/record.json")
    made.train("binary_rgb", protocol, "runtime.keep_models=heads", seed=8)
    code, _, err = call("predict", "--model", place(made, job), made.files["binary_rgb"], "--device", "cpu")
    assert code == (66 if protocol == "finetune" else 0), err
    assert ("was not kept (runtime.keep_models=heads)" in err) == (protocol == "finetune")


def test_heat_maps_show_where_the_class_is(made, call, tmp_path):
    pytest.importorskip("captum")
    job = place(made, made.job("multi_class_rgb"))
    out = tmp_path / "maps"
    code, _, err = call(
        "predict", "--model", job, made.files["multi_class_rgb"], "--out", tmp_path / "p.csv", "--heatmaps", out,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    files = sorted(out.iterdir())
    assert len(files) == 20
    assert files[3].name == "03_test_3.png"
    assert Image.open(files[0]).size == (2 * 224 + 4, 224)
    assert "20 heat maps of layer1" in err  # the deepest whose maps of 28 px have four pixels a side


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_heat_map_is_of_the_class_at_the_threshold_and_class_0_of_two_has_one(made, tmp_path, monkeypatch, threshold):
    """Grad-CAM by its own formula: maps weighted by the mean gradients of the class's evidence, z or -z."""
    pytest.importorskip("captum")
    trained = load_trained(made.store, made.job("binary_gray"))
    prediction = predict_pictures(trained, read_pictures(made.files["binary_gray"], size=28))
    drawn: list[Any] = []
    monkeypatch.setattr(heatmaps, "_picture", lambda image, heat: drawn.append(heat) or Image.fromarray(image))
    _, layer = draw_heatmaps(replace(prediction, thresholds=[threshold]), tmp_path)
    encoder, kept = trained.classifier.encoder, []
    images = torch.from_numpy(prediction.pictures.images)
    getattr(encoder.resnet, layer).register_forward_hook(lambda *args: kept.append(args[-1]))
    evidence = trained.classifier(normalise(to_float(images)))[:, 0] * (1 if threshold < 0.5 else -1)
    [gradient] = torch.autograd.grad(evidence.sum(), kept[0])
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    assert (expected > 0).any()
    np.testing.assert_allclose(np.stack(drawn), expected.detach().numpy(), rtol=1e-3, atol=1e-7)


def test_a_heat_map_of_several_labels_is_of_the_likeliest_predicted_one(made):
    trained = load_trained(made.store, made.job("multi_label_gray"))
    scores = np.array([[0.9, 0.3, 0.4], [0.5, 0.3, 0.1], [0.2, 0.6, 0.9]])
    prediction = Prediction(trained, Pictures("", list("abc"), np.zeros((3, 28, 28), np.uint8), {}), scores,
                            [0.95, 0.2, 0.3], "")  # fmt: skip
    assert shown_classes(prediction).tolist() == [2, 1, 2]
    assert shown_classes(replace(prediction, thresholds=[1.0] * 3)).tolist() == [0, 0, 2]


def test_without_captum_heat_maps_say_what_to_install(made, call, tmp_path, monkeypatch):
    """Before anything is read or written."""
    original = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "captum" else original(name))
    job = place(made, made.job("binary_gray"))
    code, _, err = call(
        "predict", "--model", job, made.files["binary_gray"], "--out", tmp_path / "p.csv", "--heatmaps", tmp_path,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert not list(tmp_path.iterdir())
    assert "pip install '.[export]' in a clone" in err
