"""What a store holds: its runs, and the jobs of a run that are done, begun or missing."""

from __future__ import annotations

from collections.abc import Iterator

from app.checkpoint import read_json
from app.errors import InputError
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
        states = job_states(store, name, keys)
        done = sum(state == "done" for state in states.values())
        yield f"runs/{name}: {done} of {len(states)} jobs done"
        if run_id is not None:
            yield from (f"  {state:<8} {job}" for job, state in states.items())


def job_states(store: Store, run_id: str, keys: set[str]) -> dict[str, str]:
    """Say of each planned job whether it is ``done``, ``begun (… steps)`` or ``missing``.

    Args:
        store: the store.
        run_id: a planned run.
        keys: the keys of the run, at least.
    """
    jobs = read_json(store, f"runs/{run_id}/experiment.json")["plan"]
    names = [f"{kind}/{job['key']}" for kind in ("pretrain", "downstream") for job in jobs[kind]]
    states = {}
    for name in names:
        folder = f"runs/{run_id}/{name}"
        if f"{folder}/record.json" in keys:
            states[name] = "done"
        elif f"{folder}/latest.json" in keys:
            step = read_json(store, f"{folder}/latest.json")["checkpoints"][0]["step"]
            states[name] = f"begun ({step} steps)"
        else:
            states[name] = "missing"
    return states
