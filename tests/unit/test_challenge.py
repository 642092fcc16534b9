"""What a challenge asks for, and how many leaves are enough."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import challenge, dsse, note, statement
from expunge.domain.errors import Tampered
from expunge.domain.words import Role
from tests import adversary
from tests.evidence import (
    ORIGIN,
    START,
    answered,
    order_sweep,
    request_id,
    sign_answer,
    signing_key,
    trust,
    trusted,
)

SCOPE = "5" * 64
ROOT = b"r" * 32


@pytest.mark.parametrize(
    ("bad", "confidence", "leaves"), [(0.01, 0.95, 299), (0.001, 0.95, 2995), (0.01, 0.99, 459), (0.001, 0.99, 4603)]
)
def test_sample_sizes_are_those_of_the_textbook(bad: float, confidence: float, leaves: int) -> None:
    assert challenge.samples(bad, confidence) == leaves


@pytest.mark.parametrize(("bad", "confidence"), [(0, 0.95), (1, 0.95), (0.01, 0), (0.01, 1)])
def test_shares_are_between_none_and_all(bad: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        challenge.samples(bad, confidence)


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 60))
def test_places_are_different_leaves_of_the_trees(root: bytes, leaves: list[int], count: int) -> None:
    found = challenge.places(root, SCOPE, leaves, count)
    assert len(found) == min(count, sum(leaves))
    assert list(found) == sorted(set(found))
    assert all(index < leaves[tree] for tree, index in found)
    assert found == challenge.places(root, SCOPE, leaves, count)


def test_places_follow_from_root_and_scope() -> None:
    first = challenge.places(ROOT, SCOPE, [10_000, 10_000], 20)
    assert first != challenge.places(b"s" * 32, SCOPE, [10_000, 10_000], 20)
    assert first != challenge.places(ROOT, "6" * 64, [10_000, 10_000], 20)
    assert {tree for tree, _ in first} == {0, 1}


def test_a_place_by_hand() -> None:
    word = hashlib.sha256(b"expunge/challenge/v1" + ROOT + bytes.fromhex(SCOPE) + bytes(8)).digest()[:8]
    at = int.from_bytes(word, "big") % 3000
    assert challenge.places(ROOT, SCOPE, [1000, 2000], 1) == ((0, at) if at < 1000 else (1, at - 1000),)


def test_draws_that_would_favour_some_leaves_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total that divides 2**8 badly: with one-byte draws of 200 leaves, those of 200 and more do not count."""
    monkeypatch.setattr(challenge, "_WORD", 1)
    found = challenge.places(ROOT, SCOPE, [200], 50)
    drawn = (
        hashlib.sha256(b"expunge/challenge/v1" + ROOT + bytes.fromhex(SCOPE) + bytes([n])).digest()[0]
        for n in range(256)
    )
    fair: list[int] = []
    for one in drawn:
        if one < 200 and one not in fair:
            fair.append(one)
    assert [index for _, index in found] == sorted(fair[:50])


# Answers, as an auditor checks them


def refused(signed: bytes, point: bytes, where: str, detail: str, count: int = 5, **policy: Any) -> None:
    with pytest.raises(Tampered, match=detail) as caught:
        challenge.verify(signed, order_sweep().files(), trust(**policy), point, count)
    assert caught.value.where == where
    adversary.refused()


def test_an_answer_that_the_rescanner_signed_is_checked_offline() -> None:
    answer, point = answered(order_sweep(), 5)
    found = challenge.verify(sign_answer(answer), order_sweep().files(), trust(), point, 5)
    assert (found.leaves, found.at, found.present) == (5, answer.at, ())
    there = answer.model_copy(
        update={"openings": tuple(o.model_copy(update={"present": True}) for o in answer.openings)}
    )
    found = challenge.verify(sign_answer(there), order_sweep().files(), trust(), point, 5)
    assert len(found.present) == 5
    everything, point = answered(order_sweep(), 10_000)
    assert challenge.verify(sign_answer(everything), order_sweep().files(), trust(), point, 10_000).leaves == 2200


def test_an_answer_that_nobody_who_may_signed_is_refused() -> None:
    answer, point = answered(order_sweep(), 5)
    for key in (
        signing_key(Role.EXECUTOR, "photos"),
        signing_key(Role.CERTIFIER),
        dsse.SigningKey.from_seed(b"x" * 32),
    ):
        refused(sign_answer(answer, key), point, "challenge", "by a pinned rescanner")
    refused(challenge.dump(answer), point, "challenge", "DSSE envelope")
    refused(b"no JSON", point, "challenge", "one JSON text")
    signed = sign_answer(answer)
    other = sign_answer(answer.model_copy(update={"at": START}))
    refused(
        signed[: signed.index(b'"sig":')] + other[other.index(b'"sig":') :], point, "challenge", "none that verifies"
    )
    twice = signed.replace(b'"signatures":[', b'"signatures":[' + signed[signed.index(b'{"keyid"') : -2] + b",")
    refused(twice, point, "challenge", "one signature")
    as_statement = dsse.sign(challenge.dump(answer), statement.PAYLOAD_TYPE, signing_key(Role.RESCANNER))
    refused(as_statement, point, "challenge", "payload type")


def test_an_answer_under_an_expired_or_revoked_key_is_refused() -> None:
    answer, point = answered(order_sweep(), 5)
    others = tuple(one for one in trust().keys if one.role is not Role.RESCANNER)
    built = order_sweep()
    for change, detail in (
        ({"valid_to": START + timedelta(hours=20)}, "valid at"),
        ({"revoked_at_index": len(built.log.entries)}, "revoked at log index"),
    ):
        keys = (*others, trusted(Role.RESCANNER, **change))
        refused(sign_answer(answer), point, "challenge", detail, keys=keys)


def test_an_answer_has_one_spelling() -> None:
    answer, point = answered(order_sweep(), 5)
    key = signing_key(Role.RESCANNER)
    loose = dsse.sign(b" " + challenge.dump(answer), challenge.PAYLOAD_TYPE, key)
    refused(loose, point, "challenge", "another spelling")
    refused(dsse.sign(b"{}", challenge.PAYLOAD_TYPE, key), point, "challenge", "something else")
    assert challenge.parse(sign_answer(answer)) == answer


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"request": request_id(1)}, "the bundle's order"),
        ({"scope": "1" * 64}, "the bundle's order"),
        ({"checkpoint": ""}, "this checkpoint"),
        ({"count": 6}, "asks for"),
        ({"openings": ()}, "asks for"),
    ],
)
def test_an_answer_to_another_question_is_refused(change: dict[str, Any], detail: str) -> None:
    answer, point = answered(order_sweep(), 5)
    refused(sign_answer(answer.model_copy(update=change)), point, "challenge", detail)


def test_a_leaf_that_was_not_in_the_scope_is_refused() -> None:
    answer, point = answered(order_sweep(), 5)
    one = answer.openings[0]
    for change in ({"artifact": one.artifact + 1}, {"nonce": "0" * 32}, {"digest": "1" * 64}, {"path": one.path[1:]}):
        wrong = (one.model_copy(update=change), *answer.openings[1:])
        refused(
            sign_answer(answer.model_copy(update={"openings": wrong})),
            point,
            f"tree {one.tree} leaf {one.index}",
            "expected",
        )


def test_the_auditors_checkpoint_is_the_logs_from_after_the_order_and_witnessed() -> None:
    answer, point = answered(order_sweep(), 5)
    signed = sign_answer(answer)
    refused(signed, b"no note", "checkpoint", "signature lines")
    early = note.sign_checkpoint(note.Checkpoint(ORIGIN, 1, bytes(32)), signing_key(Role.LOG), ORIGIN)
    refused(signed, early, "checkpoint", "of more than")
    witness = signing_key(Role.WITNESS)
    policy: dict[str, Any] = {"witnesses": (note.NoteKey.witness("auditor.example/w", witness.public).encode(),)}
    files = order_sweep().files()
    cosigned = files["log/checkpoint"] + note.sign_cosignature(
        point, witness, "auditor.example/w", int(START.timestamp())
    )
    vouched = files | {"log/checkpoint": cosigned}
    vouched.pop("certificate.html")
    with pytest.raises(Tampered, match="before the first deed"):  # the bundle itself is held to the policy too
        challenge.verify(signed, vouched, trust(**policy), point, 5)
    with pytest.raises(Tampered, match="cosignatures by 1 pinned witnesses, got 0"):
        challenge._point(point, trust(**policy))
    assert challenge._point(cosigned, trust(**policy)).size == note.read_checkpoint(point).size
