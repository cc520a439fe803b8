"""Servers for the tests: a real S3 server, and a proxy in front of it that misbehaves."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS, SECRET = "test-access", "test-secret-that-must-never-be-printed"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. SeaweedFS adds 10000 for gRPC unless told otherwise."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Weed:
    """SeaweedFS on this machine, with one bucket; stopping and starting keeps its objects and address."""

    bucket = "byol"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = free_ports(9)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def program() -> str | None:
        """Path of the ``weed`` program: of this environment, or any other."""
        beside = Path(sys.executable).with_name("weed")
        return str(beside) if beside.exists() else shutil.which("weed")

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to reach it, and nothing that points elsewhere."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> Weed:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        s3, master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc, admin = self._ports
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.program()), "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}",
                    f"-master.port={master}", f"-master.port.grpc={master_grpc}",
                    f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
                    f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}", f"-admin.port={admin}",
                    "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={self.bucket}",
                ],
                env=os.environ | {"GOMEMLIMIT": "300MiB", "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET},
                stdout=log,
                stderr=log,
            )  # fmt: skip
        for _ in range(600):
            if self._answers():
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"weed does not start; see {self.folder}.log")

    def _answers(self) -> bool:
        """Whether the bucket is there, asked as its owner: it is made after the port opens."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=1),
        )
        try:
            client.head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError):
            return False
        return True

    def cpu_seconds(self) -> float:
        """CPU time that the server has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stop the server; its objects stay."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Proxy:
    """A proxy in front of an S3 server: counts, lets tests watch, and, if told to, misbehaves.

    Attributes:
        faults: names of what may go wrong, out of ``FAULTS``.
        share: how often one goes wrong: at most this share of the requests.
        seen: a line for each request, ``METHOD path?query``.
        watch: called with each such line before the request is passed on.
        done: how often each fault was committed.
    """

    FAULTS = ("reset before", "reset after", "500", "503", "slow", "truncated", "wrong bytes down", "wrong bytes up")

    def __init__(self, target: str, *, faults: tuple[str, ...] = (), share: float = 0.0, seed: int = 0) -> None:
        self.target = urllib.parse.urlsplit(target)
        self.faults, self.share = faults, share
        self.seen: list[str] = []
        self.done: dict[str, int] = dict.fromkeys(self.FAULTS, 0)
        self.watch: Callable[[str], None] = lambda line: None
        self._random = random.Random(seed)
        self._well = 0  # requests since the last fault
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):  # the client went away: killed, or it gave up
                    super().handle_one_request()

            def do_GET(self) -> None:
                proxy._pass_on(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, method: str, path: str, length: int) -> str | None:
        """Return the fault to commit: each in its turn, at the first request that can have it when one is due."""
        with self._lock:
            self._well += 1
            if not self.faults or self._well * self.share < 1:
                return None
            fault = min(self.faults, key=lambda fault: self.done[fault])
            # S3 gives no checksum for listings and the like: nobody could find a wrong byte in those.
            is_object = "?" not in path or "partNumber=" in path
            possible = {
                "truncated": method == "GET",
                "wrong bytes down": method == "GET" and is_object,
                "wrong bytes up": method == "PUT" and is_object and length > 0,
            }
            if not possible.get(fault, True):
                return None
            self.done[fault] += 1
            self._well = 0
            return fault

    def _pass_on(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        line = f"{handler.command} {handler.path}"
        with self._lock:
            self.seen.append(line)
        self.watch(line)
        length = int(handler.headers.get("Content-Length") or 0)
        if handler.headers.get("Expect", "").lower() == "100-continue":
            handler.send_response_only(100)
            handler.end_headers()
        body = bytearray(handler.rfile.read(length))
        fault = self._fault(handler.command, handler.path, length)
        if fault == "reset before":
            return self._reset(handler)
        if fault in ("500", "503"):
            handler.send_response(int(fault))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return None
        if fault == "slow":
            time.sleep(self._random.uniform(0.5, 2.0))
        if fault == "wrong bytes up":
            body[self._random.randrange(len(body))] ^= 1
        upstream = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        try:
            upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(bytes(body))
            if len(body) < length:
                return self._reset(handler)  # the client died within its upload, and so does ours
            answer = upstream.getresponse()
            data = bytearray(answer.read())
        except OSError:
            return self._reset(handler)  # the server is gone
        finally:
            upstream.close()
        if fault == "reset after":
            return self._reset(handler)
        if fault == "wrong bytes down" and data:
            data[self._random.randrange(len(data))] ^= 1
        handler.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                handler.send_header(name, value)
        shown = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
        if shown is not None:
            handler.send_header("Content-Length", shown)
        handler.end_headers()
        if fault == "truncated" and data:
            handler.wfile.write(data[: len(data) // 2])
            return self._reset(handler)
        if handler.command != "HEAD":
            handler.wfile.write(data)
        return None

    @staticmethod
    def _reset(handler: http.server.BaseHTTPRequestHandler) -> None:
        """End the connection by a TCP reset."""
        handler.close_connection = True
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
