"""Signing keys as files: one Ed25519 seed per role, per store for executors, and an index of their public halves.

    signers.json       issuer, origin, and per key: role, store, file, public, validity
    <role>[-<n>].seed  64 hex digits, 0600

A worker is given only the files it needs: a seed that is not there cannot sign, and `trust` needs none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, ValidationError

from expunge.adapters.keys.files import overwrite, read_private, write_private
from expunge.adapters.keys.memory import MemorySigner
from expunge.domain import canonical, dsse
from expunge.domain.errors import Misconfigured, Rejected
from expunge.domain.note import NoteKey
from expunge.domain.statement import Frozen
from expunge.domain.trust import Trust, TrustedKey
from expunge.domain.words import Role

INDEX: Final = "signers.json"
ROLES: Final = (Role.REGISTER, Role.SCOPE, Role.RESCANNER, Role.RETRAINER, Role.CERTIFIER, Role.LOG)
"""Roles with one key; executors have one per store. Publishers and approvers are people and systems of their own."""


class ListedKey(Frozen):
    """A key's public half, the file of its seed, and when it counts (`domain.trust.TrustedKey`)."""

    role: Role
    store: str | None
    file: str
    public: str
    valid_from: AwareDatetime
    valid_to: AwareDatetime | None = None
    revoked_at_index: int | None = None

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key, hex."""
        return dsse.PublicKey.from_base64(self.public).key_id


class _Index(Frozen):
    issuer: str
    origin: str
    keys: tuple[ListedKey, ...]


class FileSigners:
    """The signing keys in one directory. Raises `Misconfigured` when there is no readable index."""

    def __init__(self, root: Path) -> None:
        try:
            self._index = _Index.model_validate_json((root / INDEX).read_bytes())
        except (OSError, ValidationError) as error:
            raise Misconfigured(f"expected {INDEX} in the directory of signing keys") from error
        self._root = root

    @classmethod
    def generate(cls, root: Path, *, issuer: str, origin: str, stores: Sequence[str], at: datetime) -> FileSigners:
        """Draw a key per role and store into `root`, which must be empty or absent. Valid from `at`."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise Misconfigured("expected an empty directory for new signing keys")
        places: list[tuple[Role, str | None, str]] = [(role, None, f"{role.value}.seed") for role in ROLES]
        places += [
            (Role.EXECUTOR, store, f"executor-{number}.seed") for number, store in enumerate(sorted(set(stores)))
        ]
        listed = [_draw(root, role, store, file, at) for role, store, file in places]
        index = _Index(issuer=issuer, origin=origin, keys=tuple(listed))
        write_private(root / INDEX, canonical.dumps(index.model_dump(mode="json")))
        return cls(root)

    @property
    def origin(self) -> str:
        """The log's name, also its key name."""
        return self._index.origin

    @property
    def issuer(self) -> str:
        """Whose certificates these keys make."""
        return self._index.issuer

    def signer(self, role: Role, store: str | None = None) -> MemorySigner:
        """The signer of `role`, for executors of `store`. Raises `Misconfigured` naming what is missing."""
        return MemorySigner(role, self._key(role, store))

    def log_key(self) -> dsse.SigningKey:
        """The key that signs checkpoints."""
        return self._key(Role.LOG, None)

    def trust(self, others: Sequence[TrustedKey] = ()) -> Trust:
        """A verifier's policy of the public halves, those of before a rotation too, and of `others`: approvers' keys."""
        log = next(one for one in self._index.keys if one.role is Role.LOG)
        keys = [
            TrustedKey(
                role=one.role,
                name=one.role.value if one.store is None else f"{one.role.value} of {one.store}",
                store=one.store,
                public=one.public,
                valid_from=one.valid_from,
                valid_to=one.valid_to,
                revoked_at_index=one.revoked_at_index,
            )
            for one in self._index.keys
            if one.role is not Role.LOG
        ]
        return Trust(
            issuer=self.issuer,
            origin=self.origin,
            log_key=NoteKey.log(self.origin, dsse.PublicKey.from_base64(log.public)).encode(),
            keys=(*keys, *others),
            reconciled_orders=True,
        )

    def listed(self) -> tuple[ListedKey, ...]:
        """Every key there is or was, in the order in which they were drawn."""
        return self._index.keys

    def rotate(self, role: Role, store: str | None, *, at: datetime, grace: timedelta) -> tuple[ListedKey, ListedKey]:
        """Draw a new key, valid from `at`; the present one is valid for `grace` more, while workers take the new one up.

        Returns the retired and the new one. Raises `Misconfigured` when there is none, and for the log's key: a verifier
        knows a log by its key, so another key is another log.
        """
        if role is Role.LOG:
            raise Misconfigured("expected a role that signs statements: a log with another key is another log")
        before = self._current(role, store)
        if before is None:
            raise Misconfigured(f"expected a {role.value} key to rotate, the directory lists none")
        retired = before.model_copy(update={"valid_to": at + grace})
        return retired, self._replace(before, retired, at)

    def revoke(self, key_id: str, *, at: datetime, index: int) -> tuple[ListedKey, ListedKey | None]:
        """Nothing that this key signed counts from `at`, and from log `index`, on; its seed is destroyed. Where it was in
        use, a new key is drawn: returns the revoked one and the new one. Raises `Rejected("unknown-key")`."""
        before = next((one for one in self._index.keys if one.key_id == key_id), None)
        if before is None or before.role is Role.LOG:
            raise Rejected("unknown-key", "expected the key id of a listed key other than the log's")
        ends = at if before.valid_to is None else min(at, before.valid_to)
        revoked = before.model_copy(update={"valid_to": ends, "revoked_at_index": index})
        made = None
        if before == self._current(before.role, before.store):
            made = self._replace(before, revoked, at)
        else:
            self._write([revoked if one == before else one for one in self._index.keys])
        seed = self._root / before.file
        if seed.exists():
            overwrite(seed)
            seed.unlink()
        return revoked, made

    def _replace(self, before: ListedKey, after: ListedKey, at: datetime) -> ListedKey:
        number = len(self._index.keys)
        made = _draw(self._root, before.role, before.store, f"{before.role.value}-{number}.seed", at)
        self._write([*(after if one == before else one for one in self._index.keys), made])
        return made

    def _write(self, keys: Sequence[ListedKey]) -> None:
        """Replace the index: whole or not at all."""
        index = self._index.model_copy(update={"keys": tuple(keys)})
        temporary = self._root / f".{INDEX}.new"
        temporary.unlink(missing_ok=True)
        write_private(temporary, canonical.dumps(index.model_dump(mode="json")))
        temporary.replace(self._root / INDEX)
        self._index = index

    def _current(self, role: Role, store: str | None) -> ListedKey | None:
        """The key in use: the last one drawn."""
        mine = [one for one in self._index.keys if (one.role, one.store) == (role, store)]
        return mine[-1] if mine else None

    def _key(self, role: Role, store: str | None) -> dsse.SigningKey:
        wanted = role.value if store is None else f"{role.value} key of store {store}"
        listed = self._current(role, store)
        if listed is None:
            raise Misconfigured(f"expected a signing key: {wanted}, the directory lists none")
        try:
            key = dsse.SigningKey.from_seed(
                bytes.fromhex(read_private(self._root / listed.file).decode("ascii").strip())
            )
        except (OSError, ValueError) as error:
            raise Misconfigured(f"expected a readable seed of the signing key: {wanted}") from error
        if key.public.to_base64() != listed.public:
            raise Misconfigured(f"expected the seed of the listed public key: {wanted}")
        return key


def _draw(root: Path, role: Role, store: str | None, file: str, at: datetime) -> ListedKey:
    seed = os.urandom(dsse.SEED_BYTES)
    write_private(root / file, seed.hex().encode() + b"\n")
    public = dsse.SigningKey.from_seed(seed).public.to_base64()
    return ListedKey(role=role, store=store, file=file, public=public, valid_from=at)
