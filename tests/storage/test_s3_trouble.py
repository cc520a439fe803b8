"""S3 servers that refuse, and say why; servers that lack something; addresses that are none."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import StorageError, UsageError
from app.storage import FolderStore, Patience, S3Store, Store
from app.storage.answers import PERMANENT
from app.storage.s3 import CONDITIONS
from tests.storage.faulty_s3 import FaultyS3, always, when

KEY = "my-access-key-id"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "BYOL_S3_PATH_STYLE")
    for name in (*names, "AWS_CA_BUNDLE", "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "a-secret-of-ours", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyS3]]:
    servers: list[FaultyS3] = []

    def start(*faults, **options) -> FaultyS3:
        servers.append(FaultyS3(*faults, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def open_at(server: FaultyS3, more: str = "", said: list[str] | None = None) -> S3Store:
    return S3Store(server.uri + more, Patience(5, None if said is None else said.append))


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "exists": lambda store: store.exists("runs/r/experiment.json"),
    "read": lambda store: store.read("runs/r/experiment.json"),
    "write": lambda store: store.write("runs/r/experiment.json", b"{}"),
    "create": lambda store: store.create("runs/r/claim.json", b"{}"),
    "list": lambda store: list(store.list("runs")),
    "delete": lambda store: store.delete("runs/r/claim.json"),
}


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'garage'",
         "AWS_DEFAULT_REGION=garage"),
        (403, "RequestTimeTooSkewed", "The difference is too large.", "this machine's clock is wrong"),
        (400, "ExpiredToken", "The provided token has expired.", "the session token has expired"),
        (403, "ExpiredToken", "The provided token has expired.", "AWS_SESSION_TOKEN"),
        (403, "InvalidAccessKeyId", f"{KEY} is not in our records", "check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "User: x is not authorized to perform: s3:GetObject", "s3:GetObject"),
        (403, "KMS.DisabledException", "key/1 is disabled", "key/1 is disabled"),
        (405, "MethodNotAllowed", "", "S3 port"),
        (400, "XNeverHeardOf", "the moon is full", "the moon is full"),
    ],
)  # fmt: skip
def test_the_servers_reason_is_shown_whatever_is_asked_first(serve, status, code, message, expected) -> None:
    store = open_at(serve(always(status, code, message)))
    for operation in OPERATIONS.values():
        store.patience.reached, begin = False, time.monotonic()
        with pytest.raises(UsageError) as caught:
            operation(store)
        assert time.monotonic() - begin < 20
        text = str(caught.value)
        assert expected in text
        assert code in text
        assert "\n" not in text
        assert "a-secret-of-ours" not in text
        assert KEY not in text


def test_every_known_cause_says_what_to_do(serve) -> None:
    server = serve()
    store = open_at(server)
    for code, (what, remedy) in PERMANENT.items():
        server.faults[:] = [always(400, code, "so it is")]
        with pytest.raises(UsageError) as caught:
            store.exists("k")
        assert what in str(caught.value)
        assert "so it is" in str(caught.value)
        assert remedy.split(",")[0] in str(caught.value)


def test_a_token_that_expires_in_mid_run_is_called_so(serve) -> None:
    server = serve()
    store = open_at(server)
    store.write("a", b"1")
    server.faults.append(always(400, "ExpiredToken", "The provided token has expired."))
    for operation in OPERATIONS.values():
        with pytest.raises(UsageError, match="the session token has expired"):
            operation(store)


def test_a_right_that_is_missing_is_named(serve) -> None:
    """Without s3:ListBucket, AWS calls an object that is not there forbidden."""
    no_list = when(lambda r: not r.key, 403, "AccessDenied", "Access Denied")
    missing = when(lambda r: r.method in ("GET", "HEAD") and r.key, 403, "AccessDenied", "Access Denied")
    with pytest.raises(UsageError, match=r"grant s3:ListBucket"):
        open_at(serve(no_list, missing)).exists("runs/r/experiment.json")
    with pytest.raises(UsageError, match="no permission") as caught:
        open_at(serve(missing)).exists("runs/r/experiment.json")
    assert "ListBucket" not in str(caught.value)


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidArgument"), (501, "NotImplemented")])
def test_a_server_that_knows_no_checksums_is_done_without(serve, status, code) -> None:
    server, said = serve(when(lambda r: r.method == "PUT" and r.checksums, status, code, "unsupported header")), []
    store = open_at(server, said=said)
    store.write("a", b"one")
    assert store.create("b", b"two")
    assert (store.read("a"), store.read("b")) == (b"one", b"two")
    [line] = said
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in line
    assert set(server.objects) == {"pre/a", "pre/b", f"pre/{CONDITIONS}"}, "what it was tried with is gone"


def test_the_advice_about_checksums_works(serve, monkeypatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    server, said = serve(when(lambda r: r.checksums, 400, "InvalidArgument")), []
    open_at(server, said=said).write("a", b"one")
    assert said == []


def test_a_refusal_for_another_reason_does_not_cost_the_checksums(serve) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="the bucket is asleep"):
        open_at(serve(when(lambda r: r.method == "PUT", 400, "Odd", "the bucket is asleep")), said=said).write("a", b"")
    assert said == []


@pytest.mark.parametrize(
    "server",
    [
        {"faults": [when(lambda r: r.condition, 501, "NotImplemented", "A header implies functionality")]},
        {"faults": [when(lambda r: r.condition, 400, "InvalidArgument", "If-None-Match")]},
        {"faults": [when(lambda r: r.condition == "*", 501, "NotImplemented")]},
        {"faults": [when(lambda r: r.condition not in (None, "*"), 501, "NotImplemented")]},
        {"conditions": False},
    ],
)
def test_a_server_without_conditional_writes_is_refused_by_name(serve, server) -> None:
    running = serve(*server.get("faults", []), conditions=server.get("conditions", True))
    store = open_at(running)
    store.write("data/a.npz", b"needs none")
    with pytest.raises(UsageError, match=r"(lacks|ignores).*conditional|conditions") as caught:
        store.create("claim", b"")
    assert "?conditional_writes=off" in str(caught.value)
    assert "pre/claim" not in running.objects
    assert set(running.objects) == {"pre/data/a.npz"}, "what it was tried with is gone"


def test_the_way_out_works(serve) -> None:
    store = open_at(serve(when(lambda r: r.condition, 501, "NotImplemented")), "&conditional_writes=off")
    version = store.create("claim", b"one")
    assert version
    assert store.create("claim", b"two") is None
    second = store.replace("claim", b"three", version)
    assert second
    assert store.replace("claim", b"four", version) is None
    assert store.read("claim") == b"three"
    for wrong in ("&conditional_writes=on", "&conditional_writes=", "&conditional=off"):
        with pytest.raises(UsageError, match="conditional"):
            open_at(serve(), wrong)


def test_conditions_are_tried_once_per_store_and_remembered(serve) -> None:
    server = serve()
    assert open_at(server).create("claim", b"one")
    tries = [line for line in server.seen if line.startswith("PUT pre/checks/")]
    assert len(tries) == 5
    server.seen.clear()
    assert open_at(server).create("claim", b"two") is None
    assert [line for line in server.seen if line.startswith("PUT")] == ["PUT pre/claim"]


def test_reading_tries_nothing(serve) -> None:
    server = serve(when(lambda r: r.method in ("PUT", "DELETE"), 403, "AccessDenied"))
    store = open_at(server)
    assert not store.exists("a")
    assert list(store.list()) == []
    assert all(line.startswith(("GET", "HEAD")) for line in server.seen)


def test_an_address_that_is_no_s3_server_is_said_when_writing(serve) -> None:
    store = open_at(serve(always(404, "", "")))
    assert not store.exists("a")
    for write in (lambda: store.write("a", b""), lambda: store.create("a", b"")):
        with pytest.raises(UsageError, match=r"knows no such address .*check the endpoint and its path"):
            write()


def certificate(folder: Path, *, name: str = "IP:127.0.0.1") -> Path:
    """Write a certificate that signed itself, with its key, as one PEM file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, made, both = (folder / f"{part}.pem" for part in ("key", "certificate", "server"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=ours", "-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(made.read_bytes() + key.read_bytes())
    return both


@pytest.mark.parametrize(
    ("options", "bundle", "expected"),
    [
        ({}, None, "set AWS_CA_BUNDLE to the certificate"),
        ({"name": "DNS:elsewhere.example"}, "its own", "the name that the server's certificate is made for"),
        ({}, "missing", "AWS_CA_BUNDLE to a file"),
        ({}, "empty", "AWS_CA_BUNDLE to a file"),
        ({}, "its own", None),
    ],
)
def test_a_certificate_that_is_not_trusted_ends_at_once(serve, tmp_path, monkeypatch, options, bundle, expected):
    pem, server = certificate(tmp_path, **options), serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    (tmp_path / "empty.pem").write_bytes(b"")
    files = {"its own": pem, "missing": tmp_path / "none.pem", "empty": tmp_path / "empty.pem"}
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(files[bundle]))
    store = S3Store(server.uri.replace("http:", "https:"), Patience(20))
    begin = time.monotonic()
    if expected is None:  # what the first line advises works
        assert not store.exists("a")
        return
    with pytest.raises(UsageError, match=expected):
        store.exists("a")
    assert time.monotonic() - begin < 15


def test_tls_where_there_is_none(serve) -> None:
    with pytest.raises(UsageError, match="write http:// in the endpoint"):
        S3Store(serve().uri.replace("http:", "https:"), Patience(20)).exists("a")


def test_a_name_that_does_not_exist_asks_for_the_endpoint() -> None:
    store = S3Store("s3://bucket/x?endpoint=http://127.0.0.1:9", Patience(0.2))
    with pytest.raises(StorageError, match="check the endpoint"):
        store.exists("a")


def test_folders_need_no_trial(tmp_path) -> None:
    store = FolderStore(tmp_path)
    store.create("claim", b"")
    assert list(store.list()) == ["claim"]
