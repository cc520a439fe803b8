"""Labels of an .npz as people save them: one-hot, counted from 1, with gaps; plain numbers of classes come out."""

import numpy as np
from numpy.typing import NDArray

from app.data.files import NpzReader
from app.errors import InputError

MISSING = -1  # a label of a multi-label set that nobody has given: left out of loss and scores


def read_labels(npz: NpzReader, split: str) -> NDArray[np.int64]:
    """Return the labels of a split, int64 (N, L), with ``MISSING`` for NaN.

    Raises:
        InputError: they are no whole numbers from 0.
    """
    key = f"{split}_labels"
    header = npz.header(key)
    if header.dtype.kind not in "iubf":
        raise InputError(f"{npz.path}: {key} is {header.dtype}; save the labels as whole numbers (int64)")
    if len(header.shape) not in (1, 2) or 0 in header.shape[1:]:
        raise InputError(f"{npz.path}: {key} has shape {header.shape}; save it as (N,) or (N, L)")
    labels = npz.read(key)
    missing = np.isnan(labels) if header.dtype.kind == "f" else np.zeros(labels.shape, bool)
    if missing.any() and (labels.ndim == 1 or labels.shape[1] == 1):
        raise InputError(
            f"{npz.path}: {key} holds NaN: the labels of {int(missing.sum())} images are missing; leave these out"
        )
    known = labels[~missing]
    if header.dtype.kind == "f" and not (np.isfinite(known).all() and (known == np.rint(known)).all()):
        raise InputError(f"{npz.path}: {key} holds fractions; save the labels as whole numbers, NaN for a missing one")
    if known.size and known.min() < 0:
        raise InputError(
            f"{npz.path}: {key} holds {int(known.min())}; labels count from 0: write NaN for a missing label of a "
            "multi-label set, and decide what an uncertain one counts as"
        )
    if known.size and int(known.max()) >= 2**31:
        raise InputError(f"{npz.path}: {key} holds {int(known.max())}; number the classes 0, 1, 2 …")
    labels = np.where(missing, MISSING, np.where(missing, 0, labels).astype(np.int64))
    if labels.ndim == 1:
        labels = labels[:, None]
    return labels.astype(np.int64)


def plain_labels(
    labels: dict[str, NDArray[np.int64]], asked: str | None
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Turn one-hot columns into class numbers, unless several labels were asked for."""
    columns = min(values.shape[1] for values in labels.values())
    one_hot = columns > 1 and all(
        set(np.unique(values)) <= {0, 1} and (values.sum(axis=1) == 1).all() for values in labels.values()
    )
    if not one_hot or asked == "multi-label, binary-class":
        return labels, []
    note = (
        f"each image has exactly one of its {columns} labels (one-hot): they are taken as classes; "
        "write :multi-label behind the file for independent labels"
    )
    return {split: values.argmax(axis=1)[:, None].astype(np.int64) for split, values in labels.items()}, [note]


def lowest_class(labels: dict[str, NDArray[np.int64]]) -> int:
    """The number that classes in one column are counted from: 0, or the lowest there is, as of grades 1 to 5."""
    if labels["train"].shape[1] > 1:
        return 0
    present = np.unique(np.concatenate([values[:, 0] for values in labels.values() if values.shape[1] == 1]))
    return int(present[0]) if len(present) > 1 else 0


def doubts(labels: dict[str, NDArray[np.int64]], task: str, names: dict[str, str], lowest: int) -> list[str]:
    """Say what looks odd about labels that are taken as they are."""
    notes = []
    if lowest:
        notes.append(f"the classes are numbered from {lowest}: class {lowest} is the first")
    if task == "multi-label, binary-class":
        missing = sum(int((values == MISSING).sum()) for values in labels.values())
        if missing:
            total = sum(values.size for values in labels.values())
            notes.append(f"{missing} of {total} labels are missing: they are left out of loss and scores")
    else:
        present = set(np.unique(np.concatenate([values[:, 0] for values in labels.values()])).tolist())
        if absent := [str(number + lowest) for number in range(len(names)) if number not in present]:
            notes.append(f"no image is of class {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}")
    return notes
