"""Fan-out: every job in exactly one shard, files small enough for Argo, worst errors kept, signals obeyed."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from app import cli
from app.config import load_config
from app.errors import CollapseError, InputError, Interrupted, StorageError, UsageError
from app.jobs.run import Run
from app.stages import downstream, shard
from app.stages.fan_out import BASELINES, MAX_PODS, FanOut, gpu_hours, missing_shard, read_fan_out, write_fan_out
from app.stages.fetch import fetch_study
from app.stages.plan import list_jobs, plan
from app.stages.shard import run_shard
from app.stages.status import announce, publish_status, workflow_status
from app.storage import FolderStore

PARTS = ("trained", "frozen")
ROOT = Path(__file__).resolve().parents[2]


def planned(
    store: FolderStore,
    *,
    datasets: int,
    protocols: list[str],
    methods: list[str],
    seeds: int,
    preset: str = "recommended",
) -> Run:
    """A planned run, without the loading of data."""
    config = load_config(
        preset,
        [
            f"study.datasets=[{','.join(f'set{n}' for n in range(datasets))}]",
            f"study.protocols=[{','.join(protocols)}]",
            f"study.methods=[{','.join(methods)}]",
            f"study.seeds=[{','.join(map(str, range(seeds)))}]",
        ],
    )
    run = Run(store, "fan", config)
    store.write("runs/fan/experiment.json", json.dumps({"plan": list_jobs(run).model_dump(mode="json")}).encode())
    return run


@pytest.mark.parametrize(("preset", "part"), [("recommended", "frozen"), ("paper-code", "trained")])
def test_a_probe_behind_moving_batch_norm_is_not_sent_to_a_cpu(store, preset, part):
    planned(store, datasets=1, protocols=["linear_probe"], methods=[], seeds=2, preset=preset)
    jobs = read_fan_out(store, "fan", 1).jobs
    assert {half for (_, half), members in jobs.items() if members} == {part}


def test_a_plan_that_is_older_goes_by_the_names_of_protocols(store):
    planned(store, datasets=1, protocols=["finetune", "linear_probe"], methods=[], seeds=1)
    plan = json.loads(store.read("runs/fan/experiment.json"))
    for job in plan["plan"]["downstream"]:
        del job["frozen"]
    store.write("runs/fan/experiment.json", json.dumps(plan).encode())
    assert {part for (_, part), members in read_fan_out(store, "fan", 1).jobs.items() if members} == {
        "trained",
        "frozen",
    }


def shards(fan_out: FanOut) -> list[list[str]]:
    return [
        [job.key for job in fan_out.shard(group, part, index)]
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
    assert sorted(itertools.chain(*found)) == sorted(job.key for job in jobs.downstream)
    assert len(jobs.downstream) == 135
    assert all(1 <= len(members) <= size for members in found)
    for group, part in fan_out.jobs:
        lengths = [len(fan_out.shard(group, part, index)) for index in range(fan_out.pods(group, part))]
        assert max(lengths) - min(lengths) <= 1
    needs = {job.key: job.needs or BASELINES for job in jobs.downstream}
    for group, part in fan_out.jobs:
        for index in range(fan_out.pods(group, part)):
            for job in fan_out.shard(group, part, index):
                assert needs[job.key] == group
                assert ("linear_probe" in job.key) == (part == "frozen")


def test_seeds_of_a_baseline_share_a_pod(store):
    planned(store, datasets=2, protocols=["finetune", "few_shot"], methods=[], seeds=3)
    assert shards(read_fan_out(store, "fan", 3))[0] == [f"set0/random/few_shot/s{seed}" for seed in range(3)]


def test_only_what_is_missing_is_handed_on(store, tmp_path):
    """Row 5: groups in the order of the plan, pretrainings first; a shard with one missing job is started."""
    run = planned(store, datasets=4, protocols=["finetune", "linear_probe"], methods=["byol"], seeds=2)

    def groups() -> list[tuple[str, bool, int, int]]:
        write_fan_out(run, tmp_path / "out", 2, "study")
        found = json.loads((tmp_path / "out/groups.json").read_text())
        return [(g["group"], g["pretrain"], g["trained"], g["frozen"]) for g in found]

    def finish(*keys: str) -> None:
        for key in keys:
            store.write(f"runs/fan/{key}/record.json", b"{}")

    assert groups() == [("byol-s0", True, 2, 2), ("byol-s1", True, 2, 2), (BASELINES, False, 4, 4)]
    finish("pretrain/byol-s0", "downstream/set0/random/finetune/s0")
    assert groups() == [("byol-s0", False, 2, 2), ("byol-s1", True, 2, 2), (BASELINES, False, 4, 4)]
    finish("downstream/set0/byol-s0/finetune/s0", "downstream/set0/random/finetune/s1")
    assert groups() == [("byol-s0", False, 2, 2), ("byol-s1", True, 2, 2), (BASELINES, False, 3, 4)]

    # The first of the workflow's three pods takes the second shard: the first has both its jobs.
    fan_out = read_fan_out(store, "fan", 2)
    for number in range(3):
        of_pod = missing_shard(store, "fan", "study", BASELINES, "trained", number)
        assert of_pod == fan_out.shard(BASELINES, "trained", number + 1)
    with pytest.raises(UsageError, match="--index 3: study has 3 missing shards of baselines, trained"):
        missing_shard(store, "fan", "study", BASELINES, "trained", 3)
    jobs = list_jobs(run)
    finish(*(f"pretrain/{job.key}" for job in jobs.pretrain), *(f"downstream/{job.key}" for job in jobs.downstream))
    assert groups() == []
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["done"], summary["pods"]) == (len(jobs.pretrain) + len(jobs.downstream), 0)


def test_the_shards_of_a_workflow_stay_when_its_run_grows(tmp_path):
    store = FolderStore(tmp_path / "store")
    run = planned(store, datasets=2, protocols=["finetune"], methods=[], seeds=3)
    write_fan_out(run, tmp_path / "out", 2, "study")
    before = [read_fan_out(store, "fan", 2).shard(BASELINES, "trained", n) for n in range(3)]
    planned(store, datasets=2, protocols=["finetune"], methods=[], seeds=5)
    assert [read_fan_out(store, "fan", 2).shard(BASELINES, "trained", n) for n in range(3)] != before
    assert [missing_shard(store, "fan", "study", BASELINES, "trained", n) for n in range(3)] == before
    planned(store, datasets=1, protocols=["finetune"], methods=[], seeds=3)
    with pytest.raises(UsageError, match="fan was planned anew without set1/random/finetune/s"):
        missing_shard(store, "fan", "study", BASELINES, "trained", 2)


@pytest.mark.parametrize(("size", "epochs", "hours"), [(28, 1000, 11.0), (56, 1000, 44.0), (28, 500, 5.5)])
def test_the_plan_estimates_gpu_hours_by_the_papers(size, epochs, hours):
    config = load_config("recommended", [f"pretrain.epochs={epochs}"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"size": size})})
    assert gpu_hours(config, {"chestmnist": {"splits": {"train": 112_120}}}) == pytest.approx(hours)
    both = {"splits": {"train": 78_468, "test": 33_652}, "unlabelled": {"train": 78_468}}  # `pretrain_split: train`
    assert gpu_hours(config, {"chestmnist": both}) == pytest.approx(hours * 78_468 / 112_120)


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
    group = f"{number % 100}:frozen:2,group:byol_plus-s{number % 100},method:byol_plus,pretrain:true,seed:0,trained:2"
    name = f"byol-study-x7k2p.groups({group}).trained({number // 100}:2)(0)"
    identity = f"byol-study-x7k2p-{(number * 2654435761) % 2**32}"
    parameters = {"run-id": "recommended-1a2b3c4d", "jobs-per-pod": "3", "group": f"byol_plus-s{number % 100}"}
    parameters |= {"part": "trained", "index": "2", "pool": "gpu", "gpus": "1"}
    return {
        "id": identity,
        "name": name,
        "displayName": f"trained({number // 100}:2)",
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
        "children": [f"byol-study-x7k2p-{((number + 1) * 2654435761) % 2**32}"],
        "hostNodeName": f"ip-10-0-{number % 250}-{number * 7 % 250}.eu-central-1.compute.internal",
    }


def workflow_object(pods: int, pretrainings: int, tries: int = 1) -> int:
    """Bytes of a workflow in etcd: its specification, its nodes, and a line of completion for each pod.

    A pod has a node for each try and one above them for its retries; a pretraining has a DAG and a group of shards
    besides. Beyond 1 MB Argo packs the nodes (gzip in base64).
    """
    count = (pods + 4) * (tries + 1) + 2 * pretrainings + 5
    nodes = json.dumps({n["id"]: n for n in map(node, range(count))}, separators=(",", ":"))
    specification = json.dumps(yaml.safe_load((ROOT / "workflows/full.yaml").read_text("utf-8")), separators=(",", ":"))
    completed = json.dumps({node(number)["id"]: True for number in range(pods * tries)}, separators=(",", ":"))
    plain = len(specification) + len(nodes) + len(completed)
    packed = base64.b64encode(gzip.compress(nodes.encode()))
    return plain if plain <= 2**20 else plain - len(nodes) + len(packed)


FAN_OUTS = [
    (3, ["finetune", "linear_probe", "few_shot"], [], 1, 9),
    (3, ["finetune", "linear_probe", "few_shot"], ["byol", "byol_plus"], 5, 135),
    (5, ["finetune", "linear_probe", "few_shot", "few_shot_frozen"], ["byol"], 250, 10_000),
]


def stated(jobs: int) -> list[float]:
    """The figures that the documentation gives for so many jobs."""
    text = (ROOT / "k8s/README.md").read_text("utf-8")
    row = re.search(rf"^\| {jobs:,} \|(.*)\|$", text, re.MULTILINE)
    assert row is not None
    return [float(cell.replace(",", "").split()[0]) for cell in row[1].split("|")]


@pytest.mark.parametrize(("datasets", "protocols", "methods", "seeds", "jobs"), FAN_OUTS)
def test_planning_stays_within_argos_limits(store, tmp_path, datasets, protocols, methods, seeds, jobs):
    run = planned(store, datasets=datasets, protocols=protocols, methods=methods, seeds=seeds)
    write_fan_out(run, tmp_path / "one", 1)
    write_fan_out(run, tmp_path / "out", 3)
    alone = json.loads((tmp_path / "one/summary.json").read_text())["pods"]
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    summary = json.loads(files["summary.json"])
    assert summary["downstream"] == jobs
    assert summary["pods"] <= alone <= MAX_PODS
    outputs = sum(map(len, files.values()))
    assert outputs < 256_000  # Argo's limit for the outputs of a pod
    groups = json.loads(files["groups.json"])
    pretrain = [group for group in groups if group["pretrain"]]
    assert summary["pods"] == sum(group[part] for group in groups for part in PARTS) + len(pretrain)
    size = workflow_object(summary["pods"], len(pretrain))
    assert workflow_object(alone, len(pretrain), tries=6) < 1_000_000  # what Argo lets into etcd
    row = [len(pretrain), alone, summary["pods"], summary["jobs_per_pod"], outputs / 1e3, size / 1e3]
    print(f"| {jobs:,} | " + " | ".join(f"{value:,.1f}" for value in row) + " |")
    documented = stated(jobs)
    assert documented[:4] == row[:4]
    assert documented[4:6] == pytest.approx(row[4:6], rel=0.1, abs=0.1)


def test_what_would_not_fit():
    """The limits of which the documentation says where they bite."""
    assert workflow_object(4_500, 250) > 1_000_000
    assert workflow_object(10_000, 250) == pytest.approx(2.2e6, rel=0.1)
    item = {"dataset": "set0", "init": "byol-s100", "protocol": "few_shot_frozen", "seed": 100}
    assert 3_400 * len(json.dumps(item, separators=(",", ":"))) > 256_000


def test_ten_thousand_jobs_are_planned_by_the_command(default_phantoms, tmp_path, monkeypatch, capsys):
    """Data, checks and all: five data sets, four protocols, a random start and BYOL, 250 seeds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fifth = shutil.copy(default_phantoms / "breastmnist.npz", tmp_path / "fifth.npz")
    names = ["pneumoniamnist", "breastmnist", "dermamnist", "chestmnist", "fifth"]
    command = ["plan", "--preset=smoke", "--set=data.phantoms=never", f"--data-root={default_phantoms}"]
    command += [f"--data=fifth={fifth}:binary", f"--datasets={','.join(names)}", "--methods=byol"]
    command += [f"--seeds={','.join(map(str, range(250)))}", "--seeds-per-pod=3", "--run-id=fan"]
    command += [f"--store={tmp_path / 'store'}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["app", *command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["downstream"], summary["jobs_per_pod"], summary["pods"]) == (10_000, 20, 1000)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 256_000
    size = (tmp_path / "store/runs/fan/experiment.json").stat().st_size
    assert size / 1e6 == pytest.approx(2.9, rel=0.1)  # what k8s/README.md says
    # a pod finds its jobs in the stored plan
    assert len(read_fan_out(FolderStore(tmp_path / "store"), "fan", 20).shard("byol-s249", "frozen", 0)) == 10


def test_more_pretrainings_than_a_workflow_has_room_for_are_refused(store, tmp_path):
    run = planned(store, datasets=1, protocols=["finetune", "linear_probe"], methods=["byol"], seeds=332)
    write_fan_out(run, tmp_path / "out", 1)
    assert json.loads((tmp_path / "out/summary.json").read_text())["pods"] <= MAX_PODS
    run = planned(store, datasets=1, protocols=["finetune", "linear_probe"], methods=["byol"], seeds=334)
    with pytest.raises(UsageError, match=r"334 pretrainings need at least 1004 pods.* room for 1000"):
        write_fan_out(run, tmp_path / "more", 1)


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


@pytest.mark.parametrize("file", ["missing/progress", "", "progress/below"])
def test_a_progress_file_that_cannot_be_written_does_not_end_a_shard(store, monkeypatch, tmp_path, file):
    (tmp_path / "progress").touch()
    run = planned(store, datasets=1, protocols=["finetune"], methods=[], seeds=2)
    seen = []
    monkeypatch.setattr(shard, "run_job", lambda _run, args, _overwrite: seen.append(args[-1]))
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(tmp_path / file))
    run_shard(run, read_fan_out(store, "fan", 2).shard(BASELINES, "trained", 0), name="x")
    assert seen == ["0", "1"]


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


def test_a_signal_while_a_job_publishes_ends_the_shard_after_it(store, monkeypatch):
    """The job is done and says so; but the grace period is for stopping, not for beginning another."""
    run = planned(store, datasets=1, protocols=["finetune"], methods=[], seeds=2)
    seen = []

    def publishing(_run, **options):
        seen.append(options["seed"])
        _run.store.patience.hurry(5)

    monkeypatch.setattr(downstream, "run", publishing)
    with pytest.raises(Interrupted, match="stopped by a signal, between two jobs"):
        run_shard(run, read_fan_out(store, "fan", 2).shard(BASELINES, "trained", 0), name="x")
    assert seen == [0]


def test_status_is_published_before_and_after_the_plan(store):
    failed = workflow_status(store, "study-a", "Failed")
    publish_status(store, failed)
    assert (failed["run_id"], failed["took"]) == (None, None)
    assert json.loads(store.read("workflows/study-a.json"))["phase"] == "Failed"
    planned(store, datasets=1, protocols=["finetune"], methods=["byol"], seeds=1)
    announce(store, "study-b", "fan")
    store.write("runs/fan/pretrain/byol-s0/record.json", b"{}")
    ended = workflow_status(store, "study-b", "Failed")
    publish_status(store, ended)
    assert (ended["done"], ended["planned"], ended["report"]) == (1, 3, None)
    assert ended["took"] == "0 CPU seconds in 0 jobs", "a damaged record says nothing of it"
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
