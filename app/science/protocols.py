"""The four ways to judge an encoder: what is trainable, and how many labels are seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What tells one protocol from another.

    Attributes:
        frozen: train the linear layer alone, on features that the encoder, in evaluation mode, gives once.
        few: see k images per class instead of the whole training split.
    """

    frozen: bool
    few: bool


PROTOCOLS = {
    "finetune": Protocol(frozen=False, few=False),
    "linear_probe": Protocol(frozen=True, few=False),
    "few_shot": Protocol(frozen=False, few=True),
    "few_shot_frozen": Protocol(frozen=True, few=True),
}
