"""Fan-out on a cluster: the plan's downstream jobs in shards, each of which one pod works off.

A shard is a function of the stored plan, so that a pod is told a group, a part, an index and a size, and needs nothing
else: no list of jobs goes through the scheduler.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.records import Plan, PlannedDownstream, read_plan
from app.jobs.run import Run
from app.science.protocols import PROTOCOLS
from app.storage import Store

Part = Literal["trained", "frozen"]

BASELINES = "baselines"
# Every pod has nodes in the status of the workflow, which is one object in etcd. Compressed, those of a thousand pods
# stay below the limit of 1 MB, with six tries of each (tests/stages/test_shard.py counts them).
MAX_PODS = 1000


@dataclass(frozen=True)
class FanOut:
    """The downstream jobs of a run, divided among pods.

    A *group* is what waits for the same pretraining (``byol-s0``), or for none (``baselines``). Its two *parts* run on
    different machines: jobs that train the encoder, and jobs that freeze it and so do well on a CPU.

    Attributes:
        jobs: group and part to jobs, those next to each other that differ only in their seed.
        size: jobs per pod, at most.
    """

    jobs: dict[tuple[str, Part], list[PlannedDownstream]]
    size: int

    @classmethod
    def of(cls, plan: Plan, seeds_per_pod: int) -> FanOut:
        """Divide a plan's downstream jobs.

        Args:
            plan: what ``plan.list_jobs`` returns.
            seeds_per_pod: jobs of one group and part in a pod: seeds where they differ in seeds, as baselines do, else
                protocols or data sets. Raised as far as needed to stay within ``MAX_PODS``, pretraining included.
        """
        groups = [BASELINES, *(job.key for job in plan.pretrain)]
        jobs: dict[tuple[str, Part], list[PlannedDownstream]] = {
            (group, part): [] for group in groups for part in _PARTS
        }
        for job in sorted(plan.downstream, key=_cell):
            jobs[job.needs or BASELINES, _part(job)].append(job)
        lengths = [len(members) for members in jobs.values() if members]
        size = seeds_per_pod
        most = MAX_PODS - len(plan.pretrain)
        while size < max(lengths, default=0) and sum(math.ceil(n / size) for n in lengths) > most:
            size += 1
        return cls(jobs, size)

    def pods(self, group: str, part: Part) -> int:
        """Return the number of shards of a group's part."""
        return math.ceil(len(self.jobs.get((group, part), ())) / self.size)

    def shard(self, group: str, part: Part, index: int) -> list[PlannedDownstream]:
        """Return the jobs of one shard; the shards of a group's part are equally long, give or take one job.

        Raises:
            UsageError: there is no such shard.
        """
        if (group, part) not in self.jobs:
            groups = ", ".join(sorted({name for name, _ in self.jobs}))
            raise UsageError(f"--group {group} --part {part}: unknown; the plan has the groups {groups}")
        jobs, pods = self.jobs[group, part], self.pods(group, part)
        if not 0 <= index < pods:
            raise UsageError(f"--index {index}: {group} has {pods} shards of {part} jobs at {self.size} jobs a pod")
        return jobs[len(jobs) * index // pods : len(jobs) * (index + 1) // pods]


def write_fan_out(run: Run, folder: Path, seeds_per_pod: int) -> None:
    """Write what a scheduler needs to fan a planned run out: one small file per parameter.

    ``run-id``; ``report``, where the page will be; ``jobs-per-pod``; ``baselines-trained`` and ``baselines-frozen``,
    numbers of shards; ``pretrain.json``, a list of ``{"key", "method", "seed", "trained", "frozen"}``, again with
    numbers of shards; and ``summary.json``.

    Raises:
        UsageError: too many pretrainings for one workflow, or the folder cannot be written.
    """
    plan = read_plan(run.store, run.run_id)
    fan_out = FanOut.of(plan, seeds_per_pod)
    counts: dict[str, dict[str, int]] = {
        group: {part: fan_out.pods(group, part) for part in _PARTS}
        for group in [BASELINES, *(job.key for job in plan.pretrain)]
    }
    pretrain = [
        {"key": str(job), "method": job.method, "seed": job.seed} | counts[str(job)]
        for planned in plan.pretrain
        if (job := keys.Pretraining.parse(planned.key)) is not None
    ]
    pods = len(plan.pretrain) + sum(sum(parts.values()) for parts in counts.values())
    if pods > MAX_PODS:
        raise UsageError(
            f"plan: {len(plan.pretrain)} pretrainings need at least {pods} pods, and one workflow has room for "
            f"{MAX_PODS}; divide the seeds or methods among several runs"
        )
    summary = {
        "version": 1,
        "run_id": run.run_id,
        "pretrain": len(plan.pretrain),
        "downstream": len(plan.downstream),
        "jobs_per_pod": fan_out.size,
        "pods": pods,
    }
    files = {
        "run-id": run.run_id,
        "report": f"{run.store.uri}/{keys.report(run.run_id)}",
        "jobs-per-pod": str(fan_out.size),
        "baselines-trained": str(counts[BASELINES]["trained"]),
        "baselines-frozen": str(counts[BASELINES]["frozen"]),
        "pretrain.json": json.dumps(pretrain, separators=(",", ":")),
        "summary.json": json.dumps(summary),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error


def read_fan_out(store: Store, run_id: str, jobs_per_pod: int) -> FanOut:
    """Divide the stored plan of a run as ``plan`` did.

    Raises:
        MissingObject: the run was not planned.
    """
    return FanOut.of(read_plan(store, run_id), jobs_per_pod)


_PARTS: tuple[Part, Part] = ("trained", "frozen")


def _part(job: PlannedDownstream) -> Part:
    return "frozen" if PROTOCOLS[_name(job).protocol].frozen else "trained"


def _cell(job: PlannedDownstream) -> list[str]:
    """Sort by data set, initialisation and protocol; a stable sort leaves the seeds in the plan's order."""
    name = _name(job)
    return [name.dataset, name.init, name.protocol]


def _name(job: PlannedDownstream) -> keys.Downstream:
    name = keys.Downstream.parse(job.key)
    if name is None:
        raise InputError(f"the plan names a job {job.key!r}, which no version of this program does; plan again")
    return name
