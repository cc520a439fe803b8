"""What the nearest neighbours say of an encoder on a test split, as benchmarks of self-supervision report it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from app.jobs.run import Run, load_labelled
from app.models.trained import find_job, load_encoder
from app.runtime import choose_device, prepare
from app.science import metrics
from app.science.finetuning import Labelled, encode
from app.science.knn import knn_scores
from app.settings import Config
from app.storage import open_store

QUERIES = 1000  # at a time: their similarities to all training images lie in memory


def vote(config: Config, *, model: str, dataset: str, store: str) -> Iterator[str]:
    """Let training and validation images vote on the test images of a set; yield the lines to print.

    Votes are counted as the monitor of pretraining counts them, by ``pretrain.knn_neighbours`` and ``knn_temperature``.

    Args:
        config: these two settings, the images' size, and where data are.
        model: a pretraining, or a trained classifier.
        dataset: a labelled set.
        store: the URI of the store, where ``model`` does not say it.
    """
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    encoder, _ = load_encoder(*find_job(model, store))
    data = load_labelled(Run(open_store(store), "", config), dataset)
    seen, asked = (
        [Labelled.of(split.images, split.labels, device) for split in splits]
        for splits in ((data.train, data.val), (data.test,))
    )
    encoder = encoder.to(device)
    bank, queries = (torch.cat([encode(encoder, part.images) for part in parts]) for parts in (seen, asked))
    labels = torch.cat([part.labels for part in seen])
    scores = [
        knn_scores(
            bank,
            labels if data.task == metrics.MULTI_LABEL else labels[:, 0],
            some,
            n_classes=data.n_classes,
            neighbours=config.pretrain.knn_neighbours,
            temperature=config.pretrain.knn_temperature,
        )
        for some in queries.split(QUERIES)
    ]
    found = metrics.evaluate(data.test.labels, np.concatenate(scores), data.task)
    yield f"{data.title}, {config.pretrain.knn_neighbours} neighbours of {len(bank)} for {len(queries)} test images"
    yield f"k-NN accuracy {found['accuracy']:.4f}, AUROC {found['auroc']:.4f}"
