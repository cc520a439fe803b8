"""The fault matrix: every cause that a store, a machine or a file can have, with exit code, line and remedy.

A row makes the error as the program meets it. README's table of exit codes is made of ``MEANINGS``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import ProtocolError

from app.data.files import file_error
from app.errors import OS_CAUSES, AppError, os_error
from app.machine import enough_memory
from app.storage.answers import FULL, PASSING, PERMANENT, explain, explain_answer

MEANINGS = {
    0: "done, or done already",
    2: "wrong command, setting, permission or credentials; less memory or rights than are needed; another experiment's "
    "result under this name",
    66: "an input is missing, damaged, or of another architecture",
    69: "storage unreachable or full: try again",
    70: "a bug",
    75: "stopped by a signal, with a checkpoint, or another process has the job: try again",
    76: "NaN, or the representation collapsed; the curves are kept",
}  # fmt: skip

URI, KEY = "s3://bucket/prefix", "runs/r/record.json"


@dataclass(frozen=True)
class Fault:
    """One cause.

    Attributes:
        area: where it comes from: s3, network, folder, data, machine.
        cause: in words.
        make: the error as the user gets it.
        code: of the exit.
        says: words of the cause in the line.
        remedy: words of what to do.
        tried: the test that does what the remedy says, and sees it work.
    """

    area: str
    cause: str
    make: Callable[[], BaseException]
    code: int
    says: str
    remedy: str
    tried: str = ""


TROUBLE = "tests/storage/test_s3_trouble.py::"
TRIED = {
    "AuthorizationHeaderMalformed": TROUBLE + "test_the_servers_reason_is_shown_whatever_is_asked_first",
    "NotImplemented": TROUBLE + "test_the_way_out_works",
}


def answer(status: int, code: str = "", message: str = "so it is") -> Callable[[], AppError]:
    """What a server's answer becomes."""
    parsed = {
        "Error": {"Code": code or str(status), "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
    }
    return lambda: explain_answer(parsed, URI, f"{URI}/{KEY}")


def raised(error: Exception, *, reached: bool = True) -> Callable[[], Exception]:
    """What an exception of boto3 becomes."""
    return lambda: explain(error, URI, KEY, reached=reached)


def tls(text: str) -> Callable[[], Exception]:
    return raised(boto.SSLError(endpoint_url="https://host", error=text))


def on_disk(number: int) -> Callable[[], AppError]:
    return lambda: os_error(OSError(number, os.strerror(number)), Path("/store/runs/r/record.json"))


def in_data(number: int) -> Callable[[], AppError]:
    return lambda: file_error(OSError(number, os.strerror(number)), Path("/data/own.npz"), "reading")


def _s3() -> list[Fault]:
    rows = [
        Fault("s3", f"refused: {code}", answer(400 if "K" not in code else 403, code), 2, what, remedy.split(",")[0],
              TRIED.get(code, ""))
        for code, (what, remedy) in PERMANENT.items()
    ]  # fmt: skip
    rows += [
        Fault("s3", f"full: {code}", answer(400, code), 69, "storage is full", "make room") for code in sorted(FULL)
    ]
    rows += [
        Fault("s3", f"passing: {code}", answer(503, code), 69, f"answers 503 {code}", "run the same command again")
        for code in sorted(PASSING)
    ]
    for status, code, says, remedy in (
        (301, 2, "refuses the request (301", "check --store and the endpoint"),
        (400, 2, "refuses the request (400", "check --store and the endpoint"),
        (401, 2, "no permission (401", "check the credentials"),
        (403, 2, "no permission (403", "the bucket's policy"),
        (404, 66, "no such object", "check --store and --run-id"),
        (405, 2, "refuses the request (405", "check --store and the endpoint"),
        (408, 69, "answers 408", "again later"),
        (409, 69, "answers 409", "again later"),
        (411, 2, "refuses the request (411", "check --store and the endpoint"),
        (413, 2, "larger than the server takes (413", "client_max_body_size"),
        (416, 2, "refuses the request (416", "check --store and the endpoint"),
        (425, 69, "answers 425", "again later"),
        (429, 69, "answers 429", "again later"),
        (500, 69, "answers 500", "again later"),
        (501, 2, "refuses the request (501", "check --store and the endpoint"),
        (502, 69, "answers 502", "again later"),
        (503, 69, "answers 503", "again later"),
        (504, 69, "answers 504", "again later"),
        (505, 2, "refuses the request (505", "check --store and the endpoint"),
        (507, 69, "storage is full (507", "make room"),
        (520, 69, "answers 520", "again later"),
    ):
        rows.append(Fault("s3", f"a bare {status}", answer(status), code, says, remedy))
    for code, message in (
        ("AccessDenied", "User is not authorized to perform: s3:PutObject"),
        ("InvalidPayer", "All access to this object has been disabled"),
        ("AccountSuspended", "suspended"),
        ("InvalidObjectLockState", "locked"),
        ("XUnheardOf", "the moon is full"),
    ):
        rows.append(Fault("s3", f"forbidden: {code}", answer(403, code, message), 2, message, "the bucket's policy"))
    for code in ("InvalidArgument", "InvalidRequest", "MalformedXML", "NotImplemented", "InvalidDigest", "BadDigest"):
        rows.append(
            Fault("s3", f"refused: {code}", answer(400, code), 2, f"400 {code}: so it is", "check --store",
                  TRIED.get(code, ""))
        )  # fmt: skip
    return rows


def _network() -> list[Fault]:
    host: dict[str, Any] = {"endpoint_url": "https://host"}
    again = "run the same command again once storage works"
    errors: list[tuple[str, Exception, int, str, str]] = [
        ("no credentials", boto.NoCredentialsError(), 2, "locate credentials", "set AWS_ACCESS_KEY_ID"),
        ("half the credentials", boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), 2,
         "Partial credentials", "AWS_SECRET_ACCESS_KEY"),
        ("a role that gives none", boto.CredentialRetrievalError(provider="web", error_msg="no"), 2, "retrieving",
         "or a profile"),
        ("an SSO session that has ended", boto.UnauthorizedSSOTokenError(), 2, "SSO", "aws sso login"),
        ("no SSO token", boto.SSOTokenLoadError(error_msg="no"), 2, "SSO", "aws sso login"),
        ("a token that cannot be had", boto.TokenRetrievalError(provider="sso", error_msg="no"), 2, "token",
         "aws sso login"),
        ("wrong arguments", boto.ParamValidationError(report="bad"), 2, "bad", "check --store"),
        ("a wrong region's name", boto.InvalidRegionError(region_name="a b"), 2, "a b", "the AWS configuration"),
        ("no such host", boto.EndpointConnectionError(**host), 69, "Could not connect", again),
        ("nobody listens", boto.ConnectTimeoutError(**host), 69, "Connect timeout", again),
        ("an answer that does not come", boto.ReadTimeoutError(**host), 69, "Read timeout", again),
        ("a proxy that is away", boto.ProxyConnectionError(proxy_url="http://p"), 69, "proxy", again),
        ("a connection that breaks", boto.ConnectionClosedError(**host), 69, "Connection was closed", again),
        ("half an answer", boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), 69, "1", again),
        ("wrong bytes", boto.FlexibleChecksumError(error_msg="checksum a did not match b"), 69, "checksum", again),
        ("an answer that is none", ResponseParserError("no XML"), 69, "no XML", again),
        ("a break in a refusal", ProtocolError("Connection broken"), 69, "Connection broken", again),
        ("an answer that lacks something", KeyError("ETag"), 69, "'ETag'", "run the same command again"),
        ("any failure of HTTP", boto.HTTPClientError(error="odd"), 69, "odd", again),
    ]  # fmt: skip
    rows = [Fault("network", cause, raised(error), code, says, remedy) for cause, error, code, says, remedy in errors]
    rows += [
        Fault("network", f"{cause}, at first contact", raised(error, reached=False), 69, says, "check the endpoint")
        for cause, error, code, says, _ in errors
        if code == 69 and not isinstance(error, KeyError)
    ]
    trusted = TROUBLE + "test_a_certificate_that_is_not_trusted_ends_at_once"
    for cause, text, code, remedy, tried in (
        (
            "an unknown authority",
            "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate",
            2,
            "AWS_CA_BUNDLE",
            trusted,
        ),
        (
            "an unknown issuer",
            "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate",
            2,
            "AWS_CA_BUNDLE",
            trusted,
        ),
        (
            "a certificate of another name",
            "CERTIFICATE_VERIFY_FAILED: IP address mismatch, not valid for '127.0.0.1'",
            2,
            "use the name",
            "",
        ),
        ("a certificate of another host", "hostname '127.0.0.1' doesn't match 'elsewhere'", 2, "use the name", ""),
        ("a certificate that has expired", "CERTIFICATE_VERIFY_FAILED: certificate has expired", 2, "renew", ""),
        ("a certificate of tomorrow", "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", 2, "clock", ""),
        ("TLS where there is none", "[SSL: WRONG_VERSION_NUMBER] wrong version number", 2, "write http://", ""),
        ("HTTP where TLS is", "[SSL: HTTP_REQUEST] http request", 2, "write http://", ""),
        ("a bundle that is not there", "[Errno 2] No such file or directory", 2, "AWS_CA_BUNDLE to a file", ""),
        (
            "a bundle without certificates",
            "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate",
            2,
            "(PEM), or unset",
            "",
        ),
        ("an old server", "[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol", 2, "AWS_CA_BUNDLE", ""),
        ("a handshake that breaks", "EOF occurred in violation of protocol", 69, again, ""),
        ("a handshake that takes too long", "The handshake operation timed out", 69, again, ""),
    ):
        rows.append(Fault("network", cause, tls(text), code, text.split("]")[-1].strip()[:20], remedy, tried))
    return rows


def _disks() -> list[Fault]:
    rows = [
        Fault("folder", os.strerror(number), on_disk(number), kind.exit_code, what, remedy)
        for number, (kind, what, remedy) in OS_CAUSES.items()
    ]
    passing = (
        "EIO ETIMEDOUT EBUSY EAGAIN ENXIO ENODEV EHOSTDOWN EHOSTUNREACH ENETDOWN EREMOTEIO ENFILE ENOLCK ECONNRESET"
    )
    rows += [
        Fault("folder", os.strerror(getattr(errno, name)), on_disk(getattr(errno, name)), 69,
              os.strerror(getattr(errno, name)), "run the same command again")
        for name in passing.split()
    ]  # fmt: skip
    rows += [
        Fault("data", f"reading: {os.strerror(number)}", in_data(number), kind.exit_code, what, remedy)
        for number, (kind, what, remedy) in OS_CAUSES.items()
        if number != errno.ENOTDIR
    ]
    rows += [
        Fault("data", f"reading: {os.strerror(number)}", in_data(number), 66, "no such file", "check the path")
        for number in (errno.ENOENT, errno.ENOTDIR)
    ]
    rows.append(Fault("data", "reading: Input/output error", in_data(errno.EIO), 69, "Input/output error", "again"))
    return rows


def in_memory(error: Exception) -> Callable[[], BaseException]:
    """What a want of memory in a training becomes."""

    def make() -> BaseException:
        try:
            with enough_memory("pretrain.batch_size"):
                raise error
        except AppError as explained:
            return explained

    return make


def _machine() -> list[Fault]:
    lower, memory = "lower pretrain.batch_size", "tests/test_machine.py::test_really_too_much"
    return [
        Fault("machine", cause, in_memory(error), 2, says, lower, memory)
        for cause, error, says in (
            ("no memory for Python", MemoryError(), "out of memory"),
            ("no memory for torch", RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
            ("no memory for oneDNN", RuntimeError("could not create a memory object"), "out of memory"),
            ("no memory for C++", RuntimeError("std::bad_alloc"), "out of memory"),
            ("no memory to map", OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
            ("no memory on the GPU", RuntimeError("CUDA out of memory. Tried to allocate"), "GPU is out of memory"),
            ("no memory for cuBLAS", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "GPU is out of memory"),
            ("no memory for cuDNN", RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "GPU is out of memory"),
        )
    ]


ROWS = [*_s3(), *_network(), *_disks(), *_machine()]
