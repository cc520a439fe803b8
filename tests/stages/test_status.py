"""How a workflow ended is published, and told to whoever wants to know."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.storage import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


class Webhook:
    """A server that keeps what it is told, and answers a status."""

    def __init__(self, answer: int) -> None:
        self.told: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                self.told.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
                handler.send_response(answer)
                handler.end_headers()

            def log_message(handler, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/token-of-ours"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def end(store: FolderStore, monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    monkeypatch.setenv("BYOL_WEBHOOK", url)
    failures = json.dumps(json.dumps([{"displayName": "pretrain(0)", "message": "OOMKilled (exit code 137)"}]))
    words = ["--workflow", "study-w", "--phase", "Failed", "--failures", failures, "--store", store.uri]
    return CliRunner().invoke(app, ["status", *words])


def test_a_webhook_is_told_how_a_study_ended(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = Webhook(200)
    result = end(store, monkeypatch, webhook.url)
    webhook.close()
    assert result.exit_code == 0
    [told] = webhook.told
    assert told["text"] == "study-w: Failed, 0 of 0 jobs done\npretrain(0): OOMKilled (exit code 137)"
    assert told["status"] == json.loads(store.read("workflows/study-w.json"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "it answers 404 Not Found"),
        ("http://127.0.0.1:1/token-of-ours", "Connection refused"),
        ("http://127.0.0.1:99999/token-of-ours", ""),
        ("http://127.0.0.1:1/token-of-ours with a space", "InvalidURL"),
        ("token-of-ours", "no http"),
        ("file:///token-of-ours", "no http"),
        ("", None),
    ],
)
def test_a_webhook_that_cannot_be_told_costs_nothing(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, url: str | None, reason: str | None
) -> None:
    """And its URL, which is a secret, is not shown."""
    webhook = Webhook(404)
    result = end(store, monkeypatch, webhook.url if url is None else url)
    webhook.close()
    assert result.exit_code == 0
    assert json.loads(store.read("workflows/study-w.json"))["phase"] == "Failed"
    assert ("warning: BYOL_WEBHOOK was not told: " in result.stderr) == (reason is not None)
    assert (reason or "") in result.stderr
    assert "token-of-ours" not in result.output + result.stderr
