"""A trained classifier, or an encoder, as a job has left it in a store."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from app.data.reading import Fit, Levels
from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.checkpoint import parse_weights
from app.jobs.records import DownstreamRecord, FileEntry, read_downstream, read_record, read_verified
from app.science.networks import Classifier, Encoder
from app.storage import MissingObject, Store, open_store

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A trained classifier and what is known of it.

    Attributes:
        uri: where it is.
        record: of the job that trained it.
        classifier: in evaluation mode, on the CPU.
        metadata: of its weights file.
    """

    uri: str
    record: DownstreamRecord
    classifier: Classifier
    metadata: dict[str, str]

    @property
    def size(self) -> int:
        """Height and width of the images that it takes, in pixels."""
        return int(self.record.science["dataset"]["size"])

    @property
    def channels(self) -> int | None:
        """Channels of the images that it was trained on, 1 or 3; None if it is older than that note."""
        return encoder_channels(self.metadata)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, or labels, in the order of its scores."""
        return [self.record.labels[str(index)] for index in range(len(self.record.labels))]


def find_job(uri: str, store: str) -> tuple[Store, str]:
    """Open the store of a job and return the job's folder there.

    Args:
        uri: a folder such as ``runs/first/downstream/breastmnist/byol-s0/finetune/s0``, alone or behind the store's
            path or URI.
        store: the URI of the store, where ``uri`` does not say it.

    Raises:
        UsageError: no job of a run can be there.
    """
    found = keys.job_at(uri)
    if found is None:
        raise UsageError(
            f"--model {uri}: names no job; give runs/RUN/downstream/DATASET/INIT/PROTOCOL/sSEED, or runs/RUN/pretrain/"
            "METHOD-sSEED, behind its store (`ls --run-id RUN` lists them)"
        )
    place, folder = found
    return open_store(store if place is None else place), folder


def load_trained(store: Store, folder: str) -> Trained:
    """Load the classifier that a downstream job has left.

    Raises:
        InputError: the job is not done, or has left no model, or one that is damaged.
    """
    where = f"{store.uri}/{folder}"
    if f"/{keys.DOWNSTREAM}/" not in f"/{folder}/":
        raise InputError(f"{where}: an encoder classifies nothing; give a job of {keys.DOWNSTREAM}/")
    try:
        record = read_downstream(store, folder)
    except MissingObject as error:
        raise InputError(f"{where}: no finished job; `ls` lists those that are done") from error
    state, metadata = _weights(store, folder, record)
    network = record.science["network"]
    encoder = Encoder(network["architecture"], network["stem"])
    encoder.load_plain_state(state, source=where)
    classifier = Classifier(encoder, len(state["fc.bias"]))
    classifier.head.load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    return Trained(where, record, classifier.eval(), metadata)


def has_model(store: Store, folder: str, record: DownstreamRecord) -> bool:
    """Say whether a finished downstream job has left a model, and nobody has removed it since."""
    return any(name in record.files and store.exists(f"{folder}/{name}") for name in (keys.MODEL, keys.HEAD))


def load_encoder(store: Store, folder: str) -> tuple[Encoder, dict[str, str]]:
    """Load the encoder of a pretraining, or that of a classifier, in evaluation mode, with what its file says.

    Raises:
        InputError: as ``load_trained``.
    """
    if f"/{keys.DOWNSTREAM}/" in f"/{folder}/":
        trained = load_trained(store, folder)
        return trained.classifier.encoder, trained.metadata
    where = f"{store.uri}/{folder}"
    try:
        record = read_record(store, folder)
    except MissingObject as error:
        raise InputError(f"{where}: no finished job; `ls` lists those that are done") from error
    if keys.ENCODER not in record["files"]:
        raise InputError(f"{where}: its record names no encoder; run the pretraining again")
    data = read_verified(store, f"{folder}/{keys.ENCODER}", record["files"][keys.ENCODER])
    state, metadata = parse_weights(data, source=where)
    network = record["science"]["network"]
    encoder = Encoder(network["architecture"], network["stem"])
    encoder.load_plain_state(state, source=where)
    return encoder.eval(), metadata


def reading_of(store: Store, folder: str) -> tuple[Fit, Levels | None]:
    """Tell how the images that a job's model learned from were read, so that others can be read alike.

    Returns:
        What became of images that are not square, and what is black and white in those of more than 8 bits; None
        where the record does not say it.

    Raises:
        InputError: the record is damaged.
    """
    record = read_record(store, folder)
    try:
        data, before = record["data"], record["config"].get("reading", {})
        read = data[record.get("dataset") or next(iter(data))].get("reading", {})
        fit = read.get("fit") or before.get("fit", "pad")
        levels = Levels.of_json(read["levels"]) if "levels" in read else None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        where = f"{store.uri}/{folder}"
        raise InputError(f"{where}: its record is damaged (how images were read); run the job again") from error
    return fit, levels


def encoder_size(metadata: dict[str, str]) -> int:
    """Height and width of the images that an encoder was trained on, in pixels."""
    return int(metadata["input_size"])


def encoder_channels(metadata: dict[str, str]) -> int | None:
    """Channels of the images that an encoder was trained on, 1 or 3; None if its file is older than that note."""
    return int(metadata["channels"]) if "channels" in metadata else None


def _weights(store: Store, folder: str, record: DownstreamRecord) -> tuple[State, dict[str, str]]:
    """Read a whole model, or a head and the encoder that it is for."""
    where = f"{store.uri}/{folder}"
    again = "run its `downstream` again with --overwrite --set runtime.keep_models=all"
    if keys.MODEL in record.files:
        try:
            return _read(store, f"{folder}/{keys.MODEL}", record.files[keys.MODEL])
        except MissingObject as error:
            raise InputError(f"{where}: its model is gone (`clean` removes models); {again}") from error
    if keys.HEAD not in record.files or record.encoder is None:
        kept = record.config.get("runtime", {}).get("keep_models")
        raise InputError(f"{where}: its model was not kept (runtime.keep_models={kept}); {again}")
    head, metadata = _read(store, f"{folder}/{keys.HEAD}", record.files[keys.HEAD])
    try:
        encoder, _ = _read(store, record.encoder.key, record.encoder)
    except InputError as error:
        raise InputError(f"{where}: its encoder cannot be had ({error}); {again}") from error
    return encoder | head, metadata


def _read(store: Store, key: str, expected: FileEntry) -> tuple[State, dict[str, str]]:
    data = read_verified(store, key, expected.model_dump())
    return parse_weights(data, source=f"{store.uri}/{key}")
