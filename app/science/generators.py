"""Random draws keyed by what they are for, so that a resumed run replays them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """Make a CPU generator from a key such as ``("views", seed, step)``.

    Equal keys give equal draws on every machine. The seed is 63 bits of the SHA-256 of the key, of which
    torch's CPU generator reads 32: among a hundred thousand keys about one pair shares its stream, which
    does no harm, as the two draws then serve different images.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def epoch_order(count: int, *key: int | str) -> Tensor:
    """Return a permutation of ``range(count)``, int64, drawn from ``key``."""
    return torch.randperm(count, generator=generator("order", *key))


def batches(count: int, batch_size: int, key: tuple[int | str, ...], *, again: bool = False) -> Iterator[Tensor]:
    """Yield the places of each batch of a downstream epoch, in an order drawn from ``key``.

    With ``again``, each is followed by as many places again, the first of another order.
    """
    order = list(epoch_order(count, "downstream", *key).split(batch_size))
    if len(order) > 1 and len(order[-1]) == 1:  # BatchNorm cannot train on one image
        order[-2:] = [torch.cat(order[-2:])]
    for step, at in enumerate(order):
        yield torch.cat([at, epoch_order(count, "again", *key, step)[: len(at)]]) if again else at


def batch_at(step: int, *, count: int, batch_size: int, seed: int) -> Tensor:
    """Indices of the images of one micro-batch of pretraining: a pure function of the step.

    Every epoch visits a fresh permutation and leaves out the last incomplete batch, whose size BatchNorm
    would feel.

    Args:
        step: micro-batch number since the start of the run.
        count: number of images.
        batch_size: images in a micro-batch, at most ``count``.
        seed: the run's seed.

    Returns:
        Indices, (``batch_size``,), int64.
    """
    per_epoch = count // batch_size
    epoch, position = divmod(step, per_epoch)
    order = _pretraining_order(count, seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _pretraining_order(count: int, seed: int, epoch: int) -> Tensor:
    """Keep an epoch's order: to draw it anew in every step would take a GPU's host longer than all else."""
    return epoch_order(count, "pretrain", seed, epoch)
