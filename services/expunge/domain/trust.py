"""The verifier's own policy: whom it believes, for which role, when. A file that the verifier keeps; nothing of it ever
comes from a bundle or a log.

Signing keys are pinned by role, executors also by store. One key has one role: who erases cannot also rescan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from cryptography.x509 import load_pem_x509_certificate
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, ValidationError, model_validator

from expunge.domain import canonical
from expunge.domain.dsse import PublicKey
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.note import NoteKey, SignatureType
from expunge.domain.statement import Frozen
from expunge.domain.words import Role

POLICY_BYTES: Final = 1_000_000
"""Largest policy file accepted, bytes."""


def _public(text: str) -> str:
    try:
        PublicKey.from_base64(text)
    except Rejected as error:
        raise ValueError(str(error)) from error
    return text


def _log_key(text: str) -> str:
    return _note_key(text, SignatureType.ED25519)


def _witness_key(text: str) -> str:
    return _note_key(text, SignatureType.COSIGNATURE)


def _certificate(text: str) -> str:
    load_pem_x509_certificate(text.encode())  # a ValueError says what is wrong
    return text


def _note_key(text: str, kind: SignatureType) -> str:
    try:
        key = NoteKey.parse(text)
    except Rejected as error:
        raise ValueError(str(error)) from error
    if key.type is not kind:
        raise ValueError(f"expected a key of type {kind.name}, got {key.type.name}")
    return text


class TrustedKey(Frozen):
    """A pinned Ed25519 key. `store`: executors only, the one store whose statements it may sign. `public`: base64 of
    32 bytes. Valid in [valid_from, valid_to), by the time that a statement states. `revoked_at_index`: statements from
    this log index on do not count whatever time they state: who stole a key can date a statement back, but not its place
    in the log."""

    role: Role
    name: str = Field(min_length=1)
    store: str | None = None
    public: Annotated[str, AfterValidator(_public)]
    valid_from: AwareDatetime
    valid_to: AwareDatetime | None = None
    revoked_at_index: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _executors_have_a_store(self) -> Self:
        if (self.role is Role.EXECUTOR) != (self.store is not None):
            raise ValueError("expected a store for executors and for no one else")
        return self

    @cached_property
    def key(self) -> PublicKey:
        """The key itself."""
        return PublicKey.from_base64(self.public)

    def valid_at(self, at: datetime) -> bool:
        """Whether a statement made at `at` may be signed with it."""
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)


class Trust(Frozen):
    """A policy. `issuer`: whose certificates; `origin`, `log_key`: the log's name and its C2SP verifier key;
    `witnesses`: verifier keys of cosigners (empty: none asked for), `witness_quorum`: how many of them must have cosigned
    (None: all); `timestamp_authorities`: certificates (PEM) of time stamping authorities or of their roots, one of which
    must have stamped (empty: none asked for); `reconciled_orders`: whether an order's data certificate must be followed by
    a reconciliation without differences."""

    version: Literal[1] = 1
    issuer: str = Field(min_length=1)
    origin: str = Field(min_length=1)
    log_key: Annotated[str, AfterValidator(_log_key)]
    keys: tuple[TrustedKey, ...]
    witnesses: tuple[Annotated[str, AfterValidator(_witness_key)], ...] = ()
    witness_quorum: Annotated[int, Field(ge=0)] | None = None
    timestamp_authorities: tuple[Annotated[str, AfterValidator(_certificate)], ...] = ()
    reconciled_orders: bool = False

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    @model_validator(mode="after")
    def _one_key_one_role(self) -> Self:
        roles: dict[str, Role] = {}
        for one in self.keys:
            if roles.setdefault(one.public, one.role) is not one.role:
                raise ValueError(f"key {one.name} has two roles, expected one")
        places = [(one.role, one.store, one.public) for one in self.keys]
        if len(set(places)) != len(places):
            raise ValueError("expected each key once per role and store")
        return self

    @model_validator(mode="after")
    def _a_quorum_that_can_be(self) -> Self:
        names = [NoteKey.parse(text).name for text in self.witnesses]
        if len(set(names)) != len(names):
            raise ValueError("expected each witness once, by name")
        vouching = [NoteKey.parse(text).public.raw for text in (self.log_key, *self.witnesses)]
        if len(set(vouching)) != len(vouching):
            raise ValueError("expected a key of its own for the log and for each witness")
        if (self.witness_quorum or 0) > len(names):
            raise ValueError(f"expected a quorum of at most {len(names)} witnesses, got {self.witness_quorum}")
        return self

    @property
    def quorum(self) -> int:
        """How many witnesses must have cosigned."""
        return len(self.witnesses) if self.witness_quorum is None else self.witness_quorum

    @cached_property
    def log_keys(self) -> tuple[NoteKey, ...]:
        """The log's key and the witnesses', for `note.open_checkpoint`."""
        return tuple(NoteKey.parse(text) for text in (self.log_key, *self.witnesses))

    @cached_property
    def _by_role(self) -> Mapping[tuple[Role, str | None], Mapping[str, TrustedKey]]:
        found: dict[tuple[Role, str | None], dict[str, TrustedKey]] = defaultdict(dict)
        for one in self.keys:
            found[one.role, one.store][one.key.key_id] = one
        return found

    def key_for(self, role: Role, key_id: str, store: str | None, at: datetime, index: int) -> PublicKey:
        """The key that must have signed: of `role`, and for executors of `store`, valid at `at` and not revoked at log
        `index`. `key_id` is the envelope's unauthenticated hint: it only chooses among keys that would all do. Raises
        `Tampered("policy")` naming what is missing."""
        candidates = self._by_role.get((role, store), {})
        found = candidates.get(key_id)
        revoked = None if found is None else found.revoked_at_index
        if found is not None and found.valid_at(at) and (revoked is None or index < revoked):
            return found.key
        wanted = role.value if store is None else f"{role.value} key of store {store}"
        if not candidates:
            raise Tampered("policy", f"expected a pinned {wanted}, the policy has none")
        if found is None:
            raise Tampered("policy", f"expected a signature by a pinned {wanted}, got key id {key_id[:64] or 'none'}")
        if not found.valid_at(at):
            raise Tampered("policy", f"expected a {wanted} valid at {at.isoformat()}, {found.name} was not")
        raise Tampered("policy", f"expected a {wanted} that stands, {found.name} was revoked at log index {revoked}")


def parse(data: bytes) -> Trust:
    """Read a policy file. Raises `Rejected("bad-policy")`, naming the fields that are wrong."""
    if len(data) > POLICY_BYTES:
        raise Rejected("bad-policy", f"expected at most {POLICY_BYTES} bytes of trust policy, got {len(data)}")
    try:
        return Trust.model_validate_json(canonical.dumps(canonical.loads(data)))
    except Rejected as error:
        raise Rejected("bad-policy", f"trust policy: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'policy'}: {one['msg']}" for one in error.errors(include_input=False)
        )
        raise Rejected("bad-policy", f"trust policy: {problems}") from error


def dump(trust: Trust) -> bytes:
    """The policy as a file."""
    return canonical.dumps(trust.model_dump(mode="json"))
