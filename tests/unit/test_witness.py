"""The witness: what it cosigns, what it refuses, and that no crash makes it sign two sides of a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from expunge.domain import merkle, note
from expunge.domain.canonical import base64_encode
from expunge.domain.cosigning import Conflict, Submission, cosigned_by
from expunge.domain.errors import Misconfigured, Rejected, Tampered
from expunge.domain.note import Checkpoint, NoteKey
from expunge.witness import cosigner
from expunge.witness.cosigner import Cosigner
from tests import adversary
from tests.witnessing import LOG_KEY, ORIGIN, new_witness, seeded, signed, submission, tree


def refused(witness: Cosigner, given: Submission | bytes) -> str:
    with pytest.raises(Rejected) as raised:
        witness.add(given if isinstance(given, bytes) else given.encode())
    adversary.refused()
    return raised.value.code


def cosigned(witness: Cosigner, given: Submission) -> bytes:
    answer = witness.add(given.encode())
    assert isinstance(answer, bytes), answer
    assert note.verify_cosignature(given.note + answer, witness.key) > 0
    return answer


def test_a_log_that_only_grows_is_cosigned(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    for old, size in ((0, 0), (0, 1), (1, 1), (1, 5), (5, 8), (8, 300)):
        cosigned(witness, submission(old, size))
    assert witness.latest[ORIGIN].size == 300
    assert new_witness(tmp_path).latest == witness.latest


def test_the_same_checkpoint_is_cosigned_again(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    cosigned(witness, submission(0, 5))
    before = (tmp_path / cosigner.STATE).stat().st_ino
    cosigned(witness, submission(5, 5))
    assert (tmp_path / cosigner.STATE).stat().st_ino == before


def test_another_old_size_is_told_the_right_one(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    cosigned(witness, submission(0, 5))
    for old in (0, 3):
        assert witness.add(submission(old, 8).encode()) == Conflict(5)
    assert witness.add(submission(2, 3).encode()) == Conflict(5)


@pytest.mark.parametrize(("old", "size"), [(5, 5), (5, 8), (5, 300)])
def test_a_fork_is_refused_and_kept_as_proof(tmp_path: Path, old: int, size: int) -> None:
    witness = new_witness(tmp_path)
    cosigned(witness, submission(0, old))
    fork = submission(old, size, "fork")
    assert refused(witness, fork) == "inconsistent"
    assert witness.latest[ORIGIN].size == old
    assert (tmp_path / cosigner.REFUSED).read_bytes() == fork.encode()
    cosigned(witness, submission(old, size))


def test_a_log_rewritten_from_the_start_is_refused(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    cosigned(witness, submission(0, 5))
    assert witness.add(Submission(0, (), signed(9, "fresh")).encode()) == Conflict(5)
    path = merkle.consistency_path(tree(9, "fresh"), 5)
    assert refused(witness, Submission(5, tuple(path), signed(9, "fresh"))) == "inconsistent"


def test_a_log_cut_short_is_refused(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    cosigned(witness, submission(0, 8))
    assert refused(witness, Submission(8, (), signed(5))) == "bad-size"
    assert witness.add(submission(5, 5).encode()) == Conflict(8)


def test_a_log_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    other = signed(5, origin="other.example/log")
    assert refused(new_witness(tmp_path), Submission(0, (), other)) == "unknown-log"


def test_a_checkpoint_that_the_log_did_not_sign_is_refused(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    assert refused(witness, Submission(0, (), signed(5, key=seeded("thief")))) == "bad-signature"
    good = signed(5)
    assert refused(witness, Submission(0, (), good.replace(b"\n5\n", b"\n6\n"))) == "bad-signature"


def test_an_empty_tree_has_the_empty_root(tmp_path: Path) -> None:
    odd = note.sign_checkpoint(Checkpoint(ORIGIN, 0, b"x" * 32), seeded("log"), ORIGIN)
    assert refused(new_witness(tmp_path), Submission(0, (), odd)) == "inconsistent"


def test_a_proof_from_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(new_witness(tmp_path), Submission(0, (b"x" * 32,), signed(5))) == "inconsistent"


LINE = base64_encode(b"x" * 32).encode() + b"\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 00\n\n" + signed(1),
        b"old -1\n\n" + signed(1),
        b"new 0\n\n" + signed(1),
        b"old 0\nnot base64\n\n" + signed(1),
        b"old 0\n" + base64_encode(b"short").encode() + b"\n\n" + signed(1),
        b"old 1\n" + LINE * 64 + b"\n" + signed(1),
        b"old 0\n\nno note",
        b"\xff\n\n" + signed(1),
        b"x" * 2_000_000,
    ],
)
def test_what_is_no_submission_is_malformed(tmp_path: Path, body: bytes) -> None:
    assert refused(new_witness(tmp_path), body) == "malformed"


def test_a_submission_is_read_as_it_was_written() -> None:
    given = submission(5, 300)
    assert Submission.parse(given.encode()) == given


def test_cosignatures_by_others_are_ignored_and_bad_ones_do_not_count(tmp_path: Path) -> None:
    witness = new_witness(tmp_path)
    checkpoint = signed(5)
    line = cosigned(witness, Submission(0, (), checkpoint))
    other = note.sign_cosignature(checkpoint, seeded("other"), "other.example/w", 7)
    good = cosigned_by(checkpoint, other + line, witness.key)
    assert good == checkpoint + line
    assert cosigned_by(good, line, witness.key) == good
    for answer in (other, b"", note.sign_cosignature(signed(6), seeded("other"), witness.key.name, 7)):
        with pytest.raises(Tampered):
            cosigned_by(checkpoint, answer, witness.key)


def test_a_witness_is_made_once(tmp_path: Path) -> None:
    key = cosigner.init(tmp_path / "w", "auditor.example/w1")
    assert NoteKey.parse(key.encode()) == key
    with pytest.raises(Misconfigured):
        cosigner.init(tmp_path / "w", "auditor.example/w1")
    assert (tmp_path / "w" / cosigner.KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lost", [cosigner.KEY, cosigner.STATE])
def test_a_witness_that_lost_its_state_does_not_begin_again(tmp_path: Path, lost: str) -> None:
    new_witness(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(Misconfigured):
        Cosigner(tmp_path, [LOG_KEY])


def test_a_witness_with_half_a_state_does_not_begin(tmp_path: Path) -> None:
    new_witness(tmp_path)
    (tmp_path / cosigner.STATE).write_bytes((tmp_path / cosigner.STATE).read_bytes()[:-3])
    with pytest.raises(Misconfigured):
        Cosigner(tmp_path, [LOG_KEY])


def test_two_witnesses_on_one_state_cannot_run(tmp_path: Path) -> None:
    first, second = new_witness(tmp_path), Cosigner(tmp_path, [LOG_KEY])
    with first.alone(), pytest.raises(Misconfigured), second.alone():
        pass
    with second.alone():
        pass


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from expunge.witness import cosigner
    from tests.witnessing import new_witness, submission

    witness = new_witness(Path(sys.argv[1]))
    left = int(sys.argv[2])

    def dying(call):
        def counted(*arguments, **named):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **named)
        return counted

    for name in ("open", "fdopen", "fsync", "replace", "close"):
        setattr(cosigner.os, name, dying(getattr(os, name)))
    cosigner.sign_cosignature = dying(cosigner.sign_cosignature)
    answer = witness.add(submission(5, 8).encode())
    left = -1
    sys.stdout.buffer.write(answer)
    """
)


def test_killed_between_any_two_writes_it_never_signs_two_sides(tmp_path: Path) -> None:
    """Each system call of remembering and signing in turn is the one before which the process dies."""
    points = 0
    while True:
        directory = tmp_path / str(points)
        cosigned(new_witness(directory), submission(0, 5))
        ran = subprocess.run(
            [sys.executable, "-c", KILLED, str(directory), str(points)], capture_output=True, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        after = new_witness(directory)
        known = after.latest[ORIGIN].size
        assert known in {5, 8}
        if ran.stdout:
            assert known == 8, "a cosignature that left is remembered"
        # Whatever it remembers, only one branch goes on from there, and the log's own does.
        assert refused(after, submission(known, 9, "fork")) == "inconsistent"
        cosigned(after, submission(known, 9))
        if ran.returncode == 0:
            break
        assert ran.returncode == -9, ran.stderr
        points += 1
    assert points >= 8
