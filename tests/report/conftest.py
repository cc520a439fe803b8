"""Runs that are written once for all tests of the report."""

from __future__ import annotations

import pytest

from tests.report.runs import OWN, PROTOCOLS, written
from tests.report.test_report import FakeRun


@pytest.fixture(scope="session")
def widest() -> FakeRun:
    """As much as a report can be asked to show beside each other."""
    return written(
        methods=("random", "imagenet", "byol", "byol_plus"), protocols=PROTOCOLS, clinical=True, curve=("1", "5", "50")
    )


@pytest.fixture(scope="session")
def own() -> FakeRun:
    return written(datasets=OWN, protocols=("finetune", "few_shot"), clinical=True, curve=("1", "5", "50"))
