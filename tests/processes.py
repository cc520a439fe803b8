"""Processes of `python -m app` to look at, stop and kill, without the seconds that importing torch takes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In the environment of a process:
SMALL = "BYOL_TEST_SMALL_NETWORK"  # its encoder is tests.small's
FORKED = "BYOL_TEST_FORKED_WORKERS"  # its workers are forked too, and not spawned, which is to import torch once more


class Process:
    """One forked ``python -m app …``, in a session of its own."""

    def __init__(self, launcher: Launcher, pid: int, log: Path) -> None:
        self._launcher, self.pid, self.log = launcher, pid, log

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        status: int | None = self._launcher.ask({"poll": self.pid})
        return status

    def wait(self, seconds: float = 600) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (status := self.poll()) is not None:
                return status
            time.sleep(0.02)
        raise TimeoutError(f"still running after {seconds} s:\n{self.text[-3000:]}")

    def until(self, *words: str, seconds: float = 300) -> None:
        """Wait for a line of its output with all of these words."""
        end = time.monotonic() + seconds
        while not any(all(word in line for word in words) for line in self.text.splitlines()):
            assert self.poll() is None, f"ended before it said {words}: {self.text[-3000:]}"
            assert time.monotonic() < end, f"has not said {words} in {seconds} s: {self.text[-3000:]}"
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def errors(self) -> list[str]:
        """Lines of its output that are no progress."""
        return [line for line in self.text.splitlines() if not line.startswith("{")]


class Launcher:
    """Forks processes; see launcher.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher"],
            cwd=ROOT,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, *args: str, environment: Mapping[str, str] | None = None, base: Mapping[str, str] = os.environ
    ) -> Process:
        """Start ``python -m app *args`` in a session of its own, with ``environment`` on top of ``base``."""
        log = self._folder / f"{secrets.token_hex(4)}.log"
        pid = self.ask({"run": list(args), "env": {**base, **(environment or {})}, "log": str(log)})
        return Process(self, pid, log)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
