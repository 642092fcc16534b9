"""The log over HTTP: checkpoint, tiles, entries; nothing else, however it is spelt."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from expunge.adapters.log.files import FileTiles
from expunge.serving import application
from tests.witnessing import listening

FILES = {
    "checkpoint": b"note",
    "tile/0/000": b"h" * 8192,
    "tile/0/x001/234.p/5": b"h" * 160,
    "tile/entries/000.p/1": b"e",
}


@pytest.fixture
def log(tmp_path: Path) -> FileTiles:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "log.seed").write_bytes(b"secret")
    root = tmp_path / "log"
    root.mkdir()
    store = FileTiles(root)
    store.write({**FILES, "checkpoints/5": b"archived", "tile/0/notes.txt": b"stray"})
    assert store.swap("checkpoint", b"note", b"note")
    return store


async def test_a_monitor_reads_what_a_log_has(log: FileTiles) -> None:
    async with listening(application(log)) as url, aiohttp.ClientSession() as session:
        for path, data in FILES.items():
            async with session.get(f"{url}/{path}") as answer:
                assert (answer.status, await answer.read()) == (200, data)
                if path == "checkpoint":
                    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
                    assert answer.headers["Cache-Control"] == "no-cache"
                else:
                    assert answer.headers["Content-Type"] == "application/octet-stream"
                    assert "immutable" in answer.headers["Cache-Control"]
        async with session.head(f"{url}/checkpoint") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/tile/0/001") as answer:
            assert (answer.status, answer.headers["Cache-Control"]) == (404, "no-cache")
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            async with session.request(method, f"{url}/checkpoint") as answer:
                assert answer.status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/../keys/log.seed",
        "/%2e%2e/keys/log.seed",
        "/..%2fkeys%2flog.seed",
        "/tile/../../keys/log.seed",
        "/tile/%2e%2e/%2e%2e/keys/log.seed",
        "/tile/0/..%2f..%2f..%2fkeys/log.seed",
        "/tile/0/000/../../../../keys/log.seed",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/tile/0/000%00",
        "/tile/0/000%0a",
        "/tile/00/000",
        "/tile/0/notes.txt",
        "/checkpoints/5",
        "/.lock",
        "/checkpoint/",
        "/Checkpoint",
        "/tile",
    ],
)
async def test_no_other_file_can_be_reached(log: FileTiles, path: str) -> None:
    """The path goes out as it stands: no client cleans it up."""
    async with listening(application(log)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.split(b" ", 2)[1] in {b"404", b"400"}
    assert b"secret" not in answer
