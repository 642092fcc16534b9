"""A worker paused in the middle, overtaken, and let go on changes nothing; the product's inserts are never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from tests.faults.crashes import WHOLE_TASKS
from tests.faults.ground import Report, certified
from tests.faults.small import INDEX, Small, eventually, vector_id

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with Small(tmp_path_factory.mktemp("fencing"), people=4) as made:
        yield made


def paused_and_overtaken(small: Small, worker: str, point: str, person: int) -> str:
    """`worker` stops at `point`; a second instance does the work; the first goes on. The request."""
    small.arm(worker, point, how="stop")
    request = small.delete(person)
    eventually(lambda: small.stopped(worker) or None, f"{worker} to stop at {point}")
    small.embedded.start_worker(worker, "1")
    small.embedded.wait_ready(worker, "1")
    small.let_leases_end()
    # Kafka gives the paused one's partitions away when its session ends; what it holds is ordered again from rows.
    small.sql("update work set ordered_at = ordered_at - interval '1 minute' where step <> 'waiting'")

    def again() -> None:
        small.sql(
            "update work set ordered_at = ordered_at - interval '1 minute'"
            " where step <> 'waiting' and ordered_at < clock_timestamp() - interval '5 seconds'"
        )
        small.sql("update unit_lease set lease_until = clock_timestamp() where lease_until > clock_timestamp()"
                  " and holder = %s", f"{worker}-0")  # fmt: skip

    try:
        small.wait(request, beat=again)
        before = small.effects(request), small.left(person), small.replayed()["root"]
        small.signal(worker, signal.SIGCONT)
        following = small.delete(person + 1)
        small.wait(following)
        assert (small.effects(request), small.left(person)) == before[:2]
        assert not any(small.left(person).values())
        assert small.announced()[request, "data"] == 1
    finally:
        small.disarm(worker)
        if small.stopped(worker):
            small.signal(worker, signal.SIGCONT)
        small.embedded.stop_worker(f"{worker}-1")
        if small.ended(worker):
            small.restart(worker)
    assert small.replayed()["differences"] == []
    assert small.leftovers() == []
    return request


@pytest.mark.parametrize("point", ["store.rebuilt", "store.synced", "store.counted", "erasing.erased"])
def test_an_executor_paused_in_a_rewrite(small: Small, point: str) -> None:
    person = small.register(2)[0]
    paused_and_overtaken(small, "invalidate", point, person)


@pytest.mark.parametrize("point", ["prove.intended", "prove.tiled", "prove.archived", "prove.switched"])
def test_an_appender_paused_in_the_log(small: Small, point: str) -> None:
    person = small.register(2)[0]
    paused_and_overtaken(small, "coordinate", point, person)


def test_what_the_product_inserts_while_its_index_is_rewritten_stays(small: Small) -> None:
    people = small.register(8)
    stop = threading.Event()
    inserted: list[int] = []

    def insert() -> None:
        number = 5_000_000
        while not stop.is_set():
            small.insert([(number, 0)])
            inserted.append(vector_id(number, 0))
            number += 1

    product = threading.Thread(target=insert, daemon=True)
    product.start()
    report = Report()
    certified(small, small.delete_all(people), report)
    stop.set()
    product.join()
    assert report.violations == []
    assert len(inserted) > len(people)
    from expunge.adapters.stores.faiss import faiss

    index = faiss.read_index(str(small.product / "faces" / INDEX))
    assert set(inserted) <= set(faiss.vector_to_array(index.id_map).tolist())
    assert not any(any(small.left(person).values()) for person in people)


def test_a_task_paused_and_overtaken(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Small(tmp_path_factory.mktemp("tasks"), people=4, settings=WHOLE_TASKS) as small:
        small._settings["invalidate-1"] = WHOLE_TASKS["invalidate"]
        for point in ("tasks.leased", "tasks.worked"):
            paused_and_overtaken(small, "invalidate", point, small.register(2)[0])
