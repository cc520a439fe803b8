"""A real cluster as the tests use it: kubectl, argo, the store behind a port-forward, studies and their pods."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.storage import Store, open_store
from tests.cluster.documents import ROOT

ENDED = ("Succeeded", "Failed", "Error")
SMOKE = "workflows/smoke.yaml"
Object = dict[str, Any]

# The smallest study with everything in it: a pretraining, a trained and a frozen shard, a report.
TINY = {
    "datasets": "breastmnist",
    "methods": "byol",
    "seeds": "0",
    # so that a study has room beside another on a node of two cores
    "cpu-cpu": "250m",
    "gpu-cpu": "500m",
    "set": "data.phantoms=always\ndata.monitor=null\ndata.subset=48\npretrain.epochs=1\npretrain.batch_size=24\n"
    "study.baselines=[]\nstudy.protocols=[finetune,linear_probe]\nprotocols.finetune.epochs=1\n"
    "protocols.linear_probe.epochs=1",
}
# A pretraining that does not end, to be disturbed.
ENDLESS = TINY | {"set": f"{TINY['set']}\npretrain.epochs=100000\nruntime.checkpoint_minutes=0.1"}


def run(*command: str, check: bool = True, timeout: float = 600, cwd: Path = ROOT, stdin: str | None = None) -> str:
    """Run a command in the project's folder; its standard output, and with ``check=False`` its standard error too."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, input=stdin)
    assert not check or result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout if check else result.stdout + result.stderr


def kubectl(*args: str, **options: Any) -> str:
    return run("kubectl", "-n", "byol", *args, **options)


def objects(kind: str, selector: str = "") -> list[Object]:
    found: list[Object] = json.loads(kubectl("get", kind, "-o", "json", *(["-l", selector] if selector else [])))[
        "items"
    ]
    return found


def unused(name: str) -> str:
    """A run id that no study before this one has had: a finished one would leave nothing to watch."""
    return f"{name}-{int(time.time())}"


def submit(given: dict[str, str] | None = None, file: str | Path = SMOKE) -> Study:
    """Submit a workflow by the argo command line."""
    parameters = [word for name, value in (given or {}).items() for word in ("-p", f"{name}={value}")]
    return Study(run("argo", "submit", "-n", "byol", "-o", "name", str(file), *parameters).strip())


def wait_until(condition: Callable[[], Any], seconds: float, what: Any = "it", every: float = 1.0) -> Any:
    """Wait until a condition gives something; fail with ``what`` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what() if callable(what) else what}"
        time.sleep(every)
    return found


@dataclass(frozen=True)
class Study:
    """A workflow of the cluster by its name."""

    name: str

    def get(self) -> Object:
        found: Object = json.loads(run("argo", "get", "-n", "byol", self.name, "-o", "json"))
        return found

    @property
    def phase(self) -> str:
        return str(self.get().get("status", {}).get("phase", ""))

    def wait(self, seconds: float = 600, phases: Sequence[str] = ENDED) -> str:
        """Wait for one of the phases; return it."""
        deadline = time.monotonic() + seconds
        while (phase := self.phase) not in phases:
            assert time.monotonic() < deadline, f"{self.name} is {phase}\n{self.tree()}"
            time.sleep(2)
        return phase

    def succeeds(self, seconds: float = 600) -> Study:
        phase = self.wait(seconds)
        assert phase == "Succeeded", f"{phase}\n{self.tree()}\n{self.log()}"
        return self

    def tree(self) -> str:
        return run("argo", "get", "-n", "byol", self.name, check=False)

    def log(self, *args: str) -> str:
        return run("argo", "logs", "-n", "byol", self.name, "--no-color", *args, check=False)

    def nodes(self, kind: str = "Pod") -> list[Object]:
        return [n for n in self.get().get("status", {}).get("nodes", {}).values() if n["type"] == kind]

    def pods(self) -> list[str]:
        """Templates of the pods that it has started, oldest first, its exit handler left out."""
        nodes = sorted(self.nodes(), key=lambda n: n.get("startedAt") or "")
        return [template_of(n) for n in nodes if template_of(n) != "status"]

    def running(self, template: str, seconds: float = 300) -> Object:
        """Wait until a pod of a template runs; return its node."""
        return wait_until(
            lambda: next((n for n in self.nodes() if template_of(n) == template and n["phase"] == "Running"), None),
            seconds,
            self.tree,
        )

    def pod(self, template: str, phase: str = "Running") -> str:
        """Name of a pod of a template."""
        for pod in objects("pods", f"workflows.argoproj.io/workflow={self.name}"):
            node = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
            if re.search(rf"\b{template}\b", node.rpartition(".")[2]) and pod["status"]["phase"] == phase:
                return str(pod["metadata"]["name"])
        raise AssertionError(f"no pod {template} is {phase}\n{self.tree()}")

    def seconds(self) -> float:
        status = self.get()["status"]
        return (when(status["finishedAt"]) - when(status["startedAt"])).total_seconds()

    def status_object(self, store: Store) -> Object:
        found: Object = json.loads(store.read(f"workflows/{self.name}.json"))
        return found

    def stop(self) -> None:
        run("argo", "stop", "-n", "byol", self.name, check=False)


def template_of(node: Object) -> str:
    return str(node.get("templateName") or node.get("templateRef", {}).get("template"))


def when(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp).astimezone(UTC)


@contextlib.contextmanager
def forwarded(service: str, port: int, namespace: str = "byol") -> Iterator[int]:
    """A port of this machine that leads to a service or deployment/NAME; it comes back when its pod is replaced."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        local = unused.getsockname()[1]
    target = service if "/" in service else f"svc/{service}"
    command = f"while :; do kubectl -n {namespace} port-forward {target} {local}:{port} >/dev/null 2>&1; sleep 1; done"
    process = subprocess.Popen(["bash", "-c", command], start_new_session=True)
    try:
        wait_until(lambda: _open(local), 60, f"port-forward to {service}")
        yield local
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def store() -> Iterator[Store]:
    """The store of the dev overlay."""
    with forwarded("seaweedfs", 8333) as port:
        os.environ |= {"AWS_ACCESS_KEY_ID": "development", "AWS_SECRET_ACCESS_KEY": "development-only"}
        yield open_store(f"s3://byol/studies?endpoint=http://127.0.0.1:{port}&path_style=true")


def needs(program: str) -> str | None:
    """Say what is missing, None if nothing is."""
    return None if shutil.which(program) else f"{program} is not on the path"
