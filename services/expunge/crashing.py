"""Crash points: places before, between and after side effects where a test can kill or pause the worker.

`crash_point(NAME)` stands in the code at each. It does nothing, unless the process was started with
`EXPUNGE_TEST_CRASH_FILE`: then that file says at which point, and at its how many-th passing, the process kills itself
(SIGKILL, as a lost machine would) or stops (SIGSTOP, as a paused one would). `settings` refuses the variable in a
deployment that is not named after a test.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Final

POINTS: Final = (
    # workers/delivery.py, workers/agent.py: around every batch
    "delivery.held",  # the batch is noted as in flight
    "delivery.acted",  # handlers had their effects; nothing is committed
    "delivery.recorded",  # all statements ran; not committed
    "delivery.committed",
    "delivery.published",  # the broker has outbox rows that are still there
    "delivery.unacknowledged",  # all done but the acknowledgement
    "delivery.acknowledged",
    "delivery.parked-acted",  # as acted and recorded, of an event that was parked
    "delivery.parked-recorded",
    # adapters/journal, adapters/keys, adapters/sealed, adapters/log: files
    "journal.written",  # not synced
    "journal.synced",
    "keys.drawn",  # the new key is in a temporary file
    "keys.linked",
    "keys.marked",  # a key that is to be destroyed has its marker
    "keys.overwritten",
    "keys.unlinked",
    "sealed.written",  # not synced
    "sealed.synced",
    "sealed.linked",
    "log.written",  # a tile, bundle or checkpoint in a temporary file
    "log.linked",
    "log.replaced",
    "log.synced",
    # stages
    "intake.journaled",
    "intake.inserted",
    "plan.claimed",
    "plan.sealed",  # the scope file is there, no row
    "plan.suppressed",
    "plan.recorded",  # in the transaction
    "plan.committed",
    "prove.intended",  # size and root are committed
    "prove.signed",
    "prove.tiled",
    "prove.archived",
    "prove.switched",  # the checkpoint is out, the rows do not know
    "prove.recorded",  # in the transaction that orders work
    "coordinate.committed",
    "dispatch.advanced",
    "dispatch.logged",
    "certify.boxed",  # the round's file is there, no row
    "certify.dropped",
    "certify.counted",
    "certify.key-destroyed",  # and the log does not say so yet
    "register.staged",
    "register.logged",
    "retrain.destroying",
    "retrain.destroyed",
    "retrain.resolved",
    "rescan.claimed",
    "rescan.probed",
    "rescan.needled",  # the needle file is there, no row
    "rescan.signed",
    "reconcile.started",
    "reconcile.paged",
    "reconcile.counted",
    # chunks/erasing.py: executors
    "erasing.intended",  # the intent is committed, nothing is done
    "erasing.leased",
    "erasing.hidden",
    "erasing.erased",
    "erasing.signed",
    # tasks.py
    "tasks.leased",
    "tasks.saved",
    "tasks.worked",
    "tasks.recorded",
    "tasks.finished",
    # adapters/stores: inside one erasure
    "store.claimed",  # the fence is noted
    "store.batch",
    "store.unlinked",
    "store.hidden",
    "store.rebuilt",  # the new unit is in a temporary file
    "store.synced",
    "store.counted",  # the generation is up, the old unit in place
    "store.switched",
    "store.durable",
    "store.unhidden",
    "store.called",
    "store.deleting",
    "store.deleted",
    "store.rewritten",
    "store.cleared",
    "store.checkpointed",
    "store.listed",  # in S3: versions and uploads are known, all are there
    "store.aborted",
    "store.page",  # one request of deletions was answered
    "store.purged",
)
"""All of them; a guard compares this list with the code."""

VARIABLE: Final = "EXPUNGE_TEST_CRASH_FILE"
NAMED_AFTER_A_TEST: Final = "test:"
"""How the audience of a deployment begins in which the variable is allowed."""

_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class _Armed:
    """The file, and how often each point was passed since it last changed. Line: `POINT N kill|stop`; passing it
    removes the file first, so that it fires once. Beside it, `.passed` gets a line for each point passed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._order = ""
        self._passed: Counter[str] = Counter()

    def passed(self, name: str) -> None:
        with self._path.with_suffix(".passed").open("a", encoding="ascii") as trace:
            trace.write(f"{name}\n")
        try:
            order = self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            order = ""
        if order != self._order:
            self._order, self._passed = order, Counter()
        self._passed[name] += 1
        match order.split():
            case [str(wanted), number, how] if wanted == name and self._passed[name] == int(number):
                self._path.unlink()
                # To this thread: sent to the process, SIGSTOP may reach another thread first, and this one runs on a little.
                signal.pthread_kill(threading.get_ident(), _SIGNALS[how])
            case _:
                return


_armed: _Armed | None = None


def arm(path: Path) -> None:
    """Watch this file from now on, in this process."""
    global _armed  # noqa: PLW0603 - one process, one switch; passing it to every place would cost what it must not
    _armed = _Armed(path)


def crash_point(name: str) -> None:
    """A place of `POINTS`. Safe to call from any thread."""
    if _armed is not None:
        _armed.passed(name)


def store_point(step: str) -> None:
    """`crash_point` for the inner steps of a store."""
    if _armed is not None:
        _armed.passed(f"store.{step}")
