"""What a study will take: images, steps, time, memory and disk of each stage, told before anything starts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from app.data import Dataset, Unlabelled
from app.data.files import atomic_write
from app.errors import AppError
from app.machine import cache_folder, cores
from app.quantities import size_in_words
from app.runtime import cpu_flags, cpu_model
from app.science.protocols import Protocol, protocol_of
from app.settings import Config, FewShotRecipe, Recipe
from app.stages.budgets import trials

VERSION = 2  # of what is measured; another one forgets what was kept
WORTHWHILE = 500  # steps of a study that a measurement of a few seconds pays for


@dataclass(frozen=True)
class Rates:
    """What a machine does with a network.

    Attributes:
        pretrain: images a second through a pretraining step.
        train: images a second through a fine-tuning step.
        encode: images a second through the encoder in evaluation mode.
        head: steps a second of a linear layer on features, its validation included.
        pretrain_memory: bytes that a pretraining takes, but for its images.
        train_memory: likewise of a fine-tune.
        encoder: bytes of an encoder's file.
        checkpoint: bytes of a pretraining's checkpoint.
    """

    pretrain: float
    train: float
    encode: float
    head: float
    pretrain_memory: float
    train_memory: float
    encoder: float
    checkpoint: float


@dataclass(frozen=True)
class Work:
    """A stage's jobs.

    Attributes:
        name: of the stage.
        jobs: how many.
        steps: optimizer steps of all jobs.
        pretrained: images that go through pretraining steps, all jobs and epochs together.
        trained: through fine-tuning steps.
        encoded: through the encoder in evaluation mode.
        heads: steps of linear layers alone.
        resident: bytes of images that a job holds at most.
        encoders: files of encoders, or of whole models, that stay.
    """

    name: str
    jobs: int
    steps: int
    pretrained: int = 0
    trained: int = 0
    encoded: int = 0
    heads: int = 0
    resident: int = 0
    encoders: int = 0

    def seconds(self, rates: Rates) -> float:
        """How long the jobs take, one after the other."""
        images = self.pretrained / rates.pretrain + self.trained / rates.train + self.encoded / rates.encode
        return images + self.heads / rates.head

    def memory(self, rates: Rates) -> float:
        """Bytes that a job takes at most."""
        return self.resident + (rates.pretrain_memory if self.pretrained else rates.train_memory)


def work_of(config: Config, labelled: list[Dataset], unlabelled: Unlabelled | None) -> list[Work]:
    """List what the stages of a study have to do.

    Args:
        config: its settings.
        labelled: its labelled sets.
        unlabelled: what is pretrained on; None if nothing is.
    """
    study = config.study
    stages = []
    if unlabelled is not None and study.methods:
        s, jobs = config.pretrain, len(study.methods) * len(study.seeds)
        steps = s.epochs * (len(unlabelled) // s.batch_size) // s.accumulate
        images = steps * s.batch_size * s.accumulate
        stages.append(
            Work("pretraining", jobs, jobs * steps, jobs * images, resident=unlabelled.images.nbytes, encoders=jobs)
        )
    inits = len(study.baselines) + len(study.methods)
    for name in study.protocols:
        recipe = getattr(config.protocols, name)
        kind = protocol_of(name, recipe)
        jobs = inits * len(study.seeds)
        counts = [_passes(kind, recipe, data) for data in labelled]
        steps = jobs * sum(steps for steps, _, _ in counts)
        kept = not kind.frozen and config.runtime.keep_models in ("all", name)
        stages.append(
            Work(
                name,
                jobs * len(labelled),
                steps,
                trained=jobs * sum(trained for _, trained, _ in counts),
                encoded=jobs * sum(encoded for _, _, encoded in counts),
                heads=steps if kind.frozen else 0,
                resident=max(
                    (sum(split.images.nbytes for split in data.splits.values()) for data in labelled), default=0
                ),
                encoders=jobs * len(labelled) if kept else 0,
            )
        )
    return stages


def _passes(kind: Protocol, recipe: Recipe, data: Dataset) -> tuple[int, int, int]:
    """Steps, images through fine-tuning steps, images through the encoder alone: of one job.

    The heads of a label curve on a frozen encoder are trained side by side, and each counted.
    """
    few = recipe if isinstance(recipe, FewShotRecipe) else None
    labels, curve = [len(data.train)], []
    if few is not None:
        curve = [len(trial.images) for trial in trials(few, data, 0)]
        labels = [few.k * data.n_classes] * few.draws + curve
    steps = sum(recipe.epochs * -(-count // recipe.batch_size) for count in labels)
    if kind.frozen:  # a curve takes its images from the training split, which is encoded as a whole
        seen = sum(labels) - sum(curve) + (len(data.train) if curve else 0)
        return steps, 0, seen + len(data.val) + len(data.test)
    judged = few.draws if few else 1  # the trainings of a curve are not judged on the validation split
    validated = len(labels) * (recipe.epochs * len(data.val) + len(data.test)) + judged * len(data.val)
    return steps, recipe.epochs * sum(labels), validated


def estimate_lines(config: Config, stages: list[Work], rates: Rates | None) -> list[str]:
    """Say in a line for each stage, and one for all, what it takes; without rates how much work it is.

    Args:
        config: the settings.
        stages: as ``work_of`` lists them.
        rates: of this machine, if they are known.
    """
    lines = [f"estimate: {work.name}: {_words(work, rates, config)}" for work in stages if work.jobs]
    jobs, steps = sum(work.jobs for work in stages), sum(work.steps for work in stages)
    said = f"estimate: together: {jobs:,} jobs, {steps:,} steps"
    if rates is None:
        short = steps < WORTHWHILE
        return [*lines, f"{said}; " + ("too short to be timed" if short else "not timed on this machine: `run` does")]
    seconds = sum(work.seconds(rates) for work in stages)
    memory = max((work.memory(rates) for work in stages), default=0)
    disk = sum(work.encoders for work in stages) * rates.encoder
    frozen = any(protocol_of(name, getattr(config.protocols, name)).frozen for name in config.study.protocols)
    disk += rates.encoder * len(config.study.baselines) * len(config.study.seeds) * frozen
    return [
        *lines,
        f"{said}: about {duration(seconds)} one job after the other, {size_in_words(memory)} of memory at most, "
        f"{size_in_words(disk)} of disk in the end",
    ]


def _words(work: Work, rates: Rates | None, config: Config) -> str:
    images = work.pretrained + work.trained + work.encoded
    said = f"{work.jobs:,} jobs, {work.steps:,} steps, {images:,} images through the network"
    if rates is None:
        return said
    disk = work.encoders * rates.encoder
    said += f": about {duration(work.seconds(rates))}, {size_in_words(work.memory(rates))} of memory"
    said += f", {size_in_words(disk)} of disk" if disk else ""
    if work.pretrained:
        said += f" (and {size_in_words(config.runtime.keep * rates.checkpoint)} for the checkpoints of a job at work)"
    return said


def duration(seconds: float) -> str:
    """Say a duration in two figures: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            count = seconds / size
            return f"{count:.0f} {unit}" if count >= 9.5 or unit == "s" else f"{count:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


# --- rates of this machine


def known_rates(config: Config, channels: int) -> Rates | None:
    """Return what was measured here of such a network before; None if nothing was. Needs no torch."""
    file, about = _place(config, channels)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(file.read_bytes()) if file else {}
        if found["about"] == about:
            return Rates(**{name: float(value) for name, value in found["rates"].items()})
    return None


def rates_here(config: Config, channels: int, measure: Callable[[Config, int], Rates]) -> Rates:
    """Return the rates of this machine: those that are kept, else measured now, in some seconds, and kept.

    Args:
        config: the settings.
        channels: of the images, 1 or 3.
        measure: measures them.
    """
    if (known := known_rates(config, channels)) is not None:
        return known
    rates = measure(config, channels)
    file, about = _place(config, channels)
    if file is not None:
        with (
            contextlib.suppress(AppError),
            atomic_write(file) as kept,
        ):  # a cache that cannot be written is done without
            kept.write(json.dumps({"about": about, "rates": asdict(rates)}, indent=1).encode())
    return rates


def _place(config: Config, channels: int) -> tuple[Path | None, dict[str, Any]]:
    """Where the rates are kept, and what they depend on."""
    runtime = config.runtime
    about = {
        "version": VERSION,
        "machine": [cpu_model(), *cpu_flags(), os.environ.get("CUDA_VISIBLE_DEVICES", "")],
        "device": runtime.device,
        "threads": runtime.threads or cores(),
        "network": config.network.model_dump(exclude={"init"}),
        "batch": config.pretrain.batch_size,
        "precision": config.pretrain.precision,
        "optimizer": config.pretrain.optimizer,
        "size": config.data.size,
        "channels": channels,
    }
    folder = cache_folder("rates")
    name = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return (folder / f"{name}.json" if folder else None), about
