"""Others vouch for the log: witnesses cosign its newest checkpoint, an authority stamps the time on it.

1. the newest checkpoint, unless it has all that is asked for, 2. every witness that has not cosigned it, at once, each
with the proof from the size it is at, 3. with a quorum, a time stamp over the note where it covers a scope or a
completion first, 4. recorded, archived by size, and published in place of the bare note if it is still the newest.
Runs beside the appender: a witness that is slow or down holds up nothing but what waits for it.
Spec: C2SP tlog-witness, tlog-cosignature, RFC 3161.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from expunge.domain import cosigning, merkle, note, tiles
from expunge.domain.errors import Rejected, Retryable, Tampered
from expunge.domain.note import NoteKey
from expunge.metrics import WITNESS_ANSWERS
from expunge.ports import Ledger, TileStore, Timestamper, Witness, WitnessAt

SUBMISSIONS: Final = 3
"""Most submissions to one witness in one round: the first may learn its size, and another log process may come between."""

_log = structlog.get_logger()


class Attest:
    """Asks for cosignatures and time stamps. `quorum`: witnesses that must have cosigned; `timeout_seconds`: for one
    answer; `key`: the log's own."""

    def __init__(
        self, *, ledger: Ledger, store: TileStore, key: NoteKey, witnesses: Sequence[Witness], quorum: int,
        timestamper: Timestamper | None, timeout_seconds: float,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._store = store
        self._key = key
        self._witnesses = witnesses
        self._quorum = quorum
        self._timestamper = timestamper
        self._timeout = timeout_seconds
        self._sizes: dict[str, int] = {}

    async def check(self) -> None:
        """At start: ask every witness where it is. Raises `Tampered` when one is ahead of this log: database and files were
        both restored from older copies. Witnesses that do not answer are not waited for."""
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("attest_newest")
        if rows:
            await asyncio.gather(*(self._probe(one, bytes(rows[0][1])) for one in self._witnesses))

    async def attest(self) -> bool:
        """One round; whether the newest checkpoint now has all that is asked for. Raises `Tampered` as `check`."""
        # 1
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("attest_newest")
        if not rows:
            return True
        ((size, signed, token, attested, wanted),) = rows
        if attested:
            return True
        # 2
        before = bytes(signed)
        answers = await asyncio.gather(*(self._cosigned(one, size, before) for one in self._witnesses))
        cosigned = before + b"".join(one[len(before) :] for one in answers)
        count = sum(_has(one.key, cosigned) for one in self._witnesses)
        # 3
        if cosigned != before:
            token = None  # it was over fewer signatures
        enough = count >= self._quorum
        stamp = self._timestamper if wanted else None
        if enough and token is None and stamp is not None:
            token = await self._stamped(stamp, cosigned)
        done = enough and (stamp is None or token is not None)
        # 4
        async with self._ledger.transaction() as tx:
            await tx.execute(
                "attest_record", size=size, note=cosigned, cosigned=count, token=token, attested=done
            )  # fmt: skip
        await asyncio.to_thread(self._publish, size, cosigned, token)
        return done

    async def _probe(self, witness: Witness, signed: bytes) -> None:
        # An old size of zero asks for its size, unless it has none.
        try:
            async with asyncio.timeout(self._timeout):
                answer = await witness.cosign(0, [], signed)
        except (Retryable, Rejected, TimeoutError):
            return
        if isinstance(answer, WitnessAt):
            await self._check_behind(witness, answer.size)

    async def _check_behind(self, witness: Witness, size: int) -> None:
        self._sizes[witness.key.name] = size
        async with self._ledger.transaction() as tx:
            ((ours,),) = await tx.fetch("attest_size")
        if size > ours:
            raise Tampered(
                "log",
                f"witness {witness.key.name} has cosigned {size} entries of this log, which has {ours}: database and files "
                "were restored from older copies. Restore newer ones, or begin a new log under another origin; if it is the "
                "witness that is wrong, take it out of EXPUNGE_WITNESSES",
            )

    async def _cosigned(self, witness: Witness, size: int, signed: bytes) -> bytes:
        """`signed`, with the witness's line if it gave one."""
        name = witness.key.name
        if _has(witness.key, signed):
            return signed
        try:
            for _ in range(SUBMISSIONS):
                old = self._sizes.get(name, 0)
                if old > size:  # a newer checkpoint has gone to it already: one of ours?
                    await self._check_behind(witness, old)
                    break
                proof = await asyncio.to_thread(self._proof, old, size)
                async with asyncio.timeout(self._timeout):
                    answer = await witness.cosign(old, proof, signed)
                if isinstance(answer, bytes):
                    self._sizes[name] = size
                    signed = cosigning.cosigned_by(signed, answer, witness.key)
                    WITNESS_ANSWERS.labels(name, "cosigned").inc()
                    return signed
                await self._check_behind(witness, answer.size)
        except (Retryable, TimeoutError) as error:
            WITNESS_ANSWERS.labels(name, "silent").inc()
            _log.warning("witness does not answer", witness=name, reason=type(error).__name__)
        except Rejected as error:
            WITNESS_ANSWERS.labels(name, "refused").inc()
            _log.error("witness refuses", witness=name, code=error.code)
        except Tampered as error:
            if error.where != "witness":
                raise
            WITNESS_ANSWERS.labels(name, "bad").inc()
            _log.error("witness answers with a bad signature", witness=name)
        return signed

    async def _stamped(self, timestamper: Timestamper, signed: bytes) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout):
                return await timestamper.stamp(signed)
        except (Retryable, TimeoutError) as error:
            _log.warning("time stamping authority does not answer", reason=type(error).__name__)
            return None

    def _proof(self, old: int, size: int) -> list[bytes]:
        return (
            merkle.consistency_path(tiles.TileTree(size, tiles.fetcher(self._store.read)), old)
            if 0 < old < size
            else []
        )

    def _publish(self, size: int, signed: bytes, token: bytes | None) -> None:
        self._store.write({f"checkpoints/{size}": signed})
        if token is not None:
            self._store.write({f"checkpoints/{size}.tsr": token})
        current = self._store.read("checkpoint")
        if note.open_checkpoint(current, [self._key], self._key.name).size == size:
            self._store.swap("checkpoint", signed, current)


def _has(key: NoteKey, signed: bytes) -> bool:
    try:
        note.verify_cosignature(signed, key)
    except Tampered:
        return False
    return True
