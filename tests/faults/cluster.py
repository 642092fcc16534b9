"""Three Kafka brokers on loopback, controllers and all, one of which can be killed; and brokers of an older version."""

from __future__ import annotations

import base64
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from expunge.embedded import kafka
from expunge.embedded.kafka import EmbeddedKafka
from expunge.embedded.process import LOOPBACK, SERVER_ENVIRONMENT, ServerFailed, free_ports, listening
from expunge.wiring.up import Embedded

NODES = 3


class Node(EmbeddedKafka):
    """One of the three: its own ports and folder, the quorum of all."""

    cluster: str
    number: int
    voters: str

    def place(self, cluster: str, number: int, ports: list[tuple[int, int]]) -> None:
        self.cluster, self.number = cluster, number
        self._port, self._controller_port = ports[number]
        self.voters = ",".join(f"{n + 1}@{LOOPBACK}:{controller}" for n, (_, controller) in enumerate(ports))

    def _format(self, properties: Path) -> None:
        changed = {
            "node.id": str(self.number + 1),
            "controller.quorum.voters": self.voters,
            # Three of them on a busy machine: a quorum that is called dead too soon elects for ever.
            "controller.quorum.election.timeout.ms": "3000",
            "controller.quorum.fetch.timeout.ms": "6000",
            "broker.session.timeout.ms": "9000",
            "offsets.topic.replication.factor": str(NODES),
            "transaction.state.log.replication.factor": str(NODES),
            "transaction.state.log.min.isr": "2",
            "min.insync.replicas": "2",
            "default.replication.factor": str(NODES),
            "unclean.leader.election.enable": "false",
        }
        kept = [line for line in properties.read_text().splitlines() if line.partition("=")[0] not in changed]
        properties.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changed.items())]) + "\n")
        if (self.directory / "data" / "meta.properties").exists():
            return
        command = [*self._java, "kafka.tools.StorageTool", "format"]
        made = subprocess.run(
            [*command, f"--cluster-id={self.cluster}", f"--config={properties}"],
            cwd=self.directory, env=SERVER_ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise ServerFailed(f"formatting ended with {made.returncode}: {made.stderr[-500:]}")


class Cluster(EmbeddedKafka):
    """The three as one server: `bootstrap` names them all."""

    nodes: list[Node]

    @classmethod
    def of_three(cls, directory: Path) -> Cluster:
        jars = kafka.ensure_jars()
        numbers = free_ports(2 * NODES)
        ports = [(numbers[2 * n], numbers[2 * n + 1]) for n in range(NODES)]
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        made = cls(directory, ())
        made.nodes = []
        for number in range(NODES):
            folder = directory / f"node-{number}"
            (folder / "tmp").mkdir(parents=True, exist_ok=True)
            node = Node(folder, kafka._java(folder, jars))
            node.place(cluster, number, ports)
            made.nodes.append(node)
        made._run()
        return made

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    @property
    def running(self) -> bool:
        return True  # a node that was killed is part of the test

    def _run(self) -> None:
        with ThreadPoolExecutor(NODES) as pool:  # at once: none listens before a majority is there
            list(pool.map(Node._run, [node for node in self.nodes if not listening(node._port)]))

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


class OnThreeBrokers(Embedded):
    replication = NODES

    def start_kafka(self, directory: Path) -> EmbeddedKafka:
        return Cluster.of_three(directory)


class OnTheOldestKafka(Embedded):
    """The oldest version that is supported."""

    def start_kafka(self, directory: Path) -> EmbeddedKafka:
        return EmbeddedKafka.start(directory, version=OLDEST)


OLDEST = "3.9.1"
