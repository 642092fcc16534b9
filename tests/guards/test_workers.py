"""Faust lives in one file, which alone acknowledges; it has only the safe shape."""

from __future__ import annotations

import ast

from tests.guards.sources import PACKAGE, Module, imported, modules

AGENT = "services/expunge/workers/agent.py"
UNSAFE = {"take", "group_by", "Table", "GlobalTable", "send_soon", "cast", "ask", "forward", "through"}
"""Faust features that lose events: a batch that raises is acknowledged all the same, or state outruns the database."""

ALL = modules(PACKAGE)


def calls(module: Module) -> set[str]:
    return {
        node.func.attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


def test_only_the_agent_imports_faust() -> None:
    importing = [one.name for one in ALL if any(name.split(".")[0] == "faust" for name in imported(one.tree).values())]
    assert importing == [AGENT]


def test_only_the_agent_acknowledges() -> None:
    assert [one.name for one in ALL if "ack" in calls(one)] == [AGENT]


def test_the_agent_acknowledges_after_the_batch_is_processed() -> None:
    (agent,) = (one for one in ALL if one.name == AGENT)
    (loop,) = (node for node in ast.walk(agent.tree) if isinstance(node, ast.AsyncFor))
    order = [
        node.func.attr
        for part in loop.body
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"process", "ack"}
    ]
    assert order == ["process", "ack"]


def test_the_agent_takes_batches_without_acknowledging() -> None:
    (agent,) = (one for one in ALL if one.name == AGENT)
    (loop,) = (node for node in ast.walk(agent.tree) if isinstance(node, ast.AsyncFor))
    assert ast.unparse(loop.iter) == "_batches(stream.noack(), within)"


def test_the_agent_uses_no_feature_that_loses_events() -> None:
    (agent,) = (one for one in ALL if one.name == AGENT)
    assert calls(agent) & UNSAFE == set()
    settings = {
        one.arg: one.value for node in ast.walk(agent.tree) if isinstance(node, ast.Call) for one in node.keywords
    }
    assert "concurrency" not in settings
    assert ast.literal_eval(settings["processing_guarantee"]) == "at_least_once"
    assert ast.literal_eval(settings["agent_supervisor"]) == "mode.CrashingSupervisor"
