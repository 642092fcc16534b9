# ruff: noqa: INP001 - a program of its own
"""The Grafana dashboards, in code: `python ops/grafana/dashboards.py` writes dashboards/*.json, `--check` compares them.

Panels name metrics of services/expunge/metrics.py and recordings of ops/prometheus. tests/guards/test_dashboards.py parses
every expression; tests/acceptance/test_watched.py asks a live Prometheus for each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos

HERE: Final = Path(__file__).resolve().parent / "dashboards"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS: Final = 24


@dataclass(frozen=True)
class Panel:
    """One panel. `lines`: expression and legend of each; `unit`: Grafana's name; a `single` number or curves."""

    title: str
    description: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    single: bool = False
    width: int = 8


@dataclass(frozen=True)
class Board:
    """A dashboard: panels in reading order, laid out from left to right."""

    uid: str
    title: str
    panels: tuple[Panel, ...]
    tags: tuple[str, ...] = field(default=("expunge",))


def one(title: str, description: str, unit: str, expression: str) -> Panel:
    """A number."""
    return Panel(title, description, unit, ((expression, ""),), single=True, width=6)


def curves(title: str, description: str, unit: str, *lines: tuple[str, str], width: int = 8) -> Panel:
    """Curves over time."""
    return Panel(title, description, unit, lines, width=width)


LEFT: Final = "min(expunge_nearest_deadline_timestamp_seconds{worker='coordinate'} > 0) - time()"

BOARDS: Final = (
    Board(
        "expunge-requests",
        "Expunge: requests and deadlines",
        (
            one("Time left to the nearest deadline", "Of open requests and taints. Empty when none is open.", "s",
                f"({LEFT}) or vector(0)"),
            one("Age of the oldest open request", "Without a data certificate yet.", "s",
                "max(expunge_oldest_open_request_seconds)"),
            one("Open requests", "Accepted, planned or held.", "short",
                "sum(expunge_requests{state=~'accepted|planned|held'}) or vector(0)"),
            one("Canary: request to proof", "Of the newest synthetic subject that was proved erased.", "s",
                "max(expunge_canary_seconds{worker='canary'})"),
            curves("Requests by state", "All that there are, by state.", "short",
                   ("sum by (state) (expunge_requests)", "{{state}}")),
            curves("Requests by regulation", "All that there are, by the law they rely on.", "short",
                   ("sum by (regulation) (expunge_requests)", "{{regulation}}")),
            curves("Acceptance to certificate, 95th percentile", "Over the last hour, by class.", "s",
                   ("expunge:certified_seconds:p95_1h", "{{class}}")),
            curves("Requests per sweep", "Mean over five minutes: more under load.", "short",
                   (("sum by (class) (rate(expunge_sweep_requests_sum[5m]))"
                    " / sum by (class) (rate(expunge_sweep_requests_count[5m]))"), "{{class}}")),
            curves("Artifacts per sweep", "Mean over five minutes.", "short",
                   (("sum by (class) (rate(expunge_sweep_artifacts_sum[5m]))"
                    " / sum by (class) (rate(expunge_sweep_artifacts_count[5m]))"), "{{class}}")),
            curves("Canary lateness", "0 while synthetic proofs are in time.", "s",
                   ("max(expunge_canary_late_seconds{worker='canary'})", "late")),
            curves("Canary runs", "Synthetic subjects by what became of them.", "short",
                   ("sum by (outcome) (expunge_canary_runs_total)", "{{outcome}}")),
        ),
    ),
    Board(
        "expunge-erasure",
        "Expunge: erasure and stores",
        (
            one("Backlog", "Artifacts of sealed scopes that are not done.", "short", "sum(expunge_backlog_artifacts)"),
            one("Came back", "Artifacts found again after a complete certificate.", "short",
                "max(expunge_came_back_artifacts{worker='coordinate'})"),
            one("Unaccounted", "Registered less erased, under way and present.", "short",
                "max(expunge_unaccounted_artifacts{worker='coordinate'})"),
            one("Models tainted", "Tainted or being remedied.", "short",
                "sum(expunge_models{status=~'tainted|remediating'})"),
            curves("Backlog by store", "Artifacts that wait.", "short",
                   ("max by (store) (expunge_backlog_artifacts)", "{{store}}")),
            curves("Verified absent by store", "Per second, over five minutes.", "ops",
                   (("sum by (store) (rate(expunge_artifacts_total"
                    "{step='absence',outcome=~'gone|gone_earlier|absent_before'}[5m]))"), "{{store}}")),
            curves("Outcomes by step", "Artifacts per second, over five minutes.", "ops",
                   ("sum by (step, outcome) (rate(expunge_artifacts_total[5m]))", "{{step}} {{outcome}}")),
            curves("Runs under way by step", "Stretches of chunks.", "short",
                   ("max by (step) (expunge_work_runs)", "{{step}}")),
            curves("Models by status", "All registered models.", "short",
                   ("max by (status) (expunge_models)", "{{status}}")),
            curves("Retraining jobs", "By state.", "short", ("max by (state) (expunge_retraining_jobs)", "{{state}}")),
            curves("Blast-radius breakers open", "Scopes that wait for a person, by kind.", "short",
                   ("max by (kind) (expunge_breakers_open{worker='coordinate'})", "{{kind}}")),
            curves("Stores left alone", "1 while a worker's circuit to a store is open.", "short",
                   ("max by (worker, store) (expunge_store_circuit_open)", "{{worker}} {{store}}")),
        ),
    ),
    Board(
        "expunge-delivery",
        "Expunge: workers and delivery",
        (
            one("Workers up", "Instances that Prometheus reaches.", "short", "sum(up{job='expunge'})"),
            one("Dead letters", "Messages given up and not dealt with.", "short", "sum(expunge_dead_letters)"),
            one("Parked events", "Waiting to be tried again.", "short", "sum(expunge_parked_events)"),
            one("Committed above handled", "Above 0 is a loss.", "short", "sum(expunge_committed_above_handled)"),
            curves("Messages per second", "By worker and what became of them.", "ops",
                   ("sum by (worker, outcome) (expunge:deliveries:rate5m > 0)", "{{worker}} {{outcome}}")),
            curves("Stage latency, 95th percentile", "Per batch, turn or run.", "s",
                   ("expunge:stage_seconds:p95_5m", "{{stage}}")),
            curves("Batch latency, 95th percentile", "From decoding to commit.", "s",
                   ("max by (worker) (expunge:batch_seconds:p95_5m)", "{{worker}}")),
            curves("Clock offset", "Against PostgreSQL's clock.", "s",
                   ("max by (worker) (expunge_clock_offset_seconds)", "{{worker}}")),
            curves("Outbox rows", "Committed, not yet published.", "short", ("max(expunge_outbox_rows)", "rows")),
            curves("Versions", "Instances by what they run.", "short",
                   ("count by (version) (expunge_build_info)", "{{version}}")),
            curves("Read API: requests", "Per second, over five minutes, by route and class of status.", "ops",
                   ("sum by (route, status) (rate(expunge_api_requests_total[5m]))", "{{route}} {{status}}")),
            curves("Read API: latency, 95th percentile", "From a request's head to the end of its answer.", "s",
                   ("histogram_quantile(0.95, sum by (route, le) (rate(expunge_api_seconds_bucket[5m])))", "{{route}}")),
        ),
    ),
    Board(
        "expunge-evidence",
        "Expunge: evidence",
        (
            one("Log size", "Entries under the newest checkpoint.", "short",
                "max(expunge_log_size{worker='coordinate'})"),
            one("Last audit", "Since the log last verified.", "s",
                "time() - max(expunge_audit_timestamp_seconds{worker='audit'})"),
            one("Audit failed", "1 when the log does not verify.", "short",
                "max(expunge_audit_failed{worker='audit'})"),
            one("Not vouched for", "Since when checkpoints lack a cosignature or time stamp that is asked for.", "s",
                "max(expunge_unattested_seconds{worker='coordinate'})"),
            curves("Log growth", "Entries per second.", "ops",
                   ("deriv(expunge_log_size{worker='coordinate'}[5m])", "entries")),
            curves("Last attested", "Since a checkpoint had every cosignature and time stamp that is asked for.", "s",
                   ("time() - max(expunge_log_witnessed_timestamp_seconds{worker='coordinate'})", "age")),
            curves("Witnesses' answers", "Per second, over five minutes, by witness; 0 when nobody is asked.", "ops",
                   ("sum by (witness, answer) (rate(expunge_witness_answers_total[5m])) or vector(0)",
                    "{{witness}} {{answer}}")),
            curves("Keys that end", "Time left, by role; empty when none ends.", "s",
                   ("(min by (role) (expunge_key_expiry_timestamp_seconds{worker='coordinate'} > 0) - time()) or vector(0)",
                    "{{role}}")),
        ),
    ),
)  # fmt: skip


def built(board: Board) -> Any:  # noqa: ANN401 - the SDK's model
    """The SDK's dashboard, with ids and places of our own."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(list(board.tags))
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    x = y = 0
    for number, panel in enumerate(board.panels, start=1):
        height = 4 if panel.single else 8
        if x + panel.width > COLUMNS:
            x, y = 0, y + (4 if board.panels[number - 2].single else 8)
        kind = stat if panel.single else timeseries
        drawn = (
            kind.Panel()
            .id(number)
            .title(panel.title)
            .description(panel.description)
            .unit(panel.unit)
            .grid_pos(GridPos(x=x, y=y, w=panel.width, h=height))
        )
        for position, (expression, legend) in enumerate(panel.lines):
            query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").ref_id("ABCDEF"[position])
            drawn = drawn.with_target(query.datasource(SOURCE))
        made = made.with_panel(drawn)
        x += panel.width
    return made.build()


def texts() -> dict[Path, str]:
    """What each file should hold."""
    return {
        HERE / f"{board.uid}.json": json.dumps(
            json.loads(JSONEncoder(sort_keys=True).encode(built(board))), indent=1, sort_keys=True
        )
        + "\n"
        for board in BOARDS
    }


def main(arguments: list[str]) -> int:
    """The exit code: 1 when `--check` finds a difference."""
    wanted = texts()
    there = {path: path.read_text(encoding="utf-8") for path in HERE.glob("*.json")}
    if arguments == ["--check"]:
        differing = sorted(path.name for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
        if differing:
            sys.stderr.write(f"out of step, run python ops/grafana/dashboards.py: {', '.join(differing)}\n")
        return int(bool(differing))
    HERE.mkdir(exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
