"""What a store holds: its runs, and the jobs of a run that are done, running, begun or missing."""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import InputError
from app.jobs.claims import live_owner
from app.jobs.records import last_step, read_json
from app.storage import Store


def list_store(store: Store, run_id: str | None) -> Iterator[str]:
    """Yield lines to print: a line per data file and run, or per job of ``run_id``; of runs without a plan too.

    Raises:
        InputError: there is no such run.
    """
    keys = set(store.list())
    runs = sorted({key.split("/")[1] for key in keys if key.startswith("runs/") and key.count("/") > 1})
    if run_id is not None and run_id not in runs:
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(runs) or 'none'}")
    if run_id is None:
        yield from sorted(key for key in keys if key.startswith(("data/", "phantoms/")))
    for name in runs if run_id is None else [run_id]:
        planned = planned_jobs(store, name) if f"runs/{name}/experiment.json" in keys else None
        others = sorted(_begun_jobs(name, keys).difference(planned or []))
        counted = others if planned is None else planned
        done = sum(f"runs/{name}/{job}/record.json" in keys for job in counted)
        beside = "" if planned is None or not others else f", {len(others)} beside the plan"
        reported = ", with a report" if f"runs/{name}/report/index.html" in keys else ""
        yield f"runs/{name}: {done} of {len(counted)} jobs done{beside}{' (no plan)' * (planned is None)}{reported}"
        if run_id is not None:
            for job in [*(planned or []), *others]:
                state, detail = _state(store, f"runs/{name}/{job}", keys)
                yield f"  {state:<8} {job}{detail}"


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


def _begun_jobs(run_id: str, keys: set[str]) -> set[str]:
    """Return the keys of the jobs that have left something in a run's folder, planned or not."""
    root = f"runs/{run_id}/"
    kinds = (f"{root}pretrain/", f"{root}downstream/")
    signs = ("/record.json", "/latest.json", "/claim.json")
    found = (key for key in keys if key.startswith(kinds) and key.endswith(signs))
    return {key.removeprefix(root).rpartition("/")[0] for key in found}


def _state(store: Store, folder: str, keys: set[str]) -> tuple[str, str]:
    """Return a job's state (done, running, begun, missing) and what else there is to say of it."""
    if f"{folder}/record.json" in keys:
        return "done", ""
    step = last_step(store, folder) if f"{folder}/latest.json" in keys else None
    owner = live_owner(store, folder) if f"{folder}/claim.json" in keys else None
    saved = "" if step is None else f"  (step {step} saved)"
    if owner is not None:
        return "running", f"  by {owner}{saved}"
    return "missing" if step is None else "begun", saved
