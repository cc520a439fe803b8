"""The ResNet encoder, its stems, and the projector and predictor heads of BYOL."""

from __future__ import annotations

from typing import Any, cast, get_args

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import InputError, UsageError
from app.science.convolutions import Convolution, Linear
from app.settings import Stem

ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


class Encoder(nn.Module):
    """A torchvision ResNet without its classifier: images to features.

    Stems: ``stock`` (7x7/2 and max-pool, what ImageNet weights need), ``middle`` (3x3/1 and max-pool) and
    ``cifar`` (3x3/1, no pool; as in MedMNIST's own baselines). At 28 px they end in 1x1, 2x2 and 4x4 maps.

    Args:
        architecture: one of ``ARCHITECTURES``.
        stem: one of ``stock``, ``middle``, ``cifar``.

    Raises:
        UsageError: unknown architecture or stem.
    """

    def __init__(self, architecture: str = "resnet18", stem: Stem = "stock") -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UsageError(f"network.architecture: unknown {architecture!r}; choose from {', '.join(ARCHITECTURES)}")
        if stem not in get_args(Stem):
            raise UsageError(f"network.stem: unknown {stem!r}; choose from {', '.join(get_args(Stem))}")
        self.architecture, self.stem = architecture, stem
        resnet = torchvision_resnet(architecture, stem)
        self.features = cast(int, resnet.fc.in_features)
        resnet.fc = nn.Identity()
        _use_own_convolutions(resnet)
        self.resnet = resnet.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images.

        Args:
            x: normalised images, float, (B, 1 or 3, H, W). A gray image counts as three equal channels:
                the first kernel summed over its input channels gives the same result for a third of the work.

        Returns:
            Features, (B, ``features``).
        """
        net = self.resnet
        weight = net.conv1.weight
        if x.shape[1] == 1:
            weight = weight.sum(1, keepdim=True)
            # One channel is in both memory orders; only with these strides does the convolution keep to ours.
            x = x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, weight, None, net.conv1.stride, net.conv1.padding)
        x = net.maxpool(net.relu(net.bn1(x)))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return x.mean((2, 3))

    def plain_state(self) -> dict[str, Tensor]:
        """Return the state dict of the plain torchvision ResNet, without ``fc``."""
        return dict(self.resnet.state_dict())

    def load_plain_state(self, state: dict[str, Tensor], *, source: str) -> None:
        """Load a plain torchvision ResNet state dict strictly; ``fc.*`` is left out.

        ``num_batches_tracked`` may be missing, as in files older than torch 0.4.1 (torchvision's first
        ImageNet weights among them): nothing here reads it.

        Raises:
            InputError: a key is missing or unknown, or a shape differs.
        """
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        own = self.resnet.state_dict()
        state = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | state
        wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
        if wrong:
            raise InputError(
                f"{source}: not a {self.architecture} with the {self.stem} stem ({wrong[0]} differs, {len(wrong)} in "
                "all); set network.architecture and network.stem to what the weights were trained with"
            )
        self.resnet.load_state_dict(state)


def torchvision_resnet(architecture: str, stem: Stem) -> Any:
    """Return torchvision's ResNet with another stem, classifier and all."""
    resnet = torchvision.models.get_model(architecture, weights=None)
    if stem != "stock":
        resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "cifar":
        resnet.maxpool = nn.Identity()
    return resnet


def _use_own_convolutions(module: nn.Module) -> None:
    for child in module.modules():
        if type(child) is nn.Conv2d and child.bias is None:
            size = child.kernel_size[0]
            if size in (1, 3) and child.padding == (size // 2, size // 2) and child.dilation == (1, 1):
                child.__class__ = Convolution


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Projector or predictor: Linear, BatchNorm, ReLU, Linear (Grill et al. 2020, section 3.3)."""
    return nn.Sequential(
        Linear(inputs, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        Linear(hidden, outputs),
    )


class Classifier(nn.Module):
    """An encoder and one linear layer.

    ``n_outputs`` is 1 for a binary task, the number of labels for a multi-label one, of classes otherwise.
    """

    def __init__(self, encoder: Encoder, n_outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.features, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) to logits (B, ``n_outputs``)."""
        return cast(Tensor, self.head(self.encoder(x)))

    def plain_state(self) -> dict[str, Tensor]:
        """Return the state dict of a plain torchvision ResNet whose ``fc`` is the head."""
        head = {f"fc.{key}": value for key, value in self.head.state_dict().items()}
        return self.encoder.plain_state() | head


def normalise(images: Tensor) -> Tensor:
    """Map intensities from [0, 1] to [-1, 1] (mean = std = 0.5 in every channel; the paper, section 3.2)."""
    return images * 2 - 1


def to_float(images: Tensor) -> Tensor:
    """uint8 images (B, H, W) or (B, H, W, 3) to float32 (B, C, H, W) in [0, 1]."""
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.to(torch.float32) / 255
