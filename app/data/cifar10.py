"""CIFAR-10, no medical images: on these, others have published what BYOL learns (``presets/cifar10-byol.yaml``).

The archive is the "binary version" of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009), which holds the
images of the one that torchvision reads, and no pickled objects.
"""

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.files import atomic_write, is_archive, one_line
from app.errors import InputError

SIDE = 32
ARCHIVE = "cifar-10-binary.tar.gz"
ENTRY = {
    "title": "CIFAR-10",
    "task": "multi-class",
    "channels": 3,
    "licence": "not stated",
    "modality": "Photographs",
    "labels": {
        "0": "airplane", "1": "automobile", "2": "bird", "3": "cat", "4": "deer",
        "5": "dog", "6": "frog", "7": "horse", "8": "ship", "9": "truck",
    },
    "urls": {SIDE: f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"},
    "md5": {SIDE: "c32a1d4ab5d03f1284b67883e8d87530"},
}  # fmt: skip
_TRAIN, _TEST = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]


def as_npz(archive: Path) -> Path:
    """Write the images of the archive in MedMNIST's layout beside it, unless that is done; return the ``.npz``.

    The last tenth of the training images, which lie in no order, becomes the validation split: there is none.

    Raises:
        InputError: the archive is damaged.
    """
    out = archive.with_name(f"cifar10_{SIDE}.npz")
    if out.exists() and is_archive(out):
        return out
    try:
        with tarfile.open(archive) as tar:
            images, labels = _read(tar, _TRAIN)
            test_images, test_labels = _read(tar, _TEST)
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{archive}: no {ARCHIVE} as published ({one_line(error)}); fetch it again") from error
    learned = len(images) - len(images) // 10
    with atomic_write(out) as file:
        np.savez(
            file, allow_pickle=False,
            train_images=images[:learned], train_labels=labels[:learned],
            val_images=images[learned:], val_labels=labels[learned:],
            test_images=test_images, test_labels=test_labels,
        )  # fmt: skip
    return out


def _read(tar: tarfile.TarFile, names: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (N, 32, 32, 3) and labels (N, 1): a record is the label, then red, green and blue by rows."""
    parts = []
    for name in names:
        member = tar.extractfile(f"cifar-10-batches-bin/{name}")
        if member is None:
            raise ValueError(f"{name} is no file")
        parts.append(np.frombuffer(member.read(), np.uint8))
    records = np.concatenate(parts).reshape(-1, 1 + 3 * SIDE * SIDE)
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), records[:, :1]
