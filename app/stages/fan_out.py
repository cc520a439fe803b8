"""Fan-out on a cluster: the plan's downstream jobs in shards, each of which one pod works off.

A pod is told a group, a part and an index, and no list of jobs goes through the scheduler: a shard is a function of the
stored plan, and those of a workflow lie in the store, so that they stay what they were when the run grows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.records import Plan, PlannedDownstream, read_json, read_plan, write_json
from app.jobs.run import Run
from app.science.protocols import PROTOCOLS
from app.settings import Config
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
    different machines: jobs that train the encoder or keep its BatchNorm moving, and jobs that freeze it and so do well
    on a CPU.

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

    def missing(self, plan: Plan, done: set[str]) -> list[dict[str, Any]]:
        """Return what is still to be run, pretrainings first: ``{"group", "method", "seed", "pretrain", "trained",
        "frozen"}``, where ``pretrain`` says whether that is missing too, and the last two are the missing shards.

        Args:
            plan: the plan that was divided.
            done: keys of the jobs that have a record, ``pretrain/byol-s0`` for one.
        """
        groups: list[dict[str, Any]] = []
        for group in [*(job.key for job in plan.pretrain), BASELINES]:
            job = keys.Pretraining.parse(group)
            method, seed = ("", "") if job is None else (job.method, str(job.seed))
            shards: dict[str, list[int]] = {
                part: [
                    index
                    for index in range(self.pods(group, part))
                    if not {f"{keys.DOWNSTREAM}/{member.key}" for member in self.shard(group, part, index)} <= done
                ]
                for part in _PARTS
            }
            pretrain = job is not None and f"{keys.PRETRAIN}/{group}" not in done
            if pretrain or any(shards.values()):
                groups.append({"group": group, "method": method, "seed": seed, "pretrain": pretrain} | shards)
        return groups


def write_fan_out(run: Run, folder: Path, seeds_per_pod: int, workflow: str | None = None) -> None:
    """Write what a scheduler needs to fan a planned run out, one small file per parameter: what is missing, no more.

    ``run-id``; ``report``, where the page will be; ``jobs-per-pod``; ``groups.json``, the groups of ``missing`` with
    numbers of shards in place of their lists, since Argo names its nodes after all of it; and ``summary.json``.
    The jobs of each go into the store, under the name of the workflow: its n-th pod works off the n-th missing shard.

    Raises:
        UsageError: too many pretrainings for one workflow, or the folder cannot be written.
    """
    plan = read_plan(run.store, run.run_id)
    data = read_json(run.store, keys.experiment(run.run_id)).get("data", {})
    fan_out = FanOut.of(plan, seeds_per_pod)
    pods = len(plan.pretrain) + sum(fan_out.pods(group, part) for group, part in fan_out.jobs)
    if pods > MAX_PODS:
        raise UsageError(
            f"plan: {len(plan.pretrain)} pretrainings need at least {pods} pods, and one workflow has room for "
            f"{MAX_PODS}; divide the seeds or methods among several runs"
        )
    done = keys.finished(keys.run(run.run_id), run.store.list(keys.run(run.run_id)))
    groups = fan_out.missing(plan, done)
    pretrain = sum(group["pretrain"] for group in groups)
    jobs = [*(f"{keys.PRETRAIN}/{job.key}" for job in plan.pretrain)]
    jobs += [f"{keys.DOWNSTREAM}/{job.key}" for job in plan.downstream]
    summary = {
        "version": 1,
        "run_id": run.run_id,
        "pretrain": len(plan.pretrain),
        "downstream": len(plan.downstream),
        "done": len(done.intersection(jobs)),
        "jobs_per_pod": fan_out.size,
        "pods": pretrain + sum(len(group[part]) for group in groups for part in _PARTS),
        "pretrain_gpu_hours": round(pretrain * gpu_hours(run.config, data), 1),
    }
    files = {
        "run-id": run.run_id,
        "report": f"{run.store.uri}/{keys.report(run.run_id)}",
        "jobs-per-pod": str(fan_out.size),
        "groups.json": json.dumps(
            [group | {part: len(group[part]) for part in _PARTS} for group in groups], separators=(",", ":")
        ),
        "summary.json": json.dumps(summary),
    }
    if workflow is not None:
        lists = {
            (name := group["group"]): {
                part: [[job.key for job in fan_out.shard(name, part, index)] for index in group[part]]
                for part in _PARTS
            }
            for group in groups
        }
        write_json(run.store, keys.shards(workflow), lists)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error


def gpu_hours(config: Config, data: dict[str, Any]) -> float:
    """Estimate what one pretraining takes on an A10G: Murphy (2023) had 1000 epochs of 112,120 images in 11 hours.

    Proportional to images, epochs and pixels; not measured by us.

    Args:
        config: of the run.
        data: its data sets, as its plan describes them.
    """
    entry = data.get(config.data.pretrain, {})
    images: int = sum((entry.get("unlabelled") or entry.get("splits", {})).values())
    return 11 * images / 112_120 * config.pretrain.epochs / 1000 * (config.data.size / 28) ** 2


def missing_shard(
    store: Store, run_id: str, workflow: str, group: str, part: Part, number: int
) -> list[PlannedDownstream]:
    """Return the jobs that a workflow's n-th pod of a group's part works off.

    Raises:
        MissingObject: the workflow, or the run, was not planned.
        UsageError: its plan listed fewer, or the run has been planned anew without its jobs.
    """
    listed: list[list[str]] = read_json(store, keys.shards(workflow)).get(group, {}).get(part, [])
    if number >= len(listed):
        raise UsageError(f"--index {number}: {workflow} has {len(listed)} missing shards of {group}, {part}")
    planned = {job.key: job for job in read_plan(store, run_id).downstream}
    if gone := [key for key in listed[number] if key not in planned]:
        raise UsageError(f"--workflow {workflow}: {run_id} was planned anew without {gone[0]}; submit the study again")
    return [planned[key] for key in listed[number]]


def read_fan_out(store: Store, run_id: str, jobs_per_pod: int) -> FanOut:
    """Divide the stored plan of a run as ``plan`` did.

    Raises:
        MissingObject: the run was not planned.
    """
    return FanOut.of(read_plan(store, run_id), jobs_per_pod)


_PARTS: tuple[Part, Part] = ("trained", "frozen")


def _part(job: PlannedDownstream) -> Part:
    frozen = PROTOCOLS[_name(job).protocol].frozen if job.frozen is None else job.frozen
    return "frozen" if frozen else "trained"


def _cell(job: PlannedDownstream) -> list[str]:
    """Sort by data set, initialisation and protocol; a stable sort leaves the seeds in the plan's order."""
    name = _name(job)
    return [name.dataset, name.init, name.protocol]


def _name(job: PlannedDownstream) -> keys.Downstream:
    name = keys.Downstream.parse(job.key)
    if name is None:
        raise InputError(f"the plan names a job {job.key!r}, which no version of this program does; plan again")
    return name
