"""The watch of pending pods, against a server that speaks as much of Kubernetes' API as it asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from app.cluster.kubernetes import Api
from app.errors import InputError, StorageError, UsageError
from app.stages.status import announce, failures, workflow_status
from app.stages.watch import ENDED, OURS, account, look, pending_reason
from app.storage import FolderStore

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/byol/workflows"
NO_GPU = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        }
    ]
}
NO_IMAGE = {
    "conditions": [{"type": "PodScheduled", "status": "True"}],
    "containerStatuses": [
        {"name": "main", "state": {"waiting": {"reason": "ErrImagePull", "message": "not\n found"}}},
        {"name": "wait", "state": {"waiting": {"reason": "PodInitializing"}}},
    ],
}


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods: list[dict[str, Any]] = []
        self.workflows: dict[str, dict[str, Any]] = {}
        self.patches: list[tuple[str, dict[str, Any]]] = []
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        allowed = self.headers["Authorization"] == "Bearer token"
        self.send_response(self.server.status if allowed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if url.path == "/api/v1/namespaces/byol/pods":
            assert parse_qs(url.query) == {"labelSelector": [OURS], "fieldSelector": ["status.phase=Pending"]}
            self.answer({"items": self.server.pods or None})
        else:
            if url.path == WORKFLOWS:
                assert "PartialObjectMetadataList" in self.headers["Accept"]
                assert parse_qs(url.query) == {"labelSelector": [ENDED]}
                self.answer({"items": [{"metadata": w["metadata"]} for w in self.server.workflows.values()] or None})
                return
            folder, _, name = url.path.rpartition("/")
            assert folder == WORKFLOWS
            self.answer(self.server.workflows[name])

    def do_PATCH(self) -> None:
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.patches.append((self.path.removeprefix(f"{WORKFLOWS}/"), body))
        self.answer({})

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Api:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("token\n")
    (account / "namespace").write_text("byol")
    return Api(f"http://127.0.0.1:{server.server_port}", account)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def pod(name: str, minutes: float, status: dict[str, Any], **labels: str) -> dict[str, Any]:
    created = (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")
    return {
        "metadata": {
            "name": f"study-{name}",
            "creationTimestamp": created,
            "labels": {"workflows.argoproj.io/workflow": "study"} | labels,
            "annotations": {"workflows.argoproj.io/node-name": f"study.groups(0).{name}(1)"},
        },
        "spec": {},
        "status": {"phase": "Pending"} | status,
    }


def workflow(minutes: str | None = None, **spec: Any) -> dict[str, Any]:
    given = [] if minutes is None else [{"name": "pending-minutes", "value": minutes}]
    return {"metadata": {"name": "study"}, "spec": {"arguments": {"parameters": given}} | spec}


def watched(api: Api, store: FolderStore) -> list[str]:
    return look(api, lambda uri: store, store.uri, NOW)


WHY = (
    "groups(0).pretrain(1): pending for 11 min, Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
)


def test_a_study_that_waits_in_vain_is_stopped_and_its_status_says_why(server, api, store):
    """Row 8: no GPU node."""
    server.pods = [pod("shards", 1, NO_GPU), pod("pretrain", 11, NO_GPU)]
    server.workflows["study"] = workflow("10")
    announce(store, "study", "run")
    store.write(
        "runs/run/experiment.json", json.dumps({"plan": {"run_id": "run", "pretrain": [], "downstream": []}}).encode()
    )
    assert watched(api, store) == [f"study: Stop: {WHY}"]
    change = {"metadata": {"annotations": {"byol-med/why": WHY}}, "spec": {"shutdown": "Stop"}}
    assert server.patches == [("study", change)]
    # then the exit handler says what Argo says of the failures
    listed = [
        {"displayName": "pretrain(1)", "message": "workflow shutdown with strategy:  Stop"},
        {"displayName": "byol-s1", "message": "OOMKilled (exit code 137)"},
    ]
    ended = workflow_status(store, "study", "Failed", why=failures(json.dumps(json.dumps(listed))))
    assert (ended["run_id"], ended["why"]) == ("run", [WHY, "byol-s1: OOMKilled (exit code 137)"])


@pytest.mark.parametrize(("minutes", "waited"), [("20", 11), (None, 59), ("1", 0.9)])
def test_a_study_within_its_bound_is_left_alone(server, api, store, minutes, waited):
    server.pods, server.workflows["study"] = [pod("pretrain", waited, NO_GPU)], workflow(minutes)
    assert (watched(api, store), server.patches) == ([], [])


def test_the_bound_is_an_hour_without_a_word_and_the_templates_where_it_has_one(server, api, store):
    server.pods, server.workflows["study"] = [pod("pretrain", 61, NO_GPU)], workflow()
    assert len(watched(api, store)) == 1
    given = workflow("120")["spec"]
    server.workflows["study"] = workflow() | {"status": {"storedWorkflowTemplateSpec": given}}
    assert watched(api, store) == []


def test_what_a_queue_holds_back_is_its_business(server, api, store):
    gated = pod("pretrain", 600, NO_GPU)
    gated["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    server.pods, server.workflows["study"] = [gated], workflow("10")
    assert watched(api, store) == []


@pytest.mark.parametrize("minutes", ["2h", "", "nan", "inf"])
def test_a_bound_that_is_no_number_is_the_default(server, api, store, minutes):
    server.workflows["study"] = workflow(minutes)
    for waited, count in ((59, 0), (61, 1)):
        server.pods = [pod("pretrain", waited, NO_GPU)]
        assert len(watched(api, store)) == count


@pytest.mark.parametrize("error", [StorageError("away"), UsageError("refused"), InputError("damaged")])
def test_a_store_that_refuses_one_study_keeps_no_other_waiting(server, api, store, error):
    def opened(uri: str) -> FolderStore:
        if uri == "bad":
            raise error
        return store

    for name, uri in (("a", "bad"), ("b", "good")):
        given = [{"name": "store", "value": uri}]
        server.workflows[name] = {"metadata": {"name": name}, "spec": {"arguments": {"parameters": given}}}
    server.pods = [pod("pretrain", 61, NO_GPU, **{"workflows.argoproj.io/workflow": name}) for name in ("a", "b")]
    lines = look(api, opened, "store", NOW)
    assert lines[0] == f"a: the reason is not in the store: {error}"
    assert [name for name, _ in server.patches] == ["a", "b"]

    server.patches.clear()
    lines = account(api, opened, "store")
    assert lines[0].startswith("a: its hours are not in the store")
    again = isinstance(error, StorageError)
    assert [name for name, _ in server.patches] == (["b"] if again else ["a", "b"])


def test_an_exit_handler_without_an_image_is_ended_too(server, api, store):
    """Row 8: an image that does not exist; the status is published for it."""
    server.pods = [pod("fetch-data", 3, NO_IMAGE)]
    server.workflows["study"] = workflow("2")
    [line] = watched(api, store)
    assert line.startswith("study: Stop: groups(0).fetch-data(1): pending for 3 min, ErrImagePull: not found")
    exit_pod = pod("onExit", 2.5, NO_IMAGE, **{"workflows.argoproj.io/on-exit": "true"})
    server.pods, server.workflows["study"] = [exit_pod], workflow("2", shutdown="Stop")
    assert watched(api, store)[0].startswith("study: Terminate: ")
    assert [change["spec"]["shutdown"] for _, change in server.patches] == ["Stop", "Terminate"]
    status = json.loads(store.read("workflows/study.json"))
    assert (status["phase"], status["run_id"], len(status["why"])) == ("Failed", None, 2)


def test_a_study_that_has_ended_says_what_it_took_once(server, api, store):
    """Seconds of requested CPUs and GPUs, as Argo sums them up."""
    server.workflows["study"] = workflow() | {"status": {"resourcesDuration": {"cpu": 5400, "nvidia.com/gpu": 360}}}
    announce(store, "study", "run")
    opened = lambda uri: store  # noqa: E731
    assert account(api, opened, store.uri) == ["study: took 1.5 CPU hours and 6.0 GPU minutes, as requested"]
    assert json.loads(store.read("workflows/study.json"))["hours"] == {"gpu": 0.1, "cpu": 1.5}
    [(name, change)] = server.patches
    assert name == "study"
    server.workflows["study"]["metadata"] |= change["metadata"]
    assert account(api, opened, store.uri) == []


def test_a_short_study_took_more_than_nothing(server, api, store):
    server.workflows["study"] = workflow() | {"status": {"resourcesDuration": {"cpu": 40}}}
    assert account(api, lambda _: store, store.uri) == ["study: took 40 CPU seconds, as requested"]


def test_a_pod_that_is_only_being_made_has_no_other_reason():
    assert pending_reason(
        {"status": {"containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}}
    ) == ("its containers are being made")


def test_an_api_server_without_an_answer_can_be_asked_again(server, api, store):
    server.status = 503
    with pytest.raises(StorageError, match="says 503"):
        watched(api, store)
    server.status = 403
    with pytest.raises(UsageError, match="says 403"):
        watched(api, store)


def test_an_empty_cluster_is_looked_at(api, store):
    """Kubernetes writes an empty list as null."""
    assert (watched(api, store), account(api, lambda uri: store, store.uri)) == ([], [])


def test_without_a_cluster_it_says_so(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UsageError, match="runs in a pod"):
        Api.inside()


@pytest.mark.parametrize("text", ["", "null", '"null"', '"[]"'])
def test_no_failures_are_none(text):
    assert failures(text) == []


@pytest.mark.parametrize("text", ["[1]", "{", '"x"', '[{"message": "m"}]'])
def test_what_is_no_list_of_failures_is_refused(text):
    with pytest.raises(UsageError, match="--failures"):
        failures(text)
