"""What became of a workflow, for whoever looks into the store: published whatever happened before."""

from __future__ import annotations

from typing import Any

from app.jobs import keys
from app.jobs.records import read_json, write_json
from app.jobs.run import now
from app.stages.listing import planned_jobs
from app.storage import Store

SHOWN = 100  # names of missing jobs


def announce(store: Store, workflow: str, run_id: str) -> None:
    """Publish which run a workflow works on: an exit handler cannot read the plan's outputs, and asks the store."""
    write_json(
        store, keys.workflow(workflow), {"version": 1, "workflow": workflow, "run_id": run_id, "phase": "Running"}
    )


def workflow_status(store: Store, workflow: str, phase: str) -> dict[str, Any]:
    """Look up how far a workflow came; ``publish_status`` publishes it.

    Args:
        store: the store.
        workflow: name of the workflow.
        phase: how the scheduler says it ended, such as ``Succeeded``.

    Returns:
        What ``publish_status`` takes: ``run_id``, ``done`` and ``planned`` jobs, names of ``missing`` ones and the
        ``report`` are None if the workflow failed before its plan.
    """
    key = keys.workflow(workflow)
    run_id = read_json(store, key)["run_id"] if store.exists(key) else None
    status: dict[str, Any] = {
        "version": 1,
        "workflow": workflow,
        "phase": phase,
        "run_id": run_id,
        "done": None,
        "planned": None,
        "missing": None,
        "report": None,
        "finished": now(),
    }
    if run_id is not None:
        there = set(store.list(keys.run(run_id)))
        jobs = planned_jobs(store, run_id)
        missing = [job for job in jobs if keys.record(f"{keys.run(run_id)}/{job}") not in there]
        page = keys.report(run_id)
        status |= {
            "done": len(jobs) - len(missing),
            "planned": len(jobs),
            "missing": missing[:SHOWN],
            "report": f"{store.uri}/{page}" if store.exists(page) else None,
        }
    return status


def publish_status(store: Store, status: dict[str, Any]) -> None:
    """Publish ``workflows/<workflow>.json`` and, if there was a plan, ``runs/<run-id>/status.json``."""
    if status["run_id"] is not None:
        write_json(store, keys.status(status["run_id"]), status)
    write_json(store, keys.workflow(status["workflow"]), status)
