"""The label curve of a few-shot job: more trainings, on fewer and more labels, each with its draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import nn

from app.data import Dataset
from app.jobs.records import CurvePoint
from app.science import metrics
from app.science.finetuning import Labelled, fit, predict, probabilities
from app.science.heads import fit_heads
from app.science.metrics import Floats
from app.science.networks import Classifier, Encoder
from app.science.protocols import Protocol
from app.settings import Budget, FewShotRecipe
from app.stages.budgets import Trial, trials


@dataclass(frozen=True)
class Point:
    """A trial's outcome; ``scores`` of the test images (N, C)."""

    budget: Budget
    draw: int
    labels: int
    best_epoch: int
    scores: Floats


class LabelCurve:
    """The trainings of a curve at work: those that are done, in the order of ``trials``.

    Args:
        data: the labelled set.
        recipe: how to train, and with how many labels.
        kind: whether the encoder is frozen: then it sees each image once, and all draws are trained side by side.
        seed: names the draws.
        build: makes the classifier of a draw, before training, on the device.
        head: makes its linear layer alone, given the encoder.
    """

    def __init__(
        self,
        data: Dataset,
        recipe: FewShotRecipe,
        kind: Protocol,
        seed: int,
        build: Callable[[int], Classifier],
        head: Callable[[Encoder, int], nn.Linear],
    ) -> None:
        self.data, self.recipe, self.kind, self.seed, self.build, self.head = data, recipe, kind, seed, build, head
        self.trials = list(trials(recipe, data, seed))
        self.points: list[Point] = []
        self._pool: Labelled | None = None

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint keeps."""
        return [{"best_epoch": p.best_epoch, "scores": torch.from_numpy(p.scores)} for p in self.points]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from what ``state`` returned."""
        if len(state) > len(self.trials):
            raise ValueError("a label curve of more points than were asked for")
        self.points = [
            self._point(trial, int(kept["best_epoch"]), kept["scores"].numpy())
            for trial, kept in zip(self.trials, state, strict=False)
        ]

    def run(
        self, train: Labelled, val: Labelled, test: Labelled, *, check: Callable[[], None], done: Callable[[int], None]
    ) -> None:
        """Train and judge what is left; each trained model reads the test split once.

        Args:
            train: the training images.
            val: the validation images, with their features if the encoder is frozen.
            test: the test images, likewise.
            check: called within trainings; may raise to stop.
            done: called with the number of trials that have just been done.
        """
        left = self.trials[len(self.points) :]
        for _, group in groupby(left, key=lambda trial: (trial.budget, len(trial.images))):
            together = list(group)
            if self.kind.frozen:
                self._together(together, train, val, test, check)
            else:
                for trial in together:
                    self._alone(trial, train, val, test, check)
            done(len(together))

    def _together(
        self, group: list[Trial], train: Labelled, val: Labelled, test: Labelled, check: Callable[[], None]
    ) -> None:
        if self._pool is None:
            self._pool = train.encoded(self.encoder)
        few = [self._pool.take(trial.images) for trial in group]
        found = fit_heads(
            [self.head(self.encoder, trial.draw) for trial in group], few, val,
            recipe=self.recipe, task=self.data.task, keys=[self._key(trial) for trial in group], check=check,
        )  # fmt: skip
        assert test.features is not None, "a frozen encoder has seen the test images"
        scores = found.scores(test.features, self.data.task)
        self.points += [self._point(*one) for one in zip(group, found.best_epochs, scores, strict=True)]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder before training: what a frozen one is throughout."""
        return self.build(0).encoder

    def _alone(self, trial: Trial, train: Labelled, val: Labelled, test: Labelled, check: Callable[[], None]) -> None:
        classifier = self.build(trial.draw)
        found = fit(
            classifier, train.take(trial.images), val, protocol=self.kind, recipe=self.recipe, task=self.data.task,
            key=self._key(trial), check=check,
        )  # fmt: skip
        self.points.append(
            self._point(trial, found.best_epoch, probabilities(predict(classifier, test), self.data.task))
        )

    def _key(self, trial: Trial) -> tuple[int | str, ...]:
        return (self.data.name, self.seed, trial.draw, str(trial.budget))

    def _point(self, trial: Trial, best_epoch: int, scores: Floats) -> Point:
        return Point(trial.budget, trial.draw, len(trial.images), best_epoch, scores)

    def record(self) -> tuple[CurvePoint, ...]:
        """Return what the record says of each point."""
        truth, task = self.data.test.labels, self.data.task
        return tuple(
            CurvePoint(
                budget=str(p.budget), draw=p.draw, labels=p.labels, best_epoch=p.best_epoch,
                auroc=metrics.auroc(truth, p.scores, task),
            )
            for p in self.points
        )  # fmt: skip

    def scores_file(self) -> bytes:
        """Return the test scores of all points as safetensors: float64 (D, N, C) under each budget's name."""
        grouped = groupby(self.points, key=lambda p: str(p.budget))
        return safetensors.numpy.save(
            {budget: np.stack([p.scores for p in points]).astype(np.float64) for budget, points in grouped}
        )
