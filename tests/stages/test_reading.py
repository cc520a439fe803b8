"""Whoever looks writes nothing: another user's store and a read-only mount can be listed and reported."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app.jobs.claims import claimed
from app.stages.status import announce
from app.storage import FolderStore
from tests.checkpoints import save_checkpoint
from tests.report.test_report import RUN, FakeRun


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FolderStore]:
    """A run with jobs that are done, one that is running, one with a checkpoint, and a workflow."""
    store = FolderStore(tmp_path / "store")
    run = FakeRun(store=store, methods=("random", "byol"), protocols=("finetune",), seeds=(0, 1), shrink=40)
    run.datasets = {"breastmnist": run.datasets["breastmnist"]}
    run.write()
    store.delete(f"runs/{RUN}/pretrain/byol-s1/record.json")
    announce(store, "w", RUN)
    save_checkpoint(store, f"runs/{RUN}/pretrain/byol-s1", 7, {"w": torch.ones(1)}, keep=1)
    with claimed(
        store, f"runs/{RUN}/pretrain/byol-s1", done=bool, stopped=bool, warn=print, seconds=600, wait=0
    ):  # fmt: skip
        yield store


def tree(root: Path) -> dict[str, int]:
    """When each file and folder was changed: a folder is, by a file that was made there and is gone again."""
    return {str(path): path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let every attempt to write below ``root`` fail as on a read-only mount, which does not spare root either."""

    def refuse(event: str, args: tuple[object, ...]) -> None:
        if not active:
            return
        paths = [str(value) for value in args[:2] if isinstance(value, (str, Path))]
        inside = any(path.startswith(str(root)) for path in paths)
        if inside and (
            event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
            or (event == "open" and int(args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        ):  # fmt: skip
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    active = True
    sys.addaudithook(refuse)  # it stays for good, and does nothing once ``active`` is false
    try:
        yield
    finally:
        active = False


def test_a_read_only_folder_refuses() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with read_only(root):
            for write in (lambda: (root / "a").write_text("a"), lambda: (root / "b").mkdir()):
                with pytest.raises(OSError, match="Read-only file system"):
                    write()
        (root / "a").write_text("a")


def test_listing_changes_nothing(store, call):
    before = tree(store.root)
    with read_only(store.root):
        code, out, err = call("ls", "--store", store.root, "--run-id", RUN)
    assert code == 0, err
    assert "running  pretrain/byol-s1  by" in out
    assert "(step 7 saved)" in out
    with read_only(store.root):
        assert call("ls", "--store", store.root)[0] == 0
    assert tree(store.root) == before


def test_a_report_goes_elsewhere_if_the_store_cannot_be_written(store, call, tmp_path):
    store.delete(f"runs/{RUN}/report/index.html")
    before = tree(store.root)
    with read_only(store.root):
        code, out, err = call("report", "--store", store.root, "--run-id", RUN, "--out", tmp_path / "page")
    assert code == 66, "a job is missing, and said to be"
    assert f"report: {tmp_path}/page/index.html" in out
    assert "BreastMNIST" in out
    assert "no permission" in json.loads(err.splitlines()[0])["message"]
    assert "</html>" in (tmp_path / "page/index.html").read_text()
    with read_only(store.root):
        code, out, err = call("report", "--store", store.root, "--run-id", RUN)
    assert (code, out) == (2, "")
    assert "`report --out FOLDER` writes the page elsewhere" in err
    assert tree(store.root) == before


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 69), (errno.EDQUOT, 69), (errno.EACCES, 2)])
def test_a_copy_that_cannot_be_written_has_the_code_of_the_cause_and_spares_the_old(
    store, call, tmp_path, monkeypatch, number, code
):
    page, command = tmp_path / "page/index.html", ["report", "--store", store.root, "--run-id", RUN, "--out"]
    page.parent.mkdir()
    page.write_text("the old one")
    real = os.fsync

    def fail(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(page.parent)):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fail)
    found, _, err = call(*command, page.parent)
    assert found == code
    assert str(page) in err
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert page.read_text() == "the old one"
    assert call(*command, page)[0] == 2, "a file stands there"
    assert call(*command, page / "deeper")[0] == 2


def test_a_status_is_shown_before_it_is_published(store, call):
    before = tree(store.root)
    with read_only(store.root):
        code, out, err = call("status", "--store", store.root, "--workflow", "w", "--phase", "Failed")
    assert "w: Failed, 5 of 6 jobs done" in out
    assert "\ntook 16 CPU minutes in 5 jobs\n" in out
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no permission" in err
    assert tree(store.root) == before
