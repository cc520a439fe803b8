"""What survival costs: training with checkpoints against training without, turn by turn in one process."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.bench.step import endless_trainer
from app.errors import UsageError
from app.jobs.checkpoint import CheckpointWriter, drop_checkpoints
from app.jobs.run import Run, load_pretraining
from app.progress import Progress
from app.runtime import choose_device, prepare
from app.science.pretraining import Trainer
from app.settings import Config
from app.stages.fallback import settle_data
from app.storage import Store

WARM_UP_STEPS = 5


@dataclass
class Turn:
    """One stretch of training.

    Attributes:
        steps: optimizer steps done.
        seconds: wall time.
        cpu: CPU seconds of this process, its threads included.
        server_cpu: CPU seconds of the storage server; 0 if it was not named.
    """

    steps: int
    seconds: float
    cpu: float
    server_cpu: float


def bench_checkpoint(
    store: Store, config: Config, *, every: float, rounds: int, server: int | None = None
) -> Iterator[str]:
    """Measure what a checkpoint costs training, and yield the lines to print.

    Turns of ``every`` seconds without and with a checkpoint, which is taken at the turn's begin and written
    in the background, take each other's place in the order 1 2 2 1 …, so that whatever else the machine does
    meets both alike.

    Args:
        store: where the checkpoints go; they are removed at the end.
        config: what to train: its networks decide the size, its data may be phantoms.
        every: seconds from one checkpoint to the next.
        rounds: pairs of turns.
        server: number of the storage server's process on this machine, to show its CPU time apart: while training
            keeps every core busy, each of its seconds is one that training lost.

    Raises:
        UsageError: there is no process of that number.
    """
    config = settle_data(store, config, pretrains=True)
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    trainer = endless_trainer(config, load_pretraining(Run(store, "", config)), device)
    progress = Progress("bench")
    folder = f"bench/{secrets.token_hex(4)}"
    writer = CheckpointWriter(store, folder, keep=1, generation=0)
    for _ in range(WARM_UP_STEPS):
        trainer.advance()
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    try:
        for number in range(rounds):
            for saving in (False, True) if number % 2 == 0 else (True, False):
                turns[saving].append(_turn(trainer, writer if saving else None, every, server))
            plain, saved = turns[False][-1], turns[True][-1]
            progress.say(f"round {number + 1} of {rounds}: {_ratio(saved, plain):.4f}")
        size = sum(len(store.read(key)) for key in store.list(f"{folder}/checkpoints"))
    finally:
        drop_checkpoints(store, folder)
    yield from _summary(turns[False], turns[True], size, server is not None)


def _turn(trainer: Trainer, writer: CheckpointWriter | None, seconds: float, server: int | None) -> Turn:
    begin, cpu, server_cpu, first = time.perf_counter(), time.process_time(), _cpu_of(server), trainer.step
    if writer is not None:
        writer.submit(trainer.step, trainer.state())
    while time.perf_counter() - begin < seconds:
        trainer.advance()
        if writer is not None:
            writer.check()
    if writer is not None:
        writer.flush()
    return Turn(
        steps=trainer.step - first,
        seconds=time.perf_counter() - begin,
        cpu=time.process_time() - cpu,
        server_cpu=_cpu_of(server) - server_cpu,
    )


def _summary(plain: list[Turn], saved: list[Turn], size: int, with_server: bool) -> Iterator[str]:
    for name, turns in (("without checkpoints", plain), ("with checkpoints", saved)):
        steps = sum(turn.steps for turn in turns)
        wall, cpu = sum(turn.seconds for turn in turns) / steps, sum(turn.cpu for turn in turns) / steps
        yield f"{name}: {steps} steps, {1000 * wall:.1f} ms a step ({1000 * cpu:.1f} ms CPU)"
    ratios = [_ratio(one, other) for one, other in zip(saved, plain, strict=True)]
    yield (
        f"training time, with over without: {_ratio(_total(saved), _total(plain)):.4f} "
        f"(rounds: {min(ratios):.4f} to {max(ratios):.4f}, median {statistics.median(ratios):.4f})"
    )
    cpu = (_total(saved).cpu / _total(saved).steps) / (_total(plain).cpu / _total(plain).steps)
    yield f"CPU time of this process, with over without: {cpu:.4f}"
    yield f"checkpoint: {size / 1e6:.1f} MB"
    if with_server:
        each = (_total(saved).server_cpu - _total(plain).server_cpu) / len(saved)
        yield f"CPU time of the storage server, apart: {each:.2f} s a checkpoint"
        cores = len(os.sched_getaffinity(0))
        lasted = _total(saved).seconds - (_total(saved).server_cpu - _total(plain).server_cpu) / cores
        ratio = (lasted / _total(saved).steps) / (_total(plain).seconds / _total(plain).steps)
        yield f"training time, with over without, had the server not shared our {cores} busy cores: {ratio:.4f}"


def _total(turns: list[Turn]) -> Turn:
    return Turn(
        sum(t.steps for t in turns),
        sum(t.seconds for t in turns),
        sum(t.cpu for t in turns),
        sum(t.server_cpu for t in turns),
    )


def _ratio(saved: Turn, plain: Turn) -> float:
    return (saved.seconds / saved.steps) / (plain.seconds / plain.steps)


def _cpu_of(process: int | None) -> float:
    """CPU seconds that a process of this machine has used."""
    if process is None:
        return 0.0
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise UsageError(f"--server-pid {process}: there is no such process on this machine") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
