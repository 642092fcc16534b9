"""Appends what a test saw to a history (FORMAT.md). Imports nothing of the product.

One `write` call per line with O_APPEND: processes that share a file, and die at any moment, leave whole lines.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1


class Recorder:
    """Writes records. `write` takes one whole line of bytes; `now`: seconds, for people."""

    def __init__(self, write: Callable[[bytes], object], *, who: str, now: Callable[[], float] = time.time) -> None:
        self._write = write
        self._who = who
        self._now = now

    @classmethod
    def to_file(cls, path: Path, *, who: str) -> Recorder:
        """Appends to `path`, with other processes if need be."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return cls(lambda line: os.write(descriptor, line), who=who)

    def record(self, kind: str, **fields: object) -> None:
        """One record of any kind."""
        line = json.dumps({"kind": kind, "at": self._now(), "who": self._who, **fields}, separators=(",", ":"))
        self._write(line.encode() + b"\n")

    def meta(self, run: str, *, every_step: bool = False, **more: object) -> None:
        self.record("meta", format=FORMAT, run=run, every_step=every_step, **more)

    def trust(
        self, *, origin: str, log_key: bytes, keys: Iterable[tuple[str, str | None, bytes]], approvals: int = 2
    ) -> None:
        """`log_key`, and `keys` of (role, store, key): raw Ed25519 public keys."""
        pinned = [{"role": role, "store": store, "public": _base64(key)} for role, store, key in keys]
        self.record("trust", origin=origin, log_key=_base64(log_key), keys=pinned, approvals=approvals)

    def artifact(
        self,
        artifact: str,
        *,
        store: str,
        unit: str,
        locator: str,
        kind: str,
        purposes: Sequence[str],
        image: str = "",
        source: str = "",
        day: str = "",
        subjects: Sequence[str] = (),
        images: Sequence[str] = (),
    ) -> None:
        self.record(
            "artifact", artifact=artifact, store=store, unit=unit, locator=locator, artifact_kind=kind, image=image,
            source=source, day=day, subjects=list(subjects), purposes=list(purposes), images=list(images),
        )  # fmt: skip

    def insert(self, artifacts: Sequence[str]) -> None:
        self.record("insert", artifacts=list(artifacts))

    def registered(self, artifacts: Sequence[str]) -> None:
        self.record("registered", artifacts=list(artifacts))

    def effect(self, op: str, artifacts: Sequence[str], *, by: str) -> None:
        self.record("effect", op=op, artifacts=list(artifacts), by=by)

    def contents(self, store: str, present: Iterable[str], hidden: Iterable[str] = ()) -> None:
        self.record("contents", store=store, present=sorted(present), hidden=sorted(hidden))

    def published(self, body: Mapping[str, Any] | bytes, *, signer: str, sound: bool = True) -> None:
        """`body`: the signed payload, or its JSON object."""
        parsed = json.loads(body) if isinstance(body, bytes) else dict(body)
        self.record("published", body=parsed, signer=signer, sound=sound)

    def acknowledged(self, request: str) -> None:
        self.record("acknowledged", request=request)

    def event(self, identity: str, type_: str, data: Mapping[str, Any] | bytes) -> None:
        """One message of a public topic: headers `ce_id`, `ce_type`, and its value."""
        parsed = json.loads(data) if isinstance(data, bytes) else dict(data)
        self.record("event", id=identity, type=type_, data=parsed)

    def ledger(self, rows: Iterable[tuple[str, str, str | None, str | None]], *, complete: bool) -> None:
        """Rows of (request id, state, data_result, models_result)."""
        names = ("request", "state", "data_result", "models_result")
        self.record("ledger", rows=[dict(zip(names, row, strict=True)) for row in rows], complete=complete)

    def dead(self, rows: Iterable[tuple[str | None, str]]) -> None:
        """Rows of (event id, reason): all of them."""
        self.record("dead", rows=[{"event": event, "reason": reason} for event, reason in rows])

    def log(self, first: int, entries: Iterable[bytes]) -> None:
        self.record("log", first=first, entries=[_base64(one) for one in entries])

    def checkpoint(self, note: bytes) -> None:
        self.record("checkpoint", note=note.decode())

    def certificate(self, text: bytes) -> None:
        self.record("certificate", text=text.decode())

    def fault(self, fault: str, **more: object) -> None:
        self.record("fault", fault=fault, **more)

    def phase(self, phase: str) -> None:
        self.record("phase", phase=phase)

    def note(self, **more: object) -> None:
        self.record("note", **more)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
