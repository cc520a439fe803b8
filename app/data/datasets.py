"""Labelled data: any .npz in MedMNIST's layout, checked in full, as numpy arrays."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.catalog import Known, base_of, file_names, licence_of, modality_of, parse_task, title_of
from app.data.files import MMAP_ABOVE, Images, NpzReader, cached_images, digest_of, is_archive, open_npz
from app.data.labels import MISSING, doubts, lowest_class, plain_labels, read_labels
from app.data.origin import Origin, read_origin
from app.data.subsets import stratified_subset
from app.errors import InputError, UsageError
from app.machine import as_text, home

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """One split. ``images``: uint8 (N, H, W) or (N, H, W, 3), 0-255. ``labels``: int64 (N, L).

    L is 1 except for multi-label data, where each column is 0, 1 or ``MISSING``. ``images`` may be memory-mapped.
    ``files`` and ``patients`` name each image's, where the set was imported; () where they are not known. ``subgroups``
    has each image's group, "" where it is not known, by the name of what tells groups apart.
    """

    images: Images
    labels: NDArray[np.int64]
    files: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def patient_numbers(self) -> NDArray[np.int64] | None:
        """Whose each image is, by numbers from 0 that name nobody, (N,); None if unknown, or each is another's."""
        numbers: dict[str, int] = {}
        for patient in self.patients:
            numbers.setdefault(patient, len(numbers))
        if len(numbers) == len(self.patients):
            return None
        return np.array([numbers[patient] for patient in self.patients], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled dataset with its train, val and test splits, or those of them that were asked for.

    ``task`` is one of ``TASKS``; ``labels`` maps "0", "1", … to class names; ``channels`` is 1 or 3;
    ``sha256`` is that of the file's bytes (before any subset); ``source`` is the path as given; ``notes`` say what was
    made of labels that leave a doubt; ``origin`` is what a set that was imported says of itself.
    """

    name: str
    title: str
    size: int
    task: str
    labels: dict[str, str]
    channels: int
    splits: dict[str, Split]
    sha256: str
    source: str
    licence: str
    modality: str
    synthetic: bool
    notes: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes (of labels, for multi-label data)."""
        return len(self.labels)

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their numbers."""
        return [self.labels[str(index)] for index in range(self.n_classes)]

    @property
    def train(self) -> Split:
        """The training split."""
        return self.splits["train"]

    @property
    def val(self) -> Split:
        """The validation split."""
        return self.splits["val"]

    @property
    def test(self) -> Split:
        """The test split."""
        return self.splits["test"]

    @property
    def read_as(self) -> dict[str, Any]:
        """How image files became its squares, for a record; {} where that is not known."""
        return {"reading": self.origin.read_as()} if self.origin else {}

    def class_counts(self, split: str) -> list[int]:
        """Return the number of images per class in ``split`` (multi-label: of positives per label)."""
        return _class_counts(self.splits[split].labels, self.n_classes)

    def describe(self, role: str) -> dict[str, Any]:
        """Return the JSON-ready entry for the run's record; ``role`` is "pretrain" or "downstream"."""
        return (
            {
                "sha256": self.sha256,
                "size": self.size,
                "task": self.task,
                "labels": dict(self.labels),
                "channels": self.channels,
                "splits": {name: len(split) for name, split in self.splits.items()},
                "class_counts": {name: self.class_counts(name) for name in self.splits},
                "licence": self.licence,
                "source": self.source,
                "title": self.title,
                "modality": self.modality,
                "role": role,
            }
            | ({"notes": list(self.notes)} if self.notes else {})
            | self._origin()
        )

    def _origin(self) -> dict[str, Any]:
        return {"origin": self.origin.describe()} if self.origin else {}


def load_dataset(
    name: str,
    *,
    path: Path,
    size: int = 28,
    task: str | None = None,
    subset: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    mmap_above: int = MMAP_ABOVE,
    splits: Sequence[str] = SPLITS,
) -> Dataset:
    """Load ``path``, an .npz with {train,val,test}_{images,labels}, as dataset ``name``.

    A MedMNIST name, also with a suffix (``dermamnist_reconstructed``), takes task and class names from
    MedMNIST's own table. Other names need ``task`` (short forms are accepted) or have it inferred: one column
    of 0/1 is binary, one column with more classes is multi-class, several 0/1 columns are multi-label, unless every
    image has exactly one of them (one-hot): those are classes. Classes numbered from 1 are taken as from 0. NaN is a
    missing label of a multi-label set. A set that ``data import`` made says all of it itself.
    ``subset`` keeps at most that many images per split, stratified and seeded by ``seed``. With ``cache``,
    images of more than ``mmap_above`` bytes are memory-mapped from there. Of splits that are not among ``splits`` no
    array is read, nor need be there; "train" has to be among them.

    Raises InputError for a missing, damaged or ill-shaped file, UsageError for a wrong task or no permission.
    """
    path = Path(path)
    if path.is_dir():
        made = f"python -m app data import {path} {path.name}.npz --size {size}"
        raise InputError(f"{path}: is a folder; make a labelled set of it by `{made}`, and give that")
    base, _ = base_of(name)
    asked = None if task is None else parse_task(task)
    if base is not None and asked not in (None, base.task):
        raise UsageError(f"{name} is '{base.task}', not '{asked}'; leave the task out or rename the data")
    with open_npz(path) as npz:
        labels = {split: read_labels(npz, split) for split in splits}
        shapes = {split: image_shape(npz, f"{split}_images", size) for split in splits}
        channels = _check_shapes(path, shapes, labels, base)
        origin = read_origin(npz, {split: len(values) for split, values in labels.items()}) if base is None else None
        asked = asked or (origin.task if origin else None)
        labels, notes = plain_labels(labels, asked) if base is None else (labels, [])
        lowest = 0 if base is not None or origin is not None else lowest_class(labels)
        labels = {split: values - lowest if lowest else values for split, values in labels.items()}
        resolved, names = _resolve_task(name, path, labels, asked, base)
        notes += doubts(labels, resolved, names, lowest) if base is None else []
        if origin is not None:
            names = origin.names(len(names), path)
        if lowest:
            names = {index: f"class {int(index) + lowest}" for index in names}
        synthetic = npz.flag("synthetic")
        sha256 = digest_of(path)
        mapped = cache if sum(map(_nbytes, shapes.values())) > mmap_above else None
        read = {
            split: Split(
                read_images(npz, [f"{split}_images"], shapes[split], sha256, mapped),
                labels[split],
                tuple(origin.files.get(split, ())) if origin else (),
                tuple(origin.patients.get(split, ())) if origin else (),
                origin.subgroups.get(split, {}) if origin else {},
            )
            for split in splits
        }
    dataset = Dataset(
        name=name,
        title=title_of(name, synthetic=synthetic),
        size=size,
        task=resolved,
        labels=names,
        channels=channels,
        splits=read,
        sha256=sha256,
        source=as_text(str(path)),
        licence=licence_of(name, synthetic=synthetic),
        modality=modality_of(name),
        synthetic=synthetic,
        notes=tuple(notes),
        origin=origin,
    )
    return dataset if subset is None else take_subset(dataset, subset, seed=seed)


def take_subset(dataset: Dataset, n: int, *, seed: int = 0) -> Dataset:
    """Return ``dataset`` with at most ``n`` images per split, stratified and seeded."""
    splits = {}
    for name, split in dataset.splits.items():
        chosen = stratified_subset(split.labels, n, seed=seed, stream=SPLITS.index(name))
        files, patients = (tuple(words[i] for i in chosen) if words else () for words in (split.files, split.patients))
        groups = {what: tuple(words[i] for i in chosen) for what, words in split.subgroups.items()}
        splits[name] = Split(np.asarray(split.images[chosen]), split.labels[chosen], files, patients, groups)
    return replace(dataset, splits=splits)


def find_file(name: str, size: int, roots: Sequence[Path]) -> Path | None:
    """Return the first ``<name>_<size>.npz`` (or ``<name>.npz`` for size 28) in ``roots``, truncated ones last."""
    there = [root / file for root in roots for file in file_names(name, size) if (root / file).is_file()]
    return next((path for path in there if is_archive(path)), there[0] if there else None)


def default_roots(data_root: Path | None = None) -> list[Path]:
    """Return where files are looked for: ``data_root``, $MEDMNIST_ROOT, ~/.medmnist (those that are set)."""
    roots = [data_root] if data_root is not None else []
    if environment := os.environ.get("MEDMNIST_ROOT"):
        roots.append(Path(environment))
    own = home()
    return [*roots, *([own / ".medmnist"] if own else [])]


def read_images(npz: NpzReader, keys: Sequence[str], shape: tuple[int, ...], sha256: str, cache: Path | None) -> Images:
    """Return the arrays ``keys`` joined along the first axis as ``shape``; memory-mapped with ``cache``."""
    if cache is not None:
        mapped = cached_images(
            cache, f"{sha256}-{'-'.join(keys)}", shape, lambda: (c for key in keys for c in npz.chunks(key))
        )
        if mapped is not None:
            return mapped
    arrays = [npz.read(key) for key in keys]
    images: Images = (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).reshape(shape)
    return images


def image_shape(npz: NpzReader, key: str, size: int) -> tuple[int, ...]:
    """Return (N, size, size) or (N, size, size, 3) of array ``key``; a last axis of length 1 is dropped.

    Raises InputError for another shape, dtype or size, or no images at all.
    """
    header = npz.header(key)
    shape = header.shape
    if header.dtype != np.uint8:
        raise InputError(f"{npz.path}: {key} is {header.dtype}; scale it to 0-255 and save it as uint8")
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
        raise InputError(f"{npz.path}: {key} has shape {header.shape}; save it as (N, H, W) or (N, H, W, 3)")
    if shape[0] == 0:
        raise InputError(f"{npz.path}: {key} is empty; every split needs images")
    if shape[1:3] != (size, size):
        raise InputError(
            f"{npz.path}: {key} is {shape[1]}x{shape[2]}, but size {size} was asked for; "
            f"give the {size}x{size} file or ask for its size"
        )
    return shape


def _check_shapes(
    path: Path, shapes: dict[str, tuple[int, ...]], labels: dict[str, NDArray[np.int64]], base: Known | None
) -> int:
    """Check what the splits must agree on; return the number of channels."""
    for split in labels:
        if len(labels[split]) != shapes[split][0]:
            raise InputError(
                f"{path}: {split}_images has {shapes[split][0]} images but {split}_labels has "
                f"{len(labels[split])} labels; they must match one to one"
            )
        if len(shapes[split]) != len(shapes["train"]):
            raise InputError(f"{path}: {split}_images differs from train_images in channels; save all gray or all RGB")
        if labels[split].shape[1] != labels["train"].shape[1]:
            raise InputError(
                f"{path}: {split}_labels has {labels[split].shape[1]} columns but train_labels has "
                f"{labels['train'].shape[1]}; they must match"
            )
    channels = 3 if len(shapes["train"]) == 4 else 1
    if base is not None and channels != base.channels:
        raise InputError(
            f"{path}: has {channels}-channel images, but {base.name} has {base.channels}; "
            "this is another file: give it another name, or the right file"
        )
    return channels


def _resolve_task(
    name: str, path: Path, labels: dict[str, NDArray[np.int64]], asked: str | None, base: Known | None
) -> tuple[str, dict[str, str]]:
    """Return the task and the class names, having checked every label against them."""
    columns = labels["train"].shape[1]
    if base is not None:
        task, names = base.task, dict(base.labels)
    else:
        task = asked or _infer_task(name, path, labels["train"])
        if task == "multi-label, binary-class":
            names = {str(index): f"label {index}" for index in range(columns)}
        else:
            count = 2 if task == "binary-class" else int(labels["train"].max()) + 1
            if count > len(labels["train"]):
                raise InputError(f"{path}: train_labels goes up to {count - 1}; number the classes 0, 1, 2 …")
            names = {str(index): f"class {index}" for index in range(count)}
    multi_label = task == "multi-label, binary-class"
    if columns != (len(names) if multi_label else 1):
        need = f"{len(names)} columns of 0/1" if multi_label else "one column"
        raise InputError(f"{path}: train_labels has {columns} columns, but '{task}' needs {need}")
    if len(names) < 2 and not multi_label:
        raise InputError(f"{path}: train_labels has a single class; two or more are needed to learn anything")
    top = 1 if multi_label else len(names) - 1
    for split, values in labels.items():
        if (high := int(values.max())) > top:
            raise InputError(
                f"{path}: {split}_labels holds {high}, but '{task}' needs 0..{top} here; "
                "check the labels, or give the right task"
            )
    return task, names


def _infer_task(name: str, path: Path, train: NDArray[np.int64]) -> str:
    values = np.unique(train)
    if train.shape[1] > 1 and set(values) <= {0, 1, MISSING} and len(values) > 1:
        return "multi-label, binary-class"
    if train.shape[1] == 1 and len(values) >= 2 and np.array_equal(values, np.arange(len(values))):
        return "binary-class" if len(values) == 2 else "multi-class"
    raise InputError(
        f"{path}: the task of '{name}' cannot be told from train_labels ({train.shape[1]} columns, "
        f"{len(values)} values in {int(values[0])}..{int(values[-1])}); write {name}={path}:TASK with TASK "
        "one of binary, multi-class, multi-label, ordinal"
    )


def _class_counts(labels: NDArray[np.int64], n_classes: int) -> list[int]:
    if labels.shape[1] > 1:
        return [int(count) for count in (labels == 1).sum(axis=0)]
    return [int(count) for count in np.bincount(labels[:, 0], minlength=n_classes)]


def _nbytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
