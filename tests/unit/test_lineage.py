"""Lineage of a run: replayed from its journal, drawn as a tree, priced; all expected values by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater.cli import OK, USAGE, execute
from headwater.errors import ParameterError, PlanError
from headwater.lineage.fingerprint import Fingerprint
from headwater.lineage.graph import Dependency, Edge, LineageGraph
from headwater.lineage.history import Fate, History
from headwater.lineage.journal import read
from headwater.lineage.restored import Restored, Result
from headwater.lineage.tree import ancestry, fingerprint_of, places, rebuild_cost
from headwater.ops.kernel import Kernel
from headwater.ops.source import Source
from headwater.planner.plan import (
    BlockLeaf,
    BroadcastLeaf,
    PhysicalPlan,
    ScanLeaf,
    ShuffleLeaf,
    Stage,
    Step,
    UnionStep,
    all_leaves,
    leaves_of,
)
from headwater.runtime.lineage_text import lineage_text
from headwater.runtime.stage_inputs import lineage_of

SCHEMA = pa.schema([("x", pa.int64())])


def digest(*values: int) -> str:
    return Fingerprint(SCHEMA).update(pa.table({"x": pa.array(values, pa.int64())})).hexdigest()


#: two scans; the second is broadcast into a map of the first; its rows are reduced; and written
PLAN = [
    "plan",
    [
        [0, "k0", "scan rides", 4, [], False],
        [1, "k1", "scan zones", 1, [], False],
        [2, "k2", "join", 4, [[0, "narrow", 0, 4], [1, "broadcast", 0, 4]], False],
        [3, "k3", "totals", 2, [[2, "wide", 0, 2]], False],
        [4, "k4", "write", 4, [[2, "narrow", 0, 4]], True],
    ],
    {"totals": 3, "files": 4},
]
STARTED = ["started", {"run": "r1", "pipeline": "rides"}]


def task(stage: int, partitions: list[int], node: str, seconds: float, attempt: int = 0) -> list:
    results = [[p, 10 * (p + 1), 100 * (p + 1), digest(stage, p)] for p in partitions]
    return ["task", stage, 0, attempt, node, results, seconds]


MADE = [
    STARTED,
    PLAN,
    task(0, [0, 1], "a", 2.0),
    task(0, [2, 3], "b", 4.0),
    ["stage", 0, 100],
    task(1, [0], "b", 1.0),
    ["stage", 1, 10],
    task(2, [0, 1], "a", 6.0),
    task(2, [2, 3], "b", 8.0),
    ["stage", 2, 100],
]
WHOLE = [
    *MADE,
    task(3, [0], "a", 0.5),
    task(3, [1], "b", 0.25),
    ["stage", 3, 30],
    task(4, [0, 1, 2, 3], "a", 1),
]
WHOLE += [["stage", 4, 100], ["committing", "files", []], ["committed", "files"], ["finished", {}]]


def fates(history: History) -> list[str]:
    return ["".join("-HDLS"[fate] for fate in stage.fate) for stage in history.stages]


def drawn(graph: LineageGraph, stage: int, partition: int) -> list[tuple]:
    return [
        (len(b.lasts), b.stage, b.partitions.tolist(), b.known) for b in ancestry(graph, stage, partition)
    ]


def test_blocks_go_when_all_who_read_them_are_finished_and_outputs_stay():
    assert fates(History(MADE[:6])) == ["HHHH", "H", "----", "--", "----"]
    assert fates(History(MADE)) == ["DDDD", "D", "HHHH", "--", "----"]
    assert fates(History(WHOLE)) == ["DDDD", "D", "DDDD", "HH", "HHHH"]


def test_a_lost_node_takes_its_blocks_and_reruns_bring_them_back():
    lost = [*MADE, ["worker lost", "tcp://b", "b", True]]
    assert fates(History([*MADE, ["worker lost", "tcp://b", "b", False]])) == fates(History(MADE))
    assert fates(History(lost)) == ["DDDD", "D", "HHLL", "--", "----"]
    rerun = [*lost, ["rerun", 0, [2, 3]], ["rerun", 1, [0]], ["rerun", 2, [2, 3]], task(0, [2, 3], "a", 1, 1)]
    assert fates(History(rerun)) == ["DDHH", "L", "HHLL", "--", "----"]
    done = [*rerun, ["stage", 0, 1], task(1, [0], "a", 1, 1), ["stage", 1, 1], task(2, [2, 3], "a", 1, 1)]
    assert fates(History(done)) == ["DDHH", "H", "HHHH", "--", "----"]
    assert fates(History([*done, ["stage", 2, 1]])) == ["DDDD", "D", "HHHH", "--", "----"]


def test_a_run_that_failed_leaves_nothing():
    history = History([*MADE, ["failed run", {"error": "no"}]])
    assert history.state == "failed"
    assert fates(history) == ["DDDD", "D", "DDDD", "--", "----"]


def test_what_nodes_tell_replaces_the_journals_places_but_not_for_strays_or_sinks():
    history = History(WHOLE)
    history.observe([("c", 3, 1, 0), ("a", 3, 0, 7), ("a", 0, 2, 0), ("a", 99, 0, 0), ("a", 3, 50, 0)])
    assert fates(history) == ["DDHD", "D", "DDDD", "LH", "HHHH"]
    assert places(history, next(ancestry(history.graph, 3, 1))) == {"c": 1}
    assert places(history, next(ancestry(history.graph, 3, 0))) == {"lost": 1}
    assert places(history, next(ancestry(history.graph, 4, 0))) == {"sink": 1}


def test_a_copy_takes_the_place_of_a_lost_block_once():
    copied = [*MADE, ["replicated", 2, 2, "a"], ["replicated", 2, 2, "c"], ["replicated", 2, 2, "b"]]
    assert places(History(copied), next(ancestry(History(copied).graph, 2, 2))) == {"b, +2 copies": 1}
    lost = [*copied, ["worker lost", "tcp://b", "b", True, "hung", 2.6]]
    history = History(lost)
    assert fates(history) == ["DDDD", "D", "HHHL", "--", "----"]
    assert places(history, next(ancestry(history.graph, 2, 2))) == {"a, +1 copy": 1}
    assert places(history, next(ancestry(history.graph, 3, 0))) == {"not run": 1}
    wide = list(ancestry(history.graph, 3, 0))[1]
    assert places(history, wide) == {"a": 2, "a, +1 copy": 1, "lost": 1}
    gone = History([*lost, ["worker lost", "tcp://a", "a", True], ["worker lost", "tcp://d", "d", True]])
    assert fates(gone) == ["DDDD", "D", "LLHL", "--", "----"]
    assert fates(History([*copied, ["worker lost", "x", "c", True], *lost[-1:]])) == fates(history)
    # another attempt has no copies, and no node keeps one for it
    other = ["adopted", 2, "b", [[2, 7, 30, 300, digest(2, 2)]]]
    assert fates(History([*copied, other, ["worker lost", "tcp://b", "b", True]]))[2] == "HHLL"
    remade = [*copied, ["rerun", 2, [2]], task(2, [2], "b", 1, 1), ["worker lost", "tcp://b", "b", True]]
    assert fates(History(remade)) == ["DDDD", "D", "HHLL", "--", "----"]


def test_moved_blocks_survive_the_node_they_left():
    records = [*MADE, ["replicated", 2, 0, "b"], ["moved", "b", "c", [[2, 2], [2, 3], [2, 0], [2, 1]]]]
    history = History([*records, ["worker lost", "tcp://b", "b", True, "left", 0.0]])
    assert fates(history) == ["DDDD", "D", "HHHH", "--", "----"]
    assert places(history, list(ancestry(history.graph, 3, 0))[1]) == {"c": 2, "a": 1, "a, +1 copy": 1}


def test_adopted_results_count_as_if_a_task_had_made_them():
    found = [[0, 10_003, 7, 70, digest(2, 0)], [3, 0, 40, 400, digest(2, 3)]]
    lost = [*MADE, ["worker lost", "tcp://b", "b", True]]
    history = History([*lost, ["failed run", {}], ["resumed", {"epoch": 1}], ["adopted", 2, "c", found]])
    assert (history.epoch, history.state) == (1, None)
    assert fates(history) == ["DDDD", "D", "HDLH", "--", "----"]
    stage = history.stages[2]
    assert (stage.rows.tolist(), stage.attempt.tolist()) == ([7, 20, 30, 40], [10_003, 0, 0, 0])
    assert stage.seconds.tolist() == [3.0, 3.0, 4.0, 4.0]  # what it took, whoever found it


def test_skipped_partitions_have_a_fate_of_their_own():
    records = [STARTED, PLAN, ["adopted", 2, "a", [[p, 0, 1, 10, digest(2, p)] for p in range(3)]]]
    history = History([*records, ["skipped", 0, [0, 1, 2]], ["skipped", 2, [0, 3]]])
    assert fates(history) == ["SSS-", "-", "HHHS", "--", "----"]
    assert places(history, next(ancestry(history.graph, 0, 1))) == {"skipped": 1}
    assert rebuild_cost(history, 3, 0).unmeasured == 1 + 1 + 1 + 1
    assert "skipped (3), not run (1)" in lineage_text(history, 3, 0)
    assert fates(History([*records, ["skipped", 0, [0]], task(0, [0], "a", 1)]))[0] == "H---"


def test_what_was_rolled_back_is_forgotten_and_what_is_made_again_is_not():
    again = [*MADE, ["boundaries", 2, "QQ=="]]
    rerun = History([*again, ["rerun", 2, [1]]]).restore()
    assert rerun.results[2][1] == Result(0, 20, 200, digest(2, 1), "a", fate=Fate.LOST)
    history = History([*again, ["rolled back", 2, [1, 2]]])
    assert fates(history) == ["DDDD", "D", "HLLH", "--", "----"]
    restored = history.restore()
    assert [result is None for result in restored.results[2]] == [False, True, True, False]
    assert restored.boundaries == {2: "QQ=="}
    assert rebuild_cost(history, 2, 1).unmeasured == 0  # what it took is known
    assert History([*again, ["rolled back", 2, [0, 1, 2, 3]]]).restore().boundaries == {}
    new = ["task", 2, 0, 1, "b", [[1, 5, 50, digest(9)]], 1.0]
    assert History([*again, ["rolled back", 2, [1]], new]).restore().results[2][1] == Result(
        1, 5, 50, digest(9), "b"
    )


def test_restore_agrees_with_an_oracle_by_hand():
    files = [["hidden/a.parquet", "a.parquet", 10, 100]]
    staged = ["task", 4, 0, 0, "a", [[0, 10, 100, digest(4, 0), files], [1, 0, 0, digest(), []]], 1.0]
    more = ["task", 4, 1, 10_000, "b", [[2, 30, 300, digest(4, 2), files]], 1.0]
    history = History(
        [
            *MADE,
            ["boundaries", 3, "QUJD"],
            ["replicated", 2, 0, "c"],
            staged,
            ["worker lost", "tcp://b", "b", True, "died", 0.0],
            ["resumed", {"epoch": 1, "time": 0.0, "host": "h", "pid": 1, "pid_started": 0.0}],
            ["adopted", 2, "c", [[2, 0, 30, 300, digest(2, 2)]]],
            more,
            ["some kind of a later version", 1, 2, 3],
            ["committing", "files", ["hidden/a.parquet"]],
        ]
    )

    def block(stage: int, p: int, node: str, fate: Fate, *copies: str) -> Result:
        return Result(0, 10 * (p + 1), 100 * (p + 1), digest(stage, p), node, fate=fate, copies=tuple(copies))

    held, deleted, lost = Fate.HELD, Fate.DELETED, Fate.LOST
    staged_files = (("hidden/a.parquet", "a.parquet", 10, 100),)
    assert history.restore() == Restored(
        epoch=1,
        state=None,
        results=(
            tuple(block(0, p, "aabb"[p], deleted) for p in range(4)),
            (block(1, 0, "b", deleted),),
            (
                block(2, 0, "a", held, "c"),
                block(2, 1, "a", held),
                block(2, 2, "c", held),
                block(2, 3, "b", lost),
            ),
            (None, None),
            (
                Result(0, 10, 100, digest(4, 0), "a", staged_files),
                Result(0, 0, 0, digest(), "a", ()),
                Result(10_000, 30, 300, digest(4, 2), "b", staged_files),
                None,
            ),
        ),
        boundaries={3: "QUJD"},
        committing=frozenset({"files"}),
        committed=frozenset(),
    )


def test_what_was_committed_stays_when_the_run_fails_later():
    records = [*WHOLE[:-1], ["failed run", {}]]
    assert fates(History(records)) == ["DDDD", "D", "DDDD", "DD", "HHHH"]
    restored = History(records).restore()
    assert (restored.state, restored.committing, restored.committed) == ("failed", set(), {"files"})


def test_nodes_that_tell_of_the_same_block_have_copies():
    history = History(WHOLE)
    history.observe([("c", 3, 1, 0), ("a", 3, 1, 0), ("a", 3, 0, 0)])
    assert places(history, next(ancestry(history.graph, 3, 1))) == {"c, +1 copy": 1}
    assert places(history, next(ancestry(history.graph, 3, 0))) == {"a": 1}


def test_the_tree_has_one_branch_for_a_wide_dependency_and_follows_narrow_ones():
    graph = History(MADE).graph
    assert drawn(graph, 3, 1) == [
        (0, 3, [1], False),
        (1, 2, [0, 1, 2, 3], False),
        (2, 0, [0, 1, 2, 3], False),
        (2, 1, [0], False),
    ]
    assert drawn(graph, 4, 2) == [
        (0, 4, [2], False),
        (1, 2, [2], False),
        (2, 0, [2], False),
        (2, 1, [0], False),
    ]


def test_a_tree_with_much_in_common_stays_short_and_a_deep_one_needs_no_recursion():
    depth = 5_000
    pairs = tuple((Edge(s, Dependency.NARROW, 0, 2), Edge(s, Dependency.WIDE, 0, 2)) for s in range(60))
    graph = LineageGraph((2,) * 61, ((), *pairs))
    assert len(drawn(graph, 60, 1)) < 4 * 60
    assert any(known for *_, known in drawn(graph, 60, 1))
    chain = LineageGraph((1,) * depth, ((), *((Edge(s, Dependency.NARROW, 0, 1),) for s in range(depth - 1))))
    assert sum(1 for _ in ancestry(chain, depth - 1, 0)) == depth


def test_cost_counts_what_is_gone_and_reads_what_is_there():
    cost = rebuild_cost(History([*MADE, ["worker lost", "tcp://b", "b", True]]), 3, 0)
    assert {s: p.tolist() for s, p in cost.partitions.items()} == {0: [2, 3], 1: [0], 2: [2, 3], 3: [0]}
    assert (cost.bytes, cost.seconds, cost.unmeasured, cost.reads) == (700 + 100 + 700, 4 + 1 + 8, 1, 2)
    whole = rebuild_cost(History(WHOLE), 3, 0, from_sources=True)
    assert (whole.count, whole.bytes, whole.seconds) == (10, 1000 + 100 + 1000 + 100, 6 + 1 + 14 + 0.5)
    one = rebuild_cost(History(WHOLE), 4, 2)
    assert {s: p.tolist() for s, p in one.partitions.items()} == {0: [2], 1: [0], 2: [2], 4: [2]}
    assert (one.bytes, one.seconds, one.reads) == (300 + 100 + 300 + 300, 2 + 1 + 4 + 0.25, 0)


def test_fingerprints_of_several_partitions_merge_in_order():
    stage = History(WHOLE).stages[0]
    assert fingerprint_of(stage, np.array([1, 3])) == digest(0, 1, 0, 3)
    assert fingerprint_of(History(MADE).stages[3], np.array([0])) is None


def test_the_text_of_a_tree():
    lines = lineage_text(History([*MADE, ["worker lost", "tcp://b", "b", True]]), 3, 0).splitlines()
    assert lines[0] == (
        "Run r1, rides, not ended. Places as journalled (--scheduler ADDRESS asks the nodes)."
    )
    table = [" ".join(line.split()) for line in lines[2:7]]
    merged = [
        fingerprint_of(History(MADE).stages[s], np.arange(n)).split("-")[1][:8] for s, n in ((2, 4), (1, 1))
    ]
    assert table[1] == "s3:0 0 0 B 0.0 s not run totals"
    assert table[2] == f"└─ s2:0-3 wide 100 1000 B 14.0 s a (2), lost (2) {merged[0]} join"
    assert table[4] == f"└─ s1:0 broadcast 10 100 B 1.0 s deleted {merged[1]} scan zones"
    assert lines[-2:] == [
        "To make it again: 6 partitions (s0:2-3, s1:0, s2:2-3, ...), 1.5 KiB, 13.0 s of tasks and "
        "1 partition that never ran, reading 2 others where they are.",
        "From the sources: 10 partitions (s0:0-3, s1:0, s2:0-3, ...), 2.1 KiB, 21.0 s of tasks and "
        "1 partition that never ran.",
    ]


@pytest.mark.parametrize(
    ("text", "found"), [("totals:1", (3, 1)), ("files:3", (4, 3)), ("s0:2", (0, 2)), ("s3:0", (3, 0))]
)
def test_a_partition_is_found_by_output_or_stage(text, found):
    assert History(MADE).locate(text) == found


def test_an_index_is_enough_for_a_single_output_and_an_output_may_look_like_a_stage():
    single = copy.deepcopy(PLAN)
    single[2] = {"s0": 3}
    history = History([STARTED, single])
    assert history.locate("1") == (3, 1)
    assert history.locate("s0:1") == (3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("total:0", "no output or stage 'total'. Did you mean 'totals'"),
        ("totals:2", "totals has no partition 2: it has partitions 0 to 1"),
        ("s1:1", "s1 has no partition 1: it has partition 0 only"),
        ("totals", "write OUTPUT:INDEX or sSTAGE:INDEX, as totals:0. Did you mean 'totals'"),
        ("totals:-1", "write OUTPUT:INDEX"),
        ("1", "write OUTPUT:INDEX"),
        ("", "write OUTPUT:INDEX"),
    ],
)
def test_an_unknown_partition_is_refused_with_what_was_likely_meant(text, message):
    with pytest.raises(ParameterError, match=message):
        History(MADE).locate(text)


def test_a_run_without_a_plan_is_named():
    with pytest.raises(ParameterError, match="run r1 ended before it was planned"):
        History([STARTED])


@pytest.mark.parametrize(
    ("counts", "edge"),
    [
        ((2, 2), Edge(1, Dependency.WIDE, 0, 2)),
        ((2, 2), Edge(0, Dependency.WIDE, 0, 3)),
        ((2, 3), Edge(0, Dependency.NARROW, 0, 3)),
    ],
)
def test_edges_that_do_not_fit_are_refused(counts, edge):
    with pytest.raises(PlanError, match="stage 1"):
        LineageGraph(counts, ((), (edge,)))


def test_the_graph_of_a_plan_agrees_with_what_each_partition_reads():
    def block(slot: int, stage: int) -> BlockLeaf:
        return BlockLeaf(slot, stage, SCHEMA)

    scan = ScanLeaf(0, Source(), ("x",), None, None, SCHEMA)
    shuffle, small = ShuffleLeaf(1, 1, SCHEMA), BroadcastLeaf(2, 0, SCHEMA)
    union = UnionStep(((Step(Kernel(), (shuffle, small), SCHEMA), 3), (block(3, 0), 2), (scan, 1)), SCHEMA)
    stages = (
        Stage(0, "a", "scan", scan, 2, SCHEMA),
        Stage(1, "b", "map", block(4, 0), 2, SCHEMA),
        Stage(2, "c", "union", union, 6, SCHEMA),
    )
    graph = lineage_of(PhysicalPlan(stages, {"out": 2}))
    for partition in range(6):
        expected = {(s, p) for s in (0, 1) for p in range(2) if reads(union, partition, s, p)}
        parents = graph.parents(graph.select(2, [partition]))
        assert {(s, int(p)) for s, mask in enumerate(parents) for p in np.flatnonzero(mask)} == expected
    assert {leaf.stage for leaf in all_leaves(union) if leaf is not scan} == set(graph.sources[2])


def reads(operator, partition: int, stage: int, other: int) -> bool:
    leaves = [pair for pair in leaves_of(operator, partition) if getattr(pair[0], "stage", None) == stage]
    return any(not isinstance(leaf, BlockLeaf) or local == other for leaf, local in leaves)


@pytest.fixture
def run(tmp_path) -> tuple[str, str, list[dict]]:
    """A run by hand: 6 rows in 3 partitions, summed by key; its id, its journals, its totals."""
    journals = str(tmp_path / "journals")
    rows = hw.range(6, partitions=3).with_columns(key=hw.col("id") % 2)
    with hw.Session("inline", journal=journals) as session:
        totals = rows.group_by("key").agg(total=hw.sum("id")).sort("key")
        with session.run({"totals": totals}, name="sums") as result:
            return result.report.run, journals, result.table("totals").to_pylist()


def test_the_command_prints_the_lineage_of_a_real_run(run, capsys):
    name, journals, totals = run
    assert totals == [{"key": 0, "total": 6}, {"key": 1, "total": 9}]
    assert execute(["lineage", name, "totals:0", "--journal", journals]) == OK
    out = capsys.readouterr().out
    assert f"Run {name}, sums, finished. Places as journalled" in out
    history = History(read(name, journals))
    made, source = history.stages[history.outputs["totals"]], history.stages[0]
    assert made.fate.tolist() == [Fate.HELD]
    table = pa.Table.from_pylist(totals)
    assert made.fingerprints == [Fingerprint(table.schema).update(table).hexdigest()]
    assert source.rows.tolist() == [2, 2, 2]  # each partition has an even and an odd id
    assert source.fate.tolist() == [Fate.DELETED] * 3
    assert execute(["lineage", name, "0", "--journal", journals]) == OK
    assert capsys.readouterr().out == out


def test_the_command_refuses_unknown_runs_and_partitions_with_near_matches(run, capsys):
    name, journals, _ = run
    assert execute(["lineage", name[:-1], "0", "--journal", journals]) == USAGE
    assert f"Did you mean '{name}'?" in capsys.readouterr().err
    assert execute(["lineage", name, "total:0", "--journal", journals]) == USAGE
    assert "Did you mean 'totals'?" in capsys.readouterr().err
    assert execute(["lineage", name, "0", "--journal", journals, "--scheduler", "nowhere"]) == USAGE
    assert "isn't the address of a Dask scheduler" in capsys.readouterr().err


def test_the_journal_of_a_small_run_is_a_few_kilobytes(run):
    name, journals, _ = run
    decisions = [
        r for r in read(name, journals) if r[0] in ("started", "plan", "task", "stage", "boundaries")
    ]
    assert len(json.dumps(decisions)) < 4_000
    assert sum(path.stat().st_size for path in Path(journals, name).glob("0*.json")) < 10_000
