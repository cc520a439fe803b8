"""Where initial weights come from: nowhere, ImageNet, a pretraining of the run, or a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from app.config import check_imagenet
from app.data.files import file_error
from app.errors import InputError, StorageError, UsageError
from app.jobs import keys
from app.jobs.checkpoint import dump_weights, parse_weights
from app.jobs.records import Pointer, read_record, read_verified
from app.jobs.run import Run
from app.machine import path_of
from app.progress import Progress
from app.science.foreign import find_resnet
from app.science.networks import Encoder
from app.settings import METHODS, Config
from app.storage import MissingObject, Store, is_key, open_store, sha256

State = dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """Initial weights of an encoder.

    Attributes:
        name: their name in the store: ``random``, ``imagenet``, ``<method>-s<seed>`` or ``ckpt-<12 hex>``.
        identity: what makes them the same weights, for comparing experiments.
        source: where they are from, for messages.
        read: gives the plain ResNet state dict, which a job that is done already never asks for; None leaves
            the encoder as it was drawn.
        stored: the object of the store that holds them; None if they are from elsewhere.
    """

    name: str
    identity: dict[str, str]
    source: str
    read: Callable[[], State] | None
    stored: Pointer | None = None

    def load_into(self, encoder: Encoder) -> None:
        """Load the weights into ``encoder``, strictly.

        Raises:
            InputError: they are missing, damaged, or of another architecture or stem.
            StorageError: ImageNet weights cannot be downloaded.
        """
        if self.read is not None:
            encoder.load_plain_state(self.read(), source=self.source)


def describe(config: Config, synthetic: bool, /, **own: str) -> dict[str, str]:
    """Say in a weights file what it takes to use it without this package: the metadata of the safetensors.

    Args:
        config: of the run that trained the network.
        synthetic: it was trained on phantoms.
        **own: what else there is to say of this file.
    """
    return {
        "format": "pt",
        "architecture": config.network.architecture,
        "stem": config.network.stem,
        "input_size": str(config.data.size),
        "input_channels": "3; a gray image is three equal channels",
        "normalisation": "x / 255, mean 0.5, std 0.5",
        **own,
        "synthetic": str(synthetic).lower(),
        "intended_use": "research; not for clinical use",
    }


def keep_encoder(run: Run, weights: Weights, encoder: Encoder, seed: int) -> Pointer:
    """Say where the store holds a frozen encoder; one that is not there yet is put there, once for all its heads.

    Args:
        run: the run.
        weights: what the encoder was initialised with.
        encoder: the encoder.
        seed: of the job, by which a random start is drawn; weights that were given are the same for all seeds.
    """
    if weights.stored is not None:
        return weights.stored
    drawn = {"seed": str(seed)} if weights.name == "random" else {}
    data = dump_weights(encoder.plain_state(), describe(run.config, False, init=weights.name, **drawn))
    key = keys.encoder(run.run_id, weights.name, sha256(data))
    if not run.store.exists(key):
        run.store.write(key, data)
    return Pointer(key=key, size=len(data), sha256=sha256(data))


def initial_weights(run: Run, init: str) -> Weights:
    """Resolve an initialisation.

    Args:
        run: the run.
        init: ``random``, ``imagenet``, a pretraining of this run such as ``byol-s0``, or the path, URI (``file://``
            or ``s3://``, the latter with options as in ``--store``) or store key of a state dict.

    Raises:
        InputError: the weights are missing, damaged or of another architecture.
        UsageError: ImageNet weights are asked for a stem that has none.
        StorageError: ImageNet weights cannot be downloaded.
    """
    if init == "random":
        return Weights("random", {"name": "random"}, init, None)
    if init == "imagenet":
        return _imagenet(run)
    pretraining = keys.Pretraining.parse(init)
    if pretraining is not None and pretraining.method in METHODS:
        return _pretrained(run, pretraining)
    network = run.config.network
    state, metadata, digest = _read(run.store, init)
    for what, ours in (("architecture", network.architecture), ("stem", network.stem)):
        if metadata.get(what, ours) != ours:
            raise InputError(
                f"{init}: was trained with {what} {metadata[what]}, the run has {ours}; "
                f"use --set network.{what}={metadata[what]}"
            )
    state = _resnet(run, state, init)
    return Weights(f"ckpt-{digest[:12]}", {"name": "checkpoint", "sha256": digest}, init, lambda: state)


def _imagenet(run: Run) -> Weights:
    """From ``--imagenet-weights`` if given, else torchvision's, downloaded once and checked by their hash."""
    check_imagenet(run.config.network)
    if (file := run.config.imagenet_weights) is not None:
        state, _, digest = _read(run.store, file)
        state = _resnet(run, state, file)
        return Weights("imagenet", {"name": "imagenet", "sha256": digest[:8]}, file, lambda: state)
    url: str = next(iter(torchvision.models.get_model_weights(run.config.network.architecture))).url
    # The published file's name ends in the first 8 digits of its SHA-256.
    digest = Path(url).stem.rsplit("-", 1)[-1]
    return Weights("imagenet", {"name": "imagenet", "sha256": digest}, url, cache(lambda: _download(url, digest)))


def _resnet(run: Run, state: State, source: str) -> State:
    """Find the run's ResNet in what a file holds, and say how, where it is not plain."""
    network = run.config.network
    found, note = find_resnet(state, network.architecture, network.stem, source=source)
    if note is not None:
        Progress("weights", run_id=run.run_id).say(f"{source}: {note}")
    return found


def _download(url: str, digest: str) -> State:
    """Read torchvision's weights from torch's cache, where they are downloaded to first if need be.

    torchvision's own function compares the hash of a new download only, and would unpickle whatever it found.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        data = path.read_bytes()
    except PermissionError as error:
        raise UsageError(f"{path}: {error.strerror}; set TORCH_HOME, or give --imagenet-weights FILE") from error
    except OSError as error:
        raise StorageError(
            f"{url}: cannot be downloaded ({getattr(error, 'reason', error)}); give a local copy by "
            "--imagenet-weights FILE, or leave imagenet out of study.baselines and network.init"
        ) from error
    except RuntimeError as error:  # torch.hub's word for a wrong hash
        raise InputError(f"{url}: damaged download ({error}); try again, or give --imagenet-weights FILE") from error
    if not sha256(data).startswith(digest):
        raise InputError(f"{path}: damaged, its SHA-256 does not begin with {digest}; delete it and try again")
    return parse_weights(data, source=str(path))[0]


def _pretrained(run: Run, job: keys.Pretraining) -> Weights:
    name = str(job)
    folder = keys.pretraining(run.run_id, name)
    try:
        record = read_record(run.store, folder)
    except MissingObject as error:
        raise InputError(
            f"--init {name}: this run has no finished pretraining of that name; run "
            f"`python -m app pretrain --method {job.method} --seed {job.seed}` first"
        ) from error
    key = f"{folder}/{keys.ENCODER}"
    if keys.ENCODER not in record["files"]:
        raise InputError(f"{run.store.uri}/{keys.record(folder)}: names no encoder; run the pretraining again")

    @cache
    def read() -> State:
        data = read_verified(run.store, key, record["files"][keys.ENCODER])
        return parse_weights(data, source=f"{run.store.uri}/{key}")[0]

    stored = Pointer(key=key, **record["files"][keys.ENCODER])
    return Weights(name, {"name": name, "identity": record["identity"]}, key, read, stored)


def _read(store: Store, uri: str) -> tuple[State, dict[str, str], str]:
    """Read a state dict, its metadata (empty for ``torch.save`` files), and the SHA-256 of the bytes."""
    if "://" in uri and not uri.startswith("file://"):
        place, question, options = uri.partition("?")
        if place.startswith(f"{store.uri}/") and not options:
            data = store.read(place.removeprefix(f"{store.uri}/"))
        else:
            folder, _, name = place.rpartition("/")
            data = open_store(folder + question + options).read(name)
        state, metadata = parse_weights(data, source=uri)
        return state, metadata, sha256(data)
    path = path_of(uri)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not (is_key(uri) and store.exists(uri)):
            raise InputError(
                f"{uri}: no such file or object of the store; give a path, or a key inside --store"
            ) from None
        data = store.read(uri)
    except OSError as error:
        raise file_error(error, path, "reading") from error
    state, metadata = parse_weights(data, source=uri)
    return state, metadata, sha256(data)
