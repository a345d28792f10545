"""What every test shares: journals and scratch folders of their own, so that nothing is left behind."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory):
    """Keep the journals of the tests' runs out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_HOME", str(tmp_path_factory.mktemp("home")))
        yield
