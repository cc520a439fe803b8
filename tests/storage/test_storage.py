import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from app.atomic import TEMPORARY
from app.errors import InputError, StorageError, UsageError
from app.storage import FolderStore, MissingObject, check_key, open_store, sha256


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


def files(store):
    return sorted(p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file())


def fail_with(monkeypatch, target, name, number):
    def failing(*_args, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(target, name, failing)


def test_written_objects_are_read_listed_and_deleted(store):
    store.write("runs/a/record.json", b"one")
    store.write("runs/b/x.bin", b"two")
    store.write("data/c.npz", b"")
    assert store.read("runs/a/record.json") == b"one"
    assert store.read("data/c.npz") == b""
    assert store.exists("runs/a/record.json")
    assert list(store.list()) == ["data/c.npz", "runs/a/record.json", "runs/b/x.bin"]
    assert list(store.list("runs/a")) == ["runs/a/record.json"]
    assert store.local("runs/b/x.bin").read_bytes() == b"two"
    store.delete("runs/a/record.json")
    store.delete("runs/a/record.json")
    assert not store.exists("runs/a/record.json")


def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(store):
    store.write("runs/a/x", b"")
    store.write("runs/ab/x", b"")
    assert list(store.list("runs/a")) == ["runs/a/x"]


def test_an_empty_or_missing_store_lists_nothing(store):
    assert list(store.list()) == []
    assert list(store.list("runs")) == []
    assert not store.exists("runs/x")


def test_a_folder_is_no_object(store):
    store.write("runs/a/x", b"1")
    assert not store.exists("runs/a")
    with pytest.raises(MissingObject):
        store.read("runs/a")


def test_a_missing_object_says_where_it_was_looked_for(store):
    with pytest.raises(MissingObject, match=r"store/runs/a/record.json: there is no such object") as caught:
        store.read("runs/a/record.json")
    assert isinstance(caught.value, InputError)
    assert caught.value.exit_code == 66
    store.write("plain", b"")
    with pytest.raises(MissingObject):
        store.read("plain/below")


def test_writing_replaces(store):
    store.write("k", b"first, and longer")
    store.write("k", b"second")
    assert store.read("k") == b"second"
    assert files(store) == ["k"]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_object_and_no_rest(store, monkeypatch, step):
    store.write("runs/k", b"old")
    if step == "fsync":
        fail_with(monkeypatch, os, "fsync", errno.EIO)
    else:
        fail_with(monkeypatch, Path, step, errno.EIO)
    with pytest.raises(StorageError, match=r"runs/k: Input/output error; run the same command again") as caught:
        store.write("runs/k", b"new")
    monkeypatch.undo()
    assert caught.value.exit_code == 69
    assert store.read("runs/k") == b"old"
    assert files(store) == ["runs/k"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error_and_writes_nothing(store, monkeypatch, number):
    fail_with(monkeypatch, os, "fsync", number)
    with pytest.raises(StorageError, match="the disk is full; make room") as caught:
        store.write("runs/k", b"x" * 1000)
    monkeypatch.undo()
    assert caught.value.exit_code == 69
    assert "\n" not in str(caught.value)
    assert files(store) == []


def test_a_really_full_device(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    store = FolderStore(tmp_path)
    real_open = Path.open

    def full(self, *args, **options):
        return (
            real_open(Path("/dev/full"), "wb") if self.name.startswith(TEMPORARY) else real_open(self, *args, **options)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match="the disk is full"):
            store.write("k", b"x" * 100_000)
    assert not store.exists("k")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize(
    ("action", "target", "name"),
    [
        (lambda s: s.write("k", b""), Path, "mkdir"),
        (lambda s: s.read("k"), Path, "read_bytes"),
        (lambda s: s.exists("k"), Path, "is_file"),
        (lambda s: s.delete("k"), Path, "unlink"),
    ],
    ids=["write", "read", "exists", "delete"],
)
def test_no_permission_is_a_usage_error(store, monkeypatch, number, action, target, name):
    fail_with(monkeypatch, target, name, number)
    with pytest.raises(UsageError, match="no permission") as caught:
        action(store)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("action", "name"), [(lambda s: list(s.list()), "is_file"), (lambda s: s.delete("k"), "unlink"),
                         (lambda s: s.exists("k"), "is_file")], ids=["list", "delete", "exists"]
)  # fmt: skip
def test_a_folder_that_is_away_for_a_while_is_tried_again(store, monkeypatch, action, name):
    store.write("k", b"")
    with monkeypatch.context() as patch:
        fail_with(patch, Path, name, errno.EIO)
        with pytest.raises(StorageError, match="Input/output error"):
            action(store)
    store.patience.seconds = 60
    original, failures = getattr(Path, name), [1, 2]

    def fails_twice(*args, **options):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        return original(*args, **options)

    monkeypatch.setattr(Path, name, fails_twice)
    action(store)
    assert failures == []


def test_a_read_only_folder(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UsageError, match="no permission"):
            FolderStore(tmp_path).write("k", b"")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_file_where_the_store_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file stands where a folder is needed"):
        FolderStore(tmp_path / "file").write("k", b"")


def test_a_name_too_long_is_a_usage_error(store):
    store.write("a", b"")
    for action in (store.exists, store.read):
        with pytest.raises(UsageError, match="name is too long"):
            action("x" * 300)


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "runs/../../x", "runs//x", "runs/./x", "runs/x/", "a\\b", "a\nb", "a\0b", "."]
)
def test_keys_that_leave_the_store_are_refused(store, key):
    store.write("x", b"")
    for action in (store.read, store.exists, store.delete, store.local, lambda k: store.write(k, b"")):
        with pytest.raises(UsageError, match="not a plain relative path"):
            action(key)
    assert files(store) == ["x"]


def test_ordinary_keys_are_taken():
    for key in ("runs/smoke-1a2b/pretrain/byol-s0/record.json", "a b", "..x", "é"):
        assert check_key(key) == key


def test_half_written_files_are_not_listed(store):
    store.write("runs/k", b"")
    (store.root / "runs" / f"{TEMPORARY}12-k").write_bytes(b"half")
    assert list(store.list()) == ["runs/k"]


def test_a_reader_sees_the_old_or_the_new_object_never_a_part(store):
    contents = [bytes([i]) * 200_000 for i in range(2)]
    store.write("k", contents[0])
    done = threading.Event()

    def write():
        for i in range(30):
            store.write("k", contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(sha256(store.read("k")))
    writer.join()
    assert seen <= {sha256(content) for content in contents}
    assert files(store) == ["k"]


def test_stores_are_opened_by_uri(tmp_path):
    for uri in (str(tmp_path), f"file://{tmp_path}", f"file://localhost{tmp_path}"):
        store = open_store(uri)
        assert isinstance(store, FolderStore)
        assert store.root == tmp_path
    spaced = open_store("file:///a%20b")
    assert isinstance(spaced, FolderStore)
    assert spaced.root == Path("/a b")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "file://elsewhere/x", "http://x"])
def test_other_schemes_are_refused(uri):
    with pytest.raises(UsageError, match="unknown kind of store"):
        open_store(uri)


def test_sha256_of_a_known_text():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
