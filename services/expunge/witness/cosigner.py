"""What a witness does with a checkpoint, on one directory: 1. judge it, 2. remember it durably, 3. only then sign.

    key      the Ed25519 seed, 64 hex digits, 0600
    state    name of the witness, and per log the size and root of the largest tree that it has cosigned
    refused  the last submission that a known log signed and that did not extend what was cosigned: perhaps a fork

A crash before 2 ends forgets a checkpoint that nobody has a cosignature for; after it, the same one is signed again when
the log asks again. `state` is replaced whole (written beside, synced, renamed, folder synced); a process holds a lock on
the folder, because two with one state could each sign a side of a fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from expunge.domain import canonical, cosigning
from expunge.domain.cosigning import Conflict, Latest, Submission
from expunge.domain.dsse import SEED_BYTES, SigningKey
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.domain.note import NoteKey, SignatureType, sign_cosignature
from expunge.domain.statement import Frozen, Hex32
from expunge.private import read_secret

KEY: Final = "key"
STATE: Final = "state"
REFUSED: Final = "refused"


class _Tree(Frozen):
    size: Annotated[int, Field(ge=0, lt=2**63)]
    root: Hex32


class _State(Frozen):
    version: Literal[1] = 1
    name: str
    logs: dict[str, _Tree]


def now() -> int:
    """POSIX seconds."""
    return int(time.time())


def init(directory: Path, name: str) -> NoteKey:
    """Draw a key and begin an empty state, in a new directory; the verifier key. Raises `Misconfigured`."""
    seed = os.urandom(SEED_BYTES)
    try:
        key = NoteKey.witness(name, SigningKey.from_seed(seed).public)
    except ValueError as error:
        raise Misconfigured(f"expected a witness name such as auditor.example/w1: {error}") from error
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory / KEY, directory / STATE):
            if path.exists():
                raise Misconfigured(f"expected a directory without a witness in it, got one with a file {path.name}")
        _create(directory / KEY, seed.hex().encode() + b"\n")
        _replace(directory, STATE, canonical.dumps(_State(name=name, logs={}).model_dump(mode="json")))
    except OSError as error:
        raise Misconfigured(f"expected a directory to write to, got {type(error).__name__}") from error
    return key


class Cosigner:
    """One witness. `logs`: the logs it knows, as their verifier keys; a log's origin is its key's name. Blocking."""

    def __init__(self, directory: Path, logs: Sequence[NoteKey], clock: Callable[[], int] = now) -> None:
        if any(one.type is not SignatureType.ED25519 for one in logs):
            raise Misconfigured("expected verifier keys of logs, got a witness's")
        self._logs = {one.name: one for one in logs}
        self._directory = directory
        self._clock = clock
        try:
            seed = bytes.fromhex(read_secret(directory / KEY, "the witness's key").decode("ascii").strip())
            state = _State.model_validate_json((directory / STATE).read_bytes())
        except FileNotFoundError as error:
            message = (
                "expected the key and state of a witness: `expunge witness init` makes them, once. A witness that has lost "
                "its state may not begin again under the same key: it could cosign a fork"
            )
            raise Misconfigured(message) from error
        except (OSError, ValueError, ValidationError) as error:
            raise Misconfigured(f"expected a readable key and state, got {type(error).__name__}") from error
        self._key = SigningKey.from_seed(seed)
        self._name = state.name
        self._latest = {origin: Latest(tree.size, bytes.fromhex(tree.root)) for origin, tree in state.logs.items()}

    @property
    def key(self) -> NoteKey:
        """What verifiers pin."""
        return NoteKey.witness(self._name, self._key.public)

    @property
    def latest(self) -> Mapping[str, Latest]:
        """The largest tree cosigned, by origin."""
        return dict(self._latest)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory. Raises `Misconfigured` when another process does."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Misconfigured("expected no other witness on this directory, one is running") from error
        finally:
            os.close(descriptor)

    def add(self, body: bytes) -> bytes | Conflict:
        """The cosignature for a submission, or the old size to give. One call at a time. Raises as `cosigning.judge`;
        `Retryable` when the state could not be written: then nothing is signed."""
        submission = Submission.parse(body)
        # 1
        try:
            checkpoint = cosigning.judge(submission, self._logs, self._latest)
        except Rejected as error:
            if error.code == "inconsistent":
                self._keep(body)
            raise
        if isinstance(checkpoint, Conflict):
            return checkpoint
        # 2
        latest = self._latest | {checkpoint.origin: Latest(checkpoint.size, checkpoint.root)}
        if latest != self._latest:
            self._remember(latest)
            self._latest = latest
        # 3
        return sign_cosignature(submission.note, self._key, self._name, self._clock())

    def _remember(self, latest: Mapping[str, Latest]) -> None:
        logs = {origin: _Tree(size=tree.size, root=tree.root.hex()) for origin, tree in latest.items()}
        data = canonical.dumps(_State(name=self._name, logs=logs).model_dump(mode="json"))
        try:
            _replace(self._directory, STATE, data)
        except OSError as error:
            raise Retryable(f"the witness's state could not be written ({type(error).__name__})") from error

    def _keep(self, body: bytes) -> None:
        """For its operator to look at. That it could not be kept changes nothing about the refusal."""
        with contextlib.suppress(OSError):
            _replace(self._directory, REFUSED, body)


def _create(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(directory: Path, name: str, data: bytes) -> None:
    beside = directory / f".{name}.new"
    beside.unlink(missing_ok=True)
    _create(beside, data)
    os.replace(beside, directory / name)  # noqa: PTH105 - one module's calls, so that tests can cut between any two
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
