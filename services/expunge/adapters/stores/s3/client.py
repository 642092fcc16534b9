"""Where an S3 store is, whose credentials reach it, and what its errors mean. Imports boto3 (extra `s3`).

Nothing of a boto3 exception leaves here but its code: its texts hold addresses with keys in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.ports import UNITS_AT_ONCE
from expunge.private import refuse_public

OWN: Final = ".expunge/"
"""Our own objects, below the store's prefix."""

MISSING: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload", "404"})
EMPTY: Final = frozenset({"InvalidRange", "416"})
"""How S3 says that an object has no bytes from there on."""
CONFLICTS: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
"""How S3 says that the condition of a write did not hold."""
UNSUPPORTED: Final = frozenset({"NotImplemented", "501", "405"})
SLOW: Final = frozenset(
    {"SlowDown", "503", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "429"}
)
PASSING: Final = SLOW | {"InternalError", "500", "502", "504", "RequestTimeout", "RequestTimeoutException", "no-answer"}
"""Codes after which the same call may succeed in a moment."""

READ: Final = "read objects (s3:GetObject, s3:GetObjectVersion)"
"""What `translated` says of a call that reads contents."""

_MOST_UNITS: Final = 8
"""Units at once: a page of each is more than a prefix takes a second."""
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 60
_ATTEMPTS: Final = 5
_MAX_KEY_BYTES: Final = 1024
_CREDENTIALS: Final = "check the keys, or the profile and role, that this worker was given"
_HINTS: Final = {
    "NoSuchBucket": "expected the store's bucket, there is none: create it, or correct EXPUNGE_STORES",
    "InvalidAccessKeyId": f"the store does not know the access key: {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the store refuses the secret key: {_CREDENTIALS}",
    "InvalidToken": f"the store refuses the session token: {_CREDENTIALS}",
    "ExpiredToken": f"the session token has expired: {_CREDENTIALS}",
    "RequestTimeTooSkewed": "this machine's clock is over 15 minutes from the store's: set it by NTP",
}
_OTHER_REGION: Final = frozenset(
    {
        "PermanentRedirect",
        "301",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "TemporaryRedirect",
    }
)
_making = Lock()
"""boto3 sessions are not for several threads, clients are."""
_models: Final = botocore.session.Session().get_component("data_loader")
"""Reading the description of S3 takes most of the time of making a client, so it is read once."""


class S3Trouble(Retryable):
    """A call that the store did not carry out; `code` is S3's word for it, or `no-answer`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Place:
    """What `s3://bucket/prefix?...` names. `prefix` is empty or ends with a slash. `profile` and `reader` are boto3
    profiles of who erases and who only reads; empty: boto3's own search (environment, files, the machine's role)."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str = ""
    reader: str = ""
    shared: bool = False
    """Readers may hold credentials that could erase: for a trial on one machine."""
    bypass: bool = False
    """Erase under governance-mode object lock."""
    files: tuple[str, ...] = ()
    """Directories in which the server keeps this bucket's objects as files, where this machine can read them."""
    threads: int = 4
    """Units that are worked on at once (but no more than `_MOST_UNITS`), and requests at once for one of them."""

    @property
    def units_at_once(self) -> int:
        return max(UNITS_AT_ONCE, min(self.threads, _MOST_UNITS))

    def key(self, unit: str) -> str:
        return self.prefix if unit == "." else f"{self.prefix}{unit}/"


def parse(url: str) -> tuple[Place, dict[str, str]]:
    """The place, and the parameters that are not about it. Raises `Misconfigured`."""
    parts = urlsplit(url)
    try:
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        threads = int(given.pop("threads", "4"))
    except ValueError:
        raise Misconfigured("expected name=value parameters after '?' in a store's URL, threads a number") from None
    if not parts.netloc or not 1 <= threads <= 64:  # noqa: PLR2004 - more sockets than that help nobody
        raise Misconfigured("expected s3://BUCKET/PREFIX, with 1 to 64 threads, as a store's URL")
    prefix = unquote(parts.path).strip("/")
    return (
        Place(
            bucket=parts.netloc,
            prefix=f"{prefix}/" if prefix else "",
            endpoint=given.pop("endpoint", None),
            region=given.pop("region", None),
            profile=given.pop("profile", ""),
            reader=given.pop("reader", ""),
            shared=_choice(given, "credentials", ("separate", "shared")) == "shared",
            bypass=_choice(given, "governance", ("respect", "bypass")) == "bypass",
            files=tuple(one for one in given.pop("files", "").split(",") if one),
            threads=threads,
        ),
        given,
    )


def _choice(given: dict[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = given.pop(name, allowed[0])
    if value not in allowed:
        raise Misconfigured(f"expected {name}={' or '.join(allowed)} in a store's URL")
    return value


def refuse_rest(rest: dict[str, str]) -> None:
    if rest:
        known = "endpoint, region, profile, reader, credentials, governance, files, threads"
        raise Misconfigured(f"{min(rest)} is no parameter of this kind of store's URL; known are {known}")


def client(place: Place, profile: str, *, attempts: int = _ATTEMPTS) -> Any:  # noqa: ANN401 - boto3 makes its classes as it runs
    """A client that signs as `profile`, and repeats a call up to `attempts` times."""
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=place.units_at_once * place.threads + 2,
        s3={"addressing_style": "path"} if place.endpoint else {},
    )
    with _making, translated("connect"):
        try:
            inner = botocore.session.Session(profile=profile or None)
            inner.register_component("data_loader", _models)
            _refuse_public_files(inner)
            session = boto3.session.Session(botocore_session=inner, region_name=place.region)
            return session.client("s3", endpoint_url=place.endpoint, config=config)
        except ProfileNotFound:
            raise Misconfigured("expected the profile of a store's URL among the AWS profiles, it is not") from None
        except ValueError:
            raise Misconfigured("expected endpoint=http(s)://HOST:PORT in a store's URL") from None


def _refuse_public_files(session: Any) -> None:  # noqa: ANN401 - a botocore session
    """Raises `Misconfigured` when the file that the credentials come from is everybody's to read."""
    found = session.get_credentials()
    variable = {"shared-credentials-file": "credentials_file", "config-file": "config_file"}.get(
        getattr(found, "method", "")
    )
    if variable:
        path = Path(session.get_config_variable(variable)).expanduser()
        refuse_public(path, path, "the store's credentials")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of boto3 as `S3Trouble`, saying what to do. `what`: the permission that the call needs, for a refusal."""
    try:
        yield
    except ClientError as error:
        trouble = _trouble(error, what)
    except (NoCredentialsError, PartialCredentialsError):
        trouble = S3Trouble("NoCredentials", f"no credentials for the store were found: {_CREDENTIALS}")
    except BotoCoreError as error:
        kind = type(error).__name__
        trouble = S3Trouble("no-answer", f"the store did not answer ({kind}): check its endpoint, and the way to it")
    else:
        return
    raise trouble from None


def _trouble(error: ClientError, what: str) -> S3Trouble:
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _OTHER_REGION:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region") or "its own"
        return S3Trouble("other-region", f"the bucket is in another region: set region={region} in EXPUNGE_STORES")
    if code in _HINTS:
        return S3Trouble(code, _HINTS[code])
    if code in {"AccessDenied", "403", "AllAccessDisabled"}:
        return S3Trouble(
            "AccessDenied", f"the store does not let these credentials {what}: grant it, see ops/stores/s3.md"
        )
    return S3Trouble(code, f"the store answered {code} (HTTP {status})")


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def refuse_hostile_keys(locators: Sequence[str]) -> None:
    """Each locator is one name, with a slash after it where all below it is meant."""
    for locator in locators:
        name = locator.removesuffix("/")
        if name in {"", ".", ".."} or "/" in name or "\0" in name or not utf8(name):
            raise Rejected(
                "hostile-locator", "expected one name (of a prefix: with a slash after it), got a path or a NUL"
            )


def utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_long(key: str) -> bool:
    """Longer than any key can be."""
    return len(key.encode()) > _MAX_KEY_BYTES
