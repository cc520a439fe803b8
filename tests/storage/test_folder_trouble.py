"""Folders on file systems that lack something, or fail half-way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from pathlib import Path

import pytest

from app.errors import StorageError, UsageError
from app.jobs.claims import claimed
from app.storage import FolderStore, Patience, sha256
from app.storage import folder as folder_module

PASSING = [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ETIMEDOUT]
LACKING = sorted(folder_module.UNABLE)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store", Patience(20))


def failing(monkeypatch: pytest.MonkeyPatch, target: object, name: str, number: int, *, when, times: int) -> list[int]:
    """Make a function fail, after or before its work, the first ``times`` times; return the list of failures."""
    real, done = getattr(target, name), []

    def function(*args, **options):
        hit = when(*args) and len(done) < times
        if hit:
            done.append(1)
        if hit and name != "replace":
            raise OSError(number, os.strerror(number))
        result = real(*args, **options)
        if hit:  # the rename was carried out, and its answer was lost on the way from the file server
            raise OSError(number, os.strerror(number))
        return result

    monkeypatch.setattr(target, name, function)
    return done


def is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("where", ["flush of the folder", "answer of the rename", "removal of the lock"])
def test_a_swap_that_succeeded_and_failed_is_recognised_as_ones_own(store, monkeypatch, where, number) -> None:
    first = store.create("job/claim", b"zero")
    target, name, test = {
        "flush of the folder": (os, "fsync", is_folder),
        "answer of the rename": (Path, "replace", lambda path, *_: path.name.endswith("-claim")),
        "removal of the lock": (Path, "unlink", lambda path: "lock-" in path.name),
    }[where]
    failures = failing(monkeypatch, target, name, number, when=test, times=2)
    assert store.replace("job/claim", b"one", first) == sha256(b"one")
    assert failures, "the fault was met"
    monkeypatch.undo()
    assert store.read("job/claim") == b"one"
    assert [path.name for path in (store.root / "job").iterdir()] == ["claim"]
    assert store.replace("job/claim", b"two", first) is None, "what was replaced stays replaced"


def test_the_same_bytes_of_a_rival_are_not_ones_own(store) -> None:
    assert store.create("claim", b"the same") is not None
    assert store.create("claim", b"the same") is None


def test_a_job_does_not_wait_for_its_own_claim(store, monkeypatch) -> None:
    failing(monkeypatch, os, "fsync", errno.EIO, when=is_folder, times=1)
    begin, said = time.monotonic(), []
    with claimed(
        store, "job", done=lambda: False, stopped=lambda: False, warn=said.append, seconds=30, wait=0
    ) as claim:
        assert claim is not None
        assert claim.generation == 1
        claim.confirm()
    assert time.monotonic() - begin < 10
    assert said == []
    assert json.loads(store.read("job/claim.json"))["owner"] is None


@pytest.mark.parametrize("number", LACKING)
def test_a_file_system_that_cannot_flush_a_folder_will_do(store, monkeypatch, number) -> None:
    failures = failing(monkeypatch, os, "fsync", number, when=is_folder, times=10**6)
    store.write("a", b"1")
    version = store.create("b", b"2")
    assert version is not None
    assert store.replace("b", b"3", version)
    assert failures
    assert (store.read("a"), store.read("b")) == (b"1", b"3")


@pytest.mark.parametrize("number", [*LACKING, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_at_once(store, monkeypatch, number) -> None:
    monkeypatch.setattr(folder_module, "_locks_work", False)
    failing(monkeypatch, fcntl, "flock", number, when=lambda *_: True, times=10**6)
    monkeypatch.setattr(Patience, "left", lambda *_: pytest.fail("it is tried again"))
    with pytest.raises(UsageError, match=r"has no locks .*mount it with them .*or choose another --store") as caught:
        store.create("runs/r/claim.json", b"")
    assert caught.value.exit_code == 2
    store.write("a", b"what needs no lock is written")


def test_a_lock_service_that_restarts_is_waited_for(store, monkeypatch) -> None:
    store.create("a", b"")
    failing(monkeypatch, fcntl, "flock", errno.ENOLCK, when=lambda *_: True, times=2)
    assert store.create("b", b"") is not None


@pytest.mark.parametrize(
    "number",
    [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ELOOP, errno.EILSEQ, errno.EFBIG, errno.EMFILE, errno.EROFS,
     errno.EMLINK, errno.ENAMETOOLONG, errno.EKEYEXPIRED],
)  # fmt: skip
def test_what_cannot_pass_is_not_tried_again(store, monkeypatch, number) -> None:
    failures = failing(monkeypatch, Path, "mkdir", number, when=lambda *_: True, times=10**6)
    with pytest.raises(UsageError) as caught:
        store.write("runs/a", b"")
    assert len(failures) == 1
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value), "a remedy"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOSPC, errno.EDQUOT, errno.EBUSY])
def test_what_may_pass_is_tried_again(store, monkeypatch, number) -> None:
    failures = failing(monkeypatch, Path, "mkdir", number, when=lambda *_: True, times=2)
    store.write("runs/a", b"1")
    assert len(failures) == 2
    store.patience.seconds = 0.3
    failing(monkeypatch, Path, "mkdir", number, when=lambda *_: True, times=10**6)
    with pytest.raises(StorageError, match="run the same command again"):
        store.write("runs/b", b"1")
