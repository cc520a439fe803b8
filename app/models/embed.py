"""Features of images by a pretrained encoder, and which images are nearest to one of them."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.data.files import atomic_write
from app.errors import UsageError, missing_extra
from app.models.inputs import Pictures
from app.science.finetuning import encode
from app.science.networks import Encoder

Features = NDArray[np.float32]
SIDE, MARGIN, LINE = 112, 6, 14  # of the sheet, in pixels


@dataclass(frozen=True)
class Embedding:
    """Features of images.

    Attributes:
        model: where the encoder is from.
        pictures: the images.
        features: float32, (N, D).
    """

    model: str
    pictures: Pictures
    features: Features


def embed_pictures(
    encoder: Encoder, pictures: Pictures, *, model: str, channels: int | None = None, device: str = "cpu"
) -> Embedding:
    """Return the features of images by an encoder in evaluation mode.

    Args:
        encoder: the encoder.
        pictures: of its size; it sees them in as many channels as it was trained on.
        model: where it is from.
        channels: that number, 1 or 3; None leaves the images as they are.
        device: where to compute.
    """
    images = torch.tensor(np.ascontiguousarray(pictures.in_channels(channels).images), device=device)
    return Embedding(model, pictures, encode(encoder.to(device), images).cpu().numpy())


def nearest(features: Features, query: Features, count: int) -> tuple[NDArray[np.int64], Features]:
    """Find the images whose features point most nearly in a query's direction.

    Args:
        features: (N, D).
        query: (D,).
        count: how many; at most N.

    Returns:
        Their places, the nearest first, and their cosine similarities.
    """

    def unit(rows: Features) -> Features:
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        scaled: Features = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
        return scaled

    similarity: Features = unit(features) @ unit(query)
    order = np.argsort(-similarity, kind="stable")[:count]
    return order, similarity[order]


# --- files


def write_features(embedding: Embedding, out: Path) -> None:
    """Write names and features as .npz, .csv or .parquet, by the suffix of ``out``.

    Raises:
        UsageError: another suffix, or pyarrow is not installed for Parquet.
    """
    content = writer_for(out)(embedding)
    with atomic_write(out) as file:
        file.write(content)


def writer_for(out: Path) -> Callable[[Embedding], bytes]:
    """Return what writes features into a file of this suffix.

    Raises:
        UsageError: nothing does, or pyarrow is not installed.
    """
    writers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    if out.suffix.lower() not in writers:
        raise UsageError(f"--out {out}: features are .npz, .csv or .parquet; give it such a name")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise missing_extra(f"--out {out}", "pyarrow", "parquet")
    return writers[out.suffix.lower()]


def _npz(embedding: Embedding) -> bytes:
    buffer = io.BytesIO()
    names = np.array(embedding.pictures.names)
    np.savez(buffer, files=names, features=embedding.features, model=np.array(embedding.model))
    return buffer.getvalue()


def _columns(embedding: Embedding) -> list[str]:
    return [f"f{index}" for index in range(embedding.features.shape[1])]


def _csv(embedding: Embedding) -> bytes:
    rows = io.StringIO()
    write = csv.writer(rows, lineterminator="\n").writerow
    write(["file", *_columns(embedding)])
    for name, row in zip(embedding.pictures.names, embedding.features, strict=True):
        write([name, *(f"{value:.7g}" for value in row)])
    return rows.getvalue().encode()


def _parquet(embedding: Embedding) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = dict(zip(_columns(embedding), embedding.features.T, strict=True))
    table = pyarrow.table({"file": embedding.pictures.names} | columns)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"model": embedding.model}), buffer)
    return buffer.getvalue()


def neighbour_sheet(queries: Embedding, among: Embedding, count: int) -> bytes:
    """Draw a row for each query, as a PNG: the image, then those nearest to it with their names and similarities."""
    cell, height = SIDE + MARGIN, SIDE + 2 * LINE + MARGIN
    count = min(count, len(among.features))
    sheet = Image.new("RGB", (MARGIN + (count + 1) * cell, MARGIN + len(queries.features) * height), "white")
    draw = ImageDraw.Draw(sheet)

    def put(image: NDArray[np.uint8], row: int, column: int, *lines: str) -> None:
        left, top = MARGIN + column * cell, MARGIN + row * height
        sheet.paste(Image.fromarray(image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        for number, line in enumerate(lines):
            plain = line.encode("ascii", "replace").decode()[-SIDE // 6 :]  # the font that Pillow brings along
            draw.text((left, top + SIDE + number * LINE), plain, fill="black")

    for row, query in enumerate(queries.features):
        put(queries.pictures.images[row], row, 0, queries.pictures.names[row], "query")
        places, similar = nearest(among.features, query, count)
        for column, (place, value) in enumerate(zip(places, similar, strict=True), 1):
            put(among.pictures.images[place], row, column, among.pictures.names[place], f"{value:.3f}")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
