"""The study on a real cluster: ``make cluster-test``, against whatever KUBECONFIG names.

It applies k8s/overlays/dev, submits as the README says, and breaks what can break. The rows are those of the table in
k8s/README.md. The cluster needs Argo, the image of the overlay on its nodes and an S3 server's image (SeaweedFS).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.storage import Store
from tests.cluster.checks import add_component, workspace
from tests.cluster.documents import ROOT
from tests.cluster.live.cluster import (
    ENDLESS,
    SMOKE,
    TINY,
    Study,
    forwarded,
    kubectl,
    needs,
    objects,
    run,
    store,
    submit,
    template_of,
    unused,
    wait_until,
    when,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NO_CLUSTER = (
    "only `make cluster-test` touches a cluster, the one that KUBECONFIG names (`make cluster` brings one up)"
    if os.environ.get("CLUSTER_TEST") != "1" or not os.environ.get("KUBECONFIG")
    else needs("kubectl") or needs("argo")
)
if NO_CLUSTER:
    pytest.skip(NO_CLUSTER, allow_module_level=True)

SEED = int(os.environ.get("CLUSTER_SEED", "0"))  # of the moments at which pods are killed
OUTSIDER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "outsider", "namespace": "byol"},
    "spec": {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [
            {
                "name": "main",
                "image": "byol-med:0.1.0",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "3000"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
            }
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    """The dev overlay, applied as the README says, and its store."""
    run("kubectl", "apply", "-k", "k8s/overlays/dev")
    kubectl("rollout", "status", "statefulset/seaweedfs", "--timeout=300s")
    kubectl("rollout", "status", "deployment/byol-watch", "--timeout=300s")
    with store() as found:
        yield found


@pytest.fixture(scope="module")
def smoke(s3: Store) -> Study:
    """The smoke study, by the README's command."""
    output = run("argo", "submit", "-n", "byol", "--watch", SMOKE, timeout=1500)
    study = Study(re.findall(r"^Name:\s+(\S+)", output, re.MULTILINE)[0])
    print(f"{study.name}: {study.phase} after {study.seconds():.0f} s")
    return study


def run_of(study: Study, s3: Store) -> str:
    return f"runs/{study.status_object(s3)['run_id']}"


# --- rows 1 and 2, and what a study leaves -----------------------------------------------------------


def test_row_1_the_smoke_study_succeeds_under_pod_security(smoke: Study, s3: Store) -> None:
    assert smoke.phase == "Succeeded", smoke.tree()
    labels = json.loads(run("kubectl", "get", "namespace", "byol", "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    status = smoke.status_object(s3)
    assert (status["phase"], status["done"], status["why"]) == ("Succeeded", status["planned"], [])
    folder = run_of(smoke, s3)
    plan = json.loads(s3.read(f"{folder}/experiment.json"))["plan"]
    for kind in ("pretrain", "downstream"):
        for job in plan[kind]:
            assert s3.exists(f"{folder}/{kind}/{job['key']}/record.json"), job["key"]
    assert b"BYOL+" in s3.read(f"{folder}/report/index.html")


def test_row_1_what_pod_security_refuses_is_not_tried_again(s3: Store, tmp_path: Path) -> None:
    """Argo's own containers as Argo makes them: the first pod is refused, once, and the study ends."""
    text = (ROOT / SMOKE).read_text("utf-8")
    refused = tmp_path / "refused.yaml"
    mended = '"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}'
    assert text.count(mended) == 2
    refused.write_text(text.replace(mended, '"securityContext": {}'))
    study = submit(TINY, refused)
    assert study.wait(300) in ("Failed", "Error"), study.tree()
    first = [n for n in study.nodes() if template_of(n) == "fetch-data"]
    assert len(first) == 1, study.tree()
    assert "violates PodSecurity" in first[0]["message"]
    wait_until(lambda: Study(study.name).get()["status"].get("finishedAt"), 60)


def test_row_2_the_readme_commands_follow_what_they_submit(smoke: Study) -> None:
    """`--watch` looks in the namespace that -n names: the fixture's own output came from it."""
    assert smoke.name.startswith("byol-smoke-")


def test_logs_and_artifacts_are_in_the_store(smoke: Study, s3: Store) -> None:
    logs = [n for n in smoke.nodes() for a in n.get("outputs", {}).get("artifacts", []) if a["name"] == "main-logs"]
    assert len(logs) == len(smoke.nodes()), "every pod's log is archived"
    assert "artifacts" in json.dumps(logs[0])


def test_argo_counts_studies_and_pretrainings(smoke: Study) -> None:
    """What k8s/components/monitoring asks for."""
    with forwarded("deployment/workflow-controller", 9090, "argo") as port:
        _, text = server_answer(port, "/metrics", "")
    for name in ("byol_studies", "byol_pretraining_tries"):
        assert re.search(rf'^argo_workflows_{name}\{{.*phase="Succeeded".*\}} [1-9]', text, re.MULTILINE), name
    assert re.search(r'^argo_workflows_pods_gauge\{phase="Pending"\} ', text, re.MULTILINE)


# --- row 3: locks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("concurrency", "12", "choose from 2, 4, 8, 16, 32, 64"),
        ("device", "tpu", "give one of cuda, cpu"),
        ("gpu-cpu", "many", "give CPUs, such as 4 or 500m"),
        ("gpu-tolerations", "{}", "give JSON"),
    ],
)
def test_rows_3_and_4_a_wrong_parameter_is_refused_in_seconds(s3: Store, name: str, value: str, message: str) -> None:
    study = submit(TINY | {name: value})
    assert study.wait(240) == "Failed"
    [first] = [n for n in study.nodes() if template_of(n) != "status"]
    assert (template_of(first), first["outputs"]["exitCode"]) == ("fetch-data", "2")
    assert message in study.log()
    assert (when(first["finishedAt"]) - when(first["startedAt"])).total_seconds() < 60
    print(f"{name}={value}: refused after {(when(first['finishedAt']) - when(first['startedAt'])).seconds} s")


def test_row_4_what_no_pod_can_have_is_not_tried_again(s3: Store) -> None:
    """Argo itself cannot make the first pod."""
    study = submit(TINY | {"cpu-cpu": "many"})
    assert study.wait(240) in ("Failed", "Error")
    assert [template_of(n) for n in study.nodes() if template_of(n) != "status"] == ["fetch-data"], study.tree()


def test_row_3_the_next_study_runs(s3: Store) -> None:
    submit(TINY).succeeds(600)


def test_row_4_quantities_are_understood(s3: Store) -> None:
    submit(TINY | {"cpu-cpu": "500m", "gpu-cpu": "750m", "run-id": "quantities"}).succeeds(600)


# --- row 5: what is missing -------------------------------------------------------------------------


def test_row_5_a_finished_study_takes_three_pods(smoke: Study, s3: Store) -> None:
    again = submit().succeeds(300)
    assert again.pods() == ["fetch-data", "plan", "report"]
    print(f"resubmission: 3 pods and the exit handler, {again.seconds():.0f} s")


def test_row_5_a_half_done_study_starts_its_missing_shards(smoke: Study, s3: Store) -> None:
    folder = run_of(smoke, s3)
    plan = json.loads(s3.read(f"{folder}/experiment.json"))["plan"]
    gone = next(job["key"] for job in plan["downstream"] if "linear_probe" in job["key"] and job["needs"])
    s3.delete(f"{folder}/downstream/{gone}/record.json")
    again = submit().succeeds(400)
    assert again.pods() == ["fetch-data", "plan", "shard", "report"]
    assert s3.exists(f"{folder}/downstream/{gone}/record.json")


# --- row 6: order -----------------------------------------------------------------------------------


def test_row_6_pretrainings_take_their_locks_first(s3: Store) -> None:
    """With one lock: both pretrainings start before the shard of the baselines. An encoder's own may come between."""
    both = f"{TINY['set']}\nstudy.baselines=[random]\nstudy.protocols=[finetune]"
    kubectl("patch", "configmap", "byol-limits", "--type=merge", "-p", '{"data": {"device-cpu": "1"}}')
    try:
        study = submit(TINY | {"methods": "byol,byol_plus", "set": both, "run-id": unused("order")}).succeeds(900)
    finally:
        run("kubectl", "apply", "-k", "k8s/overlays/dev")
    made: dict[str, list[str]] = {"pretrain": [], "shard": [], "baseline": []}
    for pod in objects("pods", f"workflows.argoproj.io/workflow={study.name}"):  # a node starts when it begins to wait
        node = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
        if match := re.search(r"group:([\w-]+).*\)\.(pretrain|trained)\(", node):
            kind = "baseline" if match[1] == "baselines" else "pretrain" if match[2] == "pretrain" else "shard"
            made[kind].append(pod["metadata"]["creationTimestamp"])
    assert [len(made[kind]) for kind in ("pretrain", "shard", "baseline")] == [2, 2, 1]
    assert max(made["pretrain"]) <= min(made["baseline"]), made
    print("; ".join(f"{kind} {' '.join(sorted(times))}" for kind, times in made.items()))


# --- row 7: keys ------------------------------------------------------------------------------------


def test_row_7_keys_serve_a_store_without_identities(s3: Store, tmp_path: Path) -> None:
    """The artifact repository as in overlays/prod, by the pod's identity, and the component: `wait` finds the keys."""
    root = workspace(tmp_path)
    overlay = root / "k8s/overlays/keys"
    shutil.copytree(root / "k8s/overlays/dev", overlay)
    add_component(overlay, "static-credentials")
    text = (root / "k8s/overlays/prod/artifacts.yaml").read_text()
    text = text.replace("example-byol", "byol").replace(
        "s3.eu-central-1.amazonaws.com", "seaweedfs.byol.svc.cluster.local:8333\n      insecure: true"
    )
    assert "useSDKCreds: true" in text
    (overlay / "artifacts.yaml").write_text(text)
    run("kubectl", "apply", "-k", str(overlay))
    try:
        repository = kubectl("get", "configmap", "byol-artifacts", "-o", "jsonpath={.data.s3}")
        assert "useSDKCreds" not in repository
        study = submit(TINY).succeeds(600)
    finally:
        run("kubectl", "apply", "-k", "k8s/overlays/dev")
    assert all(n["phase"] == "Succeeded" for n in study.nodes())


# --- row 8: pending ---------------------------------------------------------------------------------


def test_row_8_pending_is_bounded_and_its_reason_said(s3: Store) -> None:
    """No GPU node, and an image that does not exist, side by side."""
    no_gpu = submit(TINY | {"device": "cuda", "gpus": "1", "pending-minutes": "1", "run-id": unused("gpu")})
    no_image = submit(TINY | {"image": "registry.invalid/none:1", "pending-minutes": "1"})
    assert no_image.wait(600) == "Failed"
    assert no_gpu.wait(600) == "Failed"
    for study, reason in ((no_gpu, "Insufficient nvidia.com/gpu"), (no_image, "ImagePull|ErrImage|ImageInspect")):
        status = study.status_object(s3)
        assert status["phase"] == "Failed"
        assert re.search(rf"pending for \d+ min, .*({reason})", status["why"][0]), status
        assert study.get()["metadata"]["annotations"]["byol-med/why"] == status["why"][0]
        print(f"{study.name}: ended after {study.seconds():.0f} s: {status['why'][0][:150]}")
    assert no_gpu.status_object(s3)["missing"], "and what is missing"


# --- rows 9 and 10: the client, and who may do what ---------------------------------------------------


def token(account: str) -> str:
    return f"Bearer {kubectl('create', 'token', account).strip()}"


def server_answer(port: int, path: str, bearer: str, verb: str = "GET", body: Any = None) -> tuple[int, str]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", data, {"Authorization": bearer}, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def client(*args: str, account: str, port: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "ARGO_TOKEN": token(account), "ARGO_INSECURE_SKIP_VERIFY": "true", "ARGO_SERVER": f"localhost:{port}"
    }  # fmt: skip
    command = [sys.executable, "-m", "app", "submit", SMOKE, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=900)


def parameters(given: dict[str, str]) -> list[str]:
    return [word for name, value in given.items() for word in ("-p", f"{name}={value}")]


def test_row_9_the_client_follows_a_study(s3: Store) -> None:
    with forwarded("argo-server", 2746, "argo") as port:
        result = client(*parameters(TINY | {"run-id": unused("client")}), account="byol-submitter", port=port)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^report: s3://byol/studies/runs/client-\d+/report/index.html$", result.stdout, re.MULTILINE)
    others = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(others) == 1
    assert "any certificate is accepted" in others[0]
    phases = {(line["node"], line["phase"]) for line in map(json.loads, result.stderr.splitlines()[1:])}
    assert ("report(0)", "Succeeded") in phases


def test_row_10_an_operator_sees_logs_and_reports_and_a_submitter_does_not(smoke: Study, endless: Study) -> None:
    node = next(n for n in smoke.nodes() if template_of(n) == "report")
    operator, submitter = token("byol-operator"), token("byol-submitter")
    with forwarded("argo-server", 2746, "argo") as port:
        for artifact, text in (("page", "BYOL+"), ("main-logs", "report")):
            path = f"/artifact-files/byol/workflows/{smoke.name}/{node['id']}/outputs/{artifact}"
            assert server_answer(port, path, submitter)[0] in (401, 403, 500)
            status, page = server_answer(port, path, operator)
            assert (status, text in page) == (200, True), page[:300]
        pod = endless.pod("pretrain")
        path = (
            f"/api/v1/workflows/byol/{endless.name}/log?podName={pod}&logOptions.container=main&logOptions.tailLines=5"
        )
        assert '"content"' in server_answer(port, path, operator)[1]
        assert '"content"' not in server_answer(port, path, submitter)[1]


# --- row 11: what is not tried again ------------------------------------------------------------------


def test_row_11_a_deadline_is_not_tried_again(s3: Store, tmp_path: Path) -> None:
    short = tmp_path / "short.yaml"
    text = (ROOT / SMOKE).read_text("utf-8")
    assert "activeDeadlineSeconds: 172800" in text
    short.write_text(text.replace("activeDeadlineSeconds: 172800", "activeDeadlineSeconds: 30"))
    study = submit(ENDLESS | {"run-id": unused("deadline")}, short)
    assert study.wait(420) == "Failed", study.tree()
    tries = [n for n in study.nodes() if template_of(n) == "pretrain"]
    assert len(tries) == 1, study.tree()
    assert "deadline" in tries[0]["message"]
    assert any("deadline" in line for line in study.status_object(s3)["why"])


# --- row 12: what a pod asks for ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(s3: Store) -> Iterator[Study]:
    """A study that pretrains until it is stopped."""
    given = {"run-id": unused("endless"), "grace-seconds": "20", "disk": "2Gi"}
    study = submit(ENDLESS | given)
    study.running("pretrain")
    yield study
    study.stop()
    study.wait(300)


def saved_step(study: Study, s3: Store) -> int:
    """The step of the newest checkpoint of its pretraining; 0 before the first."""
    key = f"{run_of(study, s3)}/pretrain/byol-s0/latest.json"
    return (
        max((int(entry["step"]) for entry in json.loads(s3.read(key))["checkpoints"]), default=0)
        if s3.exists(key)
        else 0
    )


def goes_on(study: Study, s3: Store, seconds: float = 240) -> None:
    """Wait for a checkpoint beyond those that are there."""
    before = saved_step(study, s3)
    wait_until(lambda: saved_step(study, s3) > before, seconds, study.tree, every=3)


def tries(study: Study) -> int:
    return len([n for n in study.nodes() if template_of(n) == "pretrain"])


def test_row_12_pods_ask_for_disk_and_are_kept_and_have_time(endless: Study) -> None:
    pod = json.loads(kubectl("get", "pod", endless.pod("pretrain"), "-o", "json"))
    [main] = [c for c in pod["spec"]["containers"] if c["name"] == "main"]
    assert main["resources"]["requests"]["ephemeral-storage"] == "2Gi"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 50
    annotations, labels = pod["metadata"]["annotations"], pod["metadata"]["labels"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert "kueue.x-k8s.io/queue-name" not in labels


def test_argo_shows_the_steps_of_a_pretraining(endless: Study, s3: Store) -> None:
    """In its own column; it looks once a minute."""

    def shown() -> str | None:
        [node] = [n for n in endless.nodes() if template_of(n) == "pretrain" and n["phase"] == "Running"]
        return node["progress"] if re.fullmatch(r"\d+/200000", node.get("progress", "")) else None

    print(wait_until(shown, 180, endless.tree, every=5))


# --- policies ---------------------------------------------------------------------------------------


def test_policies_are_enforced(s3: Store) -> None:
    """A job reaches the store and the API server, and nothing else; a pod that is no job reaches neither."""
    kubectl("delete", "pod", "outsider", "--ignore-not-found", "--now")
    kubectl("apply", "-f", "-", stdin=json.dumps(OUTSIDER))
    kubectl("wait", "--for=condition=Ready", "pod/outsider", "--timeout=120s")
    watch = kubectl(
        "get", "pods", "-l", "app.kubernetes.io/name=byol-watch", "-o", "jsonpath={.items[0].metadata.name}"
    )
    api = run("kubectl", "get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}")
    argo = run("kubectl", "get", "service", "argo-server", "-n", "argo", "-o", "jsonpath={.spec.clusterIP}")
    code = "import socket; socket.create_connection(('{}', {}), 5)"

    def reaches(pod: str, host: str, port: int) -> bool:
        output = kubectl("exec", pod, "--", "python", "-c", code.format(host, port), check=False)
        return "Error" not in output

    try:
        assert reaches(watch, "seaweedfs.byol.svc.cluster.local", 8333)
        assert reaches(watch, api, 443)
        assert not reaches(watch, argo, 2746)
        assert not reaches("outsider", "seaweedfs.byol.svc.cluster.local", 8333)
        assert not reaches("outsider", api, 443)
    finally:
        kubectl("delete", "pod", "outsider", "--now")


# --- what breaks ------------------------------------------------------------------------------------


def test_a_minute_without_s3_costs_nothing(endless: Study, s3: Store) -> None:
    goes_on(endless, s3)
    before = tries(endless)
    kubectl("scale", "statefulset/seaweedfs", "--replicas=0")
    time.sleep(60)
    kubectl("scale", "statefulset/seaweedfs", "--replicas=1")
    kubectl("rollout", "status", "statefulset/seaweedfs", "--timeout=120s")
    goes_on(endless, s3)
    assert tries(endless) == before, endless.tree()


def test_a_controller_that_is_deleted_costs_nothing(endless: Study, s3: Store) -> None:
    before = tries(endless)
    run("kubectl", "-n", "argo", "delete", "pod", "-l", "app=workflow-controller", "--now")
    run("kubectl", "-n", "argo", "rollout", "status", "deployment/workflow-controller", "--timeout=120s")
    goes_on(endless, s3)
    assert (tries(endless), endless.phase) == (before, "Running")


def test_a_node_that_is_not_ready_for_a_minute_costs_nothing(endless: Study, s3: Store) -> None:
    """Of the project's own cluster alone: its kubelet is a process of this machine."""
    pid = Path(os.environ.get("BYOL_CLUSTER_HOME", "/nowhere")) / "run/kubelet.pid"
    if not pid.exists():
        pytest.skip("BYOL_CLUSTER_HOME names no cluster of tests/cluster/node/cluster.sh")
    before = tries(endless)
    kubelet = int(pid.read_text())
    os.kill(kubelet, signal.SIGSTOP)
    try:
        ready = 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].status}'
        wait_until(lambda: run("kubectl", "get", "nodes", "-o", ready) == "Unknown", 120, "the node is ready still")
        time.sleep(20)
    finally:
        os.kill(kubelet, signal.SIGCONT)
    wait_until(lambda: run("kubectl", "get", "nodes", "-o", ready) == "True", 120, "the node is not ready")
    goes_on(endless, s3)
    assert (tries(endless), endless.phase) == (before, "Running")


@pytest.mark.parametrize("options", [[], ["--now"], ["--force"]], ids=["with_its_grace", "now", "by_force"])
def test_a_pod_that_is_killed_at_a_random_moment_goes_on(endless: Study, s3: Store, options: list[str]) -> None:
    goes_on(endless, s3)
    moment, before, step = (
        random.Random(f"{SEED}{options}").uniform(0, 10),
        pretraining(endless),
        saved_step(endless, s3),
    )
    time.sleep(moment)
    kubectl("delete", "pod", endless.pod("pretrain"), *options)
    begin = time.monotonic()
    wait_until(lambda: pretraining(endless) not in (None, before), 600, endless.tree)
    said = continues(endless)
    assert int(said.split()[3]) >= step, "it lost a checkpoint"
    print(f"{said}, {time.monotonic() - begin:.0f} s later")


def pretraining(study: Study) -> str | None:
    """The UID of its running pretraining pod: Argo makes a pod that vanishes soon after its start again by its name."""
    try:
        return kubectl("get", "pod", study.pod("pretrain"), "-o", "jsonpath={.metadata.uid}")
    except AssertionError:
        return None


def continues(study: Study) -> str:
    """Wait until its pretraining says at which step it continues."""
    pod = study.pod("pretrain")
    found = wait_until(
        lambda: re.search(r"continues at step \d+", kubectl("logs", pod, "-c", "main", check=False)), 200, pod
    )
    return str(found[0])


def test_row_10_an_operator_stops_and_retries_and_a_submitter_does_not(endless: Study, s3: Store) -> None:
    """The status says what is missing, and the study continues."""
    operator, submitter = token("byol-operator"), token("byol-submitter")
    body = {"name": endless.name, "namespace": "byol"}
    goes_on(endless, s3)
    name = endless.pod("pretrain")
    with forwarded("argo-server", 2746, "argo") as port:
        path = f"/api/v1/workflows/byol/{endless.name}"
        assert server_answer(port, f"{path}/stop", submitter, "PUT", body)[0] == 403
        assert server_answer(port, f"{path}/stop", operator, "PUT", body)[0] == 200
        assert endless.wait(300) == "Failed", endless.tree()
        code = wait_until(lambda: exit_code(name), 90, name)  # the workflow does not wait for it
        assert code == 75, "stopped without its checkpoint"
        status = endless.status_object(s3)
        assert (status["phase"], len(status["missing"])) == ("Failed", status["planned"])
        assert server_answer(port, f"{path}/retry", submitter, "PUT", body)[0] == 403
        assert server_answer(port, f"{path}/retry", operator, "PUT", body)[0] == 200
    endless.running("pretrain", 400)
    assert continues(endless)
    endless.stop()  # the studies below have the node to themselves


def exit_code(pod: str) -> int | None:
    """The exit code of a pod's own container; None while it runs."""
    states = json.loads(kubectl("get", "pod", pod, "-o", "json"))["status"]["containerStatuses"]
    code: int | None = next(c for c in states if c["name"] == "main")["state"].get("terminated", {}).get("exitCode")
    return code


def test_two_studies_at_the_same_time(s3: Store) -> None:
    """Of the same jobs: each is run by one of them."""
    given = TINY | {"run-id": unused("twins")}
    first, second = submit(given), submit(given)
    first.succeeds(900)
    second.succeeds(900)
    records = [key for key in s3.list(f"runs/{given['run-id']}") if key.endswith("record.json")]
    assert len(records) == 3


def test_a_pretraining_over_nodes(s3: Store, tmp_path: Path) -> None:
    """The example with CPUs for GPUs, two pods of one node here; the study after it has no pretraining to do."""
    run_id = unused("wide")
    planned = submit(TINY | {"run-id": run_id, "approve": "true"})
    wait_until(lambda: planned.nodes("Suspend"), 240, planned.tree)
    planned.stop()
    text = (ROOT / "k8s/examples/two-nodes.yaml").read_text("utf-8")
    for old, new in (
        ("--run-id=wide", f"--run-id={run_id}"),
        ("--device=cuda", "--device=cpu"),
        (', nvidia.com/gpu: "1"', ""),
        ('cpu: "4", memory: 16Gi, ephemeral-storage: 10Gi', 'cpu: "250m", memory: 2Gi, ephemeral-storage: 1Gi'),
        ("memory: 16Gi", "memory: 3Gi"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    example = tmp_path / "wide.yaml"
    example.write_text(text)
    kubectl("apply", "-f", str(example))
    try:
        kubectl("wait", "--for=condition=Complete", "job/byol-wide", "--timeout=400s")
        logs = kubectl("logs", "-l", "batch.kubernetes.io/job-name=byol-wide", "--tail=50", "--prefix")
    finally:
        kubectl("delete", "-f", str(example))
    assert s3.exists(f"runs/{run_id}/pretrain/byol-s0/record.json"), logs
    study = submit(TINY | {"run-id": run_id}).succeeds(600)
    assert "pretrain" not in study.pods()


def test_a_queue_of_kueue(s3: Store) -> None:
    """Row 12 and beyond: with the example's queue every pod is gated, admitted, and counted; the study succeeds."""
    if "kueue.x-k8s.io" not in run("kubectl", "api-versions"):
        pytest.skip("this cluster has no Kueue")
    kubectl("apply", "-f", "k8s/examples/kueue.yaml")
    try:
        study = submit(TINY | {"queue": "byol", "run-id": unused("queued")}).succeeds(600)
        admitted = [
            owner["name"]
            for workload in objects("workloads.kueue.x-k8s.io")
            for owner in workload["metadata"]["ownerReferences"]
            if workload["status"]["admission"]["clusterQueue"] == "byol"
        ]
        assert len([name for name in admitted if name.startswith(study.name)]) == len(study.nodes())
    finally:
        kubectl("delete", "-f", "k8s/examples/kueue.yaml")


def test_approval_is_waited_for(s3: Store) -> None:
    study = submit(TINY | {"approve": "true"})
    [node] = wait_until(lambda: study.nodes("Suspend"), 240, study.tree)
    [plan] = [p["value"] for p in node["inputs"]["parameters"] if p["name"] == "plan"]
    assert {"pods", "pretrain_gpu_hours"} <= json.loads(plan).keys()
    assert study.pods() == ["fetch-data", "plan"]
    run("argo", "resume", "-n", "byol", study.name)
    study.succeeds(600)


# --- the other files --------------------------------------------------------------------------------


def test_templates_and_cron(s3: Store) -> None:
    kubectl("apply", "-f", "workflows/templates", "-f", "workflows/cron.yaml")
    try:
        words = [word for pair in TINY.items() for word in ("-p", "=".join(pair))]
        name = run("argo", "submit", "-n", "byol", "-o", "name", "--from", "workflowtemplate/byol-smoke", *words)
        study = Study(name.strip())
        study.succeeds(600)
        wait_until(lambda: "byol-med/hours" in (study.get()["metadata"].get("annotations") or {}), 120, study.tree)
        [cron] = objects("cronworkflows")
        assert cron["spec"]["workflowSpec"]["workflowTemplateRef"] == {"name": "byol-full"}
    finally:
        kubectl("delete", "-f", "workflows/cron.yaml", "-f", "workflows/templates")


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_the_api_server_takes_every_object(overlay: str, s3: Store) -> None:
    output = run("kubectl", "apply", "--dry-run=server", "-k", f"k8s/overlays/{overlay}")
    assert "Warning" not in output
    assert output.count("server dry run") > 20


def test_argo_lints_every_workflow() -> None:
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "workflows").rglob("*.yaml"))]
    assert len(files) == 5
    assert "no linting errors found" in run("argo", "lint", "--offline", *files)
