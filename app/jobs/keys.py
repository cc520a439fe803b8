"""Every key of a store and every name of a job: spelled here, parsed here, and nowhere else.

README's "The store" draws them as a tree. A *folder* is the prefix of the keys of one job, without a slash at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.data import file_names

RUNS = "runs"
DATA, PHANTOMS = "data", "phantoms"  # copies of data sets, and synthetic ones
PRETRAIN, DOWNSTREAM = "pretrain", "downstream"  # the kinds of jobs
ENCODER, MODEL, HEAD = "encoder.safetensors", "model.safetensors", "head.safetensors"
LABEL_CURVE = "label_curve.safetensors"
VAL_PREDICTIONS, ERRORS, EMBEDDING = "val_predictions.csv", "errors.png", "embedding.csv"
CURVES, PREDICTIONS = "curves.jsonl", "predictions.csv"
_RECORD, _LATEST, _CLAIM = "record.json", "latest.json", "claim.json"
_ROBUSTNESS = "robustness.json"


@dataclass(frozen=True)
class Pretraining:
    """A pretraining job; the encoder that it leaves has the same name."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}-s{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Pretraining | None:
        """Return the pretraining called ``name``, such as ``byol_plus-s0``; None for another kind of name."""
        match = re.fullmatch(r"([^/]+)-s(\d+)", name)
        return cls(match[1], int(match[2])) if match else None


@dataclass(frozen=True)
class Downstream:
    """A downstream job.

    Attributes:
        dataset: the labelled set.
        init: where the encoder is from: ``random``, ``imagenet``, a pretraining's name, or ``ckpt-<12 hex>``.
        protocol: how it is judged.
        seed: the repetition.
    """

    dataset: str
    init: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.init}/{self.protocol}/s{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Downstream | None:
        """Return the job called ``name``, such as ``breastmnist/random/few_shot/s1``; None for another kind of name."""
        match = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/s(\d+)", name)
        return cls(match[1], match[2], match[3], int(match[4])) if match else None

    @property
    def method(self) -> str:
        """How the encoder was pretrained; for one that was not, where it is from."""
        return method_of(self.init)


def method_of(init: str) -> str:
    """Return the method of an initialisation: ``byol_plus-s0`` -> ``byol_plus``, others unchanged."""
    pretraining = Pretraining.parse(init)
    return init if pretraining is None else pretraining.method


# --- data sets


def dataset(name: str, size: int) -> str:
    """Key of the store's copy of a data set, ``size`` in pixels."""
    return f"{DATA}/{file_names(name, size)[-1]}"


def phantom(name: str, size: int) -> str:
    """Key of a synthetic data set."""
    return f"{PHANTOMS}/{file_names(name, size)[-1]}"


# --- a run


def run(run_id: str) -> str:
    """Prefix of everything that a run writes."""
    return f"{RUNS}/{run_id}"


def experiment(run_id: str) -> str:
    """Key of a run's settings and plan."""
    return f"{run(run_id)}/experiment.json"


def status(run_id: str) -> str:
    """Key of what became of a run's workflow."""
    return f"{run(run_id)}/status.json"


def sample_sheet(run_id: str, name: str) -> str:
    """Key of the picture that shows some images of a data set."""
    return f"{run(run_id)}/samples/{name}.png"


def test_labels(run_id: str, name: str) -> str:
    """Key of the labels of a data set's test split."""
    return f"{run(run_id)}/samples/{name}_test_labels.json"


def joined_data(run_id: str, name: str, role: str) -> str:
    """Key of what is known of a data set that the plan does not name, and a job that was run by hand has read."""
    return f"{run(run_id)}/samples/{name}.{role}.json"


def samples(run_id: str) -> str:
    """Prefix of what the report shows of data sets."""
    return f"{run(run_id)}/samples"


def joined_name(run_id: str, key: str) -> str | None:
    """Return the data set that ``joined_data`` made this key for; None for another key."""
    found = re.fullmatch(rf"{re.escape(samples(run_id))}/([^/.]+)\.(?:{DOWNSTREAM}|{PRETRAIN})\.json", key)
    return found[1] if found else None


def val_labels(run_id: str, name: str) -> str:
    """Key of the labels of a data set's validation split."""
    return f"{run(run_id)}/samples/{name}_val_labels.json"


def report(run_id: str, name: str = "index.html") -> str:
    """Key of a file of the report; by default the page."""
    return f"{run(run_id)}/report/{name}"


def encoder(run_id: str, init: str, digest: str) -> str:
    """Key of an encoder that no job of the run trained, by its SHA-256: heads on frozen encoders point there."""
    return f"{run(run_id)}/encoders/{init}-{digest[:12]}.safetensors"


def probe(token: str) -> str:
    """Key of an object by which a store is tried."""
    return f"probe/{token}"


def workflow(name: str) -> str:
    """Key of what became of a workflow."""
    return f"workflows/{name}.json"


def shards(workflow: str) -> str:
    """Key of the shards that a workflow works off."""
    return f"workflows/{workflow}.shards.json"


def run_ids(keys: Iterable[str]) -> list[str]:
    """Return the runs that ``keys`` belong to, sorted."""
    return sorted({key.split("/")[1] for key in keys if key.startswith(f"{RUNS}/") and key.count("/") > 1})


def trial(run_id: str, identity: str) -> str:
    """Name of the run that a trial of `tune` or `ablate` is, inside that one's: equal trials have the same one."""
    return f"{run_id}/trials/{identity[:12]}"


def tried(run_id: str, keys: Iterable[str]) -> int:
    """Return how many trials of a search or ablation have their record among ``keys``."""
    return sum(bool(re.fullmatch(rf"{re.escape(run(run_id))}/trials/[^/]+/{_RECORD}", key)) for key in keys)


def tune(run_id: str) -> str:
    """Key of what a search has found."""
    return f"{run(run_id)}/tune.json"


def ablation(run_id: str) -> str:
    """Key of what an ablation has found."""
    return f"{run(run_id)}/ablation.json"


# --- a job


def job_at(uri: str) -> tuple[str | None, str] | None:
    """Split where a job's result is into its store and its folder there.

    ``s3://bucket/nih/runs/first/pretrain/byol-s0`` is in ``s3://bucket/nih``; a name without more, such as
    ``runs/first/pretrain/byol-s0``, is in whatever store was chosen (None). A file of the job stands for it, too.

    Returns:
        The store's URI and the folder; None if ``uri`` is not of this form.
    """
    place, question, options = uri.partition("?")
    names = "|".join(re.escape(name) for name in (ENCODER, MODEL, HEAD, CURVES, PREDICTIONS, _RECORD))
    jobs = rf"{PRETRAIN}/[^/]+|{DOWNSTREAM}(?:/[^/]+){{4}}"
    found = re.fullmatch(rf"(?:(.*)/)?({RUNS}/[^/]+/(?:{jobs}))(?:/(?:{names})?)?", place)
    if found is None:
        return None
    return (None if found[1] is None else (found[1] or "/") + question + options), found[2]


def pretraining(run_id: str, name: str) -> str:
    """Folder of a pretraining job such as ``byol-s0``."""
    return f"{run(run_id)}/{PRETRAIN}/{name}"


def downstream(run_id: str, name: str) -> str:
    """Folder of a downstream job such as ``pneumoniamnist/byol-s0/finetune/s0``."""
    return f"{run(run_id)}/{DOWNSTREAM}/{name}"


def record(folder: str) -> str:
    """Key of a job's record: the job is done if it is there."""
    return f"{folder}/{_RECORD}"


def robustness(folder: str) -> str:
    """Key of what corrupted test images do to the saved model of a downstream job."""
    return f"{folder}/{_ROBUSTNESS}"


def latest(folder: str) -> str:
    """Key of the pointer to a job's checkpoints."""
    return f"{folder}/{_LATEST}"


def claim(folder: str) -> str:
    """Key of the claim on a job."""
    return f"{folder}/{_CLAIM}"


def checkpoints(folder: str) -> str:
    """Prefix of a job's checkpoints."""
    return f"{folder}/checkpoints"


def checkpoint(step: int, token: str) -> str:
    """Name, inside a job's folder, of the checkpoint after ``step`` steps; ``token`` tells two writers' apart."""
    return f"checkpoints/{step:08d}-{token}.pt"


def draw_predictions(draw: int) -> str:
    """Name, inside a job's folder, of the predictions of one few-shot draw."""
    return f"draws/{draw}/{PREDICTIONS}"


def begun(run_id: str, keys: Iterable[str]) -> set[str]:
    """Return the jobs that have left something of theirs among ``keys``, as ``pretrain/<name>``, planned or not."""
    root = f"{run(run_id)}/"
    kinds = tuple(f"{root}{kind}/" for kind in (PRETRAIN, DOWNSTREAM))
    signs = tuple(f"/{name}" for name in (_RECORD, _LATEST, _CLAIM))
    return {key.removeprefix(root).rpartition("/")[0] for key in keys if key.startswith(kinds) and key.endswith(signs)}


def finished(folder: str, keys: Iterable[str]) -> set[str]:
    """Return the names of the jobs below ``folder`` whose record is among ``keys``."""
    return {
        key.removeprefix(f"{folder}/").removesuffix(f"/{_RECORD}")
        for key in keys
        if key.startswith(f"{folder}/") and key.endswith(f"/{_RECORD}")
    }
