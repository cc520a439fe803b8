"""``python -m app submit`` against a server that speaks the Argo API's own paths and validates what it is sent."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from urllib3.exceptions import InsecureRequestWarning, MaxRetryError, SSLError

from app.cluster import argo
from app.errors import StorageError, UsageError
from tests.cluster.documents import ROOT
from tests.cluster.schemas import argo_problems, crds

pytest.importorskip("argo_workflows")
TOKEN = "Bearer right"
FULL = str(ROOT / "workflows/full.yaml")
REPORT = "s3://byol/studies/runs/recommended-1a2b3c4d/report/index.html"


class Stub(ThreadingHTTPServer):
    """The two paths of the API that the client uses; a workflow goes one step further each time it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.failures = 0  # answers to GET that are to be 503

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        if self.headers.get("Authorization") != TOKEN:
            self.answer(403, {"code": 7, "message": "workflows.argoproj.io is forbidden"})
            return False
        return True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if self.path != "/api/v1/workflows/byol" or set(body) != {"workflow"}:
            self.answer(404, {"code": 5, "message": "Not Found"})
        elif problems := argo_problems(body["workflow"], crds()):
            self.answer(400, {"code": 3, "message": problems[0]})
        else:
            self.server.created.append(body["workflow"])
            self.answer(200, body["workflow"] | {"metadata": {"name": "byol-full-x7k2p", "namespace": "byol"}})

    def do_GET(self) -> None:
        if not self.allowed():
            return
        if self.server.failures:
            self.server.failures -= 1
            self.answer(503, {"code": 14, "message": "upstream is away"})
        elif self.path == "/api/v1/workflows/byol/byol-full-x7k2p":
            steps = self.server.steps
            self.answer(200, steps.pop(0) if len(steps) > 1 else steps[0])
        else:
            self.answer(404, {"code": 5, "message": "Not Found"})

    def log_message(self, *_: object) -> None: ...


def node(name: str, phase: str, boundary: str = "root", kind: str = "Pod", **more: Any) -> dict[str, Any]:
    return {"id": name, "displayName": name, "phase": phase, "type": kind, "boundaryID": boundary} | more


def workflow(phase: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    root = node("byol-full-x7k2p", phase, "", "DAG", id="root")
    status = {"phase": phase, "nodes": {n["id"]: n for n in (root, *nodes)}}
    return {"metadata": {"name": "byol-full-x7k2p", "namespace": "byol"}, "status": status}


PLANNED = node("plan", "Succeeded", templateName="plan", outputs={"parameters": [{"name": "report", "value": REPORT}]})
RUNNING = workflow("Running", PLANNED, node("pretrain", "Running", progress="7/100"))
DONE = workflow("Succeeded", PLANNED, node("pretrain", "Succeeded", progress="100/100"))
FAILED = workflow("Failed", PLANNED, node("pretrain", "Failed", message="OOMKilled (exit code 137)"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    stub = Stub()
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    monkeypatch.setenv("ARGO_SERVER", stub.url)
    monkeypatch.setenv("ARGO_TOKEN", TOKEN)
    monkeypatch.delenv("ARGO_NAMESPACE", raising=False)
    monkeypatch.setattr(argo.time, "sleep", lambda _: None)
    yield stub
    stub.shutdown()
    stub.server_close()


@pytest.fixture
def call(call):
    return functools.partial(call, "submit")


def test_a_workflow_is_submitted_followed_and_its_report_named(server, call):
    server.steps = [workflow("Pending"), RUNNING, RUNNING, DONE]
    code, out, err = call(FULL, "-p", "preset=paper-text", "-p", "seeds=0,1", "-p", "gpus=2", "-p", "image=mine:1")
    assert code == 0, err
    assert out.splitlines() == [f"workflow: {server.url}/workflows/byol/byol-full-x7k2p", f"report: {REPORT}"]
    [sent] = server.created
    parameters = {entry["name"]: entry for entry in sent["spec"]["arguments"]["parameters"]}
    assert parameters["seeds"]["value"] == "0,1"
    assert parameters["image"] == {"name": "image", "value": "mine:1"}  # no longer from the ConfigMap
    assert "valueFrom" in parameters["store"]
    shown = [json.loads(line) for line in err.splitlines()]
    assert [(line["node"], line["phase"]) for line in shown if line["node"] == "pretrain"] == [
        ("pretrain", "Running"),
        ("pretrain", "Succeeded"),
    ]


def test_a_failed_workflow_says_what_failed(server, call):
    server.steps = [RUNNING, FAILED]
    code, _, err = call(FULL)
    assert code == 66
    assert "byol-full-x7k2p: Failed: pretrain (OOMKilled (exit code 137))" in err.splitlines()[-1]


def test_a_server_that_is_away_for_a_while_is_asked_again(server, call):
    server.steps, server.failures = [RUNNING, DONE], 3
    code, out, err = call(FULL)
    assert (code, server.failures) == (0, 0), err
    assert out.splitlines()[-1] == f"report: {REPORT}"


def test_after_too_long_it_says_that_the_workflow_goes_on(server, monkeypatch):
    server.failures = 2
    client = argo.ArgoServer(server.url, "byol")
    with pytest.raises(StorageError, match=r"upstream is away.*byol-full-x7k2p goes on meanwhile"):
        argo.follow(client, "byol-full-x7k2p", patience_seconds=0)
    assert server.failures == 1


def test_an_unknown_certificate_is_said(server, call, monkeypatch):
    """As Argo's server signs its own."""

    def refuse(*_: Any, **__: Any) -> None:
        error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
        raise MaxRetryError(None, "/", SSLError(error))

    monkeypatch.setattr("urllib3.PoolManager.request", refuse)
    code, _, err = call(FULL)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "set ARGO_INSECURE_SKIP_VERIFY=true" in err


def test_without_waiting_it_prints_where_to_look(server, call):
    code, out, _ = call(FULL, "--no-wait")
    assert (code, out) == (0, f"workflow: {server.url}/workflows/byol/byol-full-x7k2p\n")


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("pre-set=smoke", "no such parameter; did you mean 'preset'?"),
        ("gpus=two", "give a whole number, at least 0"),
        ("device=tpu", "unknown; choose from cuda, cpu"),
        ("gpu-tolerations={}", "give JSON, such as ["),
        ("gpu-node-selector=spot", "give JSON, such as {"),
        ("preset", "write name=value"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_sent(server, call, parameter, message):
    code, _, err = call(FULL, "-p", parameter)
    assert (code, len(err.splitlines()), server.created) == (2, 1, [])
    assert message in err


def test_no_permission_is_said(server, call, monkeypatch):
    monkeypatch.setenv("ARGO_TOKEN", "wrong")
    code, _, err = call(FULL)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no permission in namespace byol (workflows.argoproj.io is forbidden)" in err
    assert "create token byol-submitter" in err
    assert "wrong" not in err


def test_no_server_is_said(call, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("ARGO_TOKEN", TOKEN)
    code, _, err = call(FULL, "--server", f"http://127.0.0.1:{port}")
    assert code == 69
    assert "no Argo server answers" in err.splitlines()[-1]


def test_the_server_refuses_what_its_schema_refuses(server, call, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((ROOT / "workflows/smoke.yaml").read_text("utf-8").replace("failFast:", "failfast:"))
    code, _, err = call(str(broken))
    assert code == 2
    assert "refuses the workflow (400" in err
    assert "failfast" in err
    assert server.created == []


def test_what_is_no_workflow_is_refused(call, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("kind: Pod\n")
    assert call(str(other))[0] == 2
    assert call(str(tmp_path / "absent.yaml"))[0] == 2


@pytest.mark.parametrize(
    "parts",
    ["", "metadata: {}\nspec: []", "spec: {}", "metadata: {}\nspec: {arguments: {parameters: [{value: 1}]}}"],
)
def test_a_workflow_without_its_parts_is_refused_in_a_line(tmp_path, parts):
    (tmp_path / "w.yaml").write_text(f"kind: Workflow\n{parts}")
    with pytest.raises(UsageError, match="a Workflow without metadata, spec or parameters"):
        argo.read_workflow(tmp_path / "w.yaml", {})


def test_a_workflow_may_have_no_parameters(tmp_path):
    (tmp_path / "w.yaml").write_text("kind: Workflow\nmetadata: {}\nspec: {arguments: }")
    assert argo.read_workflow(tmp_path / "w.yaml", {})["spec"] == {"arguments": None}


def test_the_dag_is_drawn_with_its_depth_and_progress():
    """Row 9: phases, progress, time left, and what is waited for."""
    started = "2026-01-01T00:00:00Z"
    now = datetime.fromisoformat(started).timestamp() + 70
    lock = "Waiting for byol/ConfigMap/byol-limits/device-cuda-1 lock. Lock status: 0/4"
    shown = workflow(
        "Running",
        PLANNED,
        node("approve", "Running", kind="Suspend"),
        node("pretrain", "Running", progress="7/100", startedAt=started),
        node("gpu", "Pending", message="Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        node("shards(0)", "Pending", kind="Retry", message=lock),
        node("shards(1)", "Running", kind="Retry", children=["shards(1)(0)"]),
        node("shards(1)(0)", "Failed", message="OOMKilled (exit code 137)"),
    )
    assert sorted(argo._line(depth, entry, now) for depth, entry in argo.nodes_in_order(shown)) == sorted(
        [
            "● byol-full-x7k2p",
            "  ✔ plan",
            "  ● approve  waits: approval",
            "  ● pretrain  7/100  16 min left",
            "  ◷ gpu  waits: Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "  ◷ shards(0)  waits: the lock device-cuda-1",
            "  ✖ shards(1)(0)  OOMKilled (exit code 137)",
        ]
    )


def test_without_a_terminal_a_line_says_what_is_waited_for(server, call):
    """Row 9: once for each reason, whatever the count of a lock."""
    lock = "Waiting for byol/ConfigMap/byol-limits/device-cpu lock. Lock status: {}/8"
    waiting = [
        workflow("Running", node("shards(0)", "Pending", kind="Retry", message=lock.format(free))) for free in (0, 1)
    ]
    server.steps = [*waiting, DONE]
    code, _, err = call(FULL)
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["waits_for"] for line in lines if "waits_for" in line] == ["the lock device-cpu"]
    assert code == 0


def test_certificates_that_are_not_checked_are_said_once(server, call, monkeypatch):
    """Row 9: in one line, and not with every request."""
    monkeypatch.setenv("ARGO_INSECURE_SKIP_VERIFY", "true")
    server.steps = [RUNNING, RUNNING, DONE]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        code, _, err = call(FULL)
        warnings.warn("insecure", InsecureRequestWarning, stacklevel=1)
    assert code == 0
    assert [line for line in err.splitlines() if not line.startswith("{")] == [
        f"warning: {server.url}: any certificate is accepted (ARGO_INSECURE_SKIP_VERIFY)"
    ]
    assert caught == []


def test_a_stopped_workflow_says_why_it_was_stopped(server, call):
    """Row 8."""
    stopped = workflow("Failed", node("pretrain", "Failed", message="workflow shutdown with strategy:  Stop"))
    stopped["metadata"]["annotations"] = {"byol-med/why": "pretrain(0): pending for 60 min, Unschedulable: no GPU"}
    server.steps = [stopped]
    code, _, err = call(FULL)
    assert code == 66
    assert "Failed: pretrain(0): pending for 60 min, Unschedulable: no GPU; see `argo logs -n byol " in err


@pytest.mark.parametrize(
    ("given", "secure", "url"),
    [
        (None, "", "https://localhost:2746"),
        ("argo.example:443", "", "https://argo.example:443"),
        ("argo.example:80", "false", "http://argo.example:80"),
        ("http://argo.example/", "", "http://argo.example"),
    ],
)
def test_the_server_is_found_as_the_argo_command_line_finds_it(monkeypatch, given, secure, url):
    monkeypatch.delenv("ARGO_SERVER", raising=False)
    monkeypatch.setenv("ARGO_SECURE", secure)
    assert argo.server_url(given) == url
