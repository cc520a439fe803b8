"""The workflows: strict schemas, references, the real command line, one source."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from app.cluster.parameters import CHECKS, check_parameters
from app.config import load_config
from app.jobs.run import Run
from app.stages.fan_out import write_fan_out
from app.stages.plan import list_jobs
from app.storage import FolderStore
from tests.cluster.argo import (
    POOLS,
    UnknownTag,
    evaluate,
    retries,
    substitute,
    templates_of,
    truth,
    workflow_parameters,
)
from tests.cluster.checks import OVERLAYS, all_problems, commands, parse, workspace
from tests.cluster.documents import ROOT, WORKFLOWS, Document, load, render, shipped
from tests.cluster.references import FILES_OF_PLAN, KEYS_OF_GROUP, Cluster
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


@pytest.mark.parametrize("by", ["hera", "crds"])
def test_an_unknown_field_is_an_error(by: str) -> None:
    folder = crds() if by == "crds" else None
    if by == "crds" and folder is None:
        pytest.skip("ARGO_CRDS names no folder of Argo's CRDs")
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
    assert len(found) == 4 * 6
    assert parse(("python", "-m", "app", "plan", "--preset=smoke", "--shop=x")) is not None
    assert parse(("python", "-m", "app", "plam")) is not None


def test_the_plan_writes_what_the_workflow_reads(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    run = Run(store, "x", load_config("recommended"))
    store.write("runs/x/experiment.json", json.dumps({"plan": list_jobs(run).model_dump(mode="json")}).encode())
    write_fan_out(run, tmp_path / "out", 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES_OF_PLAN
    groups = json.loads((tmp_path / "out/groups.json").read_text())
    assert {key for group in groups for key in group} == KEYS_OF_GROUP


def pods(given: dict[str, str], path: str = "workflows/full.yaml") -> dict[tuple[str, str], Document]:
    """What the patch makes of every kind of pod, by template and pool."""
    [document] = load((ROOT / path).read_text("utf-8"))
    values = workflow_parameters(document["spec"], {}, given)
    found = {}
    for template in templates_of(document["spec"]):
        inputs = {p["name"]: p.get("value") for p in template.get("inputs", {}).get("parameters", [])}
        for pool in (inputs["pool"],) if inputs.get("pool") else POOLS if "pool" in inputs else ():
            if "container" in template:
                own = {f"inputs.parameters.{k}": substitute(v, values) for k, v in inputs.items() if v}
                patch = substitute(template["podSpecPatch"], values | own | {"inputs.parameters.pool": pool})
                found[template["name"], pool] = json.loads(patch)
    return found


def resources(pod: Document) -> Document:
    [main] = [container["resources"] for container in pod["containers"] if container["name"] == "main"]
    return main


@pytest.mark.parametrize(("device", "gpus", "of_a_shard"), [("cuda", "4", "1"), ("cuda", "1", "1"), ("cpu", "0", "0")])
def test_a_pretraining_takes_all_gpus_and_a_trained_shard_one(device: str, gpus: str, of_a_shard: str) -> None:
    found = pods({"device": device, "gpus": gpus})
    taken = {key: resources(pod)["limits"]["nvidia.com/gpu"] for key, pod in found.items()}
    assert taken.pop(("pretrain", "gpu")) == gpus
    assert taken.pop(("shard", "gpu")) == of_a_shard
    assert set(taken.values()) == {"0"}, "and no other pod takes any"


def test_pods_go_where_their_pool_says() -> None:
    given = {}
    for pool, sign in (("gpu", "g"), ("cpu", "c")):
        given |= {f"{pool}-node-selector": json.dumps({"pool": sign}), f"{pool}-cpu": f"1{sign}"}
        given |= {f"{pool}-tolerations": json.dumps([{"key": sign}]), f"{pool}-memory": f"2{sign}"}
    for (_, pool), pod in pods(given | {"gpu-product": "NVIDIA-L4"}).items():
        sign = pool[0]
        assert (pod["nodeSelector"], pod["tolerations"]) == ({"pool": sign}, [{"key": sign}])
        requests = resources(pod)["requests"]
        assert (requests["cpu"], requests["memory"]) == (f"1{sign}", f"2{sign}")
        assert requests["ephemeral-storage"]
        assert bool(pod["affinity"]) == (pool == "gpu")


def test_pod_security_restricted_takes_every_pod() -> None:
    """Row 1: Argo's own containers too."""
    for path in WORKFLOWS[:4]:
        found = pods({}, path)
        assert len(found) == 7
        for pod in found.values():
            for container in (*pod["initContainers"], *pod["containers"]):
                if container["name"] != "main":
                    assert container["securityContext"] == {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    }


def test_every_argo_command_names_the_namespace() -> None:
    """Row 2: `argo submit --watch` follows in the kubeconfig's namespace, wherever the file's is."""
    verb = re.compile(r"\bargo (?:submit|watch|logs|stop|retry|resume|get|list|terminate|delete|lint)\b(?! --offline)")
    files = [*ROOT.glob("*.md"), *ROOT.glob("k8s/**/*.*"), *ROOT.glob("workflows/**/*.yaml"), *ROOT.glob("app/**/*.py")]
    lines = [line for path in (*files, ROOT / "Makefile") for line in path.read_text("utf-8").splitlines()]
    found = [line[match.start() :] for line in lines for match in verb.finditer(line)]
    assert len(found) > 10
    assert [text for text in found if not re.match(r"argo \w+ -n (?:byol|\{)", text)] == []


def test_a_pod_takes_one_lock() -> None:
    """Row 3: with two, one that fails leaves the other's queue blocked for the whole namespace (Argo 4.1.2)."""
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    locks = {
        template["name"]: template["synchronization"]["semaphores"]
        for template in document["spec"]["templates"]
        if "synchronization" in template
    }
    assert locks.keys() == {"pretrain", "shard"}
    assert [len(semaphores) for semaphores in locks.values()] == [1, 1]

    def key(template: str, pool: str, **given: str) -> str:
        values = workflow_parameters(document["spec"], {}, given) | {"inputs.parameters.pool": pool}
        return substitute(locks[template][0]["configMapKeyRef"]["key"], values)

    assert key("pretrain", "gpu", gpus="4") == "device-cuda-4"
    assert key("shard", "gpu", gpus="4") == "device-cuda-1"
    assert key("shard", "cpu", gpus="4", concurrency="2") == "concurrency-2"
    assert key("pretrain", "gpu", device="cpu") == key("shard", "gpu", device="cpu") == "device-cpu"


# What `data fetch` and `plan` take apart themselves, and what the first pod has started with.
READ_ELSEWHERE = {"preset", "run-id", "datasets", "methods", "seeds", "set", "imagenet-weights", "image", "store"}


def test_plan_is_told_every_parameter() -> None:
    """Row 4: what the workflow has, the plan checks, or reads itself."""
    for path in WORKFLOWS[:4]:
        [document] = load((ROOT / path).read_text("utf-8"))
        names = {parameter["name"] for parameter in document["spec"]["arguments"]["parameters"]}
        assert names == CHECKS.keys() | READ_ELSEWHERE
        values = workflow_parameters(document["spec"], Cluster(render(ROOT / OVERLAYS[0])).config_maps)
        for template in document["spec"]["templates"]:
            if template["name"] in ("fetch-data", "plan"):
                [told] = [word for word in template["container"]["args"] if word.startswith("--parameters=")]
                given = json.loads(substitute(told.removeprefix("--parameters="), values))
                assert given.keys() == names
                check_parameters(given)


def test_pretrainings_are_kept_on_their_nodes() -> None:
    """Row 12: no autoscaler takes them."""
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    kept = {t["name"]: t["metadata"]["annotations"] for t in document["spec"]["templates"] if "metadata" in t}
    assert kept == {
        "pretrain": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    }


@pytest.mark.parametrize("grace", ["12", "90", "600"])
def test_a_pod_lives_longer_than_its_jobs_grace(grace: str) -> None:
    """Row 12."""
    assert {p["terminationGracePeriodSeconds"] for p in pods({"grace-seconds": grace}).values()} == {int(grace) + 30}


def test_without_a_queue_kueue_sees_no_name() -> None:
    """Row 12: Kueue refuses an empty one."""
    [document] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    labels = document["spec"]["podMetadata"]["labels"]
    for queue, name in (("", "byol-med/queue"), ("byol", "kueue.x-k8s.io/queue-name")):
        values = workflow_parameters(document["spec"], {}, {"queue": queue})
        written = {substitute(key, values): substitute(value, values) for key, value in labels.items()}
        assert written[name] == queue
        assert ("kueue.x-k8s.io/queue-name" in written) == bool(queue)


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
    for end in ("Succeeded", "Failed", "Errored", "Skipped"):
        assert truth(report["depends"], {"plan": "Succeeded", "groups": end})
    for ends in ({"plan": "Failed", "groups": "Omitted"}, {"plan": "Succeeded", "groups": "Omitted"}):
        assert not truth(report["depends"], ends)  # the second: nobody approved


def test_the_emulator_knows_what_it_does_not_know() -> None:
    with pytest.raises(UnknownTag, match=r"workflow\.parameters\.x"):
        substitute("{{workflow.parameters.x}}", {})
    choice = "workflow.parameters['a'] == '' ? '{}' : '[\"' + workflow.parameters['a'] + '\"]'"
    assert evaluate(choice, {"workflow.parameters.a": ""}) == "{}"
    assert evaluate(choice, {"workflow.parameters.a": "L4"}) == '["L4"]'
    assert evaluate("asInt(workflow.parameters['a']) + 30", {"workflow.parameters.a": "12"}) == "42"
    assert evaluate("x.y == 'a' || x.y == 'b' && x.z == 'c'", {"x.y": "b", "x.z": "c"}) == "true"
    pool = {"inputs.parameters.pool": "gpu", "workflow.parameters.gpu-cpu": "4"}
    assert evaluate("workflow.parameters[inputs.parameters.pool + '-cpu']", pool) == "4"
    for expression in ("workflow.parameters['b']", "upper('a')", "'a' - 'b'", "'a' +", "toJson('a')"):
        with pytest.raises(UnknownTag):
            evaluate(expression, {"workflow.parameters.a": ""})
    assert truth("a.Succeeded && (b.Failed || !c.Omitted)", {"a": "Succeeded", "b": "Failed", "c": "Omitted"})
    assert not truth("a && b.Failed", {"a": "Failed", "b": "Failed"})
    assert retries('asInt(lastRetry.exitCode) in [75] && !(lastRetry.message contains "x")', "Failed", "y", 75)
    for wrong in ('lastRetry.state == "Error"', 'lastRetry.status = "Error"', "toInt(lastRetry.exitCode) in [75]", "x"):
        with pytest.raises(UnknownTag):
            retries(wrong, "Error", "", 75)
