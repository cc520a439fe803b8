"""Test images made worse: noise, blur, low contrast, too much light, low resolution, at five strengths each.

The idea is Hendrycks and Dietterich's (Benchmarking neural network robustness to common corruptions and perturbations,
ICLR 2019), for medical images Di Salvo, Doerrich and Ledig's (MedMNIST-C, 2024). How strong is in ``strengths.py``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from app.science.augment import adjust_brightness, adjust_contrast, blur_matrix, warp
from app.science.generators import generator
from app.science.networks import to_float
from app.science.strengths import STRENGTHS

BATCH_PIXELS = 256 * 224 * 224  # of images that are floats at a time: bounds memory at any size


def corrupt(images: NDArray[np.uint8], kind: str, level: int, key: tuple[int | str, ...]) -> NDArray[np.uint8]:
    """Make images worse.

    Args:
        images: (N, H, H) or (N, H, H, 3).
        kind: one of ``STRENGTHS``.
        level: 1 to 5.
        key: names the draws of noise, of which each image has its own: the same at all levels, so that levels differ by
            its strength alone, and whatever other images there are.

    Returns:
        Images of the same shape and dtype.
    """
    strength, gray = STRENGTHS[kind][level - 1], images.ndim == 3
    count = max(1, BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    parts = []
    for begin in range(0, len(images), count):
        x = to_float(torch.from_numpy(np.ascontiguousarray(images[begin : begin + count])))
        worse = _add_noise(x, strength, begin, key) if kind == "noise" else _WAYS[kind](x, strength)
        rounded = (worse.clamp(0, 1) * 255).round().to(torch.uint8)
        parts.append((rounded[:, 0] if gray else rounded.permute(0, 2, 3, 1)).numpy())
    return np.concatenate(parts) if parts else images


def _add_noise(x: Tensor, strength: float, begin: int, key: tuple[int | str, ...]) -> Tensor:
    shape = x.shape[1:]
    noise = [torch.randn(shape, generator=generator("corruption", *key, begin + index)) for index in range(len(x))]
    return x + strength * torch.stack(noise)


def _blur(x: Tensor, strength: float) -> Tensor:
    side = x.shape[-1]
    sigma = torch.full((len(x),), strength * side)
    matrix = blur_matrix(sigma, min(side - 1, math.ceil(4 * strength * side)), side)
    return warp(x, matrix, matrix)


def _lower_contrast(x: Tensor, strength: float) -> Tensor:
    return adjust_contrast(x, torch.full((len(x),), strength))


def _brighten(x: Tensor, strength: float) -> Tensor:
    return adjust_brightness(x, torch.full((len(x),), strength))


def _lower_resolution(x: Tensor, strength: float) -> Tensor:
    """Resize to fewer pixels so that nothing aliases, and back."""
    side = x.shape[-1]
    few = max(1, round(strength * side))
    small = F.interpolate(x, (few, few), mode="bilinear", antialias=True)
    return F.interpolate(small, (side, side), mode="bilinear")


_WAYS = {"blur": _blur, "contrast": _lower_contrast, "brightness": _brighten, "resolution": _lower_resolution}
