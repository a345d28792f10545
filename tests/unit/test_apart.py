"""Folders that the file system is asked to place apart."""

from pathlib import Path

from headwater.runtime.nodes.apart import place_apart
from headwater.runtime.nodes.node_store import NodeStore


def test_asking_changes_nothing_else_and_may_be_refused(tmp_path: Path):
    (tmp_path / "runs").mkdir(mode=0o700)
    first = place_apart(tmp_path / "runs")
    assert place_apart(tmp_path / "runs") is first
    assert not place_apart(Path("/proc"))
    assert not place_apart(tmp_path / "absent")
    (tmp_path / "runs" / "r1").mkdir()
    store = NodeStore(tmp_path)
    assert store.runs() == ["r1"]
    assert oct((tmp_path / "runs").stat().st_mode & 0o777) == "0o700"
