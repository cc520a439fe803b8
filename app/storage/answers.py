"""What S3 servers answer: what each refusal and each failure of boto3 means, and what to do about it."""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from app.errors import AppError, StorageError, UsageError
from app.storage.base import MissingObject

# Codes of S3's error answers whose cause is known: what is wrong, and what to do.
KEYS = ("the server refuses the credentials", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
EXPIRED = (
    "the session token has expired",
    "get a new one (AWS_SESSION_TOKEN, or `aws sso login`), and run the same command again",
)
TOKEN = (
    "the server does not take the session token",
    "set AWS_SESSION_TOKEN anew together with its key, or unset it for a key that has none",
)
REGION = ("the request is signed for the wrong region", "set AWS_DEFAULT_REGION to the bucket's")
CLOCK = ("this machine's clock is wrong", "set it (by NTP), and run the same command again")
KMS = ("the bucket's encryption key cannot be used", "grant its use to this account, or ask the bucket's owner")
LIMIT = (
    "the object is larger than the server takes",
    "raise its limit, or the proxy's before it (nginx: client_max_body_size)",
)
PERMANENT: dict[str, tuple[str, str]] = {
    "InvalidAccessKeyId": KEYS,
    "SignatureDoesNotMatch": KEYS,
    "ExpiredToken": EXPIRED,
    "ExpiredTokenException": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "InvalidToken": TOKEN,
    "RequestTimeTooSkewed": CLOCK,
    "RequestExpired": CLOCK,
    "AuthorizationHeaderMalformed": REGION,
    "AuthorizationQueryParametersError": REGION,
    "IllegalLocationConstraintException": REGION,
    "PermanentRedirect": REGION,
    "InvalidRegion": REGION,
    "NoSuchBucket": ("there is no such bucket", "create it, or check --store and the endpoint"),
    "InvalidBucketName": ("the server does not take the bucket's name", "check --store"),
    "AccountProblem": ("the account is barred", "ask the bucket's owner"),
    "AllAccessDisabled": ("the bucket is barred", "ask the bucket's owner"),
    "InvalidObjectState": ("the object is archived", "restore it first"),
    "KMS.DisabledException": KMS,
    "KMS.NotFoundException": KMS,
    "KMS.KMSInvalidStateException": KMS,
    "EntityTooLarge": LIMIT,
    "MethodNotAllowed": (
        "the address does not take what S3 takes",
        "check the endpoint and its path: is it the server's S3 port?",
    ),
}
FULL = {"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded",
        "InsufficientStorage", "InsufficientCapacity"}  # fmt: skip
PASSING = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError",
           "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict"}  # fmt: skip


# What a certificate or an address that can never work says; other failures of TLS may pass.
UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|doesn't match|WRONG_VERSION_NUMBER|HTTP_REQUEST|UNSUPPORTED_PROTOCOL|NO_CERTIFICATE"
    r"|PEM lib|Errno 2\b"
)


class Conflict(Exception):
    """The condition of a conditional write did not hold."""


class Lost(Exception):
    """A multipart upload is not known to the server: completed earlier, or aborted."""


class Refusal(UsageError):
    """A server's final no.

    Attributes:
        status: HTTP's status.
        code: the server's word for the reason; the status where it gave none.
    """

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:  # defaults are for pickle
        super().__init__(message)
        self.status, self.code = status, code


def explain_answer(answer: Mapping[str, Any], uri: str, where: str) -> AppError:
    """Translate an answer of an S3 server that is no success.

    Args:
        answer: as botocore parses it: ``Error`` with ``Code`` and ``Message``, ``ResponseMetadata``.
        uri: the store.
        where: the object.
    """
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    error = answer.get("Error", {})
    code = str(error.get("Code") or status)
    said = f"{status} {code}" if code != str(status) else f"{status}"
    if message := plain(str(error.get("Message") or "")):
        said += f": {message}"
    if status in (507,) or code in FULL:
        return StorageError(f"{where}: storage is full ({said}); make room and run the same command again")
    if code in PERMANENT:
        what, remedy = PERMANENT[code]
        if PERMANENT[code] == REGION and (region := _region(answer)):
            remedy = f"set AWS_DEFAULT_REGION={region}"
        return Refusal(f"{uri}: {what} ({said}); {remedy}", status, code)
    if status == 404:
        return MissingObject(f"{where}: there is no such object; check --store and --run-id")
    if status in (401, 403):
        return Refusal(f"{uri}: no permission ({said}); check the credentials and the bucket's policy", status, code)
    if status in (408, 409, 425, 429) or code in PASSING or (status >= 500 and status not in (501, 505)):
        return StorageError(f"{where}: the server answers {said}; run the same command again later")
    if status == 413:
        return Refusal(f"{where}: {LIMIT[0]} ({said}); {LIMIT[1]}", status, code)
    return Refusal(f"{where}: the server refuses the request ({said}); check --store and the endpoint", status, code)


def _region(answer: Mapping[str, Any]) -> str | None:
    """Return the region that the server names as the right one."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    error = answer.get("Error", {})
    found = re.search(r"expecting '([\w-]+)'", str(error.get("Message", "")))
    region = error.get("Region") or headers.get("x-amz-bucket-region") or (found and found[1])
    return region if region and re.fullmatch(r"[\w-]{1,40}", str(region)) else None


def plain(text: str, limit: int = 200) -> str:
    """Return somebody else's words on one line, shortened, without what they may hold of credentials."""
    text = re.sub(r"//[^\s\"']*@", "//", " ".join(text.split()))
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{8,}|(?<=X-Amz-)(Signature|Credential|Security-Token)=[^&\s]+", "…", text)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if len(secret := os.environ.get(name, "")) >= 8:  # a shorter one is a stand-in, and part of many words
            text = text.replace(secret, "…")
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def is_boto(error: Exception) -> bool:
    """Say whether boto3, or what it sends requests with, raised this."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return isinstance(error, (BotoCoreError, ClientError, HTTPError))


def explain(error: Exception, uri: str, key: str, *, reached: bool = True) -> Exception:
    """Turn what boto3 raises into ours; anything else comes back as it is.

    Args:
        error: what was raised.
        uri: the store.
        key: of the object.
        reached: whether the store has ever answered; if not, its address may be wrong.
    """
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    where = f"{uri}/{key}"
    if isinstance(error, AppError):
        return error
    if isinstance(error, boto.ClientError):
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412:
            return Conflict()
        if _code(error) == "NoSuchUpload":
            return Lost()
        return explain_answer(error.response, uri, where)
    if isinstance(error, (boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError, boto.TokenRetrievalError)):
        return UsageError(f"{uri}: {one_line(error)}; run `aws sso login`, then the same command again")
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return UsageError(f"{uri}: {one_line(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, boto.SSLError) and UNTRUSTED.search(str(error)):
        return UsageError(f"{uri}: {one_line(error)}; {_tls_remedy(str(error))}")
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
        remedy = "" if reached else "check the endpoint (http or https? its port?), or "
        return StorageError(f"{where}: {one_line(error)}; {remedy}run the same command again once storage works")
    if isinstance(error, KeyError):  # an answer without what every answer has: damaged on its way
        return StorageError(f"{where}: the server's answer lacks {error}; run the same command again")
    if isinstance(error, boto.BotoCoreError):
        return UsageError(f"{uri}: {one_line(error)}; check --store and the AWS configuration")
    return error


def _tls_remedy(text: str) -> str:
    if "WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text:
        return "the server speaks no TLS there: write http:// in the endpoint"
    if re.search(r"hostname|IP address|not valid for|doesn't match", text, re.I):
        return "use the name that the server's certificate is made for as the endpoint"
    if "expired" in text or "not yet valid" in text:
        return "renew the server's certificate, or set this machine's clock"
    if "Errno 2" in text or "PEM lib" in text or "NO_CERTIFICATE" in text:
        return "set AWS_CA_BUNDLE to a file of certificates (PEM), or unset it"
    return "set AWS_CA_BUNDLE to the certificate (PEM) of the authority that signed the server's"


def _code(error: BaseException) -> str | None:
    from botocore.exceptions import ClientError

    return str(error.response.get("Error", {}).get("Code")) if isinstance(error, ClientError) else None


def gives_no_reason(error: Exception) -> bool:
    """Say whether a refusal, of a HEAD, is a bare status that leaves open what to do."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return (
        _code(error) == str(status) and status not in (404, 408, 409, 412, 416, 429) and (status < 500 or status == 501)
    )


def may_be_damage(error: Refusal) -> bool:
    """Say whether a refusal may come from a request that was damaged on its way to the server."""
    return error.code == "SignatureDoesNotMatch" or (error.status == 400 and error.code not in PERMANENT)


def one_line(error: BaseException) -> str:
    """Return the error's text on one line, without what it may hold of credentials."""
    return plain(str(error), 400) or type(error).__name__


def age(answer: dict[str, Any]) -> float:
    """Return the seconds since the object was written: both times are the server's."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
    written: float = answer["LastModified"].timestamp()
    return max(0.0, now - written)
