"""S3 servers for tests: moto (in this process), ministack, versitygw, and any other by EXPUNGE_TEST_S3_ENDPOINT."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from expunge.embedded.process import ServerCommand, ServerProcess, free_ports
from tests.versitygw import VersityGateway, answers

ENDPOINT: Final = os.environ.get("EXPUNGE_TEST_S3_ENDPOINT")
"""Another server, such as Ceph RGW; with EXPUNGE_TEST_S3_ACCESS_KEY, ..._SECRET_KEY and, unless us-east-1, ..._REGION."""

_BUILT: Final = (pytest.mark.slow, pytest.mark.timeout(660))
"""The first test may have to build it."""
VERSITYGW: Final = pytest.param("versitygw", marks=_BUILT)
EXTERNAL: Final = pytest.param("external", marks=pytest.mark.slow)


def beyond(kind: str) -> Any:
    """A server that adds minutes and little else: it is left out, aloud, unless EXPUNGE_TEST_S3_ALL is set."""
    said = f"NOT TESTED on {kind}: EXPUNGE_TEST_S3_ALL is not set"
    return pytest.param(
        kind, marks=(pytest.mark.slow, pytest.mark.skipif("EXPUNGE_TEST_S3_ALL" not in os.environ, reason=said))
    )


@dataclass(frozen=True, slots=True)
class S3Server:
    """`gateway`: where the server's own files can be read and users be made."""

    kind: str
    endpoint: str
    access_key: str = "testing"
    secret_key: str = "testing"
    region: str = "us-east-1"
    gateway: VersityGateway | None = field(default=None, compare=False)

    def client(self, access_key: str = "", secret_key: str = "", **config: Any) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name=self.region,
            aws_access_key_id=access_key or self.access_key, aws_secret_access_key=secret_key or self.secret_key,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **config),
        )  # fmt: skip

    def bucket(self, *, versioning: str = "", lock: bool = False) -> str:
        """A new bucket. `versioning`: Enabled, Suspended, or never set."""
        name = f"t-{uuid4().hex}"
        s3 = self.client()
        s3.create_bucket(Bucket=name, **({"ObjectLockEnabledForBucket": True} if lock else {}))
        if versioning:
            for status in ("Enabled", versioning):
                s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
        return name

    def url(self, bucket: str, prefix: str = "photos", scheme: str = "s3", **more: str) -> str:
        given = {"endpoint": self.endpoint, "region": self.region, "credentials": "shared", **more}
        return f"{scheme}://{bucket}/{prefix}?{urlencode(given)}"

    def set_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """boto3 finds the administrator's keys."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", self.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.secret_key)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[S3Server]:
    """One server, or a skip that says what was not tested."""
    match kind:
        case "moto":
            with _moto() as server:
                yield server
        case "ministack":
            with _ministack(directory) as server:
                yield server
        case "versitygw":
            with VersityGateway.start(directory) as gateway:
                yield S3Server(kind, gateway.endpoint, gateway.access_key, gateway.secret_key, gateway.region, gateway)
        case _:
            if ENDPOINT is None:
                pytest.skip("NOT TESTED on another S3 server: EXPUNGE_TEST_S3_ENDPOINT is not set")
            given = {name: os.environ.get(f"EXPUNGE_TEST_S3_{name.upper()}", "") for name in _EXTERNAL_KEYS}
            yield S3Server(kind, ENDPOINT, given["access_key"], given["secret_key"], given["region"] or "us-east-1")


_EXTERNAL_KEYS: Final = ("access_key", "secret_key", "region")


@contextmanager
def _moto() -> Iterator[S3Server]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server("moto", f"http://{host}:{port}")
    finally:
        server.stop()


@contextmanager
def _ministack(directory: Path) -> Iterator[S3Server]:
    """In an environment of its own: it wants one exact botocore."""
    cached = Path.home() / ".cache/expunge/ministack/bin/ministack"
    program = os.environ.get("EXPUNGE_MINISTACK") or shutil.which("ministack") or (cached if cached.exists() else None)
    if program is None:
        pytest.skip("NOT TESTED on ministack: it is not in EXPUNGE_MINISTACK or on PATH (pip install ministack, apart)")
    port = free_ports(1)[0]
    # by default it listens on every interface
    environment = {
        "PATH": os.environ["PATH"],
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "HOME": str(directory),
    }
    process = ServerProcess.spawn(
        ServerCommand(
            argv=(str(program),), cwd=directory, log=directory / "ministack.log", stop_signal=signal.SIGTERM, grace=5.0,
            environment=environment,
        )
    )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{port}"
        process.await_ready(lambda: answers(endpoint), 120.0)
        yield S3Server("ministack", endpoint, "test", "test")
    finally:
        process.stop()
