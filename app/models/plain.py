"""A trained classifier as plain torchvision's ResNet: what leaves this package needs none of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from app.models.trained import Trained
from app.science.metrics import BINARY, MULTI_LABEL
from app.science.networks import normalise, to_float, torchvision_resnet


def plain_state(trained: Trained) -> dict[str, Tensor]:
    """Return the state dict of a torchvision ResNet with one output for each class or label.

    The single logit z of a binary head becomes the two logits 0 and z: their softmax is 1 - sigmoid(z), sigmoid(z).
    """
    state = {name: value.detach().cpu() for name, value in trained.classifier.plain_state().items()}
    if trained.record.task == BINARY:
        weight, bias = state["fc.weight"], state["fc.bias"]
        state |= {
            "fc.weight": torch.cat([torch.zeros_like(weight), weight]),
            "fc.bias": torch.cat([torch.zeros_like(bias), bias]),
        }
    return state


def plain_resnet(trained: Trained) -> nn.Module:
    """Return torchvision's ResNet with the model's weights, loaded strictly, in evaluation mode."""
    state = plain_state(trained)
    encoder = trained.classifier.encoder
    resnet = torchvision_resnet(encoder.architecture, encoder.stem)
    resnet.fc = nn.Linear(encoder.features, len(state["fc.bias"]))
    resnet.load_state_dict(state)
    return cast(nn.Module, resnet.eval())


class Deployed(nn.Module):
    """Images as they are stored to probabilities: preprocessing, network and the last step in one module.

    Args:
        trained: the model.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.resnet = plain_resnet(trained)
        self.several = trained.record.task == MULTI_LABEL

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images, (N, H, W) or (N, H, W, 3), to probabilities, (N, C)."""
        x = normalise(to_float(images))
        logits: Any = self.resnet(x.expand(-1, 3, -1, -1))
        return torch.sigmoid(logits) if self.several else torch.softmax(logits, 1)
