"""Which store a URL means: a built-in table, then the entry-point group `expunge.stores`. Nothing is imported until a
store of its scheme is opened, so an installation holds only the libraries that it uses.

A plug-in's entry point is named after its URL scheme and loads to a module (or any object) with `open_store` and
`open_reader`, as the built-in adapters have. `expunge.conformance.StoreConformance` says whether it is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from expunge.domain.errors import Misconfigured, Retryable
from expunge.ports import Store, StoreReader

ENTRY_POINTS: Final = "expunge.stores"


class Severity(StrEnum):
    """Of a remark: erasure will not work or will not hold; somebody should know before it is relied on; good to know."""

    WRONG = "wrong"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing about a store that bears on erasing from it. `code` is stable; `words` say what to do."""

    severity: Severity
    code: str
    words: str


class StoreModule(Protocol):
    def open_store(self, url: str, name: str) -> Store: ...

    def open_reader(self, url: str, name: str) -> StoreReader: ...


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """`needs`: top-level modules of third parties; `install`: what brings them; `rewrites_unit`: as in the store's
    capabilities, for who must know it without opening the store."""

    module: str
    needs: tuple[str, ...] = ()
    install: str = ""
    rewrites_unit: bool = True


_HERE: Final = "expunge.adapters.stores"

BUILT_IN: Final[dict[str, BuiltIn]] = {
    "file": BuiltIn(f"{_HERE}.local", rewrites_unit=False),
    "memory": BuiltIn(f"{_HERE}.memory"),
    "wds": BuiltIn(f"{_HERE}.webdataset"),
    "wds+s3": BuiltIn(f"{_HERE}.webdataset", ("boto3", "botocore"), "expunge[s3]"),
    "parquet": BuiltIn(f"{_HERE}.parquet", ("pyarrow",), "expunge[import]"),
    "parquet+s3": BuiltIn(f"{_HERE}.parquet", ("pyarrow", "boto3", "botocore"), "expunge[import,s3]"),
    "faiss": BuiltIn(f"{_HERE}.faiss", ("faiss",), "expunge[faiss]"),
    "faiss+s3": BuiltIn(f"{_HERE}.faiss", ("faiss", "boto3", "botocore"), "expunge[faiss,s3]"),
    "s3": BuiltIn(f"{_HERE}.s3", ("boto3", "botocore"), "expunge[s3]", rewrites_unit=False),
    "pgvector": BuiltIn(f"{_HERE}.pgvector", ("psycopg", "psycopg_pool"), "expunge[pgvector]"),
    "pgvector+postgresql": BuiltIn(f"{_HERE}.pgvector", ("psycopg", "psycopg_pool"), "expunge[pgvector]"),
}


def open_store(url: str, name: str) -> Store:
    """The store at `url`, with the credentials to erase. `Misconfigured` if it cannot be opened."""
    return _module(url).open_store(url, name)


def open_reader(url: str, name: str) -> StoreReader:
    """The same store without `hide` and `erase`."""
    return _module(url).open_reader(url, name)


def check(name: str, urls: Mapping[str, str]) -> list[Remark]:
    """What could defeat erasure from the store `name` of those at `urls`, looked at without changing anything."""
    url = urls[name]
    if url.partition(":")[0].split("+")[-1] == "s3":
        _module(url)  # its libraries are there, or it says which to install
        from expunge.adapters.stores.s3.checking import check as look

        return look(url, {other: where for other, where in urls.items() if other != name})
    try:
        open_reader(url, name)
    except (Misconfigured, Retryable) as trouble:
        return [Remark(Severity.WRONG, "cannot-open", str(trouble))]
    return []


def rewrites_unit(url: str) -> bool:
    """Whether erasing from the store at `url` rewrites a whole unit. Plug-ins are taken to."""
    entry = BUILT_IN.get(url.partition(":")[0])
    return entry.rewrites_unit if entry is not None else True


def _module(url: str) -> StoreModule:
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise Misconfigured("expected a store URL such as file:///data/images, got text without a scheme")
    if scheme in BUILT_IN:
        return _built_in(scheme, BUILT_IN[scheme])
    plug_ins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme not in plug_ins:
        known = ", ".join(sorted({*BUILT_IN, *plug_ins}))
        raise Misconfigured(f"no store adapter for the scheme {scheme!r}; there are: {known}")
    return cast("StoreModule", plug_ins[scheme].load())


def _built_in(scheme: str, entry: BuiltIn) -> StoreModule:
    try:
        return cast("StoreModule", import_module(entry.module))
    except ModuleNotFoundError as e:
        if e.name not in entry.needs:
            raise
        raise Misconfigured(f"stores of scheme {scheme!r} need {e.name}: pip install '{entry.install}'") from e
