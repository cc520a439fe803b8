"""A picture of the views: what a method does to the images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.jobs.run import Run, load_pretraining
from app.science.augment import apply, draw, visible
from app.science.generators import generator
from app.science.networks import to_float
from app.settings import Method
from app.storage import FolderStore

ROWS, VIEWS, SCALE, GAP = 8, 10, 3, 2


def show_views(run: Run, *, method: Method, seed: int, out: Path) -> Path:
    """Save a grid as PNG: ``ROWS`` images, the original and ``VIEWS`` views of each.

    Raises:
        UsageError: the file cannot be written.
    """
    data = load_pretraining(run)
    at = np.linspace(0, len(data) - 1, ROWS).astype(int)
    images = to_float(torch.from_numpy(np.ascontiguousarray(data.images[at])))
    augmentation = run.config.augmentation(method)
    columns = []
    for view in range(VIEWS):
        parameters = draw(augmentation, len(images), data.size, generator("picture", seed, view))
        columns.append(visible(augmentation, apply(augmentation, images, parameters)))
    columns.insert(0, images.expand_as(columns[0]))
    grid = torch.nn.functional.pad(torch.stack(columns, 1), (0, GAP, 0, GAP), value=1.0)  # (row, column, C, H, W)
    rows, count, channels, height, width = grid.shape
    sheet = grid.permute(0, 3, 1, 4, 2).reshape(rows * height, count * width, channels)
    pixels = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels.squeeze())
    scale = max(1, SCALE * 28 // data.size)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    FolderStore(out.parent).write(out.name, buffer.getvalue())
    return out
