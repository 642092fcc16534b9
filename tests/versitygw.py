"""versitygw, a real S3 server over plain folders: what it keeps is files, so that absence can be shown by a byte scan.

The program is found by EXPUNGE_VERSITYGW or on PATH, or built once from its Go module into the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from expunge.embedded.process import ServerCommand, ServerProcess, free_ports

MODULE: Final = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
CACHE: Final = Path.home() / ".cache/expunge/versitygw"
BUILD_SECONDS: Final = 600


class NoVersityGateway(Exception):  # noqa: N818 - a reason to skip, in words
    """There is no versitygw on this machine, and no Go to build one."""


class NotBuilt(NoVersityGateway):
    """There is Go, and it did not build."""


def binary() -> Path:
    """The program. Raises `NoVersityGateway`."""
    named = os.environ.get("EXPUNGE_VERSITYGW") or shutil.which("versitygw")
    if named:
        return Path(named)
    CACHE.mkdir(parents=True, exist_ok=True)
    built = CACHE / "versitygw"
    with (CACHE / ".lock").open("w") as lock:  # tests of several clones may come at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build()
    return built


def _build() -> None:
    go = shutil.which("go")
    if go is None:
        raise NoVersityGateway("no versitygw on PATH or in EXPUNGE_VERSITYGW, and no Go to build one")
    environment = os.environ | {"GOBIN": str(CACHE), "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [go, "install", MODULE], env=environment, capture_output=True, timeout=BUILD_SECONDS, check=False, cwd=CACHE
    )
    if done.returncode:
        raise NotBuilt(f"versitygw could not be built: {done.stderr.decode()[-300:]}")


@dataclass
class VersityGateway:
    """A running server. `objects` and `versions`: the folders in which it keeps buckets and their old versions."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    objects: Path
    versions: Path
    _process: ServerProcess
    _program: Path

    @classmethod
    def start(cls, directory: Path) -> Self:
        """Start it on a free port of loopback; its data go below `directory`. Skips the test aloud where there is none
        and none can be built; in CI, where that would be forgotten, a failed build is a failure."""
        try:
            program = binary()
        except NotBuilt as why:
            pytest.fail(f"{why}") if os.environ.get("CI") else pytest.skip(f"NOT TESTED on versitygw: {why}")
        except NoVersityGateway as why:
            pytest.skip(f"NOT TESTED on versitygw: {why}")
        objects, versions, users = (directory / name for name in ("objects", "versions", "users"))
        for one in (objects, versions, users):
            one.mkdir(parents=True, exist_ok=True)
        port, access_key, secret_key = free_ports(1)[0], "root", secrets.token_hex(16)
        argv = (
            *(str(program), "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive", "--iam-dir", str(users)),
            *("posix", "--versioning-dir", str(versions), str(objects)),
        )
        environment = {"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}
        process = ServerProcess.spawn(
            ServerCommand(
                argv=argv, cwd=directory, log=directory / "versitygw.log", stop_signal=signal.SIGTERM, grace=5.0,
                environment=environment,
            )
        )  # fmt: skip
        endpoint = f"http://127.0.0.1:{port}"
        process.await_ready(lambda: answers(endpoint), 120.0)
        return cls(endpoint, access_key, secret_key, "us-east-1", objects, versions, process, program)

    def add_user(self, name: str) -> str:
        """A user without rights but those that bucket policies give; its secret key."""
        secret = secrets.token_hex(16)
        subprocess.run(
            [
                *(self._program, "admin", "--access", self.access_key, "--secret", self.secret_key),
                *("--endpoint-url", self.endpoint, "create-user", "--access", name, "--secret", secret, "--role", "user"),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        return secret

    def files(self, bucket: str) -> list[Path]:
        """Where everything of a bucket is. Made here where it is not yet: the server makes the second when it first keeps
        an old version."""
        folders = [self.objects / bucket, self.versions / bucket]
        for one in folders:
            one.mkdir(exist_ok=True)
        return folders

    def stop(self) -> None:
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def answers(endpoint: str) -> bool:
    """Whether an HTTP server is there, whatever it says."""
    with suppress(urllib.error.URLError, OSError):
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()  # noqa: S310 - loopback
        except urllib.error.HTTPError:
            return True
        return True
    return False
