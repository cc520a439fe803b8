"""Starts `python -m app …` in forked processes: real ones, without the seconds that importing torch takes.

Reads one JSON command a line from standard input, answers each with one line: {"run": [args], "env": {…},
"log": path} → the process's number; {"poll": number} → its exit status, negative for a signal, or null. ``env`` is
the whole environment; with ``SMALL`` in it the encoder is a small stand-in with the ResNet's parts, and with ``FORKED``
the workers of a ``run --workers 2`` are forked.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
from typing import Any

import torch

from app import cli
from app.stages import downstream, pretrain, run, weights  # noqa: F401  (imported here, once, for every child)
from app.storage import s3
from tests import small
from tests.processes import FORKED, SMALL

if SMALL in os.environ:  # the workers of a `run --workers 2` are new processes, which import this anew
    small.use(setattr)


def child(command: dict[str, Any]) -> None:
    """Be the command; never comes back."""
    code = 70
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(command["env"])
        if SMALL in os.environ:
            small.use(setattr)
        if FORKED in os.environ:
            forking = multiprocessing.get_context("fork")
            multiprocessing.get_context = lambda method=None: forking
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(75))  # as in app/__main__.py
        sys.argv = ["app", *command["run"]]
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    s3.PART = 5 * 2**20  # the smallest that S3 allows, so that small checkpoints go in parts too
    for name in ("app.report", "boto3", "scipy.optimize", "sklearn.decomposition", "sklearn.metrics"):
        importlib.import_module(name)  # what a child loads when it comes to it; the workers that it spawns do so still
    statuses: dict[int, int | None] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "run" in command:
            pid = os.fork()
            if pid == 0:
                child(command)
            statuses[pid] = None
            print(pid, flush=True)
            continue
        pid = command["poll"]
        if statuses[pid] is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps(statuses[pid]), flush=True)
    for pid in [pid for pid, status in statuses.items() if status is None]:  # nobody waits for them any more
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
