"""The commands that look after a machine and a store: doctor, clean, compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from app.errors import UsageError
from app.options import Asked, StoreUri, example, takes_settings

upkeep_app = typer.Typer()


@upkeep_app.command(epilog=example("doctor --preset recommended --store runs"))
@takes_settings()
def doctor(store: StoreUri = "runs", *, asked: Asked) -> None:
    """Check what a study needs: Python, torch, CPU, GPU, memory, disk, data, store, Argo; one line each.

    The exit code is 0 if the study can run here, else that of the first thing that keeps it from running.
    """
    from app.storage import open_store
    from app.upkeep.doctor import examine, verdict

    config = asked.config(asked.pretraining_source())
    findings = []
    for finding in examine(lambda: open_store(store), config):
        print(finding, flush=True)
        findings.append(finding)
    print(verdict(findings))


@upkeep_app.command(epilog=example("ls --store runs"))
def ls(
    store: StoreUri = "runs",
    run_id: Annotated[str | None, typer.Option("--run-id", help="List the jobs of this run.")] = None,
) -> None:
    """List the data and runs of a store, or the jobs of one run: done, running, begun or missing."""
    from app.stages.listing import list_store
    from app.storage import open_store

    for line in list_store(open_store(store), run_id):
        print(line)


@upkeep_app.command(epilog=example("clean --run-id first --store runs"))
def clean(
    run_id: Annotated[str, typer.Option("--run-id", help="Name of the run.")],
    what: Annotated[
        str, typer.Option("--what", help="checkpoints, draws (models of few shots), models (of finetune), caches.")
    ] = "checkpoints,draws,caches",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreUri = "runs",
) -> None:
    """List what of a run can go, and remove it once you agree; records and predictions stay.

    Jobs at work are left alone.
    """
    from app.storage import open_store
    from app.upkeep.clean import What, lines, remove, spare

    chosen = tuple(word.strip() for word in what.split(",") if word.strip())
    if not chosen or set(chosen) - set(get_args(What)):
        raise UsageError(f"--what {what}: unknown; choose from {', '.join(get_args(What))}")
    opened = open_store(store)
    found, busy = spare(opened, run_id, chosen)  # type: ignore[arg-type]
    for job in busy:
        print(f"left alone, at work: {job}")
    if not found:
        print("nothing to remove")
        return
    print("\n".join(lines(found)))
    if not yes:
        if not sys.stdin.isatty():
            print("nothing is removed: say --yes")
            return
        if not typer.confirm("Remove all of it?"):
            print("nothing is removed")
            return
    removed, busy = remove(opened, run_id, found)
    for job in busy:
        print(f"left alone, at work by now: {job}")
    print(f"{removed} removed")


@upkeep_app.command(epilog=example("compare first second --store runs"))
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="Name of a run.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Name of another run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page.")] = Path("comparison"),
    other: Annotated[str | None, typer.Option("--other-store", help="Store of RUN_B. [default: as RUN_A's]")] = None,
    store: StoreUri = "runs",
) -> None:
    """Compare two runs, cell by cell: means over seeds, and paired intervals where the test images are the same."""
    from app.storage import open_store
    from app.upkeep.compare import compare_runs

    opened = open_store(store)
    for line in compare_runs(opened, first, open_store(other) if other else opened, second, out):
        print(line)
