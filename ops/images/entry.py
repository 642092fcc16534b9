"""What a container of the image does: `worker NAME`, or one of the steps that come before any worker runs.

    migrate      bring the database to the newest schema
    topics       create the Kafka topics that are not there
    keys         draw master, signing, journal and parking keys into the data volumes, once
    worker NAME  run one worker until a signal

Settings come from the environment; those that hold a password come from files in /run/secrets named after the variable
in lower case (`expunge_database`), so that they are in no environment and no `docker inspect`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from expunge.adapters.ledger.postgres import migrate
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.topics import TOPICS
from expunge.settings import Settings

SECRETS = Path("/run/secrets")
USAGE = "usage: migrate | topics | keys | worker NAME"


def main(arguments: list[str]) -> int:
    """The exit code; a worker ends the process itself."""
    secrets = {"_secrets_dir": str(SECRETS)} if SECRETS.is_dir() else {}
    match arguments:
        case ["migrate"]:
            migrate(Settings.read(**secrets).database)
        case ["topics"]:
            create_topics(Settings.read(**secrets))
        case ["keys"]:
            from expunge.wiring import Deployment

            Deployment(Settings.read(**secrets)).prepare()
        case ["worker", name]:
            from expunge.wiring.run import run_worker

            run_worker(name, Settings.read(**secrets))
        case _:
            sys.stderr.write(f"{USAGE}\n")
            return 2
    return 0


def create_topics(settings: Settings) -> None:
    """Every topic with its partitions and retention. What is there already stays as it is."""
    from kafka import KafkaAdminClient
    from kafka.errors import TopicAlreadyExistsError

    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.split(","))
    try:
        for topic in TOPICS.values():
            wanted = {"num_partitions": topic.partitions, "replication_factor": -1, "configs": topic.config}
            with suppress(TopicAlreadyExistsError):
                admin.create_topics({topic.name: wanted}, wait_for_metadata=True)
    finally:
        admin.close()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Misconfigured, Retryable) as error:
        sys.exit(f"error: {error}")
