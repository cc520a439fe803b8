import os

# Two threads that spin while they wait would slow every test down on a busy machine; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread():
    """The nets here are too small to share; one thread also makes sums repeat bit for bit."""
    torch.set_num_threads(1)


class TinyEncoder(nn.Module):
    """Stands in for the ResNet, in a hundredth of the time, where only what is done with it is looked at."""

    features = 6

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 5, stride=3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        maps = self.bn(self.conv(x)).relu()
        return torch.cat([maps[:, :3, :4].mean((2, 3)), maps[:, 3:, 4:].mean((2, 3))], 1)


@pytest.fixture
def tiny_encoder():
    """A function that makes a tiny encoder from a seed."""

    def make(seed=0):
        torch.manual_seed(seed)
        return TinyEncoder()

    return make
