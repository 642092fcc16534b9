"""Every `SealedStore`: whole files, never replaced, mapped."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from expunge.adapters.sealed.files import FileSealed
from expunge.adapters.sealed.memory import MemorySealed
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.ports import SealedStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "sealed"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, folder: Path) -> SealedStore:
    return MemorySealed() if request.param == "memory" else FileSealed(folder)


def test_blocks_become_one_file(store: SealedStore) -> None:
    assert store.write("a.scope", [b"one", b"two"]) == sha256(b"onetwo").digest()
    assert bytes(store.open("a.scope")) == b"onetwo"
    assert store.read("a.scope", 2, 3) == b"etw"
    assert store.read("a.scope", 4, 100) == b"wo"


def test_an_empty_file_is_a_file(store: SealedStore) -> None:
    assert store.write("a.scope", []) == sha256(b"").digest()
    assert bytes(store.open("a.scope")) == b""


def test_the_same_bytes_may_be_written_again_others_not(store: SealedStore) -> None:
    store.write("a.scope", [b"one"])
    store.write("a.scope", [b"o", b"ne"])
    with pytest.raises(FileExistsError):
        store.write("a.scope", [b"two"])
    assert bytes(store.open("a.scope")) == b"one"


def test_what_is_not_there_is_not_found(store: SealedStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.open("a.scope")
    with pytest.raises(FileNotFoundError):
        store.read("a.scope", 0, 1)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\0", "A", "x" * 200])
def test_a_name_is_a_plain_file_name(store: SealedStore, name: str) -> None:
    for call in (lambda: store.open(name), lambda: store.read(name, 0, 1), lambda: store.write(name, [])):
        with pytest.raises(Rejected):
            call()


def test_files_are_private_and_leave_no_leftovers(folder: Path) -> None:
    FileSealed(folder).write("a.scope", [b"one"])
    assert [path.name for path in folder.iterdir()] == ["a.scope"]
    assert (folder / "a.scope").stat().st_mode & 0o777 == 0o600


def test_a_directory_that_others_may_read_stops_start_up(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(Misconfigured):
        FileSealed(folder)
    with pytest.raises(Misconfigured):
        FileSealed(folder / "nowhere")


def test_a_write_that_fails_half_way_leaves_nothing(folder: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"one"
        raise OSError("disk full")

    with pytest.raises(Retryable):
        FileSealed(folder).write("a.scope", blocks())
    assert not list(folder.iterdir())
