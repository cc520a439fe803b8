"""What takes turns in a measurement, and the clock."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Contender(Protocol):
    """Something that pretrains by BYOL.

    Attributes:
        name: of the library; ``ours``.
    """

    name: str

    def turn(self, steps: int) -> float:
        """Do ``steps`` steps after some that do not count; return seconds a step."""


def now(device: str) -> float:
    """Return the time, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
