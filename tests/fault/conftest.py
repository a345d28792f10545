"""One cluster of real processes for all tests that break one and leave it to be mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headwater.chaos.cluster import ChaosCluster


@pytest.fixture(scope="session")
def lasting_cluster() -> Iterator[ChaosCluster]:
    with ChaosCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(lasting_cluster: ChaosCluster, request: pytest.FixtureRequest) -> ChaosCluster:
    """The cluster, whole, with as many nodes as the module's ``NODES``; each test mends it for itself."""
    lasting_cluster.size = request.module.NODES
    lasting_cluster.mend()
    return lasting_cluster
