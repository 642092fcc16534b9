"""I5: the log that was seen is one log, signed throughout, and in an order that can be."""

from __future__ import annotations

import base64
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from tests.history import evidence
from tests.history.evidence import BadEvidenceError, Key, Statement, SweepSaid
from tests.history.reading import History
from tests.history.verdict import Violation

APPROVERS: Final = 2


@dataclass(slots=True)
class Log:
    """The log, verified as far as it is; `statements` by index."""

    statements: dict[int, Statement]
    sweeps: dict[str, SweepSaid]
    sizes: list[int]
    complete: bool


def verified(history: History, found: list[Violation]) -> Log:
    def bad(line: int, code: str, text: str) -> None:
        found.append(Violation("I5", code, line, text))

    keys: list[Key] = []
    pinned: tuple[str, bytes] | None = None
    for record in history.of("trust"):
        pinned = (record["origin"], base64.b64decode(record["log_key"]))
        keys += [Key(one["role"], one["store"], base64.b64decode(one["public"])) for one in record["keys"]]
    entries, lines = _entries(history, bad)
    complete = set(entries) == set(range(len(entries)))
    if not complete:
        bad(0, "gap", "expected log entries without a gap from 0")
    sizes = _checkpoints(history, entries if complete else {}, pinned, bad)
    log = Log({}, {}, sizes, complete)
    for index in sorted(entries):
        try:
            said = evidence.statement(index, entries[index], keys)
            log.statements[index] = said
            _fold(log.sweeps, said)
        except (BadEvidenceError, KeyError, TypeError, IndexError) as error:
            bad(lines[index] + 1, "statement", f"entry {index}: {error}")
    return log


def _entries(history: History, bad: Callable[[int, str, str], None]) -> tuple[dict[int, bytes], dict[int, int]]:
    entries: dict[int, bytes] = {}
    lines: dict[int, int] = {}
    for record in history.of("log"):
        for index, encoded in enumerate(record["entries"], start=record["first"]):
            data = base64.b64decode(encoded)
            if entries.setdefault(index, data) != data:
                bad(record.at + 1, "rewritten", f"entry {index} is not what it was")
            lines.setdefault(index, record.at)
    return entries, lines


def _checkpoints(
    history: History,
    entries: dict[int, bytes],
    pinned: tuple[str, bytes] | None,
    bad: Callable[[int, str, str], None],
) -> list[int]:
    tree = evidence.Tree([evidence.leaf_hash(entries[index]) for index in range(len(entries))])
    sizes: list[int] = []
    seen: set[str] = set()
    for record in history.of("checkpoint"):
        if pinned is None or record["note"] in seen:
            continue
        seen.add(record["note"])
        try:
            size, root = evidence.checkpoint(record["note"], *pinned)
        except (BadEvidenceError, ValueError) as error:
            bad(record.at + 1, "checkpoint", str(error))
            continue
        if sizes and size < sizes[-1]:
            bad(record.at + 1, "shrunk", f"expected a checkpoint of {sizes[-1]} or more, got {size}")
        sizes.append(size)
        if size > len(entries):
            bad(record.at + 1, "uncovered", f"expected {size} entries for this checkpoint, got {len(entries)}")
        elif tree.root(size) != root:
            bad(record.at + 1, "root", f"expected the root of the first {size} entries")
    return sizes


def _fold(sweeps: dict[str, SweepSaid], said: Statement) -> None:
    """Raises `BadEvidenceError` where a statement cannot stand where it does."""
    name = said.body.get("sweep")
    if said.type == "urn:expunge:scope:v1":
        if name in sweeps:
            raise BadEvidenceError("expected one scope per sweep, got a second")
        sweeps[str(name)] = SweepSaid(said)
    elif isinstance(name, str):  # the rest is about no one sweep
        if name not in sweeps:
            raise BadEvidenceError("expected the scope of the sweep before, got none")
        sweep = sweeps[name]
        if said.body.get("scope", sweep.scope.digest) != sweep.scope.digest:
            raise BadEvidenceError("expected the scope of its sweep, got another")
        if said.type in _FOLDS:
            _FOLDS[said.type](sweep, said)


def _chunk(sweep: SweepSaid, said: Statement) -> None:
    _may_begin(sweep, said.body)
    sweep.chunk(said)


def _completion(sweep: SweepSaid, said: Statement) -> None:
    if said.body["round"] != len(sweep.completions):
        raise BadEvidenceError(f"expected round {len(sweep.completions)}, got {said.body['round']}")
    sweep.completions[said.body["round"]] = said
    sweep.then[said.body["round"]] = deepcopy(sweep.chunks)


def _approved(sweep: SweepSaid, said: Statement) -> None:
    if len(set(said.body["approvers"])) < APPROVERS or len(set(said.body["approvers"])) != len(said.body["approvers"]):
        raise BadEvidenceError(f"expected {APPROVERS} approvers or more, none twice")
    sweep.approved = True


def _void(sweep: SweepSaid, _said: Statement) -> None:
    if sweep.chunks:
        raise BadEvidenceError("expected a void scope to be untouched")
    sweep.void = True


def _tainted(sweep: SweepSaid, said: Statement) -> None:
    sweep.tainted.add(said.body["model"])


_FOLDS: Final[dict[str, Callable[[SweepSaid, Statement], None]]] = {
    "urn:expunge:chunk:v1": _chunk,
    "urn:expunge:completion:v1": _completion,
    "urn:expunge:scope-approved:v1": _approved,
    "urn:expunge:scope-void:v1": _void,
    "urn:expunge:model-tainted:v1": _tainted,
}


def _may_begin(sweep: SweepSaid, body: dict[str, Any]) -> None:
    if sweep.void:
        raise BadEvidenceError("expected nothing to be done under a void scope")
    if sweep.scope.body["sweep_class"] == "order" and not sweep.approved:
        raise BadEvidenceError("expected the approval of an order's scope before, got none")
    tree = sweep.scope.body["trees"][body["tree"]]
    if (tree["kind"], tree["store"]) != (body["kind"], body["store"]):
        raise BadEvidenceError("expected kind and store of the tree")
