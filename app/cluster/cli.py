"""The command that sends a workflow to a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.errors import UsageError
from app.options import example

cluster_app = typer.Typer()


@cluster_app.command(epilog=example("submit workflows/full.yaml -p preset=paper-text -p seeds=0,1,2"))
def submit(
    file: Annotated[Path, typer.Argument(help="A Workflow, such as workflows/full.yaml.")],
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value; may be repeated.")
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="Argo server. [default: $ARGO_SERVER, or localhost:2746]")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="[default: $ARGO_NAMESPACE, or the workflow's]")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
) -> None:
    """Submit a workflow to an Argo server, follow it, and print where the report is."""
    from app.cluster.argo import ArgoServer, follow, read_workflow, report_uri, server_url

    given = {}
    for text in parameters or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--parameter {text}: write name=value")
        given[name] = value
    workflow = read_workflow(file, given)
    place = namespace or os.environ.get("ARGO_NAMESPACE") or workflow["metadata"].get("namespace") or "argo"
    workflow["metadata"]["namespace"] = place
    argo = ArgoServer(server_url(server), place)
    name = argo.create(workflow)
    print(f"workflow: {argo.url}/workflows/{place}/{name}")
    if wait:
        print(f"report: {report_uri(follow(argo, name)) or 'none'}")
