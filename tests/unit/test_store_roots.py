"""A store whose directory is away is no empty store: nothing in it may be called absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.adapters.stores import faiss, local, webdataset
from expunge.domain.errors import Retryable

STORES = pytest.mark.parametrize(
    ("scheme", "module"), [("file", local), ("wds", webdataset), ("faiss", faiss)], ids=lambda one: str(one)[:12]
)
UNITS = {"file": "album", "wds": "a.tar", "faiss": "a.index"}


def calls(store: Any, unit: str) -> list[Callable[[], object]]:
    return [
        lambda: store.probe(unit, ["1"]),
        lambda: store.needles(unit, ["1"]),
        lambda: store.scan(unit, [b"x" * 32]),
        lambda: store.erase(unit, ["1"], 1),
    ]


@STORES
def test_a_directory_that_is_gone_may_come_back(tmp_path: Path, scheme: str, module: Any) -> None:
    root = tmp_path / "store"
    root.mkdir()
    store = module.open_store(f"{scheme}://{root}", "s")
    assert store.probe(UNITS[scheme], ["1"]).tolist() == [False]
    away = root.rename(tmp_path / "away")
    for call in calls(store, UNITS[scheme]):
        with pytest.raises(Retryable, match="not there"):
            call()
    root.mkdir()  # as an unmounted disk leaves its mount point
    for call in calls(store, UNITS[scheme]):
        with pytest.raises(Retryable, match="another than at first"):
            call()
    root.rmdir()
    away.rename(root)
    assert store.probe(UNITS[scheme], ["1"]).tolist() == [False]
