"""The log of `make cluster-test` as a table, for k8s/README.md."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest

results: list[tuple[str, str, float, str]] = []


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "cluster/live" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        name = report.nodeid.rpartition("::")[2]
        results.append((name, report.outcome, report.duration, report.capstdout.strip().replace("\n", "; ")))


def _version(*command: str) -> Any:
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not results or os.environ.get("CLUSTER_TEST") != "1":
        return
    kubernetes = _version("kubectl", "version", "-o", "json")["serverVersion"]["gitVersion"]
    argo = _version("kubectl", "-n", "argo", "get", "deployment", "workflow-controller", "-o", "json")
    image = argo["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True
    )
    terminalreporter.section("for k8s/README.md")
    where = f"Kubernetes {kubernetes}, Argo {image}, {os.cpu_count()} cores"
    terminalreporter.line(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.decode().strip()}, {where}")
    terminalreporter.line("| test | result | s | |")
    terminalreporter.line("| :-- | :-- | --: | :-- |")
    for name, outcome, seconds, said in results:
        words = name.removeprefix("test_").replace("_", " ")
        terminalreporter.line(f"| {words} | {outcome} | {seconds:.0f} | {said} |")
