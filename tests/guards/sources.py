"""The source tree as data for the guards: parsed modules, what their names mean, the files of the repository."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "services" / "expunge"
TESTS: Final = ROOT / "tests"


@dataclass(frozen=True, slots=True)
class Module:
    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


@cache
def modules(root: Path) -> tuple[Module, ...]:
    """Every Python module below `root`, or `root` itself."""
    paths = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    return tuple(Module(path, ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in paths)


def stage_files(stage: str) -> Path:
    """A stage's file, or its folder. Fails when there is none, or both."""
    found = [path for path in (PACKAGE / "stages" / f"{stage}.py", PACKAGE / "stages" / stage) if path.exists()]
    assert len(found) == 1, f"expected stages/{stage}.py or stages/{stage}/, got {found}"
    return found[0]


def repository_files() -> list[Path]:
    """Files that git tracks or would track, as they are on disk."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("NOT CHECKED: this is no git work tree, so the repository's files are not known")
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def imported(tree: ast.Module) -> dict[str, str]:
    """Local name to dotted origin, for every import of a module, wherever it stands."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                found[one.asname or one.name.partition(".")[0]] = one.name if one.asname else one.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                found[one.asname or one.name] = f"{node.module}.{one.name}"
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """What `a` or `a.b.c` refers to, through the module's imports."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value, names)
            return f"{base}.{attr}" if base else None
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Mentions:
    """Dotted names in a module, by role: `said` in expressions, `asked` where a value is tested against them."""

    said: frozenset[str]
    asked: frozenset[str]


def mentions(module: Module) -> Mentions:
    """Annotations, imports and reading back what was stored count for neither; class patterns and the types of
    `isinstance` are asked."""
    names = imported(module.tree)
    asked: set[str] = set()
    aside: set[int] = set()
    for node in ast.walk(module.tree):
        for part in _types_asked(node):
            asked.update(_all_dotted(part, names))
            aside.update(id(one) for one in ast.walk(part))
        for part in (*_annotations(node), *_read_back(node)):
            aside.update(id(one) for one in ast.walk(part))
    said = {
        found
        for node in ast.walk(module.tree)
        if id(node) not in aside and isinstance(node, ast.Name | ast.Attribute) and (found := dotted(node, names))
    }
    return Mentions(frozenset(said), frozenset(asked))


def _types_asked(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.MatchClass(cls=cls):
            yield cls
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, types]):
            yield types
        case _:
            return


def _annotations(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.expr() as annotation):
            yield annotation
        case ast.FunctionDef(returns=ast.expr() as returns) | ast.AsyncFunctionDef(returns=ast.expr() as returns):
            yield returns
        case _:
            return


def _read_back(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Attribute) and node.attr == "model_validate_json":
        yield node


def _all_dotted(part: ast.expr, names: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(part):
        if isinstance(node, ast.Name | ast.Attribute) and (found := dotted(node, names)):
            yield found
