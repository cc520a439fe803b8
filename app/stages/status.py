"""What became of a workflow, for whoever looks into the store: published whatever happened before."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from app.errors import UsageError
from app.jobs import keys
from app.jobs.processor_time import read_taken
from app.jobs.records import read_json, write_json
from app.jobs.run import now
from app.stages.listing import planned_jobs
from app.storage import Store

SHOWN = 100  # names of missing jobs, and reasons
WEBHOOK = "BYOL_WEBHOOK"  # the environment variable with its URL
WEBHOOK_SECONDS = 20


def announce(store: Store, workflow: str, run_id: str) -> None:
    """Publish which run a workflow works on: an exit handler cannot read the plan's outputs, and asks the store."""
    write_json(
        store, keys.workflow(workflow), {"version": 1, "workflow": workflow, "run_id": run_id, "phase": "Running"}
    )


def workflow_status(store: Store, workflow: str, phase: str, *, why: Sequence[str] = ()) -> dict[str, Any]:
    """Look up how far a workflow came; ``publish_status`` publishes it.

    Args:
        store: the store.
        workflow: name of the workflow.
        phase: how the scheduler says it ended, such as ``Succeeded``.
        why: what failed, in words. What was published as the reason before comes first: a workflow that is stopped
            ends after whoever stopped it has said why.

    Returns:
        What ``publish_status`` takes: ``run_id``, ``done`` and ``planned`` jobs, names of ``missing`` ones and the
        ``report`` are None if the workflow failed before its plan, and so is what the jobs ``took``.
    """
    key = keys.workflow(workflow)
    before = read_json(store, key) if store.exists(key) else {}
    run_id = before.get("run_id")
    status: dict[str, Any] = {
        "version": 1,
        "workflow": workflow,
        "phase": phase,
        "why": list(dict.fromkeys([*before.get("why", []), *why]))[:SHOWN],
        "run_id": run_id,
        "done": None,
        "planned": None,
        "missing": None,
        "report": None,
        "took": None,
        "finished": now(),
    }
    if run_id is not None:
        there = set(store.list(keys.run(run_id)))
        jobs = planned_jobs(store, run_id)
        missing = [job for job in jobs if keys.record(f"{keys.run(run_id)}/{job}") not in there]
        records = [key for job in jobs if (key := keys.record(f"{keys.run(run_id)}/{job}")) in there]
        page = keys.report(run_id)
        status |= {
            "done": len(jobs) - len(missing),
            "planned": len(jobs),
            "missing": missing[:SHOWN],
            "report": f"{store.uri}/{page}" if store.exists(page) else None,
            "took": str(read_taken(store, records)),
        }
    return status


def publish_status(store: Store, status: dict[str, Any]) -> None:
    """Publish ``workflows/<workflow>.json`` and, if there was a plan, ``runs/<run-id>/status.json``."""
    if status["run_id"] is not None:
        write_json(store, keys.status(status["run_id"]), status)
    write_json(store, keys.workflow(status["workflow"]), status)


def tell(url: str, status: dict[str, Any]) -> str | None:
    """Tell a webhook how a workflow ended: JSON whose ``text`` Slack, Mattermost and Teams show, and the status itself.

    Returns:
        None, or what went wrong, without the URL, which is a secret.
    """
    if not url.startswith(("https://", "http://")):
        return "it is no http address"
    done = f"{status['done'] or 0} of {status['planned'] or 0} jobs done"
    text = "\n".join([f"{status['workflow']}: {status['phase']}, {done}", *status["why"][:3], status["report"] or ""])
    body = json.dumps({"text": text.strip(), "status": status}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except OSError as error:
        return str(error)  # of the connection, which knows no path
    except (ValueError, http.client.HTTPException) as error:
        return type(error).__name__  # its words may quote the URL, or a part of it


def give_reason(store: Store, workflow: str, why: str) -> None:
    """Publish why a workflow is going to be stopped; ``publish_status`` keeps it."""
    key = keys.workflow(workflow)
    empty: dict[str, Any] = {"version": 1, "workflow": workflow, "run_id": None}
    before = read_json(store, key) if store.exists(key) else empty
    write_json(store, key, before | {"why": list(dict.fromkeys([*before.get("why", []), why]))})


def publish_hours(store: Store, workflow: str, hours: dict[str, float]) -> None:
    """Add to the status of a workflow that has ended the hours of GPUs and CPUs that it took."""
    key = keys.workflow(workflow)
    if store.exists(key):
        write_json(store, key, read_json(store, key) | {"hours": hours})


def failures(text: str) -> list[str]:
    """Read what Argo hands an exit handler as ``workflow.failures``: JSON, quoted once more; null if nothing failed.

    Returns:
        A line for each pod that failed, with its name and what Argo says of it. What merely contains one is left out.
    """
    try:
        nodes = json.loads(text or "null")
        nodes = json.loads(nodes) if isinstance(nodes, str) else nodes
        named = [(node["displayName"], node["message"]) for node in nodes or [] if node.get("message")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--failures {text[:60]}: not what Argo says of failed nodes; leave it out") from error
    return [f"{name}: {' '.join(message.split())}" for name, message in named if not _ABOUT_OTHERS.match(message)]


_ABOUT_OTHERS = re.compile(
    r"child '.*' failed|No more retries left|workflow shutdown with strategy|Stopped with strategy"
)
