"""Faults of stores on disks: 12 to 14, 22."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from expunge.adapters.stores.faiss import faiss
from tests.faults.ground import Beating, Ground, Report, certified
from tests.faults.small import INDEX, PHOTOS, SOURCE, Small, eventually, name, vector_id


def lying(ground: Ground) -> Report:
    """12: the store says gone, and the file is there again: rescan finds it, and the result says so."""
    report = Report()
    with ground.own(overrides={"attempts": 2}) as small:
        people = small.register(3)
        saved = {path: path.read_bytes() for person in people[:2] for path in _files(small, person)}
        stop = threading.Event()

        def put_back() -> None:
            while not stop.wait(0.005):
                for path, content in saved.items():
                    if not path.exists():
                        path.write_bytes(content)

        product = threading.Thread(target=put_back, daemon=True)
        product.start()
        began = time.monotonic()
        requests = small.delete_all(people)
        results = [eventually(lambda one=one: _result(small, one), "a result") for one in requests]  # type: ignore[misc]
        seconds = time.monotonic() - began
        stop.set()
        product.join()
        detected = sum(one != "complete" for one in results[:2])
        report.expect(detected == 2, f"false completions: {2 - detected}")
        report.expect(results[2] == "complete", f"the honest one is {results[2]}")
        report.figure = {"lies": 2, "detected": detected, "results": results, "seconds": round(seconds, 1)}
    return report


def _files(small: Small, person: int) -> list[Path]:
    return [small.product / "photos" / SOURCE / f"{name(person, number)}.jpg" for number in range(PHOTOS)]


def _result(small: Small, request: str) -> str | None:
    found: str | None = small.one("select data_result from request where request_id = %s", request)
    return found


def vectors(ground: Ground) -> Report:
    """13: erased vectors are not found by search, nor in what an earlier rewrite left beside the index."""
    small, report = ground.small, Report()
    person, neighbour = small.register(2)
    path = small.product / "faces" / INDEX
    index = faiss.read_index(str(path))
    gone = np.vstack([index.reconstruct(vector_id(person, number)) for number in range(PHOTOS)])
    leftover = path.with_name(f"{INDEX}.new-{'0' * 32}")  # as a killed rewrite leaves it
    shutil.copyfile(path, leftover)
    certified(small, [small.delete(person)], report)
    index = faiss.read_index(str(path))
    _, found = index.search(gone, 5)
    residual = sum(vector_id(person, number) in found for number in range(PHOTOS))
    files = [one for one in path.parent.iterdir() if one.is_file()]
    bytes_left = sum(row.tobytes() in one.read_bytes() for row in gone for one in files)
    report.expect(residual == 0, f"search returns {residual} erased vectors")
    report.expect(bytes_left == 0, f"{bytes_left} erased vectors are in the store's files")
    report.expect(small.left(neighbour)["faces"] == {0, 1}, "the neighbour's vectors are gone")
    report.figure = {"residual_recall": residual / PHOTOS, "vectors_in_files": bytes_left}
    return report


def away(ground: Ground) -> Report:
    """14: a store's disk is away: nothing of it is called erased, others go on, and it is finished when it is back."""
    small, report = ground.small, Report()
    folder, elsewhere = small.product / "shards", small.product / "shards-away"
    people = small.register(4)
    folder.rename(elsewhere)
    requests = small.delete_all(people)
    eventually(lambda: _gone_elsewhere(small, people) or None, "the other stores to finish", 120)
    waiting = [small.state(one) for one in requests]
    false = small.one("select count(*) from certificate where request_id = any(%s)", list(requests))
    report.expect(false == 0, f"{false} certificates while a store was away")
    report.expect(set(waiting) == {"planned"}, f"states while a store was away: {waiting}")
    nearest = small.one("select extract(epoch from min(due) - clock_timestamp()) from request where state = 'planned'")
    elsewhere.rename(folder)
    small.sql("update task set not_before = clock_timestamp() where done_at is null")  # as if its wait were over
    with Beating(small):
        took = certified(small, requests, report)
    report.figure = {
        "false_completions": false, "visible_as": "planned", "alert_lead_h": min(72, round(float(nearest) / 3600)),
        "finished_after_s": round(took, 1),
    }  # fmt: skip
    return report


def _gone_elsewhere(small: Small, people: range) -> bool:
    return all(not _file_left(small, person) for person in people)


def _file_left(small: Small, person: int) -> list[Path]:
    return [one for one in _files(small, person) if one.exists()]


def restored(ground: Ground) -> Report:
    """22: a backup brings erased photos back: sealed scopes still name them, and looking again finds them."""
    small, report = ground.small, Report()
    people = small.register(4)
    backup = {path: path.read_bytes() for person in people for path in _files(small, person)}
    requests = small.delete_all(people)
    certified(small, requests, report)
    for path, content in backup.items():
        path.write_bytes(content)
    began = time.monotonic()
    for (sweep,) in small.sql("select distinct sweep_id from request where request_id = any(%s)", list(requests)):
        small.sql(
            "insert into task (kind, key, input) values ('reconcile', %s, jsonb_build_object('sweep', %s::uuid))",
            f"restored {sweep}", sweep,
        )  # fmt: skip
    found = eventually(lambda: _found_again(small, requests), "the sweeps to be looked for again", 120)
    report.expect(found == len(backup), f"{found} of {len(backup)} restored photos found")
    report.figure = {
        "resurrected": len(backup), "found_percent": round(100 * found / len(backup)),
        "seconds_to_find": round(time.monotonic() - began, 1), "erased_again": "`expunge backup finish`, not run here",
    }  # fmt: skip
    for path in backup:
        path.unlink()
    return report


def _found_again(small: Small, requests: list[Any]) -> int | None:
    sweeps = {str(row[0]) for row in small.sql("select sweep_id from request where request_id = any(%s)", requests)}
    found: dict[str, int] = {}
    for (entry,) in small.sql("select entry from log_entry where predicate = 'urn:expunge:reconciliation:v1'"):
        from expunge.domain import dsse, statement

        said = statement.parse(dsse.parse(bytes(entry)).payload).predicate
        if isinstance(said, statement.Reconciliation) and said.sweep is not None and said.sweep.sweep in sweeps:
            found[said.sweep.sweep] = said.sweep.present
    return sum(found.values()) if found.keys() == sweeps else None
