"""Where initial weights come from: ImageNet, a file, or an object of the store."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import torchvision
from torch import Tensor

from app.checkpoint import parse_weights
from app.errors import InputError, StorageError, UsageError
from app.stages.experiment import Run
from app.storage import Store, sha256


def imagenet_state(run: Run) -> tuple[dict[str, Tensor], str]:
    """Return ImageNet weights as a state dict, and where they are from.

    From ``--imagenet-weights`` if given, else torchvision's (downloaded once, checked by their hash).

    Raises:
        UsageError: the network's stem is not the one that ImageNet weights need.
        InputError: the file is damaged.
        StorageError: the download failed.
    """
    network = run.config.network
    if network.stem != "stock":
        raise UsageError(
            f"network.stem={network.stem}: ImageNet weights need the stock stem; use --set network.stem=stock"
        )
    if (file := run.config.imagenet_weights) is not None:
        state, _, _ = read_weights(run.store, file)
        return state, file
    weights = next(iter(torchvision.models.get_model_weights(network.architecture)))
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True)), weights.url
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise StorageError(
            f"{weights.url}: cannot be downloaded ({getattr(error, 'reason', error)}); give a local copy by "
            "--imagenet-weights FILE, or leave imagenet out of study.baselines and network.init"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"{weights.url}: damaged download ({error}); try again, or give --imagenet-weights FILE"
        ) from error


def read_weights(store: Store, uri: str) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read a state dict from a path, a ``file://`` URI, or a key of the store.

    Returns:
        The state dict, its metadata (empty for ``torch.save`` files), and the SHA-256 of the bytes.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(uri.removeprefix("file://")).expanduser()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if path.is_absolute() or not store.exists(uri):
            raise InputError(
                f"{uri}: no such file or object of the store; give a path, or a key inside --store"
            ) from None
        data = store.read(uri)
    except OSError as error:
        raise UsageError(f"{uri}: cannot be read ({error.strerror}); check its permissions") from error
    state, metadata = parse_weights(data, source=uri)
    return state, metadata, sha256(data)
