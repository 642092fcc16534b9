"""Every `Journal`: append-only, and whole records after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from expunge.adapters.journal.files import FileJournal
from expunge.adapters.journal.memory import MemoryJournal
from expunge.domain import suppression
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.suppression import Action, Record
from expunge.ports import Journal

KEY = bytes(32)


def record(number: int) -> bytes:
    mac = suppression.mac(KEY, "subject", "training", b"%d" % number)
    return suppression.encode([Record("subject", Action.ADD, suppression.purpose_digest("training"), mac)])


@pytest.fixture(params=["memory", "files"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MemoryJournal(KEY) if request.param == "memory" else FileJournal(tmp_path / "journal", KEY)


def test_records_are_appended(journal: Journal) -> None:
    assert journal.read() == b""
    journal.append(record(1))
    journal.append(record(2) + record(3))
    assert journal.read() == record(1) + record(2) + record(3)
    assert journal.key == KEY


def test_two_processes_append_to_the_same_journal(tmp_path: Path) -> None:
    for number in (1, 2):
        FileJournal(tmp_path / "journal", KEY).append(record(number))
    assert len(suppression.decode(FileJournal(tmp_path / "journal", KEY).read())[0]) == 2
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_a_torn_tail_is_cut_before_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    FileJournal(path, KEY).append(record(1))
    with path.open("ab") as file:
        file.write(record(2)[:20])
    FileJournal(path, KEY).append(record(3))
    assert path.read_bytes() == record(1) + record(3)


def test_a_write_that_fails_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal(tmp_path / "journal", KEY)
    journal.append(record(1))
    write = os.write
    turns = iter([True, False])

    def half(descriptor: int, data: bytes) -> int:
        if next(turns):
            return write(descriptor, data[:20])
        raise OSError("disk full")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(Retryable):
        journal.append(record(2))
    assert journal.read() == record(1)


def test_a_wrong_key_or_directory_stops_start_up(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="32 bytes"):
        FileJournal(tmp_path / "journal", b"short")
    with pytest.raises(Misconfigured, match="directory"):
        FileJournal(tmp_path / "nowhere" / "journal", KEY)
