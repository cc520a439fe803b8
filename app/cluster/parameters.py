"""A workflow's parameters, checked before anything is taken: Argo checks neither types nor choices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.errors import UsageError
from app.quantities import cpus, quantity

_LABEL = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?)?")
LEAST_MEMORY = 512 * 1024**2  # torch and its libraries


def check_parameters(given: Mapping[str, str], limits: Path | None = None) -> None:
    """Check the parameters of a workflow; those that a stage reads itself (data sets, settings, …) are its to check.

    Args:
        given: values by name. Names that are not there are not checked.
        limits: a folder with a file for each lock of the cluster (the ConfigMap byol-limits). None: not known.

    Raises:
        UsageError: a value is of another type, none of its choices, or asks for a lock that is not there; the message
            names what is allowed.
    """
    for name, check in CHECKS.items():
        if name in given:
            _complain(name, given[name], check(given[name]))
    device, gpus = given.get("device"), given.get("gpus")
    if device == "cpu" and gpus is not None and int(gpus) != 0:
        raise UsageError(f"gpus={gpus}: takes GPUs that device=cpu would leave idle; give gpus=0, or device=cuda")
    if device == "cuda" and gpus is not None and int(gpus) == 0:
        raise UsageError("gpus=0: device=cuda needs one; give gpus=1, or device=cpu")
    if limits is None:
        return
    locks = {path.name for path in limits.iterdir() if not path.name.startswith(".")} if limits.is_dir() else set()
    if not locks:
        raise UsageError(f"--limits {limits}: has no limits; `kubectl apply` an overlay of k8s/, it has byol-limits")
    if "concurrency" in given:
        _check_lock("concurrency", given["concurrency"], "concurrency-", locks)
    if device == "cuda" and gpus is not None:
        _check_lock("gpus", gpus, "device-cuda-", locks)


def _check_lock(name: str, value: str, prefix: str, locks: set[str]) -> None:
    allowed = sorted((key.removeprefix(prefix) for key in locks if key.startswith(prefix)), key=lambda n: (len(n), n))
    if value not in allowed:
        raise UsageError(
            f"{name}={value}: the ConfigMap byol-limits has no {prefix}{value}; choose from {', '.join(allowed)}"
        )


def _complain(name: str, value: str, wanted: str | None) -> None:
    if wanted is not None:
        raise UsageError(f"{name}={value}: give {wanted}")


Check = Callable[[str], str | None]  # a value to what it ought to be; None if it is


def _whole(least: int) -> Check:
    def check(text: str) -> str | None:
        fits = text.isascii() and text.isdigit() and int(text) >= least
        return None if fits else f"a whole number, at least {least}"

    return check


def _one_of(*choices: str) -> Check:
    return lambda text: None if text in choices else f"one of {', '.join(choices)}"


def _bytes(least: int) -> Check:
    def check(text: str) -> str | None:
        try:
            return None if quantity(text) >= least else f"more, at least {least // 1024**2}Mi"
        except ValueError:
            return "bytes, such as 16Gi"

    return check


def _json(kind: type, example: str, holds: Callable[[Any], bool]) -> Check:
    def check(text: str) -> str | None:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        return None if isinstance(value, kind) and holds(value) else f"JSON, such as {example}"

    return check


def _label(text: str) -> str | None:
    return None if _LABEL.fullmatch(text) else "the value of a label: up to 63 letters, digits, '-', '_' and '.'"


_selector = _json(
    dict, '{"cloud.google.com/gke-spot": "true"}', lambda value: all(isinstance(text, str) for text in value.values())
)
_tolerations = _json(
    list, '[{"key": "spot", "operator": "Exists"}]', lambda value: all(isinstance(item, dict) for item in value)
)

CHECKS: dict[str, Check] = {
    "approve": _one_of("false", "true"),
    "cache-volume": _json(
        dict, '{"name": "cache", "emptyDir": {}}', lambda value: value.get("name") == "cache" and len(value) > 1
    ),
    "queue": _label,
    "seeds-per-pod": _whole(1),
    "concurrency": _whole(1),
    "retries": _whole(0),
    "pending-minutes": _whole(1),
    "device": _one_of("cuda", "cpu"),
    "gpus": _whole(0),
    "gpu-product": _label,
    "gpu-node-selector": _selector,
    "gpu-tolerations": _tolerations,
    "gpu-cpu": cpus,
    "gpu-memory": _bytes(LEAST_MEMORY),
    "cpu-node-selector": _selector,
    "cpu-tolerations": _tolerations,
    "cpu-cpu": cpus,
    "cpu-memory": _bytes(LEAST_MEMORY),
    "disk": _bytes(0),
    "grace-seconds": _whole(1),
}


def read_parameters(text: str) -> dict[str, str]:
    """Read what a workflow's user said, as JSON.

    Raises:
        UsageError: it is no JSON object.
    """
    try:
        return {name: str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"--parameters {text[:60]}: give a JSON object of names and values") from error
