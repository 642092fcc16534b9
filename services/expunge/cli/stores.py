"""What `expunge stores check` shows of each store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from expunge.adapters.stores import table
from expunge.domain.errors import Misconfigured, Retryable


def looked_at(urls: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per store; a store that cannot be opened has no capabilities, and says why in its remarks."""
    return [_row(name, urls) for name in urls]


def _row(name: str, urls: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"store": name, "scheme": urls[name].partition(":")[0], "rewrites_unit": "", "max_level": ""}
    remarks = []
    try:
        remarks = table.check(name, urls)
        able = table.open_reader(urls[name], name).capabilities
        row |= {"rewrites_unit": able.rewrites_unit, "max_level": f"L{able.max_level:d}"}
    except (Misconfigured, Retryable) as trouble:
        if not any(one.severity is table.Severity.WRONG for one in remarks):
            remarks = [*remarks, table.Remark(table.Severity.WRONG, "cannot-open", str(trouble))]
    return row | {"remarks": [asdict(one) for one in remarks]}
