"""Linear layers on the features of one frozen encoder, trained side by side: a label curve has hundreds of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from app.errors import CollapseError
from app.science import metrics
from app.science.byol import build_optimizer
from app.science.finetuning import Labelled, one_thread, probabilities, task_loss
from app.science.generators import batches
from app.science.metrics import Floats, Ints
from app.science.schedules import learning_rate
from app.settings import Recipe


@dataclass(frozen=True)
class Heads:
    """Trained layers: ``weight`` (D, C, F) and ``bias`` (D, C), for features that are not scaled."""

    weight: Tensor
    bias: Tensor
    best_epochs: list[int]

    def scores(self, features: Tensor, task: str) -> list[Floats]:
        """Scores (N, C) of each layer, as ``metrics.evaluate`` reads them, of features (N, F)."""
        logits = torch.einsum("nf,dcf->dnc", features, self.weight) + self.bias[:, None]
        return [probabilities(each, task) for each in logits]


def fit_heads(
    heads: Sequence[nn.Linear],
    train: Sequence[Labelled],
    val: Labelled,
    *,
    recipe: Recipe,
    task: str,
    keys: Sequence[tuple[int | str, ...]],
    check: Callable[[], None] = lambda: None,
) -> Heads:
    """Train D linear layers as ``finetuning.fit`` trains one of a frozen encoder: equal to it up to rounding.

    Args:
        heads: the layers as drawn; they are left as they are.
        train: what each is to learn: features and labels, as many for each.
        val: chooses the epoch of each, by AUROC, then by the lower loss.
        recipe: how to train.
        task: MedMNIST's name of the task.
        keys: name the draws of each layer's batch order.
        check: called after every epoch; may raise to stop.

    Raises:
        CollapseError: a loss is not finite.
    """
    count, outputs = len(heads), heads[0].out_features
    x, labels = torch.stack([_features(data) for data in train]), torch.stack([data.labels for data in train])
    x_val = _features(val)
    shift, scale = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
    if recipe.standardise:
        shift, scale = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
        scale = torch.where(scale > 1e-6, scale, 1.0)
        x = (x - shift) / scale
    joint = nn.Linear(x.shape[-1], count * outputs, device=x.device)  # one matrix of all, which the optimizer sees
    with torch.no_grad():
        joint.weight.copy_(torch.cat([head.weight for head in heads]))
        joint.bias.copy_(torch.cat([head.bias for head in heads]))
    weight, bias = joint.weight.view(count, outputs, -1), joint.bias.view(count, outputs)
    optimizer = build_optimizer(
        recipe.optimizer, [joint], learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rows = torch.arange(count, device=x.device)[:, None]
    best = _Best(count, val.labels.cpu().numpy(), task)
    per_epoch = len(list(batches(x.shape[1], recipe.batch_size, (*keys[0], 0))))
    with one_thread():
        for epoch in range(1, recipe.epochs + 1):
            orders = [
                list(batches(x.shape[1], recipe.batch_size, (*key, epoch), again=recipe.second_batch)) for key in keys
            ]
            for step, parts in enumerate(zip(*orders, strict=True), (epoch - 1) * per_epoch):
                at = torch.stack(parts).to(x.device)
                rate = learning_rate(
                    step, peak=recipe.learning_rate, total_steps=recipe.epochs * per_epoch, warmup_steps=0,
                    cosine=recipe.cosine,
                )  # fmt: skip
                for group in optimizer.param_groups:
                    group["lr"] = rate
                logits = torch.baddbmm(bias[:, None], x[rows, at], weight.transpose(1, 2))
                loss = sum(
                    (task_loss(*each, task) for each in zip(logits, labels[rows, at], strict=True)), torch.zeros(())
                )
                joint.zero_grad()
                loss.backward()
                optimizer.step()
            if recipe.epoch == "best" or epoch == recipe.epochs:  # the last is then the only one to be looked at
                with torch.no_grad():
                    plain, moved = _unscaled(weight, bias, shift, scale)
                    logits = torch.einsum("nf,dcf->dnc", x_val, plain) + moved[:, None]
                    best.look(epoch, logits, val.labels, plain, moved)
            check()
    return Heads(best.weight, best.bias, best.epochs)


def _features(data: Labelled) -> Tensor:
    assert data.features is not None, "encoded data have features"
    return data.features


def _unscaled(weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the scaling of the features into the layers."""
    plain = weight / scale
    return plain, bias - (plain * shift).sum(-1)


class _Best:
    """Each layer as it was at its best epoch of those that were looked at."""

    weight: Tensor
    bias: Tensor

    def __init__(self, count: int, labels: Ints, task: str) -> None:
        self.labels, self.task = labels, task
        self.choice = [(-math.inf, -math.inf)] * count
        self.epochs = [0] * count

    def look(self, epoch: int, logits: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
        if not self.epochs[0]:
            self.weight, self.bias = weight.clone(), bias.clone()
        losses = [float(task_loss(each, labels, self.task)) for each in logits]
        if not all(math.isfinite(loss) for loss in losses):
            raise CollapseError(
                f"downstream: a loss is not finite at epoch {epoch}; lower the protocol's learning_rate", []
            )
        areas = many_aurocs(self.labels, np.stack([probabilities(each, self.task) for each in logits]), self.task)
        for d, (area, loss) in enumerate(zip(areas, losses, strict=True)):
            choice = (-math.inf if math.isnan(area) else float(area), -loss)
            if choice > self.choice[d] or not self.epochs[d]:
                self.choice[d], self.epochs[d] = choice, epoch
                self.weight[d], self.bias[d] = weight[d], bias[d]


def many_aurocs(labels: Ints, scores: Floats, task: str) -> Floats:
    """``metrics.auroc`` of D sets of scores at once, from midranks: labels (N, L), scores (D, N, C) -> (D,)."""
    if task == metrics.MULTI_LABEL:
        truth: Any = labels
    elif task == metrics.BINARY:
        truth, scores = labels[:, :1], scores[:, :, 1:]
    else:
        truth = (labels[:, :1] == np.arange(scores.shape[2])).astype(np.int64)
    areas = []
    for c in range(truth.shape[1]):
        known = truth[:, c] >= 0
        positive = truth[known, c] == 1
        m, n = int(positive.sum()), int((~positive).sum())
        if m and n:
            ranks = rankdata(scores[:, known, c], axis=1)
            areas.append((ranks[:, positive].sum(1) - m * (m + 1) / 2) / (m * n))
    return np.asarray(np.mean(areas, axis=0) if areas else np.full(len(scores), math.nan))
