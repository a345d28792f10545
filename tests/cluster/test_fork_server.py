"""Workers of a local cluster that are forked: independent of each other, and in this process's environment."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import headwater as hw
from headwater.runtime.fork_server import warm_up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are spawned elsewhere"),
]


def look():
    import numpy
    import psutil

    parent = " ".join(psutil.Process(os.getppid()).cmdline())
    return (
        parent,
        numpy.random.random(),
        os.environ.get("HEADWATER_TEST_SAYS"),
        os.getcwd(),
        hash("headwater"),
    )


def test_forked_workers_draw_numbers_of_their_own_and_see_the_present_environment(monkeypatch):
    assert warm_up()
    monkeypatch.setenv("HEADWATER_TEST_SAYS", "it came later")
    with hw.Session(workers=2, progress=False, journal=False) as session:
        answers = list(session._executor.client.run(look).values())
        assert hw.range(1000, partitions=4).agg(total=hw.sum("id")).compute().to_pydict() == {
            "total": [499500]
        }
    parents, numbers, says, folders, hashes = map(set, zip(*answers, strict=True))
    assert all("forkserver" in parent for parent in parents)
    assert len(numbers) == 2
    assert np.random.random() not in numbers
    assert says == {"it came later"}
    assert folders == {os.getcwd()}
    assert len(hashes) == 1


def test_a_server_that_the_program_has_set_up_for_itself_is_left_alone():
    code = (
        "import multiprocessing as mp; mp.set_forkserver_preload(['json']); "
        "from headwater.runtime.fork_server import warm_up; assert not warm_up(); "
        "from multiprocessing import forkserver; assert forkserver._forkserver._preload_modules == ['json']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
