"""Dashboards: the committed files are those of the code, every expression parses and names what is exported."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser
import pytest

from tests.guards.sources import ROOT
from tests.guards.test_prometheus import exported, recorded, rules

HERE = ROOT / "ops" / "grafana"
FILES = sorted((HERE / "dashboards").glob("*.json"))


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def expressions(path: Path) -> Iterator[str]:
    for panel in board(path)["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def named(node: Any) -> set[str]:
    """Metric names in a parsed expression."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "", str(node))
    return set(re.findall(r"\b(?:expunge[a-z0-9_:]+|up)\b", text))


def test_the_committed_files_are_those_of_the_code() -> None:
    assert program("dashboards").main(["--check"]) == 0


def test_a_file_that_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = program("dashboards")
    monkeypatch.setattr(code, "HERE", tmp_path)
    assert code.main([]) == 0
    assert code.main(["--check"]) == 0
    (tmp_path / FILES[0].name).write_text("{}", encoding="utf-8")
    assert code.main(["--check"]) == 1
    (tmp_path / "left-over.json").write_text("{}", encoding="utf-8")
    assert code.main([]) == 0
    assert not (tmp_path / "left-over.json").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_well_formed(path: Path) -> None:
    one = board(path)
    assert one["uid"] == path.stem
    panels = one["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    cells = Counter(
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    )
    assert max(cells.values()) == 1, "panels overlap"
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert all(refs)
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_expression_parses_and_names_what_is_exported(path: Path) -> None:
    for expression in expressions(path):
        names = named(promql_parser.parse(expression))
        assert names, expression
        assert names <= exported() | recorded() | {"up"}, expression


def test_the_check_sees_a_wrong_name_and_a_wrong_expression() -> None:
    assert named(promql_parser.parse("sum by (x) (rate(expunge_wrong_total{a='b'}[5m]))")) == {"expunge_wrong_total"}
    with pytest.raises(ValueError, match=r".+"):
        promql_parser.parse("sum by (x (up)")


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    shown = {name for path in FILES for one in expressions(path) for name in named(promql_parser.parse(one))}
    for rule in rules():
        shown |= named(promql_parser.parse(rule["expr"]))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unseen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()} - families
    assert unseen == {"expunge_batches_total"}, "batches are for liveness only"
