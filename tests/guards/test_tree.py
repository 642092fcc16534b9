"""What no file of the repository may hold, and names that no module may have."""

from __future__ import annotations

import ast
import re

from tests.guards.sources import PACKAGE, TESTS, Module, modules, repository_files

REGISTRIES = re.compile(
    rb"pypi\.(org|python)|python[h]osted|npmjs\.|repo1?\.maven|maven\.apache\.org/maven2|(docker|quay)\.io|ghcr\.io"
    rb"|gcr\.io|proxy\.golang|--(extra-)?index-url\b"
)
"""Where packages come from is the machine's configuration, so that mirrors work everywhere."""

MACHINE = re.compile(rb"(?<![\w.$}/-])/(root|home|work|Users|workspace)/")
"""Folders of somebody's machine."""

VAGUE = {"common", "utils", "util", "helpers", "helper", "misc", "shared", "base", "core"}


HANG_SECONDS = 60


def found(pattern: re.Pattern[bytes]) -> list[str]:
    return [
        f"{path.name}:{number}"
        for path in repository_files()
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if pattern.search(line)
    ]


def test_no_file_names_a_package_registry() -> None:
    assert found(REGISTRIES) == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    assert found(MACHINE) == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    for root in (PACKAGE, TESTS):
        named = {part for path in root.rglob("*.py") for part in (*path.relative_to(root).parts[:-1], path.stem)}
        assert named & VAGUE == set()


def test_tests_wait_for_events_and_never_for_time() -> None:
    timed = {"bench", "faults"}  # in faults, how long something is away is the fault itself
    waiting = [place for module in modules(TESTS) if not timed & {*module.path.parts} for place in sleeps(module)]
    assert waiting == []


def sleeps(module: Module) -> list[str]:
    """Where a module waits for time to pass. Asking again in a loop, giving way (0 s), and standing for work that must
    be cancelled (a minute or more) are no such waits."""
    polling = {id(node) for loop in ast.walk(module.tree) if isinstance(loop, ast.While) for node in ast.walk(loop)}
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "sleep":
            match node.args:
                case [ast.Constant(value=int() | float() as seconds)] if seconds == 0 or seconds >= HANG_SECONDS:
                    continue
            if id(node) not in polling:
                found.append(f"{module.name}:{node.lineno}")
    return found
