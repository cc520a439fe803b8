"""What leaves the package: equal to the record, without any of its code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load_file
from sklearn.metrics import recall_score

from app.data.origin import Origin
from app.models import export as exporting
from app.models.card import at_threshold, auroc_interval, model_card
from app.models.export import run_onnx
from app.models.inputs import read_pictures
from app.models.plain import plain_resnet, plain_state
from app.models.predict import own_data, predict_pictures, recorded_scores
from app.models.trained import load_trained
from app.science.networks import Classifier, Encoder, torchvision_resnet
from tests.models.made import SETS, Made

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exports of a model for every set."""
    root = tmp_path_factory.mktemp("exported")
    for name in SETS:
        trained = load_trained(made.store, made.job(name))
        exporting.export(made.store, made.job(name), trained, own_data(made.store, trained), root / name)
    return {name: root / name for name in SETS}


@pytest.mark.parametrize("name", SETS)
def test_onnx_predict_and_the_record_agree(made, exported, name):
    trained = load_trained(made.store, made.job(name))
    pictures = read_pictures(made.files[name], size=28)
    recorded = recorded_scores(made.store, made.job(name), trained)
    for count in (20, 1):  # a batch of any size
        onnx = run_onnx((exported[name] / "model.onnx").read_bytes(), pictures.images[:count])
        assert onnx.dtype == np.float32
        assert np.abs(onnx - recorded[:count]).max() < 1e-4
    assert np.abs(predict_pictures(trained, pictures).scores - recorded).max() < 1e-4


@pytest.mark.parametrize("name", SETS)
def test_torchvision_alone_loads_the_weights(made, exported, name):
    """As the card says, strictly, and with the preprocessing that is written beside them."""
    folder = exported[name]
    config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    resnet = torchvision_resnet(config["architecture"], config["stem"])
    resnet.fc = torch.nn.Linear(32, config["num_classes"])
    resnet.load_state_dict(state)
    images = np.load(made.files[name])["test_images"]
    x = torch.from_numpy(images).float()
    x = x[:, None].expand(-1, 3, -1, -1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    steps = json.loads((folder / "preprocessor_config.json").read_text())
    x = (x * steps["rescale_factor"] - steps["image_mean"][0]) / steps["image_std"][0]
    with torch.no_grad():
        logits = resnet.eval()(x)
    several = config["problem_type"].startswith("multi")
    scores = (torch.sigmoid(logits) if several else torch.softmax(logits, 1)).numpy()
    recorded = recorded_scores(made.store, made.job(name), load_trained(made.store, made.job(name)))
    assert np.abs(scores - recorded).max() < 1e-4


@pytest.mark.parametrize("name", SETS)
def test_the_card_says_what_it_has_to(made, exported, name):
    text = (exported[name] / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["library_name"] == "torchvision"
    assert about["license"] == "other"  # of own data nothing is known
    assert "not for clinical use" in body
    for heading in ("## Use", "## Data and training", "## Metrics", "## Thresholds", "## Intended use and limits"):
        assert heading in body
    trained = load_trained(made.store, made.job(name))
    data = own_data(made.store, trained)
    area = auroc_interval(data, recorded_scores(made.store, made.job(name), trained), trained.record.task)
    assert f"| AUROC | {area.mean:.3f} ({area.low:.3f} to {area.high:.3f}) |" in body
    [results] = about["model-index"][0]["results"]
    assert {entry["type"]: entry["value"] for entry in results["metrics"]}["roc_auc"] == round(area.mean, 4)
    for threshold in trained.record.thresholds or ():
        assert f"| {threshold:.4g} |" in body


def test_its_snippets_run(exported, monkeypatch):
    """Both give the same probabilities of a black image."""
    monkeypatch.chdir(exported["binary_gray"])
    monkeypatch.setattr(torchvision.models, "resnet18", small_resnet)
    said = []
    for snippet in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S):
        scope: dict[str, Any] = {}
        exec(snippet, scope)
        said.append(np.array(torch.as_tensor(scope["probabilities"]).detach()))
    assert len(said) == 2
    assert np.abs(said[0] - said[1]).max() < 1e-4


def small_resnet(num_classes: int) -> torch.nn.Module:
    resnet = torchvision_resnet("resnet18", "stock")
    resnet.fc = torch.nn.Linear(32, num_classes)
    return resnet


def test_a_binary_head_becomes_two_columns_of_the_same_probabilities(made):
    trained = load_trained(made.store, made.job("binary_gray"))
    state = plain_state(trained)
    assert state["fc.weight"].shape == (2, 32)
    x = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        two = torch.softmax(plain_resnet(trained)(x), 1)[:, 1]
        one = torch.sigmoid(trained.classifier(x))[:, 0]
    assert torch.allclose(two, one, atol=1e-6)


def test_a_resnet_18_of_torchvision_loads_a_binary_export(made, monkeypatch):
    """The real one, strictly, without a word about its stem."""
    trained = load_trained(made.store, made.job("binary_gray"))
    monkeypatch.setattr(torchvision.models, "get_model", torchvision.models._api.get_model)
    torch.manual_seed(0)
    classifier = Classifier(Encoder("resnet18", "stock"), 1).eval()
    trained = replace(trained, classifier=classifier)
    resnet = torchvision.models.resnet18(num_classes=2)
    resnet.load_state_dict(plain_state(trained))
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(torch.softmax(resnet.eval()(x), 1)[:, 1], torch.sigmoid(classifier(x))[:, 0], atol=1e-5)


def test_nothing_is_written_if_onnx_differs_from_the_record(made, call, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "run_onnx", lambda graph, images: run_onnx(graph, images) + np.float32(2e-4))
    job = f"{made.store.uri}/{made.job('binary_gray')}"
    code, _, err = call("export", "--model", job, tmp_path / "out")
    assert code == 66
    assert "ONNX's predictions differ from the recorded ones by 0.0002" in err
    assert not (tmp_path / "out").exists()


def test_other_data_than_the_studys_are_refused(made, call, tmp_path):
    job = f"{made.store.uri}/{made.job('binary_gray')}"
    code, _, err = call("export", "--model", job, tmp_path / "out", "--data", f"binary_gray={made.files['binary_rgb']}")
    assert code == 66
    assert "is not the binary_gray that" in err


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_one_line(call, made, tmp_path, monkeypatch, library):
    original = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == library else original(name))
    code, _, err = call("export", "--model", f"{made.store.uri}/{made.job('binary_gray')}", tmp_path / "out")
    assert code == 2
    assert f"export: {library} is not installed; pip install '.[export]' in a clone" in err


def test_sensitivity_and_specificity_are_recalls():
    labels, scores = np.array([0, 1, 1, 0, -1, 1]), np.array([0.1, 0.9, 0.4, 0.6, 0.9, 0.7])
    known = labels >= 0
    expected = [recall_score(labels[known], scores[known] > 0.5, pos_label=value) for value in (1, 0)]
    assert at_threshold(labels, scores, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize(("fit", "said"), [("pad", "padded with black"), ("crop", "cut to the square"), (None, None)])
def test_how_imported_images_became_squares_goes_with_the_model(made, tmp_path, monkeypatch, fit, said):
    trained = load_trained(made.store, made.job("binary_gray"))
    recorded = recorded_scores(made.store, made.job("binary_gray"), trained)
    origin = Origin("binary-class", ["a", "b"], {}, {}, {"fit": fit}) if fit else None
    data = replace(own_data(made.store, trained), origin=origin)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: b"")
    monkeypatch.setattr(exporting, "run_onnx", lambda *_: recorded)
    exporting.export(made.store, made.job("binary_gray"), trained, data, tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()).get("fit") == fit
    text = (tmp_path / "README.md").read_text()
    assert ("Images that are not square have to be" in text) == (fit is not None)
    assert said is None or f"have to be {said}" in text


def test_names_of_others_are_text_on_the_card(made):
    """A class of a folder's or a table's name; neither a cell of a table, nor HTML, nor a line."""
    name = "a|b <img src=x>\n# c"
    trained = load_trained(made.store, made.job("binary_gray"))
    trained = replace(trained, record=trained.record.model_copy(update={"labels": {"0": "no", "1": name}}))
    data = replace(own_data(made.store, trained), title=name)
    text = model_card(trained, data, recorded_scores(made.store, made.job("binary_gray"), trained), opset=18, off=0.0)
    body = text.split("---\n", 2)[2]
    assert body.count("a\\|b &lt;img src=x> # c") == 5  # the heading, classes, data, thresholds, limits
    assert "a|b" not in body
    assert "\n# c" not in body


def test_the_card_names_the_images_of_the_pretraining_and_their_licence(made):
    """Made up: what an encoder's file says of itself."""
    trained = load_trained(made.store, made.job("binary_gray"))
    trained = replace(trained, record=trained.record.model_copy(update={"init": "byol-s0", "method": "byol"}))
    data, scores = own_data(made.store, trained), recorded_scores(made.store, made.job("binary_gray"), trained)
    about = {"pretraining_data": "ChestMNIST, 112120 images", "licence": "CC BY-NC 4.0"}
    text = model_card(trained, data, scores, opset=18, off=0.0, pretraining=about)
    assert "pretrained by BYOL on unlabelled images: ChestMNIST, 112120 images; licence: CC BY-NC 4.0." in text
    assert "the limit to non-commercial use is inherited" in text
    assert exporting.about_pretraining(made.store, trained) is None  # there is no such encoder here
