"""The Kubernetes objects: rendered by the real kustomize, validated by the real tool, served by the real S3 server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.checks import EXAMPLE, OVERLAYS, workspace
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
        assert bound == {"byol-executor", "byol-submitter"}  # byol-job, which runs our code, has no rights


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
    on_device = slots[f"device-{device}"]
    others = max(value for key, value in slots.items() if key.startswith("concurrency-")) + 1  # fetch-data, plan, …
    pods = on_device + others

    def together(resource: str, beside: str) -> float:
        ours = on_device * amount(given[f"gpu-{resource}"]) + others * amount(given[f"cpu-{resource}"])
        return ours + pods * amount(beside)

    assert pods <= min(hard["pods"], workflow["spec"]["parallelism"])
    assert together("cpu", argo["defaultRequest"]["cpu"]) <= hard["requests.cpu"]
    assert together("memory", argo["default"]["memory"]) <= min(hard["requests.memory"], hard["limits.memory"])
    assert slots["device-cuda"] * int(given["gpus"]) <= hard["requests.nvidia.com/gpu"]


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
