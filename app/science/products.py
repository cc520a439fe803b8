"""A convolution as products of matrices: the passes of ``convolutions.py`` that torch has no operator for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.science.filters import axis_matrices, touching

Multiply = Callable[[Tensor, Tensor, Tensor], None]  # of (M, K) and (K, N) into (M, N); or of batches of them


def named(way: str) -> tuple[str, Multiply]:
    """Split the name of a way, such as ``rows:onednn``, into the way and how it multiplies."""
    name, _, library = way.partition(":")
    return name, _by_onednn if library else _by_default


def _product(a: Tensor, b: Tensor, multiply: Multiply) -> Tensor:
    out = a.new_empty(*a.shape[:-1], b.shape[-1])
    multiply(a, b, out)
    return out


def _by_default(a: Tensor, b: Tensor, out: Tensor) -> None:
    (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out=out)


def _by_onednn(a: Tensor, b: Tensor, out: Tensor) -> None:
    if a.ndim == 2:
        out.copy_(onednn_linear(a, b.mT))
    else:
        for one, other, to in zip(a, b, out, strict=True):
            to.copy_(onednn_linear(one, other.mT))


def has_onednn_linear() -> bool:
    """Say whether this build of torch has ``onednn_linear``."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply ``x`` (M, K) by ``weight`` (N, K), transposed, in oneDNN whatever torch's default is: (M, N)."""
    # It takes views with gaps too, a thousand times as slowly.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), None, "none", [], "")
    return out


# Few products


class Few:
    """A convolution by minimal filters along both axes."""

    def __init__(self, size: torch.Size, weight: Tensor, stride: int) -> None:
        self.size, self.weight, self.stride = size, weight, stride

    @functools.cached_property
    def axes(self) -> list[tuple[Tensor, Tensor, Tensor, slice]]:
        """T, G, S and the taps in use, for rows and columns."""
        return [axis_matrices(n, self.weight.shape[2], self.stride, self.weight.dtype) for n in self.size[2:]]

    def forward(self, x: Tensor, multiply: Multiply) -> Tensor:
        """``S ((G w) * (T x))``."""
        (_, _, s_rows, _), (_, _, s_columns, _) = self.axes
        products = _product(self._pixels(x), self._kernels().mT, multiply)
        out = both_axes(s_rows, s_columns, products.view(s_rows.shape[1], s_columns.shape[1], len(x), -1))
        return out.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)

    def of_input(self, of_products: Tensor, multiply: Multiply) -> Tensor:
        """The gradient of ``x``: each matrix transposed, in the opposite order."""
        (t_rows, _, _, _), (t_columns, _, _, _) = self.axes
        of_pixels = _product(of_products, self._kernels(), multiply)
        of_x = both_axes(t_rows.T, t_columns.T, of_pixels.view(len(t_rows), len(t_columns), *of_pixels.shape[1:]))
        return of_x.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)

    def of_weight(self, of_products: Tensor, x: Tensor, multiply: Multiply) -> Tensor:
        """The gradient of the weight; ``x`` is transformed anew: kept, it would be the larger."""
        (_, g_rows, _, rows), (_, g_columns, _, columns) = self.axes
        of_kernels = _product(of_products.mT, self._pixels(x), multiply)
        taps = both_axes(g_rows.T, g_columns.T, of_kernels.view(len(g_rows), len(g_columns), *of_kernels.shape[1:]))
        of_weight = torch.zeros_like(self.weight)
        of_weight[:, :, rows, columns] = taps.permute(2, 3, 0, 1)
        return of_weight

    def _pixels(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the pixels' side of the products, (p * p, N, C)."""
        return both_axes(self.axes[0][0], self.axes[1][0], x.permute(2, 3, 0, 1)).flatten(0, 1)

    def _kernels(self) -> Tensor:
        """(O, C, k, k) to the kernels' side of the products, (p * p, O, C)."""
        (_, g_rows, _, rows), (_, g_columns, _, columns) = self.axes
        return both_axes(g_rows, g_columns, self.weight[:, :, rows, columns].permute(2, 3, 0, 1)).flatten(0, 1)

    def of_products(self, gradient: Tensor) -> Tensor:
        """(N, O, H', W') to the gradient of the products, (p * p, N, O)."""
        s_rows, s_columns = self.axes[0][2], self.axes[1][2]
        return both_axes(s_rows.T, s_columns.T, gradient.permute(2, 3, 0, 1)).flatten(0, 1)


def both_axes(rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """Apply ``rows`` (P, H) and ``columns`` (Q, W) to the first two axes of ``x`` (H, W, A, B): (P, Q, A, B)."""
    height, width, a, b = x.shape
    if rows.shape == columns.shape == (1, 1):  # ones
        return x.contiguous()
    along_rows = rows @ x.reshape(height, -1)
    return torch.matmul(columns, along_rows.view(len(rows), width, -1)).view(len(rows), len(columns), a, b)


# Rows


def one_tap(size: Sequence[int], kernel: int, stride: int) -> bool:
    """Say whether one tap alone touches data on maps of ``size`` (H, W): with a 1x1 kernel, or on one pixel."""
    return all(len({tap for _, _, tap in touching(n, kernel, stride)}) == 1 for n in size)


def forward_by_rows(x: Tensor, weight: Tensor, stride: int, multiply: Multiply) -> Tensor:
    """Convolve ``x`` (N, C, H, W) with ``weight`` (O, C, k, k), one product for each row: (N, O, H', W')."""
    _, inputs, height, width = x.shape
    outputs, _, kernel, _ = weight.shape
    columns = (width - 1) // stride + 1
    by_tap = weight.permute(0, 2, 3, 1)  # (O, k, k, C)
    matrix = weight.new_zeros(columns, outputs, kernel, width, inputs)
    for column, pixel, tap in touching(width, kernel, stride):
        matrix[column, :, :, pixel] = by_tap[:, :, tap]
    slabs: list[list[tuple[int, int]]] = [[] for _ in range((height - 1) // stride + 1)]
    for row, pixel, tap in touching(height, kernel, stride):
        slabs[row].append((pixel, tap))
    return _by_rows(x, matrix.view(columns * outputs, kernel, -1).permute(1, 2, 0), slabs, outputs, multiply)


def input_by_rows(gradient: Tensor, size: torch.Size, weight: Tensor, stride: int, multiply: Multiply) -> Tensor:
    """Return the gradient of the input, of shape ``size``, by that of the output (N, O, H', W')."""
    _, inputs, height, width = size
    outputs, _, kernel, _ = weight.shape
    columns = gradient.shape[3]
    # Rows of the output that follow each other lie under taps that go back by the stride: such taps side by side.
    order = [tap for last in range(stride) for tap in range(kernel - 1 - last, -1, -stride)]
    by_tap = weight.permute(2, 0, 3, 1)  # (k, O, k, C)
    matrix = weight.new_zeros(kernel, columns, outputs, width, inputs)
    for column, pixel, tap in touching(width, kernel, stride):
        for place, row_tap in enumerate(order):
            matrix[place, column, :, pixel] = by_tap[row_tap, :, tap]
    slabs: list[list[tuple[int, int]]] = [[] for _ in range(height)]
    for row, pixel, tap in touching(height, kernel, stride):
        slabs[pixel].append((row, order.index(tap)))
    return _by_rows(gradient, matrix.view(kernel, columns * outputs, -1), slabs, inputs, multiply)


def _by_rows(
    x: Tensor, matrices: Tensor, slabs: list[list[tuple[int, int]]], outputs: int, multiply: Multiply
) -> Tensor:
    """Multiply slabs of rows of ``x`` (N, C, H, W) by some of ``matrices`` (k, W * C, W' * O): (N, O, H', W').

    Args:
        x: the maps.
        matrices: for each of k taps, from a row of ``x`` to a row of the result.
        slabs: for each row of the result its (row of ``x``, tap), both without gaps.
        outputs: channels O of the result.
        multiply: product of matrices.
    """
    count, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    out = x.new_empty(count, len(slabs), matrices.shape[2])
    for number, slab in enumerate(slabs):
        if not slab:
            out[:, number] = 0
            continue
        row, tap = slab[0]
        rows, taps = pixels[:, row : row + len(slab)], matrices[tap : tap + len(slab)]
        multiply(rows.flatten(1), taps.flatten(0, 1), out[:, number])
    return out.view(count, len(slabs), -1, outputs).permute(0, 3, 1, 2)


# Taps


def _on(tap: int, size: int, kernel: int, stride: int) -> tuple[slice, slice]:
    """Return the outputs along an axis that ``tap`` serves, and the pixels that it takes for them."""
    pairs = [(output, pixel) for output, pixel, at in touching(size, kernel, stride) if at == tap]
    (first, pixel), (last, end) = pairs[0], pairs[-1]
    return slice(first, last + 1), slice(pixel, end + 1, stride)


def weight_by_taps(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, multiply: Multiply) -> Tensor:
    """Return the gradient of ``weight`` by that of the output (N, O, H', W'); zero for taps that touch no data."""
    outputs, inputs, kernel, _ = weight.shape
    of_outputs, pixels = gradient.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    of_weight = weight.new_zeros(outputs, kernel, kernel, inputs)
    for row in {tap for _, _, tap in touching(x.shape[2], kernel, stride)}:
        for column in {tap for _, _, tap in touching(x.shape[3], kernel, stride)}:
            to_rows, from_rows = _on(row, x.shape[2], kernel, stride)
            to_columns, from_columns = _on(column, x.shape[3], kernel, stride)
            of_served = of_outputs[:, to_rows, to_columns].reshape(-1, outputs)
            taken = pixels[:, from_rows, from_columns].reshape(-1, inputs)
            multiply(of_served.mT, taken, of_weight[:, row, column])
    return of_weight.permute(0, 3, 1, 2)


def forward_by_the_tap(x: Tensor, weight: Tensor, stride: int, multiply: Multiply) -> Tensor:
    """Convolve where one tap alone touches data: a 1x1 kernel, or maps of one pixel."""
    tap = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    pixels = x.permute(0, 2, 3, 1)[:, ::stride, ::stride]
    out = x.new_empty(pixels.shape[:3].numel(), len(weight))
    multiply(pixels.reshape(-1, x.shape[1]), tap.mT, out)
    return out.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def input_by_the_tap(gradient: Tensor, size: torch.Size, weight: Tensor, stride: int, multiply: Multiply) -> Tensor:
    """Return the gradient of the input, of shape ``size``, where one tap alone touches data."""
    tap = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    of_outputs = gradient.permute(0, 2, 3, 1)
    taken = gradient.new_empty(of_outputs.shape[:3].numel(), size[1])
    multiply(of_outputs.reshape(-1, len(weight)), tap, taken)
    if stride == 1:
        return taken.view(size[0], size[2], size[3], size[1]).permute(0, 3, 1, 2)
    of_x = gradient.new_zeros(size[0], size[2], size[3], size[1])
    of_x[:, ::stride, ::stride] = taken.view(*of_outputs.shape[:3], -1)
    return of_x.permute(0, 3, 1, 2)
