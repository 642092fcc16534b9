"""A log to be witnessed, and witnesses: keys from seeds, trees of made-up leaves, forks at will."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from expunge.domain import dsse, merkle, note
from expunge.domain.cosigning import Submission
from expunge.domain.note import Checkpoint, NoteKey
from expunge.witness import cosigner

ORIGIN = "log.example/evidence"
WITNESS = "auditor.example/w1"


def seeded(what: str) -> dsse.SigningKey:
    return dsse.SigningKey.from_seed(hashlib.sha256(what.encode()).digest())


LOG = seeded("log")
LOG_KEY = NoteKey.log(ORIGIN, LOG.public)


def tree(size: int, branch: str = "") -> merkle.Tree:
    """`size` leaves; from the third leaf on, another `branch` has other leaves."""
    leaves = [f"{branch if leaf > 1 else ''}/{leaf}".encode() for leaf in range(size)]
    return merkle.Tree(b"".join(map(merkle.leaf_hash, leaves)))


def signed(size: int, branch: str = "", key: dsse.SigningKey = LOG, origin: str = ORIGIN) -> bytes:
    return note.sign_checkpoint(Checkpoint(origin, size, tree(size, branch).root), key, origin)


def submission(old: int, size: int, branch: str = "") -> Submission:
    """The log's honest submission on one branch."""
    proof = merkle.consistency_path(tree(size, branch), old) if 0 < old < size else []
    return Submission(old, tuple(proof), signed(size, branch))


def new_witness(directory: Path, name: str = WITNESS) -> cosigner.Cosigner:
    if not (directory / cosigner.STATE).exists():
        cosigner.init(directory, name)
    return cosigner.Cosigner(directory, [LOG_KEY])


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """The application on a free port of this machine; its URL."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
