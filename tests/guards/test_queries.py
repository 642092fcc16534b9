"""Named queries: each name that Python uses exists, each query that exists is used, and none reads all for a part."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from expunge.adapters.ledger.postgres import migrate, queries
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


CATALOGUE = {"image", "artifact", "image_subject"}
"""Tables that grow with all that was ever registered."""
READ_ALL = {"reports_artifacts", "reports_unconsented", "restored_subjects"}
"""Queries that are about the whole catalogue, asked for by an operator or once a day."""
MANY_ROWS: Final = 10_000
"""More than the planner may expect of one reading: a source has 4,000 images here, and a range that is looked up by the
index counts for 1,000 (or 2,000 artifacts). One that is joined counts for a ninth of a table, which is read whole when it is
larger than this one."""

FILLED: Final = """
insert into image select g, 1 + g / 4000, g::text, sha256(g::text::bytea), date '2026-01-01' + g / 1000
from generate_series(0, 199999) g;
insert into image_subject select 'k1.' || g / 10, g from generate_series(0, 199999) g;
insert into artifact
select g, 2 * g + k, case k when 0 then 'image' else 'embedding' end, k, g / 1000, g::text, 1, sha256(g::text::bytea)
from generate_series(0, 199999) g, generate_series(0, 1) k;
analyze;
"""


@pytest.fixture
def catalogue(database: str) -> Iterator[psycopg.Connection]:
    """One that is large enough for the planner to mind what it reads, and the tables that registration stages."""
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(FILLED)
        for name, text in queries().items():
            if name.startswith("register_stage_"):
                connection.execute(text)
        yield connection


def test_no_query_reads_the_whole_catalogue_for_some_of_it(catalogue: psycopg.Connection) -> None:
    """Whatever its parameters are: plans are kept, and made for all of them."""
    found = {
        name
        for name, text in queries().items()
        if re.search(rf"\b({'|'.join(CATALOGUE)})\b", text)
        and not name.startswith(("register_stage_", "register_analyze_"))
        for node in nodes(catalogue, text)
        if node.get("Relation Name") in CATALOGUE and reads_all(node)
    }
    assert found == READ_ALL


def nodes(connection: psycopg.Connection, text: str) -> Iterator[dict[str, Any]]:
    """Of the plan."""
    names = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
    for number, name in enumerate(names, 1):
        text = text.replace(f"%({name})s", f"${number}")
    explained = f"explain (generic_plan, format json) {text.replace('%%', '%')}"
    ((plan,),) = connection.execute(explained.encode()).fetchall()
    pending = [plan[0]["Plan"]]
    for node in pending:
        yield node
        pending += node.get("Plans", ())


def reads_all(node: dict[str, Any]) -> bool:
    whole_index = node["Node Type"] in {"Index Scan", "Index Only Scan"} and "Index Cond" not in node
    return node["Node Type"] == "Seq Scan" or whole_index or node["Plan Rows"] > MANY_ROWS
