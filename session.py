"""Session: plans, runs and hands back results; the one object that owns a cluster.

A session knows nodes and plans, never the handle: what it is given is either a node or has a ``node``.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Generator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from .arguments import whole
from .errors import ClusterError, HeadwaterError, ParameterError, TypeMismatchError, did_you_mean
from .ops.node import Node
from .planner.options import DEVICES, PlanOptions

if TYPE_CHECKING:
    from .planner.plan import PhysicalPlan
    from .runtime.driver import Driver, RunOutcome
    from .runtime.executor import Executor
    from .runtime.progress import Observer
    from .runtime.report import RunReport

# What runs is imported at the first run: it knows Dask, and whoever just declares pipelines doesn't wait for it.

#: bytes a task may hold before it spills, unless a memory limit says less; fixed, so that every
#: machine cuts the same data the same way
TASK_BYTES = 256 << 20
#: anonymous memory, in bytes, of an idle worker process
WORKER_BASE_BYTES = 112 << 20
#: logical workers of a session in this process, where nobody says how many
INLINE_WORKERS = 4
#: seconds for a worker to find its GPU
GPU_SECONDS = 60.0


class RunResult:
    """The outputs of a finished run, still on the nodes; a context manager that lets them go.

    Attributes:
        report: what the run did.
    """

    def __init__(self, driver: Driver, outcome: RunOutcome):
        self._driver = driver
        self._outcome = outcome
        self.report: RunReport = outcome.report

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outcome.outputs)

    def schema(self, name: str) -> pa.Schema:
        """The Arrow schema of an output."""
        from .ops.write import WRITTEN

        outcome = self._outcome.outputs[self._known(name)]
        return WRITTEN if outcome.is_sink else outcome.schema

    def batches(self, name: str) -> Iterator[pa.Table]:
        """Yield an output's rows as tables, in order; a sink's rows are its files."""
        outcome = self._outcome.outputs[self._known(name)]
        if outcome.is_sink:
            from .ops.write import WRITTEN

            files = [{"path": f.target, "rows": f.rows, "bytes": f.bytes} for f in outcome.files]
            yield pa.Table.from_pylist(files, schema=WRITTEN)
        else:
            yield from self._driver.read(name)

    def table(self, name: str) -> pa.Table:
        """Fetch all rows of an output as one table."""
        return pa.concat_tables(list(self.batches(name)) or [self.schema(name).empty_table()])

    def head(self, name: str, count: int = 10) -> pa.Table:
        """Fetch the first rows of an output."""
        return first_rows(self.batches(name), self.schema(name), whole(count, "head", "count", 0))

    def rows(self, name: str) -> int:
        """How many rows an output has."""
        return self.report.outputs[self._known(name)].rows

    def digest(self, name: str) -> str:
        """The digest of an output's content: equal digests mean equal rows in equal order."""
        return self.report.outputs[self._known(name)].digest

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}: {figures.rows:,} rows" for name, figures in self.report.outputs.items())
        return f"RunResult({rows})"

    def close(self) -> None:
        """Delete the blocks. Idempotent."""
        self._driver.close()

    def __enter__(self) -> RunResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, name: str) -> str:
        if name not in self._outcome.outputs:
            raise ParameterError(
                f"the run has no output {name!r}. {did_you_mean(name, self._outcome.outputs)}"
            )
        return name


class Session:
    """Where pipelines run: a local Dask cluster, a running one, or this process.

    Args:
        address: None starts a local cluster; ``"tcp://host:8786"`` joins a running Dask scheduler, after
            checking the versions of all workers; ``"inline"`` runs in this process, without Dask.
        workers: processes of the local cluster (or logical workers inline). None is 4; with ``device``, one for each
            of the machine's GPUs, and four in all if there are fewer. More workers than GPUs share them in turn.
        threads_per_worker: threads of each; a thread runs one task at a time.
        memory_limit: bytes, or text as ``"1 GB"``, that a worker's tasks should stay within; more data
            spills to scratch.
        scratch: folder for blocks on this machine; None takes a private one that is removed at the end.
        quota: most bytes of scratch a node may use; None is what the disk has.
        progress: True shows progress, None only on a terminal, False never; or a function that is called with
            each `headwater.runtime.snapshot.Snapshot`.
        journal: folder or fsspec URL for journals; None is ``$HEADWATER_HOME/runs`` or under
            ``~/.local/state``; False writes none.
        options: the planner's numbers.
        backup_tasks: whether a slow task gets a second attempt beside it, on a thread that has nothing else to do.
        reuse: whether nodes keep the result of every stage for later runs, as long as they have room, and runs
            begin with what is kept. A local session then takes a scratch folder that stays, see ``scratch``:
            ``$HEADWATER_SCRATCH``, or ``$HEADWATER_HOME/scratch``, or a user's own under the temporary folder.
        kept: most bytes that a node keeps between runs, of ``reuse`` and `Dataset.persist` together; None is half of
            ``quota``, or, without one, half of the free disk. A cluster that is joined keeps the bound that
            its first session gave.
        device: "auto" runs on GPUs what is faster there, if workers have some; "gpu" runs all there that can be, and
            needs workers that have one; "cpu" uses none. A worker has a GPU if its process finds CuPy and a device, as
            those do that `dask cuda worker` or `headwater worker` starts on such a machine. Results are equal: exactly
            for integers, keys and order, and to rounding for floats.

    Raises:
        ClusterError: the scheduler can't be reached; or ``device="gpu"``, and no worker has one.
        VersionMismatchError: a worker runs versions that don't fit.

    Example:
        >>> import headwater as hw
        >>> with hw.Session("inline") as session:
        ...     hw.range(4).agg(total=hw.sum("id")).compute().to_pylist()
        [{'total': 6}]
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        threads_per_worker: int = 1,
        memory_limit: int | str | None = None,
        scratch: str | Path | None = None,
        quota: int | str | None = None,
        progress: bool | Observer | None = None,
        journal: str | Path | bool | None = None,
        options: PlanOptions | None = None,
        backup_tasks: bool = True,
        reuse: bool = False,
        kept: int | str | None = None,
        device: str = "auto",
    ):
        if device not in DEVICES:
            raise ParameterError(f"Session(device={device!r}): {did_you_mean(str(device), DEVICES)}")
        if options is not None and not isinstance(options, PlanOptions):
            raise TypeMismatchError(f"Session(options={options!r}): write hw.PlanOptions(...).")
        self.options = options or PlanOptions()
        self.address = address
        self.device = device
        self._workers = None if workers is None else _positive(workers, "workers")
        self._threads = _positive(threads_per_worker, "threads_per_worker")
        self._memory_limit = _bytes(memory_limit, "memory_limit")
        self._quota = _bytes(quota, "quota")
        self._reuse = bool(reuse)
        self._kept = _bytes(kept, "kept")
        self._scratch = scratch
        self._progress = progress
        self._journal = journal
        self._backups = bool(backup_tasks)
        self._executor: Executor | None = None
        self._tokens: list[Any] = []
        self._closed = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._executor is not None else "not started"
        return f"Session({self.address or 'local'!r}, {state})"

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> Session:
        """Start or join the cluster now, rather than at the first run."""
        with self._lock:
            if self._closed:
                raise ClusterError("this session is closed. Open another Session().")
            if self._executor is None:
                self._executor = self._open()
                atexit.register(self._executor.close)  # a session that is never closed leaves no scratch
                if self.device == "gpu" or (self.device == "auto" and self._starts_on_gpus()):
                    self._executor.await_gpu(GPU_SECONDS)
                if self.device == "gpu" and not self._executor.gpu_workers():
                    executor, self._executor = self._executor, None
                    problem = _no_gpu(executor)
                    atexit.unregister(executor.close)
                    executor.close()
                    raise problem
        return self

    def close(self) -> None:
        """Let the cluster go; a local one ends, and its scratch is removed. Idempotent."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            atexit.unregister(executor.close)
            executor.close()

    def __enter__(self) -> Session:
        self.start()
        self._tokens.append(_CURRENT.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._tokens.pop())
        self.close()

    def _open(self) -> Executor:
        if self._reuse and self._scratch is None and self.address in (None, "inline"):
            from .runtime.nodes.private_scratch import lasting_scratch

            self._scratch = lasting_scratch()
        if self.address == "inline":
            from .runtime.inline import InlineExecutor

            return InlineExecutor(
                self._workers or INLINE_WORKERS,
                scratch=self._scratch,
                quota_bytes=self._quota,
                kept_bytes=self._kept,
                device=self.device != "cpu",
            )
        if self.address is None:
            from .runtime.fork_server import warm_up

            warm_up()  # before Dask is imported here, so that both go on at once
        from .runtime.cluster import open_executor

        return open_executor(
            self.address,
            workers=self._workers,
            threads_per_worker=self._threads,
            memory_limit=self._memory_limit,
            scratch=self._scratch,
            quota_bytes=self._quota,
            kept_bytes=self._kept,
            device=self.device,
        )

    # -- work --------------------------------------------------------------------------------------

    def run(self, outputs: Mapping[str, Any], name: str = "pipeline") -> RunResult:
        """Run several outputs together; what they have in common is computed once.

        Args:
            outputs: output name to dataset (or node). Sinks are committed together at the end.
            name: of the pipeline, for the report and the list of runs.

        Returns:
            The results, which stay on the nodes until closed.

        Raises:
            HeadwaterError: the run failed; nothing of it is left, and sinks hold nothing of it. The
                error's ``report`` tells how far it came.
        """
        from .runtime.progress import progress_display

        physical = self._plan(outputs)
        with progress_display(self._progress) as observer:
            return _finish(self._driver(physical, name, observer))

    def resume(self, run: str, *, steal: bool = False) -> RunResult:
        """Go on with a run whose driver died, failed, or was interrupted, with every block that survives.

        A run that had finished, and whose driver died before its outputs were read, gives them now. The
        pipeline, its parameters and options are those that the run was started with. What nodes of this
        session's cluster still have of it isn't computed again. A session on another cluster can resume it
        too; what isn't there is made again.

        Args:
            run: its id; ``headwater runs`` lists them.
            steal: take it over even from a driver that seems to live: one that hangs, or can't be reached.
                That one stops with `FencedError` before it changes anything.

        Returns:
            As `run`.

        Raises:
            SourceNotFoundError: there is no such run.
            ParameterError: it has finished, or can't be resumed.
            LeaseHeldError: its driver lives.
            HeadwaterError: as `run`.

        Example:
            .. code-block:: python

                with hw.Session("tcp://10.0.0.1:8786") as session:
                    result = session.resume("20261123-153012-x7k2")
        """
        from .lineage.history import History
        from .lineage.journal import Journal, find_run
        from .lineage.lease import acquire
        from .runtime.driver import Driver
        from .runtime.progress import progress_display
        from .runtime.resumption import PLAN, unpack_plan

        root = self._journal_root()
        if root is False:
            raise ParameterError(f"a session without a journal can't resume {run!r}: drop journal=False.")
        state = find_run(run, root).state
        self.start()
        assert self._executor is not None
        if state == "finished" and not _is_held(self._executor, run):
            raise ParameterError(
                f"run {run} has finished; there is nothing to resume. Run the pipeline again."
            )
        lease = acquire(root, run, steal=steal)
        try:
            journal, records = Journal.resume(run, lease.epoch, root, self._header())
            past = History(records).restore()
            physical = self._placed(unpack_plan(journal.get_blob(PLAN)))
            header = records[0][1]
            driver = Driver(
                physical,
                self._executor,
                journal,
                memory_bytes=header.get("task_bytes") or self._task_bytes(),
                quota_bytes=self._quota,
                pipeline=header.get("pipeline") or "",
                lease=lease,
                past=past,
                backups=self._backups,
                reuse=self._reuse,
            )
        except BaseException:
            lease.release()
            raise
        with progress_display(self._progress) as observer:
            driver.observe(observer)
            return _finish(driver)

    def stream(self, output: Any, name: str = "pipeline") -> Generator[pa.Table, None, None]:
        """Run one output and yield its rows in order while later partitions are still computed.

        Args:
            output: a dataset (or node).
            name: of the pipeline.
        """
        from .runtime.progress import progress_display

        physical = self._plan({"result": output})
        with (
            progress_display(self._progress) as observer,
            self._driver(physical, name, observer, stream="result") as driver,
        ):
            yield from driver.iter_output("result")

    def unpersist(self, output: Any) -> int:
        """Delete what nodes keep of a persisted dataset; see `Dataset.unpersist`.

        Args:
            output: the dataset (or node).

        Returns:
            The bytes set free.
        """
        physical = self._plan({"result": output})
        stage = physical.stages[physical.outputs["result"]]
        self.start()
        assert self._executor is not None
        return self._executor.drop_kept([stage.key])

    def explain(self, outputs: Mapping[str, Any]) -> str:
        """Return the plans of outputs as text; runs nothing.

        Where stages run is told as far as it is known: a cluster to be joined is asked once the session has started.
        """
        return explain(outputs, self._plan_options(start=False))

    def peak_worker_memory(self) -> dict[str, int]:
        """Return the most anonymous memory, in bytes, that each process of a local cluster has held so far.

        Returns:
            Bytes by worker address.

        Raises:
            ClusterError: the session isn't a local cluster.
        """
        from .runtime.cluster import peak_memory

        self.start()
        assert self._executor is not None
        return peak_memory(self._executor)

    def _plan(self, outputs: Mapping[str, Any]) -> PhysicalPlan:
        return self._placed(plan(outputs, self._plan_options()))

    def _plan_options(self, start: bool = True) -> PlanOptions:
        """The planner's numbers, with what the workers have."""
        device = self.options.device
        if self.device == "cpu":
            device = "cpu"
        elif device == "cpu" and self._gpu_workers(start):
            device = self.device
        return self.options if device == self.options.device else replace(self.options, device=device)

    def _placed(self, physical: PhysicalPlan) -> PhysicalPlan:
        """A plan for the workers there are: without a GPU, its device operators run on cores, with NumPy."""
        if all(stage.device == "cpu" for stage in physical.stages) or (
            self.device != "cpu" and self._gpu_workers()
        ):
            return physical
        return replace(physical, stages=tuple(replace(stage, device="cpu") for stage in physical.stages))

    def _starts_on_gpus(self) -> bool:
        """Whether this session has a local cluster on a machine with GPUs."""
        from .ops.device.discovery import has_cupy, visible_devices

        return self.address is None and bool(visible_devices()) and has_cupy()

    def _gpu_workers(self, start: bool = True) -> int:
        """How many workers have a GPU; of a local cluster that hasn't started, how many will have."""
        if self._executor is None and self.address is None and not self._starts_on_gpus():
            return 0
        if self._executor is None and start:
            self.start()
        if self._executor is None:
            return int(self.address is None or self.device == "gpu")
        return self._executor.gpu_workers()

    def _driver(
        self, physical: PhysicalPlan, name: str, observer: Observer, stream: str | None = None
    ) -> Driver:
        from .lineage.journal import Journal, new_run_id
        from .lineage.lease import acquire
        from .runtime.driver import Driver

        self.start()
        assert self._executor is not None
        root = self._journal_root()
        lease = journal = None
        if root is not False:
            lease = acquire(root, new_run_id())
            header = {"pipeline": name, "task_bytes": self._task_bytes(), **self._header()}
            journal = Journal.create(root, header, lease.run)
        try:
            return Driver(
                physical,
                self._executor,
                journal,
                observer,
                memory_bytes=self._task_bytes(),
                quota_bytes=self._quota,
                stream=stream,
                pipeline=name,
                lease=lease,
                backups=self._backups,
                reuse=self._reuse,
            )
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    def _journal_root(self) -> str | Literal[False] | None:
        if self._journal is False:
            return False
        return None if self._journal in (None, True) else str(self._journal)

    def _header(self) -> dict[str, Any]:
        """What the journal says of the cluster, so that `headwater resume` finds it, or starts one like it."""
        header: dict[str, Any] = {"cluster": self.address or "local", "device": self.device}
        if self.address is None:
            header["local"] = {
                "workers": self._workers,
                "threads_per_worker": self._threads,
                "memory_limit": self._memory_limit,
                "scratch": self.scratch,
                "quota": self._quota,
            }
        return header

    @property
    def scratch(self) -> str | None:
        """The scratch folder of a local session; None for one that joined a cluster."""
        from .runtime.cluster import scratch_of

        return None if self._executor is None else scratch_of(self._executor)

    def _task_bytes(self) -> int:
        if self._memory_limit is None:
            return TASK_BYTES
        room = (self._memory_limit - WORKER_BASE_BYTES) // (3 * self._threads)
        return max(16 << 20, min(TASK_BYTES, room))


def _no_gpu(executor: Executor) -> ClusterError:
    from .runtime.devices.assignment import NO_GPU_ADVICE

    return ClusterError(
        f"Session(device='gpu'): no worker has a GPU that it can use:\n{executor.describe_devices()}\n{NO_GPU_ADVICE}"
    )


def _is_held(executor: Executor, run: str) -> bool:
    """Whether nodes have blocks of a run."""
    channel = executor.open(run)
    try:
        return any(found.results for found in channel.inventory())
    finally:
        channel.abandon()


def _finish(driver: Driver) -> RunResult:
    try:
        return RunResult(driver, driver.run())
    except HeadwaterError as error:
        error.report = driver.report()
        raise


def session_like(
    run: str, journal: str | None = None, address: str | None = None, progress: bool | None = None
) -> Session:
    """Make a session to resume a run with: on the cluster it was on, or a local one like it was.

    Args:
        run: its id.
        journal: folder or URL of journals; None is the default one.
        address: of another Dask scheduler to go on with.
        progress: as for `Session`.

    Raises:
        SourceNotFoundError: there is no such run.
    """
    from .lineage.journal import read

    header = next(iter(read(run, journal)))[1]
    cluster, device = header.get("cluster", "local"), header.get("device", "cpu")
    if address or cluster != "local":
        return Session(address or cluster, journal=journal, progress=progress, device=device)
    local = {name: value for name, value in header.get("local", {}).items() if value is not None}
    if not os.path.isdir(local.get("scratch", "")):
        local.pop("scratch", None)
    return Session(journal=journal, progress=progress, device=device, **local)


def first_rows(tables: Iterator[pa.Table], schema: pa.Schema, count: int) -> pa.Table:
    """Take the first rows of a stream of tables, and no more of the stream than that needs."""
    taken = [schema.empty_table()]
    for table in tables if count > 0 else ():
        taken.append(table.slice(0, count))
        count -= taken[-1].num_rows
        if count <= 0:
            break
    return pa.concat_tables(taken).combine_chunks()


def plan(outputs: Mapping[str, Any], options: PlanOptions | None = None) -> PhysicalPlan:
    """Optimize outputs together and cut them into stages.

    Args:
        outputs: output name to dataset (or node).
        options: the planner's numbers.

    Returns:
        The physical plan, with the rules' trace.
    """
    return _plan(_nodes(outputs), options or PlanOptions())[1]


def explain(outputs: Mapping[str, Any], options: PlanOptions | None = None) -> str:
    """Return logical, optimized and physical plans of outputs as text; runs nothing.

    Args:
        outputs: output name to dataset (or node).
        options: the planner's numbers.
    """
    from .planner.explain import explain_text

    nodes = _nodes(outputs)
    return explain_text(nodes, *_plan(nodes, options or PlanOptions()))


def _plan(nodes: Mapping[str, Node], options: PlanOptions) -> tuple[Mapping[str, Node], PhysicalPlan]:
    from .planner.optimizer import optimize
    from .planner.physical import build_plan

    optimized, trace = optimize(nodes, options)
    return optimized, build_plan(optimized, options, trace)


_CURRENT: ContextVar[Session | None] = ContextVar("headwater_session", default=None)
_DEFAULT: list[Session] = []
_DEFAULT_LOCK = threading.Lock()


def current_session() -> Session:
    """Return the innermost ``with Session()``, or else one local session that lasts until the process ends."""
    session = _CURRENT.get()
    if session is not None:
        return session
    with _DEFAULT_LOCK:
        if not _DEFAULT:
            _DEFAULT.append(Session())
        return _DEFAULT[0]


def session_or_current(session: Session | None) -> Session:
    """Return the session a result was asked for with, or else the current one.

    Raises:
        TypeMismatchError: something else than a session.
    """
    if session is not None and not isinstance(session, Session):
        raise TypeMismatchError(
            f"a result is computed on a Session, not on {session!r} ({type(session).__name__}). "
            "Write hw.Session('tcp://host:8786'), or hw.Session('inline')."
        )
    return session or current_session()


def _nodes(outputs: Mapping[str, Any]) -> dict[str, Node]:
    if not isinstance(outputs, Mapping):
        raise TypeMismatchError(
            f"outputs are a dict of name to dataset, not {type(outputs).__name__}. Write {{'result': ds}}."
        )
    if not outputs:
        raise ParameterError("there is nothing to run: give at least one output.")
    nodes = {name: getattr(output, "node", output) for name, output in outputs.items()}
    for name, node in nodes.items():
        if not isinstance(node, Node) or not isinstance(name, str):
            raise TypeMismatchError(
                f"the output {name!r} is {type(node).__name__}. Give a text and a Dataset."
            )
    return nodes


def _positive(value: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ParameterError(f"Session({name}={value!r}): give a whole number, 1 or more.")
    return value


def _bytes(value: int | str | None, name: str) -> int | None:
    if value is None:
        return None
    from dask.utils import parse_bytes

    try:
        number = int(parse_bytes(value))
    except (ValueError, TypeError, AttributeError) as error:
        raise ParameterError(f"Session({name}={value!r}): {error}. Give bytes, or text as '1 GB'.") from None
    if number <= 0:
        raise ParameterError(f"Session({name}={value!r}): give more than 0 bytes, as '1 GB'.")
    return number
