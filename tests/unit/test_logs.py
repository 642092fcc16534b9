"""Log lines hold keys of the list only, and code gives no others."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from expunge.wiring.logs import KEYS, VALUE_CHARS, configure_logging, only_known
from tests.guards.sources import ROOT

LEVELS = {"debug", "info", "warning", "error", "critical"}


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call of a structlog logger in the package."""
    for path in (ROOT / "services").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not any(isinstance(node, ast.Import) and node.names[0].name == "structlog" for node in ast.walk(tree)):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                yield path, node


def test_code_logs_fixed_sentences_and_keys_of_the_list() -> None:
    found = list(calls())
    assert len(found) > 15
    for path, call in found:
        where = f"{path.name}:{call.lineno}"
        assert isinstance(call.args[0], ast.Constant), where
        assert {word.arg for word in call.keywords} <= KEYS, where


def test_what_is_not_on_the_list_does_not_come_out() -> None:
    line = only_known(None, "info", {"event": "parked", "subject_ref": "k1.canary", "count": 2, "reason": "retryable"})
    assert line == {"event": "parked", "count": 2, "reason": "retryable", "dropped": 1}


@pytest.mark.parametrize("value", ["x" * (VALUE_CHARS + 1), b"bytes", {"a": 1}, [object()], ValueError("k1.subject")])
def test_values_are_plain_and_short(value: object) -> None:
    assert only_known(None, "info", {"event": "e", "reason": value}) == {"event": "e", "dropped": 1}


def test_a_line_is_json_with_the_trace_that_is_bound(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        configure_logging("info")
        with structlog.contextvars.bound_contextvars(trace=["ab"], email="canary@example.com"):
            structlog.get_logger().info("batch handled", worker="purge", locator="p/1.jpg")
            structlog.get_logger().debug("not shown")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields.pop("timestamp")
    assert fields == {"event": "batch handled", "worker": "purge", "level": "info", "trace": ["ab"], "dropped": 2}
