"""What watches a pretraining, on images whose features are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.config import load_config
from app.data import Split
from app.science.monitor import Monitor

CONFIG = load_config("recommended", ["protocols.few_shot_frozen.k=8", "protocols.few_shot_frozen.draws=2"])


class Rows(nn.Module):
    """An "encoder" whose features are the mean brightness of each row."""

    def forward(self, x):
        return x.mean((1, 3))


def labelled(task: str, labels: np.ndarray, told: bool) -> SimpleNamespace:
    """A set without a test split, whose images say their labels by bright rows, if ``told``, in noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 20, (len(labels), 8, 8), dtype=np.uint8)
    classes = labels.shape[1] if labels.shape[1] > 1 else int(labels.max()) + 1
    for c in range(classes) if told else ():
        images[(labels[:, c] if labels.shape[1] > 1 else labels[:, 0] == c).astype(bool), c::4] += 100
    half = len(labels) // 2
    train, val = Split(images[:half], labels[:half]), Split(images[half:], labels[half:])
    names = [f"class {c}" for c in range(classes)]
    return SimpleNamespace(train=train, val=val, task=task, n_classes=classes, class_names=names, name="rows")


def seen(data: SimpleNamespace) -> dict[str, Any]:
    return Monitor(data, CONFIG.pretrain, CONFIG.protocols.few_shot_frozen, "cpu").measure(Rows())


def few_shot_auroc(data: SimpleNamespace) -> float | None:
    return seen(data)["few_shot_auroc"]


SETS = {
    "binary-class": np.arange(80)[:, None] % 2,
    "multi-class": np.arange(90)[:, None] % 3,
    "multi-label, binary-class": np.random.default_rng(1).integers(0, 2, (80, 3)),
}


@pytest.mark.parametrize("task", SETS)
def test_few_shots_tell_features_that_know_the_labels_from_those_that_do_not(task):
    assert few_shot_auroc(labelled(task, SETS[task], told=True)) > 0.9
    assert few_shot_auroc(labelled(task, SETS[task], told=False)) < 0.7


def test_what_is_seen_does_not_depend_on_what_was_drawn_before():
    data = labelled("binary-class", SETS["binary-class"], told=False)
    torch.manual_seed(0)
    first = few_shot_auroc(data)
    torch.manual_seed(1)
    assert few_shot_auroc(data) == first


def test_a_class_with_too_few_images_leaves_the_k_nn():
    labels = np.r_[np.zeros(38), np.ones(2), np.zeros(20), np.ones(20)].astype(np.int64)[:, None]
    found = seen(labelled("binary-class", labels, told=True))
    assert found["few_shot_auroc"] is None
    assert found["knn_auroc"] > 0.5
