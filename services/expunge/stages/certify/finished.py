"""Which requests of a sweep reached a result, and their certificates. No database: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from expunge.domain import canonical, certificate, merkle
from expunge.domain import sweep as sweeps
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.lifecycle import RequestState
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.words import Outcome, Provision
from expunge.ports import Row

_CODES: Final = tuple(Outcome)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as certify needs it: `files` opened, `outcomes` per tree (the last attempt counts)."""

    sweep_id: UUID
    sweep_class: str
    last_artifact: int
    bucket: date
    key: bytes
    scope_digest: bytes
    rounds: int
    trees: Sequence[Mapping[str, Any]]
    file: ScopeFile
    claims: Mapping[str, bytes]
    outcomes: Sequence[NDArray[np.uint8]]

    def indices(self, tree: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leaf indices claimed in one tree, laid end to end by request, and where each request's begin (r + 1)."""
        leaf = np.frombuffer(self.claims[f"indices/{tree}"], "<u4").astype(np.int64)
        return leaf, np.frombuffer(self.claims[f"offsets/{tree}"], "<u8").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Taint:
    """A model that some requests of the sweep taint. `requests`: their leaves."""

    requests: BitMap
    name: str
    remedy: str
    due: datetime
    resolution: str | None

    def body(self) -> dict[str, Any]:
        """As in `certificate.ModelDue`."""
        due = self.due.isoformat().replace("+00:00", "Z")
        return {"model": self.name, "remedy": self.remedy, "due": due, "resolution": self.resolution or "open"}


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that reached a result in this round."""

    leaf: int
    request_id: UUID
    bucket: date
    result: str
    body: dict[str, Any]


def round_file(sweep_id: UUID, number: int, digest: bytes) -> str:
    """Name of a round's file of boxes. It holds its digest, because a round that a crash undid may differ when redone."""
    return f"{sweep_id}.round-{number}-{digest.hex()[:16]}"


def taint_of(row: Row) -> Taint:
    requests, name, remedy, due, resolution, _index = row
    return Taint(BitMap.deserialize(requests), name, remedy, due, resolution)


def finished_data(sweep: Sweep, rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose leaves have a final outcome."""
    counts = [sweeps.tally(sweep.outcomes[tree], *sweep.indices(tree), _CODES) for tree in range(len(sweep.trees))]
    done = []
    for leaf, request_id, bucket, *_ in rows:
        mine = [
            (tree, code, int(number))
            for tree, one in enumerate(counts)
            for code, number in zip(_CODES, one[leaf], strict=True)
            if number
        ]
        if any(code in {Outcome.OPEN, Outcome.PRESENT} for _, code, _ in mine):
            continue
        outcomes: dict[Outcome, int] = {}
        for _, code, number in mine:
            outcomes[code] = outcomes.get(code, 0) + number
        models = [taint for taint in taints if leaf in taint.requests]
        result = certificate.result_of(Provision.DATA, outcomes)
        body = {
            "request": str(request_id),
            "provision": Provision.DATA,
            "result": result,
            "outcomes": [{"tree": tree, "outcome": int(code), "artifacts": number} for tree, code, number in mine],
            "models": [one.body() for one in models],
        }
        done.append(Finished(leaf, request_id, bucket, result, body))
    return done


def finished_models(rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose tainted models were replaced or destroyed."""
    done = []
    for leaf, request_id, bucket, state, data_result, *_ in rows:
        if state != RequestState.DATA_CERTIFIED or data_result != "complete":
            continue
        models = [taint for taint in taints if leaf in taint.requests]
        if any(one.resolution is None for one in models):
            continue
        body = {
            "request": str(request_id),
            "provision": Provision.MODELS,
            "result": "complete",
            "outcomes": [],
            "models": [one.body() for one in models],
        }
        done.append(Finished(leaf, request_id, bucket, "complete", body))
    return done


def state_after(provision: Provision, one: Finished) -> RequestState:
    if one.result == "held":
        return RequestState.HELD
    if one.result == "complete" and (provision is Provision.MODELS or not one.body["models"]):
        # Where no model is tainted, the data certificate says so and nothing is left to prove.
        return RequestState.COMPLETED
    return RequestState.DATA_CERTIFIED


def box(bucket: bytes, one: Finished, number: int, data: bytes) -> bytes:
    return certificate.seal(derive_key(bucket, "request", one.request_id.bytes), number, data)


def _opening(tree: merkle.Tree, index: int, drawn: bytes) -> dict[str, Any]:
    return {
        "index": index,
        "size": tree.size,
        "nonce": drawn[index * 16 : index * 16 + 16].hex(),
        "path": [one.hex() for one in tree.inclusion_path(index)],
    }


def _runs_by_request(sweep: Sweep, tree: int) -> Any:  # noqa: ANN401 - Callable[[int], list[list[int]]]
    leaf, offset = sweep.indices(tree)
    bounds = offset.tolist()
    return lambda one: [list(run) for run in sweeps.runs_of(leaf[bounds[one] : bounds[one + 1]])]


def certificates(
    sweep: Sweep, number: int, provision: Provision, done: Sequence[Finished], *, issuer: str, not_covered: Sequence[str]
) -> tuple[bytes, list[bytes]]:  # fmt: skip
    """The completion tree's root, and each request's certificate as canonical JSON."""
    requests = unpack_columns(sweep.file.section("requests"))
    claim_tree = merkle.Tree(requests["hashes"])
    claim_bodies = unpack_strings(requests["bodies"])
    claim_nonces = nonces(derive_key(sweep.key, "requests"), claim_tree.size)
    drawn = nonces(derive_key(sweep.key, "round", number.to_bytes(4, "big")), len(done))
    bodies = [canonical.dumps(one.body) for one in done]
    leaves = b"".join(
        certificate.leaf(drawn[at * 16 : at * 16 + 16], body) for at, body in enumerate(bodies)
    )  # fmt: skip
    tree = merkle.Tree(merkle.leaf_hashes(leaves, certificate.OPENING_BYTES))
    runs = [_runs_by_request(sweep, number) for number in range(len(sweep.trees))]
    made = []
    for at, one in enumerate(done):
        claim: Any = canonical.loads(claim_bodies[one.leaf].encode())
        made.append(
            canonical.dumps(
                {
                    "version": 1,
                    "issuer": issuer,
                    "request": str(one.request_id),
                    "provision": provision,
                    "sweep": str(sweep.sweep_id),
                    "scope": sweep.scope_digest.hex(),
                    "round": number,
                    "claim": claim,
                    "claim_opening": _opening(claim_tree, one.leaf, claim_nonces),
                    "indices": [runs[tree["tree"]](one.leaf) for tree in claim["trees"]],
                    "completed": one.body,
                    "completed_opening": _opening(tree, at, drawn),
                    "not_covered": list(not_covered),
                }
            )
        )
    return tree.root, made
