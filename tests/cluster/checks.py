"""All checks of the shipped YAML in one place: what the tests run, and what the mutations have to get past."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer.main

from app.cli import app
from tests.cluster.argo import UnknownTag, substitute, tags, templates_of, workflow_parameters
from tests.cluster.documents import ROOT, WORKFLOWS, Document, render
from tests.cluster.references import (
    Cluster,
    cluster_problems,
    cron_problems,
    repository_problems,
    walk,
    workflow_problems,
)
from tests.cluster.schemas import argo_problems, crds, kubernetes_problems

EXAMPLE = "k8s/base/s3-credentials.example.yaml"
CACHE = "k8s/components/dataset-cache"
OVERLAYS = ("k8s/overlays/dev", "k8s/overlays/prod", "k8s/overlays/with-cache", "k8s/overlays/with-keys")


def workspace(folder: Path) -> Path:
    """Copy ``k8s/`` into a folder, and beside its overlays those with a component, added as k8s/README.md says."""
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    overlays = folder / "k8s/overlays"
    for name, base, component in (("cache", "dev", "dataset-cache"), ("keys", "prod", "static-credentials")):
        shutil.copytree(overlays / base, overlays / f"with-{name}")
        add_component(overlays / f"with-{name}", component)
    return folder


def add_component(overlay: Path, name: str) -> None:
    """Use a component in an overlay."""
    file = overlay / "kustomization.yaml"
    file.write_text(f"{file.read_text('utf-8')}components: [../../components/{name}]\n", "utf-8")


def all_problems(files: Mapping[str, list[Document]], root: Path, rendered: dict[str, list[Document]]) -> Iterator[str]:
    """Every problem of the shipped files.

    Args:
        files: documents by path, as ``documents.shipped`` reads them.
        root: a ``workspace`` with the same ``k8s/``, for kustomize.
        rendered: what kustomize made of the overlays; filled where it is empty.
    """
    known, read = parameter_keys(files)
    try:
        for overlay in OVERLAYS:
            if overlay not in rendered:
                rendered[overlay] = render(root / overlay)
    except subprocess.CalledProcessError as error:
        yield f"kustomize: {error.stderr.strip()[:300]}"
        return
    templates = {
        document["metadata"].get("name"): document
        for path in WORKFLOWS
        for document in files[path]
        if document.get("kind") == "WorkflowTemplate"
    }
    full = files["workflows/full.yaml"][0]
    labels = full.get("spec", {}).get("podMetadata", {}).get("labels", {})
    clusters = {overlay: Cluster(objects) for overlay, objects in rendered.items()}
    for path in WORKFLOWS:
        [document] = files[path]
        if problems := [f"{path}: {line}" for line in argo_problems(document, crds())]:
            yield from problems
            continue
        for cluster in clusters.values():
            if document["kind"] == "CronWorkflow":
                yield from (f"{path}: {line}" for line in cron_problems(document, templates, cluster))
            else:
                yield from (f"{path}: {line}" for line in _remembered(document, cluster, known))
    for overlay, objects in rendered.items():
        for item in [*objects, *files[EXAMPLE]]:
            yield from (f"{overlay}: {item.get('kind')}: {line}" for line in kubernetes_problems(item))
    yield from kustomization_problems(files)
    for path, documents in files.items():  # also the one that every overlay replaces
        for document in documents:
            if document.get("metadata", {}).get("name") == "byol-artifacts":
                yield from (f"{path}: {line}" for line in repository_problems(document))
    for overlay, cluster in clusters.items():
        example = [item for item in files[EXAMPLE] if cluster.get("Secret", item["metadata"]["name"]) is None]
        complete = Cluster([*cluster.objects, *example])
        yield from (f"{overlay}: {line}" for line in cluster_problems(complete, read, labels))
        if cluster.get("Secret", "byol-s3-credentials") is None and not example:
            yield f"{EXAMPLE}: not the Secret that the workflows read"


_memory: dict[tuple[str, str, str], list[str]] = {}


def _remembered(document: Document, cluster: Cluster, known: set[str]) -> list[str]:
    """Problems of a workflow, looked for once: a mutation leaves most files as they are."""
    key = (json.dumps(document), cluster.text, ",".join(sorted(known)))
    if key not in _memory:
        _memory[key] = [*workflow_problems(document, cluster, known), *command_problems(document, cluster)]
    return _memory[key]


def parameter_keys(files: Mapping[str, list[Document]]) -> tuple[set[str], set[str]]:
    """Keys of byol-parameters: those that some overlay or component sets, and those that some workflow reads."""
    sets = {
        key
        for path, documents in files.items()
        for document in documents
        if path.endswith("/parameters.yaml")
        for key in document.get("data", {})
    }
    reads = {
        node["configMapKeyRef"].get("key")
        for path in WORKFLOWS
        for _, node in walk(files[path])
        if isinstance(node, dict) and isinstance(node.get("configMapKeyRef"), dict) and "key" in node["configMapKeyRef"]
    }
    return sets, reads


def kustomization_problems(files: Mapping[str, list[Document]]) -> Iterator[str]:
    """Files that no kustomization takes, and hashes behind names that the workflows write out."""
    for path, [document, *_] in files.items():
        folder = path.rpartition("/")[0]
        if path.endswith("/kustomization.yaml"):
            taken = {*document.get("resources", []), *(patch.get("path") for patch in document.get("patches", []))}
            for other in files:
                name = other.rpartition("/")[2]
                if other.rpartition("/")[0] == folder and other not in (path, EXAMPLE) and name not in taken:
                    yield f"{path}: does not take {name}"
            [own] = [item["metadata"].get("name") for item in files["k8s/base/namespace.yaml"]]
            if document.get("kind") == "Kustomization" and document.get("namespace") != own:
                yield f"{path}: namespace {document.get('namespace')}, not {own}"
            generators = document.get("secretGenerator", []) + document.get("configMapGenerator", [])
            for generator in generators:
                if generator.get("options", {}).get("disableNameSuffixHash") is not True:
                    yield f"{path}: a hash behind {generator.get('name')} breaks the workflows' references"
            if folder == CACHE and document.get("kind") != "Component":
                yield f"{path}: a component is not a {document.get('kind')}"
            if folder == CACHE and (document.get("apiVersion") != "kustomize.config.k8s.io/v1alpha1"):
                yield f"{path}: {document.get('apiVersion')}"


def commands(document: Document, cluster: Cluster) -> Iterator[tuple[str, list[str]]]:
    """Every container's command of a workflow with all its parameters substituted: template name and words."""
    values = workflow_parameters(document["spec"], cluster.config_maps)
    values |= {"workflow.name": "byol-x7k2p", "workflow.status": "Succeeded", "workflow.failures": '"null"'}
    numbers = {"seed": "0", "index": "0", "jobs-per-pod": "3", "pool": "cpu"}
    for template in templates_of(document["spec"]):
        if "container" in template:
            own = {tag: numbers.get(tag.rpartition(".")[2], "x")
                   for _, node in walk(template) if isinstance(node, str) for tag in tags(node)
                   if tag.startswith("inputs.parameters.")}  # fmt: skip
            container = template["container"]
            yield (
                template["name"],
                [substitute(word, values | own) for word in (*container["command"], *container["args"])],
            )


_command = functools.cache(lambda: typer.main.get_command(app))


@functools.cache
def parse(words: tuple[str, ...]) -> str | None:
    """Let the real command line parse a container's command; return what it says against it."""
    if words[:3] != ("python", "-m", "app"):
        return f"not our command: {words[:3]}"
    command, rest, context = _command(), list(words[3:]), None
    try:
        while True:
            context = command.make_context(command.name or "app", rest, parent=context)
            if not hasattr(command, "resolve_command"):
                return None
            if not (rest := [*context._protected_args, *context.args]):
                return None if command.invoke_without_command else f"{command.name}: no command is named"
            _, command, rest = command.resolve_command(context, rest)
    except typer.TyperException as error:
        return error.format_message()


def command_problems(document: Document, cluster: Cluster) -> Iterator[str]:
    """Commands that the real command line refuses."""
    try:
        for name, words in commands(document, cluster):
            if (message := parse(tuple(words))) is not None:
                yield f"{name}: {message}"
    except (UnknownTag, KeyError) as error:
        yield f"a command names {error}"
