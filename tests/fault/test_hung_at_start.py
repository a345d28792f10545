"""A worker that hangs while nobody looks doesn't keep the next driver from starting."""

from __future__ import annotations

import signal

import pytest

import headwater as hw
from headwater.chaos.cluster import ChaosCluster

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

NODES = 2


def test_a_session_joins_a_cluster_with_a_stopped_worker(cluster: ChaosCluster):
    rows = hw.range(1000, partitions=8).with_columns(key=hw.col("id") % 3).group_by("key").agg(n=hw.count())
    cluster.nodes[0].workers[0].signal(signal.SIGSTOP)
    with hw.Session(cluster.address) as session:
        assert rows.sort("key").compute(session)["n"].to_pylist() == [334, 333, 333]
