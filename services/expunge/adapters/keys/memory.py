"""Keys in this process, for tests and the simulator: drawn from a seed, so that runs repeat."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from hashlib import sha256

from expunge.domain import dsse
from expunge.domain.errors import Rejected
from expunge.domain.words import Role


class MemoryKeys:
    """`KeyStore` in a dict. `seed` makes the keys repeatable: never in production."""

    def __init__(self, seed: bytes = b"") -> None:
        self._seed = seed
        self._keys: dict[date, bytes | None] = {}

    def bucket(self, day: date, *, create: bool = False) -> bytes:
        """As `ports.KeyStore.bucket`."""
        if day not in self._keys:
            if not create:
                raise Rejected("no-key", f"expected a bucket key of {day.isoformat()}, there never was one")
            self._keys[day] = sha256(self._seed + day.isoformat().encode()).digest()
        key = self._keys[day]
        if key is None:
            raise Rejected("key-destroyed", f"the bucket key of {day.isoformat()} was destroyed")
        return key

    def destroy(self, day: date) -> None:
        """As `ports.KeyStore.destroy`."""
        self._keys[day] = None


class MemorySigner:
    """`Signer` with a key of its own."""

    def __init__(self, role: Role, key: dsse.SigningKey) -> None:
        self.role = role
        self.public = key.public
        self._key = key

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """As `ports.Signer.sign`."""
        return dsse.sign(payload, payload_type, self._key)


def signers(seed: bytes, stores: Sequence[str]) -> dict[tuple[Role, str | None], MemorySigner]:
    """Signers of every role of ours, executors by store, from one seed."""
    places: list[tuple[Role, str | None]] = [(Role.EXECUTOR, store) for store in stores]
    places += [(role, None) for role in (Role.REGISTER, Role.SCOPE, Role.RESCANNER, Role.RETRAINER, Role.CERTIFIER)]
    return {
        (role, store): MemorySigner(
            role, dsse.SigningKey.from_seed(sha256(seed + f"/{role.value}/{store or ''}".encode()).digest())
        )
        for role, store in places
    }
