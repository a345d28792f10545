"""Persisted rows when nodes die for real, scratch and all: copies are read, and what has none is made again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import headwater as hw
from headwater import Dataset, Session
from headwater.chaos.cluster import ChaosCluster, Node

pytestmark = [pytest.mark.cluster, pytest.mark.fault]

NODES, PARTITIONS = 3, 12


@pytest.fixture
def session(cluster: ChaosCluster) -> Iterator[Session]:
    cluster.mend()
    with Session(cluster.address, progress=False) as session:
        yield session


def rides(salt: int) -> Dataset:
    """Rows that no other test persists."""
    return hw.range(120_000, partitions=PARTITIONS).with_columns(
        zone=hw.col("id") % 50, fare=hw.col("id") + salt
    )


def totals(rows: Dataset) -> Dataset:
    return rows.group_by("zone").agg(total=hw.sum("fare")).sort("zone")


def attempts(result) -> list[int]:
    return [stage.attempts for stage in result.report.stages]


@contextmanager
def ran(session: Session, rows: Dataset) -> Iterator:
    with session.run({"totals": totals(rows)}) as result:
        yield result


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holders(cluster: ChaosCluster) -> dict[str, int]:
    """How many kept blocks each node has."""
    return {node.name: len(list(node.scratch.glob("kept/*/p*.arrow"))) for node in cluster.nodes}


def kill(cluster: ChaosCluster, session: Session, node: Node) -> None:
    """Kill a node with its files, and wait until the session knows."""
    id = node.id
    cluster.kill_node(node)
    wait_until(lambda: id not in {worker.node for worker in session._executor.workers()})


def test_copies_are_read_when_a_node_dies_and_nothing_is_run_again(cluster: ChaosCluster, session: Session):
    kept = rides(1).persist(replicas=2)
    with ran(session, kept) as first:
        digest = first.digest("totals")
    before = holders(cluster)
    victim = max(cluster.nodes, key=lambda node: before[node.name])
    assert before[victim.name] > 0
    kill(cluster, session, victim)
    with ran(session, kept) as second:
        assert attempts(second)[0] == 0
        assert second.digest("totals") == digest
        assert second.report.recovery.adopted == PARTITIONS
    # and each partition is on two nodes again
    left = {node.name: {p.name for p in node.scratch.glob("kept/*/p*.arrow")} for node in cluster.nodes}
    assert sum(map(len, left.values())) == 2 * PARTITIONS
    assert all(len(names) == PARTITIONS for names in left.values() if names)
    kept.unpersist(session)
    assert sum(holders(cluster).values()) == 0


def test_what_a_node_took_with_it_is_made_again_once_and_kept_again(cluster: ChaosCluster, session: Session):
    kept = rides(2).persist()
    with ran(session, kept) as first:
        digest = first.digest("totals")
    before = holders(cluster)
    assert sum(before.values()) == PARTITIONS
    victim = max(cluster.nodes, key=lambda node: before[node.name])
    kill(cluster, session, victim)
    with ran(session, kept) as second:
        assert second.report.recovery.adopted == PARTITIONS - before[victim.name]
        assert second.report.stages[0].rows_out == 120_000 // PARTITIONS * before[victim.name]
        assert second.digest("totals") == digest
    with ran(session, kept) as third:
        assert attempts(third)[0] == 0
        assert third.report.recovery.adopted == PARTITIONS
        assert third.digest("totals") == digest
    kept.unpersist(session)


def test_a_node_that_dies_while_copies_are_read_costs_nothing_persisted(
    cluster: ChaosCluster, session: Session
):
    kept = rides(3).persist(replicas=2)
    with ran(session, kept) as first:
        digest = first.digest("totals")
    before = holders(cluster)
    victim = max(cluster.nodes, key=lambda node: before[node.name])

    def kill_once(batch):
        import os
        import signal
        from pathlib import Path

        marker = Path(folder) / "killed"
        here = scratch in Path("/proc/self/cmdline").read_text().split("\0")
        if here and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    folder, scratch = str(cluster.folder), str(victim.scratch)
    slowed = kept.map_batches(kill_once, schema=kept.schema)
    with ran(session, slowed) as second:
        assert second.digest("totals") == digest
        assert attempts(second)[0] == 0
        assert second.report.recovery.nodes_lost == 1
    kept.unpersist(session)


def test_a_node_that_leaves_while_what_it_keeps_is_read_hands_that_over(
    cluster: ChaosCluster, session: Session
):
    kept = rides(4).persist()
    with ran(session, kept) as first:
        digest = first.digest("totals")
    before = holders(cluster)
    leaving = max(cluster.nodes, key=lambda node: before[node.name])
    folder = str(cluster.folder)

    def wait_for_it(batch):
        import time
        from pathlib import Path

        (Path(folder) / "reading").touch()
        deadline = time.monotonic() + 60
        while not (Path(folder) / "left").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return batch

    def leave() -> None:
        wait_until((cluster.folder / "reading").exists)
        pid = leaving.workers[0].pid
        os.kill(pid, signal.SIGTERM)
        # it finishes its task first, and then hands over
        (cluster.folder / "left").touch()

    leaver = threading.Thread(target=leave)
    leaver.start()
    with ran(session, kept.map_batches(wait_for_it, schema=kept.schema)) as second:
        leaver.join()
        assert second.digest("totals") == digest
        assert attempts(second)[0] == 0
    wait_until(lambda: not leaving.workers[0].lives())
    with ran(session, kept) as third:
        assert attempts(third)[0] == 0
        assert third.digest("totals") == digest
    kept.unpersist(session)
