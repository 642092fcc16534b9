"""The verifier's policy file: what it may say, and whom it gives for a role."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from expunge.domain import note, trust
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.words import Role
from tests import evidence
from tests.evidence import IMAGES, ORIGIN, START, signing_key, trusted

WITNESS = note.NoteKey.witness("witness.example", signing_key(Role.WITNESS).public).encode()


def test_a_policy_reads_back_as_it_was_written() -> None:
    policy = evidence.trust(witnesses=(WITNESS,))
    assert trust.parse(trust.dump(policy)) == policy
    assert [key.name for key in policy.log_keys] == [ORIGIN, "witness.example"]


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda value: value.update(version=2), "version"),
        (lambda value: value.update(surprise=1), "surprise"),
        (lambda value: value.update(log_key="nonsense"), "log_key"),
        (lambda value: value.update(log_key=WITNESS), "of type ED25519"),
        (lambda value: value.update(witnesses=[value["log_key"]]), "of type COSIGNATURE"),
        (lambda value: value["keys"][0].update(public="AAAA"), "32 bytes"),
        (lambda value: value["keys"][0].update(public="*"), "base64"),
        (lambda value: value["keys"][0].update(store="photos"), "for executors"),
        (lambda value: value["keys"][5].update(store=None), "for executors"),
        (lambda value: value["keys"][0].update(valid_from="2026-01-01T00:00:00"), "valid_from"),
        (lambda value: value["keys"].append(value["keys"][0]), "once per role"),
        (lambda value: value["keys"][0].update(public=value["keys"][1]["public"]), "two roles"),
        (lambda value: value.update(keys=None), "keys"),
    ],
)
def test_a_wrong_policy_is_refused_by_field(change: Change, detail: str) -> None:
    value = json.loads(trust.dump(evidence.trust()))
    change(value)
    with pytest.raises(Rejected, match=detail) as raised:
        trust.parse(json.dumps(value).encode())
    assert raised.value.code == "bad-policy"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"issuer":1,"issuer":2}', b"x" * (trust.POLICY_BYTES + 1)])
def test_what_is_no_policy_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as raised:
        trust.parse(data)
    assert raised.value.code == "bad-policy"


def test_a_key_is_found_by_role_store_and_time() -> None:
    policy = evidence.trust()
    executor = signing_key(Role.EXECUTOR, IMAGES[1]).public
    assert policy.key_for(Role.EXECUTOR, executor.key_id, IMAGES[1], START, 0) == executor


@pytest.mark.parametrize(
    ("role", "hint", "store", "days", "detail"),
    [
        (Role.PUBLISHER, "", None, 0, "a pinned publisher, the policy has none"),
        (Role.EXECUTOR, "", "elsewhere", 0, "executor key of store elsewhere, the policy has none"),
        (Role.SCOPE, "", None, 0, "got key id none"),
        (Role.SCOPE, signing_key(Role.CERTIFIER).key_id, None, 0, "by a pinned scope"),
        (Role.SCOPE, signing_key(Role.SCOPE).key_id, None, 100, "scope-key was not"),
        (Role.SCOPE, signing_key(Role.SCOPE).key_id, None, -2, "scope-key was not"),
    ],
)
def test_what_is_missing_is_named(role: Role, hint: str, store: str | None, days: int, detail: str) -> None:
    with pytest.raises(Tampered, match=detail):
        evidence.trust().key_for(role, hint, store, START + timedelta(days=days), 0)


def test_a_key_may_be_valid_for_good() -> None:
    assert trusted(Role.SCOPE, valid_to=None).valid_at(START + timedelta(days=10_000))


def test_a_revoked_key_counts_for_what_was_logged_before() -> None:
    key = trusted(Role.SCOPE, revoked_at_index=7)
    others = [one for one in evidence.trust().keys if one.role is not Role.SCOPE]
    policy = evidence.trust().model_copy(update={"keys": (*others, key)})
    policy = trust.parse(trust.dump(policy))
    assert policy.key_for(Role.SCOPE, key.key.key_id, None, START, 6) == key.key
    with pytest.raises(Tampered, match="revoked at log index 7"):
        policy.key_for(Role.SCOPE, key.key.key_id, None, START, 7)
