"""Pictures that a downstream job leaves for the report: its most confident errors, and how its features lie."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data import Dataset
from app.jobs.records import ConfidentError
from app.science.clinical import confident_errors
from app.science.metrics import MULTI_LABEL
from app.science.statistics import Floats

MOST_ERRORS = 8
SIDE = 84  # least pixels of an image's side on a sheet


def errors_of(data: Dataset, scores: Floats) -> tuple[ConfidentError, ...]:
    """Return the test images that are wrong and most sure of it, ``MOST_ERRORS`` at most; none of multi-label sets."""
    if data.task == MULTI_LABEL:
        return ()
    truth = data.test.labels[:, 0]
    return tuple(
        ConfidentError(
            image=int(i), truth=int(truth[i]), predicted=int(scores[i].argmax()), probability=float(scores[i].max())
        )
        for i in confident_errors(truth, scores, MOST_ERRORS)
    )


def sheet(data: Dataset, places: Sequence[int]) -> bytes:
    """Draw test images beside each other as a PNG, enlarged by whole factors, a white column between two."""
    times = -(-SIDE // data.size)
    parts: list[NDArray[np.uint8]] = []
    for place in places:
        image = np.asarray(data.test.images[place]).reshape(data.size, data.size, data.channels)
        image = image.repeat(times, axis=0).repeat(times, axis=1)
        parts += [image, np.full((len(image), times, data.channels), 255, np.uint8)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts[:-1], axis=1).squeeze()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def embedding_csv(features: NDArray[np.float32]) -> bytes:
    """Write the first two principal components (scikit-learn's PCA) of features (N, D): a line ``x,y`` for each."""
    from sklearn.decomposition import PCA

    places = PCA(2, svd_solver="full").fit_transform(features.astype(np.float64))
    return "".join(f"{x:.5g},{y:.5g}\n" for x, y in places).encode()
