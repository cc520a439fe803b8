"""The shipped YAML: read strictly, rendered by kustomize."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ("workflows/full.yaml", "workflows/smoke.yaml", "workflows/templates/full.yaml",
             "workflows/templates/smoke.yaml", "workflows/cron.yaml")  # fmt: skip
Document = dict[str, Any]


class StrictLoader(yaml.CSafeLoader):
    """A loader that rejects a key which appears twice; Kubernetes would silently take the last one."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"keys appear twice: {sorted(twice)}", node.start_mark)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(text: str) -> list[Document]:
    """Read all documents of a YAML text; aliases become copies of their own."""
    return [json.loads(json.dumps(document)) for document in yaml.load_all(text, StrictLoader)]


def strict_json(text: str) -> Any:
    """Read JSON and reject a key that appears twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            raise ValueError(f"keys appear twice in {items}")
        return dict(items)

    return json.loads(text, object_pairs_hook=pairs)


def shipped(root: Path = ROOT) -> dict[str, list[Document]]:
    """Every YAML file of ``workflows/`` and ``k8s/``, by its path."""
    paths = sorted([*(root / "workflows").rglob("*.yaml"), *(root / "k8s").rglob("*.yaml")])
    return {path.relative_to(root).as_posix(): load(path.read_text("utf-8")) for path in paths}


def tool(name: str) -> str:
    """Path of a command-line tool: beside this Python, or anywhere; the test is skipped without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def render(folder: Path) -> list[Document]:
    """Return what ``kubectl kustomize`` makes of a folder; raises ``CalledProcessError`` if it refuses."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    return load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
