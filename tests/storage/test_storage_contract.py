"""The contract of a store, held by a folder and by a real S3 server."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from urllib3.exceptions import ProtocolError

from app.errors import InputError, StorageError, UsageError
from app.storage import FolderStore, MissingObject, Patience, S3Store, Store, open_store, sha256
from app.storage import s3 as s3_module
from tests.servers import ACCESS, SECRET, Weed, free_ports

S3 = pytest.param("s3", marks=pytest.mark.s3)


@pytest.fixture(params=["folder", S3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    weed = request.getfixturevalue("s3_environment")
    return open_store(f"s3://{weed.bucket}/{secrets.token_hex(4)}/deep")


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"two")
    assert store.read("a/b.bin") == b"two"
    assert store.exists("a/b.bin")
    assert not store.exists("a")
    assert not store.exists("a/b")
    store.write("empty", b"")
    assert store.read("empty") == b""


def test_a_missing_object_is_an_input_error_that_names_it(store: Store) -> None:
    with pytest.raises(MissingObject, match=r"runs/x/experiment\.json: there is no such object") as caught:
        store.read("runs/x/experiment.json")
    assert caught.value.exit_code == 66
    with pytest.raises(MissingObject):
        store.read_version("runs/x/experiment.json")
    assert not store.exists("runs/x/experiment.json")
    store.delete("runs/x/experiment.json")


def test_list_is_sorted_and_by_folder(store: Store) -> None:
    assert list(store.list()) == []
    for key in ("runs/ab/x", "runs/a/y", "runs/a/c/z", "data/d"):
        store.write(key, b"1")
    assert list(store.list()) == ["data/d", "runs/a/c/z", "runs/a/y", "runs/ab/x"]
    assert list(store.list("runs/a")) == ["runs/a/c/z", "runs/a/y"]
    assert list(store.list("runs/none")) == []
    store.write("runs/a/c/z", b"12345")
    assert store.sizes("runs/a") == {"runs/a/c/z": 5, "runs/a/y": 1}
    before = store.stamps("runs/a")
    store.write("runs/a/c/z", b"54321")
    changed = {key for key, stamp in store.stamps("runs/a").items() if stamp != before[key]}
    assert (list(before), changed) == (["runs/a/c/z", "runs/a/y"], {"runs/a/c/z"})
    store.delete("runs/a/y")
    assert list(store.list("runs/a")) == ["runs/a/c/z"]


def test_keys_with_spaces_and_letters_of_other_scripts(store: Store) -> None:
    for key in ("a b/ä+%20&?#.json", "ключ"):
        store.write(key, key.encode())
        assert store.read(key) == key.encode()
        assert key in store.list()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\\..\\b", "a\nb", "a\0b", "a/"]
)
def test_keys_cannot_leave_the_store(store: Store, key: str) -> None:
    for operation in (store.read, store.exists, store.delete, store.local, lambda k: store.write(k, b"")):
        with pytest.raises(UsageError, match="not a plain relative path"):
            operation(key)
    with pytest.raises(UsageError):
        store.create(key, b"")


def test_create_only_once(store: Store) -> None:
    version = store.create("claim", b"one")
    assert version
    assert store.create("claim", b"two") is None
    found = store.read_version("claim")
    assert (found.data, found.version) == (b"one", version)


def test_replace_only_what_was_seen(store: Store) -> None:
    first = store.create("claim", b"one")
    assert first
    second = store.replace("claim", b"two", first)
    assert second
    assert second != first
    assert store.replace("claim", b"three", first) is None
    assert store.read("claim") == b"two"
    store.delete("claim")
    assert store.replace("claim", b"four", second) is None
    assert not store.exists("claim")


def test_age_grows_by_the_clock_of_the_store(store: Store) -> None:
    """To whole seconds, which is what S3 says."""
    begin = time.monotonic()
    store.write("beat", b"1")
    written = time.monotonic()
    assert store.read_version("beat").age < time.monotonic() - begin + 1
    time.sleep(2.2)
    least, age = time.monotonic() - written - 1, store.read_version("beat").age
    assert least < age < time.monotonic() - begin + 1


def _meet_at(barrier: Barrier) -> None:
    global meeting  # synchronization objects reach a process of a pool only when it starts
    meeting = barrier


def _race(address: str, number: int) -> int:
    store = open_store(address)
    store.exists("claim")
    meeting.wait(60)
    return int(store.create("claim", f"owner {number}".encode()) is not None)


def test_of_sixteen_that_create_at_once_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(lambda n: store.create("claim", f"owner {n}".encode()) is not None, range(16)))
    assert sum(wins) == 1
    assert store.read("claim") == f"owner {wins.index(True)}".encode()


def test_of_threads_that_replace_at_once_one_wins(store: Store) -> None:
    version = store.create("claim", b"free")
    assert version
    with ThreadPoolExecutor(8) as pool:
        wins = [w for w in pool.map(lambda n: store.replace("claim", f"{n}".encode(), version), range(8)) if w]
    assert len(wins) == 1


def test_a_race_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
    with context.Pool(4, _meet_at, [context.Barrier(4)]) as pool:
        wins = pool.starmap(_race, [(str(tmp_path), n) for n in range(4)], chunksize=1)
    assert sum(wins) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["claim"], "locks and temporary files are gone"


@pytest.mark.s3
def test_large_objects_go_in_parts(s3_environment: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PART", 5 * 2**20)
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    data = np.random.default_rng(0).bytes(12 * 2**20 + 7)
    store.write("big", memoryview(data))
    assert sha256(store.read("big")) == sha256(data)
    assert store._client.head_object(Bucket=store.bucket, Key=f"{store.prefix}big")["ETag"].endswith('-3"')


@pytest.mark.s3
def test_clean_aborts_uploads_of_the_dead(s3_environment: Weed) -> None:
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    client = store._client
    for key in ("job/a/big", "jobs/other"):
        client.create_multipart_upload(Bucket=store.bucket, Key=store.prefix + key)
    store.clean("job")
    left = client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", [])
    assert [upload["Key"] for upload in left] == [f"{store.prefix}jobs/other"]
    client.abort_multipart_upload(Bucket=store.bucket, Key=left[0]["Key"], UploadId=left[0]["UploadId"])


def test_clean_drops_temporary_files_of_the_dead(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("job/record.json", b"{}")
    (tmp_path / "job/.tmp-1234-encoder.safetensors").write_bytes(b"half")
    assert list(store.list()) == ["job/record.json"]
    store.clean("job")
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["record.json"]


@pytest.mark.s3
def test_wrong_bytes_are_found(s3_environment: Weed) -> None:
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    store._client.put_object(
        Bucket=store.bucket, Key=f"{store.prefix}x", Body=b"rotten", Metadata={"sha256": sha256(b"fresh")}
    )
    with pytest.raises(InputError, match="damaged, its SHA-256"):
        store.read("x")


@pytest.mark.s3
def test_objects_of_others_are_read_without_a_checksum(s3_environment: Weed) -> None:
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    store._client.put_object(Bucket=store.bucket, Key=f"{store.prefix}data/x.npz", Body=b"theirs")
    assert store.read("data/x.npz") == b"theirs"


@pytest.mark.s3
def test_local_copies_follow_the_object(s3_environment: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    store.write("data/x.npz", b"one")
    first = store.local("data/x.npz")
    assert first.read_bytes() == b"one"
    assert first.suffix == ".npz"
    assert store.local("data/x.npz") == first
    store.write("data/x.npz", b"two")
    assert store.local("data/x.npz").read_bytes() == b"two"


@pytest.mark.s3
@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_wrong_credentials_fail_at_once_and_are_not_printed(
    s3_environment: Weed, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    store = open_store(f"s3://{s3_environment.bucket}/x")
    monkeypatch.setattr(Patience, "left", lambda *_: pytest.fail("it is tried again"))
    for operation in (store.read, store.exists, store.create):
        with pytest.raises(UsageError) as caught:
            operation("k", *([b""] if operation == store.create else []))
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        assert not any(secret in str(caught.value) for secret in (ACCESS, SECRET, "wrong", "nobody"))


@pytest.mark.s3
def test_no_credentials_is_said(s3_environment: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{s3_environment.bucket}/x").read("k")


@pytest.mark.s3
def test_a_missing_bucket_is_said(s3_environment: Weed) -> None:
    with pytest.raises(UsageError, match="s3://nothing-here: there is no such bucket"):
        open_store("s3://nothing-here").read("k")


def test_an_unreachable_server_is_tried_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    said: list[str] = []
    monkeypatch.setattr(Patience, "WARN_AFTER", 0.3)
    store = open_store(f"s3://byol/x?endpoint=http://127.0.0.1:{free_ports(1)[0]}", warn=said.append)
    store.patience.seconds = 1.0
    begin = time.monotonic()
    with pytest.raises(StorageError, match="Could not connect") as caught:
        store.read("k")
    assert 0.9 < time.monotonic() - begin < 25, "and not half a minute, as at first contact"
    assert caught.value.exit_code == 69
    assert len(said) == 1
    assert "trying again for up to" in said[0]


@pytest.mark.s3
def test_a_connection_that_breaks_inside_an_answer_is_tried_again(
    s3_environment: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal cut off in its body reaches us as urllib3's error: botocore does not wrap that one."""
    store = S3Store(f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}")
    store.write("a", b"1")
    get, broken = store._client.get_object, iter([True, True])

    def get_object(**request: object) -> object:
        if next(broken, False):
            raise ProtocolError("Connection broken", ConnectionResetError(104, "Connection reset by peer"))
        return get(**request)

    monkeypatch.setattr(store._client, "get_object", get_object)
    assert store.read("a") == b"1"
    assert next(broken, None) is None, "both breaks were met"


def test_a_signal_shortens_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(600)
    patience.reached = True

    def fail() -> None:
        raise StorageError("gone")

    threading.Timer(0.3, lambda: patience.hurry(0.5)).start()
    begin = time.monotonic()
    with pytest.raises(StorageError):
        patience.retry(fail)
    assert 0.7 < time.monotonic() - begin < 60, "and not ten minutes"


def test_first_contact_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "FIRST_CONTACT", 0.2)
    patience, calls = Patience(600), []

    def fail() -> None:
        calls.append(1)
        raise StorageError("gone")

    with pytest.raises(StorageError):
        patience.retry(fail)
    assert len(calls) > 1


def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path, Patience(0.5))
    tries: list[int] = []

    def full(fd: int) -> None:
        tries.append(fd)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        store.write("a", b"1")
    assert len(tries) > 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", "unknown kind of store"),
        ("s3://", "not a bucket's name"),
        ("s3://B/x", "not a bucket's name"),
        ("s3://bucket/a/../b", "not a plain relative path"),
        ("s3://bucket/x?endpint=http://h", "endpint"),
        ("s3://bucket/x?endpoint=h:1", "give an address"),
        ("s3://bucket/x?path_style=maybe", "path_style=maybe: give true or false"),
        ("s3://key:hidden@bucket/x", "credentials do not belong into the URI"),
        ("s3://bucket/x?endpoint=http://key:hidden@h", "without credentials"),
    ],
)
def test_a_wrong_uri_is_refused(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_store(uri)
    assert "hidden" not in str(caught.value)


def test_an_endpoint_with_credentials_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")

    def ask() -> None:
        store = open_store("s3://byol/x")
        store.patience.seconds = 0.1
        store.read("k")

    for endpoint in (f"http://me:hidden@127.0.0.1:{free_ports(1)[0]}", "http://me:hid/hidden@127.0.0.1:1"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        with pytest.raises((StorageError, UsageError)) as caught:
            ask()
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "variable", "style"),
    [
        ("s3://bucket", None, "virtual"),
        ("s3://bucket?path_style=true", None, "path"),
        ("s3://bucket?endpoint=http://h:1", None, "path"),
        ("s3://bucket?endpoint=http://h:1&path_style=false", None, "virtual"),
        ("s3://bucket", "true", "path"),
    ],
)
def test_addressing_style(monkeypatch: pytest.MonkeyPatch, uri: str, variable: str | None, style: str) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "BYOL_S3_PATH_STYLE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv("BYOL_S3_PATH_STYLE", variable)
    store = open_store(uri)
    assert isinstance(store, S3Store)
    assert store._client.meta.config.s3["addressing_style"] == style
    assert store.uri == "s3://bucket"
    assert open_store(store.address).uri == store.uri
