"""Numbers of labels: which points a label curve has, and which images each of them sees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.data import Dataset, class_members, few_shot_draw, stratified_subset
from app.settings import Budget, FewShotRecipe

SHARE_STREAM = 1000  # apart from the streams of the splits' subsets


@dataclass(frozen=True)
class Trial:
    """One training: so many labels (``budget``: k per class, or a share), which draw, and the images' places."""

    budget: Budget
    draw: int
    images: NDArray[np.int64]


def share_of(budget: Budget) -> float | None:
    """Return a budget's share of the training labels; None if it is a number per class."""
    return float(budget[:-1]) / 100 if isinstance(budget, str) else None


def budgets(recipe: FewShotRecipe, data: Dataset) -> tuple[list[Budget], list[Budget]]:
    """Divide a recipe's budgets into those that the training split has the labels for, and those that it has not."""
    scarcest = min(len(members) for members in class_members(data.train.labels, data.n_classes))
    fits: list[Budget] = []
    lacking: list[Budget] = []
    for budget in recipe.curve or ():
        (fits if isinstance(budget, str) or budget <= scarcest else lacking).append(budget)
    return fits, lacking


def trials(recipe: FewShotRecipe, data: Dataset, seed: int) -> Iterator[Trial]:
    """List the trainings of a curve but for ``recipe.k``, which the job does anyway; all labels have one draw."""
    for budget in budgets(recipe, data)[0]:
        if budget == recipe.k:
            continue
        share = share_of(budget)
        for draw in range(recipe.draws if share != 1 else 1):
            yield Trial(budget, draw, _images(data, budget, share, seed, draw))


def _images(data: Dataset, budget: Budget, share: float | None, seed: int, draw: int) -> NDArray[np.int64]:
    labels = data.train.labels
    if share is None:
        return few_shot_draw(labels, int(budget), seed, draw, class_names=data.class_names, dataset=data.name)
    count = max(math.ceil(share * len(labels)), data.n_classes)
    return stratified_subset(labels, count, seed=seed, stream=SHARE_STREAM + draw)
