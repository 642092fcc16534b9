"""The programs for auditors know every statement that a bundle may hold."""

from __future__ import annotations

import re
from pathlib import Path

from expunge.domain.statement import ROLE_OF

NODE = Path(__file__).parents[2] / "schemas" / "by-hand" / "node" / "verify.mjs"


def test_the_node_program_has_the_role_of_every_predicate() -> None:
    table = dict(re.findall(r'"(urn:expunge:[a-z-]+:v1)": "([a-z]+)"', NODE.read_text()))
    assert table == {name: role.value for name, role in ROLE_OF.items()}
