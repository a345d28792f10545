"""What every test shares: a home of their own for journals and scratch; and how several processes share the tests.

``make test`` runs pytest with ``-n 2``: the files of tests are handed out one at a time, those that take longest first.
All that kill and stop processes go to one of the two, one after the other, so that they don't slow each other down.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# on a busy machine examples are drawn slowly, and few of a small number may be of use: neither is a failure
settings.register_profile("tests", suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile("tests")

#: folders in the order in which their files are handed out; the rest comes last
FOLDERS = ("tests/fault/", "tests/cluster/", "tests/property/")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory):
    """Keep the journals of the tests' runs out of the user's; and use no GPU where a test doesn't ask for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HEADWATER_BACKEND", "numpy")
        yield


def turn(nodeid: str) -> int:
    """When a test is handed out."""
    return next((i for i, folder in enumerate(FOLDERS) if nodeid.startswith(folder)), len(FOLDERS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Without pytest-xdist, or without ``-n``, nobody asks."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return FOLDERS[0] if turn(nodeid) == 0 else nodeid.split("::")[0]

    config.option.loadscopereorder = False  # it would sort by the number of tests
    return ByFile(config, log)
