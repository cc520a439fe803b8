"""Watches studies: stops those that wait in vain, and says what those that have ended took.

Kubernetes lets a pod be pending for ever, for a node that does not come or an image that does not exist, and Argo 4.0
sets no bound either.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.cluster.kubernetes import Api
from app.errors import AppError, StorageError
from app.progress import Progress
from app.quantities import processor_time
from app.stages.status import give_reason, publish_hours, publish_status, workflow_status
from app.storage import Store

OURS = "workflows.argoproj.io/workflow,app.kubernetes.io/part-of=byol-med"
WORKFLOW, ON_EXIT = "workflows.argoproj.io/workflow", "workflows.argoproj.io/on-exit"
NODE = "workflows.argoproj.io/node-name"
ENDED = "workflows.argoproj.io/completed=true,app.kubernetes.io/part-of=byol-med"
HOURS = "byol-med/hours"  # the annotation of a workflow that is accounted for
WHY = "byol-med/why"  # the annotation that `python -m app submit` reads
DEFAULT_MINUTES = 60.0
GIVING_UP = 120.0  # seconds that the exit handler of a stopped workflow has to start


def watch(
    api: Api, open_store: Callable[[str], Store], store: str, *, alive: Path | None = None, every_seconds: float = 15.0
) -> None:
    """Look at the pending pods of all workflows until a signal ends this.

    Args:
        api: the cluster's API server.
        open_store: opens a store by its URI.
        store: URI of the store of workflows that name none.
        alive: a file to touch at every look, for whoever watches this.
        every_seconds: from one look to the next.
    """
    progress = Progress("watch")
    progress.say(f"watches the pending pods of {api.namespace}")
    while True:
        if alive is not None:
            alive.touch()
        try:
            for line in (*look(api, open_store, store, datetime.now(UTC)), *account(api, open_store, store)):
                progress.say(line)
        except AppError as error:  # the API server or the store is away: the next look may find them
            progress.say(f"looks again in {every_seconds:g} s: {error}")
        time.sleep(every_seconds)


def look(api: Api, open_store: Callable[[str], Store], store: str, now: datetime) -> list[str]:
    """Stop every workflow of which a pod has been pending for longer than its parameter ``pending-minutes``.

    A stopped workflow saves its checkpoints, publishes its status, and continues when it is submitted again. If its
    exit handler waits as vainly, the status is published here.

    Returns:
        A line for each workflow that was stopped.

    Raises:
        AppError: the API server does not answer, or refuses.
    """
    lines = []
    by_workflow: dict[str, list[dict[str, Any]]] = {}
    for pod in api.pods(OURS, "Pending"):
        if not _gated(pod):
            by_workflow.setdefault(pod["metadata"]["labels"][WORKFLOW], []).append(pod)
    for name, pods in by_workflow.items():
        pod = min(pods, key=_created)  # the one that has waited longest
        seconds = (now - _created(pod)).total_seconds()
        if seconds < 60:
            continue
        workflow = api.workflow(name)
        parameters = _parameters(workflow)
        minutes = _minutes(parameters)
        stopped = bool(workflow["spec"].get("shutdown"))
        if seconds < (GIVING_UP if stopped else 60 * minutes):
            continue
        why = f"{node_name(pod)}: pending for {seconds / 60:.0f} min, {pending_reason(pod)}"
        try:
            place = open_store(parameters.get("store") or store)
            give_reason(place, name, why)
            if stopped or ON_EXIT in pod["metadata"]["labels"]:
                publish_status(place, workflow_status(place, name, "Failed"))
        except AppError as error:  # its store is away, or refuses us: it is stopped all the same
            lines.append(f"{name}: the reason is not in the store: {error}")
        before = (workflow["metadata"].get("annotations") or {}).get(WHY)
        strategy = "Terminate" if stopped or ON_EXIT in pod["metadata"]["labels"] else "Stop"
        change = {"metadata": {"annotations": {WHY: before or why}}, "spec": {"shutdown": strategy}}
        api.patch_workflow(name, change)
        lines.append(f"{name}: {strategy}: {why}")
    return lines


def account(api: Api, open_store: Callable[[str], Store], store: str) -> list[str]:
    """Write into the status of every workflow that has ended what it took: hours of CPUs and GPUs, as requested.

    Argo counts them per pod (``resourcesDuration``), tries that failed included.

    Returns:
        A line for each workflow.

    Raises:
        AppError: the API server does not answer, or refuses.
    """
    lines = []
    for found in api.workflows(ENDED):
        if HOURS in (found["metadata"].get("annotations") or {}):
            continue
        name = found["metadata"]["name"]
        workflow = api.workflow(name)
        hours = hours_of(workflow)
        try:
            publish_hours(open_store(_parameters(workflow).get("store") or store), name, hours)
        except StorageError as error:  # the next look may find it
            lines.append(f"{name}: its hours are not in the store yet: {error}")
            continue
        except AppError as error:  # no other look will
            lines.append(f"{name}: its hours are not in the store: {error}")
        api.patch_workflow(name, {"metadata": {"annotations": {HOURS: json.dumps(hours)}}})
        lines.append(f"{name}: took {processor_time(3600 * hours['cpu'], 3600 * hours['gpu'])}, as requested")
    return lines


def _minutes(parameters: dict[str, str]) -> float:
    """How long a workflow's pods may be pending: the default where the value, which its first pod refuses, is none."""
    with contextlib.suppress(ValueError):
        minutes = float(parameters.get("pending-minutes", DEFAULT_MINUTES))
        if math.isfinite(minutes):
            return minutes
    return DEFAULT_MINUTES


def hours_of(workflow: dict[str, Any]) -> dict[str, float]:
    """Return the hours of GPUs and CPUs that a workflow's pods asked for, to a millionth: seconds can be told apart."""
    durations = workflow.get("status", {}).get("resourcesDuration") or {}  # seconds of one unit
    return {
        kind: round(float(durations.get(resource, 0)) / 3600, 6)
        for kind, resource in (("gpu", "nvidia.com/gpu"), ("cpu", "cpu"))
    }


def pending_reason(pod: dict[str, Any]) -> str:
    """Say why a pod is pending, in Kubernetes' words: a container's, else the scheduler's."""
    status = pod.get("status", {})
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return ": ".join(filter(None, (waiting["reason"], " ".join(waiting.get("message", "").split()))))
    for condition in status.get("conditions", []):
        if condition.get("status") == "False" and condition.get("reason") in ("Unschedulable", "SchedulerError"):
            return f"{condition['reason']}: {condition.get('message', '')}"
    return "its containers are being made"


def node_name(pod: dict[str, Any]) -> str:
    """Return what the workflow calls a pod: ``groups(0:…).pretrain(1)``."""
    full: str = pod["metadata"].get("annotations", {}).get(NODE, pod["metadata"]["name"])
    return full.partition(".")[2] or full


def _gated(pod: dict[str, Any]) -> bool:
    """Whether a queue such as Kueue's holds the pod back: that wait is its business."""
    return bool(pod.get("spec", {}).get("schedulingGates"))


def _created(pod: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def _parameters(workflow: dict[str, Any]) -> dict[str, str]:
    """The parameters that a workflow was given, over those of the template that it was made from."""
    template = workflow.get("status", {}).get("storedWorkflowTemplateSpec", {})
    return {
        parameter["name"]: str(parameter["value"])
        for spec in (template, workflow["spec"])
        for parameter in spec.get("arguments", {}).get("parameters", [])
        if "value" in parameter
    }
