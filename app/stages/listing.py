"""What a store holds: its runs, and the jobs of a run that are done, running, begun or missing."""

from __future__ import annotations

from collections.abc import Iterator

from app.claims import live_owner
from app.errors import InputError
from app.records import last_step, read_json
from app.storage import Store


def list_store(store: Store, run_id: str | None) -> Iterator[str]:
    """Yield lines to print: a line per data file and run, or per job of ``run_id``.

    Raises:
        InputError: there is no such run.
    """
    keys = set(store.list())
    runs = sorted(key.split("/")[1] for key in keys if key.startswith("runs/") and key.endswith("/experiment.json"))
    if run_id is not None and run_id not in runs:
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(runs) or 'none'}")
    if run_id is None:
        yield from sorted(key for key in keys if key.startswith("data/"))
    for name in runs if run_id is None else [run_id]:
        states = _job_states(store, name, keys)
        done = sum(state == "done" for state, _ in states.values())
        yield f"runs/{name}: {done} of {len(states)} jobs done"
        if run_id is not None:
            yield from (f"  {state:<8} {job}{detail}" for job, (state, detail) in states.items())


def planned_jobs(store: Store, run_id: str) -> list[str]:
    """Return the keys of a run's jobs below its folder, in the plan's order.

    Raises:
        InputError: the plan is not there, or damaged.
    """
    key = f"runs/{run_id}/experiment.json"
    try:
        jobs = read_json(store, key)["plan"]
        return [f"{kind}/{job['key']}" for kind in ("pretrain", "downstream") for job in jobs[kind]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{store.uri}/{key}: damaged, has no plan; delete it and run `plan` again") from error


def _job_states(store: Store, run_id: str, keys: set[str]) -> dict[str, tuple[str, str]]:
    """Return each planned job's state (done, running, begun, missing) and what else there is to say of it."""
    states = {}
    for name in planned_jobs(store, run_id):
        folder = f"runs/{run_id}/{name}"
        if f"{folder}/record.json" in keys:
            states[name] = ("done", "")
            continue
        step = last_step(store, folder) if f"{folder}/latest.json" in keys else None
        owner = live_owner(store, folder) if f"{folder}/claim.json" in keys else None
        saved = "" if step is None else f"  (step {step} saved)"
        if owner is not None:
            states[name] = ("running", f"  by {owner}{saved}")
        else:
            states[name] = ("missing" if step is None else "begun", saved)
    return states
