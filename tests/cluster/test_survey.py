"""`headwater lineage --scheduler`: places are what the nodes tell, not what the journal lets expect."""

from __future__ import annotations

from pathlib import Path

import pytest

import headwater as hw
from headwater.cli import OK, execute
from headwater.lineage.history import History
from headwater.lineage.journal import read
from headwater.runtime.cluster import start_local
from headwater.runtime.nodes.node_store import read_identity
from headwater.runtime.survey import find_blocks

pytestmark = pytest.mark.cluster


def test_nodes_tell_which_blocks_they_have(tmp_path: Path, capsys):
    scratch, journals = tmp_path / "scratch", str(tmp_path / "journals")
    cluster, client = start_local(2, scratch=scratch)
    with cluster, client, hw.Session(client.scheduler.address, journal=journals, progress=False) as session:
        rows = hw.range(90, partitions=3).with_columns(half=hw.col("id") / 2)
        with session.run({"rows": rows}) as result:
            run, address = result.report.run, client.scheduler.address
            node = read_identity(scratch)
            attempts = History(read(run, journals)).stages[0].attempt.tolist()
            assert sorted(find_blocks(address, run)) == [(node, 0, p, attempts[p]) for p in range(3)]
            assert find_blocks(address, "no-such-run") == []

            (scratch / "runs" / run / "blocks" / f"s0-p1-a{attempts[1]}.arrow").unlink()
            places = []
            for partition in range(3):
                command = ["lineage", run, f"rows:{partition}", "--journal", journals]
                assert execute([*command, "--scheduler", address]) == OK
                out = capsys.readouterr().out
                assert "as the nodes say" in out
                places.append(next(word for word in out.split() if word in (node[:8], "lost")))
            assert places == [node[:8], "lost", node[:8]]
            assert execute([*command[:2], "rows:1", *command[3:]]) == OK
            assert "lost" not in capsys.readouterr().out  # the journal can't know
