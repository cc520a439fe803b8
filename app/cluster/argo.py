"""A client of the Argo server: submit a workflow with typed parameters, follow it, say how it ended."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from app.cluster.parameters import check_parameters
from app.errors import InputError, StorageError, UsageError

INSTALL = "the Argo client is not installed; `pip install '.[argo]'` in a clone, or use the argo command line"
ENDED = ("Succeeded", "Failed", "Error")
MARKS = {"Succeeded": "✔", "Failed": "✖", "Error": "✖", "Running": "●", "Pending": "◷", "Skipped": "○", "Omitted": "○"}
Workflow = dict[str, Any]
Node = dict[str, Any]


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
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); give a file of workflows/"
        ) from error
    if not isinstance(workflow, dict) or workflow.get("kind") != "Workflow":
        raise UsageError(f"{path}: not an Argo Workflow; give workflows/full.yaml or workflows/smoke.yaml")
    try:
        workflow["metadata"].get("namespace")
        listed = (workflow["spec"].get("arguments") or {}).get("parameters") or []
        parameters = {entry["name"]: entry for entry in listed}
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: a Workflow without metadata, spec or parameters as Argo has them") from error
    for name, value in given.items():
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"--parameter {name}: {path} has no such parameter{hint}; it has {', '.join(parameters)}")
        if value not in parameters[name].get("enum", [value]):
            raise UsageError(f"--parameter {name}={value}: unknown; choose from {', '.join(parameters[name]['enum'])}")
        parameters[name].pop("valueFrom", None)
        parameters[name]["value"] = value
    try:  # those that a ConfigMap of the namespace gives are the plan's to check
        check_parameters({name: str(entry["value"]) for name, entry in parameters.items() if "value" in entry})
    except UsageError as error:
        raise UsageError(f"--parameter {error}") from error
    return workflow


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
        if not configuration.verify_ssl:  # urllib3 would say so with every request
            from urllib3 import disable_warnings
            from urllib3.exceptions import InsecureRequestWarning

            disable_warnings(InsecureRequestWarning)
            print(f"warning: {url}: any certificate is accepted (ARGO_INSECURE_SKIP_VERIFY)", file=sys.stderr)
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

    def version(self) -> str:
        """Return the server's version; raises like ``create``."""
        from argo_workflows.api import info_service_api

        service = info_service_api.InfoServiceApi(self._service.api_client)
        return str(self._ask(lambda options: service.get_version(**options)).get("version", "unknown version"))

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
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self.url}: answers, but is no Argo server; check --server or ARGO_SERVER") from error
        return answer

    def _explain(self, status: int, reason: str, body: Any) -> UsageError | StorageError:
        with contextlib.suppress(
            ValueError, TypeError, KeyError, RecursionError
        ):  # without words of the server's: the status line
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


def nodes_in_order(workflow: Workflow) -> Iterator[tuple[int, Node]]:
    """Yield the nodes of a workflow's DAG with their depth: those that run pods, group them or wait, oldest first."""
    nodes: dict[str, Node] = workflow.get("status", {}).get("nodes", {})
    members: dict[str, list[Node]] = {}
    for node in nodes.values():
        # A Retry is what its tries hang on; before the first it is what waits for a lock.
        waits = node.get("type") == "Retry" and not node.get("children")
        if waits or node.get("type") in ("Pod", "DAG", "Skipped", "Suspend"):
            members.setdefault(node.get("boundaryID", ""), []).append(node)

    def below(identity: str, depth: int) -> Iterator[tuple[int, Node]]:
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
                raise StorageError(
                    f"{error}; {name} goes on meanwhile, `argo watch -n {server.namespace} {name}` follows it"
                ) from error
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
        # whoever stopped it has said why (app/stages/watch.py)
        named = (workflow["metadata"].get("annotations") or {}).get("byol-med/why") or named
        raise InputError(
            f"{name}: {phase}{f': {named}' if named else ''}; see `argo logs -n {server.namespace} {name}`, "
            "and submit again: finished jobs are not run again"
        )
    return workflow


def waits_for(node: Node) -> str:
    """Say what a node waits for, in Argo's and Kubernetes' words; empty if it waits for nothing."""
    if node.get("phase") == "Running" and node.get("type") == "Suspend":
        return "approval"
    if node.get("phase") != "Pending":
        return ""
    message = " ".join(str(node.get("message", "")).split())
    lock = re.match(r"Waiting for (?:\S+/)?(\S+) lock", message)
    return f"the lock {lock[1]}" if lock else message


def time_left(node: Node, now: float) -> str:
    """Estimate from its progress when a running node ends: ``12 min left``; empty if there is nothing to tell it from.

    Args:
        node: a node of a workflow.
        now: seconds since the epoch.
    """
    done, _, total = str(node.get("progress", "")).partition("/")
    if node.get("phase") != "Running" or not (done.isdigit() and total.isdigit()) or not 0 < int(done) < int(total):
        return ""
    ran = now - datetime.fromisoformat(node["startedAt"]).timestamp()
    seconds = ran * (int(total) - int(done)) / int(done)
    return f"{seconds / 3600:.1f} h left" if seconds >= 5400 else f"{math.ceil(seconds / 60)} min left"


def _line(depth: int, node: Node, now: float) -> str:
    progress = "" if node.get("progress", "0/1") in ("0/1", "1/1") else node["progress"]
    ended = node.get("phase") in ("Failed", "Error")
    why = node.get("message", "") if ended else f"waits: {reason}" if (reason := waits_for(node)) else ""
    words = (MARKS.get(node.get("phase", ""), "?"), node["displayName"], progress, time_left(node, now), why)
    return "  " * depth + "  ".join(filter(None, words)).replace("  ", " ", 1)


def _live() -> Generator[None, Workflow, None]:
    """Redraw the whole DAG with every workflow that is sent in; its last lines if it is longer than the terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            workflow = yield
            lines = [_line(depth, node, time.time()) for depth, node in nodes_in_order(workflow)]
            text = Text("\n".join(lines[-(console.height - 1) :]), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)


def _lines() -> Generator[None, Workflow, None]:
    """Print a JSON line for every node that has changed, or waits for something else."""
    seen: dict[str, tuple[str, str]] = {}
    while True:
        workflow = yield
        for _, node in nodes_in_order(workflow):
            phase, reason = node.get("phase", ""), waits_for(node)
            if seen.get(node["id"]) != (phase, reason):
                seen[node["id"]] = (phase, reason)
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                line = {"time": stamp, "stage": "submit", "workflow": workflow["metadata"]["name"]}
                line |= {"node": node["displayName"], "phase": phase} | ({"waits_for": reason} if reason else {})
                print(json.dumps(line), file=sys.stderr, flush=True)
