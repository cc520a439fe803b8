"""What watches a pretraining: k-NN on a labelled set, without a part in the training."""

from __future__ import annotations

import copy
import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from app.data import Dataset
from app.science import metrics
from app.science.byol import rank_me
from app.science.finetuning import Labelled, encode
from app.science.generators import epoch_order
from app.science.knn import knn_scores
from app.science.networks import Encoder
from app.settings import Pretrain

MONITOR_IMAGES = 5000  # of the labelled training split, enough for a steady k-NN


class Monitor:
    """Watches the encoder by k-NN on a labelled set: its training split votes on its validation split.

    On a GPU it looks at a copy, on a stream and a thread of its own, while training goes on.
    """

    def __init__(self, dataset: Dataset, settings: Pretrain, device: str) -> None:
        self.dataset, self.settings = dataset, settings
        train, val = dataset.train, dataset.val
        some = np.sort(epoch_order(len(train), "monitor").numpy()[:MONITOR_IMAGES])
        self.train = Labelled.of(train.images[some], train.labels[some], device)
        self.val = Labelled.of(val.images, val.labels, device)
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
        """Return accuracy and AUROC of the k-NN, and RankMe of the validation features."""
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
            "knn_auroc": None if math.isnan(found["auroc"]) else found["auroc"],
            "knn_dataset": self.dataset.name,
            "rank_me": rank_me(queries),
        }
