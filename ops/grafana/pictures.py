# ruff: noqa: INP001 - a program of its own
"""Pictures of the dashboards, from a live Prometheus: `python ops/grafana/pictures.py http://127.0.0.1:9090 [MINUTES]`.

Writes pictures/*.svg: layout, titles, values and curves of what Grafana would be asked to show, drawn by this program. It is
not Grafana, and each picture says so.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
MACROS: Final = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "5m"}
COLOURS: Final = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
CELL: Final = (50, 30)
"""Width and height of one cell of Grafana's grid here, px."""
HEAD: Final = 44
STEPS: Final = 90
SHOWN: Final = 5
"""Most curves named in a legend."""

Series = tuple[str, list[tuple[float, float]]]


def asked(base: str, path: str, **parameters: object) -> list[dict[str, Any]]:
    """The result of a query."""
    url = f"{base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the address given on the command line
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def filled(expression: str) -> str:
    """The expression with Grafana's macros filled in."""
    for macro, value in MACROS.items():
        expression = expression.replace(macro, value)
    return expression


def series(base: str, panel: Mapping[str, Any], start: float, end: float) -> Iterator[Series]:
    """Name and points of each curve."""
    for target in panel["targets"]:
        step = max(1.0, (end - start) / STEPS)
        for one in asked(base, "query_range", query=filled(target["expr"]), start=start, end=end, step=step):
            legend = target["legendFormat"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda match, one=one: one["metric"].get(match[1], ""), legend)
            points = [(at, float(text)) for at, text in one["values"] if text not in {"NaN", "+Inf", "-Inf"}]
            if points:
                yield (panel["title"] if name == "__auto" else name.strip(), points)


def human(value: float, unit: str) -> str:
    """A value in words, as short as Grafana's."""
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.2f} s" if abs(value) >= 0.1 or not value else f"{value * 1000:.1f} ms"  # noqa: PLR2004
    text = f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
    return f"{text}/s" if unit == "ops" else text


def panel_of(base: str, panel: Mapping[str, Any], start: float, end: float) -> str:
    """One panel."""
    grid, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
    x, y = grid["x"] * CELL[0] + 8, grid["y"] * CELL[1] + HEAD
    width, height = grid["w"] * CELL[0] - 8, grid["h"] * CELL[1] - 8
    drawn = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="#fff" stroke="#d1d5db"/>',
             f'<text x="{x + 10}" y="{y + 20}" class="t">{escape(panel["title"])}</text>']  # fmt: skip
    found = sorted(series(base, panel, start, end), key=lambda one: -max(value for _, value in one[1]))
    if not found:
        drawn.append(f'<text x="{x + 10}" y="{y + 50}" class="n">no data</text>')
    elif panel["type"] == "stat":
        value = human(found[0][1][-1][1], unit)
        drawn.append(f'<text x="{x + width / 2}" y="{y + height / 2 + 20}" class="v">{escape(value)}</text>')
    else:
        drawn += curves(found, (x + 10, y + 32, width - 20, height - 72), (start, end), unit)
    return "".join(drawn)


def curves(found: list[Series], box: tuple[float, ...], span: tuple[float, float], unit: str) -> Iterator[str]:
    """The curves of a panel, their scale and legend."""
    x, y, width, height = box
    values = [value for _, points in found for _, value in points]
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1
    yield f'<line x1="{x}" y1="{y + height}" x2="{x + width}" y2="{y + height}" stroke="#e5e7eb"/>'
    yield f'<text x="{x + width}" y="{y - 2}" class="s" text-anchor="end">{escape(human(high, unit))}</text>'
    for number, (_, points) in enumerate(found):
        path = " ".join(
            f"{x + (at - span[0]) / (span[1] - span[0]) * width:.1f},{y + (high - value) / (high - low) * height:.1f}"
            for at, value in points
        )
        colour = COLOURS[number % len(COLOURS)]
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>'
    at = x
    for number, (name, points) in enumerate(found[:SHOWN]):
        text = f"{name} {human(points[-1][1], unit)}"
        line = y + height + 18 + 14 * (number // 3)
        yield f'<text x="{at}" y="{line}" class="s" style="fill:{COLOURS[number]}">{escape(text)}</text>'
        at = x if number % 3 == 2 else at + width / 3  # noqa: PLR2004 - three to a line
    if len(found) > SHOWN:
        yield f'<text x="{at}" y="{y + height + 32}" class="s">and {len(found) - SHOWN} more</text>'


def picture(base: str, board: Mapping[str, Any], start: float, end: float) -> str:
    """One dashboard as SVG."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = 24 * CELL[0] + 8, rows * CELL[1] + HEAD + 26
    said = (
        f"Drawn by ops/grafana/pictures.py from a live Prometheus, {(end - start) / 60:g} minutes. This is not Grafana."
    )
    style = (
        "text{font-family:system-ui,sans-serif;fill:#111827}.t{font-size:13px;font-weight:600}.s{font-size:11px}"
        ".v{font-size:30px;text-anchor:middle}.n{font-size:12px;fill:#b91c1c}.h{font-size:18px;font-weight:600}"
    )
    body = "\n".join(panel_of(base, panel, start, end) for panel in board["panels"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#f3f4f6"/>'
        f'<text x="10" y="28" class="h">{escape(board["title"])}</text>\n{body}\n'
        f'<text x="10" y="{height - 9}" class="s">{escape(said)}</text></svg>\n'
    )


def main(arguments: list[str]) -> int:
    """The exit code."""
    if not arguments:
        sys.stderr.write("expected the address of a Prometheus, such as http://127.0.0.1:9090\n")
        return 2
    base, minutes, target = (*arguments, *("", "15", str(HERE / "pictures"))[len(arguments) :])[:3]
    end = time.time()
    Path(target).mkdir(exist_ok=True)
    for path in sorted((HERE / "dashboards").glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        try:
            drawn = picture(base.rstrip("/"), board, end - 60 * float(minutes), end)
        except urllib.error.URLError as error:
            sys.stderr.write(
                f"expected Prometheus to answer at {base}, got: {error.reason}. Start it, or name another\n"
            )
            return 4
        (Path(target) / f"{path.stem}.svg").write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
