"""What is known of each image of a folder: its class or labels, its patient, its split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from app.data.catalog import TASKS
from app.data.own.tables import SourceTable, read_table, without_words
from app.data.reading import ReadOptions
from app.errors import InputError, UsageError

BINARY, MULTI_CLASS, MULTI_LABEL, _ = TASKS
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MOST_GROUPS = 20  # of a column: more are numbers, or names
NAMED = 5  # files, rows or values that a message names

Show = Callable[[str], str]  # from a file's name to what may be told of it


@dataclass(frozen=True)
class LabelSource:
    """Where labels, patients and splits are written.

    Attributes:
        table: CSV or Parquet; None: the folders next to the top are the classes.
        label_columns: of the table; none: all that are left.
        file_column: of the table; None: the one that names the images.
        patient_column: of the table.
        patient_regex: finds the patient in an image's path below the folder: its first group, else all of it.
        split_column: of the table.
        subgroup_columns: of the table: sex, scanner and so on, by which results are told apart.
    """

    table: Path | None = None
    label_columns: tuple[str, ...] = ()
    file_column: str | None = None
    patient_column: str | None = None
    patient_regex: str | None = None
    split_column: str | None = None
    subgroup_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """What is known of some images, in the order of ``names``.

    Attributes:
        names: their files, relative to the folder, with slashes.
        classes: names of the classes, or of the labels of a multi-label set.
        values: float64 (N, L): numbers of classes with L = 1, or 0, 1 and NaN, a missing one, with a column a label.
        task: one of ``TASKS``.
        patients: of each image; None if none is known.
        splits: ``train``, ``val`` or ``test`` of each image; None if they are to be drawn.
        left_out: how many images or rows are not used, by reason.
        subgroups: by the name of what tells them apart, the group of each image; "" where it is not known.
    """

    names: list[str]
    classes: list[str]
    values: NDArray[np.float64]
    task: str
    patients: list[str] | None
    splits: list[str] | None
    left_out: Counter[str] = field(default_factory=Counter)
    subgroups: dict[str, list[str]] = field(default_factory=dict)


def find_labels(folder: Path, names: Sequence[str], source: LabelSource, options: ReadOptions | None = None) -> Labels:
    """Find out what is known of the images of a folder.

    Args:
        folder: for messages.
        names: the images' files, relative to it, with slashes.
        source: where it is written.
        options: whether files and patients may be named.

    Raises:
        UsageError: columns or patterns that do not fit.
        InputError: labels, patients or splits that are missing, double or contradict each other.
    """
    options = options or ReadOptions()
    show = options.shown
    if source.table is None:
        for option in ("label_columns", "file_column", "patient_column", "split_column", "subgroup_columns"):
            if getattr(source, option):
                raise UsageError(f"--{option.replace('_', '-')}: is a column of a table; give the table by --labels")
        labels = _of_folders(folder, names, show)
    else:
        labels = _of_table(read_table(source.table), names, source, show)
    patients = labels.patients
    if source.patient_regex is not None:
        if source.patient_column is not None:
            raise UsageError("--patient-regex, --patient-column: give one of the two")
        patients = find_patients(labels.names, source.patient_regex, show=show)
    if patients is not None and labels.splits is not None:
        check_patients(patients, labels.splits, [show(name) for name in labels.names], told=not options.anonymise)
    return Labels(**{**vars(labels), "patients": patients})


def _of_folders(folder: Path, names: Sequence[str], show: Show) -> Labels:
    """Take the folders next to the top as classes; below ``train``, ``val`` and ``test``, those next to them."""
    parts = [PurePosixPath(name).parts for name in names]
    if loose := [name for name, path in zip(names, parts, strict=True) if len(path) < 2]:
        raise InputError(
            f"{folder}: {len(loose)} images lie in no class's folder ({_some(loose, show)}); put each into the folder "
            "of its class, or give a table by --labels"
        )
    tops = sorted({path[0] for path in parts})
    splits = None
    if len(tops) > 1 and all(top.lower() in SPLIT_WORDS for top in tops):
        if loose := [name for name, path in zip(names, parts, strict=True) if len(path) < 3]:
            raise InputError(
                f"{folder}: {len(loose)} images of a split lie in no class's folder ({_some(loose, show)}); put each "
                "into the folder of its class"
            )
        splits = [SPLIT_WORDS[path[0].lower()] for path in parts]
        words = [path[1] for path in parts]
    else:
        words = [path[0] for path in parts]
    classes = in_order(set(words))
    if len(classes) < 2:
        raise InputError(f"{folder}: all images are of one class, {classes[0]}; there have to be two folders or more")
    return Labels(list(names), classes, _numbers(words, classes), _task(classes), None, splits)


def _of_table(table: SourceTable, names: Sequence[str], source: LabelSource, show: Show) -> Labels:
    file_column = source.file_column or _file_column(table, names, show)
    rows = _match(table, file_column, names, show)
    patients = table.column(source.patient_column, "--patient-column") if source.patient_column else None
    splits = table.column(source.split_column, "--split-column") if source.split_column else None
    groups = {name: table.column(name, "--subgroup-columns") for name in source.subgroup_columns}
    taken = {file_column, source.patient_column, source.split_column, *groups}
    columns = list(source.label_columns) or [name for name in table.columns if name not in taken]
    if not columns:
        raise UsageError(
            f"--labels {table.path}: has no column of labels beside {', '.join(sorted(filter(None, taken)))}"
        )
    cells = [table.column(name, "--label-columns") for name in columns]
    order = [name for name in names if name in rows]
    chosen = [[column[rows[name]] for name in order] for column in cells]
    shown = [show(name) for name in order]
    classes, values, task = _read_labels(table, columns, chosen, shown)
    left_out: Counter[str] = Counter()
    left_out["images without a row in the table"] = len(names) - len(order)
    left_out["rows without an image"] = len(table) - len(order)
    return Labels(
        order,
        classes,
        values,
        task,
        None
        if patients is None
        else _filled(without_words(patients[rows[name]] for name in order), shown, "--patient-column"),
        None if splits is None else _split_words(table, [splits[rows[name]] for name in order], shown),
        +left_out,
        {name: _groups(table, name, [column[rows[image]] for image in order]) for name, column in groups.items()},
    )


def _groups(table: SourceTable, name: str, cells: list[str]) -> list[str]:
    cells = without_words(cells)
    known = in_order(set(cells) - {""})
    if not 1 < len(known) <= MOST_GROUPS:
        held = f"{len(known)} ({_some(known)})" if known else "none"
        raise UsageError(
            f"--subgroup-columns {name}: in {table.path} it holds {held} groups, and has to hold 2 to {MOST_GROUPS}; "
            "leave it out, or write groups such as 40-59 into it"
        )
    return cells


def _read_labels(
    table: SourceTable, columns: list[str], cells: list[list[str]], names: list[str]
) -> tuple[list[str], NDArray[np.float64], str]:
    """Return class names, values and task of columns: one of classes, or several of 0, 1 and nothing."""
    if len(columns) == 1:
        words = _filled(cells[0], names, f"{table.path}: column {columns[0]}")
        classes = in_order(set(words))
        if len(classes) < 2:
            raise InputError(
                f"{table.path}: column {columns[0]} holds {classes[0]} alone; there have to be two classes"
            )
        return classes, _numbers(words, classes), _task(classes)
    cells = [without_words(column) for column in cells]
    for name, column in zip(columns, cells, strict=True):
        if wrong := sorted(set(column) - {"0", "1", ""}):
            raise InputError(
                f"{table.path}: column {name} holds {_some(wrong)}, but several columns of labels hold 0, 1 or "
                "nothing; choose the columns by --label-columns"
            )
    values = np.array([[float(cell) if cell else np.nan for cell in column] for column in cells]).T
    return columns, values, MULTI_LABEL


def _file_column(table: SourceTable, names: Sequence[str], show: Show) -> str:
    """The column that names the most images, by path, name or stem."""
    keys = {key for name in names for key in _keys(name)}
    hits = {column: sum(cell in keys for cell in cells) for column, cells in table.columns.items()}
    best = max(hits, key=lambda column: hits[column])
    if hits[best] == 0:
        raise InputError(
            f"{table.path}: no column names the images ({_some(names, show)}); write their names, or paths below the "
            "folder, into one, or say which it is by --file-column"
        )
    return best


def _match(table: SourceTable, file_column: str, names: Sequence[str], show: Show) -> dict[str, int]:
    """Return the row of each image that has one."""
    of_key: dict[str, list[str]] = {}
    for name in names:
        for key in _keys(name):
            of_key.setdefault(key, []).append(name)
    rows: dict[str, int] = {}
    for number, cell in enumerate(table.column(file_column, "--file-column")):
        images = of_key.get(cell, [])
        if len(images) > 1:
            raise InputError(
                f"{table.path}: row {number + 2} names several images ({_some(images, show)}); write their paths"
            )
        for name in images:
            if name in rows:
                raise InputError(
                    f"{table.path}: rows {rows[name] + 2} and {number + 2} are of one image, {show(name)}; keep one"
                )
            rows[name] = number
    if not rows:
        raise InputError(f"{table.path}: column {file_column} names none of the images ({_some(names, show)})")
    return rows


def _keys(name: str) -> set[str]:
    """The ways in which a table may name an image: its path, its name, and either without its suffix."""
    path = PurePosixPath(name)
    return {name, path.name, str(path.with_suffix("")), path.stem}


def _filled(cells: list[str], names: list[str], where: str) -> list[str]:
    if empty := [name for cell, name in zip(cells, names, strict=True) if not cell]:
        raise InputError(f"{where}: is empty for {len(empty)} images ({_some(empty)}); fill it, or take the rows out")
    return cells


def _split_words(table: SourceTable, cells: list[str], names: list[str]) -> list[str]:
    cells = _filled(cells, names, f"{table.path}: --split-column")
    if wrong := sorted({cell for cell in cells if cell.lower() not in SPLIT_WORDS}):
        raise InputError(f"{table.path}: --split-column holds {_some(wrong)}; write train, val or test")
    return [SPLIT_WORDS[cell.lower()] for cell in cells]


def find_patients(names: Sequence[str], pattern: str, *, show: Show = str) -> list[str]:
    """Find the patient in each image's path: the pattern's first group, else all that it matches.

    Raises:
        UsageError: it is no regular expression.
        InputError: it does not fit all paths.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patient-regex {pattern}: no regular expression ({error})") from error
    found = [compiled.search(name) for name in names]
    if missing := [name for name, match in zip(names, found, strict=True) if match is None]:
        raise InputError(f"--patient-regex {pattern}: does not fit {len(missing)} images ({_some(missing, show)})")
    return [match[1] if compiled.groups else match[0] for match in found if match is not None]


def check_patients(
    patients: Sequence[str | None], splits: Sequence[str], names: Sequence[str], *, told: bool = False
) -> None:
    """Check that no patient is in two splits, which would let a model recognise patients instead of diseases.

    Args:
        patients: of each image; None where it is not known.
        splits: of each image.
        names: of each image, as it may be told: a patient in two splits is told by an image in each.
        told: what ``patients`` says may be told, too.

    Raises:
        InputError: one is.
    """
    seen: dict[str, dict[str, str]] = {}
    for patient, split, name in zip(patients, splits, names, strict=True):
        if patient is not None:
            seen.setdefault(patient, {}).setdefault(split, name)
    both = [
        (f"{patient}: " if told else "") + " and ".join(f"{name} in {split}" for split, name in where.items())
        for patient, where in seen.items()
        if len(where) > 1
    ]
    if both:
        raise InputError(f"{len(both)} patients are in two splits ({_some(both)}); put each into one")


def _task(classes: list[str]) -> str:
    return BINARY if len(classes) == 2 else MULTI_CLASS


def _numbers(words: list[str], classes: list[str]) -> NDArray[np.float64]:
    number = {name: index for index, name in enumerate(classes)}
    return np.array([[number[word]] for word in words], np.float64)


def in_order(words: Iterable[str]) -> list[str]:
    """Sort names of classes: as numbers where all are, else as text."""
    words = list(words)
    if all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
        return sorted(words, key=float)
    return sorted(words)


def _some(values: Sequence[str], show: Show = str) -> str:
    more = len(values) - NAMED
    return ", ".join(map(show, values[:NAMED])) + (f" and {more} more" if more > 0 else "")
