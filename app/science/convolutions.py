"""Convolutions on small maps: several ways to one result, of which every machine has its own fastest.

At 28 to 64 px most maps of a ResNet have 1 to 64 pixels, where an ordinary convolution multiplies much padding and
libraries are slow. Each of a convolution's three passes, ``forward``, the gradient of its ``input`` and that of its
``weight``, can be done in these ways, equal to rounding:

    ``library``  torch's own: oneDNN
    ``few``      minimal filters along both axes (``filters.py``): the fewest products, with additions before and after
                 that bfloat16 does not stand on maps beyond 2x2
    ``rows``     a row of the output is one product of the rows under it and a matrix that holds the kernel at each of
                 its pixels: no copies of maps, more multiplications
    ``taps``     a product for each tap, of all pixels that it touches: a linear layer where there is one tap

All but the first are products of matrices, by torch's default or, in float32, by oneDNN (``rows:onednn``), which is
faster where the default does not know the CPU. Which way is taken is a table, see ``kernels.py``; what the table does
not have goes by ``default_ways``.

What it brings to a whole step of pretraining (ResNet-18, stock stem, 28 px, batch 256) over the library alone: on one
core of an Intel Xeon, model 207, with AMX, 3.0 times the speed in float32 and 1.9 times in bfloat16. There the default
table would bring as much in float32, and 1.6 times in bfloat16. It was made on CPUs with AVX2; on an AMD EPYC with
AVX-512 it is a quarter slower than the best that was tried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.science.products import (
    Few,
    forward_by_rows,
    forward_by_the_tap,
    has_onednn_linear,
    input_by_rows,
    input_by_the_tap,
    named,
    one_tap,
    weight_by_taps,
)

LIBRARY, FEW, ROWS, TAPS, ONEDNN = "library", "few", "rows", "taps", ":onednn"

# Pixels along an axis, by kernel and stride, up to which few products are taken where nothing was measured (on oneDNN
# 3.12 with AVX2 a training step is faster so; batches of 128 and 256, 64 to 512 channels).
LARGEST_MAP = {(3, 1): 8, (3, 2): 4, (1, 2): 2}


@dataclass(frozen=True)
class Ways:
    """How each pass of a convolution is done; whether a shape's can be done so is for ``can_take`` to say."""

    forward: str
    input: str
    weight: str

    def __post_init__(self) -> None:
        """Refuse a way that there is not.

        Raises:
            ValueError: such a way.
        """
        for way in (self.forward, self.input, self.weight):  # astuple would copy, at every layer of every step
            if str(way).removesuffix(ONEDNN) not in (LIBRARY, FEW, ROWS, TAPS):
                raise ValueError(f"{way}: no way of doing a convolution")


class Shape(NamedTuple):
    """What decides which way is the fastest, but for the machine and the number of images."""

    kernel: int
    stride: int
    inputs: int
    outputs: int
    height: int
    width: int
    precision: str
    linear: bool = False  # of a linear layer, whose own way is another than that of a convolution of one pixel

    def __str__(self) -> str:
        if self.linear:
            return f"linear {self.inputs}-{self.outputs} {self.precision}"
        return (
            f"{self.kernel}x{self.kernel}/{self.stride} {self.inputs}-{self.outputs} "
            f"{self.height}x{self.width} {self.precision}"
        )

    @classmethod
    def of(cls, name: str) -> Shape:
        """Return the shape of this name, as ``str`` gives it.

        Raises:
            ValueError: no shape has it.
        """
        if found := re.fullmatch(r"linear (\d+)-(\d+) (\w+)", name):
            return cls(1, 1, int(found[1]), int(found[2]), 1, 1, found[3], linear=True)
        if found := re.fullmatch(r"(\d+)x\1/(\d+) (\d+)-(\d+) (\d+)x(\d+) (\w+)", name):
            kernel, stride, inputs, outputs, height, width = map(int, found.groups()[:6])
            return cls(kernel, stride, inputs, outputs, height, width, found[7])
        raise ValueError(f"{name}: no shape of a convolution")


Table = Mapping[str, Ways]  # by the name of a shape


def names_of(table: Table) -> dict[str, list[str]]:
    """Return a table as plain values, for a record or a checkpoint."""
    return {shape: list(astuple(ways)) for shape, ways in table.items()}


def table_of(names: Mapping[str, list[str]]) -> Table:
    """Return the table of which these are the ``names_of``.

    Raises:
        ValueError: a way that there is not, or that a pass cannot take, here at least.
        TypeError: not three of them.
    """
    table = {shape: Ways(*ways) for shape, ways in names.items()}
    for shape, ways in table.items():
        for which, way in vars(ways).items():
            if not can_take(Shape.of(shape), which, way):
                raise ValueError(f"{shape}: {way} is no way of its pass {which}")
    return table


class Convolution(nn.Conv2d):
    """A 3x3 or 1x1 convolution without bias, done in the ways of ``table``; parameters are those of ``nn.Conv2d``.

    Other devices than the CPU take torch's way, and so do groups.

    Attributes:
        table: ways by shape; see ``use``.
    """

    table: Table = MappingProxyType({})

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, C, H, W); same result and shape as ``nn.Conv2d``, to rounding."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.groups > 1:
            alone = x.shape[2:] == (1, 1) and torch.is_autocast_enabled("cpu")
            return on_one_pixel(x, self.weight, self.groups) if alone else super().forward(x)
        shape = self.shape_of(x)
        ways = self.table.get(str(shape)) or default_ways(shape)
        if ways == Ways(LIBRARY, LIBRARY, LIBRARY):
            return super().forward(x)
        return convolve(x, self.weight, self.stride[0], ways)

    def shape_of(self, x: Tensor) -> Shape:
        """Return what the table knows this convolution of ``x`` by."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return Shape(kernel, stride, self.in_channels, self.out_channels, x.shape[2], x.shape[3], _precision())


class Linear(nn.Linear):
    """A linear layer, in float32 on a CPU done as a 1x1 convolution of one pixel in the ways that ``table`` has."""

    table: Table = MappingProxyType({})

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, C) to (N, O), as ``nn.Linear``, to rounding."""
        ways = self.table.get(str(self.shape_of(x))) if x.device.type == "cpu" else None
        if ways is None or ways == Ways(TAPS, TAPS, TAPS):  # which is torch's own
            return super().forward(x)
        out = convolve(x[:, :, None, None], self.weight[:, :, None, None], 1, ways).flatten(1)
        return out if self.bias is None else out + self.bias

    def shape_of(self, x: Tensor) -> Shape:
        """Return what the table knows this layer by."""
        return Shape(1, 1, self.in_features, self.out_features, 1, 1, _precision(), linear=True)


def _precision() -> str:
    return "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"


def use(network: nn.Module, table: Table) -> None:
    """Let all layers of ``network`` that have a choice go by ``table``."""
    for module in network.modules():
        if isinstance(module, Convolution | Linear):
            module.table = table


def default_ways(shape: Shape) -> Ways:
    """Return the ways of a shape that was not measured."""
    size = max(shape.height, shape.width)
    if shape.precision == "bfloat16" or (shape.kernel, shape.stride) not in LARGEST_MAP:
        few = 0
    else:
        few = LARGEST_MAP[shape.kernel, shape.stride]
    if size <= few:
        return Ways(FEW, FEW, FEW)
    if size == 1:
        return Ways(TAPS, TAPS, TAPS)
    if size == 2 and shape.kernel == 3:
        return Ways(ROWS, ROWS, TAPS)
    return Ways(LIBRARY, LIBRARY, LIBRARY)


def plain_ways(shape: Shape) -> Ways:
    """Return torch's own way, or the one that stands in for it where it is wrong."""
    return Ways(*[LIBRARY if library_is_right(shape) and not shape.linear else TAPS] * 3)


def can_take(shape: Shape, which: str, way: str) -> bool:
    """Whether a pass can be done in this way by this build of torch; ``which`` is a field of ``Ways``."""
    name = way.removesuffix(ONEDNN)
    if name != way and (name == LIBRARY or shape.precision != "float32" or not has_onednn_linear()):
        return False
    if name == LIBRARY:
        return library_is_right(shape)
    if name == ROWS:
        return which != "weight"
    return name == FEW or which == "weight" or one_tap((shape.height, shape.width), shape.kernel, shape.stride)


def library_is_right(shape: Shape) -> bool:
    """Whether torch's own convolution may be used.

    On CPUs with AVX512_BF16 or AMX, oneDNN 3.12 (torch 2.14.1) leaves the bfloat16 gradient of a 3x3 kernel with
    stride 2 unwritten on maps of one pixel, but for its middle tap.
    """
    return shape.precision != "bfloat16" or max(shape.height, shape.width) > 1


def on_one_pixel(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolve maps of one pixel, which the middle tap alone touches, by a linear layer for each group of channels.

    Args:
        x: (N, C, 1, 1).
        weight: (O, C / groups, k, k), with padding k // 2.
        groups: of channels.

    Returns:
        (N, O, 1, 1), in channels-last order; as ``F.conv2d``.
    """
    middle = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    by_group = x.reshape(len(x), groups, -1).transpose(0, 1)  # (groups, N, C / groups)
    products = torch.bmm(by_group, middle.view(groups, len(middle) // groups, -1).mT)
    out = products.transpose(0, 1).flatten(1)
    return out[:, :, None, None].contiguous(memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, stride: int, ways: Ways) -> Tensor:
    """Convolve in the given ways.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3), for padding 1, or (O, C, 1, 1), for none.
        stride: along both axes.
        ways: of the three passes.

    Returns:
        (N, O, H', W'), in channels-last order; as ``F.conv2d``.
    """
    if torch.is_autocast_enabled("cpu"):
        reduced = torch.get_autocast_dtype("cpu")
        x, weight = x.to(reduced), weight.to(reduced)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Convolve.apply(x, weight, stride, ways)
    return out


class _Convolve(torch.autograd.Function):
    """``convolve`` with its gradients; all that is kept are ``x`` and ``weight``: transforms are larger."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, ways: Ways) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.ways = stride, ways
        return forward(x, weight, stride, ways.forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = backward(gradients[0], x, weight, ctx.stride, ctx.ways, ctx.needs_input_grad[:2])
        return of_x, of_weight, None, None


def forward(x: Tensor, weight: Tensor, stride: int, way: str) -> Tensor:
    """Convolve ``x`` (N, C, H, W) with ``weight`` (O, C, k, k) in one way: (N, O, H', W'), channels-last.

    Raises:
        ValueError: the pass cannot be done in this way.
    """
    way, multiply = named(way)
    if way == LIBRARY:
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2)
    if way == FEW:
        return Few(x.shape, weight, stride).forward(x, multiply)
    if way == ROWS:
        return forward_by_rows(x, weight, stride, multiply)
    if way == TAPS and one_tap(x.shape[2:], weight.shape[2], stride):
        return forward_by_the_tap(x, weight, stride, multiply)
    raise ValueError(f"{way}: no way of this convolution's output")


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, ways: Ways, wanted: tuple[bool, bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and ``weight``, those that are wanted, by that of the output (N, O, H', W').

    Raises:
        ValueError: one of them cannot be had in its way.
    """
    (input_way, multiply), (weight_way, multiply_for_weight) = named(ways.input), named(ways.weight)
    by_library = [wanted[0] and input_way == LIBRARY, wanted[1] and weight_way == LIBRARY]
    of_x = of_weight = None
    if any(by_library):
        padding = weight.shape[2] // 2
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*by_library, False]
        )
    few = Few(x.shape, weight, stride)
    if (wanted[0] and input_way == FEW) or (wanted[1] and weight_way == FEW):
        of_products = few.of_products(gradient)
    if wanted[0] and input_way == FEW:
        of_x = few.of_input(of_products, multiply)
    elif wanted[0] and input_way == ROWS:
        of_x = input_by_rows(gradient, x.shape, weight, stride, multiply)
    elif wanted[0] and input_way == TAPS and one_tap(x.shape[2:], weight.shape[2], stride):
        of_x = input_by_the_tap(gradient, x.shape, weight, stride, multiply)
    if wanted[1] and weight_way == FEW:
        of_weight = few.of_weight(of_products, x, multiply_for_weight)
    elif wanted[1] and weight_way == TAPS:
        of_weight = weight_by_taps(gradient, x, weight, stride, multiply_for_weight)
    if (of_x is None, of_weight is None) != (not wanted[0], not wanted[1]):
        raise ValueError(f"{ways}: no ways of this convolution's gradients")
    return of_x, of_weight
