"""How the convolutions of a job are done on this machine: measured when it begins, and kept for the next one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.machine import cache_folder
from app.runtime import cpu_flags, cpu_model
from app.science.convolutions import Table, names_of, table_of
from app.science.kernels import measured_table, plain_table, shapes_of

VERSION = 2  # of what is measured and how; another one forgets what was kept
WORTHWHILE = 100  # steps of a job that a measurement pays for


def choose_kernels(
    network: nn.Module, *, channels: int, size: int, batch: int, precision: str, device: str, wanted: str, steps: int
) -> Table:
    """Return how each convolution of a network is done; what is missing goes by ``default_ways``.

    On one machine equal jobs get equal answers: what the first of them measured is kept in the user's cache. Where that
    cannot be written each job measures anew, and two may differ in rounding.

    Args:
        network: takes images (N, ``channels``, ``size``, ``size``).
        channels: of the images.
        size: height and width, in pixels.
        batch: images of a training step.
        precision: ``float32`` or ``bfloat16``.
        device: ``cpu``, or another one, which has no choice.
        wanted: ``auto``, or ``plain``: torch's own way, where it is right.
        steps: of the job; a short one is not worth a measurement.
    """
    if device != "cpu" or (wanted == "auto" and steps < WORTHWHILE):
        return {}
    shapes = shapes_of(network, torch.zeros(2, channels, size, size), precision)
    if wanted == "plain":
        return plain_table(shapes)
    about = {
        "version": VERSION,
        "cpu": [cpu_model(), *cpu_flags()],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": batch,
        "shapes": [str(shape) for shape in shapes],
    }
    folder = cache_folder("kernels")
    file = folder / f"{sha256(json.dumps(about).encode()).hexdigest()[:16]}.json" if folder else None
    if file is not None and (kept := _read(file, about)) is not None:
        return kept
    table = measured_table(shapes, batch)
    return table if file is None else _keep(file, about, table)


def _read(file: Path, about: dict[str, Any]) -> Table | None:
    """Return the table that is kept in ``file``; None if there is none that can be used."""
    try:
        found = json.loads(file.read_bytes())
        table = table_of(found["ways"])
        return table if found["about"] == about and list(table) == about["shapes"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # missing, or of another hand
        return None


def _keep(file: Path, about: dict[str, Any], table: Table) -> Table:
    """Keep ``table`` unless another job was first, and return the one that is kept."""
    text = json.dumps({"about": about, "ways": names_of(table)}, indent=1)
    whole = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):  # a cache that cannot be written is done without
        try:
            whole.write_text(text)
            try:
                _publish(whole, file)
            except FileExistsError:
                if (first := _read(file, about)) is not None:
                    return first
                whole.replace(file)
        finally:
            whole.unlink(missing_ok=True)
    return table


def _publish(whole: Path, file: Path) -> None:
    """Give ``file`` the content of ``whole``.

    Raises:
        FileExistsError: there is one.
    """
    try:
        os.link(whole, file)
    except FileExistsError:
        raise
    except OSError:  # exFAT, SMB and many a FUSE have no hard links; who reads a half-written file measures anew
        with file.open("x") as out:
            out.write(whole.read_text())
