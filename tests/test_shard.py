"""Fan-out: every job in exactly one shard, files small enough for Argo, worst errors kept, signals obeyed."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import time
from pathlib import Path

import pytest

from app.config import load_config
from app.errors import CollapseError, InputError, Interrupted, StorageError, UsageError
from app.stages import shard
from app.stages.experiment import Run
from app.stages.fetch import fetch_study
from app.stages.plan import list_jobs, plan
from app.stages.shard import BASELINES, MAX_PODS, FanOut, read_fan_out, run_shard, write_fan_out
from app.stages.status import announce, publish_status
from app.storage import FolderStore

PARTS = ("trained", "frozen")


def planned(store: FolderStore, *, datasets: int, protocols: list[str], methods: list[str], seeds: int) -> Run:
    """A planned run, without the loading of data."""
    config = load_config(
        "recommended",
        [
            f"study.datasets=[{','.join(f'set{n}' for n in range(datasets))}]",
            f"study.protocols=[{','.join(protocols)}]",
            f"study.methods=[{','.join(methods)}]",
            f"study.seeds=[{','.join(map(str, range(seeds)))}]",
        ],
    )
    run = Run(store, "fan", config)
    store.write("runs/fan/experiment.json", json.dumps({"plan": list_jobs(run)}).encode())
    return run


def shards(fan_out: FanOut) -> list[list[str]]:
    return [
        [job["key"] for job in fan_out.shard(group, part, index)]
        for group, part in fan_out.jobs
        for index in range(fan_out.pods(group, part))
    ]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_every_job_is_in_exactly_one_shard(store, size):
    run = planned(
        store, datasets=3, protocols=["finetune", "linear_probe", "few_shot"], methods=["byol", "byol_plus"], seeds=5
    )
    jobs = list_jobs(run)
    fan_out = read_fan_out(store, "fan", size)
    found = shards(fan_out)
    assert sorted(itertools.chain(*found)) == sorted(job["key"] for job in jobs["downstream"])
    assert len(jobs["downstream"]) == 135
    assert all(1 <= len(members) <= size for members in found)
    for group, part in fan_out.jobs:
        lengths = [len(fan_out.shard(group, part, index)) for index in range(fan_out.pods(group, part))]
        assert max(lengths) - min(lengths) <= 1
    needs = {job["key"]: job["needs"] or BASELINES for job in jobs["downstream"]}
    for group, part in fan_out.jobs:
        for index in range(fan_out.pods(group, part)):
            for job in fan_out.shard(group, part, index):
                assert needs[job["key"]] == group
                assert ("linear_probe" in job["key"]) == (part == "frozen")


def test_seeds_of_a_baseline_share_a_pod(store):
    planned(store, datasets=2, protocols=["finetune", "few_shot"], methods=[], seeds=3)
    assert shards(read_fan_out(store, "fan", 3))[0] == [f"set0/random/few_shot/s{seed}" for seed in range(3)]


@pytest.mark.parametrize(
    ("group", "part", "index", "message"),
    [
        ("byol-s9", "trained", 0, "baselines, byol-s0"),
        (BASELINES, "trained", 6, r"--index 6: baselines has 1 shards"),
        (BASELINES, "frozen", 0, r"--index 0: baselines has 0 shards"),
    ],
)
def test_a_shard_that_is_not_there_is_refused(store, group, part, index, message):
    planned(store, datasets=1, protocols=["finetune"], methods=["byol"], seeds=1)
    with pytest.raises(UsageError, match=message):
        read_fan_out(store, "fan", 1).shard(group, part, index)


def node(number: int) -> dict[str, object]:
    """What Argo keeps about one pod, as a 4.x server shows it, with names of the length ours have."""
    name = f"byol-study-x7k2p.methods({number % 100}:key:byol_plus-s{number % 100}).downstream({number // 100})"
    identity = f"byol-study-x7k2p-{(number * 2654435761) % 2**32}"
    parameters = {"run-id": "recommended-1a2b3c4d", "group": f"byol_plus-s{number % 100}", "part": "trained"}
    return {
        "id": identity,
        "name": name,
        "displayName": f"downstream({number // 100})",
        "type": "Pod",
        "templateName": "shard",
        "templateScope": f"local/byol-study-x7k2p-{(number * 40503) % 2**32}",
        "phase": "Succeeded",
        "boundaryID": f"byol-study-x7k2p-{(number % 100 * 97) % 2**32}",
        "startedAt": f"2026-01-01T00:{number % 60:02}:{number * 7 % 60:02}Z",
        "finishedAt": f"2026-01-01T01:{number * 3 % 60:02}:{number * 11 % 60:02}Z",
        "progress": "1/1",
        "resourcesDuration": {"cpu": number * 31 % 977, "memory": number * 17 % 9973, "nvidia.com/gpu": number % 977},
        "inputs": {"parameters": [{"name": key, "value": value} for key, value in parameters.items()]},
        "outputs": {
            "artifacts": [{"name": "main-logs", "s3": {"key": f"byol-study-x7k2p/{identity}/main.log"}}],
            "exitCode": "0",
        },
        "children": [],
        "hostNodeName": f"ip-10-0-{number % 250}-{number * 7 % 250}.eu-central-1.compute.internal",
    }


@pytest.mark.parametrize(
    ("datasets", "protocols", "methods", "seeds", "jobs"),
    [
        (3, ["finetune", "linear_probe", "few_shot"], [], 1, 9),
        (3, ["finetune", "linear_probe", "few_shot"], ["byol", "byol_plus"], 5, 135),
        (5, ["finetune", "linear_probe", "few_shot", "few_shot_frozen"], ["byol"], 250, 10_000),
    ],
)
def test_planning_stays_within_argos_limits(store, tmp_path, datasets, protocols, methods, seeds, jobs):
    begin = time.process_time()
    run = planned(store, datasets=datasets, protocols=protocols, methods=methods, seeds=seeds)
    write_fan_out(run, tmp_path / "out", 1)
    seconds = time.process_time() - begin
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    summary = json.loads(files["summary.json"])
    assert summary["downstream"] == jobs
    assert summary["pods"] <= MAX_PODS
    assert sum(map(len, files.values())) < 256_000  # Argo's limit for the outputs of a pod
    pretrain = json.loads(files["pretrain.json"])
    shards_ = sum(entry[part] for entry in pretrain for part in PARTS)
    shards_ += sum(int(files[f"baselines-{part}"]) for part in PARTS)
    assert summary["pods"] == shards_ + len(pretrain)
    # A retry strategy puts a node above every pod; Argo stores the nodes as gzip in base64 when they get large.
    nodes = {n["id"]: n for n in map(node, range(2 * summary["pods"]))}
    stored = len(base64.b64encode(gzip.compress(json.dumps(nodes).encode())))
    print(f"{jobs} jobs: {seconds:.2f} s, {summary}, outputs {sum(map(len, files.values()))} B, status {stored} B")
    assert stored < 500_000
    assert seconds < 1.0


def test_ten_thousand_pods_would_not_fit_into_etcd():
    nodes = {n["id"]: n for n in map(node, range(20_000))}
    assert len(base64.b64encode(gzip.compress(json.dumps(nodes).encode()))) > 1_000_000


def test_a_failed_job_does_not_stop_the_others(store, monkeypatch, tmp_path):
    run = planned(store, datasets=1, protocols=["finetune"], methods=[], seeds=4)
    seen = []

    def job(_run, args, _overwrite):
        seen.append(args[-1])
        if args[-1] == "1":
            raise CollapseError("first")
        if args[-1] == "2":
            raise InputError("second")

    monkeypatch.setattr(shard, "run_job", job)
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(tmp_path / "progress"))
    with pytest.raises(CollapseError, match="first"):
        run_shard(run, read_fan_out(store, "fan", 4).shard(BASELINES, "trained", 0), name="x")
    assert seen == ["0", "1", "2", "3"]
    assert (tmp_path / "progress").read_text() == "4/4\n"


@pytest.mark.parametrize("stop", [Interrupted, StorageError])
def test_a_signal_or_lost_storage_stops_a_shard(store, monkeypatch, stop):
    run = planned(store, datasets=1, protocols=["finetune"], methods=[], seeds=4)
    seen = []

    def job(_run, args, _overwrite):
        seen.append(args[-1])
        raise InputError("x") if args[-1] == "0" else stop("now")

    monkeypatch.setattr(shard, "run_job", job)
    with pytest.raises(stop, match="now"):
        run_shard(run, read_fan_out(store, "fan", 4).shard(BASELINES, "trained", 0), name="x")
    assert seen == ["0", "1"]


def test_status_is_published_before_and_after_the_plan(store):
    failed = publish_status(store, "study-a", "Failed")
    assert failed["run_id"] is None
    assert json.loads(store.read("workflows/study-a.json"))["phase"] == "Failed"
    planned(store, datasets=1, protocols=["finetune"], methods=["byol"], seeds=1)
    announce(store, "study-b", "fan")
    store.write("runs/fan/pretrain/byol-s0/record.json", b"{}")
    ended = publish_status(store, "study-b", "Failed")
    assert (ended["done"], ended["planned"], ended["report"]) == (1, 3, None)
    assert ended["missing"] == ["downstream/set0/random/finetune/s0", "downstream/set0/byol-s0/finetune/s0"]
    assert json.loads(store.read("runs/fan/status.json")) == ended


def test_a_study_without_data_fetches_phantoms_that_the_plan_then_uses(store, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("smoke", ["data.phantoms=always"])
    assert list(fetch_study(store, config, mirror=None, offline=True)) == [f"{store.uri}/phantoms  (synthetic)"]
    assert plan(store, config).config.data.phantoms == "always"


def test_data_sets_that_the_store_has_are_not_fetched(store):
    config = load_config("recommended")
    for name in ("chestmnist", *config.study.datasets):
        store.write(f"data/{name}_28.npz", b"there")
    lines = list(fetch_study(store, config, mirror="http://127.0.0.1:1", offline=False))
    assert len(lines) == 4
    assert all(line.endswith("(there already)") for line in lines)
