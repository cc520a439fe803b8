"""The downstream procedure: one way to train and judge a classifier on top of an encoder.

The four protocols (``protocols.py``) differ by two flags only: what is trainable, and how many labels are seen.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import CollapseError, Misfit, UsageError
from app.science import metrics
from app.science.byol import build_optimizer, load_optimizer
from app.science.draws import epoch_order
from app.science.networks import Classifier, Encoder, normalise, to_float
from app.science.protocols import Protocol
from app.science.schedules import learning_rate
from app.settings import Recipe

INFERENCE_PIXELS = 512 * 28 * 28  # of one batch in evaluation mode: bounds its memory at any image size

AfterStep = Callable[[int, Callable[[], dict[str, Any]]], None]


@dataclass(frozen=True)
class Labelled:
    """Labelled images on a device.

    Attributes:
        images: uint8, (N, H, W) or (N, H, W, 3).
        labels: int64, (N, L); L is 1 except for multi-label tasks.
        features: of the images by a frozen encoder, float32 (N, D), once it has seen them.
    """

    images: Tensor
    labels: Tensor
    features: Tensor | None = None

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: NDArray[np.int64], device: str) -> Labelled:
        """Copy arrays to the device."""
        return cls(torch.tensor(np.ascontiguousarray(images), device=device), torch.tensor(labels, device=device))

    def take(self, indices: NDArray[np.int64]) -> Labelled:
        """Return the images at ``indices``."""
        at = torch.from_numpy(indices).to(self.images.device)
        return Labelled(self.images[at], self.labels[at], None if self.features is None else self.features[at])

    def encoded(self, encoder: Encoder) -> Labelled:
        """Return the same with ``features`` by an encoder that is not trained any more."""
        return self if self.features is not None else replace(self, features=encode(encoder, self.images))


@dataclass
class Fit:
    """A training's outcome: the classifier at its best epoch, and the way there.

    Attributes:
        best_epoch: the epoch of the highest validation AUROC (ties: lowest validation loss), from 1.
        curves: per epoch ``epoch``, ``train_loss``, ``val_loss`` and ``val_auroc`` (None if undefined).
    """

    best_epoch: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0


def n_outputs(task: str, n_classes: int) -> int:
    """Outputs of the linear layer: 1 for a binary task, else one per class or label."""
    return 1 if task == metrics.BINARY else n_classes


def task_loss(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Binary cross-entropy with logits for binary and multi-label tasks, cross-entropy otherwise.

    Args:
        logits: (B, ``n_outputs``).
        labels: int64, (B, L); below 0 where a label of a multi-label task is missing.
        task: MedMNIST's name of the task.

    Returns:
        The mean over the batch (and the labels that are known), a scalar.
    """
    if task == metrics.MULTI_LABEL and bool((labels < 0).any()):
        known = labels >= 0
        each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)
    if task in (metrics.BINARY, metrics.MULTI_LABEL):
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels[:, 0])


def probabilities(logits: Tensor, task: str) -> NDArray[np.float64]:
    """Turn logits (N, ``n_outputs``) into scores (N, C), as ``metrics.evaluate`` reads them."""
    logits = logits.double().cpu()
    if task == metrics.BINARY:
        positive = torch.sigmoid(logits)
        return torch.cat([1 - positive, positive], 1).numpy()
    scores = torch.sigmoid(logits) if task == metrics.MULTI_LABEL else torch.softmax(logits, 1)
    return scores.numpy()


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor) -> Tensor:
    """Features of uint8 images by the encoder in evaluation mode, float32 (N, D); the encoder's mode is kept."""
    was_training = encoder.training
    encoder.eval()
    batch = max(1, INFERENCE_PIXELS // (images.shape[1] * images.shape[2]))
    features = [encoder(normalise(to_float(part))) for part in images.split(batch)]
    encoder.train(was_training)
    return torch.cat(features)


@torch.no_grad()
def predict(classifier: Classifier, data: Labelled) -> Tensor:
    """Logits of images (or their features), (N, ``n_outputs``), by the classifier in evaluation mode."""
    features = encode(classifier.encoder, data.images) if data.features is None else data.features
    logits: Tensor = classifier.head(features)
    return logits


def fit(
    classifier: Classifier,
    train: Labelled,
    val: Labelled,
    *,
    protocol: Protocol,
    recipe: Recipe,
    task: str,
    key: tuple[int | str, ...],
    check: Callable[[], None] = lambda: None,
    after_step: AfterStep = lambda step, state: None,
    resume: dict[str, Any] | None = None,
) -> Fit:
    """Train ``classifier`` in place and leave it as it was at its best epoch on ``val``.

    Args:
        classifier: encoder and linear layer, on the images' device.
        train: the training images (the few, for a few-shot protocol); with their features, if the encoder is frozen
            and has seen them.
        val: the validation images, which choose the epoch; likewise.
        protocol: what is trainable.
        recipe: how to train.
        task: MedMNIST's name of the task.
        key: names the draws of the batch order.
        check: called after every epoch; may raise to stop.
        after_step: called after every optimizer step with the number of steps done and a function that
            makes the state to go on from; may raise to stop.
        resume: such a state: training goes on there, with equal tensors.

    Returns:
        The best epoch and the curves.

    Raises:
        CollapseError: the loss is not finite.
        Misfit: ``resume`` is no state of this training.
        UsageError: there is one training image, and BatchNorm is to be trained.
    """
    if not protocol.frozen and len(train.labels) < 2:
        raise UsageError(f"{key[0]}: has a single training image, of which BatchNorm learns nothing; use two or more")
    if protocol.frozen:
        return _fit_head(classifier, train, val, recipe, task, key, check, after_step, resume)

    def train_step(at: Tensor) -> Tensor:
        return task_loss(classifier(normalise(to_float(train.images[at]))), train.labels[at], task)

    def predict_val() -> Tensor:
        return predict(classifier, val)

    return _loop(classifier, train_step, predict_val, train, val, recipe, task, key, check, after_step, resume)


def _fit_head(
    classifier: Classifier,
    train: Labelled,
    val: Labelled,
    recipe: Recipe,
    task: str,
    key: tuple[int | str, ...],
    check: Callable[[], None],
    after_step: AfterStep,
    resume: dict[str, Any] | None,
) -> Fit:
    """Train the linear layer on cached features: the encoder sees each image once."""
    x, x_val = (data.encoded(classifier.encoder).features for data in (train, val))
    assert x is not None, "encoded data have features"
    assert x_val is not None, "encoded data have features"
    shift, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
    if recipe.standardise:
        shift, scale = x.mean(0), x.std(0, correction=0)
        # A feature that never varies in training must not explode where it first does (a few images leave
        # many units of a ReLU silent): scaled by 1, not by next to nothing.
        scale = torch.where(scale > 1e-6, scale, 1.0)
        x, x_val = (x - shift) / scale, (x_val - shift) / scale
    head = classifier.head

    def train_step(at: Tensor) -> Tensor:
        return task_loss(head(x.index_select(0, at)), train.labels.index_select(0, at), task)

    @torch.no_grad()
    def predict_val() -> Tensor:
        logits: Tensor = head(x_val)
        return logits

    with _one_thread():
        outcome = _loop(head, train_step, predict_val, train, val, recipe, task, key, check, after_step, resume)
    with torch.no_grad():  # fold the scaling into the layer, so that the saved model is a plain ResNet
        head.weight.div_(scale)
        head.bias.sub_(head.weight @ shift)
    return outcome


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread meanwhile: to wake others takes longer than a linear layer's few operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loop(
    trained: nn.Module,
    train_step: Callable[[Tensor], Tensor],
    predict_val: Callable[[], Tensor],
    train: Labelled,
    val: Labelled,
    recipe: Recipe,
    task: str,
    key: tuple[int | str, ...],
    check: Callable[[], None],
    after_step: AfterStep,
    resume: dict[str, Any] | None,
) -> Fit:
    optimizer = build_optimizer(
        recipe.optimizer, [trained], learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    labels, val_labels = train.labels, val.labels.cpu().numpy()
    per_epoch = len(list(_batches(len(labels), recipe.batch_size, (*key, 0))))
    total = recipe.epochs * per_epoch
    outcome, best, step = Fit(steps=total), (-math.inf, -math.inf), 0
    best_state: dict[str, Any] = {}
    losses: list[Tensor] = []

    def state() -> dict[str, Any]:
        return {
            "step": step,
            "model": trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": losses,
            "best": list(best),
            "best_state": best_state,
            "best_epoch": outcome.best_epoch,
            "curves": outcome.curves,
        }

    if resume is not None:
        with _restoring():
            if resume["best_state"]:
                trained.load_state_dict(resume["best_state"])  # only to see that it can be
            trained.load_state_dict(resume["model"])
            load_optimizer(optimizer, resume["optimizer"])
            step, best_state = int(resume["step"]), dict(resume["best_state"])
            best = float(resume["best"][0]), float(resume["best"][1])
            losses = [loss.to(labels.device) for loss in resume["losses"]]
            outcome.best_epoch, outcome.curves = int(resume["best_epoch"]), [dict(line) for line in resume["curves"]]
            if not (0 <= step <= total and outcome.best_epoch <= len(outcome.curves) <= recipe.epochs):
                raise ValueError(f"step {step} of {total}")
            if len(losses) != step - len(outcome.curves) * per_epoch or any(loss.dim() for loss in losses):
                raise ValueError("losses are not those of this epoch's steps")
    begun = step if resume is not None else -1
    # A state is taken between a step and the validation that may follow it.
    for epoch in range(max(0, step - 1) // per_epoch + 1, recipe.epochs + 1):
        trained.train()
        for at in list(_batches(len(labels), recipe.batch_size, (*key, epoch)))[step - (epoch - 1) * per_epoch :]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step, peak=recipe.learning_rate, total_steps=total, warmup_steps=0, cosine=recipe.cosine
                )
            loss = train_step(at.to(labels.device))
            trained.zero_grad()  # optimizer.zero_grad() takes many times as long, which a linear layer would feel
            loss.backward()
            with _restoring() if step == begun else contextlib.nullcontext():  # what was restored is read now
                optimizer.step()
            losses.append(loss.detach() * len(at))
            step += 1
            after_step(step, state)
        logits = predict_val()
        train_loss, losses = float(torch.stack(losses).sum() / len(labels)), []
        val_loss = float(task_loss(logits, val.labels, task))
        finite = math.isfinite(train_loss) and math.isfinite(val_loss)
        auroc = metrics.auroc(val_labels, probabilities(logits, task), task) if finite else math.nan
        outcome.curves.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_auroc": None if math.isnan(auroc) else auroc,
            }
        )
        if not finite:
            raise CollapseError(
                f"downstream: the loss is {train_loss} in training and {val_loss} in validation at epoch {epoch}; "
                "lower the protocol's learning_rate",
                outcome.curves,
            )
        score = (-math.inf if math.isnan(auroc) else auroc, -val_loss)
        if score > best or not best_state:
            best, outcome.best_epoch = score, epoch
            best_state = copy.deepcopy(trained.state_dict())
        check()
    trained.load_state_dict(best_state)
    return outcome


@contextlib.contextmanager
def _restoring() -> Iterator[None]:
    """Say of a state that cannot be loaded that it does not fit.

    Raises:
        Misfit: something was missing in it, or of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Error(s) in loading state_dict"):
            raise  # a want of memory, a GPU that fails
        raise Misfit(f"{type(error).__name__}: {error}") from error


def _batches(count: int, batch_size: int, key: tuple[int | str, ...]) -> Iterator[Tensor]:
    batches = list(epoch_order(count, "downstream", *key).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm cannot train on one image
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches
