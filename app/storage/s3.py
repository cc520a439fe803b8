"""A store in an S3 bucket."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from app.errors import InputError, StorageError, UsageError
from app.machine import cache_folder
from app.storage.address import Address
from app.storage.answers import Conflict, Lost, Refusal, age, explain, gives_no_reason, is_boto, may_be_damage, one_line
from app.storage.base import MissingObject, Patience, Versioned, check_key, sha256

PART = 16 * 2**20  # bytes of one part of a multipart upload; larger objects are uploaded in parts
DOUBTFUL_TRIES = 4  # for answers that say "your fault" but may stem from a request damaged on its way
CHECKS = "checks"  # folder of what a store's server is tried with
CONDITIONS = f"{CHECKS}/conditional-writes.json"  # there once the server has shown that it keeps conditions

T = TypeVar("T")


def _named(upload: dict[str, Any]) -> dict[str, str]:
    return {"Key": upload["Key"], "UploadId": upload["UploadId"]}


class S3Store:
    """Objects of a bucket below a prefix; see ``Store``.

    Every object carries its SHA-256 as metadata, and a read is compared with it. A write is one PUT or one
    multipart upload; conditional writes are ``If-None-Match`` and ``If-Match``. Credentials come from boto3's
    own chain (environment, profile, the pod's or machine's role), and are never part of a message.

    Args:
        uri: ``s3://bucket/prefix``, then perhaps ``?endpoint=URL`` (else ``AWS_ENDPOINT_URL_S3``, then
            ``AWS_ENDPOINT_URL``, then AWS itself), ``path_style=true`` or ``false`` (else
            ``BYOL_S3_PATH_STYLE``, else true with an endpoint of one's own) and ``conditional_writes=off``, for a
            server without them, where no job may ever run twice at once.
        patience: how long to try again.

    Raises:
        UsageError: the URI is not of this form, or boto3 finds no usable configuration.
    """

    def __init__(self, uri: str, patience: Patience | None = None) -> None:
        address = Address.of(uri)
        self.bucket, self.prefix = address.bucket, f"{address.prefix}/" if address.prefix else ""
        self.uri = address.uri
        self.address = uri
        self.patience = patience or Patience()
        self._open = address.connect
        self._client = self._open()
        self._guarded = address.guarded
        self._tried = False  # whether the server was seen to keep conditions
        self._put_works = False

    def read(self, key: str) -> bytes:
        """Return the object under ``key``."""
        return self.read_version(key).data

    def read_version(self, key: str, *, exact_age: bool = False) -> Versioned:
        """Return the object under ``key`` with its version and its age, by the server's clock."""
        del exact_age  # it always is
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
            return Versioned(data, answer["ETag"], age(answer))

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
        yield from self.sizes(prefix)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of each object whose key starts with the folder ``prefix``, sorted by key."""
        return {key: int(entry.get("Size", 0)) for key, entry in self._entries(prefix).items()}

    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Return the ETag of each object."""
        return {key: str(entry["ETag"]) for key, entry in self._entries(prefix).items()}

    def _entries(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What the server lists of each object below the folder ``prefix``, sorted by key."""
        asked = {"Bucket": self.bucket, "Prefix": self.prefix + (f"{check_key(prefix)}/" if prefix else "")}
        found: dict[str, dict[str, Any]] = {}
        while True:
            page = self._try(partial(self._client.list_objects_v2, **asked), asked["Prefix"].rstrip("/"))
            found |= {entry["Key"]: entry for entry in page.get("Contents", [])}
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
        # Consoles mark a "folder" by an empty object whose key ends in a slash: not one of ours.
        return {key[len(self.prefix) :]: found[key] for key in sorted(found) if not key.endswith("/")}

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
                with contextlib.suppress(Lost, MissingObject):
                    self._try(
                        partial(self._client.abort_multipart_upload, Bucket=self.bucket, **_named(upload)), prefix
                    )

    def local(self, key: str) -> Path:
        """Return a local copy, kept in a cache by the object's version."""
        head = self._head(key)
        name = sha256(f"{self.uri}/{key} {head['ETag']} {head['ContentLength']}".encode())[:32]
        folder = cache_folder("objects")
        if folder is None:
            raise UsageError("no folder for copies of objects can be written; set XDG_CACHE_HOME to one")
        path = folder / f"{name}{Path(key).suffix}"
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
        def request() -> dict[str, Any]:
            where = {"Bucket": self.bucket, "Key": self._key(key)}
            try:
                head: dict[str, Any] = self._client.head_object(**where)
            except Exception as error:
                if not gives_no_reason(error):
                    raise
                # The refusal of a HEAD has no body: asked by a GET, the server says why.
                head = self._client.get_object(**where, Range="bytes=0-0")
                head["ContentLength"] = int(head.get("ContentRange", "").rpartition("/")[2] or head["ContentLength"])
            return head

        return self._try(request, key)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        full, metadata = self._key(key), {"sha256": sha256(data)}

        def request() -> str:
            version: str = self._client.put_object(
                Bucket=self.bucket, Key=full, Body=data, Metadata=metadata, **condition
            )["ETag"]
            return version

        try:
            version = self._insist(request, key)
        except MissingObject as error:
            if "IfMatch" in condition:
                raise  # what was to be replaced is gone
            raise UsageError(
                f"{self.uri}: the server knows no such address ({one_line(error.__cause__ or error)}); check the "
                "endpoint and its path"
            ) from error
        self._put_works = True
        return version

    def _swap(self, key: str, data: bytes, **condition: str) -> str | None:
        if not self._guarded:
            return self._swap_unguarded(key, data, condition.get("IfMatch"))
        if not self._tried:
            self._try_conditions()
        return self._conditional_put(key, data, **condition)

    def _swap_unguarded(self, key: str, data: bytes, version: str | None) -> str | None:
        """Compare and write as two requests, for a server that cannot do it in one: somebody may come between."""
        try:
            found = self.read_version(key)
        except MissingObject:
            found = None
        return self._put(key, data) if (found and found.version) == version else None

    def _try_conditions(self) -> None:
        """Try whether the server keeps the conditions of a write, once per store: the store remembers it.

        Raises:
            UsageError: it refuses them, or ignores them, so that two copies of a job would both win.
        """
        if self.exists(CONDITIONS):
            self._tried = True
            return
        key = f"{CHECKS}/{secrets.token_hex(8)}"
        version = self._put(key, b"1")  # what refuses this one refuses more than conditions
        way_out = "use another server, or add ?conditional_writes=off to --store where no job ever runs twice at once"
        try:
            kept = (
                self._conditional_put(key, b"2", IfNoneMatch="*") is None
                and self._conditional_put(key, b"3", IfMatch=f'"{"0" * 32}"') is None
                and self._conditional_put(key, b"4", IfMatch=version) is not None
            )
        except UsageError as error:
            raise UsageError(
                f"{self.uri}: the server lacks conditional writes (If-None-Match, If-Match), by which one of several "
                f"copies of a job wins: {error.args[0].removeprefix(self.uri).lstrip('/: ')}; {way_out}"
            ) from error
        finally:
            self.delete(key)
        if not kept:
            raise UsageError(
                f"{self.uri}: the server ignores the conditions of a write (If-None-Match, If-Match), by which one of "
                f"several copies of a job wins; {way_out}"
            )
        self.write(CONDITIONS, json.dumps({"version": 1, "conditional_writes": "kept"}).encode())
        self._tried = True

    def _conditional_put(self, key: str, data: bytes, **condition: str) -> str | None:
        try:
            return self._put(key, data, **condition)
        except (Conflict, MissingObject):
            # The answer to a try that succeeded may have been lost: then what is there is ours.
            try:
                found = self.read_version(key)
            except MissingObject:
                return None
            return found.version if found.data == data else None

    def _upload(self, key: str, data: memoryview) -> None:
        full, digest = self._key(key), sha256(data)
        if not self._put_works:  # an upload must not find out half-way that the server refuses checksums
            self._put(probe := f"{CHECKS}/{secrets.token_hex(8)}", b"")
            self.delete(probe)
        for _ in range(DOUBTFUL_TRIES):
            upload = self._try(lambda: self._begin_upload(full, digest), key)
            try:
                self._send_parts(key, upload, data)
                return
            except Lost:
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
            if not is_boto(error):
                raise

    def _try(self, request: Callable[[], T], key: str) -> T:
        """Send a request until it is answered; translate what goes wrong into our errors."""
        doubtful = 0

        def operation() -> T:
            nonlocal doubtful
            try:
                return request()
            except Exception as error:
                wrong = explain(error, self.uri, key, reached=self.patience.reached)
                if isinstance(wrong, Refusal) and may_be_damage(wrong) and self.patience.reached:
                    doubtful += 1
                    if doubtful < DOUBTFUL_TRIES:
                        raise StorageError(str(wrong)) from error
                raise wrong from error

        try:
            return self.patience.retry(operation)
        except Refusal as error:
            if error.status == 403 and error.code in ("AccessDenied", "403") and not self._may_list():
                raise UsageError(
                    f"{error}; this account may not list the bucket, and then an object that is not there yet looks "
                    "like a forbidden one: grant s3:ListBucket, or check --store"
                ) from error
            raise

    def _may_list(self) -> bool:
        try:
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        except Exception as error:
            if not is_boto(error):
                raise
            return not isinstance(explain(error, self.uri, ""), Refusal)
        return True

    def _insist(self, request: Callable[[], T], key: str) -> T:
        """Send a request that writes; again without boto3's checksums where it is those that the server refuses."""
        try:
            return self._try(request, key)
        except Refusal as error:
            if error.status not in (400, 501) or not self._does_without_checksums():
                raise
        return self._try(request, key)

    def _does_without_checksums(self) -> bool:
        """Try a write without the checksums that boto3 sends unasked; keep to that if it works.

        The SHA-256 that every object carries still tells, when it is read, whether its bytes are right.
        """
        if self._client.meta.config.request_checksum_calculation == "when_required":
            return False
        plain_client = self._open(request_checksum_calculation="when_required")
        probe = self._key(f"{CHECKS}/{secrets.token_hex(8)}")
        try:
            plain_client.put_object(Bucket=self.bucket, Key=probe, Body=b"")
        except Exception as error:
            if not is_boto(error):
                raise
            return False
        plain_client.delete_object(Bucket=self.bucket, Key=probe)
        self._client = plain_client
        self.patience.say(
            f"{self.uri}: the server refuses uploads with checksums; going on without "
            "(AWS_REQUEST_CHECKSUM_CALCULATION=when_required does so from the start)"
        )
        return True
