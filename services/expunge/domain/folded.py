"""A folded state as bytes and back, so that a long replay goes on where it stopped. The reader's own file: it is believed
as the reader's own memory would be, but for damage, and for the log, whose root must still follow from it.

Bytes: length of the JSON (8, big-endian), the state as JSON, the 32-byte leaf hashes of what was folded, SHA-256 of all
that.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from expunge.domain import statement
from expunge.domain.coverage import ChunkState, StepState
from expunge.domain.errors import Tampered
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.replay import ModelState, Round, State, SweepState
from expunge.domain.statement import ReconciledCount, Scope
from expunge.domain.words import Kind, ModelStatus, Provision, Step

VERSION: Final = 1
_LENGTH: Final = 8


@dataclass(frozen=True, slots=True)
class Folded:
    """`hashes`: leaf hashes of entries [0, state.size), 32 bytes each; `policy`: SHA-256 (hex) of the trust policy under
    which they were verified; `origin`: of the log."""

    origin: str
    policy: str
    state: State
    hashes: bytes


def dump(folded: Folded) -> bytes:
    """The file's bytes."""
    said = {"version": VERSION, "origin": folded.origin, "policy": folded.policy, "state": _state(folded.state)}
    head = json.dumps(said, separators=(",", ":")).encode()
    body = len(head).to_bytes(_LENGTH, "big") + head + folded.hashes
    return body + hashlib.sha256(body).digest()


def load(data: bytes) -> Folded:
    """The inverse. Raises `Tampered` for a file that is damaged, cut or of another version."""
    body, digest = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise Tampered("resume file", "expected the bytes that were written, got others: start again without it")
    end = _LENGTH + int.from_bytes(body[:_LENGTH], "big")
    try:
        head = json.loads(body[_LENGTH:end])
        if head["version"] != VERSION:
            raise Tampered("resume file", f"expected version {VERSION}, got another: start again without it")
        return Folded(head["origin"], head["policy"], _state_from(head["state"]), body[end:])
    except (KeyError, TypeError, ValueError) as error:
        raise Tampered("resume file", "expected a state of this version: start again without it") from error


def _state(state: State) -> dict[str, Any]:
    return {
        "size": state.size,
        "sweeps": [_sweep(one) for one in state.sweeps.values()],
        "models": [
            [name, one.status, sorted(one.sweeps), one.metric_void, one.successor] for name, one in state.models.items()
        ],
        "batches": sorted(state.batches),
        "images": state.images,
        "destroyed": [[day.isoformat(), index] for day, index in state.destroyed.items()],
        "sums": [[source, kind, sums] for (source, kind), sums in state.sums.items()],
        "reconciled": [[index, one.model_dump(mode="json")] for index, one in state.reconciled.values()],
    }


def _sweep(sweep: SweepState) -> dict[str, Any]:
    return {
        "scope": sweep.scope.model_dump(mode="json"),
        "digest": sweep.digest,
        "index": sweep.index,
        "approved": sweep.approved,
        "unwitnessed": sweep.unwitnessed,
        "void": sweep.void,
        "overdue": sorted(sweep.overdue),
        "chunks": [
            [tree, chunk, one.leaves, one.root, [_step(step, said) for step, said in one.steps.items()]]
            for (tree, chunk), one in sweep.chunks.items()
        ],
        "rounds": [
            [one.index, one.round, one.provision, one.requests, one.results, one.root] for one in sweep.rounds.values()
        ],
    }


def _step(step: Step, said: StepState) -> list[Any]:
    return [step, said.attempt, said.digest, said.index, [list(run) for run in statement.runs(said.outcomes)]]


def _state_from(read: dict[str, Any]) -> State:
    sweeps = [_sweep_from(one) for one in read["sweeps"]]
    sums = {
        (source, Kind(kind)): [(index, total) for index, total in listed] for source, kind, listed in read["sums"]
    }  # fmt: skip
    reconciled = [(index, ReconciledCount.model_validate(one)) for index, one in read["reconciled"]]
    return State(
        size=read["size"],
        sweeps={one.scope.sweep: one for one in sweeps},
        models={
            name: ModelState(None if status is None else ModelStatus(status), set(tainting), void, successor)
            for name, status, tainting, void, successor in read["models"]
        },
        batches=set(read["batches"]),
        images=read["images"],
        registered=Counter({key: listed[-1][1] for key, listed in sums.items()}),
        destroyed={date.fromisoformat(day): index for day, index in read["destroyed"]},
        sums=sums,
        reconciled={(one.source, one.kind): (index, one) for index, one in reconciled},
    )


def _sweep_from(read: dict[str, Any]) -> SweepState:
    chunks = {}
    for tree, chunk, leaves, root, steps in read["chunks"]:
        chunks[tree, chunk] = state = ChunkState(leaves, root)
        for step, attempt, digest, index, encoded in steps:
            state.steps[Step(step)] = StepState(attempt, digest, index, statement.expand(encoded))
    rounds = {
        number: Round(index, number, Provision(provision), requests, results, root)
        for index, number, provision, requests, results, root in read["rounds"]
    }
    return SweepState(
        Scope.model_validate(read["scope"]),
        read["digest"],
        read["index"],
        approved=read["approved"],
        unwitnessed=read["unwitnessed"],
        void=read["void"],
        chunks=chunks,
        rounds=rounds,
        overdue={Provision(one) for one in read["overdue"]},
    )
