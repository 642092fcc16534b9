"""Scrape configuration, rules and runbooks against the code, and against promtool where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from expunge import metrics
from expunge.pipeline import WORKERS
from expunge.wiring.up import API
from tests.guards.sources import ROOT

HERE = ROOT / "ops" / "prometheus"
RULES = HERE / "expunge.rules.yml"
RULE_TESTS = HERE / "expunge.rules_test.yml"
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Do not", "Verify"]
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
WORDS = {
    "abs", "absent", "and", "by", "histogram_quantile", "increase", "max", "min", "on", "or", "rate", "sum", "time", "unless",
    "without",
}  # fmt: skip


@cache
def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def rules() -> Iterator[dict[str, Any]]:
    for group in load(RULES)["groups"]:
        yield from group["rules"]


def exported() -> set[str]:
    """Every sample name that `metrics.py` can export."""
    families = [value for name, value in vars(metrics).items() if name.isupper() and hasattr(value, "describe")]
    names = set[str]()
    for metric in families:
        for family in metric.describe():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
            names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


def recorded() -> set[str]:
    """Names of recording rules."""
    return {rule["record"] for rule in rules() if "record" in rule}


def used(expression: str) -> set[str]:
    """Metric names in an expression: its words, without selectors, label lists, ranges and what PromQL has."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring|group_left)\s*\([^)]*\)", " ", expression)
    return {word for word in NAME.findall(bare) if word not in WORDS}


def test_every_metric_in_a_rule_is_exported_or_recorded() -> None:
    for rule in rules():
        assert used(rule["expr"]) <= exported() | recorded() | {"up"}, rule


def test_the_check_on_metrics_sees_a_wrong_name() -> None:
    assert used('sum by (worker) (rate(expunge_wrong_total{worker="x"}[5m]))') == {"expunge_wrong_total"}
    assert "expunge_wrong_total" not in exported()
    assert "expunge_deliveries_total" in exported()


def test_our_metrics_are_in_the_registry_under_our_prefix() -> None:
    names = {family.name for family in REGISTRY.collect() if family.name.startswith("expunge")}
    assert names
    assert all(name.startswith("expunge_") for name in exported())


def test_every_worker_is_scraped_under_its_name() -> None:
    (job,) = (one for one in load(HERE / "prometheus.yml")["scrape_configs"] if one["job_name"] == "expunge")
    (discovery,) = job["dns_sd_configs"]
    assert sorted(discovery["names"]) == sorted([*WORKERS, API, "canary"])
    assert job["relabel_configs"] == [{"source_labels": ["__meta_dns_name"], "target_label": "worker"}]
    assert job["honor_labels"] is True, "state gauges carry the worker that they are about"


def test_every_worker_is_missed_when_it_is_absent() -> None:
    missed = {rule["labels"]["worker"]: rule["expr"] for rule in rules() if rule.get("alert") == "ExpungeWorkerAbsent"}
    assert missed == {name: f'absent(up{{job="expunge", worker="{name}"}} == 1)' for name in WORKERS}


def test_every_alert_has_a_severity_words_and_a_runbook() -> None:
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["labels"].get("concerns") in {None, "privacy", "evidence"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url", "dashboard_url"}
        uid = rule["annotations"]["dashboard_url"].removeprefix("/d/")
        assert (ROOT / "ops" / "grafana" / "dashboards" / f"{uid}.json").exists(), uid
        runbook = ROOT / rule["annotations"]["runbook_url"]
        text = runbook.read_text(encoding="utf-8")
        assert text.startswith(f"# {rule['alert']}\n")
        assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS


def test_every_runbook_belongs_to_an_alert() -> None:
    named = {rule["annotations"]["runbook_url"] for rule in rules() if "alert" in rule}
    assert {f"ops/runbooks/{path.name}" for path in (ROOT / "ops" / "runbooks").glob("*.md")} == named


def test_every_alert_is_tested_to_be_quiet_to_fire_and_to_clear_and_every_recording_has_a_value() -> None:
    tests = load(RULE_TESTS)["tests"]
    courses: dict[str, str] = {}
    for test in tests:
        for name in {one["alertname"] for one in test.get("alert_rule_test", ())}:
            checks = [one for one in test["alert_rule_test"] if one["alertname"] == name]
            said = "".join(str(min(1, len(one["exp_alerts"]))) for one in checks)
            courses[name] = max(courses.get(name, ""), said, key=len)
    # A worker that never was there is absent from the first look on, so this one has more of them in its course.
    assert {name for name, course in courses.items() if course != "010"} == {"ExpungeWorkerAbsent"}
    firing = [
        one["exp_alerts"]
        for test in tests
        for one in test.get("alert_rule_test", ())
        if one["alertname"] == "ExpungeWorkerAbsent"
    ]
    assert [len(one) for one in firing] == [1, 2, 1, 0], "purge: there, absent, back; and nobody absent"
    assert courses.keys() == {rule["alert"] for rule in rules() if "alert" in rule}
    expressions = " ".join(one["expr"] for test in tests for one in test.get("promql_expr_test", ()))
    assert [name for name in recorded() if name not in expressions] == []
    assert load(RULE_TESTS)["group_eval_order"] == [group["name"] for group in load(RULES)["groups"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "--lint-fatal", RULES.name],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", RULE_TESTS.name],
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: list[str]) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("NOT CHECKED: no promtool on this machine (Debian: apt-get install prometheus)")
    ran = subprocess.run([program, *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
