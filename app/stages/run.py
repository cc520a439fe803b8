"""The local runner: the plan's jobs on one machine, in order, each in a process of its own or in this one."""

from __future__ import annotations

from app.config import Config
from app.errors import AppError, Interrupted
from app.runtime import Progress
from app.stages import downstream, pretrain, report
from app.stages.plan import list_jobs, plan
from app.storage import Store


def run_study(
    store: Store, config: Config, run_id: str | None = None, *, overwrite: bool = False
) -> tuple[str, report.ReportSummary, list[AppError]]:
    """Run a whole study: plan, pretrain, downstream, report. Jobs that are done already are not run again.

    A job that fails does not stop the others; those that need it are left out, and the report names what
    is missing.

    Args:
        store: where everything goes.
        config: the configuration.
        run_id: the run's name, or None for the default.
        overwrite: run every job afresh.

    Returns:
        The run's name, the report's summary, and the errors of the jobs that failed.

    Raises:
        Interrupted: a signal came; the same command continues.
    """
    run = plan(store, config, run_id, overwrite=overwrite)
    progress = Progress("run", run_id=run.run_id)
    jobs = list_jobs(run)
    total = len(jobs["pretrain"]) + len(jobs["downstream"])
    progress.say(f"{run.run_id}: {len(jobs['pretrain'])} pretrainings, {len(jobs['downstream'])} downstream jobs")
    errors: list[AppError] = []
    failed: set[str] = set()
    done = 0
    for method, seed in [(m, s) for s in config.study.seeds for m in config.study.methods]:
        try:
            pretrain.run(run, method=method, seed=seed, overwrite=overwrite)
        except Interrupted:
            raise
        except AppError as error:
            failed.add(f"{method}-s{seed}")
            errors.append(error)
            progress.say(f"{method}-s{seed} failed: {error}")
        done += 1
        progress.say(f"{done} of {total} jobs", done=done, total=total)
    for job in jobs["downstream"]:
        done += 1
        if job["needs"] in failed:
            continue
        dataset, init, protocol, seed_name = job["key"].split("/")
        try:
            downstream.run(
                run,
                dataset=dataset,
                init=init,
                protocol=protocol,
                seed=int(seed_name[1:]),
                overwrite=overwrite,
            )
        except Interrupted:
            raise
        except AppError as error:
            errors.append(error)
            progress.say(f"{job['key']} failed: {error}")
        progress.say(f"{done} of {total} jobs", done=done, total=total)
    return run.run_id, report.run(store, run.run_id), errors
