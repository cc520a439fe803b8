"""What a set that was imported says of itself beside MedMNIST's arrays: classes, files, patients, its source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.data.catalog import TASKS
from app.data.files import NpzReader
from app.errors import InputError

DESCRIPTION, CLASS_NAMES = "description", "class_names"
FILES, PATIENTS, SUBGROUPS = "files", "patients", "subgroups"  # behind the name of a split
SUBGROUP_NAMES = "subgroup_names"


@dataclass(frozen=True)
class Origin:
    """Where the images of a set are from.

    Attributes:
        task: one of ``TASKS``.
        classes: their names.
        files: of each image, by split.
        patients: of each image, by split; none where they are not known.
        description: what was done, plain values.
        subgroups: by split and by the name of what tells them apart, the group of each image; "" where it is not known.
    """

    task: str
    classes: list[str]
    files: dict[str, list[str]]
    patients: dict[str, list[str]] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    subgroups: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def fit(self) -> str | None:
        """How images became squares: ``pad`` or ``crop``; None if that is not known."""
        return self.description.get("fit")

    def names(self, count: int, path: Path) -> dict[str, str]:
        """Return the classes by their numbers as text.

        Raises:
            InputError: they are not ``count``, which the labels ask for.
        """
        if len(self.classes) != count:
            raise InputError(f"{path}: names {len(self.classes)} classes, but its labels have {count}; import it again")
        return {str(index): name for index, name in enumerate(self.classes)}

    def read_as(self) -> dict[str, Any]:
        """Return how its images became squares, as ``Levels`` and ``Fit`` have it: others are to be read alike."""
        reading = self.description.get("reading")
        levels = reading.get("levels") if isinstance(reading, dict) else None
        return {"fit": self.description.get("fit")} | ({"levels": levels} if levels else {})

    def say(self) -> str:
        """Say in words how the set was made: its images' fit, its patients, its source's checksum."""
        patients: dict[str, int] | None = self.description.get("patients")
        known = ", ".join(f"{count} in {split}" for split, count in patients.items()) if patients else "not known"
        shape = {"pad": "padded to squares", "crop": "cut to squares"}.get(str(self.fit), "squares")
        return f"{shape}; patients: {known}; SHA-256 of the files `{self.description.get('source_sha256')}`"

    def describe(self) -> dict[str, Any]:
        """Return what a plan says of it: nothing that names an image or a patient."""
        kept = ("source", "source_sha256", "fit", "patients")
        equal, near = (len(self.description.get(f"{kind}_across_splits", [])) for kind in ("equal", "near"))
        return {name: self.description[name] for name in kept if self.description.get(name)} | {
            "equal_across_splits": equal, "near_across_splits": near,
        }  # fmt: skip


def read_origin(npz: NpzReader, lengths: dict[str, int]) -> Origin | None:
    """Return what an archive says of itself; None if it was not imported.

    Args:
        npz: the archive.
        lengths: images by split.

    Raises:
        InputError: it contradicts itself.
    """
    if DESCRIPTION not in npz.keys or CLASS_NAMES not in npz.keys:
        return None
    try:
        description = json.loads(_words(npz, DESCRIPTION)[0])
        task = description["task"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(f"{npz.path}: its description is damaged; import it again") from error
    if task not in TASKS:
        raise InputError(f"{npz.path}: its description names no task that is known; import it again")
    columns: dict[str, dict[str, list[str]]] = {FILES: {}, PATIENTS: {}}
    for kind, values in columns.items():
        for split, length in lengths.items():
            if (key := f"{split}_{kind}") in npz.keys:
                values[split] = _words(npz, key)
                if len(values[split]) != length:
                    raise InputError(
                        f"{npz.path}: {key} names {len(values[split])} of {length} images; import it again"
                    )
    groups = {split: _subgroups(npz, split, length) for split, length in lengths.items()}
    return Origin(task, _words(npz, CLASS_NAMES), columns[FILES], columns[PATIENTS], description, groups)


def _subgroups(npz: NpzReader, split: str, length: int) -> dict[str, tuple[str, ...]]:
    key = f"{split}_{SUBGROUPS}"
    if key not in npz.keys or SUBGROUP_NAMES not in npz.keys:
        return {}
    names, cells = _words(npz, SUBGROUP_NAMES), _words(npz, key)
    if len(cells) != length * len(names):
        raise InputError(
            f"{npz.path}: {key} holds {len(cells)} groups, for {len(names)} of each of {length} images; import it again"
        )
    return {name: tuple(cells[place :: len(names)]) for place, name in enumerate(names)}


def _words(npz: NpzReader, key: str) -> list[str]:
    if npz.header(key).dtype.kind != "U":
        raise InputError(f"{npz.path}: {key} holds no text; import it again")
    return [str(word) for word in npz.read(key).reshape(-1)]
