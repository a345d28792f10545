"""Coordinator: forms the gang, one generation after the other, until the model is there.

It runs inside the one task of a train stage. Of what happens in a step it sees what every member sees; beside the steps
it asks all workers, about once a second, how they are: who is silent is left out, who is new is prepared and taken in.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import cloudpickle

from ...errors import (
    ClusterError,
    DiskFullError,
    ParameterError,
    TypeMismatchError,
    UserFunctionError,
    VersionMismatchError,
)
from ...ops.pickling import dumps
from ...ops.training.program import DataInfo, State
from ...ops.user_functions import own_traceback
from ..task import CancelledTask, FetchFailedError, Segment, TaskMovedError
from .gang_plan import Candidate, Range, assign, choose_members
from .job import Fence, Orders, PrepareOrders, ShardSummary, TrainingLog, TrainJob
from .member import GO_ON, REGROUP, Member, Outcome
from .numerics import differences, numerics
from .service import TrainingService
from .shard_source import ShardPlan, plan_shards

#: seconds between two looks at the workers, and for one of them to answer
WATCH_SECONDS = 0.5
ANSWER_SECONDS = 2.0
#: seconds to build shards, from blocks that are there
PREPARE_SECONDS = 3600.0
#: for how many seconds a member that was silent is left out, the first time
EXCLUDED_SECONDS = 5.0
#: generations that may break one after the other without a step
MOST_BROKEN = 20

Relocate = Callable[[Sequence[Segment]], tuple[Mapping[Segment, Segment], Mapping[str, tuple[str, ...]]]]


class Network(Protocol):
    """How a coordinator reaches the workers."""

    @property
    def address(self) -> str:
        """Of the worker that it runs on."""

    def workers(self) -> list[str]:
        """Addresses of the workers that are known to live, as far as can be told."""

    def call_all(
        self,
        addresses: Sequence[str],
        operation: str,
        timeout: float,
        arguments: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, dict[str, Any] | BaseException]:
        """Call a handler on several workers at once, each with arguments of its own; errors are returned."""


class Coordinator:
    """Runs one train stage.

    Args:
        job: what to train.
        fence: of this attempt.
        service: of the worker that it runs on.
        network: reaches the others.
        inputs: segments of the training rows, and of the validation rows, in order.
        nodes: node id to the addresses of living workers that can serve its blocks.
        relocate: tells where lost segments are now; None makes a loss an error.
        cancelled: stops it.
        draining: whether its own worker is about to leave.
        report: told the share that is done, and the metrics of a step.
    """

    def __init__(
        self,
        job: TrainJob,
        fence: Fence,
        service: TrainingService,
        network: Network,
        inputs: Sequence[Sequence[Segment]],
        nodes: Mapping[str, tuple[str, ...]],
        relocate: Relocate | None = None,
        cancelled: threading.Event | None = None,
        draining: Callable[[], bool] = lambda: False,
        report: Callable[[float, dict[str, float]], None] = lambda share, metrics: None,
    ):
        self.job, self.fence, self.service, self.network = job, fence, service, network
        self.inputs, self.nodes = [list(segments) for segments in inputs], dict(nodes)
        self.log = TrainingLog()
        self._relocate, self._cancelled, self._draining = relocate, cancelled or threading.Event(), draining
        self._report = report
        self._packed = dumps(job)
        self._token = secrets.token_hex(16)
        self._generation = 0
        self._members: list[Candidate] = []
        #: address of its own worker, which changes when a worker goes on with another Dask scheduler
        self._leader = network.address
        self._summaries: dict[tuple[str, int], ShardSummary] = {}
        self._excluded: dict[str, tuple[float, int]] = {}
        #: nodes whose disks have no room for shards
        self._full: set[str] = set()
        self._preparing = threading.Lock()
        self._regroup, self._over = threading.Event(), threading.Event()
        self._broken_at: float | None = None
        self._broken_step = -1
        self._begun = time.monotonic()

    def run(self) -> State:
        """Train to the end.

        Returns:
            The last state.

        Raises:
            CancelledTask: it was cancelled, or another coordinator has taken over.
            TaskMovedError: its worker is about to leave.
            FetchFailedError: inputs are lost, and nobody tells where they are now.
            HeadwaterError: what the program raised, or the data can't be trained on.
        """
        self._open([self.network.address])
        member = self.service.member(self.job.name)
        member.note, member.on_step = self._note, self._stepped
        watcher = threading.Thread(target=self._watch, args=(member,), name="training watch", daemon=True)
        watcher.start()
        try:
            return self._generations(member)
        finally:
            self._over.set()
            member.on_step = None
            self.log.seconds = time.monotonic() - self._begun
            self.log.members = len(self._members)
            self.log.transport = member.transport

    # -- generations -------------------------------------------------------------------------------

    def _generations(self, member: Member) -> State:
        broken = 0
        while True:
            self._regroup.clear()
            self._check()
            self._leader = self.network.address
            candidates = self._gather()
            self._raise_errors(candidates)
            members, ranges = self._plan([candidate for candidate, _ in candidates])
            if not self._prepare(members, ranges):
                continue
            if self._generation == 0:
                self.log.adopted_step = max(candidate.step for candidate in members)
            self._note_changes(members)
            step = member.step
            outcome = self._run_generation(member, members, ranges)
            if outcome is Outcome.FINISHED:
                assert member.state is not None
                self.log.steps = member.step
                self._note_traffic(member)
                self.log.metrics = self.job.kernel.program.metrics(member.state)
                return member.state
            if outcome is Outcome.BROKEN:
                self._check()
                self._broken_at = self._broken_at or time.monotonic()
                self._broken_step = member.step
                broken = broken + 1 if member.step == step else 0
                if broken > MOST_BROKEN:
                    raise ClusterError(
                        f"training stopped at step {member.step}: {MOST_BROKEN} gangs in a row broke before their "
                        "first step. Can the workers open connections to each other?"
                    )

    def _run_generation(self, member: Member, members: list[Candidate], ranges: list[Range]) -> Outcome:
        orders = self._orders(members, ranges)
        others = {m.address: replace(orders, rank=rank) for rank, m in enumerate(members)}
        own = others.pop(self._leader)
        self._generation += 1
        self.log.generations += 1
        arguments = {a: {**self._address(), "orders": dumps(told)} for a, told in others.items()}
        answers = self.network.call_all(list(others), "headwater_train_start", ANSWER_SECONDS, arguments)
        if any(isinstance(answer, BaseException) for answer in answers.values()):
            self.network.call_all(
                list(others), "headwater_train_halt", ANSWER_SECONDS, dict.fromkeys(others, self._address())
            )
            return Outcome.BROKEN
        return member.run(own)

    def _orders(self, members: list[Candidate], ranges: list[Range]) -> Orders:
        return Orders(
            generation=(self.fence[0] << 44) + (self.fence[1] << 20) + self._generation,
            rank=0,
            addresses=tuple(m.endpoint for m in members),
            layout=tuple(ranges),
            token=self._token,
            info=self.info,
        )

    def _plan(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Range]]:
        strategy = self.job.kernel.strategy
        most = min(self.job.shards, strategy.workers or self.job.shards)
        members = choose_members(candidates, most, self._leader)
        return assign(members, self.job.shards, self._local_bytes())

    def _note_changes(self, members: list[Candidate]) -> None:
        before, now = {m.address for m in self._members}, {m.address for m in members}
        if self._generation:
            gone = sorted(before - now)
            (self.log.lost if self._broken_at is not None else self.log.left).extend(gone)
            self.log.joined += sorted(now - before)
        if self._broken_at is not None and self._broken_step >= 0:
            self.log.steps_lost += max(m.step for m in members) <= self._broken_step
            self._broken_step = -1
        self._members = members

    def _note_traffic(self, member: Member) -> None:
        """Ask the others what has crossed at them; who doesn't answer is left out."""
        if self.job.device != "gpu":
            return
        others = [m.address for m in self._members if m.address != self._leader]
        answers = self.network.call_all(
            others, "headwater_train_open", ANSWER_SECONDS, dict.fromkeys(others, self._address())
        )
        crossed = [
            answer["crossed"]
            for answer in answers.values()
            if isinstance(answer, dict) and "crossed" in answer
        ]
        crossed.append((member.traffic.to_device, member.traffic.to_host))
        self.log.to_device_bytes, self.log.to_host_bytes = (sum(way) for way in zip(*crossed))

    # -- asking ------------------------------------------------------------------------------------

    def _address(self) -> dict[str, Any]:
        return {"key": self.job.name, "fence": list(self.fence)}

    def _gather(self) -> list[tuple[Candidate, BaseException | None]]:
        """Ask all workers, and return those that answer; members, even if Dask's scheduler doesn't know them."""
        now, members = time.monotonic(), [m.address for m in self._members]
        known = dict.fromkeys([self._leader, *members, *self.network.workers()])
        return self._open([a for a in known if self._excluded.get(a, (0.0, 0))[0] <= now])

    def _open(self, addresses: list[str]) -> list[tuple[Candidate, BaseException | None]]:
        answers: dict[str, dict[str, Any] | BaseException] = {}
        for known in (True, False):
            asked = [a for a in addresses if a not in answers]
            job = {} if known else {"job": self._packed}
            arguments = {a: {**self._address(), **job} for a in asked}
            found = self.network.call_all(asked, "headwater_train_open", ANSWER_SECONDS, arguments)
            answers.update(
                (a, reply)
                for a, reply in found.items()
                if not known or isinstance(reply, BaseException) or reply.get("known") or reply.get("fenced")
            )
        candidates = []
        for address in addresses:
            reply = answers[address]
            if isinstance(reply, BaseException):
                if address == self._leader:
                    raise reply
                continue
            if reply.get("fenced"):
                raise CancelledTask(f"another coordinator trains {self.job.name}")
            mine, theirs = numerics(self.job.device), reply["numerics"]
            if theirs["device"] != mine["device"] and address != self._leader:
                continue  # it has another device than the leader, or none: it can't take part, and needn't
            if unlike := differences(mine, theirs):
                raise VersionMismatchError(
                    f"{self.job.kernel.label}: worker {address} would compute other bits than {self._leader}: "
                    f"{unlike}. Train on workers with the same processors and libraries."
                )
            packed = reply["error"]
            error = None if packed is None else cloudpickle.loads(packed)
            if reply["node"] in self._full and address != self._leader:
                continue
            told = Candidate(
                address,
                reply["node"],
                reply["endpoint"],
                reply["step"],
                reply["draining"],
                frozenset(reply["shards"]),
            )
            candidates.append((told, error))
        return candidates

    def _raise_errors(self, candidates: Sequence[tuple[Candidate, BaseException | None]]) -> None:
        """Raise what ended a member's generation, if it wasn't the loss of another one."""
        for _, error in candidates:
            if isinstance(error, FetchFailedError):  # of a shard that isn't kept whole
                known = {(s.stage, s.partition, s.attempt) for segments in self.inputs for s in segments}
                if lost := known & set(error.lost):  # else they have been found since
                    self._find(lost)
            elif error is not None and self._generation:
                raise error

    def _prepare(self, members: Sequence[Candidate], ranges: Sequence[Range]) -> bool:
        """Have each member build what it lacks of its shards; False if one of them went away meanwhile."""
        with self._preparing:
            left = dict(zip((m.address for m in members), ranges))
            while left:
                self._check()
                plans, widths = self._shard_plans(), self.widths()
                arguments = {}
                for address, span in left.items():
                    own = {part: found[slice(*span)] for part, found in plans.items()}
                    orders = dumps(PrepareOrders(own, self.nodes, widths))
                    arguments[address] = {**self._address(), "orders": orders}
                answers = self.network.call_all(
                    list(left), "headwater_train_prepare", PREPARE_SECONDS, arguments
                )
                lost: set[tuple[int, int, int]] = set()
                for address, reply in answers.items():
                    if isinstance(reply, BaseException):
                        return False
                    if reply.get("fenced"):
                        raise CancelledTask(f"another coordinator trains {self.job.name}")
                    if "error" in reply:
                        error = cloudpickle.loads(reply["error"])
                        if not isinstance(error, DiskFullError) or address == self._leader:
                            raise error
                        self._full.add(next(m.node for m in members if m.address == address))
                        return False
                    if "lost" in reply:
                        lost |= {(s, p, a) for s, p, a in reply["lost"]}
                        continue
                    del left[address]
                    for summary in cloudpickle.loads(reply["summaries"]):
                        self._summaries[summary.part, summary.shard] = summary
                if lost:
                    self._find(lost)
        return True

    def _find(self, lost: set[tuple[int, int, int]]) -> None:
        """Learn from the driver where lost blocks are now."""
        wanted = [
            s for segments in self.inputs for s in segments if (s.stage, s.partition, s.attempt) in lost
        ]
        if self._relocate is None or not wanted:
            raise FetchFailedError(tuple(sorted(lost)))
        moved, nodes = self._relocate(wanted)
        self.inputs = [[moved.get(s, s) for s in segments] for segments in self.inputs]
        self.nodes.update(nodes)

    # -- what is known of the data -----------------------------------------------------------------

    def _shard_plans(self) -> dict[str, list[ShardPlan]]:
        parts = zip(self.job.bounds.items(), self.inputs)
        return {part: plan_shards(segments, bounds) for (part, bounds), segments in parts}

    def _local_bytes(self) -> dict[str, list[float]]:
        """For each node, the bytes of each shard that its blocks hold."""
        found: dict[str, list[float]] = {}
        for plan in self._shard_plans()["train"]:
            for piece in plan.pieces:
                sizes = found.setdefault(piece.segment.node, [0.0] * self.job.shards)
                sizes[plan.index] += piece.segment.length * piece.rows / max(piece.segment.rows, 1)
        return found

    def widths(self) -> dict[str, int]:
        """Return how long the vectors of each vector column are.

        Raises:
            TypeMismatchError: rows disagree.
        """
        widths: dict[str, int] = {}
        for summary in self._summaries.values():
            for name, width in summary.widths.items():
                known = widths.setdefault(name, width)
                if known != width:
                    raise TypeMismatchError(
                        f"{self.job.kernel.label}: the vectors of {name!r} have {known} numbers in one part of the "
                        f"rows and {width} in another. They must all have one length."
                    )
        return widths

    @cached_property
    def info(self) -> DataInfo:
        """What a program is told of the data; known once all shards have been prepared.

        Raises:
            HeadwaterError: this can't be trained on.
        """
        kernel = self.job.kernel
        train = [self._summaries["train", shard] for shard in range(self.job.shards)]
        rows = sum(summary.rows for summary in train)
        if not rows:
            raise ParameterError(
                f"{kernel.label}: there are no rows to train on. Does a filter before train() drop them all?"
            )
        ranges = [summary.target_range for summary in train if summary.target_range is not None]
        schema, widths = self.job.schemas["train"], self.widths()
        info = DataInfo(
            rows=rows,
            validation_rows=int(self.job.bounds["validation"][-1]) if "validation" in self.job.bounds else 0,
            shards=self.job.shards,
            batch_size=kernel.settings.batch_size,
            columns=kernel.features.layout(schema, widths),
            names=kernel.features.feature_names(schema, widths),
            target_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
            seed=kernel.settings.seed,
            dtype=kernel.settings.dtype,
        )
        kernel.objective.check(info)
        return info

    # -- beside the steps --------------------------------------------------------------------------

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledTask(f"the training of {self.job.name} was cancelled")
        if self._draining() and len(self.network.workers()) > 1:
            raise TaskMovedError(f"{self.network.address} is about to leave")

    def _note(self) -> bytes:
        return REGROUP if self._regroup.is_set() else GO_ON

    def _stepped(self, state: State) -> None:
        if self._broken_at is not None:
            self.log.stalls.append(time.monotonic() - self._broken_at)
            self._broken_at = None
        program = self.job.kernel.program
        metrics = program.metrics(state)
        self._report(program.progress(state), metrics)
        for callback in self.job.kernel.callbacks:
            try:
                callback({"step": float(state["step"]), **metrics})
            except (Exception, SystemExit) as error:
                name = getattr(callback, "__qualname__", type(callback).__name__)
                raise UserFunctionError(
                    f"{self.job.kernel.label}: the callback {name} raised {type(error).__name__}: {error}\n"
                    f"after step {state['step']}; it got {metrics}\n{own_traceback(error)}"
                ) from error

    def _watch(self, member: Member) -> None:
        while not self._over.wait(WATCH_SECONDS):
            try:
                self._look(member)
            except (CancelledTask, TaskMovedError):
                member.abandon()
            except Exception:  # it will be met again, and raised, where the next generation is formed
                self._regroup.set()

    def _look(self, member: Member) -> None:
        """See who is silent, who is new, and who is about to leave."""
        if self._cancelled.is_set():
            member.abandon()
            return
        if self._draining():
            self._regroup.set()
            return
        current, asked = {m.address for m in self._members}, time.monotonic()
        if not current or self._regroup.is_set():
            return
        found = {candidate.address: candidate for candidate, _ in self._gather()}
        silent = sorted(current - set(found))
        if silent and member.stepped < asked:  # no step was completed since: somebody is waited for
            for address in silent:
                _, times = self._excluded.get(address, (0.0, 0))
                self._excluded[address] = (time.monotonic() + EXCLUDED_SECONDS * 2**times, times + 1)
            member.abandon()
            return
        members, ranges = self._plan(list(found.values()))
        if not silent and {m.address for m in members} != current and self._prepare(members, ranges):
            self._regroup.set()
