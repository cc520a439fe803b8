"""A step of training on a GPU, recorded once and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]


class Replay:
    """A function of tensors as a CUDA graph: one launch in place of a thousand.

    At 28 px a step of BYOL is a thousand kernels of a few microseconds each, faster than Python launches them. A
    graph holds them all, with the addresses that they read and write, so inputs and outputs stay where they are.
    The first calls are not replayed: they compile, choose algorithms and make the optimizer's state, none of which
    can be recorded. They run on another stream, as PyTorch's notes on CUDA graphs want it.

    Args:
        step: what to record. It reads its arguments and what it holds itself, must not look at a value on the CPU,
            and returns tensors.
        device: of the arguments that ``step`` gets.
    """

    warm_up = 3

    def __init__(self, step: Step, device: str) -> None:
        self._step, self._device = step, device
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the step.

        Args:
            *inputs: on the CPU, of the same shapes and types in every call.

        Returns:
            What the step returns; a later call overwrites it.
        """
        if not self._inputs:
            self._inputs = tuple(given.to(self._device) for given in inputs)
        for place, given in zip(self._inputs, inputs, strict=True):
            # From pinned memory a copy waits for nothing, and its memory is not used anew until it is done.
            place.copy_(given.pin_memory(), non_blocking=True)
        if self._calls < self.warm_up:
            self._outputs = self._aside()
        else:
            if self._graph is None:
                self._graph = self._record()
            self._graph.replay()
        self._calls += 1
        return self._outputs

    def _aside(self) -> tuple[Tensor, ...]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # not yet
            outputs = self._step(*self._inputs)
        current.wait_stream(side)
        return outputs

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: one may be writing a checkpoint.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._step(*self._inputs)
        return graph
