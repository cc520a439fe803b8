"""Starts `python -m app …` in forked processes: real ones, without the seconds that importing torch takes.

Reads one JSON command a line from standard input, answers each with one line: {"run": [args], "env": {…},
"log": path} → the process's number; {"poll": number} → its exit status, negative for a signal, or null.

The encoder is a small stand-in with the ResNet's parts: what survives is looked at here, not what it learns.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from app import cli
from app.stages import downstream, pretrain, run, weights  # noqa: F401  (imported here, once, for every child)
from app.storage import s3
from tests import small


def child(command: dict[str, Any]) -> None:
    """Be the command; never comes back."""
    code = 70
    try:
        os.environ.update(command["env"])
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))  # as in app/__main__.py
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
    small.use(setattr)
    s3.PART = 5 * 2**20  # the smallest that S3 allows, so that small checkpoints go in parts too
    import boto3
    import kornia
    import sklearn.metrics  # noqa: F401

    assert boto3
    assert kornia
    statuses: dict[int, int] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "run" in command:
            pid = os.fork()
            if pid == 0:
                child(command)
            print(pid, flush=True)
            continue
        pid = command["poll"]
        if pid not in statuses:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps(statuses.get(pid)), flush=True)


if __name__ == "__main__":
    main()
