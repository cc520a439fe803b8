"""Minimal filters: a convolution along one axis of a few pixels by few products.

A convolution of a few pixels with three taps is a bilinear map of little rank: with constant matrices T, G, S

    ``y = S ((G w) * (T x))``          (* element by element, ``p`` products)

for every input ``x`` (n pixels) and kernel ``w``. Along an axis of 4 pixels, for one, 12 taps of which 10 touch data
become 6 products.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import torch
from torch import Tensor

Matrix = list[list[Fraction]]

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


@functools.cache
def touching(size: int, kernel: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """Return all (output, pixel, tap) along an axis of ``size`` pixels in which the tap lies on the pixel."""
    outputs = (size - 1) // stride + 1
    return tuple(
        (output, output * stride + tap - kernel // 2, tap)
        for output in range(outputs)
        for tap in range(kernel)
        if 0 <= output * stride + tap - kernel // 2 < size
    )


def direct(size: int, kernel: int, stride: int) -> tuple[Matrix, Matrix, Matrix]:
    """One product for each tap that touches data: nothing is saved but the padding.

    Args:
        size: pixels along the axis.
        kernel: its taps, 3 (with padding 1) or 1 (without).
        stride: of the convolution.

    Returns:
        T (p, size), G (p, kernel), S (outputs, p).
    """
    pairs = touching(size, kernel, stride)
    return (
        [[Fraction(int(pixel == i)) for i in range(size)] for _, pixel, _ in pairs],
        [[Fraction(int(tap == k)) for k in range(kernel)] for _, _, tap in pairs],
        [[Fraction(int(output == o)) for output, _, _ in pairs] for o in range((size - 1) // stride + 1)],
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
def axis_matrices(size: int, kernel: int, stride: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, slice]:
    """Return T, G, S of a convolution along one axis, and which of the kernel's taps G takes.

    Args:
        size: pixels along the axis.
        kernel: 3 (with padding 1) or 1 (without).
        stride: 1 or 2.
        dtype: of the matrices.
    """
    nothing_to_save = kernel == 1 or stride != 1 or size == 1
    transform, taken, back = direct(size, kernel, stride) if nothing_to_save else tiled(size)
    used = [any(row[tap] != 0 for row in taken) for tap in range(kernel)]
    part = slice(used.index(True), kernel - used[::-1].index(True))
    made = (torch.tensor([[float(v) for v in row] for row in m], dtype=dtype) for m in (transform, taken, back))
    t, g, s = made
    return t, g[:, part].contiguous(), s, part
