"""What a store holds: its runs, and the jobs of a run that are done, running, begun or missing."""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import InputError
from app.jobs import keys
from app.jobs.claims import live_owner
from app.jobs.latest import last_step
from app.jobs.records import read_plan
from app.quantities import size_in_words
from app.storage import Store


def list_store(store: Store, run_id: str | None) -> Iterator[str]:
    """Yield lines to print: a line per data file and run, or per job of ``run_id``; of runs without a plan too.

    Raises:
        InputError: there is no such run.
    """
    sizes = store.sizes()
    there = set(sizes)

    def size(folder: str) -> str:
        return size_in_words(sum(count for key, count in sizes.items() if key.startswith(f"{folder}/")))

    runs = keys.run_ids(there)
    if run_id is not None and run_id not in runs:
        raise InputError(f"--run-id {run_id}: {store.uri} has no such run; it has {', '.join(runs) or 'none'}")
    if run_id is None:
        for key in sizes:
            if key.startswith((f"{keys.DATA}/", f"{keys.PHANTOMS}/")):
                yield f"{key}  {size_in_words(sizes[key])}"
    for name in runs if run_id is None else [run_id]:
        planned = planned_jobs(store, name) if keys.experiment(name) in there else None
        others = sorted(keys.begun(name, there).difference(planned or []))
        counted = others if planned is None else planned
        done = sum(keys.record(f"{keys.run(name)}/{job}") in there for job in counted)
        beside = "" if planned is None or not others else f", {len(others)} beside the plan"
        reported = ", with a report" if keys.report(name) in there else ""
        unplanned = " (no plan)" if planned is None else ""
        root, tried = keys.run(name), keys.tried(name, there)
        if tried and not counted:
            kinds = [(keys.tune(name), "a search"), (keys.ablation(name), "an ablation")]
            kind = next((kind for key, kind in kinds if key in there), None)
            ended = "" if kind else ", not at its end"
            trials = f"{tried} trial{'s' if tried > 1 else ''} done"
            yield f"{root}: {kind or 'a search or ablation'}, {trials}{ended}, {size(root)}"
            continue
        yield f"{root}: {done} of {len(counted)} jobs done{beside}{unplanned}{reported}, {size(root)}"
        if run_id is not None:
            for job in [*(planned or []), *others]:
                state, detail = _state(store, f"{root}/{job}", there)
                stored = f"  {size(f'{root}/{job}')}" if state == "done" else ""
                yield f"  {state:<8} {job}{detail}{stored}"


def planned_jobs(store: Store, run_id: str) -> list[str]:
    """Return the names of a run's jobs below its folder, in the plan's order.

    Raises:
        InputError: the plan is not there, or damaged.
    """
    plan = read_plan(store, run_id)
    return [f"{keys.PRETRAIN}/{job.key}" for job in plan.pretrain] + [
        f"{keys.DOWNSTREAM}/{job.key}" for job in plan.downstream
    ]


def _state(store: Store, folder: str, there: set[str]) -> tuple[str, str]:
    """Return a job's state (done, running, begun, missing) and what else there is to say of it."""
    if keys.record(folder) in there:
        return "done", ""
    step = last_step(store, folder) if keys.latest(folder) in there else None
    owner = live_owner(store, folder) if keys.claim(folder) in there else None
    saved = "" if step is None else f"  (step {step} saved)"
    if owner is not None:
        return "running", f"  by {owner}{saved}"
    return "missing" if step is None else "begun", saved
