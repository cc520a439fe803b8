"""Layers trained side by side are those trained one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.config import load_config
from app.errors import CollapseError
from app.science import metrics
from app.science.finetuning import Labelled, fit, n_outputs, predict, probabilities
from app.science.heads import fit_heads, many_aurocs
from app.science.networks import Classifier
from app.science.protocols import PROTOCOLS


class Nothing(nn.Module):
    """An encoder that is never asked: its features are there."""

    features = 12


def labelled(n: int, classes: int, seed: int, task: str) -> Labelled:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n, 1), generator=rng)
    features = torch.randn(n, 12, generator=rng) * torch.linspace(0.1, 3, 12) + 2
    features[:, :classes] += 1.5 * nn.functional.one_hot(labels[:, 0], classes)
    if task == metrics.MULTI_LABEL:
        labels = torch.stack([(labels[:, 0] == c).long() for c in range(classes)], 1)
        labels[::9, 0] = -1
    return Labelled(torch.zeros(n, 1, 1, dtype=torch.uint8), labels, features)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize(("task", "classes"), [(metrics.BINARY, 2), (metrics.MULTI_CLASS, 4), (metrics.MULTI_LABEL, 3)])
def test_layers_side_by_side_equal_layers_one_by_one(task: str, classes: int, standardise: bool) -> None:
    recipe = load_config("recommended").protocols.few_shot_frozen.model_copy(
        update={"epochs": 12, "batch_size": 8, "standardise": standardise}
    )
    outputs = n_outputs(task, classes)
    train = [labelled(21, classes, seed, task) for seed in (1, 2, 3)]
    val, test = labelled(60, classes, 4, task), labelled(50, classes, 5, task)
    classifiers = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        encoder: Any = Nothing()
        classifiers.append(Classifier(encoder, outputs))
    keys = [("d", 0, draw) for draw in range(3)]
    heads = [classifier.head for classifier in classifiers]
    got = fit_heads(heads, train, val, recipe=recipe, task=task, keys=keys)
    scores = got.scores(test.features, task)
    for d, classifier in enumerate(classifiers):
        want = fit(
            classifier, train[d], val, protocol=PROTOCOLS["few_shot_frozen"], recipe=recipe, task=task, key=keys[d]
        )
        assert got.best_epochs[d] == want.best_epoch
        np.testing.assert_allclose(scores[d], probabilities(predict(classifier, test), task), atol=2e-4)


@pytest.mark.parametrize("task", [metrics.BINARY, metrics.MULTI_CLASS, metrics.MULTI_LABEL])
def test_many_aurocs_are_those_of_each(task: str) -> None:
    rng = np.random.default_rng(0)
    classes = 2 if task == metrics.BINARY else 3
    labels = rng.integers(classes, size=(80, 1))
    if task == metrics.MULTI_LABEL:
        labels = rng.integers(-1, 2, size=(80, 3))
    scores = np.round(rng.random((5, 80, classes)), 2)  # with ties
    want = [metrics.auroc(labels, each, task) for each in scores]
    assert many_aurocs(labels, scores, task) == pytest.approx(want)
    assert np.isnan(many_aurocs(np.zeros((80, 1), np.int64), scores[:, :, :2], metrics.BINARY)).all()


def test_a_loss_that_is_not_finite_ends_it() -> None:
    recipe = load_config("recommended").protocols.few_shot_frozen
    data = labelled(16, 2, 0, metrics.BINARY)
    broken = Labelled(data.images, data.labels, torch.full_like(data.features, torch.inf))
    with pytest.raises(CollapseError, match="not finite at epoch 1"):
        fit_heads([nn.Linear(12, 1)], [broken], data, recipe=recipe, task=metrics.BINARY, keys=[("d", 0, 0)])
