"""The processes ("ranks") that pretrain one network together, one on each GPU, and what they tell each other.

Rank 0 leads: it holds the job, saves, measures and stops. The others do each step that it does, on their rows of
the same batch. They are started by ``torchrun``, or by rank 0 itself.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but for torch's stubs
from torch.nn.parallel import DistributedDataParallel

from app.errors import AppError, UsageError, error_of
from app.runtime import SIGNALS, end_with_the_parent
from app.science.norms import GlobalBatchNorm


class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        spawn: starts the others, by rank 0, if they are still to be started.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.spawn: Callable[[], None] = lambda: None
        self._stepping = False

    @property
    def lead(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which rows of a batch of ``count`` are this rank's: equal shares, in order.

        Raises:
            UsageError: the batch cannot be shared equally.
        """
        if count % self.world:
            raise UsageError(
                f"pretrain.batch_size={count}: cannot be shared by {self.world} processes; "
                f"use --set pretrain.batch_size={max(1, count // self.world) * self.world}, or runtime.processes"
            )
        share = count // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def ddp(self, model: nn.Module) -> nn.Module:
        """Return ``model`` so that all ranks train it as one process would with the whole batch.

        BatchNorm takes its statistics over the whole batch and gradients are averaged. ``model`` and its parameters
        stay the same objects, and rank 0's values are everybody's.
        """
        if self.world == 1:
            return model
        _share_statistics(model)
        # torch's remark on 1x1 kernels, whose strides it compares where they have no meaning
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(
            model, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Leave gradients of ``model`` (of ``ddp``) unshared meanwhile: more will be added to them."""
        return cast(Any, model).no_sync() if self.world > 1 else contextlib.nullcontext()

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in order."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over the ranks."""
        return self.gather(value.reshape(1)).mean()

    def broadcast(self, value: Any = None) -> Any:
        """Return what rank 0 passes as ``value``, on every rank."""
        told = [value]
        if self.world > 1:
            dist.broadcast_object_list(told, device=torch.device("cpu"))
        return told[0]

    def barrier(self, on: bool = True) -> bool:
        """Return, on every rank, whether rank 0 goes on with another step."""
        if self.world == 1:
            return on
        self._stepping = True
        flag = torch.tensor([int(on)])  # on the CPU: no GPU has to be waited for
        dist.broadcast(flag, 0)
        return bool(flag)

    def end(self) -> None:
        """Send the others home, by rank 0, wherever they wait for its word."""
        if self.world > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # they are gone: what ends us matters more
                if self._stepping:
                    self.barrier(False)
                else:
                    self.broadcast(None)


def started_by_torchrun() -> bool:
    """Say whether ``torchrun`` started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def torchrun_rank() -> int:
    """Return the number that torchrun gave this process; 0 without it."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def process_count(wanted: int | None, device: str) -> int:
    """Return how many processes are to train together: torchrun's, else ``wanted``, else one on each GPU.

    Raises:
        UsageError: there are fewer GPUs.
    """
    if started_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if wanted is None:
        return max(1, gpus)
    if device == "cuda" and wanted > gpus:
        raise UsageError(f"runtime.processes={wanted}: there are {gpus} GPUs; use one process a GPU at most")
    return wanted


@contextlib.contextmanager
def joined(rank: int, world: int, device: str, store: TCPStore | None = None) -> Iterator[Ranks]:
    """Be one of several ranks meanwhile.

    Args:
        rank: its number.
        world: how many there are.
        device: ``cpu`` or ``cuda``: the GPU is that of the rank's number on its machine.
        store: where they meet; None: as torchrun says.
    """
    if rank > 0:  # signals are for rank 0, which tells the others; torchrun sends them to all
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    if device == "cuda":
        torch.cuda.set_device(rank if store is not None else int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Ranks(rank, world)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def leading(world: int, device: str, follow: Callable[..., None], *args: Any) -> Iterator[Ranks]:
    """Lead ``world`` ranks meanwhile, this process the first of them.

    Under torchrun the others are there. Else ``Ranks.spawn`` starts them, once there is something to do.

    Args:
        world: how many.
        device: ``cpu`` or ``cuda``.
        follow: what the others run, in processes of their own: ``follow(ranks, *args)``.
        *args: picklable.

    Raises:
        AppError: one of the others ended before its time: of the kind whose exit code it ended with. What it says
            stands in its own lines.
    """
    ranks = Ranks(0, world)
    followers: list[SpawnProcess] = []
    with contextlib.ExitStack() as group:

        def spawn() -> None:
            store = rendezvous(world, 0, 0)
            # Blocked, not handled: so they are in the others too, and a terminal's Ctrl-C reaches rank 0 alone.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                for rank in range(1, world):
                    target = (rank, world, device, store.port, follow, args)
                    followers.append(get_context("spawn").Process(target=_follower, args=target, daemon=True))
                    followers[-1].start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            group.enter_context(joined(0, world, device, store))

        if world > 1 and started_by_torchrun():
            group.enter_context(joined(0, world, device))
        elif world > 1:
            ranks.spawn = spawn
        try:
            yield ranks
            ranks.end()
            for process in followers:
                process.join(30)
        except RuntimeError as error:  # torch's word for a rank that is gone, and for much else
            deadline = time.monotonic() + 20  # a rank that has died is a process that ends
            for process in followers:
                process.join(max(0.0, deadline - time.monotonic()))
            if codes := [process.exitcode for process in followers if process.exitcode]:
                code = first_cause(codes)
                raise error_of(code)(
                    f"pretrain: one of {world} processes has ended ({code}); its own lines say why"
                ) from error
            raise
        except BaseException:
            ranks.end()
            for process in followers:
                process.join(5)
            raise
        finally:
            for process in followers:
                process.kill()


def first_cause(codes: list[int]) -> int:
    """Return, of the exit codes of processes that failed together, that of the one which failed by itself.

    The others die of torch's RuntimeError, with 1, since they miss it: a documented code comes before a signal's
    (below 0), and both before every other.
    """
    return min(codes, key=lambda code: (error_of(code).exit_code != code, code > 0))


def rendezvous(world: int, rank: int, port: int) -> TCPStore:
    """Return where ranks of this machine meet; rank 0 opens it at a free port (``port`` 0).

    Who waits there for others that do not come gives up with a RuntimeError after five minutes.
    """
    wait = datetime.timedelta(minutes=5)
    return TCPStore("127.0.0.1", port, world, rank == 0, timeout=wait, wait_for_workers=False)


def _follower(
    rank: int, world: int, device: str, port: int, follow: Callable[..., None], args: tuple[Any, ...]
) -> None:
    end_with_the_parent(AppError.exit_code)
    try:
        with joined(rank, world, device, rendezvous(world, rank, port)) as ranks:
            follow(ranks, *args)
    except AppError as error:
        print(f"error: rank {rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def _share_statistics(model: nn.Module) -> None:
    """Make every BatchNorm of ``model`` one over all ranks, with the same parameters, buffers and mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.weight.is_cuda:
                module.__class__ = nn.SyncBatchNorm  # type: ignore[assignment]
                vars(module)["process_group"] = None  # all ranks
            else:
                module.__class__ = GlobalBatchNorm
