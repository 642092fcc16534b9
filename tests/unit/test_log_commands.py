"""`expunge log serve` and `expunge witness`: real processes, from start to SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from expunge.adapters.log.files import FileTiles
from expunge.cli.app import main
from expunge.domain import note
from expunge.domain.errors import Misconfigured
from expunge.domain.note import NoteKey
from expunge.settings import Settings
from tests.witnessing import LOG_KEY, WITNESS, seeded, signed, submission


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A command until it is told to stop; where it listens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXPUNGE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "expunge", *arguments, "--json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["listening"], process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in {0, -signal.SIGKILL}


def submit(url: str, body: bytes) -> bytes:
    with urllib.request.urlopen(f"{url}/add-checkpoint", data=body, timeout=60) as answer:  # noqa: S310 - our own server
        return bytes(answer.read())


def test_a_witness_is_made_and_run_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "witness")
    assert main(["witness", "init", "--dir", directory, "--name", WITNESS]) == 0
    key = NoteKey.parse(capsys.readouterr().out.strip())
    assert main(["witness", "init", "--dir", directory, "--name", WITNESS]) == 3
    serve = ("witness", "serve", "--dir", directory, "--log", LOG_KEY.encode())
    with running(*serve) as (url, process):
        given = submission(0, 5)
        assert note.verify_cosignature(given.note + submit(url, given.encode()), key) > 0
        process.kill()
        process.wait()
    with running(*serve) as (url, _):
        with pytest.raises(urllib.error.HTTPError) as refused:
            submit(url, submission(5, 8, "fork").encode())
        assert refused.value.code == 422
        refused.value.close()
        submit(url, submission(5, 8).encode())


def test_a_witness_that_was_never_made_does_not_run(tmp_path: Path) -> None:
    assert main(["witness", "serve", "--dir", str(tmp_path), "--log", LOG_KEY.encode()]) == 3


def test_the_log_is_served(tmp_path: Path) -> None:
    FileTiles(tmp_path).write({"checkpoint": signed(5)})
    with (
        running("log", "serve", "--dir", str(tmp_path)) as (url, _),
        urllib.request.urlopen(f"{url}/checkpoint", timeout=60) as answer,  # noqa: S310 - our own server
    ):
        assert answer.read() == signed(5)


# Settings

VKEY = NoteKey.witness(WITNESS, seeded("w").public).encode()
GIVEN = {"database": "postgresql://x", "kafka": "x:1", "data": "data", "audience": "acme"}


def test_no_setting_asks_for_witnesses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.startswith("EXPUNGE_")]:
        monkeypatch.delenv(name)
    policy = Settings.read(**GIVEN).policy()
    assert (policy.witness_quorum, policy.timestamped) == (0, False)


def test_settings_survive_the_way_to_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.startswith("EXPUNGE_")]:
        monkeypatch.delenv(name)
    witnesses = [{"url": "http://w.example/log", "vkey": VKEY}]
    settings = Settings.read(**GIVEN, witnesses=witnesses, timestamp_url="http://tsa.example")
    assert (settings.policy().witness_quorum, settings.policy().timestamped) == (1, True)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.read() == settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"witnesses": [{"url": "http://w.example", "vkey": LOG_KEY.encode()}]}, "EXPUNGE_WITNESSES"),
        ({"witnesses": [{"url": "http://w.example", "vkey": "nonsense"}]}, "EXPUNGE_WITNESSES"),
        ({"witnesses": [{"url": "file:///etc", "vkey": VKEY}]}, "EXPUNGE_WITNESSES"),
        ({"witness_quorum": 1}, "EXPUNGE_WITNESS_QUORUM"),
        ({"witnesses": [{"url": "http://w.example", "vkey": VKEY}] * 2}, "EXPUNGE_WITNESS_QUORUM"),
    ],
)
def test_settings_that_cannot_be_are_named(
    changes: dict[str, object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name in [one for one in os.environ if one.startswith("EXPUNGE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(Misconfigured, match=named):
        Settings.read(**GIVEN, **changes)
