"""The result as JSON lines and as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from expunge import __version__
from expunge.embedded import kafka, postgres

OUTPUT: Final = Path("bench-output")


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": postgres.version(),
        "kafka": kafka.DEFAULT_VERSION,
        "load": list(os.getloadavg()),
    }


def keep(result: Mapping[str, Any], output: Path) -> Path:
    """Write `bench.json`, and append to `history.jsonl`."""
    output.mkdir(parents=True, exist_ok=True)
    full = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": machine(),
        **result,
    }
    path = output / "bench.json"
    path.write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    with (output / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(json.dumps(full) + "\n")
    return path


def show(result: Mapping[str, Any], console: Console) -> None:
    """A small table each for orders, requests and primitives."""
    if idle := result.get("idle"):
        shares = ", ".join(f"{name} {share:.3f}" for name, share in idle.items())
        console.print(f"Idle, cores: {shares}; all {sum(idle.values()):.2f}")
    if orders := result.get("orders"):
        _orders(orders, sum(result.get("idle", {}).values()), console)
    if requests := result.get("requests"):
        _requests(requests, console)
    if scale := result.get("scale"):
        _scale(scale, console)
    if backlog := result.get("backlog"):
        said = ", ".join(f"{name} {backlog[f'rss_mib_{name}']} MiB" for name in ("first", "most", "last"))
        peaks = ", ".join(f"{name} {mib:.0f}" for name, mib in backlog["peak_mib"].items())
        console.print(
            f"Backlog of {backlog['requests']:,} people with an image each, lost {backlog['lost']}, {backlog['rate']:,.0f} per "
            f"second; coordinate's memory {said}; peaks, MiB: {peaks}"
        )
    if beside := result.get("beside"):
        _beside(beside, console)
    if micro := result.get("micro"):
        table = Table(
            "primitive",
            "us",
            "floor us",
            "ratio",
            "share of floor",
            "CPU s",
            "peak MB",
            "per second",
            title="Primitives",
        )
        for name, one in micro.items():
            figures = [
                f"{one[key]:.2f}" if key in one else ""
                for key in ("microseconds", "floor_microseconds", "ratio", "share", "cpu_seconds", "peak_mb")
            ]
            table.add_row(name, *figures, f"{one['per_second']:,.0f}" if "per_second" in one else "")
        console.print(table)


def _scale(scale: list[Mapping[str, Any]], console: Console) -> None:
    table = Table(
        "per stage", "requests", "lost", "per second", "CPU us per image", "partitions", title="Workers per stage"
    )
    for one in scale:
        spread = one["partitions"]["coordinate"]
        table.add_row(
            str(one["workers"]), f"{one['requests']:,}", str(one["lost"]), f"{one['rate']:,.0f}",
            f"{one['cpu_per_image'] * 1e6:,.0f}", "+".join(map(str, spread)),
        )  # fmt: skip
    console.print(table)


def _beside(beside: Mapping[str, Any], console: Console) -> None:
    title = "Signed deletion of one subject's pgvector rows"
    table = Table("", "requests", "lost", "seconds", "per second", "CPU us each", title=title)
    for name, one in (("expunge", beside["ours"]), ("lethe-delete 0.7.3", beside["theirs"])):
        if "skipped" in one:
            table.add_row(name, "skipped", one["skipped"], "", "", "")
        else:
            each = f"{one['cpu_each'] * 1e6:,.0f}"
            table.add_row(
                name, f"{one['requests']:,}", str(one["lost"]), f"{one['wall']:.1f}", f"{one['rate']:,.0f}", each
            )  # fmt: skip
    if "ratio" in beside:
        each = beside["ours"]["cpu_each"] / beside["theirs"]["cpu_each"]
        table.add_row("ratio", "", "", "", f"{beside['ratio']:.1f}", f"{each:.2f}")
    console.print(table)


def _orders(orders: list[Mapping[str, Any]], idle: float, console: Console) -> None:
    table = Table(
        "images",
        "seconds",
        "floor s",
        "ratio",
        "us/image",
        "floor us/image",
        "CPU ratio",
        "most MiB",
        title="Orders, request to certificate",
    )
    for one in orders:
        system, floor, images = one["system"], one["floor"], one["system"]["images"]
        table.add_row(
            f"{images:,}", f"{system['wall']:.2f}", f"{floor['wall']:.3f}", f"{system['wall'] / floor['wall']:.1f}",
            f"{system['wall'] / images * 1e6:.1f}", f"{floor['wall'] / images * 1e6:.1f}",
            f"{sum(system['cpu'].values()) / floor['cpu']:.1f}",
            ", ".join(f"{name} {mib:.0f}" for name, mib in sorted(system["peak_mib"].items(), key=lambda one: -one[1])[:2]),
        )  # fmt: skip
    if len(orders) > 1:
        wall, floor = (
            (orders[-1][which]["wall"] - orders[0][which]["wall"])
            / (orders[-1]["system"]["images"] - orders[0]["system"]["images"]) * 1e6
            for which in ("system", "floor")
        )  # fmt: skip
        table.add_row("each more", "", "", f"{wall / floor:.1f}", f"{wall:.1f}", f"{floor:.1f}")
    console.print(table)
    _stages({f"{one['system']['images']:,}": one["system"] for one in orders}, "seconds", 1.0, console)
    _cpu(
        {f"{one['system']['images']:,}": (one["system"], one["system"]["images"]) for one in orders}, "image", console,
        [one["floor"]["cpu"] for one in orders], idle,
    )  # fmt: skip


def _requests(requests: Mapping[str, Any], console: Console) -> None:
    table = Table(
        "", "requests", "lost", "per second", "of the floor", "CPU us each", "of the floor", "p50 ms", "p99 ms", "per sweep",
        title="Requests",
    )  # fmt: skip
    floor = requests["floor"]
    for name in ("burst", "paced", "floor"):
        one = requests[name]
        shares = (f"{requests['ratio']:.2f}", f"{requests['cpu_ratio']:.2f}") if name == "burst" else ("", "")
        per_sweep = one.get("requests_per_sweep", one.get("sweep", 0))
        table.add_row(
            name, f"{one['requests']:,}", str(one["lost"]), f"{one['rate']:,.0f}", shares[0],
            f"{one['cpu_each'] * 1e6:,.0f}", shares[1], f"{one['p50'] * 1e3:.0f}", f"{one['p99'] * 1e3:.0f}",
            f"{per_sweep:.0f}",
        )  # fmt: skip
    console.print(table)
    runs = {name: requests[name] for name in ("burst", "paced")}
    _stages(runs, "ms per request", 1e3, console)
    _cpu({name: (one, one["requests"]) for name, one in (runs | {"floor": floor}).items()}, "request", console)


def _stages(runs: Mapping[str, Mapping[str, Any]], unit: str, factor: float, console: Console) -> None:
    table = Table("stage", *runs, title=f"Where the time goes, {unit}")
    names = list(dict.fromkeys(name for one in runs.values() for name in one["seconds"]))
    for name in names:
        table.add_row(name, *(f"{one['seconds'].get(name, 0.0) * factor:,.3f}" for one in runs.values()))
    console.print(table)


def _cpu(
    runs: Mapping[str, tuple[Mapping[str, Any], int]], per: str, console: Console, floors: Sequence[float] = (),
    idle: float = 0.0,
) -> None:  # fmt: skip
    """CPU by worker and server; beside it, if given, seconds that each run's floor took. `idle`: cores that all of them
    take when there is nothing to do, which on a busy machine is much of what a long run seems to cost."""
    table = Table("CPU", *runs, title=f"CPU, us per {per}")
    for name in list(dict.fromkeys(name for one, _ in runs.values() for name in one["cpu"])):
        table.add_row(name, *(f"{one['cpu'].get(name, 0.0) / count * 1e6:,.1f}" for one, count in runs.values()))
    table.add_row("all", *(f"{sum(one['cpu'].values()) / count * 1e6:,.1f}" for one, count in runs.values()))
    if floors:
        each = [
            (sum(one["cpu"].values()), floor, count) for (one, count), floor in zip(runs.values(), floors, strict=True)
        ]
        table.add_row("of it idle", *(f"{one['wall'] * idle / count * 1e6:,.1f}" for one, count in runs.values()))
        table.add_row("floor", *(f"{floor / count * 1e6:,.1f}" for _, floor, count in each))
        table.add_row("ratio", *(f"{used / floor:.2f}" for used, floor, _ in each))
    console.print(table)
