"""The demo as anyone runs it: a program that is started, read, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from expunge import verify
from expunge.domain import statement
from expunge.domain.bundle import load
from expunge.domain.dsse import parse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CERTIFICATES = {f"{name}-{part}" for name in ("withdrawal", "deletion", "order") for part in ("data", "models")}
STORY_SECONDS = 120
FAREWELL_SECONDS = 30


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, dict[str, object]]]:
    """A whole run: its folder, what it showed, and its document."""
    folder = tmp_path_factory.mktemp("demo")
    ran = subprocess.run(
        [sys.executable, "-m", "expunge", "demo", "--json"], cwd=folder, env=_environment(folder), timeout=350,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    yield folder, ran.stderr, json.loads(ran.stdout)
    assert _left(folder) == []


def test_the_story_holds_in_every_point(told: tuple[Path, str, dict[str, object]]) -> None:
    _, shown, found = told
    assert found["held"] is True
    assert "NOT SO" not in shown
    acts = found["acts"]
    assert isinstance(acts, list)
    assert [act["number"] for act in acts] == [1, 2, 3, 4, 5, 6]
    for text in (
        "AT&T Laboratories Cambridge",
        "400 photos registered (4 of them group photos)",
        "no consent record",
        "withdrew: photos stay for the account",
        "nothing left, group photo included",
        "path doorbell@1 <- face@1",
        "age@1 stays clean, its metric is void",
        "approves exactly that scope",
        "refused (suppressed)",
        "public and sealed state are equal",
        "models affected by the order: doorbell@2, face@2",
    ):
        assert text in shown


def test_each_retraining_is_one_coalesced_job_without_the_excluded(told: tuple[Path, str, dict[str, object]]) -> None:
    _, shown, found = told
    jobs = re.findall(r"one coalesced retraining job: (.*) without (\d+) photos", shown)
    assert jobs == [("face@1, doorbell@1", "20"), ("face@2, doorbell@2", "140")]
    models = found["models"]
    assert isinstance(models, list)
    assert [(one["model"], one["people"]) for one in models] == [("face@1", 30), ("face@2", 28), ("face@3", 16)]


def test_every_bundle_left_behind_verifies_and_says_what_it_does_not_cover(
    told: tuple[Path, str, dict[str, object]],
) -> None:
    folder, _, _ = told
    policy = verify.read_trust(folder / "demo-output" / "trust.json")
    bundles = sorted((folder / "demo-output").glob("*.zip"))
    assert {path.stem for path in bundles} == CERTIFICATES
    for path in bundles:
        summary = verify.verify(path, policy).verified()
        assert summary.result == "complete"
        assert summary.not_covered
        if summary.provision == "data":
            assert all(one.level == 2 for one in summary.stores)
        else:
            assert {one.resolution for one in summary.models} == {"replaced"}


def test_no_statement_or_certificate_names_a_person_or_a_place(told: tuple[Path, str, dict[str, object]]) -> None:
    folder, _, _ = told
    for path in (folder / "demo-output").glob("*.zip"):
        files = verify.read_bundle(path)
        said = b"".join(parse(one.envelope).payload for one in load(files).statements)
        for secret in (b"k1.", b".pgm", b"s17-", b"s23-", b"licensed-studio"):
            assert secret not in said
            assert secret not in files["certificate.json"]
        assert statement.STATEMENT_TYPE.encode() in said


@pytest.mark.parametrize("said", ["1  ", "2  ", "4  "])
def test_an_interrupt_at_any_time_leaves_no_process_behind(tmp_path: Path, said: str) -> None:
    with _running(tmp_path) as demo:
        deadline = time.monotonic() + STORY_SECONDS
        while f"\n{said}" not in f"\n{(tmp_path / 'shown').read_text()}" and time.monotonic() < deadline:
            time.sleep(0.02)
        demo.send_signal(signal.SIGINT)
        demo.wait(FAREWELL_SECONDS)
        assert demo.returncode in {0, 130}
    deadline = time.monotonic() + FAREWELL_SECONDS
    while (left := _left(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert list((tmp_path / "tmp").glob("expunge-demo-*")) == []


@contextmanager
def _running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "shown").open("wb") as shown:
        demo = subprocess.Popen(
            [sys.executable, "-m", "expunge", "demo"], cwd=folder, env=_environment(folder), stdout=shown, stderr=shown,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Temporary files in a folder of ours, by which everything that was started is recognised."""
    (folder / "tmp").mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("EXPUNGE_")}
    return plain | {"TMPDIR": str(folder / "tmp")}


def _left(folder: Path) -> list[str]:
    """Command lines of processes that still run in this run's folder, or with it as an argument or a setting."""
    mark = str(folder / "tmp").encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "cmdline").read_bytes()
            settings = (process / "environ").read_bytes()
            where = os.fsencode((process / "cwd").readlink())
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if mark in about or mark in settings or mark in where:
            found.append(about.replace(b"\0", b" ").decode(errors="replace"))
    return found
