"""The judge of histories knows none of the production code, nor of the tests that use it."""

from __future__ import annotations

import ast
from pathlib import Path

HISTORY = Path(__file__).parents[1] / "history"
ALLOWED = {"cryptography", "tests.history"}
"""Beside the standard library."""


def _imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "__import__",
            "import_module",
        }:
            found.add("an import at run time")
    return found


def test_the_judge_of_histories_imports_nothing_of_the_product() -> None:
    import sys

    files = [file for file in HISTORY.glob("*.py") if not file.name.startswith("test_")]
    assert len(files) >= 7
    for file in files:
        for name in _imported(file):
            known = name.partition(".")[0] in sys.stdlib_module_names
            assert known or any(name == one or name.startswith(f"{one}.") for one in ALLOWED), (
                f"{file.name} imports {name}"
            )
