"""What watches a pretraining: k-NN and few shots on a labelled set, without a part in the training."""

from __future__ import annotations

import copy
import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.data import Dataset, few_shot_draw
from app.errors import UsageError
from app.science import metrics
from app.science.byol import rank_me
from app.science.finetuning import Labelled, encode, n_outputs
from app.science.generators import epoch_order
from app.science.heads import fit_heads, many_aurocs
from app.science.knn import knn_scores
from app.science.networks import Encoder
from app.settings import FewShotRecipe, Pretrain

MONITOR_IMAGES = 5000  # of the labelled training split, enough for a steady k-NN
_NO_IMAGES = torch.empty(0, dtype=torch.uint8)  # where there are features


class Monitor:
    """Watches the encoder on a labelled set: what its training split says of its validation split.

    k-NN asks all training images, of which a network without any pretraining makes much, too; a linear layer that has
    seen k images of each class tells encoders apart where k-NN no longer does.

    On a GPU it looks at a copy, on a stream and a thread of its own, while training goes on.

    Args:
        dataset: the labelled set; its test split is not read.
        settings: of the k-NN.
        few: with how many images, and how, the linear layers are trained: as few-shot (frozen) does, but for the epoch,
            which is the last.
        device: where the encoder is.
    """

    def __init__(self, dataset: Dataset, settings: Pretrain, few: FewShotRecipe, device: str) -> None:
        self.dataset, self.settings = dataset, settings
        self.few = few.model_copy(update={"epoch": "last"})  # the best would be chosen by the images that judge it
        train, val = dataset.train, dataset.val
        some = np.sort(epoch_order(len(train), "monitor").numpy()[:MONITOR_IMAGES])
        self.train = Labelled.of(train.images[some], train.labels[some], device)
        self.val = Labelled.of(val.images, val.labels, device)
        self.draws = _draws(dataset, train.labels[some], few)
        self._aside = (ThreadPoolExecutor(1, "monitor"), torch.cuda.Stream()) if device == "cuda" else None
        self._copy: Encoder | None = None

    def look(self, encoder: Encoder) -> Future[dict[str, Any]]:
        """Begin to measure ``encoder`` as it is now; one look at a time."""
        if self._aside is None:
            seen: Future[dict[str, Any]] = Future()
            seen.set_result(self.measure(encoder))
            return seen
        pool, stream = self._aside
        if self._copy is None:
            self._copy = copy.deepcopy(encoder)
        self._copy.load_state_dict(encoder.state_dict())
        stream.wait_stream(torch.cuda.current_stream())

        def measure(copied: Encoder) -> dict[str, Any]:
            with torch.cuda.stream(stream):
                return self.measure(copied)

        return pool.submit(measure, self._copy)

    def measure(self, encoder: Encoder) -> dict[str, Any]:
        """Return accuracy and AUROC of the k-NN, AUROC of few shots, and RankMe of the validation features."""
        bank, queries = encode(encoder, self.train.images), encode(encoder, self.val.images)
        multi_label = self.dataset.task == metrics.MULTI_LABEL
        scores = knn_scores(
            bank,
            self.train.labels if multi_label else self.train.labels[:, 0],
            queries,
            n_classes=self.dataset.n_classes,
            neighbours=self.settings.knn_neighbours,
            temperature=self.settings.knn_temperature,
        )
        found = metrics.evaluate(self.val.labels.cpu().numpy(), scores, self.dataset.task)
        return {
            "knn_accuracy": found["accuracy"],
            "knn_auroc": metrics.or_none(found["auroc"]),
            "knn_dataset": self.dataset.name,
            "few_shot_auroc": metrics.or_none(self._few_shot(bank.cpu(), queries.cpu())),
            "rank_me": rank_me(queries),
        }

    def _few_shot(self, bank: torch.Tensor, queries: torch.Tensor) -> float:
        """Return the mean AUROC of a linear layer over the draws, NaN if there is none; a GPU would not hasten it."""
        if not self.draws or not bool(bank.isfinite().all()):  # of a network that diverges, which the loss will tell
            return math.nan
        task, labels = self.dataset.task, self.train.labels.cpu()
        val = Labelled(_NO_IMAGES, self.val.labels.cpu(), queries)
        train = [Labelled(_NO_IMAGES, labels[at], bank[at]) for at in map(torch.from_numpy, self.draws)]
        areas: list[float] = []
        for size in {len(each.labels) for each in train}:  # several where an image can have more labels than one
            some = [each for each in train if len(each.labels) == size]
            heads = [_blank(bank.shape[1], n_outputs(task, self.dataset.n_classes)) for _ in some]
            keys = [("monitor", draw) for draw in range(len(some))]
            found = fit_heads(heads, some, val, recipe=self.few, task=task, keys=keys)
            areas += many_aurocs(val.labels.numpy(), np.stack(found.scores(queries, task)), task).tolist()
        return float(np.mean(areas))


def _draws(dataset: Dataset, labels: NDArray[np.int64], few: FewShotRecipe) -> list[NDArray[np.int64]]:
    """Return which of the training images each draw has; none if a class has too few of them."""
    names = dataset.class_names
    try:
        return [
            few_shot_draw(labels, few.k, 0, draw, class_names=names, dataset=dataset.name) for draw in range(few.draws)
        ]
    except UsageError:  # the set need not be one that the study judges by few shots
        return []


def _blank(features: int, outputs: int) -> nn.Linear:
    """Return a layer of zeros: what is seen must not depend on what was drawn before."""
    layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
