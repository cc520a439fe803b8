"""The shard job: one pod's part of the downstream jobs, one after the other."""

from __future__ import annotations

import os

from app.errors import AppError, Interrupted, StorageError
from app.jobs.records import PlannedDownstream
from app.jobs.run import Run
from app.progress import Progress
from app.stages.run import run_job


def run_shard(run: Run, jobs: list[PlannedDownstream], *, name: str) -> None:
    """Work off a shard, one job after the other; what is done already is not run again.

    A job that fails does not stop the others. A signal and storage that is out of reach do: the same command continues.

    Args:
        run: the run.
        jobs: the shard.
        name: what the log calls it.

    Raises:
        AppError: of the jobs that failed, an error worth another try if there is one, else the first.
    """
    progress = Progress("shard", run_id=run.run_id, shard=name)
    # Argo shows this file beside the pod; the jobs inside would overwrite it with steps of their own.
    os.environ.pop("ARGO_PROGRESS_FILE", None)
    errors: list[AppError] = []
    for done, job in enumerate(jobs, 1):
        try:
            run_job(run, job.args, False)
        except (Interrupted, StorageError):
            raise
        except AppError as error:
            errors.append(error)
            progress.say(f"{job.key} failed: {error}")
        progress.say(f"{job.key}: {done} of {len(jobs)} jobs", done=done, total=len(jobs))
        progress.write_progress_file(done, len(jobs))
    if errors:
        raise errors[0]
