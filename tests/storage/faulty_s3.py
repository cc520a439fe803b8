"""An S3 server in memory, in this process, that answers as the servers of bug reports do."""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable
from xml.sax.saxutils import escape

Answer = tuple[int, str, str]  # HTTP's status, S3's code ("" for none), the message
Fault = Callable[["Request"], Answer | None]


class Request:
    """What a fault looks at."""

    def __init__(self, method: str, path: str, headers: http.client.HTTPMessage) -> None:
        parts = urllib.parse.urlsplit(path)
        self.method, self.headers = method, headers
        self.query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        _, self.bucket, self.key = [*urllib.parse.unquote(parts.path).split("/", 2), ""][:3]
        self.condition = headers.get("If-Match") or headers.get("If-None-Match")
        self.checksums = [name for name in headers if re.match("x-amz-(checksum-|sdk-checksum)", name, re.I)]


class FaultyS3:
    """Objects in memory; ``faults`` see every request first.

    Attributes:
        faults: each may refuse a request.
        conditions: whether If-Match and If-None-Match are kept; if not, they are ignored.
        seen: every request, as ``METHOD key``.
    """

    def __init__(self, *faults: Fault, conditions: bool = True) -> None:
        self.faults, self.conditions = list(faults), conditions
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.seen: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server.work(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def uri(self) -> str:
        return f"s3://bucket/pre?endpoint=http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def work(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if "aws-chunked" in handler.headers.get("Content-Encoding", ""):
            size = int(data.split(b";")[0].split(b"\r\n")[0], 16)
            data = data[data.index(b"\r\n") + 2 :][:size]
        request = Request(handler.command, handler.path, handler.headers)
        with self._lock:
            self.seen.append(f"{request.method} {request.key}")
            status, body, headers = self.answer(request, data)
        handler.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body)), "Date": handler.date_time_string()} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def answer(self, request: Request, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        for fault in self.faults:
            if (refusal := fault(request)) is not None:
                status, code, message = refusal
                body = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>" if code else ""
                return status, body.encode(), {}
        if not request.key:
            rows = "".join(
                f"<Contents><Key>{escape(key)}</Key></Contents>"
                for key in sorted(self.objects)
                if key.startswith(request.query.get("prefix", ""))
            )
            return 200, f"<R><IsTruncated>false</IsTruncated>{rows}</R>".encode(), {}
        found = self.objects.get(request.key)
        if request.method in ("GET", "HEAD"):
            if found is None:
                return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
            return 200, found[0], found[1]
        if request.method == "DELETE":
            self.objects.pop(request.key, None)
            return 204, b"", {}
        holds = found is None if request.condition == "*" else found and found[1]["ETag"] == request.condition
        if request.condition and self.conditions and not holds:
            return (412 if found else 404), b"<Error><Code>NoSuchKey</Code></Error>", {}
        headers = {name: value for name, value in request.headers.items() if name.lower().startswith("x-amz-meta-")}
        headers |= {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Last-Modified": email.utils.format_datetime(datetime.datetime.now(datetime.UTC), usegmt=True),
        }
        self.objects[request.key] = (data, headers)
        return 200, b"", {"ETag": headers["ETag"]}


def always(status: int, code: str, message: str = "") -> Fault:
    """Refuse everything."""
    return lambda request: (status, code, message)


def when(test: Callable[[Request], object], status: int, code: str, message: str = "") -> Fault:
    """Refuse what ``test`` says."""
    return lambda request: (status, code, message) if test(request) else None
