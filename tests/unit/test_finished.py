"""Certificates are written out part by part: they have the bytes that an encoder would give them."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from expunge.domain import canonical, certificate, merkle, scopefile
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.words import FINAL_ABSENT, Outcome, Provision
from expunge.stages.certify.finished import Sweep, Taint, certificates, finished_data

KEY = b"k" * 32
CODES = [Outcome.GONE, Outcome.ABSENT_BEFORE, Outcome.BLOCKED, Outcome.FAILED, Outcome.EXCLUDED, Outcome.OPEN]


class File:
    """The sections of a scope file that certify reads."""

    def __init__(self, bodies: list[bytes]) -> None:
        leaves = b"".join(certificate.leaf(bytes(16), body) for body in bodies)
        columns = {
            "bodies": scopefile.pack_strings([body.decode() for body in bodies]),
            "hashes": merkle.leaf_hashes(leaves, certificate.OPENING_BYTES),
        }
        self._section = scopefile.pack_columns(columns)

    def section(self, _name: str) -> bytes:
        return self._section


def request_id(number: int) -> UUID:
    return UUID(int=number)


def sweep_of(claimed: list[list[list[int]]], outcomes: list[list[Outcome]]) -> Sweep:
    """`claimed`: per request, per tree, the leaves."""
    columns = {"requests": b"".join(request_id(one).bytes for one in range(len(claimed)))}
    bodies = []
    for tree in range(len(outcomes)):
        mine = [request[tree] for request in claimed]
        columns[f"indices/{tree}"] = np.array([leaf for one in mine for leaf in one], "<u4").tobytes()
        columns[f"offsets/{tree}"] = np.cumsum([0, *map(len, mine)]).astype("<u8").tobytes()
    for number, request in enumerate(claimed):
        trees = [
            {"tree": tree, "leaves": len(one), "indices": hashlib.sha256(np.array(one, "<u4").tobytes()).hexdigest()}
            for tree, one in enumerate(request)
            if one
        ]
        claim = {"request": str(request_id(number)), "images": 1, "trees": trees, "retained": {}, "erased_earlier": 0}
        bodies.append(certificate.body_bytes(certificate.Claim.model_validate(claim)))
    file: Any = File(bodies)
    return Sweep(
        sweep_id=UUID(int=99), sweep_class="people", last_artifact=1, bucket=date(2026, 1, 1), key=KEY,
        scope_digest=b"d" * 32, rounds=0, trees=[{} for _ in outcomes], file=file, claims=columns,
        outcomes=[np.array(one, np.uint8) for one in outcomes], absent=[], newest=-1,
    )  # fmt: skip


def drawn_sweep(seed: int) -> tuple[list[list[list[int]]], list[list[Outcome]]]:
    """Requests with their leaves by tree, and outcomes by tree. Drawn at once: a strategy for each leaf is slow."""
    drawn = random.Random(seed)
    leaves = drawn.randint(1, 12)
    outcomes = [[drawn.choice(CODES) for _ in range(leaves)] for _ in range(2)]
    each = [[sorted(drawn.sample(range(leaves), drawn.randint(0, leaves))) for _ in range(2)] for _ in range(5)]
    return each[: drawn.randint(1, 5)], outcomes


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.text(max_size=5))
def test_a_certificate_is_canonical_and_says_what_its_parts_say(seed: int, issuer: str) -> None:
    claimed, outcomes = drawn_sweep(seed)
    sweep = sweep_of(claimed, outcomes)
    due = datetime(2026, 3, 1, tzinfo=UTC)
    taints = [Taint(BitMap([0]), "face@1", "retrain", due, None)]
    rows = [(number, request_id(number), date(2026, 1, 1)) for number in range(len(claimed))]
    done = finished_data(sweep, rows, taints)
    settled = [
        number
        for number, request in enumerate(claimed)
        if all(outcomes[tree][leaf] != Outcome.OPEN for tree in range(2) for leaf in request[tree])
    ]
    assert [one.leaf for one in done] == settled
    _, made = certificates(sweep, 3, Provision.DATA, done, issuer=issuer, not_covered=("backups", 'a "quote"'))
    for at, (one, data) in enumerate(zip(done, made, strict=True)):
        read: Any = canonical.loads(data)
        assert canonical.dumps(read) == data
        whole = certificate.Certificate.model_validate_json(data)
        assert (whole.issuer, whole.round, str(whole.request)) == (issuer, 3, str(one.request_id))
        assert certificate.body_bytes(whole.completed) == one.body
        assert bool(whole.completed.models) == one.models == (one.leaf == 0)
        told = {outcomes[tree][leaf] for tree in range(2) for leaf in claimed[one.leaf][tree]}
        assert (one.result == "complete") == (told <= set(FINAL_ABSENT))
        indices = [[leaf for first, count in runs for leaf in range(first, first + count)] for runs in whole.indices]
        assert indices == [request for request in claimed[one.leaf] if request]
        assert whole.claim_opening.size == len(claimed)
        drawn_nonces = nonces(derive_key(KEY, "round", (3).to_bytes(4, "big")), len(done))
        assert whole.completed_opening.nonce == drawn_nonces[at * 16 : at * 16 + 16].hex()
