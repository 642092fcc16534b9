"""A time stamping authority on this machine: `openssl ts` behind a tiny HTTP server, with a root of its own."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

CONFIGURATION = """\
[tsa]
default_tsa = here
[here]
serial = {directory}/serial
signer_cert = {directory}/tsa.pem
signer_key = {directory}/tsa.key
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256
ordering = yes
tsa_name = no
ess_cert_id_chain = no
[req]
distinguished_name = name
[name]
"""
EXTENSIONS = """\
basicConstraints=critical,CA:false
keyUsage=critical,digitalSignature
extendedKeyUsage=critical,timeStamping
"""


@dataclass
class Authority:
    """`root`: the certificate (PEM) that a verifier pins."""

    directory: Path
    root: str

    @classmethod
    def found(cls, directory: Path, name: str = "authority") -> Authority:
        """Draw keys and certificates."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "openssl.cnf").write_text(CONFIGURATION.format(directory=directory))
        (directory / "extensions").write_text(EXTENSIONS)
        (directory / "serial").write_text("01\n")
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "openssl.cnf")
        _openssl(directory, "req", "-x509", *new, "-keyout", "root.key", "-out", "root.pem", "-days", "3650",
                 "-subj", f"/CN={name} root", "-addext", "basicConstraints=critical,CA:true")  # fmt: skip
        _openssl(directory, "req", *new, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", f"/CN={name}")
        _openssl(directory, "x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-set_serial", "2",
                 "-days", "3650", "-extfile", "extensions", "-out", "tsa.pem")  # fmt: skip
        return cls(directory, (directory / "root.pem").read_text())

    def reply(self, query: bytes) -> bytes:
        (self.directory / "query.tsq").write_bytes(query)
        _openssl(self.directory, "ts", "-reply", "-config", "openssl.cnf", "-section", "here", "-queryfile", "query.tsq",
                 "-out", "reply.tsr")  # fmt: skip
        return (self.directory / "reply.tsr").read_bytes()

    def verifies(self, token: bytes, data: bytes) -> bool:
        """What `openssl ts -verify` says: the outsider's own tool."""
        (self.directory / "token.tsr").write_bytes(token)
        (self.directory / "data").write_bytes(data)
        ran = subprocess.run(
            ["openssl", "ts", "-verify", "-data", "data", "-in", "token.tsr", "-CAfile", "root.pem"],
            cwd=self.directory, capture_output=True, check=False,
        )  # fmt: skip
        return ran.returncode == 0

    def application(self) -> web.Application:
        turn = asyncio.Lock()

        async def stamp(request: web.Request) -> web.Response:
            query = await request.read()
            async with turn:
                answer = await asyncio.to_thread(self.reply, query)
            return web.Response(body=answer, content_type="application/timestamp-reply")

        app = web.Application()
        app.router.add_post("/", stamp)
        return app


def _openssl(directory: Path, *arguments: str) -> None:
    ran = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
