"""How every job starts, saves and stops: record, claim, checkpoints, signals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from app.config import difference, identity
from app.errors import InputError, Interrupted, Misfit, StorageError, UsageError
from app.jobs import keys
from app.jobs.checkpoint import (
    CheckpointWriter,
    drop_checkpoints,
    fence_checkpoints,
    load_checkpoint,
)
from app.jobs.claims import Claim, LostClaim, claimed
from app.jobs.latest import last_generation
from app.jobs.records import Record, publish, read_record
from app.jobs.run import Run, finished
from app.jobs.tracking import need_trackers, track
from app.machine import enough_memory
from app.progress import Progress
from app.runtime import StopRequest


class Job:
    """One job of a run, while it is ours.

    Attributes:
        record: the job's record if it is done already; then there is nothing to do.
        stop: whether a signal has come.
    """

    def __init__(self, run: Run, folder: str, science: dict[str, Any], progress: Progress, stop: StopRequest) -> None:
        self.run, self.folder, self.science, self.progress, self.stop = run, folder, science, progress, stop
        self.record: dict[str, Any] | None = None
        self._claim: Claim | None = None
        self._writer: CheckpointWriter | None = None
        self._last_save = time.monotonic()
        self._due = False

    def begin(self, claim: Claim, *, overwrite: bool) -> None:
        """Take the job's checkpoints over; with ``overwrite`` drop them and the record."""
        store = self.run.store
        self._claim = claim
        if overwrite:
            forget(self.run, self.folder)
        else:
            fence_checkpoints(store, self.folder, claim.generation)
        self._writer = CheckpointWriter(
            store,
            self.folder,
            keep=self.run.config.runtime.keep,
            generation=claim.generation,
            confirm=claim.confirm,
        )

    @property
    def claim(self) -> Claim:
        """The claim that the job runs under."""
        assert self._claim is not None, "the job is done: there is nothing to claim"
        return self._claim

    @property
    def writer(self) -> CheckpointWriter:
        """What saves the job's checkpoints."""
        assert self._writer is not None, "the job is done: there is nothing to save"
        return self._writer

    def restore(self) -> dict[str, Any] | None:
        """Return the newest undamaged checkpoint of this very experiment, None if there is none.

        Raises:
            UsageError: there is one of another experiment; the message shows the difference.
            InputError: there are checkpoints, and every one is damaged.
        """
        store = self.run.store
        state = load_checkpoint(store, self.folder, warn=self.progress.say)
        if state is None:
            return None
        if state.get("identity") != identity(self.science):
            theirs = state.get("science")
            changes = difference(theirs, self.science) if isinstance(theirs, dict) else []
            shown = f" ({'; '.join(changes[:3])})" if changes else ""
            raise UsageError(
                f"{store.uri}/{self.folder}: holds a checkpoint of another experiment{shown}; "
                "choose another --run-id, or --overwrite"
            )
        return state

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Say of a checkpoint that does not fit the code that it is the input that is wrong.

        Raises:
            InputError: something was missing in it, or of another kind.
        """
        try:
            yield
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("Error(s) in loading state_dict"):
                raise  # a want of memory, a GPU that fails: the checkpoint is not to blame
            what = str(error) if isinstance(error, Misfit) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"{self.run.store.uri}/{self.folder}: its checkpoint does not fit this version of the program "
                f"({' '.join(what.split())[:120]}); --overwrite starts afresh"
            ) from error

    def after_step(self, step: int, state: Callable[[], dict[str, Any]], where: str) -> None:
        """Save a checkpoint if one is due, and stop if a signal has come; called between two steps.

        A checkpoint is written in the background. While one is, the next waits for its turn, and training
        goes on.

        Args:
            step: optimizer steps done.
            state: makes the state to save: tensors and plain values.
            where: says in words where the job is, for messages.

        Raises:
            Interrupted: a signal came and the checkpoint is saved, or another process took the job over.
            StorageError: storage was away for longer than patience, or the checkpoint cannot be saved in time.
        """
        self.claim.check()
        self.writer.check()
        if self.stop:
            self._save_and_stop(step, state, where)
        runtime = self.run.config.runtime
        if runtime.checkpoint_steps:
            self._due |= step % runtime.checkpoint_steps == 0
        else:
            self._due |= (time.monotonic() - self._last_save) / 60 >= runtime.checkpoint_minutes
        if self._due and not self.writer.busy:
            self.writer.submit(step, self._signed(state()))
            self._last_save, self._due = time.monotonic(), False

    def publish(self, files: dict[str, bytes], record: Record) -> dict[str, Any]:
        """Publish the job's result, drop its checkpoints, and return the record; see ``records.publish``.

        If another process has published the same result meanwhile, that one's record is returned.
        """
        self.writer.flush()
        try:
            published = publish(self.run.store, self.folder, files, record.plain(), confirm=self.claim.confirm)
        except LostClaim:
            theirs = finished(self.run.store, self.folder, self.science, overwrite=False)
            if theirs is None:
                raise
            return theirs
        drop_checkpoints(self.run.store, self.folder)
        track(published, files, tensorboard=self.run.config.runtime.tensorboard, warn=self.progress.say)
        return published

    def _signed(self, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"identity": identity(self.science), "science": self.science}

    def _save_and_stop(self, step: int, state: Callable[[], dict[str, Any]], where: str) -> None:
        what = f"{self.stop.signal}: stopped at {where}"
        try:
            self.writer.flush(self._left())
            if self.writer.saved_step != step:
                self.writer.submit(step, self._signed(state()))
                self.writer.flush(self._left())
        except StorageError as error:
            raise StorageError(f"{what}, and its checkpoint is not saved: {error}") from error
        raise Interrupted(f"{what} with a checkpoint; run the same command again to continue")

    def _left(self) -> float:
        return max(0.1, self.stop.left - 1.0)  # a second for the claim and the exit


def done_as_planned(run: Run, folder: str, science: dict[str, Any], *, progress: Progress) -> dict[str, Any] | None:
    """Return a job's record if it is of this very science; None if the job is to be opened.

    Args:
        run: the run.
        folder: the job's key prefix.
        science: what decides the result if the data are as the plan says, which saves loading and hashing them.
        progress: told if the job is done.
    """
    if not run.store.exists(keys.record(folder)):
        return None
    record = read_record(run.store, folder)
    if record["identity"] != identity(science) or difference(record["science"], science):
        return None  # perhaps the data have changed since: whoever loads them can tell
    _say_done(run, folder, progress)
    return record


def _say_done(run: Run, folder: str, progress: Progress) -> None:
    progress.say("already done")
    if next(iter(run.store.list(keys.checkpoints(folder))), None) is not None:
        drop_checkpoints(run.store, folder)  # the owner died between its record and this


@contextlib.contextmanager
def open_job(run: Run, folder: str, science: dict[str, Any], *, progress: Progress, overwrite: bool) -> Iterator[Job]:
    """Start a job as every job starts: a record there is the result; else the job is claimed.

    Args:
        run: the run.
        folder: the job's key prefix.
        science: what decides the job's result.
        progress: where to say what happens.
        overwrite: start afresh, whatever is there.

    Yields:
        The job; if its ``record`` is set, it was done already, here or by a copy that ran meanwhile.

    Raises:
        UsageError: there is a record of another experiment.
        Interrupted: a live process works on the job, and did not finish within ``runtime.claim_wait_minutes``.
    """
    store, runtime = run.store, run.config.runtime
    need_trackers(runtime.tensorboard)
    setting = (
        "pretrain.batch_size" if "protocol" not in science else f"protocols.{science['protocol']['name']}.batch_size"
    )
    with (
        enough_memory(setting),
        StopRequest(runtime.grace_seconds, lambda grace: store.patience.hurry(max(0.5, grace - 1.5))) as stop,
    ):
        job = Job(run, folder, science, progress, stop)

        def done() -> bool:
            job.record = finished(store, folder, science, overwrite=overwrite)
            return job.record is not None

        if done():  # the common case, without a look at the claim
            _say_done(run, folder, progress)
            yield job
            return
        with claimed(
            store,
            folder,
            done=done,
            stopped=lambda: bool(stop),
            warn=progress.say,
            seconds=runtime.claim_seconds,
            wait=60 * runtime.claim_wait_minutes,
            above=last_generation(store, folder) if not overwrite else 0,
            release_within=lambda: min(30.0, max(0.1, stop.left - 0.5)),
        ) as claim:
            if claim is None:
                progress.say("already done")
                yield job
                return
            with continued_without_overwrite(overwrite):
                job.begin(claim, overwrite=overwrite)
                yield job


@contextlib.contextmanager
def continued_without_overwrite(overwrite: bool) -> Iterator[None]:
    """Say of what was begun by ``--overwrite`` and stopped that the option would start it once more.

    Raises:
        Interrupted: as the body did, with that advice.
    """
    try:
        yield
    except Interrupted as error:
        if not overwrite:
            raise
        raise type(error)(f"{error}, without --overwrite") from error


def forget(run: Run, folder: str) -> None:
    """Drop a job's result and checkpoints, so that it is run afresh."""
    run.store.delete(keys.record(folder))
    drop_checkpoints(run.store, folder)
