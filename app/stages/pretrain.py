"""The pretraining job: unlabelled images to an encoder, by BYOL or BYOL+."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from app.config import identity
from app.data import Dataset, Unlabelled
from app.errors import CollapseError
from app.jobs import keys
from app.jobs.checkpoint import dump_weights
from app.jobs.job import Job, done_as_planned, open_job
from app.jobs.records import DatasetInfo, PretrainRecord
from app.jobs.run import Run, load_labelled, load_pretraining, monitor_name, now, planned_data
from app.machine import enough_memory
from app.progress import Progress
from app.runtime import choose_device, environment, machine_of, prepare
from app.science import pretraining
from app.science.convolutions import Table, names_of
from app.science.distributed import Ranks, joined, leading, process_count, torchrun_rank
from app.science.monitor import Monitor
from app.science.pretraining import Trainer
from app.settings import Config, Method
from app.stages.kernel_choice import choose_kernels
from app.stages.samples import join_data
from app.stages.weights import Weights, describe, initial_weights
from app.storage import open_store

WATCHING = ("monitor_every", "knn_neighbours", "knn_temperature", "collapse_below")  # never change the encoder


def run(run: Run, *, method: Method, seed: int, overwrite: bool = False) -> dict[str, Any] | None:
    """Pretrain one encoder and publish it, on all GPUs there are or with ``runtime.processes`` processes.

    In this order: a record of the same science is returned as it is; a checkpoint is continued; else the
    encoder starts from ``network.init``. Equal settings, seed, device and thread count give equal tensors,
    however often the job is stopped and continued.

    Args:
        run: the run.
        method: ``byol`` or ``byol_plus``.
        seed: names all random draws.
        overwrite: start afresh, whatever is there.

    Returns:
        The job's record; None in a process that torchrun started beside the first one.

    Raises:
        Interrupted: a signal came and the checkpoint is saved, or another process works on the job.
        CollapseError: NaN, or the target's std fell below ``pretrain.collapse_below``.
    """
    config, store = run.config, run.store
    device = choose_device(config.runtime.device)
    world = process_count(config.runtime.processes, device)
    Ranks(0, world).rows(config.pretrain.batch_size)  # a batch that cannot be shared ends every rank before they meet
    if (rank := torchrun_rank()) > 0:
        with joined(rank, world, device) as ranks:
            follow(ranks, store.address, run.run_id, config, method, seed)
        return None
    name = str(keys.Pretraining(method, seed))
    folder = keys.pretraining(run.run_id, name)
    progress = Progress("pretrain", run_id=run.run_id, job=name)
    with leading(world, device, follow, store.address, run.run_id, config, method, seed) as ranks:
        weights = initial_weights(run, config.network.init)
        if not overwrite and (planned := planned_data(run, config.data.pretrain)) is not None:
            science = science_of(config, method, seed, planned, weights)
            if (record := done_as_planned(run, folder, science, progress=progress)) is not None:
                return record
        data = load_pretraining(run)
        monitor = load_labelled(run, watched) if (watched := monitor_name(run)) else None
        science = science_of(config, method, seed, data, weights)
        with open_job(run, folder, science, progress=progress, overwrite=overwrite) as job:
            if job.record is not None:
                return job.record
            prepare(device, config.runtime.threads, world)
            trainer = build_trainer(config, method, seed, data, device, monitor)
            start_or_continue(trainer, job, weights, lambda: kernels_of(trainer, config, data, world))
            trainer.join(ranks)
            with progress.bar(trainer.total_steps, trainer.step) as bar, curves_of_a_collapse(job, trainer):
                pretraining.train(
                    trainer,
                    show=bar.advance,
                    after_step=lambda step, state: job.after_step(step, state, f"step {step} of {trainer.total_steps}"),
                )
            join_data(run, data, "pretrain")
            return job.publish(*result(run, method, seed, data, science, trainer))


def start_or_continue(trainer: Trainer, job: Job, weights: Weights, choose: Callable[[], Table]) -> None:
    """Continue from the job's checkpoint if there is one; else start from initial weights.

    Args:
        trainer: as it was made.
        job: whose checkpoint may be there.
        weights: to start from.
        choose: finds out how the convolutions are best done here. A training that was begun on another machine keeps
            its ways, unless that was a GPU, which has no choice.
    """
    state = job.restore()
    if state is None:
        trainer.start(weights.load_into)
        trainer.use_kernels(choose())
        return
    with job.resuming():
        trainer.load_state(state)
    say = job.progress.say
    say(f"continues at step {trainer.step} of {trainer.total_steps}", step=trainer.step)
    if trainer.began_on != machine_of(trainer.device):
        say(f"began on another machine ({trainer.began_on}): from here on equal to rounding alone")
        if not trainer.kernels:
            trainer.use_kernels(choose())


@contextlib.contextmanager
def curves_of_a_collapse(job: Job, trainer: Trainer) -> Iterator[None]:
    """Keep the curves of a training that collapses: they show how.

    Raises:
        CollapseError: as the body did.
    """
    try:
        yield
    except CollapseError:
        job.claim.confirm()
        job.run.store.write(f"{job.folder}/{keys.CURVES}", trainer.curves_bytes())
        raise


def follow(ranks: Ranks, address: str, run_id: str, config: Config, method: Method, seed: int) -> None:
    """Be one of the other ranks of a pretraining: do each step that rank 0 does.

    Args:
        ranks: this process among them.
        address: of the store.
        run_id: the run's name.
        config: its configuration.
        method: as rank 0's.
        seed: likewise.

    Raises:
        UsageError: there is not enough memory.
    """
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads, ranks.world)
    run = Run(open_store(address), run_id, config)
    with enough_memory("pretrain.batch_size"):
        trainer = build_trainer(config, method, seed, load_pretraining(run), device)
        if trainer.join(ranks):
            pretraining.follow(trainer)


def build_trainer(
    config: Config, method: Method, seed: int, data: Unlabelled, device: str, monitor: Dataset | None = None
) -> Trainer:
    """Return the trainer of a method at step 0; see ``Trainer``."""
    few = config.protocols.few_shot_frozen
    return Trainer(
        config.pretrain,
        config.network,
        config.augmentation(method),
        data,
        seed=seed,
        device=device,
        monitor=Monitor(monitor, config.pretrain, few, device) if monitor else None,
        compile=config.runtime.compile,
    )


def kernels_of(trainer: Trainer, config: Config, data: Unlabelled, processes: int = 1) -> Table:
    """Return how the convolutions of a pretraining on ``data`` are done on this machine."""
    return choose_kernels(
        nn.Sequential(trainer.model.online, trainer.model.predictor),
        channels=data.channels,
        size=data.size,
        batch=config.pretrain.batch_size // processes,
        precision=trainer.precision,
        device=trainer.device,
        wanted=config.runtime.kernels,
        steps=trainer.total_steps,
    )


def result(
    run: Run, method: Method, seed: int, data: Unlabelled, science: dict[str, Any], trainer: Trainer
) -> tuple[dict[str, bytes], PretrainRecord]:
    """Return the files and the record of a finished pretraining."""
    config = run.config
    metadata = describe(
        config,
        data.synthetic,
        method=method,
        seed=str(seed),
        pretraining_data=f"{data.title}, {len(data)} images",
        licence=data.licence,
        channels=str(data.channels),
    )
    files = {
        keys.ENCODER: dump_weights(trainer.model.encoder.plain_state(), metadata),
        keys.CURVES: trainer.curves_bytes(),
    }
    where = {
        "precision": trainer.precision,
        "compiled": trainer.compiled,
        "processes": trainer.ranks.world,
        "kernels": names_of(trainer.kernels) if trainer.device == "cpu" else {},
        "began_on": trainer.began_on,
    }
    return files, PretrainRecord(
        run_id=run.run_id,
        key=str(keys.Pretraining(method, seed)),
        method=method,
        seed=seed,
        synthetic=data.synthetic,
        identity=identity(science),
        science=science,
        config=config.model_dump(mode="json"),
        environment=environment(trainer.device) | where,
        data={data.name: {"sha256": data.sha256, "images": len(data)} | data.read_as},
        metrics=trainer.metrics,
        timings={
            "seconds": round(trainer.seconds, 3),
            "images_per_second": round(trainer.total_steps * trainer.images_per_step / trainer.seconds, 1),
        },
        steps=trainer.total_steps,
        epochs=config.pretrain.epochs,
        finished=now(),
    )


def science_of(
    config: Config, method: str, seed: int, data: Unlabelled | DatasetInfo, weights: Weights
) -> dict[str, Any]:
    """Return what decides the encoder: the settings this method reads, the seed, and the data by checksum."""
    tree = config.science()
    views = tree["views"] | (tree["views_plus"] if method == "byol_plus" else {})
    return {
        "method": method,
        "seed": seed,
        "data": {
            "name": config.data.pretrain,
            "sha256": data.sha256,
            "split": config.data.pretrain_split,
            "size": data.size,
            "subset": config.data.subset,
        },
        "network": tree["network"] | {"init": weights.identity},
        "pretrain": {name: value for name, value in tree["pretrain"].items() if name not in WATCHING},
        "views": views,
    }
