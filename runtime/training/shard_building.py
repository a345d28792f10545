"""Shard building: bring a job's shards onto this node, and tell what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ..nodes.node_store import NodeStore
from ..workers.fetch import Fetcher
from .job import PrepareOrders, ShardSummary, TrainJob
from .shard_source import PreparedShard, ShardPlan, ShardSource, cached_rows


def shard_source(
    job: TrainJob,
    part: str,
    store: NodeStore,
    fetcher: Fetcher,
    orders: PrepareOrders | None = None,
    cancelled: threading.Event | None = None,
) -> ShardSource:
    """Make what reads the shards of a part ("train", "validation") of a job's rows on this node."""
    return ShardSource(
        job.run,
        job.names[part],
        job.schemas[part],
        job.kernel.features,
        store,
        fetcher,
        orders.nodes if orders is not None else {},
        quota_bytes=job.quota_bytes,
        cancelled=cancelled or threading.Event(),
    )


def build_shards(
    job: TrainJob, orders: PrepareOrders, store: NodeStore, fetcher: Fetcher, cancelled: threading.Event
) -> Iterator[tuple[str, ShardSource, PreparedShard]]:
    """Bring shards onto this node; those that are there already cost nothing.

    Yields:
        The part, what reads it, and the shard.

    Raises:
        As `ShardSource.prepare`.
    """
    for part, plans in orders.plans.items():
        source = shard_source(job, part, store, fetcher, orders, cancelled)
        for prepared in source.prepare(plans, job.kernel.strategy.cache, orders.widths):
            yield part, source, prepared


def summary_of(part: str, prepared: PreparedShard) -> ShardSummary:
    """Tell what is known of a shard."""
    plan = prepared.plan
    return ShardSummary(part, plan.index, plan.rows, dict(prepared.widths), prepared.target_range)


def held_shards(job: TrainJob, store: NodeStore, fetcher: Fetcher) -> list[int]:
    """Return the shards whose training rows this node has as arrays."""
    source, bounds = shard_source(job, "train", store, fetcher), job.bounds["train"].tolist()
    found = []
    for index, (first, stop) in enumerate(zip(bounds, bounds[1:])):
        kept = cached_rows(stop - first, job.kernel.strategy.cache)
        if kept and source.find(ShardPlan(index, first, kept, ())) is not None:
            found.append(index)
    return found
