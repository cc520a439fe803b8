"""What the tests of downstream jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.data import write_phantoms
from tests import small


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small data set; files of tests that need others draw their own."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, counts={"breastmnist": (32, 16, 16)})
    return root


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is a small one; where only what happens to it is looked at."""
    small.use(monkeypatch.setattr)
