"""What came of a downstream training: its scores, metrics, threshold and model, and how they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data import Dataset
from app.science import metrics
from app.science.finetuning import Fit, Labelled, predict, probabilities
from app.science.networks import Classifier
from app.science.thresholds import choose_thresholds


@dataclass
class Outcome:
    """A trained classifier, judged.

    Attributes:
        fit: the way there.
        scores: of the test images, float64, (N, C).
        test: metrics on the test split.
        validation: metrics on the validation split.
        model: weights, off the device, of the linear layer alone if the encoder is frozen; None once another draw is
            better.
        thresholds: chosen on the validation split; None in a state older than them.
        val_scores: of the validation images, (N, C); None in a state older than them.
    """

    fit: Fit
    scores: NDArray[np.float64]
    test: dict[str, float]
    validation: dict[str, float]
    model: dict[str, Tensor] | None
    thresholds: list[float] | None
    val_scores: NDArray[np.float64] | None = None

    @classmethod
    def judge(
        cls, classifier: Classifier, outcome: Fit, data: Dataset, val: Labelled, test: Labelled, *, frozen: bool
    ) -> Outcome:
        """Judge a classifier on both splits: the one time that it reads the test split."""
        scores = probabilities(predict(classifier, test), data.task)
        val_scores = probabilities(predict(classifier, val), data.task)
        return cls(
            fit=outcome,
            scores=scores,
            test=metrics.evaluate(data.test.labels, scores, data.task),
            validation=metrics.evaluate(data.val.labels, val_scores, data.task),
            model={
                name: value.cpu()
                for name, value in classifier.plain_state().items()
                if not frozen or name.startswith("fc.")
            },
            thresholds=choose_thresholds(data.val.labels, val_scores, data.task),
            val_scores=val_scores,
        )

    @property
    def choice(self) -> tuple[float, float]:
        """What the draws are compared by: validation AUROC, then the lower validation loss."""
        best = self.fit.curves[self.fit.best_epoch - 1]
        return (-1.0 if best["val_auroc"] is None else best["val_auroc"], -best["val_loss"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "fit": {"best_epoch": self.fit.best_epoch, "curves": self.fit.curves, "steps": self.fit.steps},
            "scores": torch.from_numpy(self.scores),
            "test": {name: float(value) for name, value in self.test.items()},
            "validation": {name: float(value) for name, value in self.validation.items()},
            "model": self.model,
            "thresholds": self.thresholds,
            "val_scores": None if self.val_scores is None else torch.from_numpy(self.val_scores),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Outcome:
        """Return the outcome of which this is the ``state``."""
        fit, scores = Fit(**state["fit"]), state["scores"].numpy()
        if scores.ndim != 2 or not 0 < fit.best_epoch <= len(fit.curves):
            raise ValueError("scores or curves of a draw are not of its shape")
        return cls(
            fit=Fit(fit.best_epoch, [dict(line) for line in fit.curves], int(fit.steps)),
            scores=scores,
            test={name: float(value) for name, value in state["test"].items()},
            validation={name: float(value) for name, value in state["validation"].items()},
            model=state["model"],
            val_scores=None if state.get("val_scores") is None else state["val_scores"].numpy(),
            thresholds=None if (chosen := state.get("thresholds")) is None else [float(each) for each in chosen],
        )


def best_of(outcomes: list[Outcome]) -> int:
    """Return the number of the draw that validates best; of equals, the first."""
    return max(range(len(outcomes)), key=lambda draw: outcomes[draw].choice)


def keep_best_model(outcomes: list[Outcome]) -> None:
    """Forget the weights of all but the best: no more will be asked of them."""
    best = best_of(outcomes)
    for draw, outcome in enumerate(outcomes):
        if draw != best:
            outcome.model = None


def predictions_csv(scores: NDArray[np.float64]) -> bytes:
    """Write scores (N, C) as MedMNIST's Evaluator reads them: index and one column per class, no header."""
    rows = (",".join([str(index), *(repr(float(s)) for s in row)]) for index, row in enumerate(scores))
    return "".join(f"{row}\n" for row in rows).encode()


def curves_jsonl(draws: Sequence[Sequence[Mapping[str, Any]]]) -> bytes:
    """Write the curves of each draw as JSON lines; what is not finite, which JSON cannot say, as null."""

    def plain(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    lines = [
        {"draw": draw} | {name: plain(value) for name, value in line.items()}
        for draw, curves in enumerate(draws)
        for line in curves
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def mean_of(values: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the draws."""
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}
