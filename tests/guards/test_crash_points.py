"""Every crash point in the code is in the closed list, and the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from expunge import crashing
from expunge.domain.errors import Misconfigured
from expunge.settings import Settings
from tests.guards.sources import PACKAGE, modules

STORES = PACKAGE / "adapters" / "stores"
NOT_REAL = {"erased"}
"""Steps of the store in memory alone."""


def passed() -> Iterator[str]:
    """Names in calls of `crash_point`; inner steps of stores with their prefix."""
    for module in modules(PACKAGE):
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Name(id="crash_point") | ast.Attribute(attr="_crash_point"), args=[argument]):
                    for name in strings(argument):
                        if STORES in module.path.parents:
                            yield from () if name in NOT_REAL else (f"store.{name}",)
                        else:
                            yield name
                case _:
                    pass


def strings(node: ast.expr) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def test_the_list_and_the_code_agree() -> None:
    assert set(passed()) == set(crashing.POINTS)
    assert len(set(crashing.POINTS)) == len(crashing.POINTS)


def test_the_variable_is_refused_in_a_deployment_that_is_not_named_after_a_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"EXPUNGE_DATABASE": "postgresql://x", "EXPUNGE_KAFKA": "x:1", "EXPUNGE_DATA": "/x"}
    for name, value in (given | {crashing.VARIABLE: "/nowhere", "EXPUNGE_AUDIENCE": "expunge:acme"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured, match=crashing.VARIABLE):
        Settings.read()
    monkeypatch.setenv("EXPUNGE_AUDIENCE", "test:crashes")
    assert Settings.read().audience == "test:crashes"
    monkeypatch.setenv("EXPUNGE_AUDIENCE", "expunge:acme")
    monkeypatch.delenv(crashing.VARIABLE)
    assert Settings.read().audience == "expunge:acme"
