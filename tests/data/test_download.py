import dataclasses
import hashlib
import http.server
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from app.data import catalog, download, fetch
from app.errors import InputError, StorageError, UsageError

CONTENT = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's ``content`` and misbehaves as its settings say."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.seen.append((self.path, asked))
        if server.status.get(len(server.seen)):
            self.send_error(server.status[len(server.seen)])
            return
        start = 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
        body = server.content[start:]
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if len(server.seen) <= server.cuts:
            body = body[:200_000]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.ranges, made.cuts, made.status, made.seen = CONTENT, True, 0, {}, []
    made.url = f"http://127.0.0.1:{made.server_port}/files"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def published(monkeypatch, server):
    """Let the catalogue announce our CONTENT as BreastMNIST, at our server, with an address like Zenodo's."""
    one = catalog()["breastmnist"]
    changed = dataclasses.replace(
        one,
        urls={
            **one.urls,
            28: f"{server.url}/breastmnist.npz?download=1",
            64: f"{server.url}/breastmnist_64.npz",
        },
        md5={**one.md5, 28: MD5, 64: MD5},
    )
    monkeypatch.setattr(download, "known", lambda name: changed if name == "breastmnist" else catalog()[name])
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def get(root, **options):
    return fetch(["breastmnist"], root=root, **options)


def rejected(root, error, **options):
    with pytest.raises(error) as caught:
        get(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(root):
    return sorted(file.name for file in root.iterdir())


class TestDownload:
    def test_publishes_the_verified_file(self, tmp_path, server):
        paths = get(tmp_path / "new")
        assert paths == [tmp_path / "new" / "breastmnist.npz"]
        assert paths[0].read_bytes() == CONTENT
        assert names(tmp_path / "new") == ["breastmnist.npz"]
        assert server.seen == [("/files/breastmnist.npz?download=1", None)]

    def test_size_chooses_the_file(self, tmp_path):
        assert get(tmp_path, size=64) == [tmp_path / "breastmnist_64.npz"]

    def test_verified_file_is_kept_without_a_request(self, tmp_path, server):
        (path,) = get(tmp_path)
        before = path.stat().st_mtime_ns
        assert get(tmp_path) == [path]
        assert get(tmp_path, offline=True) == [path]
        assert path.stat().st_mtime_ns == before
        assert len(server.seen) == 1

    def test_a_truncated_archive_is_replaced(self, tmp_path, server):
        path = tmp_path / "breastmnist.npz"
        path.write_bytes(b"PK\x03\x04 and no more of it")
        assert get(tmp_path) == [path]
        assert path.read_bytes() == CONTENT

    def test_another_file_of_that_name_is_left_alone(self, tmp_path, server):
        path = tmp_path / "breastmnist.npz"
        path.write_bytes(b"mine")
        message = rejected(tmp_path, InputError)
        assert message.startswith(f"{path}: is another file (MD5 {hashlib.md5(b'mine').hexdigest()})")
        assert path.read_bytes() == b"mine"
        assert server.seen == []

    def test_mirror_url(self, tmp_path, server):
        get(tmp_path, mirror=f"{server.url}/copy/")
        assert server.seen == [("/files/copy/breastmnist.npz", None)]


class TestResume:
    def test_continues_a_part(self, tmp_path, server):
        (tmp_path / "breastmnist.npz.part").write_bytes(CONTENT[:300_000])
        (path,) = get(tmp_path)
        assert path.read_bytes() == CONTENT
        assert server.seen == [("/files/breastmnist.npz?download=1", "bytes=300000-")]

    def test_continues_after_a_cut_connection(self, tmp_path, server):
        server.cuts = 2
        (path,) = get(tmp_path)
        assert path.read_bytes() == CONTENT
        assert [asked for _, asked in server.seen] == [None, "bytes=200000-", "bytes=400000-"]

    def test_cut_too_often_keeps_the_part_for_the_next_run(self, tmp_path, server):
        server.cuts = 2
        message = rejected(tmp_path, StorageError, retries=1)
        assert "the connection closed after 400000 of 700000 bytes" in message
        assert names(tmp_path) == ["breastmnist.npz.part"]
        get(tmp_path, retries=0)
        assert server.seen[-1][1] == "bytes=400000-"
        assert names(tmp_path) == ["breastmnist.npz"]

    def test_server_without_ranges_sends_all_again(self, tmp_path, server):
        server.ranges = False
        (tmp_path / "breastmnist.npz.part").write_bytes(CONTENT[:300_000])
        assert get(tmp_path)[0].read_bytes() == CONTENT

    def test_damaged_part_is_thrown_away(self, tmp_path, server):
        (tmp_path / "breastmnist.npz.part").write_bytes(b"x" * 300_000)
        assert get(tmp_path)[0].read_bytes() == CONTENT
        assert [asked for _, asked in server.seen] == ["bytes=300000-", None]

    def test_part_longer_than_the_file_is_thrown_away(self, tmp_path):
        (tmp_path / "breastmnist.npz.part").write_bytes(CONTENT + b"x")
        assert get(tmp_path)[0].read_bytes() == CONTENT

    def test_complete_part_needs_no_request(self, tmp_path, server):
        (tmp_path / "breastmnist.npz.part").write_bytes(CONTENT)
        assert get(tmp_path)[0].read_bytes() == CONTENT
        assert server.seen == []

    def test_server_error_is_tried_again(self, tmp_path, server):
        server.status = {1: 503, 2: 429}
        assert get(tmp_path)[0].read_bytes() == CONTENT


class TestFailures:
    def test_wrong_checksum(self, tmp_path, server):
        server.content = CONTENT[:-1] + b"!"
        message = rejected(tmp_path, InputError)
        assert "wrong checksum" in message
        assert MD5 in message
        assert names(tmp_path) == []

    def test_refused_connection(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        message = rejected(tmp_path, StorageError, mirror=f"http://127.0.0.1:{port}", retries=0)
        assert "cannot be reached" in message
        assert "--mirror" in message
        assert f"place the file at {tmp_path / 'breastmnist.npz'} by hand (MD5 {MD5})" in message
        assert names(tmp_path) == []

    def test_silent_host_is_given_up_after_the_connect_timeout(self, tmp_path):
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            address = deaf.getsockname()
            # A full backlog of one: further connections hang in the handshake.
            fill = [socket.socket() for _ in range(3)]
            for one in fill:
                one.setblocking(False)
                one.connect_ex(address)
            start = time.perf_counter()
            rejected(
                tmp_path,
                StorageError,
                mirror=f"http://127.0.0.1:{address[1]}",
                retries=0,
                connect_timeout=0.3,
            )
            assert time.perf_counter() - start < 3
            for one in fill:
                one.close()

    def test_retries_are_counted(self, tmp_path, server):
        server.status = dict.fromkeys(range(1, 10), 500)
        assert "HTTP 500" in rejected(tmp_path, StorageError, retries=3)
        assert len(server.seen) == 4

    @pytest.mark.parametrize(
        ("status", "error", "words"),
        [(404, InputError, "no such file"), (403, UsageError, "refused"), (401, UsageError, "refused")],
    )
    def test_refusals_are_final(self, tmp_path, server, status, error, words):
        server.status = {1: status}
        assert words in rejected(tmp_path, error)
        assert len(server.seen) == 1

    def test_offline(self, tmp_path, server):
        message = rejected(tmp_path, InputError, offline=True)
        assert "offline" in message
        assert f"{server.url}/breastmnist.npz" in message
        assert MD5 in message
        assert server.seen == []

    def test_unknown_name_and_size(self, tmp_path, monkeypatch):
        monkeypatch.undo()
        with pytest.raises(UsageError, match="did you mean breastmnist"):
            fetch(["breastmnits"], root=tmp_path)
        with pytest.raises(UsageError, match="breastmnist has no size 32; choose one of 28, 64, 128, 224"):
            fetch(["breastmnist"], root=tmp_path, size=32)

    def test_full_disk(self, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(download, "_request", full)
        assert "the disk is full" in rejected(tmp_path, StorageError)

    def test_root_without_permission(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(download.Path, "mkdir", refuse)
        assert "no permission" in rejected(tmp_path, UsageError)

    def test_root_that_is_a_file(self, tmp_path):
        file = tmp_path / "file"
        file.touch()
        with pytest.raises((InputError, StorageError, UsageError), match="file"):
            get(file)

    def test_two_downloads_do_not_mix(self, tmp_path):
        with download._locked(tmp_path / "breastmnist.npz.part") as file:
            file.write(b"half")
            file.flush()
            assert "another process is downloading" in rejected(tmp_path, StorageError)
        assert get(tmp_path)[0].read_bytes() == CONTENT


class TestFolderMirror:
    @pytest.mark.parametrize("form", ["{}", "file://{}"])
    def test_copies(self, tmp_path, server, form):
        (tmp_path / "mirror").mkdir()
        (tmp_path / "mirror" / "breastmnist.npz").write_bytes(CONTENT)
        (path,) = get(tmp_path / "root", mirror=form.format(tmp_path / "mirror"))
        assert path.read_bytes() == CONTENT
        assert names(tmp_path / "root") == ["breastmnist.npz"]
        assert server.seen == []

    def test_lacks_the_file(self, tmp_path):
        message = rejected(tmp_path / "root", InputError, mirror=str(tmp_path / "mirror"))
        assert "no such file in the mirror" in message
        assert names(tmp_path / "root") == []

    def test_wrong_checksum(self, tmp_path):
        (tmp_path / "breastmnist.npz").write_bytes(b"other")
        assert "wrong checksum" in rejected(tmp_path / "root", InputError, mirror=str(tmp_path))
        assert (tmp_path / "breastmnist.npz").read_bytes() == b"other"

    @pytest.mark.parametrize("mirror", ["s3://bucket/x", "http://[::1"])
    def test_unusable_address(self, tmp_path, mirror):
        assert "give an http(s) URL or a folder" in rejected(tmp_path, UsageError, mirror=mirror)

    @pytest.mark.parametrize("mirror", ["https://me:hidden@host/x", "https://host/x?sig=hidden"])
    def test_credentials_are_refused_and_not_repeated(self, tmp_path, mirror):
        message = rejected(tmp_path, UsageError, mirror=mirror)
        assert "credentials do not belong into the address" in message
        assert "hidden" not in message


def test_file_names_are_medmnists():
    for name, one in catalog().items():
        if name == "cifar10":
            continue
        assert download.file_name(one, 28) == f"{name}.npz"
        assert download.file_name(one, 224) == f"{name}_224.npz"


def test_https_and_http_get_the_patience_to_read(monkeypatch):
    waited = []
    monkeypatch.setattr("http.client.HTTPConnection.connect", lambda self: None)
    monkeypatch.setattr("http.client.HTTPSConnection.connect", lambda self: None)
    for made in (download._HTTPConnection("x", timeout=5), download._HTTPSConnection("x", timeout=5)):
        made.sock = SimpleNamespace(settimeout=waited.append, close=lambda: None)
        made.connect()
    assert waited == [60.0, 60.0]
