"""Every `KeyStore`, and the signers: drawn once, destroyed for good, private."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from expunge.adapters.keys.files import FileKeys, generate_master_key, read_master_key, read_private
from expunge.adapters.keys.memory import MemoryKeys, signers
from expunge.adapters.keys.signers import INDEX, FileSigners
from expunge.domain import dsse
from expunge.domain.errors import Misconfigured, Rejected, Tampered
from expunge.domain.words import Role
from expunge.ports import KeyStore, Signer
from tests.evidence import START, trusted

DAY = date(2026, 3, 1)
NEXT = date(2026, 3, 2)
MASTER = bytes(range(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "buckets"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(params=["memory", "files"])
def keys(request: pytest.FixtureRequest, folder: Path) -> KeyStore:
    return MemoryKeys() if request.param == "memory" else FileKeys(folder, MASTER)


def test_a_bucket_key_is_drawn_once(keys: KeyStore) -> None:
    with pytest.raises(Rejected) as raised:
        keys.bucket(DAY)
    assert raised.value.code == "no-key"
    key = keys.bucket(DAY, create=True)
    assert len(key) == 32
    assert keys.bucket(DAY) == keys.bucket(DAY, create=True) == key
    assert keys.bucket(NEXT, create=True) != key


def test_a_destroyed_key_is_gone_for_good(keys: KeyStore) -> None:
    keys.bucket(DAY, create=True)
    keys.destroy(DAY)
    keys.destroy(DAY)
    keys.destroy(NEXT)  # never drawn: it never will be
    for day in (DAY, NEXT):
        for create in (True, False):
            with pytest.raises(Rejected) as raised:
                keys.bucket(day, create=create)
            assert raised.value.code == "key-destroyed"


def test_two_processes_see_the_same_key(folder: Path) -> None:
    key = FileKeys(folder, MASTER).bucket(DAY, create=True)
    assert FileKeys(folder, MASTER).bucket(DAY) == key


def test_who_draws_second_gets_the_first_key(folder: Path) -> None:
    keys = FileKeys(folder, MASTER)
    key = keys.bucket(DAY, create=True)
    keys._draw(folder / f"{DAY}.key", DAY.isoformat())
    assert keys.bucket(DAY) == key
    assert [path.name for path in folder.iterdir()] == [f"{DAY}.key"]


def test_a_key_is_wrapped_and_private(folder: Path) -> None:
    key = FileKeys(folder, MASTER).bucket(DAY, create=True)
    path = folder / f"{DAY}.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_bytes()


def test_a_destroyed_key_leaves_only_its_marker(folder: Path) -> None:
    keys = FileKeys(folder, MASTER)
    keys.bucket(DAY, create=True)
    keys.destroy(DAY)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {f"{DAY}.destroyed": b""}


def test_a_key_of_another_day_or_master_does_not_open(folder: Path) -> None:
    FileKeys(folder, MASTER).bucket(DAY, create=True)
    with pytest.raises(Tampered):
        FileKeys(folder, bytes(32)).bucket(DAY)
    (folder / f"{DAY}.key").rename(folder / f"{NEXT}.key")
    with pytest.raises(Tampered):
        FileKeys(folder, MASTER).bucket(NEXT)
    (folder / f"{NEXT}.key").write_bytes(b"short")
    with pytest.raises(Tampered):
        FileKeys(folder, MASTER).bucket(NEXT)


def test_what_others_may_read_is_refused(folder: Path) -> None:
    keys = FileKeys(folder, MASTER)
    keys.bucket(DAY, create=True)
    (folder / f"{DAY}.key").chmod(0o640)
    with pytest.raises(Misconfigured, match="0600"):
        keys.bucket(DAY)
    folder.chmod(0o750)
    with pytest.raises(Misconfigured, match="0700"):
        FileKeys(folder, MASTER)
    with pytest.raises(Misconfigured, match="0700"):
        FileKeys(folder / "nowhere", MASTER)
    with pytest.raises(Misconfigured, match="32 bytes"):
        FileKeys(folder, b"short")


def test_a_master_key_file_holds_64_hex_digits(tmp_path: Path) -> None:
    path = tmp_path / "master"
    generate_master_key(path)
    assert len(read_master_key(path)) == 32
    with pytest.raises(FileExistsError):
        generate_master_key(path)
    for text in ("", "zz" * 32, "ab" * 31):
        path.write_text(text)
        with pytest.raises(Misconfigured, match="64 hex"):
            read_master_key(path)
    with pytest.raises(Misconfigured, match="64 hex"):
        read_master_key(tmp_path / "nowhere")
    with pytest.raises(Misconfigured, match="regular file"):
        read_private(Path("/dev/null"))


# Signers


@pytest.fixture
def files(tmp_path: Path) -> FileSigners:
    return FileSigners.generate(
        tmp_path / "signing", issuer="Example GmbH", origin="log.example/a", stores=["photos", "faces"], at=START
    )


def test_every_role_has_its_own_key_and_the_policy_has_their_public_halves(files: FileSigners) -> None:
    policy = files.trust([trusted(Role.APPROVER)])
    made: list[Signer] = [files.signer(role) for role in (Role.SCOPE, Role.RESCANNER, Role.RETRAINER, Role.CERTIFIER)]
    executors = {store: files.signer(Role.EXECUTOR, store) for store in ("photos", "faces")}
    assert len({one.public.key_id for one in [*made, *executors.values()]}) == 6
    for one in made:
        assert policy.key_for(one.role, one.public.key_id, None, START, 0) == one.public
    for store, signer in executors.items():
        assert policy.key_for(Role.EXECUTOR, signer.public.key_id, store, START, 0) == signer.public
    assert policy.log_keys[0].public == files.log_key().public
    assert policy.issuer == files.issuer
    assert policy.keys[-1].role is Role.APPROVER


def test_the_same_payload_gets_the_same_signature(files: FileSigners) -> None:
    signer = files.signer(Role.SCOPE)
    envelope = signer.sign(b"payload", "text/plain")
    assert envelope == files.signer(Role.SCOPE).sign(b"payload", "text/plain")
    assert dsse.verify(dsse.parse(envelope), signer.public, "text/plain") == b"payload"


def test_what_is_missing_is_named(files: FileSigners, tmp_path: Path) -> None:
    folder = tmp_path / "signing"
    with pytest.raises(Misconfigured, match="executor key of store elsewhere, the directory lists none"):
        files.signer(Role.EXECUTOR, "elsewhere")
    (folder / "scope.seed").write_text("00" * 32)
    with pytest.raises(Misconfigured, match="listed public key: scope"):
        files.signer(Role.SCOPE)
    (folder / "scope.seed").unlink()
    with pytest.raises(Misconfigured, match="readable seed of the signing key: scope"):
        files.signer(Role.SCOPE)
    files.trust()  # needs no seed
    with pytest.raises(Misconfigured, match="empty directory"):
        FileSigners.generate(folder, issuer="x", origin="y", stores=[], at=START)
    (folder / INDEX).write_text("{}")
    with pytest.raises(Misconfigured, match=INDEX):
        FileSigners(folder)


def test_seeds_are_private(files: FileSigners, tmp_path: Path) -> None:
    assert files.origin == "log.example/a"
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "signing").iterdir()}
    assert modes == {0o600}


def test_a_rotated_key_counts_for_a_while_and_the_new_one_signs(files: FileSigners, tmp_path: Path) -> None:
    before = files.signer(Role.SCOPE).public
    later, end = START + timedelta(days=30), START + timedelta(days=30, hours=1)
    retired, added = files.rotate(Role.SCOPE, None, at=later, grace=timedelta(hours=1))
    again = FileSigners(tmp_path / "signing")
    assert again.listed() == files.listed()
    after = again.signer(Role.SCOPE).public
    assert (retired.key_id, added.key_id) == (before.key_id, after.key_id)
    policy = again.trust()
    assert policy.key_for(Role.SCOPE, before.key_id, None, end - timedelta(seconds=1), 0) == before
    assert policy.key_for(Role.SCOPE, after.key_id, None, later, 0) == after
    for public, at in ((before, end), (after, later - timedelta(seconds=1))):
        with pytest.raises(Tampered, match="valid at"):
            policy.key_for(Role.SCOPE, public.key_id, None, at, 0)


def test_a_revoked_key_is_gone_and_replaced(files: FileSigners, tmp_path: Path) -> None:
    store = "photos"
    before = files.signer(Role.EXECUTOR, store).public
    revoked, added = files.revoke(before.key_id, at=START + timedelta(days=1), index=40)
    assert added is not None
    assert files.signer(Role.EXECUTOR, store).public.key_id == added.key_id != before.key_id
    assert not (tmp_path / "signing" / revoked.file).exists()
    policy = files.trust()
    assert policy.key_for(Role.EXECUTOR, before.key_id, store, START, 39) == before
    with pytest.raises(Tampered, match="revoked at log index 40"):
        policy.key_for(Role.EXECUTOR, before.key_id, store, START, 40)  # dated back, but not in the log
    assert files.revoke(before.key_id, at=START, index=41)[1] is None
    with pytest.raises(Rejected, match="listed key"):
        files.revoke("0" * 64, at=START, index=0)
    with pytest.raises(Misconfigured, match="another log"):
        files.rotate(Role.LOG, None, at=START, grace=timedelta(0))
    with pytest.raises(Misconfigured, match="lists none"):
        files.rotate(Role.EXECUTOR, "elsewhere", at=START, grace=timedelta(0))


def test_memory_signers_come_from_a_seed() -> None:
    one, same, other = signers(b"a", ["photos"]), signers(b"a", ["photos"]), signers(b"b", ["photos"])
    place = (Role.EXECUTOR, "photos")
    assert one[place].public == same[place].public != other[place].public
    assert one[place].sign(b"x", "t") == same[place].sign(b"x", "t")
