"""A store in an S3 bucket: the one module that knows boto3."""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from app.errors import AppError, InputError, StorageError, UsageError
from app.storage.base import MissingObject, Patience, Versioned, check_key, sha256

PART = 16 * 2**20  # bytes of one part of a multipart upload; larger objects are uploaded in parts
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 20  # seconds
DOUBTFUL_TRIES = 4  # for answers that say "your fault" but may stem from a request damaged on its way

T = TypeVar("T")


class _Conflict(Exception):
    """The condition of a conditional write did not hold."""


class _Lost(Exception):
    """A multipart upload is not known to the server: completed earlier, or aborted."""


def _named(upload: dict[str, Any]) -> dict[str, str]:
    return {"Key": upload["Key"], "UploadId": upload["UploadId"]}


class S3Store:
    """Objects of a bucket below a prefix; see ``Store``.

    Every object carries its SHA-256 as metadata, and a read is compared with it. A write is one PUT or one
    multipart upload; conditional writes are ``If-None-Match`` and ``If-Match``. Credentials come from boto3's
    own chain (environment, profile, the pod's or machine's role), and are never part of a message.

    Args:
        uri: ``s3://bucket/prefix``, then perhaps ``?endpoint=URL`` (else ``AWS_ENDPOINT_URL_S3``, then
            ``AWS_ENDPOINT_URL``, then AWS itself) and ``path_style=true`` or ``false`` (else
            ``BYOL_S3_PATH_STYLE``, else true with an endpoint of one's own).
        patience: how long to try again.

    Raises:
        UsageError: the URI is not of this form, or boto3 finds no usable configuration.
    """

    def __init__(self, uri: str, patience: Patience | None = None) -> None:
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise UsageError("--store s3://…@…: credentials do not belong into the URI; give them as boto3 reads them")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or parts.fragment:
            raise UsageError(f"--store s3://{bucket}: not a bucket's name; write s3://bucket/prefix")
        if unknown := options.keys() - {"endpoint", "path_style"}:
            raise UsageError(f"--store s3://{bucket}?{min(unknown)}=…: unknown; there are endpoint and path_style")
        self.bucket, self.prefix = bucket, f"{check_key(prefix)}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.address = uri
        self.patience = patience or Patience()
        self._client = _client(_endpoint(options), _path_style(options), self.uri)

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""
        return self.read_version(key).data

    def read_version(self, key: str) -> Versioned:
        """Return the object under ``key`` with its version and age."""
        damaged = 0

        def operation() -> Versioned:
            nonlocal damaged
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            data: bytes = answer["Body"].read()
            expected = answer["Metadata"].get("sha256")
            if expected is not None and sha256(data) != expected:
                damaged += 1
                wrong = f"{self.uri}/{key}: damaged, its SHA-256 is not the one it was written with"
                if damaged >= DOUBTFUL_TRIES:
                    raise InputError(f"{wrong}; delete it and run the job again")
                raise StorageError(f"{wrong}; run the same command again")
            return Versioned(data, answer["ETag"], _age(answer))

        return self._try(operation, key)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Publish ``data`` under ``key``: one PUT, or a multipart upload that is complete or not there."""
        if len(data) <= PART:
            self._put(key, bytes(data))
        else:
            self._upload(key, memoryview(data))

    def create(self, key: str, data: bytes) -> str | None:
        """Publish an object if there is none under ``key``: its version, or None if there is one."""
        return self._swap(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has ``version``: the new version, or None if it has not."""
        return self._swap(key, data, IfMatch=version)

    def exists(self, key: str) -> bool:
        """Say whether there is an object under ``key``."""
        try:
            self._head(key)
        except MissingObject:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with the folder ``prefix``, sorted."""
        start = self.prefix + (f"{check_key(prefix)}/" if prefix else "")
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self._page(start, token)
            found += [entry["Key"] for entry in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                break
            token = {"ContinuationToken": page["NextContinuationToken"]}
        # Consoles mark a "folder" by an empty object whose key ends in a slash: not one of ours.
        yield from sorted(key[len(self.prefix) :] for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove the object under ``key``; no error if it is not there."""
        self._try(lambda: self._client.delete_object(Bucket=self.bucket, Key=self._key(key)), key)

    def clean(self, prefix: str) -> None:
        """Abort the uploads that writers that died left below ``prefix``: they are invisible, but cost space."""
        start = self.prefix + check_key(prefix) + "/"
        try:
            answer = self._try(lambda: self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=start), prefix)
        except UsageError as error:  # not every account may list uploads; the job can do without
            self.patience.say(f"{error}; unfinished uploads of earlier tries stay")
            return
        for upload in answer.get("Uploads", []):
            if upload["Key"].startswith(start):
                # Insisted on, unlike ``_abort``: nobody tidies after the last owner of a job.
                with contextlib.suppress(_Lost, MissingObject):
                    self._try(
                        partial(self._client.abort_multipart_upload, Bucket=self.bucket, **_named(upload)), prefix
                    )

    def local(self, key: str) -> Path:
        """Return a local copy, kept in a cache by the object's version."""
        head = self._head(key)
        name = sha256(f"{self.uri}/{key} {head['ETag']} {head['ContentLength']}".encode())[:32]
        path = _cache() / f"{name}{Path(key).suffix}"
        if not path.is_file():
            data = self.read(key)
            temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except OSError as error:
                raise StorageError(
                    f"{path}: cannot keep a copy of {self.uri}/{key} ({error.strerror}); set XDG_CACHE_HOME to a "
                    "folder with room"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)
        return path

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _head(self, key: str) -> dict[str, Any]:
        return self._try(lambda: self._client.head_object(Bucket=self.bucket, Key=self._key(key)), key)

    def _page(self, start: str, token: dict[str, str]) -> dict[str, Any]:
        return self._try(
            lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=start, **token), start.rstrip("/")
        )

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        full, metadata = self._key(key), {"sha256": sha256(data)}

        def request() -> str:
            version: str = self._client.put_object(
                Bucket=self.bucket, Key=full, Body=data, Metadata=metadata, **condition
            )["ETag"]
            return version

        return self._try(request, key)

    def _swap(self, key: str, data: bytes, **condition: str) -> str | None:
        try:
            return self._put(key, data, **condition)
        except (_Conflict, MissingObject):
            # The answer to a try that succeeded may have been lost: then what is there is ours.
            try:
                found = self.read_version(key)
            except MissingObject:
                return None
            return found.version if found.data == data else None

    def _upload(self, key: str, data: memoryview) -> None:
        full, digest = self._key(key), sha256(data)
        for _ in range(DOUBTFUL_TRIES):
            upload = self._try(lambda: self._begin_upload(full, digest), key)
            try:
                self._send_parts(key, upload, data)
                return
            except _Lost:
                # Either its completion went through and the answer was lost, or somebody cleaned up: go again.
                if self._head_digest(key) == digest:
                    return
            except BaseException:
                self._abort(full, upload)
                raise
        raise StorageError(f"{self.uri}/{key}: the server loses the upload again and again; run the same command again")

    def _begin_upload(self, full: str, digest: str) -> str:
        answer = self._client.create_multipart_upload(Bucket=self.bucket, Key=full, Metadata={"sha256": digest})
        upload: str = answer["UploadId"]
        return upload

    def _send_parts(self, key: str, upload: str, data: memoryview) -> None:
        full = self._key(key)
        parts = []
        for number, start in enumerate(range(0, len(data), PART), 1):
            part = bytes(data[start : start + PART])

            def send(number: int = number, part: bytes = part) -> dict[str, Any]:
                answer = self._client.upload_part(
                    Bucket=self.bucket, Key=full, UploadId=upload, PartNumber=number, Body=part
                )
                # A server that has checked the part by its checksum wants to see it again at the end.
                checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if answer.get("ChecksumCRC32") else {}
                return {"PartNumber": number, "ETag": answer["ETag"]} | checksum

            parts.append(self._try(send, key))
        self._try(
            lambda: self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=full, UploadId=upload, MultipartUpload={"Parts": parts}
            ),
            key,
        )

    def _head_digest(self, key: str) -> str | None:
        try:
            digest: str | None = self._head(key)["Metadata"].get("sha256")
        except MissingObject:
            return None
        return digest

    def _abort(self, full: str, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=full, UploadId=upload)
        except Exception as error:
            # Tidying must not hide what went wrong before it; the next owner of the job tidies again.
            if not _is_boto(error):
                raise

    def _try(self, request: Callable[[], T], key: str) -> T:
        """Send a request until it is answered; translate what goes wrong into our errors."""
        doubtful = 0

        def operation() -> T:
            nonlocal doubtful
            try:
                return request()
            except Exception as error:
                wrong = _explain(error, self.uri, key)
                if isinstance(wrong, UsageError) and _may_be_damage(error) and self.patience.reached:
                    doubtful += 1
                    if doubtful < DOUBTFUL_TRIES:
                        raise StorageError(str(wrong)) from error
                raise wrong from error

        return self.patience.retry(operation)


def _client(endpoint: str | None, path_style: bool, uri: str) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    style = "path" if path_style else "virtual"
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 1},  # Patience tries again, and knows when a signal has come
        s3={"addressing_style": style},
        tcp_keepalive=True,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"--store {uri}: {_one_line(error)}; check the AWS configuration") from error


def _endpoint(options: dict[str, str]) -> str | None:
    endpoint = options.get("endpoint") or None
    if endpoint is not None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise UsageError("--store …?endpoint=…: give an address, https://s3.example.org, without credentials")
    return endpoint


def _path_style(options: dict[str, str]) -> bool:
    word = options.get("path_style") or os.environ.get("BYOL_S3_PATH_STYLE")
    if not word:
        own = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return bool(own)
    if word.lower() not in ("true", "false"):
        raise UsageError(f"path_style={word}: give true or false (in --store, or as BYOL_S3_PATH_STYLE)")
    return word.lower() == "true"


def _cache() -> Path:
    """Return a folder for copies: the user's cache, or, where that cannot be written, a temporary one."""
    home = os.environ.get("XDG_CACHE_HOME")
    for base in (Path(home) if home else Path.home() / ".cache", Path(tempfile.gettempdir())):
        folder = base / "byol-med" / "objects"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise UsageError("no folder for copies of objects can be written; set XDG_CACHE_HOME to one")


def _age(answer: dict[str, Any]) -> float:
    """Seconds since the object was written: both times are the server's."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
    written: float = answer["LastModified"].timestamp()
    return max(0.0, now - written)


def _is_boto(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return isinstance(error, (BotoCoreError, ClientError, HTTPError))


def _explain(error: Exception, uri: str, key: str) -> Exception:
    """Turn what boto3 raises into ours; anything else comes back as it is."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    where = f"{uri}/{key}"
    if isinstance(error, AppError):
        return error
    if isinstance(error, boto.ClientError):
        return _explain_answer(error.response, uri, where)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return UsageError(f"{uri}: {_one_line(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(
        error,
        (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.IncompleteReadError,
            boto.FlexibleChecksumError,
            ResponseParserError,
            HTTPError,  # botocore lets it through when the connection breaks in the body of a refusal
        ),
    ):
        return StorageError(f"{where}: {_one_line(error)}; run the same command again once storage works")
    if isinstance(error, KeyError):  # an answer without what every answer has: damaged on its way
        return StorageError(f"{where}: the server's answer lacks {error}; run the same command again")
    if isinstance(error, boto.BotoCoreError):
        return UsageError(f"{uri}: {_one_line(error)}; check --store and the AWS configuration")
    return error


def _explain_answer(answer: dict[str, Any], uri: str, where: str) -> Exception:
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(answer.get("Error", {}).get("Code", status))
    if status == 412:
        return _Conflict()
    if code == "NoSuchUpload":
        return _Lost()
    if code == "NoSuchBucket":
        return UsageError(f"{uri}: there is no such bucket; create it, or check --store and the endpoint")
    if status == 404:
        return MissingObject(f"{where}: there is no such object; check --store and --run-id")
    if code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return UsageError(f"{uri}: the server refuses the credentials ({code}); check AWS_ACCESS_KEY_ID and its secret")
    if code == "RequestTimeTooSkewed":
        return UsageError(f"{uri}: the server refuses the request ({code}); set this machine's clock")
    if status in (401, 403):
        return UsageError(f"{uri}: no permission ({code}); check the credentials and the bucket's policy")
    if status == 507 or code in ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"):
        return StorageError(f"{where}: storage is full ({code}); make room and run the same command again")
    if status in (408, 409, 429) or (status >= 500 and status != 501):
        return StorageError(f"{where}: the server answers {status} ({code}); run the same command again later")
    return UsageError(f"{where}: the server refuses the request ({status} {code}); check --store and the endpoint")


def _may_be_damage(error: Exception) -> bool:
    """Say whether a refusal may come from a request that was damaged on its way to the server."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status == 400 or error.response.get("Error", {}).get("Code") == "SignatureDoesNotMatch"


def _one_line(error: Exception) -> str:
    """Return the error's text on one line, without what an address may hold of credentials."""
    return re.sub(r"//[^\s\"']*@", "//", " ".join(str(error).split())) or type(error).__name__
