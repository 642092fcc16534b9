"""Named queries: each name that Python uses exists, and each query that exists is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from expunge.adapters.ledger.postgres import queries
from tests.guards.sources import PACKAGE, Module, modules

CALLS = {"fetch", "execute", "_fenced"}
"""Methods that take a query's name: those of `ports.Tx`, and `tasks.Lease`'s, which passes it on."""

OWN_SQL = ("adapters/stores/", "adapters/ledger/postgres.py", "embedded/", "trainer.py", "wiring/up.py", "demo/")
"""Modules with connections of their own: stores that are databases, set-up, and the trainer's and product's side."""


def named() -> Iterator[tuple[str, str]]:
    """Place and name, for each name of a query that a call gives."""
    for module in modules(PACKAGE):
        if module.path.relative_to(PACKAGE).as_posix().startswith(OWN_SQL):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
                for argument in node.args[:2]:
                    for name in strings(argument, module):
                        yield f"{module.name}:{node.lineno}", name


def strings(node: ast.expr, module: Module) -> list[str]:
    """The strings that an expression can be. A name that is looped over a tuple in the module is each of its items."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*strings(body, module), *strings(orelse, module)]
        case ast.JoinedStr(values=[ast.Constant(value=str(start)), ast.FormattedValue(value=ast.Name(id=name))]):
            return [start + item for item in looped(name, node, module)]
        case _:
            return []


def looped(name: str, within: ast.expr, module: Module) -> list[str]:
    for loop in ast.walk(module.tree):
        match loop:
            case ast.For(target=ast.Name(id=target), iter=ast.Tuple(elts=items)) if target == name:
                if any(node is within for node in ast.walk(loop)):
                    return [
                        item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)
                    ]
            case _:
                pass
    return []


def constants() -> set[str]:
    """Every string constant in the package: a name may reach its call through a table."""
    return {
        node.value
        for module in modules(PACKAGE)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_query_that_code_names_exists() -> None:
    assert [(place, name) for place, name in named() if name not in queries()] == []


def test_every_query_is_used() -> None:
    used = {name for _, name in named()} | constants()
    assert sorted(queries().keys() - used) == []
