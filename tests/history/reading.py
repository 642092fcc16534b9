"""A history as it was written, checked for shape: what is misspelt must not switch a check off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

FORMAT: Final = 1

_FIELDS: Final[dict[str, frozenset[str]]] = {
    "meta": frozenset({"format", "run", "every_step"}),
    "trust": frozenset({"origin", "log_key", "keys", "approvals"}),
    "artifact": frozenset(
        {"artifact", "store", "unit", "locator", "artifact_kind", "image", "source", "day", "subjects", "purposes", "images"}
    ),
    "insert": frozenset({"artifacts"}),
    "registered": frozenset({"artifacts"}),
    "effect": frozenset({"op", "artifacts", "by"}),
    "contents": frozenset({"store", "present", "hidden"}),
    "published": frozenset({"body", "signer", "sound"}),
    "acknowledged": frozenset({"request"}),
    "event": frozenset({"id", "type", "data"}),
    "ledger": frozenset({"rows", "complete"}),
    "dead": frozenset({"rows"}),
    "log": frozenset({"first", "entries"}),
    "checkpoint": frozenset({"note"}),
    "certificate": frozenset({"text"}),
    "fault": frozenset({"fault"}),
    "phase": frozenset({"phase"}),
    "note": frozenset(),
}  # fmt: skip

_OPEN: Final = frozenset({"meta", "fault", "note"})
"""Kinds that may say more."""


class MisreadError(ValueError):
    """A history that cannot be judged. Says which line, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line: `at` is its position in the file, from 0."""

    at: int
    kind: str
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(slots=True)
class History:
    """All records in order, and by kind."""

    records: list[Record]
    kinds: dict[str, list[Record]] = field(default_factory=dict)

    def of(self, *kinds: str) -> Iterator[Record]:
        """Records of these kinds, in order of position."""
        if len(kinds) == 1:
            return iter(self.kinds.get(kinds[0], ()))
        return iter(sorted((one for kind in kinds for one in self.kinds.get(kind, ())), key=lambda one: one.at))


def read(lines: Iterable[bytes | str]) -> History:
    """Raises `MisreadError`: not JSON, an unknown kind, a field missing or unknown, no `meta` first, another format."""
    history = History([])
    for at, line in enumerate(lines):
        record = _record(at, line)
        history.records.append(record)
        history.kinds.setdefault(record.kind, []).append(record)
    if not history.records or history.records[0].kind != "meta":
        raise MisreadError("expected a record of kind meta first, got none")
    if history.records[0]["format"] != FORMAT:
        raise MisreadError(f"expected format {FORMAT}, got {history.records[0]['format']}")
    return history


def _record(at: int, line: bytes | str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise MisreadError(f"line {at + 1}: expected one JSON object, got something else") from error
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise MisreadError(f"line {at + 1}: expected an object with a kind")
    kind = value.pop("kind")
    value.pop("at", None)
    value.pop("who", None)
    if kind not in _FIELDS:
        raise MisreadError(f"line {at + 1}: expected a kind of the format, got {kind}")
    missing, unknown = _FIELDS[kind] - value.keys(), value.keys() - _FIELDS[kind]
    if missing or (unknown and kind not in _OPEN):
        raise MisreadError(f"line {at + 1}, {kind}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    return Record(at, kind, value)
