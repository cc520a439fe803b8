"""Learning-rate and EMA schedules: pure functions of the step."""

import math


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_steps: int, cosine: bool) -> float:
    """Linear warm-up to ``peak``, then a cosine to 0 (or constant).

    Args:
        step: optimizer step, from 0 to ``total_steps`` - 1.
        peak: learning rate after the warm-up.
        total_steps: optimizer steps in the whole run.
        warmup_steps: steps of the warm-up; step 0 already moves (``peak / warmup_steps``).
        cosine: decay by half a cosine (Loshchilov and Hutter 2017) instead of staying at ``peak``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if not cosine:
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def ema_momentum(step: int, *, base: float, total_steps: int, cosine: bool) -> float:
    """EMA momentum of the target network: from ``base`` to 1 by half a cosine, or constant.

    ``1 - (1 - base) * (cos(pi * step / total_steps) + 1) / 2`` (Grill et al. 2020, section 3.3).
    """
    if not cosine:
        return base
    return 1 - (1 - base) * (math.cos(math.pi * step / total_steps) + 1) / 2
