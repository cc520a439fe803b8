"""Where an S3 store is, as ``--store`` says it, and the connection there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from app.errors import UsageError
from app.storage.answers import one_line
from app.storage.base import check_key

CONNECT_TIMEOUT, READ_TIMEOUT = 5, 20  # seconds


@dataclass(frozen=True)
class Address:
    """A bucket, a prefix in it, and how its server is spoken to.

    Attributes:
        bucket: its name.
        prefix: of all keys, without a slash at its end; perhaps empty.
        endpoint: URL of the server; None: as boto3 finds it.
        path_style: whether the bucket is named in the path, and not in the host.
        guarded: whether the server keeps the conditions of a write.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    path_style: bool
    guarded: bool

    @classmethod
    def of(cls, uri: str) -> Address:
        """Read ``s3://bucket/prefix?endpoint=…``; see ``S3Store``.

        Raises:
            UsageError: the URI is not of this form.
        """
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise UsageError("--store s3://…@…: credentials do not belong into the URI; give them as boto3 reads them")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or parts.fragment:
            raise UsageError(f"--store s3://{bucket}: not a bucket's name; write s3://bucket/prefix")
        if unknown := options.keys() - {"endpoint", "path_style", "conditional_writes"}:
            raise UsageError(
                f"--store s3://{bucket}?{min(unknown)}=…: unknown; there are endpoint, path_style, conditional_writes"
            )
        if options.get("conditional_writes", "off") != "off":
            raise UsageError(f"--store s3://{bucket}?conditional_writes=…: give off, or leave it out")
        return cls(
            bucket=bucket,
            prefix=check_key(prefix) if prefix else "",
            endpoint=_endpoint(options),
            path_style=_path_style(options),
            guarded="conditional_writes" not in options,
        )

    @property
    def uri(self) -> str:
        """The place without options."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def connect(self, **more: str) -> Any:
        """Return boto3's client of the server; ``more`` is for its configuration.

        Raises:
            UsageError: boto3 finds no usable configuration.
        """
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"total_max_attempts": 1},  # Patience tries again, and knows when a signal has come
            s3={"addressing_style": "path" if self.path_style else "virtual"},
            tcp_keepalive=True,
            **more,
        )
        try:
            return boto3.session.Session().client("s3", endpoint_url=self.endpoint, config=config)
        except (BotoCoreError, ValueError) as error:
            raise UsageError(f"--store {self.uri}: {one_line(error)}; check the AWS configuration") from error


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
