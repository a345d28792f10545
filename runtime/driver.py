"""Driver: the loop of a run. Events to the scheduler; its records to the journal, then its effects.

Everything the scheduler asks for in one turn is written to the journal first, as one segment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import pyarrow as pa

from ..errors import ClusterError, FencedError, ParameterError, did_you_mean
from ..lineage.journal import STATES, Journal, new_run_id
from ..lineage.lease import RENEW_SECONDS, Lease
from ..lineage.restored import Restored
from ..ops.sink import Sink, StagedFile, visible
from ..planner.plan import PhysicalPlan
from .executor import Executor
from .fault_points import reach
from .report import RunReport, build_report
from .resumption import PLAN, pack_plan, plan_record, restore
from .reuse import Reusable, choose_kept, persisted, reusable_stages
from .scheduler import Scheduler
from .scheduler_events import (
    BlocksLost,
    Cancel,
    Demand,
    Event,
    Failed,
    Instruction,
    Keep,
    Launch,
    OutputTaken,
    Record,
    Release,
    Relocate,
    StageFinished,
    StageReady,
    Survey,
    Tick,
)
from .snapshot import Snapshot, snapshot_of
from .stage_inputs import indeterminate_stages
from .stage_run import StageRun
from .task import Block, FetchFailedError
from .versions import local_versions

#: seconds between two snapshots
OBSERVE_SECONDS = 0.1
#: seconds between two looks at how much work waits
BACKLOG_SECONDS = 0.5
#: seconds to wait for events at most, so that displays go on
WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class OutputOutcome:
    """What an output became.

    Attributes:
        name, schema: of the output.
        rows: of each partition.
        fingerprints: of each partition, in order.
        blocks: one a partition, in order; empty if it went to a sink.
        files: that were committed, in partition order; empty if it did not go to a sink.
        is_sink: whether it went to a sink, which may have got no file.
    """

    name: str
    schema: pa.Schema
    rows: tuple[int, ...]
    fingerprints: tuple[str, ...]
    blocks: tuple[Block, ...]
    files: tuple[StagedFile, ...]
    is_sink: bool = False


@dataclass(frozen=True)
class RunOutcome:
    """What a run gave: outputs by name, and the report."""

    run: str
    outputs: Mapping[str, OutputOutcome]
    report: RunReport


class Driver:
    """Runs one physical plan, once.

    Args:
        plan: what to run.
        executor: who runs the tasks.
        journal: where decisions are written first; None writes nothing.
        observer: called with a `Snapshot` at most ten times a second, and at the end.
        memory_bytes: how much memory a task may hold before it spills.
        quota_bytes: bound of each node's scratch folder; None is the disk's own.
        stream: name of an output that `iter_output` will read while the run goes on; None runs to the end.
        pipeline: name for the report.
        worker_timeout: seconds to wait while no worker lives.
        lease: of the run; renewed while it goes on, and released at its end.
        past: what earlier drivers of the run have journalled; None for a new run.
        backups: whether slow attempts get a second one beside them.
        reuse: whether to begin with what nodes keep of the same stages, and to let them keep this run's.

    Example:
        .. code-block:: python

            with Driver(plan, executor, Journal.create()) as driver:
                outcome = driver.run()
                tables = list(driver.read("out"))
    """

    def __init__(
        self,
        plan: PhysicalPlan,
        executor: Executor,
        journal: Journal | None = None,
        observer: Callable[[Snapshot], None] | None = None,
        memory_bytes: int = 256 << 20,
        quota_bytes: int | None = None,
        stream: str | None = None,
        pipeline: str = "",
        worker_timeout: float = 60.0,
        lease: Lease | None = None,
        past: Restored | None = None,
        backups: bool = True,
        reuse: bool = False,
    ):
        self.plan = plan
        self.run_id = journal.run if journal is not None else new_run_id()
        streamed = () if stream is None else (self._stage_of(stream),)
        self._epoch = lease.epoch if lease is not None else 0
        self.scheduler = Scheduler(
            plan, self.run_id, memory_bytes, quota_bytes, streamed, self._epoch, backups, reuse
        )
        self._reuse = reuse
        self._journal = journal
        self._observer = observer
        self._pipeline = pipeline
        self._worker_timeout = worker_timeout
        self._started = time.monotonic()
        self._seconds = 0.0
        self._observed = float("-inf")
        self._idle_since: float | None = None
        self._stage_started: dict[int, float] = {}
        self._stage_seconds: dict[int, float] = {}
        self._committed = False
        self._state: str | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._lease = lease
        self._renewed = self._backlog_told = self._started
        self._past = past
        self._channel = executor.open(self.run_id, self._epoch)
        if past is None and journal is not None:
            self._write([plan_record(plan, self.scheduler.lineage)])
            packed = pack_plan(plan)
            if packed is not None:
                journal.put_blob(PLAN, packed)

    # -- running --------------------------------------------------------------------------------

    def run(self) -> RunOutcome:
        """Run to the end and commit sinks.

        Returns:
            Outputs and report. Blocks stay until `close`.

        Raises:
            HeadwaterError: the run failed; what it had made is released, sinks hold nothing of it.
            KeyboardInterrupt: likewise.
        """
        try:
            self._adopt()
            while not self.scheduler.finished:
                self._turn(WAIT_SECONDS)
            self._finish()
        except BaseException as error:
            self._abandon(error)
            raise
        return RunOutcome(
            self.run_id, {name: self._outcome(name) for name in self.plan.outputs}, self.report()
        )

    def iter_output(self, name: str, look_ahead: int | None = None) -> Iterator[pa.Table]:
        """Run while yielding an output's rows, partition by partition, in order.

        Between two tables nothing but what is already launched goes on, so a slow consumer holds the
        run back. A partition's block is released once it has been read.

        Args:
            name: the output that was given as ``stream``.
            look_ahead: partitions to compute beyond the one being read; None is twice the threads.

        Yields:
            Tables in the output's schema; empty ones are left out.
        """
        stage = self._stage_of(name)
        run = self.scheduler.stages[stage]
        demanded = 0
        try:
            self._adopt()
            for partition in range(run.stage.partitions):
                ahead = max(1, look_ahead or 2 * self.scheduler.placement.threads)
                if partition + ahead // 2 >= demanded:
                    demanded = partition + ahead + 1
                    self._feed(Demand(stage, demanded))
                while not run.done[partition]:
                    self._turn(WAIT_SECONDS)
                self._turn(0.0)
                yield from self._read_rows(run, partition, partition + 1)
                self._keep_taken(run, partition)
                self._feed(OutputTaken(stage, partition))
            while not self.scheduler.finished:
                self._turn(WAIT_SECONDS)
            self._finish()
        except BaseException as error:
            self._abandon(error)
            raise

    def _keep_taken(self, run: StageRun, partition: int) -> None:
        """Have a persisted partition kept that is about to be released, before its stage is finished."""
        block, storage = run.block(partition), run.stage.storage
        if storage is not None and block is not None and not block.is_kept:
            self._channel.keep(Keep([block], storage))

    def read(self, name: str, partition: int | None = None) -> Iterator[pa.Table]:
        """Yield the rows of an output of a finished run, in order; what was lost meanwhile is made again.

        Args:
            name: of the output.
            partition: index of the only one to read; None reads all.

        Raises:
            ParameterError: the output went to a sink, or there is none of that name.
        """
        run = self.scheduler.stages[self._stage_of(name)]
        if run.stage.sink is not None:
            raise ParameterError(
                f"output {name!r} was written to {run.stage.sink.describe()}; read it from there."
            )
        first, stop = (0, run.stage.partitions) if partition is None else (partition, partition + 1)
        yield from self._read_rows(run, first, stop)

    def observe(self, observer: Callable[[Snapshot], None]) -> None:
        """Report progress to this observer from now on."""
        self._observer = observer

    def report(self) -> RunReport:
        """Describe the run as far as it has come."""
        seconds = self._seconds or time.monotonic() - self._started
        return build_report(
            self.scheduler,
            self._state or "running",
            seconds,
            self._stage_seconds,
            self._pipeline,
            local_versions(),
            self._journal.bytes if self._journal is not None else 0,
            self._error,
        )

    def close(self) -> None:
        """Stop what still runs and release every block. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._state is None:
                self._channel.stop()
                self._abort_sinks()
                self._end("stopped")
            self._channel.close()
            if self._lease is not None:
                self._lease.release()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one turn -------------------------------------------------------------------------------

    def _turn(self, timeout: float) -> None:
        events = self._channel.wait(timeout)
        self._feed(*events)
        self._observe()
        self._tell_backlog()
        self._renew()
        self._require_workers()

    def _adopt(self) -> None:
        """Begin with the blocks that nodes still have: of earlier drivers, and kept from earlier runs."""
        keys = reusable_stages(self.plan, self._reuse)
        if self._past is None and not keys:
            return
        if self._past is not None:
            self._channel.fence()
        joined = self._channel.wait(WAIT_SECONDS)
        found = self._channel.inventory() if self._past is not None else []
        kept = self._find_kept(keys)
        past = restore(self.plan, self.run_id, self._past)
        past = replace(past, fingerprints={**(kept.fingerprints or {}), **past.fingerprints})
        self._feed(*joined, past, *found, *kept.found)
        for instruction in kept.lacking:
            self._channel.keep(instruction)

    def _find_kept(self, keys: Mapping[str, Sequence[int]]) -> Reusable:
        if self._past is not None:  # whose own results count, where others could come
            varying = indeterminate_stages(self.plan)
            keys = {key: ids for key, ids in keys.items() if varying.isdisjoint(ids)}
        if not keys:
            return Reusable()
        chosen = choose_kept(self.plan, keys, self._channel.kept(keys, persisted(self.plan, keys)))
        if chosen.useless:
            self._channel.drop(chosen.useless)
        return chosen

    def _tell_backlog(self) -> None:
        now = time.monotonic()
        if now - self._backlog_told >= BACKLOG_SECONDS:
            self._backlog_told = now
            self._channel.expect(*self.scheduler.backlog)

    def _renew(self) -> None:
        now = time.monotonic()
        if self._lease is not None and now - self._renewed >= RENEW_SECONDS:
            self._renewed = now
            with suppress(OSError):  # FencedError is none
                self._lease.renew()

    def _feed(self, *events: Event) -> None:
        instructions = self.scheduler.handle(Tick(time.monotonic() - self._started), *events)
        self._write([record for i in instructions if isinstance(i, Record) for record in i.records])
        for instruction in instructions:
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        if isinstance(instruction, Launch):
            self._stage_started.setdefault(instruction.task.stage, time.monotonic())
            self._channel.launch(instruction.task, instruction.worker)
        elif isinstance(instruction, StageReady):
            self._channel.prepare(instruction.program)
        elif isinstance(instruction, Cancel):
            self._channel.cancel(instruction.name, instruction.worker)
        elif isinstance(instruction, Keep):
            self._channel.keep(instruction)
        elif isinstance(instruction, Release):
            self._channel.release(instruction.blocks)
        elif isinstance(instruction, Relocate):
            self._channel.relocate(instruction)
        elif isinstance(instruction, Survey):
            self._channel.survey(instruction.node)
        elif isinstance(instruction, StageFinished):
            now = time.monotonic()
            self._stage_seconds[instruction.stage] = now - self._stage_started.get(instruction.stage, now)
            reach("between-stages")
        elif isinstance(instruction, Failed):
            raise instruction.error

    def _write(self, records: Sequence[list[object]]) -> None:
        if self._journal is not None and self._state is None:  # what is read after the end isn't resumed
            self._journal.append(records)

    def _observe(self, last: bool = False) -> None:
        now = time.monotonic()
        if self._observer is not None and (last or now - self._observed >= OBSERVE_SECONDS):
            self._observed = now
            self._observer(snapshot_of(self.scheduler, now - self._started))

    def _require_workers(self) -> None:
        scheduler = self.scheduler
        without_gpu = scheduler.waits_for_gpu
        if scheduler.finished or (scheduler.placement.workers and not without_gpu):
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > self._worker_timeout:
            if scheduler.placement.workers:
                raise ClusterError(
                    f"no worker with a GPU for {self._worker_timeout:.0f} seconds, and {without_gpu} waits for one. "
                    "Start some with `dask cuda worker ADDRESS` or `headwater worker ADDRESS` on machines that have "
                    "one, or run it again with Session(device='cpu')."
                )
            raise ClusterError(
                f"no worker for {self._worker_timeout:.0f} seconds. Start some with `dask worker ADDRESS` on "
                "machines that have headwater; a local session's workers may have run out of memory."
            )

    # -- reading --------------------------------------------------------------------------------

    def _read_rows(self, run: StageRun, start: int, stop: int) -> Iterator[pa.Table]:
        """Yield the rows of partitions, each once, even if a block has to be made again meanwhile."""
        given = 0
        while True:
            while not (run.done[start:stop].all() and run.alive[start:stop].all()):
                self._turn(WAIT_SECONDS)
            blocks = [block for p in range(start, stop) if (block := run.block(p)) is not None]
            ends = np.cumsum([block.rows for block in blocks])
            first = int(np.searchsorted(ends, given, side="right"))
            skipped = given - int(ends[first - 1]) if first else given
            segments = [block.whole() for block in blocks[first:]]
            try:
                for table in _after(self._channel.read(segments, run.stage.schema), skipped):
                    given += table.num_rows
                    yield table
                return
            except FetchFailedError as error:
                self._feed(BlocksLost(error.lost))

    # -- ends -----------------------------------------------------------------------------------

    def _finish(self) -> None:
        for name, stage_id in self.plan.outputs.items():
            run = self.scheduler.stages[stage_id]
            if run.stage.sink is not None and not (self._past and name in self._past.committed):
                files = _files(run)
                self._write([["committing", name, [file.path for file in files]]])
                run.stage.sink.commit(self.run_id, files)
                self._write([["committed", name]])
        self._committed = True
        sinks = [stage for stage in self.plan.stages if stage.sink is not None]
        self._feed(*(OutputTaken(stage.id, p) for stage in sinks for p in range(stage.partitions)))
        self._end("finished")
        self._observe(last=True)

    def _abandon(self, error: BaseException) -> None:
        """Leave nothing behind; a second error on the way must not hide the first.

        If another driver has the run, all of it is that one's, and stays.
        """
        if isinstance(error, FencedError):
            self._state, self._closed = STATES["failed run"], True
            self._channel.abandon()
            return
        kinds = {KeyboardInterrupt: "interrupted", SystemExit: "interrupted", GeneratorExit: "stopped"}
        steps: list[Callable[[], None]] = [
            self._channel.stop,
            self._abort_sinks,
            lambda: self._end(kinds.get(type(error), "failed run"), error),
            self.close,
        ]
        for step in steps:
            try:
                step()
            except Exception as second:
                error.add_note(f"while cleaning up: {type(second).__name__}: {second}")

    def _abort_sinks(self) -> None:
        sinks: list[Sink] = [stage.sink for stage in self.plan.stages if stage.sink is not None]
        for sink in sinks if not self._committed else []:
            sink.abort(self.run_id)

    def _end(self, kind: str, error: BaseException | None = None) -> None:
        if self._state is not None:
            return
        self._state = STATES[kind]
        self._seconds = time.monotonic() - self._started
        self._error = error if kind != "stopped" else None
        if self._journal is not None:
            self._journal.end(kind, self._error, self.report().to_dict())

    def _outcome(self, name: str) -> OutputOutcome:
        run = self.scheduler.stages[self.plan.outputs[name]]
        results = [result for result in run.results if result is not None]
        return OutputOutcome(
            name,
            run.stage.schema,
            tuple(result.rows for result in results),
            tuple(result.fingerprint for result in results),
            tuple(result.block for result in results if result.block is not None),
            tuple(visible(_files(run))),
            run.stage.sink is not None,
        )

    def _stage_of(self, name: str) -> int:
        if name not in self.plan.outputs:
            raise ParameterError(f"there is no output {name!r}. {did_you_mean(name, self.plan.outputs)}")
        return self.plan.outputs[name]


def _files(run: StageRun) -> list[StagedFile]:
    return [file for result in run.results if result is not None for file in result.files]


def _after(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Leave out the first rows, and empty tables."""
    for table in tables:
        skipped = min(rows, table.num_rows)
        rows -= skipped
        if table.num_rows > skipped:
            yield table.slice(skipped)
