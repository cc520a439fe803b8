"""The local runner: a study's jobs on one machine, as the plan orders them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any

from app.config import Config
from app.errors import AppError, Interrupted
from app.runtime import Progress
from app.stages import downstream, pretrain, report
from app.stages.experiment import Run
from app.stages.plan import list_jobs, plan
from app.storage import Store, open_store


def run_study(
    store: Store, config: Config, run_id: str | None = None, *, workers: int = 1, overwrite: bool = False
) -> tuple[str, report.ReportSummary, list[AppError]]:
    """Run a whole study: plan, pretrain, downstream, report. Jobs that are done already are not run again.

    A job that fails does not stop the others; those that need it are left out, and the report names what
    is missing.

    Args:
        store: where everything goes.
        config: the configuration.
        run_id: the run's name, or None for the default.
        workers: jobs at a time. With several, each is a process and gets its share of the CPU threads,
            unless ``runtime.threads`` says otherwise.
        overwrite: run every job afresh.

    Returns:
        The run's name, the report's summary, and the errors of the jobs that failed.

    Raises:
        Interrupted: a signal came; the same command continues.
    """
    run = plan(store, config, run_id, overwrite=overwrite)
    progress = Progress("run", run_id=run.run_id)
    jobs = list_jobs(run)
    waiting = {job["key"]: job for kind in ("pretrain", "downstream") for job in jobs[kind]}
    total, done = len(waiting), 0
    progress.say(f"{run.run_id}: {len(jobs['pretrain'])} pretrainings, {len(jobs['downstream'])} downstream jobs")
    if workers > 1:
        own = run.config.runtime
        threads = own.threads or max(1, (os.cpu_count() or 1) // workers)
        # Several jobs that each took all GPUs would only wait for one another.
        runtime = own.model_copy(update={"threads": threads, "processes": own.processes or 1})
        run = Run(run.store, run.run_id, run.config.model_copy(update={"runtime": runtime}))
    errors: dict[str, AppError] = {}
    for key, error in (
        _in_order(run, waiting, overwrite) if workers == 1 else _in_parallel(run, waiting, overwrite, workers)
    ):
        if isinstance(error, Interrupted):
            raise error
        if error is not None:
            errors[key] = error
            progress.say(f"{key} failed: {error}")
            for other in [other for other, job in waiting.items() if job.get("needs") == key]:
                del waiting[other]
                done += 1
                progress.say(f"{other} is left out: it needs {key}")
        done += 1
        progress.say(f"{key}: {done} of {total} jobs", done=done, total=total)
    return run.run_id, report.run(store, run.run_id), list(errors.values())


def run_job(run: Run, args: list[str], overwrite: bool) -> None:
    """Run one job of the plan by its ``args``, in this process."""
    options = dict(zip(args[1::2], args[2::2], strict=True))
    seed = int(options["--seed"])
    if args[0] == "pretrain":
        method: Any = options["--method"]
        pretrain.run(run, method=method, seed=seed, overwrite=overwrite)
    else:
        protocol: Any = options["--protocol"]
        downstream.run(
            run,
            dataset=options["--dataset"],
            init=options["--init"],
            protocol=protocol,
            seed=seed,
            overwrite=overwrite,
        )


Ended = Iterator[tuple[str, AppError | None]]


def _in_order(run: Run, waiting: dict[str, dict[str, Any]], overwrite: bool) -> Ended:
    """Run the jobs one after the other; take each from ``waiting`` and yield its name and its error, if any."""
    while waiting:
        key = next(iter(waiting))
        job = waiting.pop(key)
        try:
            run_job(run, job["args"], overwrite)
            yield key, None
        except AppError as error:
            yield key, error


def _in_parallel(run: Run, waiting: dict[str, dict[str, Any]], overwrite: bool, workers: int) -> Ended:
    """Run the jobs ``workers`` at a time, none before the one it needs."""
    config = run.config.model_dump(mode="json")
    ended: set[str] = set()
    running: dict[Future[None], str] = {}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool,
        _signals_to(pool),
    ):
        pretrainings = {key for key, job in waiting.items() if "needs" not in job}
        while waiting or running:
            ready = [
                key
                for key, job in waiting.items()
                if job.get("needs") is None or job["needs"] in ended or job["needs"] not in pretrainings
            ]
            for key in ready[: workers - len(running)]:
                job = waiting.pop(key)
                running[pool.submit(_run_remote, run.store.address, run.run_id, config, job["args"], overwrite)] = key
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                key = running.pop(future)
                error = future.exception()
                if error is not None and not isinstance(error, AppError):
                    raise error
                ended.add(key)
                yield key, error


def _run_remote(address: str, run_id: str, config: dict[str, Any], args: list[str], overwrite: bool) -> None:
    from app.config import parse_config

    run_job(Run(open_store(address), run_id, parse_config(config, where="the runner")), args, overwrite)


def _start_worker() -> None:
    # The bars of several processes would overwrite each other; the runner says which jobs are done.
    Progress.bars = False


@contextmanager
def _signals_to(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on to the workers, whose jobs save a checkpoint and stop."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in list(pool._processes.values()):
            if process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        sys.stderr.flush()
