"""The linters of every kind of file that we ship beside Python; exceptions are explained in their configuration."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.checks import EXAMPLE, OVERLAYS, workspace
from tests.cluster.documents import ROOT, render, tool

SHELL = [".ci/run", "tests/cluster/node/cluster.sh"]


def run(*command: str) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_yamllint_is_content() -> None:
    run(tool("yamllint"), "--strict", "workflows", "k8s", ".checkov.yaml", ".github")


def test_hadolint_is_content() -> None:
    run(tool("hadolint"), "Dockerfile")


def test_shellcheck_is_content(tmp_path: Path) -> None:
    run(tool("shellcheck"), *SHELL)
    # Recipes of several lines are shell as well: make's own view of them, with its variables written out.
    text = run("make", "-n", "local-run", "submit", "IMAGE=byol-med:0", "STORE=runs", "VENV=.venv")
    script = tmp_path / "recipes.sh"
    script.write_text("#!/bin/sh\n" + re.sub(r"(?m)^make(\[\d+\])?: .*\n", "", text))
    run(tool("shellcheck"), str(script))


def test_every_exception_is_explained() -> None:
    for reason in re.findall(r"^\s+- CKV_\w+(.*)$", (ROOT / ".checkov.yaml").read_text("utf-8"), re.MULTILINE):
        assert reason.strip().startswith("# "), f".checkov.yaml: {reason}"
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        assert not line.startswith("# hadolint ignore") or above.startswith("# "), f"Dockerfile: {line}"


@pytest.mark.slow
def test_checkov_is_content(tmp_path: Path) -> None:
    """checkov pins its own versions of our dependencies: it lives outside .venv, found by CHECKOV or on PATH.

    The objects are looked at as kustomize renders them, since that is what a cluster gets.
    """
    program = os.environ.get("CHECKOV") or tool("checkov")
    run(program, "--config-file", ".checkov.yaml", "--skip-download", "--file", "Dockerfile")
    root = workspace(tmp_path / "work")
    rendered = tmp_path / "rendered"
    rendered.mkdir()
    for overlay in OVERLAYS:
        (rendered / f"{Path(overlay).name}.yaml").write_text(yaml.safe_dump_all(render(root / overlay)))
    run(program, "--config-file", ".checkov.yaml", "--skip-download", "--directory", str(rendered))
    run(program, "--config-file", ".checkov.yaml", "--skip-download", "--file", EXAMPLE)
    run(program, "--config-file", ".checkov.yaml", "--skip-download", "--directory", "workflows")
