"""A client of the Argo server: submit a workflow with typed parameters, follow it, say how it ended."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from app.errors import InputError, StorageError, UsageError

INSTALL = "the Argo client is not installed; `pip install '.[argo]'` in a clone, or use the argo command line"
ENDED = ("Succeeded", "Failed", "Error")
MARKS = {"Succeeded": "✔", "Failed": "✖", "Error": "✖", "Running": "●", "Pending": "◷", "Skipped": "○", "Omitted": "○"}
Workflow = dict[str, Any]


def read_workflow(path: Path, given: Mapping[str, str]) -> Workflow:
    """Read a Workflow from a YAML file and set its parameters.

    Args:
        path: the file.
        given: values by parameter name, as text.

    Raises:
        UsageError: not a Workflow; a parameter that it does not have (the nearest one is named); a value of
            another type than the default: a whole number, a JSON list or object, or one of its choices.
    """
    try:
        workflow = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); give a file of workflows/"
        ) from error
    if not isinstance(workflow, dict) or workflow.get("kind") != "Workflow":
        raise UsageError(f"{path}: not an Argo Workflow; give workflows/full.yaml or workflows/smoke.yaml")
    parameters = {entry["name"]: entry for entry in workflow["spec"].get("arguments", {}).get("parameters", [])}
    for name, value in given.items():
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"--parameter {name}: {path} has no such parameter{hint}; it has {', '.join(parameters)}")
        _check_type(parameters[name], value)
        parameters[name].pop("valueFrom", None)
        parameters[name]["value"] = value
    return workflow


def _check_type(parameter: Mapping[str, Any], value: str) -> None:
    name = parameter["name"]
    default = str(parameter.get("value", parameter.get("valueFrom", {}).get("default", "")))
    if "enum" in parameter and value not in parameter["enum"]:
        raise UsageError(f"--parameter {name}={value}: unknown; choose from {', '.join(parameter['enum'])}")
    if default.isdigit() and not value.isdigit():
        raise UsageError(f"--parameter {name}={value}: give a whole number, such as {default}")
    if default[:1] in ("{", "["):
        try:
            same = isinstance(json.loads(value), dict if default[0] == "{" else list)
        except ValueError:
            same = False
        if not same:
            raise UsageError(f"--parameter {name}={value}: give JSON, such as {default}")


class ArgoServer:
    """The Argo server's workflow service.

    Args:
        url: such as ``https://localhost:2746``. The token comes from ``ARGO_TOKEN``; ``ARGO_INSECURE_SKIP_VERIFY=true``
            accepts any certificate. Both are what the argo command line reads.
        namespace: where workflows live.
    """

    def __init__(self, url: str, namespace: str) -> None:
        try:
            import argo_workflows
            from argo_workflows.api import workflow_service_api
        except ImportError as error:
            raise UsageError(INSTALL) from error
        configuration = argo_workflows.Configuration(host=url)
        configuration.verify_ssl = os.environ.get("ARGO_INSECURE_SKIP_VERIFY", "").lower() not in ("1", "true")
        if token := os.environ.get("ARGO_TOKEN"):
            configuration.api_key["BearerToken"] = token if " " in token else f"Bearer {token}"
        self.url, self.namespace = url, namespace
        self._service = workflow_service_api.WorkflowServiceApi(argo_workflows.ApiClient(configuration))

    def create(self, workflow: Workflow) -> str:
        """Submit a workflow and return the name that the server gave it.

        Raises:
            UsageError: no permission, an unknown certificate, or the server refuses the workflow.
            StorageError: the server cannot be reached.
        """
        from argo_workflows.models import IoArgoprojWorkflowV1alpha1WorkflowCreateRequest as CreateRequest

        body = CreateRequest(workflow=workflow, _check_type=False)
        name: str = self._ask(lambda options: self._service.create_workflow(self.namespace, body, **options))[
            "metadata"
        ]["name"]
        return name

    def get(self, name: str) -> Workflow:
        """Return a workflow with its status; raises like ``create``."""
        return self._ask(lambda options: self._service.get_workflow(self.namespace, name, **options))

    def _ask(self, call: Callable[[dict[str, Any]], Any]) -> Workflow:
        from argo_workflows.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        # Its models lag behind the server's: take the JSON as it is.
        try:
            data = call({"_preload_content": False, "_request_timeout": 60}).data
        except ApiException as error:
            raise self._explain(error.status, error.reason, error.body) from error
        except HTTPError as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise UsageError(
                    f"{self.url}: its certificate is not accepted ({reason}); if it is Argo's own, set "
                    "ARGO_INSECURE_SKIP_VERIFY=true"
                ) from error
            raise StorageError(
                f"{self.url}: no Argo server answers ({reason}); start "
                "`kubectl -n argo port-forward svc/argo-server 2746`, or give --server or ARGO_SERVER"
            ) from error
        try:
            answer: Workflow = json.loads(data)
        except ValueError as error:
            raise UsageError(f"{self.url}: answers, but is no Argo server; check --server or ARGO_SERVER") from error
        return answer

    def _explain(self, status: int, reason: str, body: Any) -> UsageError | StorageError:
        with contextlib.suppress(ValueError, TypeError, KeyError):  # without words of the server's: the status line
            reason = json.loads(body)["message"]
        reason = " ".join(str(reason).split())[:300]
        if status in (401, 403):
            return UsageError(
                f"{self.url}: no permission in namespace {self.namespace} ({reason}); set ARGO_TOKEN to the output of "
                f"`kubectl -n {self.namespace} create token byol-submitter`"
            )
        if status >= 500 or status == 429:
            return StorageError(f"{self.url}: the Argo server failed ({status}: {reason}); try again later")
        return UsageError(
            f"{self.url}: refuses the workflow ({status}: {reason}); check its parameters and --namespace"
        )


def server_url(given: str | None) -> str:
    """Resolve ``--server``, else ``ARGO_SERVER`` (``host:port``; ``ARGO_SECURE=false``: plain HTTP), else localhost."""
    url = given or os.environ.get("ARGO_SERVER") or "localhost:2746"
    if "://" not in url:
        plain = os.environ.get("ARGO_SECURE", "").lower() in ("0", "false")
        url = f"{'http' if plain else 'https'}://{url}"
    return url.rstrip("/")


def nodes_in_order(workflow: Workflow) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the nodes of a workflow's DAG with their depth: those that run pods or group them, oldest first."""
    status = workflow.get("status", {})
    nodes: dict[str, dict[str, Any]] = status.get("nodes", {})
    members: dict[str, list[dict[str, Any]]] = {}
    for node in nodes.values():
        if node.get("type") in ("Pod", "DAG", "Skipped"):
            members.setdefault(node.get("boundaryID", ""), []).append(node)

    def below(identity: str, depth: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for node in sorted(members.get(identity, []), key=lambda n: (n.get("startedAt") or "", n["displayName"])):
            yield depth, node
            yield from below(node["id"], depth + 1)

    yield from below("", 0)


def report_uri(workflow: Workflow) -> str | None:
    """Where the plan says that the report will be; None if there was no plan."""
    for node in workflow.get("status", {}).get("nodes", {}).values():
        for parameter in node.get("outputs", {}).get("parameters", []):
            if node.get("templateName") == "plan" and parameter["name"] == "report":
                return parameter.get("value") or None
    return None


def follow(server: ArgoServer, name: str, *, every_seconds: float = 2.0, patience_seconds: float = 300.0) -> Workflow:
    """Show a workflow's DAG until it has ended: live on a terminal, a line for each change otherwise.

    A server that does not answer, as when a port-forward breaks, is asked again for ``patience_seconds``.

    Returns:
        The workflow as it ended.

    Raises:
        InputError: it did not succeed; the message names what failed.
        StorageError: the server was away for longer than patience; the workflow goes on.
    """
    show = _live() if sys.stderr.isatty() else _lines()
    next(show)
    answered = time.monotonic()
    try:
        while True:
            try:
                workflow = server.get(name)
            except StorageError as error:
                if time.monotonic() - answered < patience_seconds:
                    time.sleep(every_seconds)
                    continue
                raise StorageError(f"{error}; {name} goes on meanwhile, `argo watch {name}` follows it") from error
            answered = time.monotonic()
            show.send(workflow)
            phase = workflow.get("status", {}).get("phase")
            if phase in ENDED:
                break
            time.sleep(every_seconds)
    finally:
        show.close()
    if phase != "Succeeded":
        broken = [
            n for _, n in nodes_in_order(workflow) if n.get("phase") in ("Failed", "Error") and n["type"] == "Pod"
        ]
        named = ", ".join(f"{node['displayName']} ({node.get('message', node['phase'])})" for node in broken[:3])
        raise InputError(
            f"{name}: {phase}{f': {named}' if named else ''}; see `argo logs {name}`, and submit again: "
            "finished jobs are not run again"
        )
    return workflow


def _line(depth: int, node: Mapping[str, Any]) -> str:
    progress = f"  {node['progress']}" if node.get("progress", "0/1") not in ("0/1", "1/1") else ""
    return f"{'  ' * depth}{MARKS.get(node.get('phase', ''), '?')} {node['displayName']}{progress}"


def _live() -> Generator[None, Workflow, None]:
    """Redraw the whole DAG with every workflow that is sent in; its last lines if it is longer than the terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            workflow = yield
            lines = [_line(depth, node) for depth, node in nodes_in_order(workflow)]
            live.update(Text("\n".join(lines[-(console.height - 1) :])), refresh=True)


def _lines() -> Generator[None, Workflow, None]:
    """Print a JSON line for every node that has changed."""
    seen: dict[str, str] = {}
    while True:
        workflow = yield
        for _, node in nodes_in_order(workflow):
            phase = node.get("phase", "")
            if seen.get(node["id"]) != phase:
                seen[node["id"]] = phase
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                line = {"time": stamp, "stage": "submit", "workflow": workflow["metadata"]["name"]}
                print(json.dumps(line | {"node": node["displayName"], "phase": phase}), file=sys.stderr, flush=True)
