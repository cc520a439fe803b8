"""Stand-ins for the ResNet, for tests that look at what happens to a job and not at what it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from app.science import foreign


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class SmallResNet(nn.Module):
    """Has what ``Encoder`` uses of a ResNet: conv1, bn1, relu, maxpool, layer1 to 4, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = block(8, 8), block(8, 16), block(16, 16), block(16, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.layer4(self.layer3(self.layer2(x))).mean((2, 3), keepdim=True), 1))


class TinyEncoder(nn.Module):
    """Stands in for an encoder, in a hundredth of the time, where only what is done with it is looked at."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 5, stride=3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.bn(self.conv(x)).relu()
        return torch.cat([maps[:, :3, :4].mean((2, 3)), maps[:, 3:, 4:].mean((2, 3))], 1)


def use(patch: Callable[[Any, str, Any], None]) -> None:
    """Make every encoder a small one; ``patch`` is ``setattr``, or a monkeypatch's."""
    patch(torchvision.models, "get_model", lambda *_, **__: SmallResNet())
    patch(
        foreign, "_shapes", getattr(foreign._shapes, "__wrapped__", foreign._shapes)
    )  # or it would remember the small one's for ever
