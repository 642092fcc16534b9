"""An S3 server on this machine that is not ours and not a mock: Versity S3 Gateway over a directory.

`EXPUNGE_VERSITYGW` names its binary; else it is looked for on PATH, and else built once, where Go is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
CACHE: Final = Path.home() / ".cache" / "expunge" / "versitygw"
BUILD_SECONDS: Final = 580
START_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class VersityGateway:
    """A running gateway: S3 at `endpoint`, for the root user of these keys. Buckets may keep versions."""

    endpoint: str
    access_key: str = "testing"
    secret_key: str = "testing-secret"
    region: str = "us-east-1"

    @classmethod
    @contextmanager
    def start(cls, directory: Path) -> Iterator[VersityGateway]:
        """A gateway over `directory` on a free port of this machine, while the context lasts. Skips the test aloud where
        there is no binary and none can be built."""
        folders = {name: directory / name for name in ("data", "meta", "versions")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made = cls(f"http://127.0.0.1:{port}")
        command = [
            binary(), "--port", f"127.0.0.1:{port}", "--access", made.access_key, "--secret", made.secret_key,
            "--region", made.region, "--quiet", "--health", "/health",
            "posix", "--sidecar", str(folders["meta"]), "--versioning-dir", str(folders["versions"]), str(folders["data"]),
        ]  # fmt: skip
        with (
            (directory / "versitygw.log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            try:
                _until_it_answers(f"{made.endpoint}/health", process)
                yield made
            finally:
                process.terminate()


def binary() -> str:
    """The program. Where it can be neither found nor built the test is skipped, but not in CI, where it would be forgotten."""
    if (given := os.environ.get("EXPUNGE_VERSITYGW")) or (given := shutil.which("versitygw")):
        return given
    built = CACHE / "versitygw"
    if not built.exists():
        _build(built)
    return str(built)


def _build(target: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("NOT CHECKED against a real S3 server: no versitygw on this machine, and no Go to build it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        done = subprocess.run(
            [go, "install", PACKAGE], env={**os.environ, "GOBIN": folder, "GOFLAGS": "-mod=mod"}, cwd=folder,
            capture_output=True, text=True, check=False, timeout=BUILD_SECONDS,
        )  # fmt: skip
        if done.returncode:
            said = f"NOT CHECKED against a real S3 server: go could not build versitygw: {done.stderr[-400:]}"
            pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
        Path(folder, "versitygw").replace(target)


def _until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                break
    raise RuntimeError(f"expected versitygw to answer within {START_SECONDS} s; exit code {process.poll()}")
