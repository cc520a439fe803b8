"""Claims: one owner at a time, a dead one is taken over, a stale one writes no more."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.errors import InputError, Interrupted
from app.jobs import claims
from app.jobs.claims import Claim, LostClaim, claimed, live_owner
from app.storage import Store, open_store

JOB = "runs/r/pretrain/byol-s0"
KEY = f"{JOB}/claim.json"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    weed = request.getfixturevalue("s3_environment")
    return open_store(f"s3://{weed.bucket}/{secrets.token_hex(4)}")


@contextmanager
def claim_of(store: Store, **options: Any) -> Iterator[Claim | None]:
    settings = {"seconds": 30.0, "wait": 0.0, "done": lambda: False, "stopped": lambda: False, "warn": lambda _: None}
    with claimed(store, JOB, **(settings | options)) as claim:
        yield claim


def written(store: Store) -> dict[str, Any]:
    return json.loads(store.read(KEY))


def test_a_claim_is_held_renewed_and_released(store: Store) -> None:
    with claim_of(store) as claim:
        assert claim is not None
        first = written(store)
        assert (first["generation"], first["owner"]["pid"]) == (1, os.getpid())
        assert live_owner(store, JOB) == f"{os.getpid()}@{first['owner']['host']}"
        claim.confirm()
        assert written(store)["beat"] > first["beat"]
    assert written(store)["owner"] is None
    assert live_owner(store, JOB) is None
    with claim_of(store) as claim:
        assert claim is not None
        assert claim.generation == 2


def test_a_job_that_is_done_is_not_claimed(store: Store) -> None:
    with claim_of(store, done=lambda: True) as claim:
        assert claim is None
    assert not store.exists(KEY)


def test_the_second_gives_up_with_75_while_the_owner_lives(store: Store) -> None:
    said: list[str] = []
    with claim_of(store):
        begin = time.monotonic()
        with (
            pytest.raises(Interrupted, match=r"claimed by .*, which is alive") as caught,
            claim_of(store, wait=0.5, seconds=3.0, warn=said.append),
        ):
            pytest.fail("two owners")
        assert 0.4 < time.monotonic() - begin < 10
        assert caught.value.exit_code == 75
        assert len(said) == 1
        assert "waiting for its result" in said[0]


def test_the_second_finds_the_result_of_the_first(store: Store) -> None:
    finished = threading.Event()
    with claim_of(store):
        threading.Timer(0.5, finished.set).start()
        with claim_of(store, wait=60.0, seconds=3.0, done=finished.is_set) as claim:
            assert claim is None


def test_a_signal_ends_the_waiting(store: Store) -> None:
    stop = threading.Event()
    with claim_of(store):
        threading.Timer(0.3, stop.set).start()
        with (
            pytest.raises(Interrupted, match="stopped while waiting"),
            claim_of(store, wait=60.0, seconds=3.0, stopped=stop.is_set),
        ):
            pytest.fail("two owners")


def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners whose heartbeat does not beat, as those of a frozen machine, and that nobody can look up."""
    monkeypatch.setattr(Claim, "_beat", lambda self: None)
    monkeypatch.setattr(claims, "_is_dead", lambda owner: False)


def test_a_silent_owner_is_taken_over_and_writes_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    with claim_of(store, seconds=1.5) as stale:
        assert stale is not None
        with claim_of(store, seconds=1.5, wait=30.0) as claim:
            assert claim is not None
            assert claim.generation == stale.generation + 1
            for _ in range(2):
                with pytest.raises(LostClaim, match="another process has taken the job over") as caught:
                    stale.confirm()
            assert caught.value.exit_code == 75
            with pytest.raises(LostClaim):
                stale.check()
            claim.confirm()
    assert written(store)["generation"] == 2
    assert written(store)["owner"] is None


def test_the_heartbeat_keeps_an_owner_alive(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_is_dead", lambda owner: False)
    with (
        claim_of(store, seconds=3.0),
        pytest.raises(Interrupted, match="which is alive"),
        claim_of(store, seconds=3.0, wait=4.5),
    ):
        pytest.fail("two owners")


def test_the_heartbeat_finds_out_that_the_claim_is_lost(store: Store) -> None:
    with claim_of(store, seconds=0.6) as claim:
        assert claim is not None
        store.write(KEY, store.read(KEY).replace(b'"generation": 1', b'"generation": 9'))
        for _ in range(100):
            time.sleep(0.1)
            try:
                claim.check()
            except LostClaim:
                break
        else:
            pytest.fail("it never noticed")
    assert written(store)["generation"] == 9, "a lost claim is not released"


def test_of_many_that_find_a_dead_owner_one_takes_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    with claim_of(store, seconds=1.0):
        time.sleep(2.5)
        found = claims._read(store, JOB, exact_age=True)
        assert found is not None
        with ThreadPoolExecutor(16) as pool:
            wins = list(pool.map(lambda _: Claim(store, JOB, 2, 30.0).take(found[0]), range(16)))
    assert sum(wins) == 1


def test_a_process_that_died_here_is_taken_over_at_once(store: Store) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not say which process is which")
    code = (
        "import os, sys\n"
        "from app.jobs.claims import claimed\n"
        "from app.storage import open_store\n"
        "with claimed(open_store(sys.argv[1]), sys.argv[2], seconds=3000, wait=0,\n"
        "             done=lambda: False, stopped=lambda: False, warn=print):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.address, JOB], check=False)
    assert done.returncode == -9
    with claim_of(store) as claim:
        assert claim is not None
        assert claim.generation == 2


def test_a_process_of_the_same_number_is_another_one() -> None:
    this = claims._this_process()
    assert not claims._is_dead(this)
    assert claims._is_dead(this | {"started": "1"})
    assert not claims._is_dead(this | {"started": "1", "boot": "another machine"})
    assert not claims._is_dead(this | {"started": "1", "space": "pid:[1]"})


@pytest.fixture
def no_process() -> int:
    """The number of a process that was."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_process_that_ended_is_dead(no_process: int) -> None:
    this = claims._this_process()
    assert claims._is_dead(this | {"pid": no_process})
    assert claims._is_dead(this | {"pid": 10**400})
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # until it ends; nobody has waited for it
    deadline = time.monotonic() + 60
    while not claims._is_dead(this | {"pid": zombie.pid, "started": None}) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claims._is_dead(this | {"pid": zombie.pid, "started": None})
    zombie.wait()


@pytest.mark.parametrize("restricted", ["other users' files", "other users' folders"])
def test_a_live_owner_that_we_may_not_look_at_is_not_dead(
    monkeypatch: pytest.MonkeyPatch, no_process: int, restricted: str
) -> None:
    """As where /proc is mounted with hidepid=1, or 2, and the owner is another user."""
    this, read_text, kill = claims._this_process(), Path.read_text, os.kill
    other = os.getppid()

    def hidden(path: Path, *args: Any, **options: Any) -> str:
        if re.fullmatch(r"/proc/\d+/stat", str(path)) and str(os.getpid()) not in str(path):
            raise PermissionError(str(path)) if restricted.endswith("files") else FileNotFoundError(str(path))
        return read_text(path, *args, **options)

    def refused(pid: int, number: int) -> None:
        kill(pid, number)
        if pid != os.getpid():
            raise PermissionError("another user's")

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(os, "kill", refused)
    assert not claims._is_dead(this | {"pid": other, "started": "1"})
    assert claims._is_dead(this | {"pid": no_process})
    assert not claims._is_dead(this)


def test_generations_go_on_above_what_was_seen(store: Store) -> None:
    with claim_of(store, above=7) as claim:
        assert claim is not None
        assert claim.generation == 8


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b"{}", b'{"generation": 1, "owner": {}}', b'{"owner": null}', b"[" * 100_000]
)
def test_a_damaged_claim_is_said(store: Store, data: bytes) -> None:
    store.write(KEY, data)
    with pytest.raises(InputError, match=r"claim\.json: damaged, not a claim"), claim_of(store):
        pytest.fail("claimed")


def test_releasing_cannot_hang(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = 0.0
    with claim_of(store, release_within=lambda: 0.2):
        monkeypatch.setattr(store, "replace", lambda *_: time.sleep(20))
        begin = time.monotonic()
    assert time.monotonic() - begin < 15
