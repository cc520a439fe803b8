"""The workflows: strict schemas, references, the real command line, one source."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from app.config import load_config
from app.jobs.run import Run
from app.stages.fan_out import write_fan_out
from app.stages.plan import list_jobs
from app.storage import FolderStore
from tests.cluster.argo import UnknownTag, evaluate, retries, substitute, truth, workflow_parameters
from tests.cluster.checks import OVERLAYS, all_problems, commands, parse, workspace
from tests.cluster.documents import ROOT, WORKFLOWS, load, render, shipped
from tests.cluster.references import FILES_OF_PLAN, KEYS_OF_PRETRAIN, Cluster
from tests.cluster.schemas import argo_problems, crds

sys.path.insert(0, str(ROOT / "workflows"))
import derive


def test_everything_shipped_is_sound(tmp_path: Path) -> None:
    assert list(all_problems(shipped(), workspace(tmp_path), {})) == []


@pytest.mark.parametrize("path", WORKFLOWS)
def test_hera_loses_no_field(path: str) -> None:
    pytest.importorskip("hera")
    [document] = load((ROOT / path).read_text("utf-8"))
    assert argo_problems(document, None) == []


@pytest.mark.parametrize("folder", [None, crds()], ids=["hera", "crds"])
def test_an_unknown_field_is_an_error(folder: Path | None) -> None:
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    document["spec"]["templates"][0]["dag"]["failfast"] = False
    assert any("failfast" in line for line in argo_problems(document, folder))


def test_other_workflows_are_derived_from_the_full_one() -> None:
    full = (ROOT / "workflows/full.yaml").read_text("utf-8")
    for name, text in derive.derived(full).items():
        assert (ROOT / "workflows" / name).read_text("utf-8") == text, f"{name}: run `make workflows`"


def test_every_command_is_parsed_by_the_real_command_line() -> None:
    cluster = Cluster(render(ROOT / OVERLAYS[0]))
    found = []
    for path in WORKFLOWS:
        [document] = load((ROOT / path).read_text("utf-8"))
        if document["kind"] != "CronWorkflow":
            for name, words in commands(document, cluster):
                assert parse(tuple(words)) is None, f"{path}: {name}: {parse(tuple(words))}"
                found.append(name)
    assert len(found) == 4 * 7
    assert parse(("python", "-m", "app", "plan", "--preset=smoke", "--shop=x")) is not None
    assert parse(("python", "-m", "app", "plam")) is not None


def test_the_plan_writes_what_the_workflow_reads(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    run = Run(store, "x", load_config("recommended"))
    store.write("runs/x/experiment.json", json.dumps({"plan": list_jobs(run).model_dump(mode="json")}).encode())
    write_fan_out(run, tmp_path / "out", 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES_OF_PLAN
    assert {
        key for item in json.loads((tmp_path / "out/pretrain.json").read_text()) for key in item
    } == KEYS_OF_PRETRAIN


@pytest.mark.parametrize(("gpus", "of_a_shard"), [("4", "1"), ("1", "1"), ("0", "0")])
def test_a_pretraining_takes_all_gpus_and_a_trained_shard_one(gpus: str, of_a_shard: str) -> None:
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    values = workflow_parameters(document["spec"], {}, {"gpus": gpus})
    patches = {
        template["name"]: json.loads(substitute(template["podSpecPatch"], values))
        for template in document["spec"]["templates"]
        if template["name"] in ("pretrain", "shard-trained")
    }
    taken = {
        name: patch["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu") for name, patch in patches.items()
    }
    assert taken == {"pretrain": gpus, "shard-trained": of_a_shard}
    assert patches["pretrain"] == patches["shard-trained"], "and nothing else tells them apart"


def test_the_graph_on_top_shows_every_task() -> None:
    for path in WORKFLOWS[:4]:
        text = (ROOT / path).read_text("utf-8")
        head = text.partition("apiVersion:")[0]
        [document] = load(text)
        tasks = {
            t["name"] for template in document["spec"]["templates"] for t in template.get("dag", {}).get("tasks", [])
        }
        assert not [task for task in tasks if task not in head]


def test_the_report_waits_for_every_end_of_its_inputs() -> None:
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    [report] = [t for t in document["spec"]["templates"][0]["dag"]["tasks"] if t["name"] == "report"]
    inputs = ("baselines-trained", "baselines-frozen", "methods")
    for end in ("Succeeded", "Failed", "Errored", "Skipped", "Omitted"):
        ends = dict.fromkeys(inputs, "Succeeded") | {"plan": "Succeeded", "methods": end}
        assert truth(report["depends"], ends)
    assert not truth(report["depends"], dict.fromkeys(inputs, "Omitted") | {"plan": "Failed"})


def test_the_emulator_knows_what_it_does_not_know() -> None:
    with pytest.raises(UnknownTag, match=r"workflow\.parameters\.x"):
        substitute("{{workflow.parameters.x}}", {})
    choice = "workflow.parameters['a'] == '' ? '{}' : '[\"' + workflow.parameters['a'] + '\"]'"
    assert evaluate(choice, {"workflow.parameters.a": ""}) == "{}"
    assert evaluate(choice, {"workflow.parameters.a": "L4"}) == '["L4"]'
    assert truth("a.Succeeded && (b.Failed || !c.Omitted)", {"a": "Succeeded", "b": "Failed", "c": "Omitted"})
    assert not truth("a && b.Failed", {"a": "Failed", "b": "Failed"})
    assert retries('asInt(lastRetry.exitCode) in [75] && !(lastRetry.message contains "x")', "Failed", "y", 75)
    for wrong in ('lastRetry.state == "Error"', 'lastRetry.status = "Error"', "toInt(lastRetry.exitCode) in [75]", "x"):
        with pytest.raises(UnknownTag):
            retries(wrong, "Error", "", 75)
