"""The smoke workflow for real: its own commands as processes, in the DAG's order, against a real S3 server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from app.data import write_phantoms
from app.storage import open_store
from tests.cluster.argo import Runner, subprocess_command, workflow_parameters
from tests.cluster.checks import OVERLAYS
from tests.cluster.documents import ROOT, Document, load, render
from tests.cluster.references import Cluster
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
    smoke: tuple[Document, Cluster], tmp_path: Path, given: dict[str, str], environment: dict[str, str]
) -> Runner:
    spec, cluster = smoke
    values = workflow_parameters(spec, cluster.config_maps, given) | {"workflow.name": "byol-smoke-x7k2p"}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MEDMNIST"))}
    environment = keep | environment | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    return Runner(spec, values, subprocess_command(environment, sys.executable), tmp_path / "pods")


@pytest.mark.slow
@pytest.mark.s3
def test_the_smoke_workflow_ends_in_a_report(
    smoke: tuple[Document, Cluster], s3_environment: Weed, tmp_path: Path
) -> None:
    uri = f"s3://{s3_environment.bucket}/workflow"
    store = open_store(uri)
    write_phantoms(tmp_path / "phantoms")  # the store has its data sets, so that nothing asks the internet
    for name in ("chestmnist", "breastmnist"):
        store.write(f"data/{name}_28.npz", (tmp_path / f"phantoms/{name}.npz").read_bytes())

    argo = runner(smoke, tmp_path, GIVEN | {"store": uri}, s3_environment.environment)
    phase = argo.workflow()

    assert phase == "Succeeded", "\n".join(f"{code} {task} {' '.join(words)}" for task, words, code in argo.log)
    tasks = [task for task, _, _ in argo.log]
    assert tasks[:2] == ["study/fetch-data", "study/plan"]
    assert tasks[-2:] == ["study/report", "exit"]
    pretrain = "study/methods/pretrain"
    for task in ("study/methods/downstream-trained", "study/methods/downstream-frozen"):
        assert tasks.count(task) >= 2
        assert tasks.index(task) > tasks.index(pretrain)
    assert tasks.count(pretrain) == 2

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


def test_a_failed_plan_still_publishes_a_status(smoke: tuple[Document, Cluster], tmp_path: Path) -> None:
    store = tmp_path / "store"
    given = GIVEN | {"store": str(store), "set": "data.phantoms=always\nstudy.seeds=[]"}
    argo = runner(smoke, tmp_path, given, {})
    assert argo.workflow() == "Failed"
    assert [(task, code) for task, _, code in argo.log] == [("study/fetch-data", 2), ("exit", 0)]
    status = json.loads((store / "workflows/byol-smoke-x7k2p.json").read_bytes())
    assert (status["phase"], status["run_id"], status["report"]) == ("Failed", None, None)


def test_a_failed_method_holds_nobody_up_and_is_reported(smoke: tuple[Document, Cluster], tmp_path: Path) -> None:
    """The order of things, with containers that only pretend."""
    spec, cluster = smoke
    plan = {
        "run-id": "r", "jobs-per-pod": "2", "baselines-trained": "2", "baselines-frozen": "0", "summary.json": "{}",
        "pretrain.json": json.dumps([
            {"key": "byol-s0", "method": "byol", "seed": 0, "trained": 1, "frozen": 1},
            {"key": "byol_plus-s0", "method": "byol_plus", "seed": 0, "trained": 1, "frozen": 1},
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
    assert [[w for w in words if w.startswith(("--group", "--index"))] for words in shards] == [
        ["--group=baselines", "--index=0"],
        ["--group=baselines", "--index=1"],
        ["--group=byol_plus-s0", "--index=0"],
        ["--group=byol_plus-s0", "--index=0"],
    ]
    assert [task for task, _, _ in argo.log][-2:] == ["study/report", "exit"]
    assert argo.log[-1][1][-2] == "--phase=Failed"
