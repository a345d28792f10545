"""A chart of seconds as SVG: a line for each workload, a dot for each engine, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.sax.saxutils import escape

COLORS = {
    "headwater": "#0b6e4f",
    "dask": "#e07a1f",
    "spark": "#c0392b",
    "ray": "#2e86de",
    "duckdb": "#7f7f7f",
    "polars": "#8e44ad",
    "daft": "#b8860b",
}
LEFT, RIGHT, TOP, ROW, WIDTH = 150, 30, 60, 30, 820


def svg(
    seconds: Mapping[str, Mapping[str, float]], titles: Mapping[str, str], engines: Mapping[str, str]
) -> str:
    """Draw it.

    Args:
        seconds: by workload and engine.
        titles: of workloads, by name.
        engines: their names as shown, by name, in the order of the legend.

    Example:
        >>> svg({"sort": {"headwater": 2.0}}, {"sort": "sort"}, {"headwater": "Headwater"}).startswith("<svg")
        True
    """
    values = [value for by_engine in seconds.values() for value in by_engine.values()]
    low = math.floor(math.log10(min(values))) if values else -1
    high = max(math.ceil(math.log10(max(values))), low + 1) if values else 1
    height = TOP + ROW * len(seconds) + 30

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    present = [name for name in engines if any(name in by_engine for by_engine in seconds.values())]
    for i, name in enumerate(present):
        at = 20 + i * 112
        parts.append(f'<circle cx="{at}" cy="20" r="{_radius(name)}" fill="{COLORS[name]}"/>')
        parts.append(f'<text x="{at + 10}" y="24">{escape(engines[name])}</text>')
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<path d="M{at:.1f} {TOP - 8}V{height - 28}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 10}" text-anchor="middle">{10.0**power:g} s</text>')
    for i, (workload, by_engine) in enumerate(seconds.items()):
        y = TOP + i * ROW + ROW / 2
        parts.append(
            f'<text x="{LEFT - 12}" y="{y + 4:.0f}" text-anchor="end">{escape(titles[workload])}</text>'
        )
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#eee"/>')
        for name in sorted(by_engine, key="headwater".__eq__):  # Headwater's dot on top
            tip = f"{engines[name]}, {titles[workload]}: {by_engine[name]:.2f} s"
            parts.append(
                f'<circle cx="{x(by_engine[name]):.1f}" cy="{y}" r="{_radius(name)}" fill="{COLORS[name]}">'
                f"<title>{escape(tip)}</title></circle>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _radius(name: str) -> int:
    return 7 if name == "headwater" else 5
