"""The Kubernetes objects: rendered by the real kustomize, validated by the real tool, served by the real S3 server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.checks import EXAMPLE, OVERLAYS, parse, workspace
from tests.cluster.documents import ROOT, load, render, tool
from tests.cluster.references import Cluster
from tests.cluster.schemas import VERSIONS


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = workspace(tmp_path_factory.mktemp("k8s"))
    files = {}
    for overlay in OVERLAYS:
        files[overlay] = root / f"{overlay.rpartition('/')[2]}.yaml"
        files[overlay].write_text(yaml.safe_dump_all(render(root / overlay)))
    return files


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_validate_accepts_every_object_strictly(rendered: dict[str, Path], version: str) -> None:
    command = [
        tool("kubernetes-validate"),
        "--strict",
        "-k",
        version,
        *map(str, rendered.values()),
        str(ROOT / "k8s/examples/two-nodes.yaml"),
        str(ROOT / EXAMPLE),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "WARN" not in output, output  # an unknown kind only warns


def test_the_executor_may_report_results_and_nothing_more(rendered: dict[str, Path]) -> None:
    for path in rendered.values():
        cluster = Cluster(load(path.read_text()))
        role = cluster.by_kind["Role"]["byol-executor"]
        assert role["rules"] == [
            {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
        ]
        bound = {s["name"] for binding in cluster.by_kind["RoleBinding"].values() for s in binding["subjects"]}
        # byol-job, which runs our code, has no rights
        assert bound == {"byol-executor", "byol-submitter", "byol-operator", "byol-watch"}


def allowed(cluster: Cluster, role: str) -> set[tuple[str, str]]:
    """Verbs and resources of a role."""
    return {
        (verb, resource)
        for rule in cluster.by_kind["Role"][role]["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def test_an_operator_sees_and_stops_what_a_submitter_only_starts(rendered: dict[str, Path]) -> None:
    """Row 10; Argo's server reads artifacts with the rights of who asks."""
    for path in rendered.values():
        cluster = Cluster(load(path.read_text()))
        operator, submitter = allowed(cluster, "byol-operator"), allowed(cluster, "byol-submitter")
        assert operator > submitter
        assert {
            ("get", "pods/log"),
            ("delete", "pods"),
            ("update", "workflows"),
            ("patch", "workflows"),
            ("get", "secrets"),
        } <= operator
        assert {resource for _, resource in submitter} == {"workflows", "workflowtemplates"}
        [secrets] = [r for r in cluster.by_kind["Role"]["byol-operator"]["rules"] if "secrets" in r["resources"]]
        assert secrets["resourceNames"] == ["byol-s3-credentials"]
        assert allowed(cluster, "byol-watch") == {("list", "pods")} | {
            (verb, "workflows") for verb in ("get", "list", "patch")
        }


def test_keys_take_the_place_of_an_identity(rendered: dict[str, Path]) -> None:
    """Row 7: Argo gets the same keys as the jobs, and everything else of the repository stays."""
    identity, keys = (
        yaml.safe_load(Cluster(load(rendered[overlay].read_text())).data("ConfigMap", "byol-artifacts")["s3"])["s3"]
        for overlay in ("k8s/overlays/prod", "k8s/overlays/with-keys")
    )
    assert identity.pop("useSDKCreds") is True
    for field, key in (("accessKeySecret", "AWS_ACCESS_KEY_ID"), ("secretKeySecret", "AWS_SECRET_ACCESS_KEY")):
        assert keys.pop(field) == {"name": "byol-s3-credentials", "key": key}
    assert identity == keys
    [prod] = load((ROOT / "k8s/overlays/prod/artifacts.yaml").read_text())
    assert prod["data"]["s3"].splitlines()[2].strip() == "useSDKCreds: true", "the line that the component replaces"


def test_what_watches_the_jobs_runs_their_image(rendered: dict[str, Path]) -> None:
    """Row 8."""
    for path in rendered.values():
        cluster = Cluster(load(path.read_text()))
        [container] = cluster.by_kind["Deployment"]["byol-watch"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == cluster.data("ConfigMap", "byol-parameters")["image"]


def test_a_registry_may_want_a_password(rendered: dict[str, Path]) -> None:
    """Row 12."""
    accounts = Cluster(load(rendered["k8s/overlays/prod"].read_text())).by_kind["ServiceAccount"]
    for name in ("byol-job", "byol-watch"):
        assert accounts[name]["imagePullSecrets"] == [{"name": "byol-registry"}]
    assert "byol-registry" in (ROOT / "k8s/README.md").read_text("utf-8")


def test_the_overlay_and_the_text_speak_of_the_same_nodes(rendered: dict[str, Path]) -> None:
    """Row 13: every label that the overlay selects or names is in the table, for its own kind of nodes."""
    selector = Cluster(load(rendered["k8s/overlays/prod"].read_text())).data("ConfigMap", "byol-parameters")[
        "gpu-node-selector"
    ]
    [spot] = [
        line for line in (ROOT / "k8s/README.md").read_text("utf-8").splitlines() if line.startswith("| spot nodes")
    ]
    _, eks, gke = (cell.strip() for cell in spot.strip("|").split("|"))
    [label] = json.loads(selector)
    assert f"Karpenter: `{label}: " in eks
    assert "a node group: `eks.amazonaws.com/capacityType: SPOT`" in eks
    assert '`cloud.google.com/gke-spot: "true"`' in gke
    text = (ROOT / "k8s/overlays/prod/parameters.yaml").read_text("utf-8")
    assert all(name in text for name in (label, "eks.amazonaws.com/capacityType", "cloud.google.com/gke-spot"))


def test_alerts_speak_of_metrics_that_there_are(tmp_path: Path) -> None:
    root = workspace(tmp_path)
    overlay = root / "k8s/overlays/watched"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        "resources: [../dev]\ncomponents: [../../components/monitoring]\n"
    )
    [rule] = [document for document in render(overlay) if document["kind"] == "PrometheusRule"]
    assert rule["metadata"]["namespace"] == "byol"
    alerts = {alert["alert"]: alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert alerts.keys() == {"ByolStudyFailed", "ByolPretrainingStalled", "ByolPodsPending"}
    asked = set(re.findall(r"argo_workflows_(byol_\w+)", " ".join(alerts.values())))
    [workflow] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    holders = [workflow["spec"], *workflow["spec"]["templates"]]
    made = {metric["name"] for holder in holders for metric in holder.get("metrics", {}).get("prometheus", [])}
    assert asked == made


def test_a_pretraining_over_nodes_names_what_there_is(rendered: dict[str, Path]) -> None:
    """And runs what the command line takes, locked up as the pods of a study are."""
    service, policy, job = load((ROOT / "k8s/examples/two-nodes.yaml").read_text("utf-8"))
    pod = job["spec"]["template"]["spec"]
    cluster = Cluster(load(rendered["k8s/overlays/dev"].read_text()))
    assert cluster.get("ServiceAccount", pod["serviceAccountName"])
    assert cluster.get("PriorityClass", pod["priorityClassName"])
    [main] = pod["containers"]
    assert cluster.get("ConfigMap", main["envFrom"][0]["configMapRef"]["name"])
    assert main["image"] == cluster.data("ConfigMap", "byol-parameters")["image"]
    own = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == own
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in main["args"]
    assert f"--nnodes={job['spec']['completions']}" in main["args"]
    assert f"--master-port={service['spec']['ports'][0]['port']}" in main["args"]
    assert parse(("python", "-m", "app", *main["args"][main["args"].index("app") + 1 :])) is None
    [workflow] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    container = workflow["spec"]["templateDefaults"]["container"]
    assert main["securityContext"] == container["securityContext"]
    assert main["envFrom"] == container["envFrom"]
    assert main["volumeMounts"] == container["volumeMounts"][:3]


def test_only_the_device_plugin_shows_gpus() -> None:
    """Row 12: an image that says `all` shows every GPU of its node to pods that asked for none."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert "NVIDIA_VISIBLE_DEVICES=void" in text
    assert "NVIDIA_VISIBLE_DEVICES=all" not in text


def test_the_default_denies_everything(rendered: dict[str, Path]) -> None:
    for path in rendered.values():
        policies = Cluster(load(path.read_text())).by_kind["NetworkPolicy"]
        assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


UNITS = {"m": 1e-3, "": 1.0, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def amount(quantity: str) -> float:
    digits = quantity.rstrip("miMGT")
    return float(digits) * UNITS[quantity[len(digits) :]]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_quota_has_room_for_what_the_semaphores_let_run(rendered: dict[str, Path], device: str) -> None:
    """The most pods at a time: all that the device allows, and beside them the widest choice of frozen shards."""
    cluster = Cluster(load(rendered[OVERLAYS[0]].read_text()))
    slots = {key: int(value) for key, value in cluster.data("ConfigMap", "byol-limits").items()}
    hard = {key: amount(value) for key, value in cluster.by_kind["ResourceQuota"]["byol"]["spec"]["hard"].items()}
    [argo] = cluster.by_kind["LimitRange"]["byol"]["spec"]["limits"]  # of the container that Argo adds to a pod
    [workflow] = load((ROOT / "workflows/full.yaml").read_text("utf-8"))
    given = {p["name"]: p.get("value", "") for p in workflow["spec"]["arguments"]["parameters"]}
    # A pretraining and the shards of its study: pods of one GPU, and the largest of another size.
    on_device = slots["device-cpu"] if device == "cpu" else slots["device-cuda-1"] + slots["device-cuda-2"]
    others = max(value for key, value in slots.items() if key.startswith("concurrency-")) + 1  # fetch-data, plan, …
    pods = on_device + others

    def together(resource: str, beside: str) -> float:
        ours = on_device * amount(given[f"gpu-{resource}"]) + others * amount(given[f"cpu-{resource}"])
        return ours + pods * amount(beside)

    assert pods <= min(hard["pods"], workflow["spec"]["parallelism"])
    assert together("cpu", argo["defaultRequest"]["cpu"]) <= hard["requests.cpu"]
    assert together("memory", argo["default"]["memory"]) <= min(hard["requests.memory"], hard["limits.memory"])
    sizes = {int(key.rpartition("-")[2]): value for key, value in slots.items() if key.startswith("device-cuda-")}
    gpus = {size * pods for size, pods in sizes.items()}
    assert len(gpus) == 1, "the locks count GPUs, whatever a pod takes"
    assert 2 * gpus.pop() <= hard["requests.nvidia.com/gpu"]
    disk = pods * (amount(given["disk"]) + amount(argo["defaultRequest"]["ephemeral-storage"]))
    assert disk <= hard["requests.ephemeral-storage"]


@pytest.mark.s3
def test_the_development_server_starts_with_its_own_arguments(rendered: dict[str, Path], tmp_path: Path) -> None:
    """The command of the StatefulSet, with other ports and folder, answers its own probe and wants its keys."""
    cluster = Cluster(load(rendered[OVERLAYS[0]].read_text()))
    [container] = cluster.by_kind["StatefulSet"]["seaweedfs"]["spec"]["template"]["spec"]["containers"]
    ports = free_ports(4)
    arguments = [argument.replace("=/data", f"={tmp_path}") for argument in container["args"]]
    arguments = [a.replace("8333", str(ports[0])).replace("-ip.bind=0.0.0.0", "-ip.bind=127.0.0.1") for a in arguments]
    # only for this test: on a machine of its own the others keep their default ports
    arguments += [f"-master.port={ports[1]}", f"-volume.port={ports[2]}", f"-filer.port={ports[3]}"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]} | {"HOME": str(tmp_path)}
    secret = cluster.by_kind["Secret"]["byol-s3-credentials"]["data"]
    environment |= {"AWS_ACCESS_KEY_ID": "development", "AWS_SECRET_ACCESS_KEY": "development-only"}
    assert set(secret) <= set(environment)
    server = subprocess.Popen(
        [tool("weed"), *arguments], env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        probe = f"http://127.0.0.1:{ports[0]}{container['readinessProbe']['httpGet']['path']}"
        deadline = time.monotonic() + 60
        while True:
            try:
                assert urllib.request.urlopen(probe, timeout=5).status == 200
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not answer its probe"
                time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/byol", timeout=30)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
