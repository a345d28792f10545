"""What was measured as Markdown tables: seconds, CPU seconds, memory, ratios and their geometric means."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import chart
from markdown import table
from workloads import WORKLOADS

#: engines that run on one machine only, in one process
SINGLE = ("duckdb", "polars", "daft")
TITLES = {
    "headwater": "Headwater",
    "dask": "Dask",
    "spark": "PySpark",
    "ray": "Ray Data",
    "duckdb": "DuckDB",
    "polars": "Polars",
    "daft": "Daft",
}
BEGIN, END = "<!-- results: written by benchmarks/compare.py -->", "<!-- end of results -->"

Row = dict[str, Any]


def line(workload: str, rows: Sequence[Row]) -> str:
    """One line about a workload, for whoever waits."""

    def cell(row: Row) -> str:
        if not row["ok"]:
            return "-" if row["missing"] else "FAILED"
        if row["seconds"] is None:
            return "right"
        return f"{row['seconds']:.2f} s, {row['cpu_seconds']:.2f} CPU s, {row['peak_rss_mb']:.0f} MB"

    return f"{workload:12}" + " | ".join(f"{row['engine']} {cell(row)}" for row in rows)


def markdown(rows: Sequence[Row], scale: float, turns: int, cores: int) -> str:
    """Everything, as Markdown."""
    loads = [turn["load"] for row in rows for turn in row["turns"]]
    busy = f"load {min(loads):.1f} to {max(loads):.1f}" if loads else "nothing measured"
    versions = {name: text for row in rows for name, text in row["versions"].items()}
    about = (
        f"{date.today()}, scale {scale:g}, {cores} cores for each engine, of {os.cpu_count()} ({platform.machine()}), "
        f"{busy}. Median of {turns} interleaved turns after one that warms up; every answer of every turn checked. "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + "."
    )
    parts = [
        about,
        "**Seconds**",
        _figures(rows, "seconds", lambda seconds: round(seconds, 3 if seconds < 0.1 else 2)),
        "**CPU seconds**, of all processes of an engine together",
        _figures(rows, "cpu_seconds", lambda seconds: round(seconds, 2)),
        "**Peak memory**, MB: resident pages of all processes of an engine; those that several share count for each",
        _figures(rows, "peak_rss_mb", round),
    ]
    if any(row["engine"] == "headwater" and row["ok"] for row in rows):
        parts += [
            "**Headwater's seconds divided by the others'**: below 1 it is faster; means are over what both did",
            _ratios(rows),
        ]
    if failures := [row for row in rows if not row["ok"]]:
        parts.append(_reasons(failures))
    return "\n\n".join(parts)


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing.

    Example:
        >>> geometric_mean([0.5, 2.0])
        1.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def replace_section(path: Path, text: str, rows: Sequence[Row]) -> None:
    """Put the tables between the two markers of a Markdown file, and the chart beside it.

    Raises:
        ValueError: the file lacks the markers.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r} for the tables to go between.")
    picture = path.with_suffix(".svg")
    picture.write_text(chart.svg(_seconds(rows), {name: w.title for name, w in WORKLOADS.items()}, TITLES))
    path.write_text(
        f"{before}{BEGIN}\n\n{text}\n\n![Seconds by workload and engine]({picture.name})\n\n{END}{after}"
    )


def _seconds(rows: Sequence[Row], what: str = "seconds") -> dict[str, dict[str, float]]:
    """By workload and engine, in the order in which they ran; what failed or wasn't measured is left out."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["workload"], {})
        if row["ok"] and row[what] is not None:
            found[row["workload"]][row["engine"]] = row[what]
    return found


def _engines(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["engine"] for row in rows))


def _figures(rows: Sequence[Row], what: str, shown: Callable[[float], float]) -> str:
    engines = _engines(rows)
    instead = {
        (row["workload"], row["engine"]): "too long" if row["over_limit"] else "failed"
        for row in rows
        if not row["ok"] and not row["missing"]
    }
    body = [
        [
            WORKLOADS[workload].title,
            *(
                f"{shown(by_engine[engine]):g}"
                if engine in by_engine
                else instead.get((workload, engine), "-")
                for engine in engines
            ),
        ]
        for workload, by_engine in _seconds(rows, what).items()
    ]
    return table(["", *(TITLES[engine] for engine in engines)], body)


def _ratios(rows: Sequence[Row]) -> str:
    others = [engine for engine in _engines(rows) if engine != "headwater"]
    columns: dict[str, dict[str, float]] = {engine: {} for engine in others}
    columns["best"] = {}
    seconds = {name: found for name, found in _seconds(rows).items() if "headwater" in found}
    for workload, by_engine in seconds.items():
        ours = by_engine["headwater"]
        for engine in others:
            if engine in by_engine:
                columns[engine][workload] = ours / by_engine[engine]
        if single := [by_engine[engine] for engine in SINGLE if engine in by_engine]:
            columns["best"][workload] = ours / min(single)
    last = [
        ["geometric mean", *(_ratio(geometric_mean(column.values())) for column in columns.values())],
        ["highest", *(_ratio(max(column.values(), default=None)) for column in columns.values())],
        ["of workloads", *(f"{len(column)}" for column in columns.values())],
    ]
    body = [
        [WORKLOADS[name].title, *(_ratio(column.get(name)) for column in columns.values())]
        for name in seconds
    ]
    head = [
        "",
        *(TITLES[engine] for engine in others),
        "best of " + ", ".join(TITLES[name] for name in SINGLE),
    ]
    return table(head, [*body, *last])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _reasons(failures: Sequence[Row]) -> str:
    by_reason: dict[str, list[str]] = {}
    for row in failures:
        reason = (
            f"{TITLES[row['engine']]} {row['reason']}"
            if row["missing"]
            else f"{TITLES[row['engine']]}: {row['reason']}"
        )
        by_reason.setdefault(reason, []).append(WORKLOADS[row["workload"]].title)
    return "\n".join(f"- {', '.join(titles)}: {reason}." for reason, titles in by_reason.items())
