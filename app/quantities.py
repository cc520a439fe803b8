"""Quantities as Kubernetes writes them, for options that a cluster fills in, and as people read them."""

from __future__ import annotations

import math
import re

from app.errors import UsageError

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_SUFFIXES = {"": 1.0, "m": 1e-3}
_SUFFIXES |= {prefix: 1000.0**power for power, prefix in enumerate("kMGTPE", 1)}
_SUFFIXES |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE](\d+)|(\w*))")


def quantity(text: str) -> float:
    """Return the number that a Kubernetes quantity stands for: ``500m`` is 0.5, ``1Gi`` is 2³⁰.

    Raises:
        ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None or (found[3] or "") not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = found.groups()
    value = float(f"{number}e{exponent}" if exponent else number) * _SUFFIXES[suffix or ""]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is more than there is of anything")
    return value


def threads(text: str) -> int:
    """Return the threads that a quantity of CPUs has room for: ``500m`` has for one, ``3.5`` for four.

    Raises:
        UsageError: no quantity, or none of a CPU.
    """
    if (wanted := cpus(text)) is not None:
        raise UsageError(f"--threads {text}: give {wanted}")
    return math.ceil(quantity(text))


def cpus(text: str) -> str | None:
    """Say what a quantity of CPUs ought to be; None if it is one."""
    try:
        return None if quantity(text) > 0 else "more than none"
    except ValueError:
        return "CPUs, such as 4 or 500m"


def size_in_words(count: float) -> str:
    """Say a number of bytes in two or three digits: ``45 MB`` is 45 million."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def processor_time(cpu: float, gpu: float) -> str:
    """Say seconds of CPUs and GPUs in units that fit: ``4.2 CPU minutes``, ``12 CPU hours and 1.5 GPU hours``."""
    return _busy(cpu, "CPU") + (f" and {_busy(gpu, 'GPU')}" if gpu else "")


def _busy(seconds: float, kind: str) -> str:
    unit, size = ("seconds", 1) if seconds < 90 else ("minutes", 60) if seconds < 90 * 60 else ("hours", 3600)
    count = seconds / size
    return f"{count:,.{0 if count >= 9.5 or unit == 'seconds' else 1}f} {kind} {unit}"
