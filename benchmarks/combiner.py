"""Word count with and without partial counts before the exchange: the bytes that cross it, and the time.

The text is Zipf's: few words are most of it. With the planner's ``map_side_combine`` a task counts the words of its
partition, and exchanges words and counts; without, it exchanges each occurrence. Bytes are the run report's.

    python benchmarks/combiner.py --scale 1 --turns 3 --data .bench
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import datafiles
import markdown
import pyarrow as pa
import timing
from engines.headwater_engine import words

import headwater as hw
from headwater.session import plan

#: bytes without over bytes with partial counts
GOAL = 10.0


def run(session: hw.Session, text: Path) -> tuple[pa.Table, int]:
    """Count the words: the counts, and the bytes that crossed the exchange."""
    counts = hw.read_text(str(text)).map_batches(words, format="arrow").group_by("word").agg(count=hw.count())
    outputs = {"counts": counts}
    exchanged = {stage.id for stage in plan(outputs, session.options).stages if stage.exchange is not None}
    with session.run(outputs, name="word count") as result:
        crossed = sum(stage.bytes_out for stage in result.report.stages if stage.id in exchanged)
        return result.table("counts").sort_by("word"), crossed


def main() -> None:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of 300 MB")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    text = (options.data / f"text-{options.scale:g}.txt").resolve()
    if not text.exists():
        datafiles.write_text(text, int(datafiles.TEXT_BYTES * options.scale))
    before = markdown.load()
    found: dict[str, Any] = {}
    with hw.Session(workers=2, progress=False, journal=False) as session:
        ways = {
            "with": hw.PlanOptions(),
            "without": hw.PlanOptions(disabled_rules=frozenset({"map_side_combine"})),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        answers: dict[str, pa.Table] = {}
        for turn in range(options.turns + 1):
            for name, planned in ways.items():
                session.options = planned
                (answers[name], found[f"{name}: bytes"]), once = timing.timed(lambda: run(session, text))
                if turn:
                    taken[name].append(once)
            if not answers["with"].equals(answers["without"]):
                raise SystemExit("the counts differ")
    times = found["times"] = timing.medians(taken)
    rows = [[f"{name} partial counts", *times[name], found[f"{name}: bytes"] / 1e6] for name in ways]
    less = found["without: bytes"] / found["with: bytes"]
    print(
        f"Words of {text.stat().st_size / 1e6:,.0f} MB, {len(answers['with']):,} different ones, medians of "
        f"{options.turns} interleaved turns, {before} at the start, {markdown.load()} at the end\n\n"
        f"{markdown.table(['', 's', 'CPU s', 'MB exchanged'], rows)}\n\n{less:.0f} times less; the goal is {GOAL:.0f}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
