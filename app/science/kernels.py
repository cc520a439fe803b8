"""Which way each convolution of a network takes: measured, not assumed.

For every shape and pass the ways of ``convolutions.py`` are timed against each other at the job's number of images.
A way whose result is further than rounding from the float32 one, or not finite, is out; so is one that gains less than
``WORTH`` over the default, so that noise decides nothing that does not matter.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from app.machine import out_of_memory
from app.science.convolutions import (
    FEW,
    LIBRARY,
    ONEDNN,
    ROWS,
    TAPS,
    Convolution,
    Linear,
    Shape,
    Table,
    Ways,
    backward,
    can_take,
    default_ways,
    forward,
    plain_ways,
)

WORTH = 1.05  # how many times as fast as the default a way has to be
HOPELESS = 3.0  # a way that is so many times slower than the fastest is not timed again
ROUNDS, SECONDS = (3, 9), 0.02  # of timing each way: at least and at most so many, the more only within so long
ROUNDING = {"float32": 2e-5, "bfloat16": 2e-2}  # largest error over largest value
LARGEST = {FEW: 16, ROWS: 8, TAPS: 16}  # pixels along an axis beyond which a way never paid


def shapes_of(network: nn.Module, images: Tensor, precision: str) -> list[Shape]:
    """Return the shapes of all convolutions that have a choice, each once.

    Args:
        network: takes ``images``; left as it is.
        images: (N, C, H, W); two are enough.
        precision: ``float32`` or ``bfloat16``.
    """
    found: dict[Shape, None] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Convolution | Linear)
        found[layer.shape_of(inputs[0])] = None

    ours = [m for m in network.modules() if isinstance(m, Linear) or (isinstance(m, Convolution) and m.groups == 1)]
    handles = [module.register_forward_pre_hook(look) for module in ours]
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            network.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return list(found)


def plain_table(shapes: list[Shape]) -> Table:
    """Return torch's own way for every shape, where it is right."""
    return {str(shape): plain_ways(shape) for shape in shapes}


def measured_table(shapes: list[Shape], batch: int) -> Table:
    """Time all ways of all shapes with ``batch`` images: about a second for a ResNet-18 at 28 px."""
    return {str(shape): measured_ways(shape, batch) for shape in shapes}


def measured_ways(shape: Shape, batch: int) -> Ways:
    """Return the fastest way of each pass that can be trusted."""
    dtype = torch.bfloat16 if shape.precision == "bfloat16" else torch.float32
    made = torch.Generator().manual_seed(0)
    sizes = (batch, shape.inputs, shape.height, shape.width), (shape.outputs, shape.inputs, *[shape.kernel] * 2)
    x, weight = (
        torch.randn(size, generator=made).to(dtype).contiguous(memory_format=torch.channels_last) for size in sizes
    )
    with torch.no_grad():
        right = forward(x.float(), weight.float(), shape.stride, LIBRARY)
        gradient = torch.randn(right.shape, generator=made).to(dtype).contiguous(memory_format=torch.channels_last)
        tensors = gradient, x, weight
        exact = gradient.float(), x.float(), weight.float()
        of_x, of_weight = backward(*exact, shape.stride, Ways(LIBRARY, LIBRARY, LIBRARY))
        passes: dict[str, tuple[Tensor | None, Callable[[str], Tensor | None]]] = {
            "forward": (right, lambda way: forward(x, weight, shape.stride, way)),
            "input": (of_x, lambda way: backward(*tensors, shape.stride, Ways(way, way, way), (True, False))[0]),
            "weight": (of_weight, lambda way: backward(*tensors, shape.stride, Ways(way, way, way), (False, True))[1]),
        }
        sound = {
            which: sound_ways(
                {way: functools.partial(do, way) for way in ways_of(shape, which)},
                right=cast(Tensor, expected),
                rounding=ROUNDING[shape.precision],
            )
            for which, (expected, do) in passes.items()
        }
        usual = default_ways(shape)
        best = Ways(**{which: fastest(ways, usual=getattr(usual, which)) for which, ways in sound.items()})
        if any(way not in sound[which] for which, way in vars(usual).items()):
            return best

        def whole(ways: Ways) -> None:
            forward(x, weight, shape.stride, ways.forward)
            backward(*tensors, shape.stride, ways)

        # Passes share work, and what one leaves in the CPU's cache: the three together decide.
        together = {"best": functools.partial(whole, best), "usual": functools.partial(whole, usual)}
        return best if best != usual and fastest(together, usual="usual") == "best" else usual


def ways_of(shape: Shape, which: str) -> list[str]:
    """Return the ways of a pass that are worth a measurement; ``which`` is ``forward``, ``input`` or ``weight``."""
    size = max(shape.height, shape.width)
    pays = {FEW: shape.kernel == 3 or shape.stride == 2, ROWS: shape.kernel == 3 and size > 1, TAPS: True}
    ways = [way for way, may in pays.items() if may and (size <= LARGEST[way] or shape.kernel == 1)]
    # Not few products beyond 2x2 by oneDNN: they are many small ones, and it takes them one by one.
    ways += [way + ONEDNN for way in ways if way != FEW or size <= 2]
    return [way for way in [LIBRARY, *ways] if can_take(shape, which, way)]


def sound_ways(
    ways: Mapping[str, Callable[[], Tensor | None]], *, right: Tensor, rounding: float
) -> dict[str, Callable[[], Tensor | None]]:
    """Return those ways that come out right.

    Args:
        ways: by name; each computes the same tensor.
        right: what they should compute.
        rounding: the largest error that is let through, over the largest value of ``right``.
    """
    return {name: do for name, do in ways.items() if _is_right(do, right, rounding)}


def fastest(ways: Mapping[str, Callable[[], object]], *, usual: str) -> str:
    """Return the name of the fastest way: ``usual`` if it is among them and nearly as fast, or if they are none."""
    alive = dict(ways)
    times = dict.fromkeys(alive, math.inf)
    begin = time.perf_counter()
    for number in range(ROUNDS[1]):
        for name, do in alive.items():
            before = time.perf_counter()
            do()
            times[name] = min(times[name], time.perf_counter() - before)
        best = min(times.values(), default=math.inf)
        alive = {name: do for name, do in alive.items() if times[name] <= HOPELESS * best}
        if number + 1 >= ROUNDS[0] and time.perf_counter() - begin > SECONDS * len(alive):
            break
    if not times or times.get(usual, math.inf) <= WORTH * best:
        return usual
    return min(times, key=lambda name: times[name])


def _is_right(do: Callable[[], Tensor | None], right: Tensor, rounding: float) -> bool:
    # What a way leaves unwritten must not look right because of what lay there before.
    poison = [torch.full_like(right, torch.nan, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    del poison
    found: Tensor | None = None
    try:
        found = do()
    except RuntimeError as error:  # a library that cannot do it is no way; memory it may have another time
        if out_of_memory(error):
            raise
    if found is None or found.shape != right.shape or not bool(found.isfinite().all()):
        return False
    return float((found.float() - right).abs().max()) <= rounding * float(right.abs().max())
