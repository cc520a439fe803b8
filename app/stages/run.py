"""The local runner: a study's jobs on one machine, as the plan orders them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Any

from app.errors import AppError, Interrupted, UsageError
from app.jobs import keys
from app.jobs.job import continued_without_overwrite, forget
from app.jobs.records import PlannedJob, PlannedPretraining
from app.jobs.run import Run
from app.machine import cores
from app.progress import Progress
from app.report.summary import ReportSummary
from app.runtime import SIGNALS, Stopped, StopRequest, end_with_the_parent, never_lost, stop_now
from app.science.distributed import started_by_torchrun
from app.settings import Config
from app.stages import downstream, pretrain, report
from app.stages.plan import list_jobs, plan
from app.stages.rates import measure_rates
from app.storage import Store, open_store


def run_study(
    store: Store,
    config: Config,
    run_id: str | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    strict_overlap: bool = False,
) -> tuple[ReportSummary, list[AppError]]:
    """Run a whole study: plan, pretrain, downstream, report. Jobs that are done already are not run again.

    A job that fails does not stop the others; those that need it are left out, and the report names what
    is missing.

    Args:
        store: where everything goes.
        config: the configuration.
        run_id: the run's name, or None for the default.
        workers: jobs at a time. With several, each is a process and gets its share of the CPU threads,
            unless ``runtime.threads`` says otherwise.
        overwrite: run every job afresh: the results of all are dropped before the first begins, so that the same
            command without it goes on with those that are left.
        strict_overlap: refuse to pretrain on images of a test split.

    Returns:
        The report's summary, and the errors of the jobs that failed.

    Raises:
        Interrupted: a signal came; the same command continues.
        UsageError: torchrun started this.
    """
    if started_by_torchrun():
        raise UsageError("run: torchrun starts one pretraining; call `run` by itself, it takes all GPUs for each")
    run = plan(store, config, run_id, overwrite=overwrite, strict_overlap=strict_overlap, measure=measure_rates)
    progress = Progress("run", run_id=run.run_id)
    jobs = list_jobs(run)
    waiting: dict[str, PlannedJob] = {job.key: job for job in jobs.pretrain} | {job.key: job for job in jobs.downstream}
    total, done = len(waiting), 0
    if workers > 1 and (lacking := _cannot_fork()):
        progress.say(f"this machine has no semaphores ({lacking}; is there a /dev/shm?): one job at a time")
        workers = 1
    progress.say(f"{run.run_id}: {len(jobs.pretrain)} pretrainings, {len(jobs.downstream)} downstream jobs")
    if workers > 1:
        own = run.config.runtime
        threads = own.threads or max(1, cores() // workers)
        # Several jobs that each took all GPUs would only wait for one another.
        runtime = own.model_copy(update={"threads": threads, "processes": own.processes or 1})
        run = Run(run.store, run.run_id, run.config.model_copy(update={"runtime": runtime}))
    errors: dict[str, AppError] = {}
    if overwrite:
        folders = [keys.pretraining(run.run_id, job.key) for job in jobs.pretrain]
        for folder in [*folders, *(keys.downstream(run.run_id, job.key) for job in jobs.downstream)]:
            forget(run, folder)
    ways = _in_order(run, waiting) if workers == 1 else _in_parallel(run, waiting, workers)
    with continued_without_overwrite(overwrite), closing(ways) as ended:
        for key, error in ended:
            if isinstance(error, Interrupted):
                raise error
            if error is not None:
                errors[key] = error
                progress.say(f"{key} failed: {error}")
                for other in [other for other, job in waiting.items() if job.needs == key]:
                    del waiting[other]
                    done += 1
                    progress.say(f"{other} is left out: it needs {key}")
            done += 1
            progress.say(f"{key}: {done} of {total} jobs", done=done, total=total)
    return report.run(store, run.run_id), list(errors.values())


def _cannot_fork() -> str | None:
    """Say what keeps several processes from working together here; None if nothing does."""
    try:
        multiprocessing.get_context("spawn").BoundedSemaphore(1)
    except (OSError, ImportError, NotImplementedError) as error:
        return " ".join(str(error).split())
    return None


def run_job(run: Run, args: Sequence[str], overwrite: bool) -> None:
    """Run one job of the plan by its ``args``, in this process.

    Raises:
        Interrupted: a signal came; if it came too late to stop this job, it stops whatever was to follow.
    """
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
    if run.store.patience.hurried:
        raise Interrupted("stopped by a signal, between two jobs; run the same command again")


Ended = Generator[tuple[str, AppError | None]]


def _in_order(run: Run, waiting: dict[str, PlannedJob]) -> Ended:
    """Run the jobs one after the other; take each from ``waiting`` and yield its name and its error, if any."""
    while waiting:
        key = next(iter(waiting))
        job = waiting.pop(key)
        try:
            run_job(run, job.args, False)
            yield key, None
        except AppError as error:
            yield key, error


def _in_parallel(run: Run, waiting: dict[str, PlannedJob], workers: int) -> Ended:
    """Run the jobs ``workers`` at a time, none before the one it needs.

    Raises:
        Interrupted: a signal came, or a worker was killed.
    """
    config = run.config.model_dump(mode="json")
    ended: set[str] = set()
    running: dict[Future[None], str] = {}
    context = multiprocessing.get_context("spawn")
    signals = _Signals()
    try:
        with signals, ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            signals.pool = pool
            pretrainings = {key for key, job in waiting.items() if isinstance(job, PlannedPretraining)}
            while running or (waiting and signals.came is None):
                ready = [
                    key
                    for key, job in waiting.items()
                    if job.needs is None or job.needs in ended or job.needs not in pretrainings
                ]
                for key in ready[: workers - len(running)] if signals.came is None else []:
                    job = waiting.pop(key)
                    with _held_back():
                        future = pool.submit(_run_remote, run.store.address, run.run_id, config, job.args)
                    running[future] = key
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                if signals.came is not None:
                    finished, _ = wait(running)  # of several that stop, the one begun first says where it did
                for future in [future for future in running if future in finished]:
                    key = running.pop(future)
                    error = future.exception()
                    if error is not None and not isinstance(error, AppError):
                        raise error
                    ended.add(key)
                    yield key, error
    except BrokenProcessPool as error:
        why = signals.came or "a worker was killed, perhaps for want of memory"
        raise Interrupted(f"{why}: stopped; run the same command again") from error
    if signals.came is not None:
        raise Interrupted(f"{signals.came}: stopped; run the same command again")


@contextmanager
def _held_back() -> Iterator[None]:
    """Let signals wait; in a process that is started meanwhile, until it listens (`_start_worker`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Signals:
    """Passes SIGTERM and SIGINT on to workers, whose jobs save a checkpoint and stop; another Ctrl-C ends all at once.

    Attributes:
        pool: the workers.
        came: name of the signal; None before there was one.
    """

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.came: str | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        first, self.came = self.came is None, self.came or signal.Signals(number).name
        if not first and number == signal.SIGTERM:
            return
        for pid in list(getattr(self.pool, "_processes", None) or {}):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if first else signal.SIGKILL)
        if not first:
            os._exit(128 + number)

    def __enter__(self) -> _Signals:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Worker:
    """What a signal finds a worker doing."""

    working = False
    stopped = False

    @classmethod
    def receive(cls, number: int, _frame: FrameType | None) -> None:
        """Handle a signal where no training loop listens: unwind a job, and begin no other."""
        cls.stopped = True
        if cls.working:
            stop_now(number, _frame)


def _start_worker() -> None:
    # The bars of several processes would overwrite each other; the runner says which jobs are done.
    Progress.bars = False
    # Ctrl-C reaches every process of the terminal, and then comes once more from the runner: but a second signal
    # ends a job at once, without its checkpoint.
    StopRequest.signals = (signal.SIGTERM,)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _Worker.receive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # Without its runner it would hold its job's claim, and then wait for ever for another.
    end_with_the_parent(Interrupted.exit_code)


def _run_remote(address: str, run_id: str, config: dict[str, Any], args: Sequence[str]) -> None:
    from app.config import parse_config

    if _Worker.stopped:
        raise Interrupted("stopped; run the same command again")
    _Worker.working = True
    try:
        with never_lost():
            settings = parse_config(config, where="the runner")
            store = open_store(address, warn=Progress("store").say)
            store.patience.seconds = 60 * settings.runtime.patience_minutes
            run_job(Run(store, run_id, settings), args, False)
    except Stopped as stop:
        raise Interrupted(f"{stop}: stopped; run the same command again") from None
    finally:
        _Worker.working = False
