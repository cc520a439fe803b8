"""What the report shows of a data set: some images, the labels, patients and subgroups of test and validation."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.data import Dataset, Unlabelled
from app.jobs import keys
from app.jobs.records import write_json
from app.jobs.run import Run, planned_data

SAMPLE_COLUMNS, SAMPLE_SCALE = 12, 3


def show_data(run: Run, data: Dataset | Unlabelled) -> None:
    """Publish what the report shows of a data set."""
    run.store.write(keys.sample_sheet(run.run_id, data.name), sample_sheet(data))
    if isinstance(data, Dataset):
        for key, split in ((keys.test_labels, data.test), (keys.val_labels, data.val)):
            known: dict[str, Any] = {"labels": split.labels.tolist()}
            if (patients := split.patient_numbers) is not None:
                known["patients"] = patients.tolist()
            if split.subgroups:
                known["subgroups"] = {name: list(groups) for name, groups in split.subgroups.items()}
            run.store.write(key(run.run_id, data.name), json.dumps(known).encode())


def join_data(run: Run, data: Dataset | Unlabelled, role: str) -> None:
    """Let a data set of a job that was run by hand join the run's report, unless the plan names it.

    Args:
        run: the run.
        data: what the job has read.
        role: ``downstream`` or ``pretrain``.
    """
    if planned_data(run, data.name) is None and not run.store.exists(
        key := keys.joined_data(run.run_id, data.name, role)
    ):
        show_data(run, data)
        write_json(run.store, key, data.describe(role))


def sample_sheet(data: Dataset | Unlabelled) -> bytes:
    """Draw sample images as a PNG: one row per class, or three rows of unlabelled images."""
    if isinstance(data, Dataset):
        images, labels = data.train.images, data.train.labels
        rows = []
        for c in range(data.n_classes):
            members = labels[:, c] == 1 if labels.shape[1] > 1 else labels[:, 0] == c
            rows.append(images[np.flatnonzero(members)[:SAMPLE_COLUMNS]])
    else:
        picks = np.linspace(0, len(data) - 1, 3 * SAMPLE_COLUMNS).astype(int)
        rows = [data.images[part] for part in np.split(picks, 3)]
    sheet = np.vstack([_strip(row, data.size, data.channels) for row in rows])
    scale = max(1, SAMPLE_SCALE * 28 // data.size)
    picture = Image.fromarray(sheet.squeeze()).resize(
        (sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _strip(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    strip = np.full((size + 1, SAMPLE_COLUMNS * (size + 1), channels), 255, np.uint8)
    for column, image in enumerate(images):
        left = column * (size + 1)
        strip[:size, left : left + size] = image.reshape(size, size, channels)
    return strip
