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
from app.science.generators import batches
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
        best_epoch: the epoch of the highest validation AUROC (ties: lowest validation loss), from 1; the last one, if
            the recipe keeps that.
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
    logits = logits.cpu().double()  # Apple's GPUs have no doubles
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
    """Train ``classifier`` in place and leave it as it was at its best epoch on ``val``, or at its last.

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
    if protocol.head_alone:
        classifier.encoder.requires_grad_(False)

    def train_step(at: Tensor) -> Tensor:
        return task_loss(classifier(normalise(to_float(train.images[at]))), train.labels[at], task)

    def predict_val() -> Tensor:
        return predict(classifier, val)

    training = _Training(classifier, train_step, predict_val, train=train, val=val, recipe=recipe, task=task, key=key)
    if resume is not None:
        training.restore(resume)
    return training.run(check, after_step)


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

    with one_thread():
        training = _Training(head, train_step, predict_val, train=train, val=val, recipe=recipe, task=task, key=key)
        if resume is not None:
            training.restore(resume)
        outcome = training.run(check, after_step)
    with torch.no_grad():  # fold the scaling into the layer, so that the saved model is a plain ResNet
        head.weight.div_(scale)
        head.bias.sub_(head.weight @ shift)
    return outcome


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread meanwhile: to wake others takes longer than a linear layer's few operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Training:
    """A training in progress: the module, its optimizer, and what validation has found so far.

    Args:
        trained: the module that learns.
        train_step: from the places of training images, int64 (B,), to their loss.
        predict_val: gives the logits of the validation images, (N, ``n_outputs``).
        train: the training images.
        val: the validation images.
        recipe: how to train.
        task: MedMNIST's name of the task.
        key: names the draws of the batch order.
    """

    def __init__(
        self,
        trained: nn.Module,
        train_step: Callable[[Tensor], Tensor],
        predict_val: Callable[[], Tensor],
        *,
        train: Labelled,
        val: Labelled,
        recipe: Recipe,
        task: str,
        key: tuple[int | str, ...],
    ) -> None:
        self.trained, self.train_step, self.predict_val = trained, train_step, predict_val
        self.labels, self.val_labels = train.labels, val.labels
        self.recipe, self.task, self.key = recipe, task, key
        self.optimizer = build_optimizer(
            recipe.optimizer, [trained], learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.per_epoch = len(list(batches(len(self.labels), recipe.batch_size, (*key, 0))))
        self.total_steps = recipe.epochs * self.per_epoch
        self.step = 0
        self.restored_at: int | None = None  # the step at which it was continued
        self.losses: list[Tensor] = []  # of this epoch
        self.best = (-math.inf, -math.inf)  # AUROC, -loss
        self.best_state: dict[str, Any] = {}
        self.outcome = Fit(steps=self.total_steps)

    def state(self) -> dict[str, Any]:
        """Return what to go on from; taken between a step and the validation that may follow it."""
        return {
            "step": self.step,
            "model": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "best": list(self.best),
            "best_state": self.best_state,
            "best_epoch": self.outcome.best_epoch,
            "curves": self.outcome.curves,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned.

        Raises:
            Misfit: it is another training's, or damaged.
        """
        with _restoring():
            if state["best_state"]:
                self.trained.load_state_dict(state["best_state"])  # only to see that it can be
            self.trained.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.step, self.best_state = int(state["step"]), dict(state["best_state"])
            self.best = float(state["best"][0]), float(state["best"][1])
            self.losses = [loss.to(self.labels.device) for loss in state["losses"]]
            outcome = self.outcome
            outcome.best_epoch, outcome.curves = int(state["best_epoch"]), [dict(line) for line in state["curves"]]
            epochs = len(outcome.curves)
            if not (0 <= self.step <= self.total_steps and outcome.best_epoch <= epochs <= self.recipe.epochs):
                raise ValueError(f"step {self.step} of {self.total_steps}")
            done_in_epoch = self.step - epochs * self.per_epoch
            if len(self.losses) != done_in_epoch or any(loss.dim() for loss in self.losses):
                raise ValueError("losses are not those of this epoch's steps")
        self.restored_at = self.step

    def run(self, check: Callable[[], None], after_step: AfterStep) -> Fit:
        """Train to the end, and leave the module as it was at its best epoch."""
        for epoch in range(max(0, self.step - 1) // self.per_epoch + 1, self.recipe.epochs + 1):
            self.trained.train()
            size, again = self.recipe.batch_size, self.recipe.second_batch
            order = list(batches(len(self.labels), size, (*self.key, epoch), again=again))
            for at in order[self.step - (epoch - 1) * self.per_epoch :]:
                self.advance(at.to(self.labels.device))
                after_step(self.step, self.state)
            self.validate(epoch)
            check()
        self.trained.load_state_dict(self.best_state)
        return self.outcome

    def advance(self, at: Tensor) -> None:
        """Do one optimizer step on the training images at ``at``."""
        rate = learning_rate(
            self.step,
            peak=self.recipe.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=0,
            cosine=self.recipe.cosine,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.train_step(at)
        self.trained.zero_grad()  # optimizer.zero_grad() takes many times as long, which a linear layer would feel
        loss.backward()
        with _restoring() if self.step == self.restored_at else contextlib.nullcontext():  # what was restored is read
            self.optimizer.step()
        self.losses.append(loss.detach() * len(at))
        self.step += 1

    def validate(self, epoch: int) -> None:
        """Judge the module on the validation images after ``epoch``, and keep it if it is the best so far.

        Raises:
            CollapseError: a loss is not finite.
        """
        logits = self.predict_val()
        seen = len(self.labels) * (2 if self.recipe.second_batch else 1)
        train_loss, self.losses = float(torch.stack(self.losses).sum() / seen), []
        val_loss = float(task_loss(logits, self.val_labels, self.task))
        finite = math.isfinite(train_loss) and math.isfinite(val_loss)
        labels = self.val_labels.cpu().numpy()
        auroc = metrics.auroc(labels, probabilities(logits, self.task), self.task) if finite else math.nan
        line = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss}
        self.outcome.curves.append(line | {"val_auroc": metrics.or_none(auroc)})
        if not finite:
            raise CollapseError(
                f"downstream: the loss is {train_loss} in training and {val_loss} in validation at epoch {epoch}; "
                "lower the protocol's learning_rate",
                self.outcome.curves,
            )
        score = (-math.inf if math.isnan(auroc) else auroc, -val_loss)
        if score > self.best or not self.best_state or self.recipe.epoch == "last":
            self.best, self.outcome.best_epoch = score, epoch
            self.best_state = copy.deepcopy(self.trained.state_dict())


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
