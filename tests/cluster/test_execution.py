"""The smoke workflow for real: its own commands as processes, in the DAG's order, against a real S3 server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.data import write_phantoms
from app.storage import open_store
from tests.cluster.argo import Runner, process_command, workflow_parameters
from tests.cluster.checks import OVERLAYS
from tests.cluster.documents import ROOT, Document, load, render
from tests.cluster.references import Cluster
from tests.processes import Launcher
from tests.servers import Weed

# Smaller than smoke, and data that are there: two methods, so that the nested DAGs fan out.
GIVEN = {
    "datasets": "breastmnist",
    "methods": "byol,byol_plus",
    "seeds-per-pod": "2",
    "set": "data.phantoms=never\ndata.monitor=null\ndata.subset=48\npretrain.epochs=1\npretrain.batch_size=24\n"
    "protocols.finetune.epochs=1\nprotocols.linear_probe.epochs=1\nprotocols.few_shot.draws=1\n"
    "protocols.few_shot.epochs=1",
}


@pytest.fixture(scope="module")
def smoke() -> tuple[Document, Cluster]:
    [workflow] = load((ROOT / "workflows/smoke.yaml").read_text("utf-8"))
    return workflow["spec"], Cluster(render(ROOT / OVERLAYS[0]))


def runner(
    smoke: tuple[Document, Cluster],
    tmp_path: Path,
    given: dict[str, str],
    environment: dict[str, str],
    launcher: Launcher,
) -> Runner:
    spec, cluster = smoke
    values = workflow_parameters(spec, cluster.config_maps, given) | {"workflow.name": "byol-smoke-x7k2p"}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MEDMNIST"))}
    limits = tmp_path / "limits"
    limits.mkdir(parents=True)
    for key, value in cluster.data("ConfigMap", "byol-limits").items():
        (limits / key).write_text(value)
    run = process_command(keep | environment, launcher)

    def mounted(template: Document, command: list[str], folder: Path) -> int:
        return run(template, [word.replace("--limits=/limits", f"--limits={limits}") for word in command], folder)

    return Runner(spec, values, mounted, tmp_path / "pods")


@pytest.mark.slow
@pytest.mark.s3
def test_the_smoke_workflow_ends_in_a_report(
    smoke: tuple[Document, Cluster], s3_environment: Weed, tmp_path: Path, launcher: Launcher
) -> None:
    uri = f"s3://{s3_environment.bucket}/workflow"
    store = open_store(uri)
    write_phantoms(tmp_path / "phantoms", counts={"chestmnist": (64, 20, 20), "breastmnist": (64, 48, 48)})
    for name in ("chestmnist", "breastmnist"):  # so that nothing asks the internet
        store.write(f"data/{name}_28.npz", (tmp_path / f"phantoms/{name}.npz").read_bytes())

    argo = runner(smoke, tmp_path, GIVEN | {"store": uri}, s3_environment.environment, launcher)
    phase = argo.workflow()

    assert phase == "Succeeded", "\n".join(f"{code} {task} {' '.join(words)}" for task, words, code in argo.log)
    tasks = [task for task, _, _ in argo.log]
    assert tasks[:2] == ["study/fetch-data", "study/plan"]
    assert tasks[-2:] == ["study/report", "exit"]
    pretrain = "study/groups/pretrain"
    assert tasks.count(pretrain) == 2
    for shards in ("study/groups/trained", "study/groups/frozen"):
        assert tasks.count(shards) >= 3
        assert tasks.index(shards) > tasks.index(pretrain)

    run_id = json.loads(store.read("workflows/byol-smoke-x7k2p.json"))["run_id"]
    plan = json.loads(store.read(f"runs/{run_id}/experiment.json"))["plan"]
    for kind in ("pretrain", "downstream"):
        for job in plan[kind]:
            assert store.exists(f"runs/{run_id}/{kind}/{job['key']}/record.json"), job["key"]
    assert len(plan["downstream"]) == 3 * 4  # random and two methods, four protocols
    page = store.read(f"runs/{run_id}/report/index.html").decode()
    assert "BYOL+" in page
    status = json.loads(store.read(f"runs/{run_id}/status.json"))
    assert (status["phase"], status["done"], status["planned"]) == ("Succeeded", 14, 14)
    assert status["report"] == f"{store.uri}/runs/{run_id}/report/index.html"

    # Row 5: submitted again, it starts what is missing and nothing else.
    gone = next(job["key"] for job in reversed(plan["downstream"]) if "finetune" in job["key"])
    store.delete(f"runs/{run_id}/downstream/{gone}/record.json")
    for expected in (1, 0):
        given = GIVEN | {"store": uri}
        again = runner(smoke, tmp_path / f"again-{expected}", given, s3_environment.environment, launcher)
        assert again.workflow() == "Succeeded"
        assert [task for task, _, _ in again.log] == [
            "study/fetch-data",
            "study/plan",
            *["study/groups/trained"] * expected,
            "study/report",
            "exit",
        ]


def test_a_failed_plan_still_publishes_a_status(
    smoke: tuple[Document, Cluster], tmp_path: Path, launcher: Launcher
) -> None:
    store = tmp_path / "store"
    given = GIVEN | {"store": str(store), "set": "data.phantoms=always\nstudy.seeds=[]"}
    argo = runner(smoke, tmp_path, given, {}, launcher)
    assert argo.workflow() == "Failed"
    assert [(task, code) for task, _, code in argo.log] == [("study/fetch-data", 2), ("exit", 0)]
    status = json.loads((store / "workflows/byol-smoke-x7k2p.json").read_bytes())
    assert (status["phase"], status["run_id"], status["report"]) == ("Failed", None, None)


def test_a_failed_method_holds_nobody_up_and_is_reported(smoke: tuple[Document, Cluster], tmp_path: Path) -> None:
    """The order of things, with containers that only pretend."""
    spec, cluster = smoke
    both = {"trained": 1, "frozen": 1}
    plan = {
        "run-id": "r", "jobs-per-pod": "2", "summary.json": "{}",
        "groups.json": json.dumps([
            {"group": "byol-s0", "method": "byol", "seed": "0", "pretrain": True} | both,
            {"group": "byol_plus-s0", "method": "byol_plus", "seed": "0", "pretrain": True} | both,
            {"group": "byol_plus-s1", "method": "byol_plus", "seed": "1", "pretrain": False, "trained": 0, "frozen": 1},
            {"group": "baselines", "method": "", "seed": "", "pretrain": False, "trained": 2, "frozen": 0},
        ]),
    }  # fmt: skip

    def run(template: Document, words: list[str], folder: Path) -> int:
        if template["name"] == "plan":
            (folder / "plan").mkdir()
            for name, text in plan.items():
                (folder / "plan" / name).write_text(text)
        if template["name"] == "report":
            return 66
        return 76 if words[3] == "pretrain" and "--method=byol" in words else 0

    values = workflow_parameters(spec, cluster.config_maps) | {"workflow.name": "w"}
    argo = Runner(spec, values, run, tmp_path)
    assert argo.workflow() == "Failed"
    shards = [words for _, words, _ in argo.log if words[3] == "shard"]
    told = ("--group", "--part", "--index")
    assert [[w.partition("=")[2] for w in words if w.startswith(told)] for words in shards] == [
        ["byol_plus-s0", "trained", "0"],
        ["byol_plus-s0", "frozen", "0"],
        ["byol_plus-s1", "frozen", "0"],
        ["baselines", "trained", "0"],
        ["baselines", "trained", "1"],
    ]
    assert [words[5] for _, words, _ in argo.log if words[3] == "pretrain"] == ["--method=byol", "--method=byol_plus"]
    assert [task for task, _, _ in argo.log][-2:] == ["study/report", "exit"]
    assert "--phase=Failed" in argo.log[-1][1]


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("concurrency", "12", "concurrency=12: the ConfigMap byol-limits has no concurrency-12; choose from 2, 4, 8"),
        ("device", "tpu", "device=tpu: give one of cuda, cpu"),
        ("cpu-cpu", "many", "cpu-cpu=many: give CPUs, such as 4 or 500m"),
    ],
)
def test_a_wrong_parameter_fails_the_first_pod(
    smoke: tuple[Document, Cluster],
    tmp_path: Path,
    launcher: Launcher,
    capfd: pytest.CaptureFixture[str],
    parameter,
    value,
    message,
) -> None:
    """Rows 3 and 4: before any pod of a fan-out takes a lock."""
    given = GIVEN | {"store": str(tmp_path / "store"), parameter: value}
    argo = runner(smoke, tmp_path, given, {}, launcher)
    assert argo.workflow() == "Failed"
    assert [(task, code) for task, _, code in argo.log] == [("study/fetch-data", 2), ("exit", 0)]
    assert f"error: {message}" in capfd.readouterr().err
