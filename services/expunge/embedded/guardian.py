"""Runs one server as a child process and takes it down when the starter is gone. A script of its own, on the standard
library alone, because that keeps it small and single-threaded.

Why not PR_SET_PDEATHSIG in the starter: it fires when the *thread* that forked ends, not the process, and setting it
between fork and exec is unsafe in a threaded program. Here a pipe tells: the kernel closes it however the starter dies.
The server itself gets PR_SET_PDEATHSIG, for the day somebody kills the guardian.

Standard input: `s` asks for a clean stop, `k` for SIGKILL, end of file is `s`. Standard output: the server's pid, once.
The guardian ends only when every descendant of the server has ended, with the server's status (128 + signal if killed).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Arguments: stop signal, seconds of grace before SIGKILL, `uid:gid` to run as or `-`, then the command."""
    stop_signal, grace, identity, *command = sys.argv[1:]
    wakeups = _wake_on_child_exit()
    # Orphans of a killed server (PostgreSQL's backends) come to us, so our own end means that all of them are gone.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = _start(command, identity)
    os.write(1, b"%d\n" % server)
    os.close(1)
    return _attend(server, wakeups, int(stop_signal), float(grace))


def _attend(server: int, wakeups: int, stop_signal: int, grace: float) -> int:
    inputs = [0, wakeups]
    status: int | None = None
    kill_at: float | None = None
    while True:
        ended, childless = _reap(server)
        status = ended if ended is not None else status
        if childless:
            return _exit_code(status)
        if status is not None and kill_at is None:
            kill_at = time.monotonic() + grace  # for what the server left behind
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill(server if status is None else None)
        for ready in select.select(inputs, [], [], _until(kill_at))[0]:
            order = os.read(ready, 1)
            if ready == wakeups:
                continue
            if not order:
                inputs.remove(0)
            if order == b"k":
                kill_at = time.monotonic()
            elif kill_at is None:
                os.kill(server, stop_signal)
                kill_at = time.monotonic() + grace


def _reap(server: int) -> tuple[int | None, bool]:
    """Collect every child that has ended: the server's status if it is among them, and whether no child is left."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, True
        if not pid:
            return status, False
        if pid == server:
            status = os.waitstatus_to_exitcode(ended)


def _exit_code(status: int | None) -> int:
    if status is None:
        return 1
    return status if status >= 0 else 128 - status


def _until(moment: float | None) -> float | None:
    return None if moment is None else max(0.05, moment - time.monotonic())


def _start(command: list[str], identity: str) -> int:
    guardian = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        if identity != "-":
            uid, gid = map(int, identity.split(":"))
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which clears it
        if os.getppid() != guardian:
            os._exit(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        signal.set_wakeup_fd(-1)
        os.execv(command[0], command)  # noqa: S606 - the command comes from our own parent, and no shell is meant
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(127)


def _kill(server: int | None) -> None:
    """SIGKILL to the server and to what we adopted from it. None of these can be a reused pid: only we reap them."""
    doomed = set() if server is None else {server}
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listing:  # noqa: PTH123 - light imports
            doomed.update(int(pid) for pid in listing.read().split())
    except OSError:
        pass  # a kernel without this file; orphans then end by themselves, as PostgreSQL's do
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)


def _wake_on_child_exit() -> int:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return reading


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
