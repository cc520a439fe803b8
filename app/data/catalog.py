"""What is known about the twelve 2D MedMNIST sets and CIFAR-10, and the words for tasks."""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from app.data import cifar10
from app.errors import UsageError

TASKS = ("binary-class", "multi-class", "multi-label, binary-class", "ordinal-regression")
SIZES = (28, 32, 64, 128, 224)

_SHORT_TASKS = {"binary": TASKS[0], "multi-class": TASKS[1], "multi-label": TASKS[2], "ordinal": TASKS[3]}


@dataclass(frozen=True)
class Known:
    """A published set.

    ``labels`` maps "0", "1", … to class names; ``channels`` is 1 or 3; ``urls`` and ``md5`` are keyed by
    image size in pixels: those of ``SIZES`` that it is published in.
    """

    name: str
    title: str
    task: str
    labels: Mapping[str, str]
    channels: int
    licence: str
    modality: str
    urls: Mapping[int, str]
    md5: Mapping[int, str]


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(resources.files("app.data").joinpath("medmnist.yaml").read_text("utf-8"))
    return table


def file_names(name: str, size: int) -> tuple[str, ...]:
    """Names that the file of a data set may have: MedMNIST's own first, the one that says the size in any case last."""
    explicit = f"{name}_{size}.npz"
    return (f"{name}.npz", explicit) if size == 28 else (explicit,)


@functools.cache
def catalog() -> Mapping[str, Known]:
    """Return the twelve 2D MedMNIST sets by flag (``pathmnist`` … ``organsmnist``), and ``cifar10``."""
    sets: dict[str, dict[str, Any]] = _table()["sets"] | {"cifar10": cifar10.ENTRY}
    return {name: Known(name=name, **fields) for name, fields in sets.items()}


def known(name: str) -> Known:
    """Return the published set called ``name``; raise UsageError that names the nearest one."""
    sets = catalog()
    if name in sets:
        return sets[name]
    if name in _table()["three_dimensional"]:
        raise UsageError(f"{name} is a 3D set; choose one of the 2D sets: {', '.join(sets)}")
    near = difflib.get_close_matches(name, sets, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the 2D sets are {', '.join(sets)}"
    raise UsageError(f"unknown MedMNIST dataset '{name}'; {hint}")


def base_of(name: str) -> tuple[Known | None, str]:
    """Split ``dermamnist_reconstructed`` into (the published dermamnist, "reconstructed").

    The suffix is "" for a published name; an unknown name gives (None, ""). A 3D set raises UsageError.
    """
    base, _, suffix = name.partition("_")
    if base in _table()["three_dimensional"]:
        known(base)
    return (catalog()[base], suffix) if base in catalog() else (None, "")


def parse_task(text: str) -> str:
    """Return the full task name for ``text``, also from its short form (binary, ordinal, …)."""
    task = _SHORT_TASKS.get(text, text)
    if task not in TASKS:
        raise UsageError(f"unknown task '{text}'; choose one of {', '.join(_SHORT_TASKS)}")
    return task


def title_of(name: str, *, synthetic: bool) -> str:
    """Return the name to print: "DermaMNIST", "DermaMNIST (reconstructed)", "DermaMNIST (SYNTHETIC)"."""
    base, suffix = base_of(name)
    title = base.title if base else name
    notes = [note for note in (suffix.replace("_", " "), "SYNTHETIC" if synthetic else "") if note]
    return f"{title} ({', '.join(notes)})" if notes else title


def licence_of(name: str, *, synthetic: bool) -> str:
    """Return the licence of the set that ``name`` is or derives from, or "not stated"."""
    base, _ = base_of(name)
    if synthetic:
        return "none needed (generated)"
    return base.licence if base else "not stated"


def modality_of(name: str) -> str:
    """Return the imaging modality, or "not stated"."""
    base, _ = base_of(name)
    return base.modality if base else "not stated"
