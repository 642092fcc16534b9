"""What a verifier makes of witnesses and authorities, and the adversary who owns the log's key but not theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from expunge.domain import attestation, bundle, merkle, note, statement, timestamp, trust, verification
from expunge.domain.errors import Tampered
from expunge.domain.note import Checkpoint, NoteKey
from expunge.domain.report import Report
from expunge.domain.words import Role
from tests import adversary, evidence
from tests.evidence import ORIGIN, START, SWEEP, Synthetic, order_sweep
from tests.witnessing import seeded

WITNESSES = ("w0.example", "w1.example", "w2.example")
BEFORE = START + timedelta(minutes=1)
"""Before the first deed, which is 20 minutes after the scope's time."""
PEM = "-----BEGIN CERTIFICATE-----"

Files = dict[str, bytes]


def witness(name: str) -> NoteKey:
    return NoteKey.witness(name, seeded(name).public)


def pinning(quorum: int | None = 2, **changes: Any) -> trust.Trust:
    keys = tuple(witness(name).encode() for name in WITNESSES)
    return evidence.trust(witnesses=keys, witness_quorum=quorum, **changes)


def cosigned(signed: bytes, *names: str, at: datetime = BEFORE) -> bytes:
    return signed + b"".join(
        note.sign_cosignature(signed, seeded(name), name, int(at.timestamp())) for name in names
    )  # fmt: skip


def point(hashes: bytes, size: int) -> bytes:
    checkpoint = Checkpoint(ORIGIN, size, merkle.root(hashes[: size * merkle.HASH_BYTES]))
    return note.sign_checkpoint(checkpoint, evidence.signing_key(Role.LOG), ORIGIN)


def first_deed(built: Synthetic) -> int:
    return next(at for at, name in enumerate(built.names) if name.startswith(("hide", "erase")))


def vouched(
    built: Synthetic, last: Sequence[str] = WITNESSES[:2], early: Sequence[str] = WITNESSES[:2],
    size: int | None = None, at: datetime = BEFORE,
) -> Files:  # fmt: skip
    """The bundle, its checkpoint cosigned by `last`, and a checkpoint of `size` over the scope by `early`, at `at`."""
    hashes = built.log.hashes()
    size = first_deed(built) if size is None else size
    path = merkle.consistency_path(merkle.Tree(hashes), size)
    files = built.files()
    files[bundle.CHECKPOINT] = cosigned(files[bundle.CHECKPOINT], *last, at=START + timedelta(hours=3))
    return files | attestation.files(None, [(size, cosigned(point(hashes, size), *early, at=at), None, path)])


def failed(files: Mapping[str, bytes], where: str, detail: str, policy: trust.Trust | None = None) -> Report:
    report = verification.verify(files, policy or pinning())
    assert not report.ok
    assert (report.where, detail in report.steps[-1].detail) == (where, True), list(report.lines())
    adversary.refused()
    return report


def test_a_quorum_before_and_after_verifies_and_is_told() -> None:
    report = verification.verify(vouched(order_sweep()), pinning())
    assert report.ok, list(report.lines())
    assert "cosigned by w0.example, w1.example" in report.steps[1].detail
    assert "before the first deed" in report.steps[4].detail


def test_a_policy_without_witnesses_asks_for_none() -> None:
    assert verification.verify(order_sweep().files(), evidence.trust()).ok
    assert verification.verify(vouched(order_sweep()), evidence.trust()).ok


@pytest.mark.parametrize(("last", "got"), [((), 0), (("w0.example",), 1), (("w0.example", "w0.example"), 1)])
def test_less_than_the_quorum_is_not_enough(last: Sequence[str], got: int) -> None:
    files = vouched(order_sweep(), last=last)
    failed(files, "log/checkpoint", f"expected cosignatures by 2 pinned witnesses, got {got}")


def test_without_a_number_all_witnesses_are_asked_for() -> None:
    assert pinning(None).quorum == 3
    failed(vouched(order_sweep()), "log/checkpoint", "by 3 pinned witnesses, got 2", pinning(None))


def test_a_cosignature_by_nobody_that_is_pinned_counts_for_nothing() -> None:
    failed(vouched(order_sweep(), last=("w0.example", "company.example")), "log/checkpoint", "got 1")


def test_a_bad_cosignature_by_a_pinned_witness_fails() -> None:
    files = vouched(order_sweep())
    for path in ("log/checkpoint", f"log/checkpoints/{first_deed(order_sweep())}"):
        other = note.sign_cosignature(point(b"h" * 32, 1), seeded("w2.example"), "w2.example", 7)
        failed(files | {path: files[path] + other}, "note", "expected a good cosignature by w2.example")


def test_an_order_whose_scope_was_witnessed_too_late_fails() -> None:
    built = order_sweep()
    late = first_deed(built) + 1
    failed(vouched(built, size=late), "log/checkpoints", "before the first deed, got none")
    failed(vouched(built, size=built.names.index("scope")), "log/checkpoints", "before the first deed, got none")
    failed(vouched(built, early=("w0.example",)), "log/checkpoints", "before the first deed, got none")
    after = START + timedelta(minutes=20) + attestation.CLOCKS + timedelta(seconds=1)
    failed(vouched(built, at=after), "log/checkpoints", "before the first deed, got none")
    assert verification.verify(vouched(built, at=after - timedelta(seconds=1)), pinning()).ok


def test_a_person_does_not_wait_but_the_report_tells() -> None:
    built = Synthetic()
    files = {
        path: data for path, data in vouched(built).items() if not path.startswith("log/c") or path == bundle.CHECKPOINT
    }
    report = verification.verify(files, pinning())
    assert report.ok, list(report.lines())
    assert report.steps[4].detail.endswith(attestation.NOT_BEFORE)
    assert verification.verify(vouched(built), pinning()).steps[4].detail.endswith("before the first deed")


@pytest.mark.parametrize("seconds", [253_402_300_800, 2**62])
def test_a_time_after_all_dates_vouches_for_nothing(seconds: int) -> None:
    """A witness that lies about its clock so wildly makes a verifier refuse, not break."""
    files = vouched(order_sweep())
    (path,) = [one for one in files if one.startswith("log/checkpoints/")]
    bare = note.open_note(files[path], [NoteKey.log(ORIGIN, evidence.signing_key(Role.LOG).public)]).text
    signed = note.sign_note(bare, evidence.signing_key(Role.LOG), ORIGIN)
    wild = signed + b"".join(note.sign_cosignature(signed, seeded(name), name, seconds) for name in WITNESSES[:2])
    failed(files | {path: wild}, "log/checkpoints", "before the first deed")


def test_deeds_at_the_end_of_time_do_not_overflow() -> None:
    late = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    attested = attestation.check({}, cosigned(point(b"h" * 64, 2), *WITNESSES), pinning(2))
    seen = attestation.check_before(
        attestation.Attested(attested.last, (attested.last,)), 0, (2, late), pinning(2), needed=True
    )
    assert seen == "scope attested at size 2, before the first deed"


def test_the_statement_about_it_is_signed_under_scope_and_about_this_sweep() -> None:
    values = {"sweep": SWEEP, "scope": evidence.ZERO, "quorum": 2, "cosigned": 0, "timestamped": False, "at": START}
    said = statement.ScopeUnwitnessed.model_validate(values)
    assert statement.role_of(said) is Role.SCOPE
    assert statement.parse(statement.payload(said, {"scope": evidence.ZERO})).predicate == said


# The adversary, with the log's own key


def rewritten(built: Synthetic) -> Synthetic:
    """The same story with one more entry at its start: a log rewritten with fresh hashes."""
    again = order_sweep()
    again.log.entries.insert(0, evidence.sign(evidence.batch().model_copy(update={"leaves": 2})))
    again.names.insert(0, "noise")
    assert again.log.hashes() != built.log.hashes()
    return again


def test_a_log_rewritten_from_the_start_has_no_witness() -> None:
    """Every hash and signature of the log is right; only pinned witnesses can tell."""
    files = rewritten(order_sweep()).files()
    assert verification.verify(files, evidence.trust()).ok
    failed(files, "log/checkpoint", "expected cosignatures by 2 pinned witnesses, got 0")


def test_a_log_rewritten_after_its_scope_was_witnessed_is_no_extension() -> None:
    honest, again = order_sweep(), rewritten(order_sweep())
    files = vouched(again)
    old = vouched(honest)
    size = first_deed(honest)
    path = f"log/checkpoints/{size}"
    shown = {one: data for one, data in files.items() if one == bundle.CHECKPOINT or not one.startswith("log/c")}
    proof = f"log/consistency/{size}"
    failed(shown | {path: old[path], proof: old[proof]}, proof, "expected the checkpoint of size")


def test_a_fork_under_two_checkpoints_of_one_size_is_found() -> None:
    """Re-signed after a database restore: the scope's checkpoint is of the tree before."""
    built = order_sweep()
    size = first_deed(built)
    files = vouched(built)
    fork = bytearray(built.log.hashes())
    fork[(size - 1) * 32] ^= 1
    files[f"log/checkpoints/{size}"] = cosigned(point(bytes(fork), size), *WITNESSES[:2])
    failed(files, f"log/consistency/{size}", "to be of the same log")


def test_a_log_cut_short_is_found() -> None:
    """A checkpoint that was larger when it was witnessed than the one shown."""
    built = order_sweep()
    hashes = built.log.hashes()
    files = vouched(built)
    size = len(built.log.entries) + 5
    files |= attestation.files(None, [(size, cosigned(point(hashes + b"h" * 160, size), *WITNESSES), None, [])])
    failed(files, f"log/consistency/{size}", "expected sizes in order")


def test_a_checkpoint_of_another_log_or_size_is_found() -> None:
    built = order_sweep()
    size = first_deed(built)
    files = vouched(built)
    path = f"log/checkpoints/{size}"
    other = note.sign_checkpoint(Checkpoint("other.example", size, b"r" * 32), evidence.signing_key(Role.LOG), ORIGIN)
    failed(files | {path: cosigned(other, *WITNESSES)}, "checkpoint", "expected origin")
    failed(files | {path: point(built.log.hashes(), size - 1)}, path, f"expected a checkpoint of size {size}")
    failed(files | {path: b"nonsense"}, path, "expected text")
    failed(files | {f"log/consistency/{size}": b"!\n"}, f"log/consistency/{size}", "of the same log")
    failed(
        files | {f"log/consistency/{size}": files[f"log/consistency/{size}"][:-1]},
        f"log/consistency/{size}",
        "same log",
    )


@pytest.mark.parametrize(
    "path",
    [
        "log/checkpoints/0",
        "log/checkpoints/05",
        "log/timestamps/5",
        "log/x",
        "log/checkpoints/5/6",
        "log/checkpoint.tsr2",
    ],
)
def test_files_of_no_known_kind_are_refused(path: str) -> None:
    failed(order_sweep().files() | {path: b""}, path, "expected only files", evidence.trust())


def test_every_byte_of_what_witnesses_vouch_for_is_vouched_for() -> None:
    files = vouched(order_sweep())
    for path in [one for one in files if attestation.is_path(one)]:
        for at in range(0, len(files[path]), 3):
            changed = bytearray(files[path])
            changed[at] ^= 1
            report = verification.verify(files | {path: bytes(changed)}, pinning())
            assert not report.ok, f"{path} byte {at}"
            adversary.refused(what=f": {path.rpartition('/')[0]}")


# Time stamps. What a real token is worth: tests/contract/test_timestamper.py.


def stamped(files: Files, size: int, last: datetime | None, early: datetime | None) -> Files:
    """With tokens that `read` understands: the time."""
    made = {attestation.STAMP: last, f"log/timestamps/{size}.tsr": early}
    return files | {path: at.isoformat().encode() for path, at in made.items() if at is not None}


@pytest.fixture
def authorities(monkeypatch: pytest.MonkeyPatch) -> trust.Trust:
    def read(token: bytes, data: bytes, pinned: Sequence[str], where: str) -> datetime:
        assert data.startswith(ORIGIN.encode())
        assert pinned == (PEM,)
        return datetime.fromisoformat(token.decode())

    monkeypatch.setattr(timestamp, "time_of", read)
    return pinning().model_copy(update={"timestamp_authorities": (PEM,)})


def test_a_time_stamp_before_and_after_verifies(authorities: trust.Trust) -> None:
    built = order_sweep()
    files = stamped(vouched(built), first_deed(built), START + timedelta(hours=3), BEFORE)
    report = verification.verify(files, authorities)
    assert report.ok, list(report.lines())
    assert "time-stamped 2026-03-01T15:00:00+00:00" in report.steps[1].detail


def test_a_time_stamp_that_is_asked_for_and_missing_or_late_fails(authorities: trust.Trust) -> None:
    built = order_sweep()
    size = first_deed(built)
    last = START + timedelta(hours=3)
    failed(stamped(vouched(built), size, None, BEFORE), attestation.STAMP, "got none", authorities)
    failed(stamped(vouched(built), size, last, None), "log/checkpoints", "and a time stamp", authorities)
    failed(stamped(vouched(built), size, last, last), "log/checkpoints", "and a time stamp", authorities)


def test_a_time_stamp_that_cannot_be_checked_fails_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rfc3161_client", None)
    files = vouched(order_sweep()) | {attestation.STAMP: b"token"}
    asking = pinning().model_copy(update={"timestamp_authorities": (PEM,)})
    failed(files, attestation.STAMP, "not installed", asking)
    assert verification.verify(files, pinning()).ok


# The policy


@pytest.mark.parametrize(
    "changes",
    [
        {"witness_quorum": 4},
        {"witness_quorum": -1},
        {"witnesses": [witness("w0.example").encode(), NoteKey.witness("w0.example", seeded("x").public).encode()]},
        {"timestamp_authorities": ["no certificate"]},
        {"witnesses": [NoteKey.witness(name, seeded("w0.example").public).encode() for name in ("one", "two")]},
        {"witnesses": [NoteKey.witness("w0.example", evidence.signing_key(Role.LOG).public).encode()]},
    ],
)
def test_a_policy_that_cannot_be_met_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        trust.Trust.model_validate(pinning().model_dump() | changes)


def test_a_policy_is_read_as_it_was_written() -> None:
    assert trust.parse(trust.dump(pinning())) == pinning()


def test_a_quorum_of_none_is_a_choice() -> None:
    assert verification.verify(order_sweep().files(), pinning(0)).ok


def test_it_is_the_time_of_the_quorum_that_counts() -> None:
    signed = point(b"h" * 32, 1)
    for name, minutes in zip(WITNESSES, (30, 10, 20), strict=True):
        signed = cosigned(signed, name, at=START + timedelta(minutes=minutes))
    found = attestation.check({}, signed, pinning(2)).last
    assert found.known_by(pinning(2)) == START + timedelta(minutes=20)
    assert found.known_by(pinning(3)) == START + timedelta(minutes=30)
    with pytest.raises(Tampered):
        attestation.check({}, point(b"h" * 32, 1), pinning(1))
