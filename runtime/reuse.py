"""Reuse: which kept blocks of earlier runs a run can begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..lineage.stream_fingerprint import is_stream
from ..ops.ordering import key_names
from ..planner.plan import PhysicalPlan, Stage, Storage
from .copies import lacking_copies
from .scheduler_events import BlocksFound, Keep
from .stage_inputs import indeterminate_stages
from .task import PartitionResult

#: number of the attempt that left a kept block
KEPT_ATTEMPT = -1

#: a node, and the results it keeps, by lineage key of their stage
NodeKeeps = tuple[str, Mapping[str, Sequence[PartitionResult]]]


@dataclass(frozen=True)
class Reusable:
    """What a run can begin with.

    Attributes:
        found: events for the scheduler, one a node.
        fingerprints: (stage, partition) to the digest that counts, where other bytes could come as well.
        useless: lineage keys of which blocks are kept that this run can't use, so that its own had better take
            their place.
        lacking: of persisted blocks that lie on fewer nodes than their user asked for.
    """

    found: tuple[BlocksFound, ...] = ()
    fingerprints: Mapping[tuple[int, int], str] | None = None
    useless: tuple[str, ...] = ()
    lacking: tuple[Keep, ...] = ()


def reusable_stages(plan: PhysicalPlan, reuse: bool) -> dict[str, list[int]]:
    """Find the stages whose blocks nodes may keep from earlier runs: lineage key to ids.

    Args:
        plan: what runs.
        reuse: whether all stages are meant that come out the same each time; else only persisted ones.
    """
    excluded = indeterminate_stages(plan)
    found: dict[str, list[int]] = {}
    for stage in plan.stages:
        if stage.storage is not None or (reuse and stage.sink is None and stage.id not in excluded):
            found.setdefault(stage.key, []).append(stage.id)
    return found


def choose_kept(
    plan: PhysicalPlan, stages: Mapping[str, Sequence[int]], kept: Sequence[NodeKeeps]
) -> Reusable:
    """Choose among what nodes keep what fits a run.

    A block without the key sample that the plan asks of its stage doesn't. Of a persisted stage that may come
    out otherwise when it is computed again, all partitions must be there, and of one run; else none counts.

    Args:
        plan: what runs.
        stages: lineage key to the stages meant, see `reusable_stages`.
        kept: what nodes keep, as the blocks describe themselves.

    Returns:
        Results as of this run: with its numbers of stages, and an attempt that no task has.
    """
    varying = indeterminate_stages(plan)
    useless: set[str] = set()
    fingerprints: dict[tuple[int, int], str] = {}
    #: the run whose results count, of stages that vary
    makers: dict[int, str] = {}
    for key, ids in stages.items():
        results = [result for _, node in kept for result in node.get(key, ())]
        for stage in (plan.stages[id] for id in ids):
            merges = stage.id in plan.outputs.values() or stage.storage is not None
            if not all(_fits(stage, merges, result) for result in results):
                useless.add(key)
            elif stage.id in varying and results:
                run, digests = _whole_run(stage, results)
                if run is None:
                    useless.add(key)
                else:
                    makers[stage.id] = run
                    fingerprints.update(((stage.id, index), digest) for index, digest in digests.items())
    found = (
        BlocksFound(
            node,
            tuple(
                result
                for key, results in held.items()
                if key not in useless
                for id in stages.get(key, ())
                for result in renamed(results, id)
                if makers.get(id, result.run) == result.run
            ),
        )
        for node, held in kept
    )
    events = tuple(event for event in found if event.results)
    return Reusable(events, fingerprints, tuple(sorted(useless)), _lacking(plan, events, len(kept)))


def _lacking(plan: PhysicalPlan, found: Sequence[BlocksFound], nodes: int) -> tuple[Keep, ...]:
    wishes = []
    for stage in plan.stages:
        replicas = 1 if stage.storage is None else stage.storage.replicas
        if replicas > 1 and (blocks := lacking_copies(stage.id, found, replicas, nodes)):
            wishes.append(Keep(blocks, stage.storage))
    return tuple(wishes)


def persisted(plan: PhysicalPlan, stages: Mapping[str, Sequence[int]]) -> dict[str, Storage]:
    """Return how a user wants stages to be kept, by lineage key; those nobody asked for are left out."""
    found = ((key, plan.stages[id].storage) for key, ids in stages.items() for id in ids)
    return {key: storage for key, storage in found if storage is not None}


def renamed(results: Iterable[PartitionResult], stage: int) -> tuple[PartitionResult, ...]:
    """Return kept results as those of a run: with its number of their stage, and an attempt that no task has."""
    return tuple(
        replace(result, block=replace(result.block, stage=stage, attempt=KEPT_ATTEMPT))
        for result in results
        if result.block is not None
    )


def _fits(stage: Stage, merges: bool, result: PartitionResult) -> bool:
    """Whether a result has the key sample that its stage is to leave, and a fingerprint that merges if it must."""
    if merges and is_stream(result.fingerprint):
        return False
    if not stage.sample or not result.rows:
        return True
    return result.sample is not None and result.sample.keys.schema.names == list(key_names(stage.sample))


def _whole_run(stage: Stage, results: Sequence[PartitionResult]) -> tuple[str | None, Mapping[int, str]]:
    """Return the latest run that made all of these partitions, and their fingerprints; None if none did."""
    by_run: dict[str, dict[int, set[str]]] = {}
    for result in results:
        by_run.setdefault(result.run, {}).setdefault(result.index, set()).add(result.fingerprint)
    for run, digests in sorted(by_run.items(), reverse=True):
        agree = all(len(found) == 1 for found in digests.values())
        if agree and digests.keys() >= set(range(stage.partitions)):
            return run, {index: min(found) for index, found in digests.items()}
    return None, {}
