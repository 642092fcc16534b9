"""A live deployment under a real Prometheus: every panel has data, labels stay closed, the canary tells.

Needs Debian's prometheus for the panels (`apt-get install prometheus`), and skips loudly without.
"""

from __future__ import annotations

import json
import os
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

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from expunge.embedded.process import free_ports
from expunge.pipeline import WORKERS
from expunge.wiring.up import API, Embedded
from tests.acceptance.shell import expunge, shell
from tests.guards.sources import ROOT
from tests.guards.test_dashboards import FILES, board, program
from tests.integration.test_observed import outside

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WAIT_SECONDS = 400.0


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
    return shell(deployment)


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
