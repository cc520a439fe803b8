"""A labelled set made of a user's own images: MedMNIST's layout, and what it lacks, in one .npz."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.datasets import SPLITS
from app.data.files import Images, atomic_write
from app.data.origin import CLASS_NAMES, DESCRIPTION, FILES, PATIENTS, SUBGROUP_NAMES, SUBGROUPS
from app.data.own.duplicates import equal_groups, near_pairs
from app.data.own.labels import MULTI_LABEL, Labels, LabelSource, check_patients, find_labels, in_order
from app.data.own.splits import check_splits, draw_splits, parse_shares
from app.data.reading import Counted, ReadingSummary, ReadOptions, Squares, find_images, left_out, uncounted
from app.errors import UsageError
from app.machine import as_text

LISTED = 5  # pairs of equal or similar images that a line names


@dataclass(frozen=True)
class Import:
    """A set that was made.

    Attributes:
        counts: images by split and class (of several labels: images that have it).
        classes: their names.
        patients: how many by split; None if none is known.
        unknown: of how many images the patient is not known, where that of others is.
        reading: what was done with the folder's files.
        beside: images or rows that are not used, by reason.
        equal: pairs of images in different splits whose pixels are equal, by name.
        near: likewise, of nearly the same pixels.
        size: side of the squares in pixels.
        subgroups: test images by group ("" is not known), by the name of what tells them apart.
    """

    counts: dict[str, list[int]]
    images: dict[str, int]
    classes: list[str]
    task: str
    patients: dict[str, int] | None
    unknown: int
    reading: ReadingSummary
    beside: Counter[str]
    equal: list[tuple[str, str]]
    near: list[tuple[str, str]]
    size: int
    subgroups: dict[str, Counter[str]]

    def lines(self) -> list[str]:
        """Say what was made, what it holds, and what may be wrong with it."""
        said = [self.reading.line(), self.reading.plan(self.size)]
        if self.beside:
            said.append(left_out(self.beside))
        for split in SPLITS:
            per_class = ", ".join(
                f"{count} {name}" for count, name in zip(self.counts[split], self.classes, strict=True)
            )
            of = f" of {self.patients[split]} patients" if self.patients else ""
            said.append(f"{split}: {self.images[split]} images{of}: {per_class}")
        for name, groups in self.subgroups.items():
            counted = ", ".join(f"{groups[group]} {group or 'not known'}" for group in in_order(groups))
            said.append(f"test images by {name}: {counted}")
        if self.patients is None:
            said.append(
                "WARNING: no patients are known, so that one may be in several splits, and results be too good; give "
                "--patient-regex or --patient-column"
            )
        if self.unknown:
            said.append(
                f"WARNING: the patient is not known of {self.unknown} images: each counts as its own, so that "
                "a patient may be in several splits; give --patient-regex or --patient-column"
            )
        for pairs, kind in ((self.equal, "equal"), (self.near, "nearly equal")):
            if pairs:
                named = ", ".join(f"{one} = {other}" for one, other in pairs[:LISTED])
                more = f" and {len(pairs) - LISTED} more pairs" if len(pairs) > LISTED else ""
                said.append(f"WARNING: {kind} images are in different splits: {named}{more}")
        return said


def import_images(
    folder: Path,
    out: Path,
    *,
    size: int,
    labels: LabelSource,
    split: str | None = None,
    seed: int = 0,
    options: ReadOptions | None = None,
    progress: Counted = uncounted,
) -> Import:
    """Read labelled images, split them by patient, and write them as one .npz.

    Its arrays are MedMNIST's ``<split>_images`` and ``<split>_labels``, and ``class_names``, ``<split>_files``,
    ``<split>_patients`` (mere numbers where they are from DICOM files, or names are not to be told), ``subgroup_names``
    (G,) and ``<split>_subgroups`` (N, G) where they are asked for, "" where one is not known, and ``description``,
    JSON, with the task, the source's checksum and what was done.

    Args:
        folder: of the images.
        out: the file to write.
        size: side of the squares in pixels.
        labels: where labels, patients and splits are written.
        split: per cent of train, val and test, where the source does not say; 70/10/20 by default.
        seed: names the draw of the splits.
        options: what the user decides of reading images.
        progress: told how many of how many files are read.

    Raises:
        InputError: images, labels or splits that are missing or contradict each other.
        UsageError: options that do not fit.
    """
    options = options or ReadOptions()
    if out.suffix != ".npz":
        raise UsageError(f"{out}: has to end in .npz")
    found = find_images(folder, anonymise=options.anonymise)
    path_of = {file.relative_to(folder).as_posix(): file for file in found.files}
    known = find_labels(folder, list(path_of), labels, options)
    if known.splits is not None and split is not None:
        raise UsageError("--split: the splits are given; leave one of the two out")
    squares = Squares(folder, replace(found, files=[path_of[name] for name in known.names]), size, options, progress)
    known = _those_read(known, [seen.name for seen in squares.seen], options)
    images = squares.array()
    patients = _numbered([seen.patient for seen in squares.seen]) if known.patients is None else [*known.patients]
    names = [seen.name for seen in squares.seen]
    if known.patients is None and known.splits is not None:
        check_patients(patients, known.splits, names)
    members = known.values == 1 if known.task == MULTI_LABEL else known.values == np.arange(len(known.classes))
    equal = equal_groups(images)
    splits = known.splits
    if splits is None:
        splits = draw_splits(_groups(patients, equal), members, parse_shares(split or "70/10/20"), seed=seed)
    check_splits(splits, members, known.classes)
    across_equal = [
        (names[one], names[other]) for group in equal for one, other in pairwise(group) if splits[one] != splits[other]
    ]
    across_near = [(names[one], names[other]) for one, other in near_pairs(images) if splits[one] != splits[other]]
    called = _called(_numbered(patients) if options.anonymise else patients)
    result = Import(
        counts={name: members[[here == name for here in splits]].sum(axis=0).tolist() for name in SPLITS},
        images={name: splits.count(name) for name in SPLITS},
        classes=known.classes,
        task=known.task,
        patients=_patients_by_split(patients, splits),
        unknown=0 if called is None else sum(patient is None for patient in patients),
        reading=squares.reading,
        beside=known.left_out,
        equal=across_equal,
        near=across_near,
        size=size,
        subgroups={
            name: Counter(group for group, split in zip(groups, splits, strict=True) if split == "test")
            for name, groups in known.subgroups.items()
        },
    )
    description = _describe(result, folder, _checksum(squares.paths, [seen.sha256 for seen in squares.seen]), options)
    _write(out, images, replace(known, names=names, patients=called, splits=splits), description)
    return result


def _those_read(known: Labels, read: Sequence[str], options: ReadOptions) -> Labels:
    """Keep what is known of the images that could be read."""
    place = {options.shown(name): index for index, name in enumerate(known.names)}
    kept = [place[name] for name in read]
    return replace(
        known,
        names=[known.names[index] for index in kept],
        values=known.values[kept],
        patients=None if known.patients is None else [known.patients[index] for index in kept],
        splits=None if known.splits is None else [known.splits[index] for index in kept],
        subgroups={name: [groups[index] for index in kept] for name, groups in known.subgroups.items()},
    )


def _numbered(patients: Sequence[str | None]) -> list[str | None]:
    """Call patients ``patient 1``, ``patient 2`` … in the order of their images; None stays where one is not known."""
    numbers: dict[str, str] = {}
    return [
        None if patient is None else numbers.setdefault(patient, f"patient {len(numbers) + 1}") for patient in patients
    ]


def _called(patients: Sequence[str | None]) -> list[str] | None:
    """Call those who are not known ``unknown 1``, ``unknown 2`` …, one for each image; None if nobody is known."""
    if all(patient is None for patient in patients):
        return None
    unknown = count(1)
    return [f"unknown {next(unknown)}" if patient is None else patient for patient in patients]


def _groups(patients: Sequence[str | None], equal: list[list[int]]) -> list[str]:
    """Name the group that each image is split with: its patient's.

    Where that is not known, it goes with the images equal to it, else by itself.
    """
    groups = [str(place) if patient is None else patient for place, patient in enumerate(patients)]
    for places in equal:
        unknown = [place for place in places if patients[place] is None]
        together = next((groups[place] for place in places if patients[place] is not None), groups[places[0]])
        for place in unknown:
            groups[place] = together
    return groups


def _patients_by_split(patients: Sequence[str | None], splits: list[str]) -> dict[str, int] | None:
    pairs = {(patient, split) for patient, split in zip(patients, splits, strict=True) if patient is not None}
    return {name: sum(split == name for _, split in pairs) for name in SPLITS} if pairs else None


def _checksum(paths: Sequence[str], digests: Sequence[str]) -> str:
    """SHA-256 of the sorted list of the files' paths and SHA-256."""
    digest = hashlib.sha256()
    for path, of_file in sorted(zip(paths, digests, strict=True)):
        digest.update(f"{of_file}  ".encode() + path.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _describe(result: Import, folder: Path, checksum: str, options: ReadOptions) -> dict[str, Any]:
    return {
        "version": 1,
        "task": result.task,
        "source": "" if options.anonymise else as_text(str(folder)),
        "source_sha256": checksum,
        "fit": options.fit,
        "reading": result.reading.as_json(),
        "patients": result.patients,
        "patients_unknown": result.unknown,
        "equal_across_splits": result.equal,
        "near_across_splits": result.near,
    }


def _write(out: Path, images: Images, known: Labels, description: dict[str, Any]) -> None:
    values: NDArray[Any] = known.values
    if not np.isnan(values).any():
        values = values.astype(np.int64)
    arrays: dict[str, NDArray[Any]] = {CLASS_NAMES: np.array(known.classes)}
    if known.subgroups:
        arrays[SUBGROUP_NAMES] = np.array(list(known.subgroups))
    for split in SPLITS:
        here = np.flatnonzero([name == split for name in known.splits or []])
        arrays[f"{split}_images"] = images[here]
        arrays[f"{split}_labels"] = values[here]
        arrays[f"{split}_{FILES}"] = np.array([as_text(known.names[index]) for index in here])
        if known.patients is not None:
            arrays[f"{split}_{PATIENTS}"] = np.array([known.patients[index] for index in here])
        if known.subgroups:
            arrays[f"{split}_{SUBGROUPS}"] = np.array(list(known.subgroups.values())).T[here]
    arrays[DESCRIPTION] = np.array(json.dumps(description))
    with atomic_write(out) as file:
        np.savez(file, allow_pickle=False, **arrays)  # small images hardly compress, and every job unpacks them
