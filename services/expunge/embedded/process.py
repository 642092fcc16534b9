"""A server as a child process: started under a guardian, in a session of its own so that Ctrl-C reaches us and not it,
stopped cleanly or killed, and gone when we are, however we end.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from expunge.domain.errors import ExpungeError

LOOPBACK = "127.0.0.1"
PORTS = range(15000, 32000)
"""Below the range from which Linux takes ports for outgoing connections, so that none of those can take ours while a
server restarts."""

SERVER_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""All of it, so that no variable of the developer's shell changes how a server behaves."""

LOG_TAIL = 2000
"""Characters of a server's log that an error quotes."""


class ServerFailed(ExpungeError):  # noqa: N818 - named like its siblings, for what happened
    """An embedded server did not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group that a server runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to run one server. `log` takes both of its outputs; `grace` is the seconds from `stop_signal` to SIGKILL."""

    argv: tuple[str, ...]
    cwd: Path
    log: Path
    stop_signal: signal.Signals
    grace: float
    identity: Identity | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: SERVER_ENVIRONMENT)


class ServerProcess:
    """One running server and its guardian."""

    def __init__(self, guardian: subprocess.Popen[bytes], pid: int, command: ServerCommand) -> None:
        self.pid = pid
        self._guardian = guardian
        self._command = command

    @classmethod
    def spawn(cls, command: ServerCommand) -> Self:
        """Start it; returns at once, before the server is ready."""
        runs_as = "-" if command.identity is None else f"{command.identity.uid}:{command.identity.gid}"
        with command.log.open("ab") as log:
            guardian = subprocess.Popen(  # noqa: S603 - our own script with arguments of our own
                [
                    *(sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py"))),
                    *(str(int(command.stop_signal)), str(command.grace), runs_as),
                    *command.argv,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # a letter is sent at once, and none is left to fail when the pipe is closed
                cwd=command.cwd,
                env=dict(command.environment),
                start_new_session=True,
            )
        if guardian.stdout is None:
            raise ServerFailed
        with guardian.stdout as announced:
            pid = announced.readline()
        if not pid:
            guardian.wait()
            raise ServerFailed(f"the guardian of {command.argv[0]} ended at once: {_tail(command.log)}")
        return cls(guardian, int(pid), command)

    @property
    def running(self) -> bool:
        return self._guardian.poll() is None

    def await_ready(self, ready: Callable[[], bool], limit: float) -> None:
        """Wait until `ready()`, at most `limit` seconds. Raises `ServerFailed`, with the server's last words, if it
        ends or is too slow; it is gone then."""
        give_up = time.monotonic() + limit
        while not ready():
            if not self.running:
                self.stop()
                raise ServerFailed(f"{self._command.argv[0]} ended during start: {_tail(self._command.log)}")
            if time.monotonic() > give_up:
                self.kill()
                raise ServerFailed(f"{self._command.argv[0]} not ready in {limit:g} s: {_tail(self._command.log)}")
            time.sleep(0.02)

    def stop(self) -> int:
        """Ask it to end, and make it end after the grace. Idempotent; returns when all of its processes are gone: its
        exit status, 128 + signal if it was killed."""
        self._order(b"s")
        return self._guardian.returncode

    def kill(self) -> None:
        """SIGKILL to the server and what it leaves behind, as a crash would end it. Idempotent, returns as `stop`."""
        self._order(b"k")

    def _order(self, letter: bytes) -> None:
        orders = self._guardian.stdin
        if orders is None or orders.closed:
            return
        # A broken pipe: it has ended by itself, which is what was asked.
        with suppress(BrokenPipeError):
            orders.write(letter)
        # Waits with the pipe open: closing it is an order too.
        self._guardian.wait()
        orders.close()


class EmbeddedServer(ABC):
    """A server that can be stopped, killed and started again in its place. `_run` starts it and sets `_process`."""

    _process: ServerProcess | None = None

    @abstractmethod
    def _run(self) -> None: ...

    @property
    def pid(self) -> int | None:
        """The server's process, or `None` when stopped."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether its process is there. One that was stopped is not."""
        return self._process is not None and self._process.running

    def stop(self) -> None:
        """A clean shutdown. Idempotent."""
        if self._process:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would. Idempotent."""
        if self._process:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop if running, and start on the same ports, so that clients find it again."""
        self.stop()
        self._run()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on now. Another process may take one before you do: retry then."""
    found: list[int] = []
    for port in random.sample(PORTS, k=min(len(PORTS), 500)):
        if len(found) == count:
            break
        if _bindable(port):
            found.append(port)
    if len(found) < count:
        raise ServerFailed(f"expected {count} free ports among {PORTS.start} to {PORTS.stop}, found {len(found)}")
    return found


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL:].strip() or "(its log is empty)"
