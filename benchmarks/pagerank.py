"""PageRank over a power-law graph: links partitioned by their source once for all, beside links that move each time.

The RDD paper's experiment (its figure 10), on one machine. Links are persisted, and an iteration, a run of its own,
joins ranks to them, sums by target, and keeps the next ranks. Where the links lie by the hash of their source, and the
ranks by that of their page, only sums of contributions cross an exchange; else all links do, in each iteration. All are
told to shuffle, but the last: left to itself, the planner broadcasts ranks as few as these. Bytes that cross exchanges
are the run report's; the ranks are compared with NumPy's.

    python benchmarks/pagerank.py --pages 1000000 --links 12000000 --turns 3
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timing

import headwater as hw
from headwater import col
from headwater.session import plan

DAMPING = 0.85
#: the less, the more links the most popular page has: the share of the first x of the pages is x ** SKEW
SKEW = 0.35
#: rows of a row group
ROW_GROUP = 500_000
#: of the links, and of the ranks where both lie together
PARTITIONS = 8
#: goal: time without over time with partitioned links
SPEED_GOAL = 2.0


def draw(pages: int, links: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets of links: a ring, so that every page has both, and others between popular pages."""
    rng = np.random.default_rng(5)
    numbers = rng.permutation(pages)
    popular = [numbers[(pages * rng.random(links - pages) ** (1 / SKEW)).astype(np.int64)] for _ in range(2)]
    ring = np.arange(pages)
    order = rng.permutation(links)
    source, target = (np.concatenate(pair)[order] for pair in zip((ring, np.roll(ring, -1)), popular))
    return source, target


def prepare(path: Path, pages: int, links: int) -> None:
    """Write the graph, once: ``source``, ``target``, and ``share``, one over the links of the source."""
    if path.exists():
        return
    source, target = draw(pages, links)
    share = 1.0 / np.bincount(source, minlength=pages)[source]
    table = pa.table({"source": source, "target": target, "share": share})
    pq.write_table(table, path, row_group_size=ROW_GROUP)


def in_numpy(table: pa.Table, pages: int, iterations: int) -> np.ndarray:
    """The ranks by NumPy, by page."""
    source, target, share = (table[name].to_numpy() for name in ("source", "target", "share"))
    ranks = np.full(pages, 1.0 / pages)
    for _ in range(iterations):
        got = np.bincount(target, weights=ranks[source] * share, minlength=pages)
        ranks = (1 - DAMPING) / pages + DAMPING * got
    return ranks


@dataclass(frozen=True)
class Way:
    """How an iteration is planned.

    Attributes:
        links: the links, persisted or not.
        strategy: of the join.
        together: whether ranks are put where the links of their page are.
    """

    links: hw.Dataset
    strategy: str
    together: bool = False

    def step(self, ranks: hw.Dataset, pages: int) -> hw.Dataset:
        """One iteration: the next ranks."""
        given = self.links.join(ranks, left_on="source", right_on="page", strategy=self.strategy)
        got = given.group_by(page=col("target")).agg(got=(col("rank") * col("share")).sum())
        after = got.select("page", rank=(1 - DAMPING) / pages + DAMPING * col("got"))
        return after.repartition(PARTITIONS, by="page") if self.together else after


def run(session: hw.Session, dataset: hw.Dataset) -> int:
    """Compute a persisted dataset; the bytes that crossed exchanges."""
    outputs = {"result": dataset}
    exchanged = {stage.id for stage in plan(outputs, session.options).stages if stage.exchange is not None}
    with session.run(outputs, name="pagerank") as result:
        return sum(stage.bytes_out for stage in result.report.stages if stage.id in exchanged)


def iterate(session: hw.Session, way: Way, pages: int, iterations: int) -> tuple[pa.Table, int]:
    """Run all iterations from equal ranks, each a run of its own: the ranks, and the bytes that crossed exchanges."""
    ranks = hw.range(pages).select(page=col("id"), rank=hw.lit(1.0 / pages)).persist()
    crossed = run(session, ranks)
    for _ in range(iterations):
        before, ranks = ranks, way.step(ranks, pages).persist()
        crossed += run(session, ranks)
        before.unpersist(session)
    answer = ranks.compute(session)
    ranks.unpersist(session)
    return answer, crossed


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all ways in turn, and compare each answer."""
    table = pq.read_table(path)
    expected = in_numpy(table, options.pages, options.iterations)
    found: dict[str, Any] = {"links bytes": table.nbytes, "wrong": []}
    with hw.Session(workers=2, progress=False, journal=False) as session:
        scanned = hw.read_parquet(str(path))
        partitioned = scanned.repartition(PARTITIONS, by="source").persist()
        persisted = scanned.persist()
        found["once"] = run(session, partitioned)
        run(session, persisted)
        ways = {
            "partitioned": Way(partitioned, "shuffle", together=True),
            "not partitioned": Way(persisted, "shuffle"),
            "not partitioned, not persisted": Way(scanned, "shuffle"),
            "not partitioned, ranks broadcast": Way(persisted, "broadcast"),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(options.turns + 1):
            for name, way in ways.items():
                job = partial(iterate, session, way, options.pages, options.iterations)
                (answer, found[f"{name}: crossed"]), once = timing.timed(job)
                answer = answer.sort_by("page")
                if not np.allclose(answer["rank"].to_numpy(), expected, rtol=1e-9, atol=0):
                    found["wrong"].append(name)
                if turn:
                    taken[name].append(once)
    found["times"] = timing.medians(taken)
    return found


def tell(found: dict[str, Any]) -> str:
    """The table."""
    slow = found["times"]["not partitioned"]
    rows = [
        [
            name,
            *times,
            slow[0] / times[0],
            slow[1] / times[1],
            found["once"] / 1e6 if name == "partitioned" else 0.0,
            found[f"{name}: crossed"] / 1e6,
        ]
        for name, times in found["times"].items()
    ]
    head = ["links", "s", "CPU s", "faster by", "by CPU", "MB exchanged before", "MB in the iterations"]
    return markdown.table(head, rows)


def main() -> None:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--links", type=int, default=12_000_000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(".bench"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    path = (options.data / f"graph-{options.pages}-{options.links}.parquet").resolve()
    prepare(path, options.pages, options.links)
    before = markdown.load()
    found = measure(path, options)
    print(
        f"{options.iterations} iterations over {options.links:,} links of {options.pages:,} pages, "
        f"{found['links bytes'] / 1e6:,.0f} MB of links, medians of {options.turns} interleaved turns, "
        f"{before} at the start, {markdown.load()} at the end; the goal is {SPEED_GOAL} times faster\n\n{tell(found)}\n"
    )
    print("ranks: " + ("NumPy's" if not found["wrong"] else f"WRONG: {sorted(set(found['wrong']))}"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    raise SystemExit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
