"""Schemas with every unknown field an error: Argo's CRDs (or Hera without them), and Kubernetes' own."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.cluster.documents import Document

VERSIONS = ("1.34", "1.35", "1.36")
METADATA = {"name", "generateName", "namespace", "labels", "annotations"}
KINDS = {"Workflow": "workflows", "WorkflowTemplate": "workflowtemplates", "CronWorkflow": "cronworkflows"}
# Argo 4.0 has none of these; its CRDs of 4.1 do.
TOO_NEW = {"pendingTimeout", "podResources", "resourceClaims", "addressingStyle"}


def crds() -> Path | None:
    """Folder of Argo's full CRDs, if the environment names one."""
    folder = os.environ.get("ARGO_CRDS")
    return Path(folder) if folder else None


def _closed(schema: Any) -> Any:
    """Make an OpenAPI schema refuse unknown fields, except where it says that it knows none."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key not in ("description", "default")}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {
            name: _closed(value) for name, value in schema["properties"].items() if name not in TOO_NEW
        }
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    return closed


@functools.cache
def _crd_validator(kind: str, folder: Path) -> jsonschema.Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((folder / f"argoproj.io_{KINDS[kind]}.yaml").read_text("utf-8"), loader)
    schema = _closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {key: {} for key in METADATA},
        "additionalProperties": False,
    }
    return jsonschema.Draft202012Validator(schema)


def argo_problems(document: Document, folder: Path | None) -> list[str]:
    """What is wrong with a Workflow, WorkflowTemplate or CronWorkflow by its schema."""
    return list(_argo_problems(json.dumps(document), folder))


@functools.lru_cache(64)
def _argo_problems(text: str, folder: Path | None) -> list[str]:
    document = json.loads(text)
    kind = document.get("kind")
    if kind not in KINDS or document.get("apiVersion") != "argoproj.io/v1alpha1":
        return [f"kind {kind} of {document.get('apiVersion')} is none of Argo's"]
    if folder is not None:
        errors = _crd_validator(kind, folder).iter_errors(document)
        return [f"{error.json_path}: {error.message[:200]}" for error in errors]
    return _lost_by_hera(document)


def _lost_by_hera(document: Document) -> list[str]:
    """Parse into Hera's models and dump again: a field that does not come back is unknown to Argo."""
    from hera.workflows import models

    try:
        dumped = getattr(models, document["kind"]).model_validate(document)
    except ValueError as error:
        return [str(error)[:200]]
    back = json.loads(dumped.model_dump_json(by_alias=True, exclude_unset=True))
    return [f"{path}: unknown to Argo" for path in _lost(document, back, "$")]


def _lost(ours: Any, back: Any, path: str) -> list[str]:
    if isinstance(ours, dict):
        if not isinstance(back, dict):
            return [path]
        return [
            line
            for key, value in ours.items()
            for line in (_lost(value, back[key], f"{path}.{key}") if key in back else [f"{path}.{key}"])
        ]
    if isinstance(ours, list):
        if not isinstance(back, list) or len(back) != len(ours):
            return [path]
        return [line for n, (a, b) in enumerate(zip(ours, back, strict=True)) for line in _lost(a, b, f"{path}[{n}]")]
    return []


@functools.cache
def _kubernetes_validator(kind: str, api_version: str, version: str) -> jsonschema.Draft202012Validator:
    group, _, name = api_version.rpartition("/")
    api = f"{group.split('.')[0]}-{name}" if group else name
    folder = f"kubernetes-json-schema/v{_exact(version)}-local-strict"
    schema = schema_contents(f"{folder}/{kind.lower()}-{api}.json", version)
    definitions = schema_contents(f"{folder}/_definitions.json", version)
    registry = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _exact(version: str) -> str:
    from kubernetes_validate.utils import all_versions, major_minor

    return str([known for known in all_versions() if major_minor(known) <= major_minor(version)][-1])


def kubernetes_problems(document: Document, version: str = VERSIONS[-1]) -> list[str]:
    """What is wrong with a Kubernetes object by the strict schemas that ``kubernetes-validate`` brings."""
    return list(_kubernetes_problems(json.dumps(document), version))


@functools.lru_cache(4096)
def _kubernetes_problems(text: str, version: str) -> list[str]:
    document = json.loads(text)
    try:
        validator = _kubernetes_validator(document["kind"], document["apiVersion"], version)
    except (FileNotFoundError, KeyError, IndexError):
        return [f"no kind {document.get('kind')} in {document.get('apiVersion')}"]
    problems = [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]
    unknown = set(document.get("metadata", {})) - METADATA
    return problems + [f"$.metadata: {sorted(unknown)} is for the server to set" for _ in [0] if unknown]
