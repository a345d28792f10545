"""Persisted and reused results in one process: what is computed once, what must be computed again, and the bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater import Dataset, Session
from headwater.errors import ParameterError, SinkExistsError, UserFunctionError
from headwater.ops.partitioner import KeySample
from headwater.planner.optimizer import optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan
from headwater.planner.plan import PhysicalPlan
from headwater.runtime.copies import choose_targets, lacking_copies
from headwater.runtime.nodes.private_scratch import lasting_scratch
from headwater.runtime.nodes.resident import Resident
from headwater.runtime.reuse import KEPT_ATTEMPT, choose_kept, reusable_stages
from headwater.runtime.scheduler_events import BlocksFound
from headwater.runtime.task import Block, PartitionResult

SMALL = PlanOptions(partition_bytes=2_000, broadcast_bytes=0)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session("inline", workers=2, scratch=tmp_path / "scratch", journal=False, options=SMALL) as session:
        yield session


@pytest.fixture
def reusing(tmp_path: Path) -> Callable[[], Session]:
    """Sessions one after the other on the same scratch folder."""
    return lambda: Session(
        "inline", scratch=tmp_path / "scratch", journal=False, options=SMALL, reuse=True, progress=False
    )


def rows(count: int = 1000) -> Dataset:
    return hw.range(count, partitions=4).with_columns(zone=hw.col("id") % 7)


class Calls:
    """How many rows a function has seen, counted in a file, as functions travel by value."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    @property
    def rows(self) -> int:
        return sum(map(int, self.path.read_text().split()))


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path / "calls")


def counted(calls: Calls) -> Dataset:
    """Rows that are counted when they are computed."""
    path = str(calls.path)

    def note(batch):
        if len(batch["id"]):
            with open(path, "a") as file:
                file.write(f"{len(batch['id'])} ")
        return batch

    return hw.range(1000, partitions=4).map_batches(note, schema={"id": "int64"})


def drawn() -> Dataset:
    """Rows with other numbers each time that they are computed."""

    def draw(batch):
        number = np.random.default_rng().integers(2**62)
        return {"id": batch["id"], "draw": np.full(len(batch["id"]), number)}

    schema = {"id": "int64", "draw": "int64"}
    return hw.range(1000, partitions=4).map_batches(draw, schema=schema, deterministic=False)


def attempts(result) -> list[int]:
    return [stage.attempts for stage in result.report.stages]


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("scratch/node-0/kept/*/p*.arrow"))


# -- persist -----------------------------------------------------------------------------------------


def test_the_first_run_computes_and_the_next_ones_read(session: Session):
    kept = rows().persist()
    asked = {
        "totals": kept.group_by("zone").agg(total=hw.sum("id")),
        "sorted": kept.sort("zone", descending=True),
        "all": kept,
    }
    fresh = {}
    for name, output in asked.items():
        with Session("inline", journal=False, options=SMALL) as other, other.run({name: output}) as result:
            fresh[name] = result.digest(name)
    assert kept.count(session) == 1000
    for name, output in asked.items():
        with session.run({name: output}) as result:
            assert attempts(result)[0] == 0
            assert result.report.recovery.adopted == 4
            assert result.digest(name) == fresh[name]


def test_it_is_lazy_and_changes_no_rows(session: Session, calls: Calls):
    kept = counted(calls).persist()
    assert calls.rows == 0
    assert kept.compute(session).equals(hw.range(1000).compute(session))
    assert calls.rows == 1000
    kept.compute(session)
    assert calls.rows == 1000


def test_only_what_is_made_from_the_returned_dataset_reads_it(session: Session, calls: Calls):
    plain = counted(calls)
    plain.persist().count(session)
    plain.count(session)
    assert calls.rows == 2000


def test_a_persisted_dataset_of_a_persisted_one(session: Session, calls: Calls):
    inner = counted(calls).persist()
    outer = inner.with_columns(twice=hw.col("id") * 2).persist()
    assert outer.agg(total=hw.sum("twice")).compute(session).to_pylist() == [{"total": 999_000}]
    with session.run({"out": outer}) as result:
        assert attempts(result) == [0, 0]
    outer.unpersist(session)
    outer.count(session)
    assert calls.rows == 1000


def test_streaming_keeps_what_was_read(session: Session, calls: Calls):
    kept = counted(calls).persist()
    assert sum(batch.num_rows for batch in kept.iter_batches(session=session)) == 1000
    assert kept.count(session) == 1000
    assert calls.rows == 1000


def test_what_was_deleted_is_computed_again_and_kept(session: Session, tmp_path: Path, calls: Calls):
    kept = counted(calls).persist()
    kept.count(session)
    kept_files(tmp_path)[2].unlink()
    with session.run({"out": kept}) as result:
        assert result.report.recovery.adopted == 3
        assert result.table("out")["id"].to_pylist() == list(range(1000))
    assert calls.rows == 1250
    kept.count(session)
    assert calls.rows == 1250


def test_unpersist_lets_go_and_says_how_much(session: Session, tmp_path: Path, calls: Calls):
    kept = counted(calls).persist()
    other = rows().persist()
    kept.count(session)
    other.count(session)
    sizes = sum(path.stat().st_size for path in kept_files(tmp_path))
    freed = kept.unpersist(session)
    assert 0 < freed < sizes
    assert sum(path.stat().st_size for path in kept_files(tmp_path)) == sizes - freed
    assert kept.unpersist(session) == 0
    kept.count(session)
    assert calls.rows == 2000


def test_unpersist_of_something_else_is_refused(session: Session):
    with pytest.raises(ParameterError, match=r"kept = ds.persist\(\)"):
        rows().unpersist(session)


@pytest.mark.parametrize("wish", [{"level": "ssd"}, {"replicas": 0}, {"replicas": 1.5}])
def test_wrong_wishes_are_refused_at_once(wish):
    with pytest.raises(ParameterError, match=r"persist\((level|replicas)="):
        rows().persist(**wish)


def test_a_store_that_is_too_small_costs_only_time(tmp_path: Path):
    kept = rows().persist()
    with Session(
        "inline", scratch=tmp_path / "scratch", kept="2 kB", journal=False, options=SMALL
    ) as session:
        first = kept.compute(session)
        assert kept.compute(session).equals(first)
    assert sum(path.stat().st_size for path in kept_files(tmp_path)) <= 2000


def test_persisted_rows_of_a_failed_run_stay(session: Session, calls: Calls):
    kept = counted(calls).persist()

    def breaks(batch):
        raise ValueError("no")

    with pytest.raises(UserFunctionError):
        kept.repartition(2).map_batches(breaks, schema={"id": "int64"}).compute(session)
    assert kept.count(session) == 1000
    assert calls.rows == 1000


# -- reuse -------------------------------------------------------------------------------------------


def totals(most: int) -> Dataset:
    by_zone = rows().group_by("id").agg(zone=hw.max("zone"))
    return by_zone.filter(hw.col("zone") < most).agg(n=hw.count(), total=hw.sum("zone"))


def test_a_pipeline_whose_end_changed_begins_where_it_changed(reusing):
    with reusing() as session, session.run({"out": totals(3)}) as result:
        assert 0 not in attempts(result)
    with reusing() as session, session.run({"out": totals(5)}) as result:
        assert attempts(result)[0] == 0
        assert attempts(result)[-1] > 0
        assert result.report.recovery.adopted > 0
        digest = result.digest("out")
    with Session("inline", journal=False, options=SMALL) as fresh, fresh.run({"out": totals(5)}) as result:
        assert result.digest("out") == digest


def test_the_same_pipeline_again_runs_nothing(reusing):
    with reusing() as session, session.run({"out": totals(3)}) as result:
        digest = result.digest("out")
    with reusing() as session, session.run({"out": totals(3)}) as result:
        assert set(attempts(result)) == {0}
        assert result.digest("out") == digest
        assert result.table("out").num_rows == 1


def test_sinks_are_written_each_time(reusing, tmp_path: Path):
    written = rows().repartition(3).write_parquet(str(tmp_path / "out"), if_exists="overwrite")
    for _ in range(2):
        with reusing() as session:
            written.run(session).close()
        assert hw.read_parquet(str(tmp_path / "out")).count(Session("inline")) == 1000


def test_without_reuse_nothing_is_kept_or_read(session: Session, reusing, tmp_path: Path):
    with session.run({"out": totals(3)}):
        pass
    assert kept_files(tmp_path) == []
    with reusing() as other, other.run({"out": totals(3)}):
        pass
    with session.run({"out": totals(3)}) as result:
        assert 0 not in attempts(result)


def test_changed_input_is_not_taken_for_the_old_one(reusing, tmp_path: Path):
    path = tmp_path / "in.csv"
    for value in ("1", "2"):
        path.write_text(f"x\n{value}\n")
        with reusing() as session:
            doubled = hw.read_csv(str(path)).select(y=hw.col("x") * 2).repartition(2)
            assert doubled.compute(session).to_pydict() == {"y": [2 * int(value)]}


def test_results_that_may_differ_are_never_reused(reusing):
    with reusing() as session:
        first = drawn().repartition(2).compute(session)
        assert not drawn().repartition(2).compute(session).equals(first)


def test_blocks_without_the_samples_that_a_sort_needs_are_made_again(reusing):
    base = rows().group_by("id").agg(zone=hw.max("zone"))
    with reusing() as session, session.run({"out": base}):
        pass
    for again in (False, True):
        with reusing() as session, session.run({"out": base.sort("zone", "id")}) as result:
            assert result.table("out")["id"].to_pylist() == sorted(range(1000), key=lambda i: (i % 7, i))
            assert (set(attempts(result)) == {0}) == again
    with reusing() as session, session.run({"out": base.sort("id")}) as result:
        assert result.table("out")["id"].to_pylist() == list(range(1000))


def test_local_sessions_that_reuse_share_a_lasting_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HEADWATER_SCRATCH", raising=False)
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path))
    assert lasting_scratch() == tmp_path / "scratch"
    monkeypatch.setenv("HEADWATER_HOME", "s3://bucket/home")
    assert "headwater-" in lasting_scratch().name
    monkeypatch.setenv("HEADWATER_SCRATCH", str(tmp_path / "fast"))
    assert lasting_scratch() == tmp_path / "fast"
    for expected in (False, True):
        with (
            Session("inline", reuse=True, journal=False) as session,
            session.run({"out": totals(3)}) as result,
        ):
            assert (result.report.recovery.adopted > 0) == expected
    assert (tmp_path / "fast" / "node-0" / "kept").is_dir()


# -- results that may differ ---------------------------------------------------------------------------


def test_a_persisted_draw_is_the_same_as_long_as_all_of_it_is_there(session: Session, tmp_path: Path):
    kept = drawn().persist()
    first = kept.compute(session)
    assert kept.compute(session).equals(first)
    assert kept.filter(hw.col("id") < 500).compute(session).equals(first.slice(0, 500))
    kept_files(tmp_path)[1].unlink()
    second = kept.compute(session)
    assert set(second["draw"].to_pylist()).isdisjoint(first["draw"].to_pylist())
    assert len(kept_files(tmp_path)) == 4
    assert kept.compute(session).equals(second)


@pytest.fixture
def plan() -> Callable[[Dataset], PhysicalPlan]:
    def build(dataset: Dataset) -> PhysicalPlan:
        optimized, _ = optimize({"out": dataset.node}, SMALL)
        return build_plan(optimized, SMALL)

    return build


def result(
    index: int, node: str, run: str = "r1", digest: str = "", keys: pa.Table | None = None, key: str = "k"
) -> PartitionResult:
    ends = np.array([0, 8])
    block = Block(
        9, index, 3, node, f"kept/{key}/p{index}.arrow", ends, np.array([10]), 8, digest or f"f{index}"
    )
    sample = None if keys is None else KeySample(10, keys)
    return PartitionResult(index, 10, block.fingerprint, block, sample=sample, run=run)


def chosen(plan: PhysicalPlan, *nodes: list[PartitionResult]):
    key = plan.stages[0].key
    kept = [(f"n{number}", {key: results}) for number, results in enumerate(nodes)]
    return choose_kept(plan, {key: [0]}, kept)


def test_kept_results_get_the_numbers_of_the_run(plan):
    found = chosen(plan(rows().persist()), [result(0, "n0")], [result(1, "n1"), result(0, "n1")]).found
    blocks = [(event.node, r.index, r.block.stage, r.block.attempt) for event in found for r in event.results]
    assert blocks == [("n0", 0, 0, KEPT_ATTEMPT), ("n1", 1, 0, KEPT_ATTEMPT), ("n1", 0, 0, KEPT_ATTEMPT)]


@pytest.mark.parametrize(
    ("nodes", "run"),
    [
        ([[("r1", range(4))]], "r1"),
        ([[("r1", range(2))], [("r1", range(2, 4))]], "r1"),
        ([[("r1", range(3))]], None),
        ([[("r1", range(2)), ("r2", range(2, 4))]], None),  # halves of two draws
        ([[("r1", range(4))], [("r2", range(4))]], "r2"),  # the later of two whole ones
        ([[("r1", range(4))], [("r2", range(1))]], "r1"),
    ],
)
def test_of_a_draw_the_whole_of_one_run_counts_or_nothing(plan, nodes, run):
    held = [
        [result(p, f"n{n}", run, f"{run}-{p}") for run, parts in node for p in parts]
        for n, node in enumerate(nodes)
    ]
    reusable = chosen(plan(drawn().persist()), *held)
    found = [r for event in reusable.found for r in event.results]
    assert {r.run for r in found} == ({run} if run else set())
    assert {r.index for r in found} == (set(range(4)) if run else set())
    assert reusable.fingerprints == ({(0, p): f"{run}-{p}" for p in range(4)} if run else {})
    assert bool(reusable.useless) == (run is None)


def test_two_versions_of_a_partition_in_one_run_are_not_trusted(plan):
    held = [result(p, "n0") for p in range(4)]
    assert chosen(plan(drawn().persist()), held, [result(2, "n1", digest="other")]).found == ()


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        (None, False),
        (pa.table({"zone": [1], "id": [2]}), True),
        (pa.table({"id": [2], "zone": [1]}), False),
        (pa.table({"zone": [1]}), False),
    ],
)
def test_a_sample_of_other_keys_is_none(plan, keys, fits):
    ordered = plan(rows().group_by("id").agg(zone=hw.max("zone")).sort("zone", "id"))
    (sampled,) = [stage for stage in ordered.stages if stage.sample]
    held = [("n0", {sampled.key: [result(0, "n0", keys=keys)]})]
    reusable = choose_kept(ordered, reusable_stages(ordered, reuse=True), held)
    assert bool(reusable.found) == fits
    assert bool(reusable.useless) != fits


# -- copies --------------------------------------------------------------------------------------------


def test_copies_are_spread_and_stay_where_they_are_when_nodes_change():
    nodes = [f"n{i}" for i in range(6)]
    results = [result(p, "n0") for p in range(600)]
    targets = choose_targets("key", results, nodes, 3)
    assert set(targets) == set(nodes[1:])
    assert sum(map(len, targets.values())) == 1200
    assert all(180 < len(blocks) < 300 for blocks in targets.values())
    places = {(b.partition, n) for n, blocks in targets.items() for b in blocks}
    fewer = choose_targets("key", results, nodes[:5], 3)
    after = {(b.partition, n) for n, blocks in fewer.items() for b in blocks}
    assert {place for place in places if place[1] != "n5"} <= after


def test_with_too_few_nodes_there_are_as_many_copies_as_nodes():
    assert choose_targets("key", [result(0, "n0")], ["n0"], 3) == {}
    assert len(choose_targets("key", [result(0, "n0")], ["n0", "n1"], 3)) == 1


def test_partitions_with_too_few_copies_are_named():
    found = [
        BlocksFound("n0", tuple(result(p, "n0") for p in range(3))),
        BlocksFound("n1", tuple(result(p, "n1") for p in range(2))),
    ]
    assert [b.partition for b in lacking_copies(9, found, 2, 2)] == [2]
    assert [b.partition for b in lacking_copies(9, found, 3, 3)] == [0, 1, 2]
    assert lacking_copies(9, found, 3, 1) == []
    assert lacking_copies(1, found, 2, 2) == []


# -- memory --------------------------------------------------------------------------------------------


def write(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(b"x" * size)
    return path


def test_files_are_held_within_the_bound_until_they_are_released(tmp_path: Path):
    resident = Resident(lambda: 10_000)
    paths = [write(tmp_path, f"p{i}", 4_000) for i in range(3)]
    assert resident.hold("a", paths[:1]) == 4_000
    assert resident.hold("b", paths[1:]) == 4_000
    assert resident.hold("b", paths[1:]) == 4_000
    resident.release(["a"])
    assert resident.hold("b", paths[1:]) == 8_000
    assert resident.keys() == ["b"]
    assert resident.locked_bytes in (0, 4_000, 8_000)
    resident.release(["b", "unknown"])
    assert resident.bytes == 0


def test_files_that_are_gone_or_empty_are_passed_over_and_new_ones_replace_old(tmp_path: Path):
    resident = Resident()
    assert resident.hold("a", [tmp_path / "none", write(tmp_path, "empty", 0)]) == 0
    assert resident.keys() == []
    path = write(tmp_path, "p0", 4_000)
    resident.hold("a", [path])
    path.unlink()
    assert resident.hold("a", [write(tmp_path, "p0", 6_000)]) == 6_000
    resident.release(["a"])


# -- truncate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_truncate_computes_once_and_lineage_ends_there(
    session: Session, tmp_path: Path, format, calls: Calls
):
    path = str(tmp_path / "cut")
    cut = counted(calls).with_columns(zone=hw.col("id") % 7).truncate(path, session, format=format)
    assert calls.rows == 1000
    expected = rows().compute(session)
    assert cut.compute(session).equals(expected)
    assert [type(node).__name__ for node in cut.node.walk()] == ["Scan"]
    assert cut.filter(hw.col("zone") == 3).count(session) == sum(i % 7 == 3 for i in range(1000))
    assert calls.rows == 1000


def test_truncate_does_not_overwrite_unless_told(session: Session, tmp_path: Path):
    path = str(tmp_path / "cut")
    rows().truncate(path, session)
    with pytest.raises(SinkExistsError):
        rows().truncate(path, session)
    assert rows(5).truncate(path, session, if_exists="overwrite").count(session) == 5


def test_truncate_of_nothing_and_in_a_loop(session: Session, tmp_path: Path):
    values = hw.from_arrow({"x": [1]})
    for step in range(3):
        values = values.select(x=hw.col("x") * 2).truncate(str(tmp_path / f"step-{step}"), session)
    assert values.compute(session).to_pydict() == {"x": [8]}
    assert len(list(values.node.walk())) == 1
    nothing = rows().filter(hw.col("id") < 0).truncate(str(tmp_path / "nothing"), session)
    assert nothing.compute(session).equals(rows().schema.empty_table())


def test_truncate_to_another_format_is_refused(session: Session, tmp_path: Path):
    with pytest.raises(ParameterError, match="'arrow' or 'parquet'"):
        rows().truncate(str(tmp_path / "cut"), session, format="csv")
