"""Runs whose report several modules of tests look at."""

from __future__ import annotations

from typing import Any

from app.stages.report import run as write_report
from tests.report.test_report import RUN, FakeRun
from tests.report.test_robustness_table import judge
from tests.report.test_subgroups import grouped

PROTOCOLS = ("finetune", "linear_probe", "few_shot", "few_shot_frozen")
OWN: dict[str, dict[str, Any]] = {
    "lesions": {
        "title": "lesions", "modality": "not stated", "task": "binary-class", "labels": ("class 0", "class 1"),
        "test": (30, 40), "licence": "not stated",
    }
}  # fmt: skip


def written(**changes: Any) -> FakeRun:
    run = FakeRun(**({"shrink": 12, "draws": 2, "seeds": (0, 1)} | changes)).write()
    if run.clinical:
        judge(run)
        grouped(run)
    run.summary = write_report(run.store, RUN)
    return run
