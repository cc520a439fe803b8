"""Views: the random augmentations of BYOL and BYOL+, drawn per sample, computed per batch.

Geometry and blur act along one axis at a time, so each is a small matrix per sample and axis, and a batch
is warped by two batched matrix products. Colour operations that do nothing to a gray image are skipped.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from app.science.networks import normalise
from app.settings import Augmentation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], as in torchvision
CROP_ATTEMPTS = 10  # as in torchvision and kornia: draws of a box before the fall-back to the whole image
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in kornia and Pillow


Parameters = dict[str, Tensor]
FLAGS = ("flip", "gray")
DRAWN = (
    *FLAGS, "top", "left", "height", "width", "jitter_brightness", "jitter_contrast", "jitter_saturation", "hue",
    "sigma", "contrast", "brightness", "hole_top", "hole_left", "hole_side",
)  # fmt: skip


def draw(
    augmentation: Augmentation, count: int, size: int, generator: torch.Generator, *, batches: int = 1
) -> Parameters:
    """Draw the random parameters of ``count`` views, one row per view.

    Args:
        augmentation: what to draw.
        count: number of views.
        size: height and width of the images, in pixels.
        generator: a CPU generator; the same state gives the same parameters on every device.
        batches: equal parts of the rows; what is drawn per batch is equal within each.

    Returns:
        Tensors whose first dimension is ``count``: ``top``, ``left``, ``height``, ``width`` of the crop in
        pixels, ``flip`` (bool), colour factors (1 is "leave alone"), ``hue`` in turns, ``gray`` (bool),
        ``sigma`` in pixels (0 is "no blur"), and the ``hole_top``, ``hole_left``, ``hole_side`` of the cutout.
    """
    a = augmentation
    if a.drawn == "per_batch":
        once = draw(a.model_copy(update={"drawn": "per_image"}), batches, size, generator, batches=batches)
        return {name: value.repeat_interleave(count // batches) for name, value in once.items()}

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def chance(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    def switch(probability: float) -> Tensor:
        if a.jitter_and_blur == "per_image":
            return chance(probability)
        return (torch.rand(batches, generator=generator) < probability).repeat_interleave(count // batches)

    area = uniform(*a.crop_scale, CROP_ATTEMPTS) * size * size
    ratio = uniform(math.log(a.crop_ratio[0]), math.log(a.crop_ratio[1]), CROP_ATTEMPTS).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    valid = (widths >= 1) & (heights >= 1) & (widths <= size) & (heights <= size)
    first = valid.int().argmax(1, keepdim=True)
    found = valid.any(1)
    width = torch.where(found, widths.gather(1, first).squeeze(1), size)
    height = torch.where(found, heights.gather(1, first).squeeze(1), size)
    parameters = {
        "width": width,
        "height": height,
        "left": (uniform(0, 1) * (size - width + 1)).floor(),
        "top": (uniform(0, 1) * (size - height + 1)).floor(),
        "flip": chance(a.flip),
    }
    jittered = switch(a.jitter)
    for name in ("brightness", "contrast", "saturation"):
        strength = getattr(a, f"jitter_{name}")
        parameters[f"jitter_{name}"] = torch.where(jittered, uniform(max(0.0, 1 - strength), 1 + strength), 1.0)
    parameters["hue"] = torch.where(jittered, uniform(-a.jitter_hue, a.jitter_hue), 0.0)
    parameters["gray"] = chance(a.grayscale)
    parameters["sigma"] = torch.where(switch(a.blur), uniform(*a.blur_sigma), 0.0)
    parameters["contrast"] = torch.where(chance(a.contrast), uniform(*a.contrast_range), 1.0)
    parameters["brightness"] = torch.where(chance(a.brightness), uniform(*a.brightness_range), 1.0)
    side = (uniform(*a.cutout_side) * size).round()
    parameters["hole_side"] = torch.where(chance(a.cutout), side, 0.0)
    parameters["hole_top"] = (uniform(0, 1) * (size - parameters["hole_side"] + 1)).floor()
    parameters["hole_left"] = (uniform(0, 1) * (size - parameters["hole_side"] + 1)).floor()
    return parameters


def apply(augmentation: Augmentation, images: Tensor, parameters: Parameters) -> Tensor:
    """Make one normalised view of each image.

    Order: resized crop and flip, colour jitter, grayscale, blur, then BYOL+'s contrast, brightness and
    cutout, then normalisation. Intensities stay in [0, 1] until the last step; a cutout is mid-gray. Those of views
    that are normalised twice begin in [-1, 1].

    Args:
        augmentation: which operations are in use at all.
        images: float, (B, C, H, W) in [0, 1], square, C = 1 or 3.
        parameters: what ``draw`` gave, on any device, B rows.

    Returns:
        The views, (B, C, H, W) in [-1, 1]; of three channels where these are not treated alike.
    """
    a = augmentation
    twice = a.normalise == "twice"
    size = images.shape[-1]
    parameters = {name: value.to(images.device) for name, value in parameters.items()}
    rows = crop_matrix(parameters["top"], parameters["height"], size)
    columns = crop_matrix(parameters["left"], parameters["width"], size)
    columns = torch.where(parameters["flip"][:, None, None], columns.flip(1), columns)
    x = warp(normalise(images) if twice else images, rows, columns)
    if a.jitter > 0:
        x = adjust_brightness(x, parameters["jitter_brightness"])
        x = adjust_contrast(x, parameters["jitter_contrast"])
        if x.shape[1] == 3:
            x = adjust_saturation(x, parameters["jitter_saturation"])
            x = adjust_hue(x, parameters["hue"])
    if a.grayscale > 0 and x.shape[1] == 3:
        x = torch.where(parameters["gray"][:, None, None, None], luminance(x).expand_as(x), x)
    if a.blur > 0:
        blur = blur_matrix(parameters["sigma"], a.blur_radius, size)
        x = warp(x, blur, blur)
    if a.contrast > 0:
        x = adjust_contrast(x, parameters["contrast"])
    if a.brightness > 0:
        x = adjust_brightness(x, parameters["brightness"])
    if a.cutout > 0:
        place = parameters["hole_top"], parameters["hole_left"], parameters["hole_side"]
        if a.cutout_shape == "square":
            mask = hole(*place, size)
        else:
            x = x.expand(-1, 3, -1, -1)
            mask = hole(*place, size)[:, 0, :3, :, None]  # the square's rows are channels, its columns rows
        x = x.masked_fill(mask, 0.0 if twice else 0.5)
    return by_imagenet(x) if twice else normalise(x)


def by_imagenet(x: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its std: (B, 1 or 3, H, W) to (B, 3, H, W)."""
    return (x - _imagenet(IMAGENET_MEAN, x)) / _imagenet(IMAGENET_STD, x)


def _imagenet(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return _channels(values, like.device, like.dtype)[:, None, None]


def visible(augmentation: Augmentation, views: Tensor) -> Tensor:
    """Return views (B, C, H, W) as intensities, mid-gray being 0.5."""
    if augmentation.normalise == "twice":
        views = views * _imagenet(IMAGENET_STD, views) + _imagenet(IMAGENET_MEAN, views)
    return views / 2 + 0.5


def pack(parameters: Parameters) -> Tensor:
    """Put what ``draw`` gave into one tensor, float32 (B, columns): one copy to a GPU instead of sixteen."""
    return torch.stack([parameters[name].to(torch.float32) for name in DRAWN], 1)


def unpack(packed: Tensor) -> Parameters:
    """Return what ``pack`` packed, as views of it where they are numbers."""
    parameters = dict(zip(DRAWN, packed.unbind(1), strict=True))
    return parameters | {name: parameters[name] > 0 for name in FLAGS}


def two_views(augmentation: Augmentation, images: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Make two views of each image: the input of ``BYOL.forward``.

    Args:
        augmentation: what was drawn.
        images: float, (B, C, H, W) in [0, 1].
        parameters: 2B rows: those of the first views, then those of the second.
    """
    view1, view2 = apply(augmentation, torch.cat([images, images]), parameters).chunk(2)
    return view1, view2


def warp(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply ``rows @ image @ columns.T`` to every channel; matrices are (B, H, H) and (B, W, W)."""
    return rows[:, None] @ images @ columns[:, None].mT


def crop_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Bilinear resize of the pixels ``start .. start + length - 1`` to ``size`` pixels, as a matrix.

    Pixel centres lie at half-integers (``align_corners=False``); beyond the box its edge pixel is repeated.

    Args:
        start: first pixel of the box, (B,).
        length: pixels in the box, (B,).
        size: pixels of the image, before and after.

    Returns:
        (B, ``size``, ``size``); every row sums to 1.
    """
    centre = (torch.arange(size, device=start.device) + 0.5) * (length / size)[:, None] - 0.5
    source = start[:, None] + torch.minimum(centre.clamp_min(0), length[:, None] - 1)
    return (1 - (source[:, :, None] - torch.arange(size, device=start.device)).abs()).clamp_min(0)


def blur_matrix(sigma: Tensor, radius: int, size: int) -> Tensor:
    """Gaussian blur along one axis with reflected borders, as a matrix; the identity where sigma is 0.

    Args:
        sigma: standard deviation in pixels, (B,).
        radius: the kernel spans ``2 * radius + 1`` pixels and is normalised to 1.
        size: pixels along the axis, more than ``radius``.

    Returns:
        (B, ``size``, ``size``); every row sums to 1.
    """
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    reached = torch.arange(size, device=sigma.device)[:, None] + offset  # (pixel, tap)
    reflected = reached.abs()
    reflected = torch.where(reflected >= size, 2 * (size - 1) - reflected, reflected)
    taps = F.one_hot(reflected, size).to(weights.dtype)  # (pixel, tap, source)
    return torch.einsum("bt,pts->bps", weights, taps)


def luminance(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W): the image itself if gray, ITU-R BT.601 luma if RGB."""
    if x.shape[1] == 1:
        return x
    return torch.einsum("bchw,c->bhw", x, _channels(LUMINANCE, x.device, x.dtype)).unsqueeze(1)


@functools.cache
def _channels(values: tuple[float, float, float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Keep a number for each channel on the device: a recorded step may copy nothing to it (replay.py)."""
    return torch.tensor(values, dtype=dtype, device=device)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (B,) and clip to [0, 1]."""
    return (x * factor[:, None, None, None]).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch by ``factor`` (B,) about the mean luminance of each image and clip to [0, 1]."""
    return torch.lerp(luminance(x).mean((2, 3), keepdim=True), x, factor[:, None, None, None]).clamp(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch RGB by ``factor`` (B,) about the luminance of each pixel and clip to [0, 1]."""
    return torch.lerp(luminance(x).expand_as(x), x, factor[:, None, None, None]).clamp(0, 1)


def adjust_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images by ``turns`` (B,) of a full circle; value and saturation of HSV stay.

    With hue ``h`` in sixths of a turn, value ``v`` and chroma ``c``, a channel is
    ``v - c * clamp(min(k, 4 - k), 0, 1)``, ``k = (n + h) mod 6``, n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    divisor = chroma.clamp_min(1e-12)  # a gray pixel has no hue, and whatever is taken for it is multiplied by 0
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths + 6 * turns[:, None, None]
    turned = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = torch.remainder(sixths + n, 6)
        torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1, out=turned[:, channel])
    return turned


def hole(top: Tensor, left: Tensor, side: Tensor, size: int) -> Tensor:
    """Mask of the square of each cutout, bool (B, 1, ``size``, ``size``)."""
    pixel = torch.arange(size, device=top.device)
    inside_rows = (pixel >= top[:, None]) & (pixel < (top + side)[:, None])
    inside_columns = (pixel >= left[:, None]) & (pixel < (left + side)[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)
