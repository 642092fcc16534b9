"""A worker paused in the middle, overtaken, and let go on changes nothing; the product's inserts are never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.crashes import WHOLE_TASKS
from tests.faults.ground import Report, certified
from tests.faults.small import INDEX, Small, eventually, vector_id

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with Small(tmp_path_factory.mktemp("fencing"), people=4, idle_limit="5s") as made:
        yield made


def order_again(small: Small, worker: str) -> None:
    """Kafka gives the paused one's partitions away when its session ends; what it holds is ordered again from rows, and its
    leases end: here sooner than in half a minute."""
    small.sql(
        "update work set ordered_at = ordered_at - interval '1 minute'"
        " where step <> 'waiting' and ordered_at < clock_timestamp() - interval '5 seconds'"
    )
    small.sql("update unit_lease set lease_until = clock_timestamp() where lease_until > clock_timestamp()"
              " and holder = %s", f"{worker}-0")  # fmt: skip


@contextmanager
def paused(small: Small, worker: str, point: str, person: int) -> Iterator[str]:
    """`worker` stands still at `point` of a request, and a second instance of it is there; inside, all go on."""
    small.arm(worker, point, how="stop")
    request = small.delete(person)
    try:
        eventually(lambda: small.stopped(worker) or None, f"{worker} to stop at {point}")
        small.embedded.start_worker(worker, "1")
        small.embedded.wait_ready(worker, "1")
        small.let_leases_end()
        small.sql("update work set ordered_at = ordered_at - interval '1 minute' where step <> 'waiting'")
        yield request
    finally:
        small.disarm(worker)
        if small.stopped(worker):
            small.signal(worker, signal.SIGCONT)
        if f"{worker}-1" in small.embedded._processes:
            small.embedded.stop_worker(f"{worker}-1")
        if small.ended(worker):
            small.restart(worker)


def nothing_is_amiss(small: Small, request: str, person: int) -> None:
    assert not any(small.left(person).values())
    assert small.announced()[request, "data"] == 1
    assert small.replayed()["differences"] == []
    assert small.leftovers() == []


def paused_and_overtaken(small: Small, worker: str, point: str, person: int) -> None:
    """`worker` stops at `point`; a second instance does the work; the first goes on, and changes nothing."""
    with paused(small, worker, point, person) as request:
        small.wait(request, beat=lambda: order_again(small, worker))
        before = small.effects(request), small.left(person), small.replayed()["root"]
        small.signal(worker, signal.SIGCONT)
        following = small.delete(person + 1)
        small.wait(following, beat=lambda: order_again(small, worker))
        assert (small.effects(request), small.left(person)) == before[:2]
    nothing_is_amiss(small, request, person)


@pytest.mark.parametrize("point", ["store.rebuilt", "store.synced", "store.deleting", "erasing.erased"])
def test_an_executor_paused_in_a_rewrite(small: Small, point: str) -> None:
    """`store.deleting` is within a transaction in the product's database, which ends it."""
    paused_and_overtaken(small, "invalidate", point, small.register(2)[0])


@pytest.mark.parametrize("then", [signal.SIGKILL, signal.SIGCONT], ids=["dies", "goes-on"])
def test_an_executor_that_stops_while_it_puts_the_new_file_in_place(small: Small, then: signal.Signals) -> None:
    """It holds the file's lock there, for milliseconds as a rule: nobody may overtake it, and nobody does. When it goes on
    it was the first; when it is killed, the other is."""
    person = small.register(1)[0]
    with paused(small, "invalidate", "store.counted", person) as request:
        held = "select count(*) from unit_lease where store = 'faces' and holder = 'invalidate-1'"
        eventually(lambda: small.one(held) or None, "the other to wait", beat=lambda: order_again(small, "invalidate"))
        assert not small.done(request)
        assert small.left(person)["faces"] == {0, 1}
        small.signal("invalidate", then)
        small.wait(request, beat=lambda: order_again(small, "invalidate"))
    nothing_is_amiss(small, request, person)


@pytest.mark.parametrize("point", ["prove.intended", "prove.tiled", "prove.archived", "prove.switched"])
def test_an_appender_paused_in_the_log(small: Small, point: str) -> None:
    paused_and_overtaken(small, "coordinate", point, small.register(2)[0])


@pytest.mark.parametrize("point", ["delivery.recorded", "plan.recorded", "prove.recorded"])
def test_a_coordinator_paused_in_a_transaction(small: Small, point: str) -> None:
    """The server ends the transaction, and what it held is free."""
    paused_and_overtaken(small, "coordinate", point, small.register(2)[0])


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
    with Small(tmp_path_factory.mktemp("tasks"), people=4, settings=WHOLE_TASKS, idle_limit="5s") as small:
        small._settings["invalidate-1"] = WHOLE_TASKS["invalidate"]
        for point in ("tasks.leased", "tasks.worked"):
            paused_and_overtaken(small, "invalidate", point, small.register(2)[0])
