"""Convolutions on small maps, as fewer products of matrices.

On the small maps of a ResNet at 28 to 64 px an ordinary convolution spends much of its time on padding. Along
one axis, a convolution of a few pixels with three taps is a bilinear map of little rank: with constant
matrices ``T``, ``G``, ``S``

    ``y = S ((G w) * (T x))``          (* element by element, ``p`` products)

for every input ``x`` (n pixels) and kernel ``w``. Taken along both axes, and with the products summed over the
input channels, the element-wise product becomes ``p * p`` products of matrices, (N, C) by (C, O). Additions
cost little, so what counts is ``p``. Along an axis of 4 pixels, for one, 12 taps of which 10 touch data
become 6 products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Matrix = list[list[Fraction]]

# Pixels along an axis, by kernel and stride, up to which a training step is faster this way (forward and backward,
# batches of 128 and 256 images, 64 to 512 channels, against oneDNN 3.12 with AVX2). Beyond, the transforms cost more
# than the products save: a 3x3 kernel on 16x16 maps takes 1.1 times as long, with stride 2 on 7x7 maps 1.5 times.
LARGEST_MAP = {(3, 1): 8, (3, 2): 4, (1, 2): 2}
POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))  # good ones: Barabasz et al. 2020


def toom_cook(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Winograd's minimal filter F(``outputs``, ``taps``): ``y_i = sum_k w_k x_(i+k)`` by few products.

    The transposed Toom-Cook multiplication of polynomials (Winograd 1980; Lavin and Gray 2016, section 4):
    with evaluation at ``POINTS`` and infinity.

    Args:
        outputs: pixels of ``y``, 1 to 4.
        taps: of ``w``; ``x`` has ``outputs + taps - 1`` pixels.

    Returns:
        T (p, pixels of x), G (p, taps), S (outputs, p), with p = outputs + taps - 1.
    """
    count = outputs + taps - 1

    def evaluation(coefficients: int) -> Matrix:
        rows = [[point**power for power in range(coefficients)] for point in POINTS[: count - 1]]
        return [*rows, [Fraction(int(power == coefficients - 1)) for power in range(coefficients)]]

    transform = transpose(inverse(evaluation(count)))
    return transform, evaluation(taps), transpose(evaluation(outputs))


def transpose(matrix: Matrix) -> Matrix:
    """Swap rows and columns."""
    return [list(column) for column in zip(*matrix, strict=True)]


def inverse(matrix: Matrix) -> Matrix:
    """Invert a square matrix exactly, by Gauss and Jordan."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(j for j in range(i, size) if rows[j][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(size):
            if j != i and rows[j][i] != 0:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[size:] for row in rows]


def direct(size: int, taps: Sequence[int], stride: int) -> tuple[Matrix, Matrix, Matrix]:
    """One product for each tap that touches data: nothing is saved but the padding.

    Args:
        size: pixels along the axis.
        taps: offset of each tap from the output's pixel, such as -1, 0, 1.
        stride: of the convolution.

    Returns:
        T (p, size), G (p, taps), S (outputs, p).
    """
    outputs = (size - 1) // stride + 1
    touching = [
        (output, output * stride + offset, tap)
        for output in range(outputs)
        for tap, offset in enumerate(taps)
        if 0 <= output * stride + offset < size
    ]
    return (
        [[Fraction(int(pixel == i)) for i in range(size)] for _, pixel, _ in touching],
        [[Fraction(int(tap == k)) for k in range(len(taps))] for _, _, tap in touching],
        [[Fraction(int(output == o)) for output, _, _ in touching] for o in range(outputs)],
    )


def tiled(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """Three taps with stride 1: tiles of up to four outputs, each by ``toom_cook``.

    Args:
        size: pixels along the axis.

    Returns:
        T (p, size), G (p, 3), S (size, p).
    """
    if size == 2:  # three products where a tile takes four: its outer pixels would be padding
        one = Fraction(1)
        return (
            [[one, one], [0 * one, one], [one, 0 * one]],
            [[0 * one, one, 0 * one], [0 * one, -one, one], [one, -one, 0 * one]],
            [[one, one, 0 * one], [one, 0 * one, one]],
        )
    tiles = -(-size // 4)
    lengths = [size // tiles + (tile < size % tiles) for tile in range(tiles)]
    transform: Matrix = []
    kernel: Matrix = []
    blocks: list[tuple[int, Matrix]] = []
    for tile, length in enumerate(lengths):
        first = sum(lengths[:tile]) - 1  # the pixel under the tile's first tap
        t, g, s = toom_cook(length, 3)
        transform += [[row[i - first] if 0 <= i - first < len(row) else Fraction(0) for i in range(size)] for row in t]
        kernel += g
        blocks.append((len(transform) - len(t), s))
    back = [
        [row[p - start] if 0 <= p - start < len(row) else Fraction(0) for p in range(len(transform))]
        for start, block in blocks
        for row in block
    ]
    return transform, kernel, back


@functools.cache
def axis_matrices(
    size: int, kernel: int, stride: int, plain: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, slice]:
    """Return T, G, S of a convolution along one axis, and which of the kernel's taps G takes.

    Args:
        size: pixels along the axis.
        kernel: 3 (with padding 1) or 1 (without).
        stride: 1 or 2.
        plain: additions and subtractions of pixels are not wanted: one product for each tap that touches data.
        dtype: of the matrices.
    """
    taps = (-1, 0, 1) if kernel == 3 else (0,)
    direct_way = plain or kernel == 1 or stride != 1 or size == 1
    transform, taken, back = direct(size, taps, stride) if direct_way else tiled(size)
    used = [any(row[tap] != 0 for row in taken) for tap in range(kernel)]
    part = slice(used.index(True), kernel - used[::-1].index(True))
    made = (torch.tensor([[float(v) for v in row] for row in m], dtype=dtype) for m in (transform, taken, back))
    t, g, s = made
    return t, g[:, part].contiguous(), s, part


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 or 1x1 convolution without bias that multiplies less on small maps; see the module's text.

    Parameters and state dict are those of ``nn.Conv2d``; outputs and gradients agree to rounding. Large maps,
    groups, other devices than the CPU, and bfloat16 where pixels would have to be added up, take the ordinary path.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, C, H, W); same result and shape as ``nn.Conv2d``."""
        if x.device.type != "cpu":
            return super().forward(x)
        size = max(x.shape[2:])
        reduced = torch.is_autocast_enabled("cpu")
        largest = LARGEST_MAP.get((self.kernel_size[0], self.stride[0]), 0) if self.groups == 1 else 0
        if size <= (min(largest, 2) if reduced else largest):
            return few_products(x, self.weight, self.stride[0], plain=reduced)
        if reduced and size == 1:
            return on_one_pixel(x, self.weight, self.groups)
        return super().forward(x)


def on_one_pixel(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolve maps of one pixel, which the middle tap alone touches: a linear layer, or one for each group.

    oneDNN 3.12 (torch 2.14.1) must not do it in bfloat16: on CPUs with AVX512_BF16 or AMX the gradient of a 3x3
    kernel with stride 2 is memory that nobody has written, but for its middle tap.

    Args:
        x: (N, C, 1, 1).
        weight: (O, C / groups, k, k), with padding k // 2.
        groups: of channels.

    Returns:
        (N, O, 1, 1), in channels-last order; as ``F.conv2d``.
    """
    middle = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    if groups == 1:
        out = F.linear(x.flatten(1), middle)
    else:
        by_group = x.reshape(len(x), groups, -1).transpose(0, 1)  # (groups, N, C / groups)
        products = torch.bmm(by_group, middle.view(groups, len(middle) // groups, -1).mT)
        out = products.transpose(0, 1).flatten(1)
    return out[:, :, None, None].contiguous(memory_format=torch.channels_last)


def few_products(x: Tensor, weight: Tensor, stride: int, *, plain: bool = False) -> Tensor:
    """Convolve by few products of matrices.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3), for padding 1, or (O, C, 1, 1), for none.
        stride: along both axes.
        plain: see ``axis_matrices``.

    Returns:
        (N, O, H', W'), in channels-last order; as ``F.conv2d``.
    """
    out: Tensor = FewProducts.apply(x, weight, stride, plain)
    return out


class FewProducts(torch.autograd.Function):
    """``few_products`` with its gradient, for which ``x`` is transformed anew: kept, it would be the larger."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, plain: bool) -> Tensor:
        """Return ``S ((G w) * (T x))``."""
        ctx.save_for_backward(x, weight)
        ctx.axes = tuple(axis_matrices(size, weight.shape[2], stride, plain, x.dtype) for size in x.shape[2:])
        return back(ctx.axes, torch.bmm(pixels(ctx.axes, x), kernels(ctx.axes, weight).mT), len(x))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of ``x`` and ``weight``: each matrix transposed, in the opposite order."""
        x, weight = ctx.saved_tensors
        (t_rows, g_rows, s_rows, rows), (t_columns, g_columns, s_columns, columns) = ctx.axes
        products = both_axes(s_rows.T, s_columns.T, gradients[0].permute(2, 3, 0, 1)).flatten(0, 1)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_pixels = torch.bmm(products, kernels(ctx.axes, weight))
            of_x = both_axes(t_rows.T, t_columns.T, of_pixels.view(len(t_rows), len(t_columns), *of_pixels.shape[1:]))
            of_x = of_x.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[1]:
            of_kernels = torch.bmm(products.mT, pixels(ctx.axes, x))
            taps = both_axes(g_rows.T, g_columns.T, of_kernels.view(len(g_rows), len(g_columns), *of_kernels.shape[1:]))
            of_weight = torch.zeros_like(weight)
            of_weight[:, :, rows, columns] = taps.permute(2, 3, 0, 1)
        return of_x, of_weight, None, None


Axes = tuple[tuple[Tensor, Tensor, Tensor, slice], tuple[Tensor, Tensor, Tensor, slice]]


def pixels(axes: Axes, x: Tensor) -> Tensor:
    """Transform (N, C, H, W) to the pixels' side of the products, (p * p, N, C)."""
    return both_axes(axes[0][0], axes[1][0], x.permute(2, 3, 0, 1)).flatten(0, 1)


def kernels(axes: Axes, weight: Tensor) -> Tensor:
    """Transform (O, C, k, k) to the kernels' side of the products, (p * p, O, C)."""
    (_, g_rows, _, rows), (_, g_columns, _, columns) = axes
    return both_axes(g_rows, g_columns, weight[:, :, rows, columns].permute(2, 3, 0, 1)).flatten(0, 1)


def back(axes: Axes, products: Tensor, count: int) -> Tensor:
    """Transform the products, (p * p, N, O), to (N, O, H', W')."""
    s_rows, s_columns = axes[0][2], axes[1][2]
    out = both_axes(s_rows, s_columns, products.view(s_rows.shape[1], s_columns.shape[1], count, -1))
    return out.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def both_axes(rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """Apply ``rows`` (P, H) and ``columns`` (Q, W) to the first two axes of ``x`` (H, W, A, B): (P, Q, A, B)."""
    height, width, a, b = x.shape
    if rows.shape == columns.shape == (1, 1):  # ones
        return x.contiguous()
    along_rows = rows @ x.reshape(height, -1)
    return torch.matmul(columns, along_rows.view(len(rows), width, -1)).view(len(rows), len(columns), a, b)
