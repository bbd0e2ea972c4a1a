"""Draw the panels of a dashboard of Grafana as one SVG, which is readable on light and dark pages.

Each panel is a group with its title and, as its description, its queries.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final, NamedTuple

_UNIT: Final = (46.0, 21.0)
"""The size of a unit of Grafana's grid, in pixels."""
_GAP: Final = 8.0
_TITLE, _LEGEND, _AXIS = 20.0, 13.0, 48.0
_COLOURS: Final = 8
_STYLE: Final = """
svg { --text: #1f2328; --dim: #59636e; --line: #d1d9e0; --panel: #f6f8fa; }
.c0 { --c: #0969da } .c1 { --c: #bc4c00 } .c2 { --c: #1a7f37 } .c3 { --c: #8250df }
.c4 { --c: #cf222e } .c5 { --c: #9a6700 } .c6 { --c: #1b7c83 } .c7 { --c: #bf3989 }
@media (prefers-color-scheme: dark) {
  svg { --text: #f0f6fc; --dim: #9198a1; --line: #3d444d; --panel: #151b23; }
  .c0 { --c: #58a6ff } .c1 { --c: #f0883e } .c2 { --c: #3fb950 } .c3 { --c: #bc8cff }
  .c4 { --c: #ff7b72 } .c5 { --c: #d29922 } .c6 { --c: #39c5cf } .c7 { --c: #f778ba }
}
text { font: 11px system-ui, sans-serif; fill: var(--text) }
.dim { fill: var(--dim); font-size: 10px } .row { font-weight: 600; font-size: 12px }
.title { font-weight: 600 } .box { fill: var(--panel); stroke: var(--line) }
.grid { stroke: var(--line) } .key { fill: var(--c) }
.curve { fill: none; stroke: var(--c); stroke-width: 1.5; stroke-linejoin: round }
"""


class Series(NamedTuple):
    """The values of a query over time.

    Attributes:
        name: of the legend.
        points: times and values, in seconds and in the unit of the panel.
    """

    name: str
    points: Sequence[tuple[float, float]]


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float


class Times(NamedTuple):
    """The beginning and the end of all panels, in seconds."""

    start: float
    end: float


def draw(
    dashboard: Mapping[str, Any],
    series_of: Callable[[Mapping[str, Any]], list[Series]],
    times: Times,
) -> str:
    """Return the SVG.

    Args:
        dashboard: of Grafana, as JSON.
        series_of: returns the data of a target of a panel.
        times: the time on the axis of each panel.
    """
    panels = dashboard["panels"]
    right = max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels)
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = right * _UNIT[0], bottom * _UNIT[1]
    title = escape(dashboard["title"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for panel in panels:
        if panel["type"] == "row":
            x, y = _place(panel)[:2]
            parts.append(
                f'<text class="row" x="{x:g}" y="{y + 13:g}">{escape(panel["title"])}</text>'
            )
        else:
            series = [one for target in panel["targets"] for one in series_of(target)]
            parts += _panel(panel, series, times)
    return "\n".join([*parts, "</svg>", ""])


def _place(panel: Mapping[str, Any]) -> _Box:
    grid = panel["gridPos"]
    x, y, width, height = (grid[name] * _UNIT[name in "yh"] for name in "xywh")
    return _Box(x + _GAP / 2, y + _GAP / 2, width - _GAP, height - _GAP)


def _panel(panel: Mapping[str, Any], series: list[Series], times: Times) -> list[str]:
    box = _place(panel)
    queries = " ; ".join(target["expr"] for target in panel["targets"])
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "short")
    parts = [
        f"<g><title>{escape(panel['title'])}</title><desc>{escape(queries, quote=False)}</desc>",
        _rect("box", box),
        f'<text class="title" x="{box.x + 8:g}" y="{box.y + 15:g}">{escape(panel["title"])}</text>',
    ]
    if any(one.points for one in series):
        rows = _legend(box, series)
        parts += rows
        bottom = _LEGEND * len(rows)
        inner = _Box(
            box.x + _AXIS,
            box.y + _TITLE + 6,
            box.width - _AXIS - 8,
            box.height - _TITLE - 14 - bottom,
        )
        parts += _curves(inner, series, unit, times)
    else:
        middle = box.x + box.width / 2
        parts.append(
            f'<text class="dim" text-anchor="middle" x="{middle:g}" '
            f'y="{box.y + box.height / 2:g}">No data: nothing of the kind has happened.</text>'
        )
    return [*parts, "</g>"]


def _rect(kind: str, box: _Box) -> str:
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"'
    return f'<rect class="{kind}" {place} rx="4"/>'


def _legend(box: _Box, series: list[Series]) -> list[str]:
    """Return the lines of the legend, the last one at the bottom of the panel."""
    lines, x = [list[str]()], box.x + 8
    for number, one in enumerate(series):
        width = 18 + 5.6 * len(one.name)
        if lines[-1] and x + width > box.x + box.width:
            lines.append([])
            x = box.x + 8
        lines[-1].append(
            f'<rect class="key c{number % _COLOURS}" x="{x:g}" y="-7" width="8" height="8" rx="2"/>'
            f'<text class="dim" x="{x + 11:g}">{escape(one.name)}</text>'
        )
        x += width
    top = box.y + box.height - 6 - _LEGEND * (len(lines) - 1)
    return [
        f'<g transform="translate(0 {top + _LEGEND * number:g})">{"".join(line)}</g>'
        for number, line in enumerate(lines)
    ]


def _curves(box: _Box, series: list[Series], unit: str, times: Times) -> list[str]:
    top = _round_up(max(value for one in series for _, value in one.points))
    seconds = times.end - times.start
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = box.y + box.height * (1 - share)
        parts.append(
            f'<path class="grid" d="M{box.x:g} {y:.1f}H{box.x + box.width:g}"/>'
            f'<text class="dim" text-anchor="end" x="{box.x - 5:g}" y="{y + 3:.1f}">'
            f"{_in_unit(top * share, unit)}</text>"
        )
    for number, one in enumerate(series):
        places = [
            f"{box.x + box.width * (at - times.start) / seconds:.1f} "
            f"{box.y + box.height * (1 - max(0.0, value) / top):.1f}"
            for at, value in one.points
        ]
        parts.append(f'<path class="curve c{number % _COLOURS}" d="M{"L".join(places)}"/>')
    return parts


def _round_up(value: float) -> float:
    """Return the next number of the form 1, 2 or 5 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if value <= power * step * 1.0001)


def _in_unit(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:g} %"
    if unit == "s":
        return f"{1000 * value:g} ms" if value < 1 else f"{value:g} s"
    if unit == "Bps":
        return f"{value / 1000:g} kB/s"
    if unit == "currencyUSD":
        return f"${value:g}"
    return f"{value:g}/s" if unit == "ops" else f"{value:g}"
