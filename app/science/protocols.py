"""The four ways to judge an encoder: what is trainable, and how many labels are seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.settings import Recipe


@dataclass(frozen=True)
class Protocol:
    """What tells one protocol from another.

    Attributes:
        frozen: train the linear layer alone, on features that the encoder, in evaluation mode, gives once.
        few: see k images per class instead of the whole training split.
        head_alone: train the linear layer alone, behind an encoder in training mode: its weights stay, and its
            BatchNorm normalises by the batch and goes on to learn running statistics.
    """

    frozen: bool
    few: bool
    head_alone: bool = False


PROTOCOLS = {
    "finetune": Protocol(frozen=False, few=False),
    "linear_probe": Protocol(frozen=True, few=False),
    "few_shot": Protocol(frozen=False, few=True),
    "few_shot_frozen": Protocol(frozen=True, few=True),
}


def protocol_of(name: str, recipe: Recipe) -> Protocol:
    """Return a protocol as its recipe has it: behind BatchNorm in training mode no features are there once for all."""
    protocol = PROTOCOLS[name]
    if protocol.frozen and recipe.batch_norm == "train":
        return replace(protocol, frozen=False, head_alone=True)
    return protocol
