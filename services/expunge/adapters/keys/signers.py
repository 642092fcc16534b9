"""Signing keys as files: one Ed25519 seed per role, per store for executors, and an index of their public halves.

    signers.json       issuer, origin, and per key: role, store, file, public, valid_from
    <role>[-<n>].seed  64 hex digits, 0600

A worker is given only the files it needs: a seed that is not there cannot sign, and `trust` needs none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, ValidationError

from expunge.adapters.keys.files import read_private, write_private
from expunge.adapters.keys.memory import MemorySigner
from expunge.domain import canonical, dsse
from expunge.domain.errors import Misconfigured
from expunge.domain.note import NoteKey
from expunge.domain.statement import Frozen
from expunge.domain.trust import Trust, TrustedKey
from expunge.domain.words import Role

INDEX: Final = "signers.json"
ROLES: Final = (Role.REGISTER, Role.SCOPE, Role.RESCANNER, Role.RETRAINER, Role.CERTIFIER, Role.LOG)
"""Roles with one key; executors have one per store. Publishers and approvers are people and systems of their own."""


class _Listed(Frozen):
    role: Role
    store: str | None
    file: str
    public: str
    valid_from: AwareDatetime


class _Index(Frozen):
    issuer: str
    origin: str
    keys: tuple[_Listed, ...]


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
        """A verifier's policy of the public halves, and of `others`: approvers' keys, and keys of before a rotation."""
        log = next(one for one in self._index.keys if one.role is Role.LOG)
        keys = [
            TrustedKey(
                role=one.role,
                name=one.role.value if one.store is None else f"{one.role.value} of {one.store}",
                store=one.store,
                public=one.public,
                valid_from=one.valid_from,
            )
            for one in self._index.keys
            if one.role is not Role.LOG
        ]
        return Trust(
            issuer=self.issuer,
            origin=self.origin,
            log_key=NoteKey.log(self.origin, dsse.PublicKey.from_base64(log.public)).encode(),
            keys=(*keys, *others),
        )

    def _key(self, role: Role, store: str | None) -> dsse.SigningKey:
        wanted = role.value if store is None else f"{role.value} key of store {store}"
        listed = next((one for one in self._index.keys if (one.role, one.store) == (role, store)), None)
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


def _draw(root: Path, role: Role, store: str | None, file: str, at: datetime) -> _Listed:
    seed = os.urandom(dsse.SEED_BYTES)
    write_private(root / file, seed.hex().encode() + b"\n")
    public = dsse.SigningKey.from_seed(seed).public.to_base64()
    return _Listed(role=role, store=store, file=file, public=public, valid_from=at)
