"""Jobs that are killed, stopped, cut off and raced: they end with the very tensors of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load

from app.storage import FolderStore, S3Store, Store
from tests.chaos.conftest import FOLDER, FULL, STUDY, Place, Process, encoder, verify
from tests.processes import SMALL
from tests.servers import SECRET, Proxy

ROUNDS = 20 if FULL else 6
# Three steps an epoch, a checkpoint of some 6 MB, in two parts, every 10
STEPS = 450 if FULL else 180
EPOCHS = f"pretrain.epochs={STEPS // 3}"
LONG = (EPOCHS, "runtime.checkpoint_steps=10")
LONGER = ("pretrain.epochs=200", "runtime.checkpoint_steps=10")  # where it must not be done before something comes


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def resumed_at(process: Process) -> int:
    """The step at which a process went on; 0 for a fresh start."""
    found = re.search(r"continues at step (\d+)", process.text)
    return int(found[1]) if found else 0


class Trigger:
    """Sends a signal to a process when the proxy sees what it waits for, for the ``count``-th time."""

    PATTERNS: ClassVar[dict[str, str]] = {
        "upload": r"PUT .*/checkpoints/",
        "part": r"PUT .*/checkpoints/.*partNumber=2",
        "complete": r"POST .*/checkpoints/.*uploadId",
        "pointer": r"PUT .*/latest\.json",
        "publish": r"PUT .*/(encoder\.safetensors|curves\.jsonl)",
        "record": r"PUT .*/record\.json",
    }

    def __init__(self, proxy: Proxy, moment: str, count: int, delay: float) -> None:
        self.fired, self._delay = threading.Event(), delay
        pattern, left = re.compile(self.PATTERNS.get(moment, self.PATTERNS["pointer"])), [count]

        def watch(line: str) -> None:
            if pattern.match(line):
                left[0] -= 1
                if left[0] == 0:
                    self.fired.set()

        proxy.watch = watch

    def wait(self, process: Process) -> bool:
        """Whether the moment came before the process ended."""
        while not self.fired.wait(0.01):
            if process.poll() is not None:
                return False
        time.sleep(self._delay)
        return True


def moments(rounds: int, dice: random.Random) -> list[tuple[str, int, float]]:
    """When to strike: at random times after a checkpoint, within uploads, at the pointer, at the end in publishing."""
    # A record may arrive although its writer was killed, and then the job is done: that one comes last.
    last = ["publish"] * (rounds // 6) + ["record"]
    kinds = ["random", "upload", "part", "pointer", "random", "complete"]
    middle = [kinds[i % len(kinds)] for i in range(rounds - len(last))]
    chosen = [(kind, dice.randint(1, 2), dice.uniform(0, 0.4) if kind == "random" else 0.0) for kind in middle]
    # In publishing the job is past its last checkpoint: it comes back to the same point each time.
    return chosen + [(kind, 1, 0.0) for kind in last]


@pytest.mark.slow
def test_kill_9_at_random_moments(place: Place, reference, capsys) -> None:
    expected = reference(EPOCHS)
    resumes, struck = [], []
    for moment, count, delay in moments(ROUNDS, random.Random(1)):
        trigger = Trigger(place.proxy, moment, count, delay)
        process = place.pretrain(*LONG)
        assert trigger.wait(process), f"ended before {moment}: {process.text[-2000:]}"
        process.kill(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        resumes.append(resumed_at(process))
        struck.append(moment)
    place.proxy.watch = lambda line: None
    last = place.pretrain(*LONG)
    assert last.wait() == 0, last.text
    if "already done" not in last.text:
        resumes.append(resumed_at(last))
    with capsys.disabled():
        print(f"\nkill -9: {len(struck)} times, at {', '.join(struck)}; went on at steps {resumes}")
    assert sum(step > 0 for step in resumes) >= (15 if FULL else ROUNDS // 2)
    assert {"publish", "record", "upload"} <= set(struck)
    assert equal(encoder(place.store), expected)
    verify(place.store)
    assert not list(place.store.list(f"{FOLDER}/checkpoints"))


def results(store: Store, run_id: str) -> dict[str, Any]:
    """What each job of a run has published: tensors (their headers name the run), predictions and metrics."""
    found: dict[str, Any] = {}
    for key in store.list(f"runs/{run_id}"):
        folder, _, name = key.removeprefix(f"runs/{run_id}/").rpartition("/")
        if name.endswith(".safetensors") and not folder.startswith("encoders"):
            found[f"{folder}/{name}"] = {k: t.numpy().tobytes() for k, t in load(store.read(key)).items()}
        elif name.endswith("predictions.csv"):
            found[f"{folder}/{name}"] = store.read(key)
        elif name == "record.json":
            found[folder] = json.loads(store.read(key)).get("metrics")
    return found


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="`make chaos` does")
@pytest.mark.parametrize("where", ["s3", "folder"])
def test_kill_9_throughout_a_study(place: Place, phantoms: Path, tmp_path: Path, capsys, where: str) -> None:
    """Fifty kills, whatever the study is doing then: planning, pretraining, any protocol, the report."""
    uri, store = (place.uri, place.store) if where == "s3" else (str(tmp_path), FolderStore(tmp_path))
    settings = ["pretrain.epochs=30", "runtime.checkpoint_steps=10", "runtime.claim_seconds=3"]
    settings.append("study.protocols=[finetune,linear_probe,few_shot,few_shot_frozen]")
    options = ["--data-root", str(phantoms), *STUDY, *(word for setting in settings for word in ("--set", setting))]
    environment = place.environment | {SMALL: "1"}

    def start(run_id: str) -> Process:
        return place.launcher.start("run", "--store", uri, "--run-id", run_id, *options, environment=environment)

    whole = start("whole")
    assert whole.wait() == 0, whole.text
    said, dice, kills, studies = len(whole.text.splitlines()), random.Random(3), 0, 0
    expected = results(store, "whole")
    assert len([folder for folder in expected if folder.endswith("s0")]) == 1 + 2 * 4
    while kills < 50:
        process = start(f"r{studies}")
        lines, delay = dice.randrange(said), dice.uniform(0, 0.3)  # a moment in its work, however fast that goes
        while process.poll() is None and len(process.text.splitlines()) < lines:
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            process.kill(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
            continue
        assert process.wait() == 0, process.text  # it was done before the moment came
        assert results(store, f"r{studies}") == expected
        studies += 1
    last = start(f"r{studies}")
    assert last.wait() == 0, last.text
    assert results(store, f"r{studies}") == expected
    verify(store)
    with capsys.disabled():
        print(f"\nkill -9 throughout a study, {where}: {kills} times over {studies + 1} studies")


@pytest.mark.slow
def test_sigterm_at_random_moments(place: Place, reference, capsys) -> None:
    expected = reference(EPOCHS)
    dice, times, resumes = random.Random(2), [], []
    for _ in range(20 if FULL else 4):
        trigger = Trigger(place.proxy, "random", 1, dice.uniform(0, 0.3 if FULL else 0.2))
        process = place.pretrain(*LONG)
        assert trigger.wait(process), process.text[-2000:]
        begin = time.monotonic()
        process.kill(signal.SIGTERM)
        status = process.wait()
        times.append(time.monotonic() - begin)
        resumes.append(resumed_at(process))
        assert status == 75, process.text[-2000:]
        assert re.search(rf"error: SIGTERM: stopped at step \d+ of {STEPS} with a checkpoint", process.text)
    place.proxy.watch = lambda line: None
    last = place.pretrain(*LONG)
    assert last.wait() == 0, last.text
    with capsys.disabled():
        shown = " ".join(f"{seconds:.2f}" for seconds in times)
        print(
            f"\nSIGTERM: {len(times)} times 75; seconds from the signal to the exit: {shown} (at most {max(times):.2f})"
        )
    assert max(times) < 10
    assert all(later > earlier for earlier, later in pairwise(resumes)), resumes
    assert equal(encoder(place.store), expected)
    verify(place.store)


def test_faults_come_in_turn() -> None:
    """None is left to chance, and none comes to a request that could not show it."""
    proxy = Proxy("http://127.0.0.1:1", faults=Proxy.FAULTS, share=0.1)
    try:
        for _ in range(100):
            for method, path in [("HEAD", "/b/k"), ("PUT", "/b/k"), ("GET", "/b?list-type=2"), ("GET", "/b/k")]:
                proxy._fault(method, path, 5 if method == "PUT" else 0)
    finally:
        proxy.close()
    assert set(proxy.done) == set(Proxy.FAULTS)
    assert max(proxy.done.values()) - min(proxy.done.values()) <= 1
    assert 30 <= sum(proxy.done.values()) <= 40


@pytest.mark.slow
def test_a_faulty_network(place: Place, reference, phantoms: Path, capsys) -> None:
    """About one request in ten goes wrong, one way after the other; the whole study comes through."""
    busy = (EPOCHS, "runtime.checkpoint_steps=3", "runtime.claim_seconds=3")
    expected = reference(EPOCHS)
    place.proxy.faults, place.proxy.share = Proxy.FAULTS, 0.1
    options = [word for setting in busy for word in ("--set", setting)]
    process = place.start("run", "--run-id", "r", "--data-root", str(phantoms), *STUDY, *options)
    assert process.wait() == 0, process.text[-4000:]
    done = {fault: count for fault, count in place.proxy.done.items() if count}
    with capsys.disabled():
        print(f"\nfaults in {len(place.proxy.seen)} requests: {done}")
    assert sum(done.values()) >= 15
    assert len(done) == len(Proxy.FAULTS), "of every kind"
    assert verify(place.store) > 10
    assert equal(encoder(place.store), expected)
    assert place.store.exists("runs/r/report/index.html")
    assert "Traceback" not in process.text


@pytest.mark.slow
def test_the_server_is_gone_for_a_while(place: Place, reference, capsys) -> None:
    expected = reference(EPOCHS)
    trigger = Trigger(place.proxy, "upload", 2, 0.0)
    process = place.pretrain(*LONG)
    assert trigger.wait(process), process.text
    place.weed.stop()
    away = 30 if FULL else 5
    time.sleep(away)
    assert process.poll() is None, process.text
    place.weed.start()
    assert process.wait() == 0, process.text
    with capsys.disabled():
        print(f"\nserver gone for {away} s: the run completed")
    assert equal(encoder(place.store), expected)
    verify(place.store)


def test_the_server_is_gone_when_the_signal_comes(place: Place) -> None:
    trigger = Trigger(place.proxy, "upload", 2, 0.0)
    process = place.pretrain(*LONGER, "runtime.grace_seconds=6")
    assert trigger.wait(process), process.text
    place.weed.stop()
    try:
        time.sleep(1)
        begin = time.monotonic()
        process.kill(signal.SIGTERM)
        assert process.wait() == 69, process.text
        assert time.monotonic() - begin < 8
    finally:
        place.weed.start()
    assert len([line for line in process.errors if line.startswith("error: SIGTERM")]) == 1
    process = place.pretrain(LONGER[0], "runtime.checkpoint_steps=100")
    assert process.wait() == 0, process.text


def test_a_wrong_secret(place: Place) -> None:
    begin = time.monotonic()
    process = place.pretrain(environment={"AWS_SECRET_ACCESS_KEY": "wrong-secret"})
    assert process.wait() == 2
    assert time.monotonic() - begin < 30
    assert len(process.errors) == 1
    assert "the server refuses the credentials" in process.errors[0] or "no permission (403)" in process.errors[0]
    assert "wrong-secret" not in process.text
    assert SECRET not in process.text
    assert len(place.proxy.seen) <= 2, "no retry storm"


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(10 if FULL else 1))
@pytest.mark.parametrize("kill_the_owner", [False, True])
def test_sixteen_copies_of_one_job(place: Place, reference, capsys, kill_the_owner: bool, turn: int) -> None:
    copies = 16 if FULL else 4
    expected = reference(EPOCHS)
    waiting = (*LONG, "runtime.claim_wait_minutes=10")
    trigger = Trigger(place.proxy, "pointer", 3, 0.0)
    processes = [place.pretrain(*waiting) for _ in range(copies)]
    killed = None
    if kill_the_owner:
        assert trigger.fired.wait(300)
        killed = json.loads(place.store.read(f"{FOLDER}/claim.json"))["owner"]["pid"]
        os.kill(killed, signal.SIGKILL)
    statuses = {process.pid: process.wait() for process in processes}
    codes = sorted(status for pid, status in statuses.items() if pid != killed)
    trained = [p for p in processes if f'"done": {STEPS}' in p.text]
    with capsys.disabled():
        print(f"\n{copies} copies: exit codes {codes}, owner killed: {kill_the_owner}")
    assert set(codes) <= {0, 75}
    assert codes.count(0) >= 1
    assert len(trained) == 1, "one did the work"
    for process in processes:
        if statuses[process.pid] == 0:
            assert "byol-s0/encoder.safetensors" in process.text
    assert equal(encoder(place.store), expected)
    verify(place.store)
    if kill_the_owner:
        generation = json.loads(place.store.read(f"{FOLDER}/claim.json"))["generation"]
        assert statuses[killed] == -signal.SIGKILL
        assert generation >= 2
        assert resumed_at(trained[0]) > 0
    assert isinstance(place.store, S3Store)


def test_a_copy_that_does_not_want_to_wait_ends_with_75(place: Place) -> None:
    trigger = Trigger(place.proxy, "pointer", 1, 0.0)
    first = place.pretrain(*LONGER)
    assert trigger.wait(first)
    second = place.pretrain(*LONGER, "runtime.claim_wait_minutes=0")
    assert second.wait() == 75
    assert f"claimed by {first.pid}@" in second.errors[0]
    assert first.poll() is None
    first.kill(signal.SIGKILL)
    first.wait()
