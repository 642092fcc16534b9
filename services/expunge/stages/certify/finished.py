"""Which requests of a sweep reached a result, and their certificates. No database: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from expunge.domain import canonical, certificate, merkle
from expunge.domain import sweep as sweeps
from expunge.domain.certificate import Result
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.lifecycle import RequestState
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.sweep import ALL_PURPOSES
from expunge.domain.words import Outcome, Provision
from expunge.ports import Row

_CODES: Final = tuple(Outcome)
_UNSETTLED: Final = [_CODES.index(Outcome.OPEN), _CODES.index(Outcome.PRESENT)]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as certify needs it: `file` opened, `outcomes` per tree (the last attempt counts). `absent`, per tree: of
    which leaves the rows may go, because they are verified absent and no other sweep has found them since. `newest`: the
    last statement in the log that counted."""

    sweep_id: UUID
    sweep_class: str
    last_artifact: int
    bucket: date
    key: bytes
    scope_digest: bytes
    rounds: int
    trees: Sequence[Mapping[str, Any]]
    file: ScopeFile
    claims: Mapping[str, bytes | memoryview]
    outcomes: Sequence[NDArray[np.uint8]]
    absent: Sequence[NDArray[np.bool_]]
    newest: int

    @property
    def requests(self) -> int:
        """How many requests it has."""
        return len(self.claims["requests"]) // 16

    @property
    def takes_everything(self) -> bool:
        """Whether it is one request for whole images: what is in the catalogue of them is in its trees, or came later."""
        return bool(np.frombuffer(self.claims["purposes"], "<i8").tolist() == [ALL_PURPOSES])

    def images(self, leaves: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Images that any request claims, or these requests do, ascending."""
        every = np.frombuffer(self.claims["ordinals"], "<i8").astype(np.int64, copy=False)  # they have 63 bits
        if leaves is None or len(leaves) == self.requests == 1:
            return sweeps.distinct(every)
        offsets = np.frombuffer(self.claims["ordinal_offsets"], "<u8").astype(np.int64)
        return sweeps.distinct(np.concatenate([every[offsets[leaf] : offsets[leaf + 1]] for leaf in leaves.tolist()]))

    def indices(self, tree: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Leaf indices claimed in one tree, laid end to end by request, and where each request's begin (r + 1)."""
        leaf = np.frombuffer(self.claims[f"indices/{tree}"], "<u4")
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
    """One request that reached a result in this round. `body`: the canonical `certificate.Completed`; `models`: whether it
    names any."""

    leaf: int
    request_id: UUID
    bucket: date
    result: Result
    body: bytes
    models: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What requests that ended alike have in common. `models`, `outcomes`: canonical lists."""

    result: Result
    models: bytes
    outcomes: bytes

    def body(self, provision: Provision, request_id: UUID) -> bytes:
        """The canonical `certificate.Completed` of one of them."""
        return b'{"models":%b,"outcomes":%b,"provision":"%b","request":"%b","result":"%b"}' % (
            self.models, self.outcomes, provision.encode(), str(request_id).encode(), self.result.encode(),
        )  # fmt: skip


def round_file(sweep_id: UUID, number: int, digest: bytes) -> str:
    """Name of a round's file of boxes. It holds its digest, because a round that a crash undid may differ when redone."""
    return f"{sweep_id}.round-{number}-{digest.hex()[:16]}"


def taint_of(row: Row) -> Taint:
    requests, name, remedy, due, resolution, _index = row
    return Taint(BitMap.deserialize(requests), name, remedy, due, resolution)


def finished_data(sweep: Sweep, rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose leaves have a final outcome."""
    counts = [sweeps.tally(sweep.outcomes[tree], *sweep.indices(tree), _CODES) for tree in range(len(sweep.trees))]
    unsettled = sum(one[:, _UNSETTLED].sum(axis=1) for one in counts) if counts else np.zeros(sweep.requests, np.int64)
    told = np.concatenate(counts, axis=1) if counts else np.zeros((sweep.requests, 0), np.int64)
    made: dict[tuple[bytes, tuple[str, ...]], Told] = {}
    done = []
    for leaf, request_id, bucket, *_ in rows:
        if unsettled[leaf]:
            continue
        models = [taint for taint in taints if leaf in taint.requests]
        alike = (told[leaf].tobytes(), tuple(one.name for one in models))
        if alike not in made:  # most people's requests end alike
            made[alike] = _told(told[leaf].tolist(), models)
        said = made[alike]
        done.append(
            Finished(leaf, request_id, bucket, said.result, said.body(Provision.DATA, request_id), bool(models))
        )
    return done


def _told(numbers: Sequence[int], models: Sequence[Taint]) -> Told:
    """`numbers`: artifacts by tree, then by outcome."""
    listed = [(at // len(_CODES), _CODES[at % len(_CODES)], number) for at, number in enumerate(numbers) if number]
    outcomes: dict[Outcome, int] = {}
    for _, code, number in listed:
        outcomes[code] = outcomes.get(code, 0) + number
    counted = [{"tree": tree, "outcome": int(code), "artifacts": number} for tree, code, number in listed]
    return Told(
        certificate.result_of(Provision.DATA, outcomes),
        canonical.dumps([one.body() for one in models]),
        canonical.dumps(counted),
    )


def finished_models(rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose tainted models were replaced or destroyed."""
    done = []
    for leaf, request_id, bucket, state, data_result, *_ in rows:
        if state != RequestState.DATA_CERTIFIED or data_result != "complete":
            continue
        models = [taint for taint in taints if leaf in taint.requests]
        if any(one.resolution is None for one in models):
            continue
        said = Told("complete", canonical.dumps([one.body() for one in models]), b"[]")
        done.append(
            Finished(leaf, request_id, bucket, said.result, said.body(Provision.MODELS, request_id), bool(models))
        )
    return done


def state_after(provision: Provision, one: Finished) -> RequestState:
    if one.result == "held":
        return RequestState.HELD
    if one.result == "complete" and (provision is Provision.MODELS or not one.models):
        # Where no model is tainted, the data certificate says so and nothing is left to prove.
        return RequestState.COMPLETED
    return RequestState.DATA_CERTIFIED


def box(bucket: bytes, one: Finished, number: int, data: bytes) -> bytes:
    return certificate.seal(derive_key(bucket, "request", one.request_id.bytes), number, data)


def _opening(tree: merkle.Tree, index: int, drawn: bytes) -> str:
    """A `certificate.Opening`, canonical."""
    path = ",".join([f'"{one.hex()}"' for one in tree.inclusion_path(index)])
    nonce = drawn[index * 16 : index * 16 + 16].hex()
    return f'{{"index":{index},"nonce":"{nonce}","path":[{path}],"size":{tree.size}}}'


def _runs(sweep: Sweep, tree: int) -> list[str]:
    """Of each request, its leaf indices in a tree as runs, canonical; empty where it has none there."""
    leaf, offset = sweep.indices(tree)
    starts = np.zeros(len(leaf) + 1, np.bool_)
    starts[1:-1] = leaf[1:] - leaf[:-1] != 1
    starts[offset] = True
    at = np.flatnonzero(starts)
    texts = [f"[{first},{count}]" for first, count in zip(leaf[at[:-1]].tolist(), np.diff(at).tolist(), strict=True)]
    bounds = np.searchsorted(at, offset).tolist()
    return [f"[{','.join(texts[lo:hi])}]" if hi > lo else "" for lo, hi in pairwise(bounds)]


def certificates(
    sweep: Sweep, number: int, provision: Provision, done: Sequence[Finished], *, issuer: str, not_covered: Sequence[str]
) -> tuple[bytes, list[bytes]]:  # fmt: skip
    """The completion tree's root, and each request's certificate as canonical JSON."""
    requests = unpack_columns(sweep.file.section("requests"))
    claim_tree = merkle.Tree(requests["hashes"])
    claim_bodies = unpack_strings(requests["bodies"])
    claim_nonces = nonces(derive_key(sweep.key, "requests"), claim_tree.size)
    drawn = nonces(derive_key(sweep.key, "round", number.to_bytes(4, "big")), len(done))
    leaves = b"".join([certificate.leaf(drawn[at * 16 : at * 16 + 16], one.body) for at, one in enumerate(done)])
    tree = merkle.Tree(merkle.leaf_hashes(leaves, certificate.OPENING_BYTES))
    runs = [_runs(sweep, number) for number in range(len(sweep.trees))]
    # Written out in the order of RFC 8785, from parts that are canonical: an encoder would take most of a round's time.
    shared = (
        f',"issuer":{_text(issuer)},"not_covered":{_text(list(not_covered))},"provision":"{provision.value}","request":'
    )
    tail = f',"round":{number},"scope":"{sweep.scope_digest.hex()}","sweep":"{sweep.sweep_id}","version":1}}'
    made = []
    for at, one in enumerate(done):
        indices = ",".join([text for by_request in runs if (text := by_request[one.leaf])])
        opened = _opening(claim_tree, one.leaf, claim_nonces)
        made.append(
            f'{{"claim":{claim_bodies[one.leaf]},"claim_opening":{opened},"completed":{one.body.decode()},'
            f'"completed_opening":{_opening(tree, at, drawn)},"indices":[{indices}]{shared}"{one.request_id}"{tail}'.encode()
        )
    return tree.root, made


def _text(value: object) -> str:
    return canonical.dumps(value).decode()
