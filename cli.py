"""The command line: demo, run, explain, check, runs, worker, chaos.

Exit codes: 0 it worked, 1 a run failed or a check found something, 2 the command, the pipeline or its
input is wrong, 130 Ctrl-C, 143 terminated (SIGTERM).
Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import errors
from .version import __version__

if TYPE_CHECKING:
    from .pipeline import Dataset
    from .planner.options import PlanOptions
    from .program import Pipeline
    from .session import RunResult

#: most rows of an output that are shown
SHOWN_ROWS = 10
#: longest line of the demo's plan, in characters
SHOWN_WIDTH = 110

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

#: what a started run may still find wrong with the pipeline or its input, rather than fail at
_INPUT_ERRORS = (
    errors.ColumnNotFoundError,
    errors.TypeMismatchError,
    errors.ParameterError,
    errors.SourceNotFoundError,
    errors.SchemaMismatchError,
    errors.SinkExistsError,
    errors.SerializationError,
)


class _State:
    """What the error handler must know of the command: its options, and whether a run has started."""

    def __init__(self) -> None:
        self.debug = False
        self.running = False
        self.file = ""


def _state() -> _State:
    return click.get_current_context().find_root().ensure_object(_State)


def _set_debug(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    _state().debug |= value


_debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show tracebacks.",
)
_param = click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; repeatable."
)
_outputs = click.option(
    "--output", "outputs", multiple=True, metavar="NAME", help="Only this output; repeatable."
)
_workers = click.option(
    "--workers", type=click.IntRange(1, 1024), help="Local worker processes.  [default: 4]"
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "gpu"]),
    help="What may run on GPUs: what is faster there, nothing, or all that can.",
)
_report = click.option(
    "--report-json", type=click.Path(dir_okay=False), metavar="OUT", help="Write the run report."
)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="headwater")
@_debug
def cli() -> None:
    """Declarative dataflow for data preparation and training, on Dask."""


@cli.command()
@click.option("--rows", type=click.IntRange(1), default=500_000, show_default=True, help="Generated rides.")
@click.option("--output", type=click.Path(), metavar="DIR", help="Keep the cleaned rides here, as Parquet.")
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Local nodes, a worker process each.  [default: 4]"
)
@_report
@_quiet
@_debug
def demo(rows: int, output: str | None, workers: int | None, report_json: str | None, quiet: bool) -> int:
    """Prepare generated data and train a model, twice: the second time with a node killed half-way.

    Exits with 1 if anything differs between the two.
    """
    import tempfile

    from . import demo as example
    from .chaos.demonstration import demonstrate, demonstration_lines
    from .planner.explain import physical_lines
    from .session import plan

    with tempfile.TemporaryDirectory(prefix="headwater-demo-") as folder:
        clean = example.rides.bind(rows=rows, output=str(Path(folder) / "clean"))
        broken = example.rides.bind(rows=rows, output=output or str(Path(folder) / "rides"))
        click.echo(
            f"{rows:,} generated rides through the pipeline in {_short(example.__file__)}, planned as\n"
        )
        click.echo("\n".join(map(_cut, physical_lines(plan(broken, example.OPTIONS)))))
        if report_json:
            Path(report_json).parent.mkdir(parents=True, exist_ok=True)
        _state().running = True
        with _reported(report_json):
            found = demonstrate(
                clean,
                broken,
                example.STEPS // 2,
                nodes=workers or 4,
                options=example.OPTIONS,
                progress=not quiet,
                tell=lambda text: click.echo(f"\n{text}"),
                show=lambda result: _show(result, report_json),
            )
    click.echo()
    click.echo("\n".join(demonstration_lines(found)))
    if not output:
        click.echo("The Parquet files were temporary; --output DIR keeps them.")
    return OK if found.equal else FAILED


@cli.command()
@click.argument("file", metavar="FILE[:NAME]")
@_param
@_outputs
@click.option("--scheduler", metavar="ADDRESS", help="Join a running Dask scheduler, as tcp://host:8786.")
@_workers
@click.option(
    "--reuse", is_flag=True, help="Keep results of stages on the nodes, and begin with what they kept before."
)
@click.option("--kept", metavar="SIZE", help="Most bytes that a node keeps between runs, as '20 GB'.")
@_device
@_report
@_quiet
@_debug
def run(
    file: str,
    params: tuple[str, ...],
    outputs: tuple[str, ...],
    scheduler: str | None,
    workers: int | None,
    reuse: bool,
    kept: str | None,
    device: str | None,
    report_json: str | None,
    quiet: bool,
) -> None:
    """Run the pipeline in a Python file."""
    if scheduler and workers:
        raise click.UsageError(
            "--workers starts a local cluster, --scheduler joins a running one: give one of them."
        )
    pipeline, datasets = _declare(file, params, outputs)
    more: dict[str, Any] = {"reuse": reuse, "kept": kept, "device": device or "auto"}
    _run(pipeline.name, datasets, scheduler, workers, report_json, quiet, **more)


@cli.command()
@click.argument("file", metavar="FILE[:NAME]")
@_param
@_outputs
@_device
@_debug
def explain(file: str, params: tuple[str, ...], outputs: tuple[str, ...], device: str | None) -> None:
    """Show how the pipeline in a Python file would run, without running it; by default on a cluster without GPUs."""
    from .planner.options import PlanOptions
    from .session import explain as explain_plans

    _, datasets = _declare(file, params, outputs)
    click.echo(explain_plans(datasets, PlanOptions(device=device or "cpu")), nl=False)


@cli.command()
@click.argument("file", metavar="FILE[:NAME]")
@_param
@_outputs
@click.option(
    "--partitions",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Most partitions of each function's input.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Local worker processes for what comes before the functions.  [default: none]",
)
@_debug
def check(
    file: str, params: tuple[str, ...], outputs: tuple[str, ...], partitions: int, workers: int | None
) -> int:
    """Find functions that give different results for the same rows.

    Runs the user functions of the pipeline in a Python file on sampled partitions, in processes that
    differ in what must not matter, and exits with 1 if a result differs. Nothing is written.
    """
    from .runtime.check import check as check_functions

    _, datasets = _declare(file, params, outputs)
    _state().running = True
    report = check_functions(datasets, partitions=partitions, workers=workers)
    click.echo(str(report))
    return OK if report.ok else FAILED


@cli.command()
@click.option(
    "--journal", metavar="URL", help="Where the journals are; by default where sessions write them."
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most runs to list.")
@_debug
def runs(journal: str | None, limit: int) -> None:
    """List the runs in the journal, latest first."""
    from .lineage.journal import list_runs

    found = list_runs(journal)
    click.echo(_runs_text(found[:limit]))
    if len(found) > limit:
        click.echo(f"… and {len(found) - limit:,} earlier ones; --limit {len(found)} lists them.")


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("partition", metavar="PARTITION")
@click.option("--scheduler", metavar="ADDRESS", help="Ask the nodes of this cluster which blocks they have.")
@click.option(
    "--journal", metavar="URL", help="Where the journals are; by default where sessions write them."
)
@click.option(
    "--lines", type=click.IntRange(1), default=40, show_default=True, help="Most lines of the tree."
)
@_debug
def lineage(run: str, partition: str, scheduler: str | None, journal: str | None, lines: int) -> None:
    """Show what a PARTITION of a RUN is made from, where that is, and what making it again would cost.

    PARTITION is OUTPUT:INDEX or sSTAGE:INDEX; an index alone if the run has one output.
    """
    from .lineage.history import History
    from .lineage.journal import read
    from .runtime.lineage_text import lineage_text

    history = History(read(run, journal))
    found = history.locate(partition)
    if scheduler:
        from .runtime.survey import find_blocks

        history.observe(find_blocks(scheduler, run))
    click.echo(lineage_text(history, *found, observed=scheduler is not None, most=lines))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Of the cluster to go on with.  [default: the one the run was on]"
)
@click.option(
    "--journal", metavar="URL", help="Where the journals are; by default where sessions write them."
)
@click.option("--steal", is_flag=True, help="Take the run even from a driver that seems to live.")
@_report
@_quiet
@_debug
def resume(
    run: str, scheduler: str | None, journal: str | None, steal: bool, report_json: str | None, quiet: bool
) -> None:
    """Go on with a RUN whose driver died, failed or was interrupted.

    What nodes still have of it isn't computed again. A run that was on a local cluster gets another local
    cluster, on the same scratch folder.
    """
    from .session import session_like

    session = session_like(run, journal, scheduler, progress=not quiet)
    _state().running = True
    with session, _reported(report_json), session.resume(run, steal=steal) as result:
        _show(result, report_json)


@cli.command()
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Worker processes, which share the scratch folder; one that dies is started again.",
)
@click.option(
    "--nthreads",
    type=click.IntRange(1),
    help="Tasks that each process runs at once.  [default: the processors' share]",
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Folder for blocks and spills, on this machine's fastest disk.",
)
@click.option("--quota", metavar="SIZE", help="Most bytes of the scratch folder to use, as '100 GB'.")
@click.option("--name", metavar="NAME", help="Name on Dask's dashboard.  [default: the address]")
@click.option(
    "--host", metavar="HOST", help="Address to listen on.  [default: one that the scheduler reaches]"
)
@click.option(
    "--memory-limit",
    default="auto",
    metavar="SIZE",
    help="Memory of each process to plan with.  [default: the machine's share]",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Give up after so long without a scheduler.  [default: never]",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for running tasks when told to leave.",
)
@click.option("--parent", type=int, hidden=True)
@_debug
def worker(address: str, workers: int, parent: int | None, **options: Any) -> int:
    """Be a worker of the Dask cluster whose scheduler is at ADDRESS, as tcp://host:8786.

    Outlives its scheduler, and joins the next one at the same address. SIGTERM or Ctrl-C leaves politely: running
    tasks are finished, and the last worker of a node hands its blocks to other nodes. A second one
    leaves at once.

    Exits with 3 if no scheduler was found within --grace.
    """
    from .runtime.workers.supervisor import supervise_workers
    from .runtime.workers.worker_host import host_options, serve

    host = host_options(address, workers=workers, parent=parent, verbose=_state().debug, **options)
    _state().running = True
    return serve(host) if workers == 1 else supervise_workers(host, workers)


def _fault(action: str, metavar: str, help: str) -> Any:
    return click.option(f"--{action}", multiple=True, metavar=metavar, help=help)


@cli.command()
@click.argument("file", metavar="FILE[:NAME]")
@_param
@_fault("kill", "WHO[@WHEN]", "SIGKILL a worker, node (with its scratch), scheduler or driver.")
@_fault("hang", "WHO[@WHEN]", "SIGSTOP a worker or node.")
@_fault("return", "node[@WHEN]", "Kill a node that comes back with its scratch.")
@_fault("fill", "node[@WHEN]", "Fill a node's disk.")
@_fault("slow", "worker:10x[@WHEN]", "Slow a worker down.")
@_fault("join", "node[@WHEN]", "Add a node.")
@_fault("leave", "node[@WHEN]", "Ask a node to leave, by SIGTERM.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Runs under faults.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the first run; the next has the next."
)
@click.option(
    "--nodes", type=click.IntRange(1, 64), default=4, show_default=True, help="Nodes of the cluster."
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers of a node."
)
@click.option(
    "--steps", type=click.IntRange(0), default=0, help="Of a training in the pipeline, to draw moments from."
)
@_device
@click.option("--no-replace", is_flag=True, help="Put no fresh nodes in the place of dead ones.")
@click.option("--keep", type=click.Path(file_okay=False), metavar="DIR", help="Keep logs and journals here.")
@click.option("--json", "out", type=click.Path(dir_okay=False), metavar="OUT", help="Write all figures.")
@_debug
def chaos(file: str, params: tuple[str, ...], **options: Any) -> int:
    """Break real processes while a pipeline runs, and compare the bytes with a clean run.

    Runs the pipeline on a cluster of its own, on this machine: clean, then under faults. Exits with 1 if a
    digest, a row or a byte of a file differs, if more was made again than had to be, or if a process or a file
    is left. WHEN is a share of the partitions done (50%), a time (2s), or a phase that a process has reached:
    scan, map, shuffle-write, shuffle-read, reduce, sink, between-stages; or, as train-step:17, a step of a
    training. Without faults, each run draws one to three by its seed.
    """
    from .chaos.command import chaos_command

    _state().running = True
    return OK if chaos_command(file, _parameters(params), **options) else FAILED


def _declare(file: str, params: Sequence[str], outputs: Sequence[str]) -> tuple[Pipeline, dict[str, Dataset]]:
    from .pipeline_file import load_pipeline, split_reference

    _state().file = str(split_reference(file)[0].resolve())
    pipeline = load_pipeline(file)
    datasets = pipeline.bind(_parameters(params))
    for name in outputs:
        if name not in datasets:
            raise errors.ParameterError(
                f"pipeline {pipeline.name} has no output {name!r}. {errors.did_you_mean(name, datasets)}"
            )
    return pipeline, {name: datasets[name] for name in outputs or datasets}


def _parameters(params: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"--param {text!r}: write it as --param name=value.")
        if name.strip() in values:
            raise click.UsageError(f"--param {name.strip()} is given twice.")
        values[name.strip()] = value
    return values


def _run(
    name: str,
    datasets: Mapping[str, Dataset],
    address: str | None,
    workers: int | None,
    report_json: str | None,
    quiet: bool,
    options: PlanOptions | None = None,
    **more: Any,
) -> None:
    from .session import Session

    if report_json:
        Path(report_json).parent.mkdir(parents=True, exist_ok=True)
    _state().running = True
    with (
        Session(address, workers=workers, progress=not quiet, options=options, **more) as session,
        _reported(report_json),
        session.run(datasets, name=name) as result,
    ):
        _show(result, report_json)


def _show(result: RunResult, report_json: str | None) -> None:
    if report_json:
        Path(report_json).write_text(result.report.to_json() + "\n")
    for output in result.outputs:
        click.echo(f"\n{_output_text(output, result)}")
    click.echo(f"\n{_summary(result)}")


@contextmanager
def _reported(report_json: str | None) -> Iterator[None]:
    """Write the report of a run that fails, too."""
    try:
        yield
    except errors.HeadwaterError as error:
        if report_json and error.report is not None:
            Path(report_json).write_text(error.report.to_json() + "\n")
        raise


def _output_text(name: str, result: RunResult) -> str:
    from .ops.training.model_table import MODEL_SCHEMA, decode_model
    from .runtime.display import bytes_text, plural, table_text
    from .runtime.model_text import model_text

    figures = result.report.outputs[name]
    if result.schema(name).equals(MODEL_SCHEMA):
        text = model_text(decode_model(result.table(name)))
        return f"{name}\n{text}\n{bytes_text(figures.bytes)}, digest {figures.digest}"
    first = result.head(name, SHOWN_ROWS)
    more = "\n..." if first.num_rows < (figures.files or figures.rows) else ""
    files = f" in {plural(figures.files, 'file')}" if figures.files else ""
    closing = f"{plural(figures.rows, 'row')}{files}, {bytes_text(figures.bytes)}, digest {figures.digest}"
    return f"{name}\n{table_text(first)}{more}\n{closing}"


def _summary(result: RunResult) -> str:
    from .runtime.display import bytes_text, plural, seconds_text
    from .runtime.recovery_text import recovery_lines

    report = result.report
    local = sum(stage.local_bytes for stage in report.stages)
    remote = sum(stage.remote_bytes for stage in report.stages)
    tasks = sum(stage.tasks for stage in report.stages)
    work = f"{plural(len(report.stages), 'stage')}, {plural(tasks, 'task')}, {seconds_text(report.seconds)}"
    moved = f"{bytes_text(local)} read on their node and {bytes_text(remote)} from others"
    recovery = recovery_lines(report.to_dict()["recovery"], report.seconds)
    return "\n".join([f"Run {report.run}: {work}, {moved}.", *recovery])


def _runs_text(runs: Sequence[Any]) -> str:
    return "\n".join(str(run) for run in runs) or "No runs yet."


def execute(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are told on standard error.

    Args:
        arguments: what follows the program's name.

    Returns:
        0 it worked, 1 a run failed or a check found something, 2 wrong usage or input, 130 interrupted.
    """
    state = _State()
    try:
        # not cli.main(...), which exits with 1 where whoever reads our output has gone
        with cli.make_context("headwater", list(arguments), obj=state) as context:
            return cli.invoke(context) or OK
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; nothing half-written is left.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return _broken_pipe()
    except errors.HeadwaterError as error:
        _tell(error, state)
        return FAILED if state.running and not isinstance(error, _INPUT_ERRORS) else USAGE
    except Exception as error:
        _tell(error, state)
        return FAILED if state.running else USAGE


def _tell(error: Exception, state: _State) -> None:
    if state.debug:
        traceback.print_exception(error)
        return
    known = isinstance(error, errors.HeadwaterError)
    text = str(error).partition("\nTraceback (")[0] if known else f"{type(error).__name__}: {error}"
    traces = [e.__traceback__ for e in (error, error.__cause__) if e is not None]
    frames = [f for trace in traces for f in traceback.extract_tb(trace) if f.filename == state.file]
    where = f"\n  at {_short(frames[-1].filename)}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    more = "" if known or where else " (--debug shows where)"
    click.echo(f"Error: {text}{more}{where}", err=True)


def _short(path: str) -> str:
    here = Path(path)
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def _cut(line: str) -> str:
    return line if len(line) <= SHOWN_WIDTH else f"{line[: SHOWN_WIDTH - 1]}…"


def _broken_pipe() -> int:
    """Whoever read our output has gone, as ``head`` does; keep Python from complaining when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """The ``headwater`` command."""
    signal.signal(signal.SIGTERM, _terminated)  # so that it cleans up, as after Ctrl-C
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
