"""The views of BYOL by kornia's own operations: what ours are compared with, in time and in distribution."""

from __future__ import annotations

from torch import nn

from app.errors import UsageError
from app.settings import Augmentation


def kornia_views(augmentation: Augmentation, size: int) -> nn.Sequential:
    """Return kornia's pipeline of the same settings: RGB images (B, 3, H, W) in [0, 1] to views in [0, 1].

    Its colour jitter takes its four operations in a random order, ours in a fixed one. BYOL+ is left out.

    Args:
        augmentation: the settings.
        size: height and width, in pixels.

    Raises:
        UsageError: kornia is not installed.
    """
    try:
        import kornia.augmentation as K
    except ImportError as error:
        raise UsageError("bench views: kornia is not installed; pip install '.[peers]'") from error
    a = augmentation
    side = 2 * a.blur_radius + 1
    return nn.Sequential(
        K.RandomResizedCrop(
            (size, size), scale=a.crop_scale, ratio=a.crop_ratio, cropping_mode="slice", align_corners=False
        ),
        K.RandomHorizontalFlip(a.flip),
        K.ColorJitter(a.jitter_brightness, a.jitter_contrast, a.jitter_saturation, a.jitter_hue, p=a.jitter),
        K.RandomGrayscale(p=a.grayscale),
        K.RandomGaussianBlur((side, side), a.blur_sigma, p=a.blur, border_type="reflect"),
    )
