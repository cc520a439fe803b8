"""BatchNorm over other groups than one batch of one process: each of two views, or the batch of all ranks.

Both stand for ``nn.BatchNorm1d`` and ``2d`` alike: a module becomes one of them by its ``__class__``, with the
same parameters, buffers and mode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GroupBatchNorm(nn.BatchNorm1d):
    """What the two have in common: any number of dimensions, and running statistics."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any number of dimensions."""

    def track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of one more group.

        Args:
            mean: of the group, (C,).
            variance: likewise, over ``count`` and not ``count - 1``.
            count: values of each channel in the group, 2 or more.
        """
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class PairedBatchNorm(GroupBatchNorm):
    """BatchNorm of a batch whose two halves are two views: each half by statistics of its own.

    The same as ``nn.BatchNorm1d`` or ``2d`` on one half and then on the other, to rounding, running statistics
    included. In evaluation mode there are no halves.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (2B, C, …)."""
        if not self.training:
            return super().forward(x)
        last = x.movedim(1, -1)  # in channels-last memory, where this is how images lie, no copy
        halves = last.reshape(2, -1, last.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(halves, 1, correction=0, keepdim=True)
        for half in range(2):
            self.track(mean[half, 0], variance[half, 0], halves.shape[1])
        scaled = (halves - mean) * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias
        return scaled.to(x.dtype).reshape(last.shape).movedim(-1, 1)


class GlobalBatchNorm(GroupBatchNorm):
    """BatchNorm with the statistics of the whole batch, as ``nn.SyncBatchNorm``, which refuses CPU tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, C, …) by mean and variance over all ranks' rows, equally many on each."""
        if not self.training:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        world = dist.get_world_size()
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = SumOverRanks.apply(values.mean(axes)) / world
        centred = values - mean.view(shape)
        variance: Tensor = SumOverRanks.apply(centred.square().mean(axes)) / world
        self.track(mean, variance, world * x.numel() // x.shape[1])
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return torch.addcmul(self.bias.view(shape), scaled, self.weight.view(shape)).to(x.dtype)


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; so is its gradient.

    torch's own (``torch.distributed.nn.functional.all_reduce``) gives the same, but warns that it will go and refuses
    to be compiled; what it names instead is private.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Add up ``x``."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Add up its gradient."""
        return SumOverRanks.forward(ctx, gradients[0])
