import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, softmax
from torch import nn

from app.errors import CollapseError, InputError
from app.science import finetuning
from app.science.byol import build_optimizer
from app.science.finetuning import (
    Labelled,
    encode,
    fit,
    n_outputs,
    predict,
    probabilities,
    task_loss,
)
from app.science.generators import batches as batches_of
from app.science.generators import epoch_order
from app.science.metrics import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from app.science.networks import Classifier, Encoder, normalise, to_float
from app.science.protocols import PROTOCOLS, Protocol
from app.settings import Recipe

RECIPE = {
    "epochs": 2, "batch_size": 8, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "cosine": True,
    "standardise": True,
}  # fmt: skip
FROZEN, TRAINED = PROTOCOLS["linear_probe"], PROTOCOLS["finetune"]


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    return Classifier(Encoder("resnet18"), 1)


@pytest.fixture
def resnet(drawn):
    return copy.deepcopy(drawn)


@pytest.fixture
def classifier(tiny_encoder):
    return Classifier(tiny_encoder(), 1)


def recipe(**changed):
    return Recipe(**(RECIPE | changed))


def labelled(count, seed=0, task=BINARY):
    """Noise with a bright upper half (class 0) or lower half (class 1)."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2)[:, None]
    images = rng.integers(0, 180, (count, 28, 28))
    images[labels[:, 0] == 0, :14] += 50
    images[labels[:, 0] == 1, 14:] += 50
    if task == MULTI_LABEL:
        labels = np.concatenate([labels, 1 - labels, labels], 1)
    return Labelled.of(images.astype(np.uint8), labels.astype(np.int64), "cpu")


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def run(classifier, train, val, protocol, chosen, task=BINARY, key=("data", 0, 0), **options):
    return fit(classifier, train, val, protocol=protocol, recipe=chosen, task=task, key=key, **options)


# Losses and scores


def test_binary_loss_by_hand():
    logits = np.array([[2.0], [-1.0]])
    want = -(log_expit(2.0) + log_expit(1.0)) / 2
    assert task_loss(torch.tensor(logits), torch.tensor([[1], [0]]), BINARY).item() == pytest.approx(want)


def test_multi_label_loss_is_a_mean_over_images_and_labels():
    logits, labels = np.array([[2.0, -1.0], [0.5, 3.0]]), np.array([[1, 0], [0, 1]])
    want = -np.where(labels == 1, log_expit(logits), log_expit(-logits)).mean()
    assert task_loss(torch.tensor(logits), torch.tensor(labels), MULTI_LABEL).item() == pytest.approx(want)


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL])
def test_multi_class_loss_is_cross_entropy(task):
    logits = np.array([[2.0, -1.0, 0.0], [0.5, 3.0, 1.0]])
    want = -np.log(softmax(logits, 1)[[0, 1], [2, 1]]).mean()
    assert task_loss(torch.tensor(logits), torch.tensor([[2], [1]]), task).item() == pytest.approx(want)


def test_probabilities():
    logits = torch.tensor([[2.0], [-30.0]])
    np.testing.assert_allclose(
        probabilities(logits, BINARY), [[1 - expit(2), expit(2)], [1 - expit(-30), expit(-30)]], atol=1e-15
    )
    many = torch.tensor([[2.0, -1.0, 0.0]])
    np.testing.assert_allclose(probabilities(many, MULTI_CLASS), softmax([[2.0, -1.0, 0.0]], 1), rtol=1e-12)
    np.testing.assert_allclose(probabilities(many, MULTI_LABEL), expit([[2.0, -1.0, 0.0]]), rtol=1e-12)
    assert probabilities(many, ORDINAL).dtype == np.float64


def test_outputs_of_the_linear_layer():
    assert [n_outputs(task, 7) for task in (BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL)] == [1, 7, 7, 7]


def test_the_four_protocols():
    assert {
        "finetune": Protocol(frozen=False, few=False),
        "linear_probe": Protocol(frozen=True, few=False),
        "few_shot": Protocol(frozen=False, few=True),
        "few_shot_frozen": Protocol(frozen=True, few=True),
    } == PROTOCOLS


def test_take_picks_images_and_labels():
    data = labelled(6)
    taken = data.take(np.array([4, 1]))
    assert torch.equal(taken.images, data.images[[4, 1]])
    assert taken.labels[:, 0].tolist() == [0, 1]


# Batches


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (5, 4, [5]), (1, 4, [1]), (3, 8, [3])],
)
def test_a_last_batch_of_one_joins_the_one_before(count, batch, sizes):
    batches = list(batches_of(count, batch, ("k",)))
    assert [len(at) for at in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(count))


def test_finetune_takes_a_last_batch_of_one_image(resnet):
    outcome = run(resnet, labelled(5), labelled(4), TRAINED, recipe(batch_size=4, epochs=1))
    assert math.isfinite(outcome.curves[0]["train_loss"])


# What moves


@pytest.mark.parametrize("name", ["linear_probe", "few_shot_frozen"])
def test_a_frozen_encoder_does_not_move_by_a_bit(resnet, name):
    before = snapshot(resnet)
    run(resnet, labelled(16), labelled(8), PROTOCOLS[name], recipe(epochs=3, learning_rate=0.1))
    for key, value in resnet.encoder.state_dict().items():  # weights and BatchNorm's running statistics
        assert torch.equal(value, before[f"encoder.{key}"]), key
    assert not torch.equal(resnet.head.weight, before["head.weight"])
    assert not torch.equal(resnet.head.bias, before["head.bias"])
    assert all(p.grad is None for p in resnet.encoder.parameters())


def test_finetune_moves_every_layer_and_the_running_statistics(resnet):
    before = snapshot(resnet)
    run(resnet, labelled(16), labelled(8), PROTOCOLS["few_shot"], recipe(epochs=1))
    still = [name for name, value in resnet.state_dict().items() if torch.equal(value, before[name])]
    assert still == []


def test_encoding_is_in_evaluation_mode_and_keeps_the_mode(resnet):
    before, data = snapshot(resnet), labelled(6)
    resnet.train()
    features = encode(resnet.encoder, data.images)
    assert resnet.encoder.training
    assert all(torch.equal(v, before[k]) for k, v in resnet.state_dict().items())
    assert not features.requires_grad
    one = encode(resnet.encoder.eval(), data.images[2:3])
    assert not resnet.encoder.training
    torch.testing.assert_close(features[2:3], one, rtol=1e-4, atol=1e-5)


def test_encoding_in_parts_changes_nothing(classifier, monkeypatch):
    data = labelled(7)
    whole = encode(classifier.encoder, data.images)
    monkeypatch.setattr(finetuning, "INFERENCE_PIXELS", 3 * 28 * 28)
    torch.testing.assert_close(encode(classifier.encoder, data.images), whole, rtol=1e-4, atol=1e-5)


# Learning


def test_one_batch_overfits(resnet):
    train = labelled(16)
    outcome = run(resnet, train, train, TRAINED, recipe(epochs=7, batch_size=4))
    losses = [epoch["train_loss"] for epoch in outcome.curves]
    assert losses[-1] < 0.1 < 0.3 < losses[0]
    scores = probabilities(predict(resnet, train), BINARY)
    assert ((scores[:, 1] > 0.5) == train.labels[:, 0].numpy().astype(bool)).all()
    assert outcome.curves[outcome.best_epoch - 1]["val_auroc"] == 1


@pytest.mark.parametrize("protocol", [FROZEN, TRAINED])
def test_the_same_key_gives_the_same_tensors_twice_and_another_key_others(classifier, protocol):
    made = []
    for key in (("data", 0, 0), ("data", 0, 0), ("data", 1, 0)):
        torch.manual_seed(len(made))  # the global seed has no say
        mine = copy.deepcopy(classifier)
        outcome = run(mine, labelled(16), labelled(8), protocol, recipe(epochs=3), key=key)
        made.append((mine.state_dict(), outcome.curves))
    assert all(torch.equal(made[0][0][name], value) for name, value in made[1][0].items())
    assert made[0][1] == made[1][1]
    assert not torch.equal(made[0][0]["head.weight"], made[2][0]["head.weight"])


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL])
def test_a_probe_learns_every_kind_of_task(tiny_encoder, task):
    classifier = Classifier(tiny_encoder(), n_outputs(task, 3 if task == MULTI_LABEL else 2))
    train = labelled(32, task=task)
    outcome = run(
        classifier, train, labelled(16, seed=1, task=task), FROZEN, recipe(epochs=15, learning_rate=0.02), task
    )
    assert outcome.curves[-1]["train_loss"] < 0.6 * outcome.curves[0]["train_loss"]
    assert max(epoch["val_auroc"] for epoch in outcome.curves) > 0.8


def test_probe_on_cached_features_equals_one_that_encodes_anew_in_every_epoch(classifier):
    train, val, epochs = labelled(20), labelled(8, seed=1), 3
    reference = copy.deepcopy(classifier).eval()
    optimizer = build_optimizer("adamw", [reference.head], learning_rate=0.01, weight_decay=1e-4)
    states, losses = [], []
    for epoch in range(1, epochs + 1):
        for at in epoch_order(20, "downstream", "data", 0, 0, epoch).split(8):
            with torch.no_grad():
                features = reference.encoder(normalise(to_float(train.images[at])))
            optimizer.zero_grad()
            task_loss(reference.head(features), train.labels[at], BINARY).backward()
            optimizer.step()
        states.append(snapshot(reference.head))
        losses.append(float(task_loss(predict(reference, val), val.labels, BINARY)))
    outcome = run(
        classifier, train, val, FROZEN, recipe(epochs=epochs, standardise=False, cosine=False, learning_rate=0.01)
    )
    assert [epoch["val_loss"] for epoch in outcome.curves] == pytest.approx(losses, rel=1e-4)
    best = states[outcome.best_epoch - 1]
    torch.testing.assert_close(classifier.head.weight.detach(), best["weight"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(classifier.head.bias.detach(), best["bias"], rtol=1e-3, atol=1e-5)


def test_the_folded_standardised_head_gives_the_same_logits_from_the_images(classifier, monkeypatch):
    train, val = labelled(24), labelled(12, seed=1)
    seen = []
    real = finetuning.task_loss

    def spy(logits, labels, task):
        if len(labels) == len(val.labels) and not logits.requires_grad:
            seen.append(logits.clone())
        return real(logits, labels, task)

    monkeypatch.setattr(finetuning, "task_loss", spy)
    outcome = run(classifier, train, val, FROZEN, recipe(epochs=4, learning_rate=0.05))
    torch.testing.assert_close(predict(classifier, val), seen[outcome.best_epoch - 1], rtol=1e-3, atol=1e-3)


def test_a_feature_that_is_constant_in_training_stays_harmless(classifier, monkeypatch):
    train, val = labelled(12), labelled(12, seed=1)
    torch.manual_seed(0)
    features = {id(train.images): torch.randn(12, 6), id(val.images): torch.randn(12, 6)}
    features[id(train.images)][:, 2] = 0.0  # a silent unit that one validation image wakes
    features[id(val.images)][:, 2] = 0.0
    features[id(val.images)][3, 2] = 0.5
    monkeypatch.setattr(finetuning, "encode", lambda _, images: features[id(images)].clone())
    outcome = run(classifier, train, val, FROZEN, recipe(epochs=1))
    assert outcome.curves[0]["val_loss"] < 5
    assert classifier.head.weight.abs().max() < 1
    assert predict(classifier, val).abs().max() < 20


# Choosing the epoch


def scripted(classifier, logits_by_epoch):
    """Let validation see prepared logits; return the head's weights after each epoch."""
    heads, epochs = [], iter(logits_by_epoch)

    class Head(nn.Linear):
        def forward(self, x):
            if torch.is_grad_enabled():
                return super().forward(x)
            heads.append(self.weight.detach().clone())
            return torch.tensor(next(epochs))[:, None]

    head = Head(6, 1)
    head.load_state_dict(classifier.head.state_dict())
    classifier.head = head
    return heads


@pytest.mark.parametrize(
    ("logits", "best"),
    [
        ([[0.0, 1.0, 2.0, 3.0], [-1.0, 3.0, -2.0, 4.0], [0.0, 1.0, 2.0, 3.0]], 2),  # the highest AUROC
        ([[-0.1, 0.1, -0.1, 0.1], [-2.0, 2.0, -2.0, 2.0], [-1.0, 1.0, -1.0, 1.0]], 2),  # a tie: the lowest loss
        ([[-1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], 1),  # equal: the first
    ],
)
def test_best_epoch_is_kept(classifier, logits, best):
    train, val = labelled(8), labelled(4)
    heads = scripted(classifier, logits)
    outcome = run(classifier, train, val, FROZEN, recipe(epochs=3, standardise=False))
    assert outcome.best_epoch == best
    assert [epoch["epoch"] for epoch in outcome.curves] == [1, 2, 3]
    assert torch.equal(classifier.head.weight, heads[best - 1])
    assert not torch.equal(classifier.head.weight, heads[best % 3])


def test_without_an_auroc_the_loss_chooses(classifier):
    val = Labelled(labelled(4).images, torch.ones(4, 1, dtype=torch.int64))
    scripted(classifier, [[1.0] * 4, [3.0] * 4, [2.0] * 4])
    outcome = run(classifier, labelled(8), val, FROZEN, recipe(epochs=3))
    assert outcome.best_epoch == 2
    assert [epoch["val_auroc"] for epoch in outcome.curves] == [None] * 3


def test_the_check_runs_after_every_epoch_and_may_stop(classifier):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 2:
            raise InputError("stop")

    with pytest.raises(InputError, match="stop"):
        run(classifier, labelled(8), labelled(4), FROZEN, recipe(epochs=9), check=check)
    assert len(calls) == 2


def test_a_loss_that_is_not_finite_ends_with_one_line(classifier):
    classifier.head.weight.data[0, 0] = float("nan")
    with pytest.raises(CollapseError, match=r"the loss is nan in training .* at epoch 1; lower") as caught:
        run(classifier, labelled(8), labelled(4), FROZEN, recipe())
    assert caught.value.exit_code == 76
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cosine", "rates"), [(True, [1.0, 0.75, 0.25]), (False, [1.0, 1.0, 1.0])])
def test_the_learning_rate_follows_the_schedule(classifier, monkeypatch, cosine, rates):
    seen = []
    real = finetuning.build_optimizer

    def spied(*args, **options):
        optimizer = real(*args, **options)
        optimizer.register_step_pre_hook(lambda o, *_: seen.append({group["lr"] for group in o.param_groups}))
        return optimizer

    monkeypatch.setattr(finetuning, "build_optimizer", spied)
    run(classifier, labelled(8), labelled(4), FROZEN, recipe(epochs=3, learning_rate=1.0, cosine=cosine))
    assert [rate for group in seen for rate in group] == pytest.approx(rates)
