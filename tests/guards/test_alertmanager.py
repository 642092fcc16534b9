"""Who is told what: Alertmanager's routes, tested by amtool where there is one."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.guards.sources import ROOT
from tests.guards.test_prometheus import rules

FILE = ROOT / "ops" / "alertmanager" / "alertmanager.yml"


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("amtool")
    if program is None:
        pytest.skip("NOT CHECKED: no amtool on this machine (Debian: apt-get install prometheus-alertmanager)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def expected(labels: dict[str, str]) -> list[str]:
    told = [{"privacy": "privacy-office", "evidence": "security"}[labels["concerns"]]] if "concerns" in labels else []
    return [*told, *(["pager"] if labels["severity"] == "page" else [])] or ["tickets"]


def test_the_configuration_is_good() -> None:
    checked = amtool("check-config", str(FILE))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("rule", [one for one in rules() if "alert" in one], ids=lambda rule: str(rule["alert"]))
def test_each_alert_reaches_who_must_know(rule: dict[str, Any]) -> None:
    labels = {"alertname": rule["alert"], **rule["labels"]}
    pairs = [f"{name}={value}" for name, value in labels.items()]
    routed = amtool("config", "routes", "test", f"--config.file={FILE}", *pairs)
    assert routed.returncode == 0, routed.stderr
    assert routed.stdout.strip().split(",") == expected(rule["labels"])


def test_receivers_are_those_that_routes_name_and_every_inhibition_has_equal_labels() -> None:
    config = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    named = {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])}
    assert {one["name"] for one in config["receivers"]} == named
    assert all(one["equal"] for one in config["inhibit_rules"])
