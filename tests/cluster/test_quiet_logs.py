"""Dask's own log lines stay unseen while a local cluster lives, however the lives of several overlap."""

from __future__ import annotations

import io
import logging

import pytest

from headwater.runtime.cluster import HeadwaterCluster, start_local

pytestmark = pytest.mark.cluster


@pytest.fixture
def printed():
    """What Dask prints at INFO, as it would to stderr."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setLevel(logging.INFO)
    logger = logging.getLogger("distributed")
    level, logger.level = logger.level, logging.INFO
    logger.addHandler(handler)
    yield text, handler
    logger.removeHandler(handler)
    logger.level = level


def test_a_cluster_that_outlives_another_stays_quiet_until_it_is_closed(printed):
    text, handler = printed
    opened = [start_local(1, processes=False) for _ in range(2)]
    for cluster, client in opened:
        client.close()
        cluster.close()
        cluster.close()
    assert text.getvalue() == ""
    assert handler.level == logging.INFO
    logging.getLogger("distributed.scheduler").info("somebody else's cluster")
    assert "somebody else's cluster" in text.getvalue()


def test_a_cluster_that_does_not_start_leaves_the_levels_as_they_were(printed):
    with pytest.raises(TypeError, match="security"):
        HeadwaterCluster(processes=False, security="none at all")
    assert printed[1].level == logging.INFO
