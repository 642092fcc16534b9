"""A full disk, by the system's own refusal: what is written is written whole or not at all, and the error says why."""

from __future__ import annotations

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli.console import Exit, write_new
from expunge.domain.errors import Rejected
from expunge.verify import read_bundle, write_bundle
from tests.guards.sources import ROOT
from tests.room import room_for

BYTES = 8192
FILES = {"a.json": b"a", "below/b.json": bytes(range(256)) * 256, "c.json": b"c"}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    with pytest.raises(Rejected, match="--out, got File too large"), room_for(BYTES):
        write_new(path, bytes(BYTES + 1))
    assert list(tmp_path.iterdir()) == []
    write_new(path, bytes(BYTES + 1))
    assert path.stat().st_size == BYTES + 1
    with pytest.raises(Rejected, match="got File exists"):
        write_new(path, b"other")
    assert path.stat().st_size == BYTES + 1


@pytest.mark.parametrize("name", ["bundle.zip", "bundle"])
def test_so_is_a_bundle(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(OSError, match="File too large"), room_for(64):
        write_bundle(FILES, path)
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []
    write_bundle(FILES, path)  # the same place, once there is room
    assert read_bundle(path) == FILES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT CHECKED: no /dev/full on this machine")
@pytest.mark.parametrize("command", [["--help"], ["keys", "--help"]], ids=" ".join)
def test_standard_output_that_is_full_is_said(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "expunge", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == Exit.USAGE
    assert (
        done.stderr
        == "error: expected room for what is written, got No space left on device: make room, and run this again\n"
    )


def test_pictures_say_that_prometheus_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        main = runpy.run_path(str(ROOT / "ops" / "grafana" / "pictures.py"))["main"]
        assert main([url, "15", str(tmp_path)]) == Exit.UNREACHABLE
    told = capsys.readouterr().err
    assert told.startswith(f"expected Prometheus to answer at {url}")
    assert "Start it" in told
    assert list(tmp_path.iterdir()) == []
