"""The 24 faults, each with the scenario that runs it."""

from __future__ import annotations

from typing import Final

from tests.faults import evidence, messages, objects, servers, stores, workers
from tests.faults.ground import Fault

FAULTS: Final = (
    Fault(1, "kill -9 of a worker at each numbered point", workers.one_crash, long=True),
    Fault(2, "kill -9 of two workers at once", workers.two_crashes),
    Fault(3, "SIGTERM under load", workers.terminated),
    Fault(4, "broker down", servers.broker_down),
    Fault(5, "broker restarts with a truncated tail", servers.truncated),
    Fault(6, "rebalance storm", workers.rebalances),
    Fault(7, "database restart during commit", servers.database_restarted),
    Fault(8, "database paused", servers.database_paused),
    Fault(9, "connections exhausted, locks, deadlock", servers.database_crowded),
    Fault(10, "S3 SlowDown", objects.slow_down),
    Fault(11, "partial answer of a multi-object delete", objects.partial),
    Fault(12, "delete acknowledged, object still there", stores.lying),
    Fault(13, "vector still found, or in an old segment", stores.vectors),
    Fault(14, "one store away", stores.away),
    Fault(15, "clock skew of 40 days, both ways", evidence.clocks),
    Fault(16, "duplicates x10, out of order, cancel first", messages.duplicates),
    Fault(17, "malformed, wrong version, oversized, nested bomb", messages.malformed),
    Fault(18, "poison pill that kills the worker", workers.poison),
    Fault(19, "disk full", servers.disk_full, long=True),
    Fault(20, "signing keys rotated mid-flight", evidence.rotated),
    Fault(21, "log replayed from 0, by two at once", evidence.replayed),
    Fault(22, "backup restored: erased data back", stores.restored),
    Fault(23, "log edited, truncated, forked, re-signed", evidence.tampered),
    Fault(24, "flood of forged or mass requests", messages.flood),
)
