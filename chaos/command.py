"""chaos_command: ``headwater chaos``, from its options to what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..runtime.display import plural, seconds_text
from .cluster import ChaosCluster
from .harness import ChaosPlan, ChaosRun, chaos_runs
from .schedule import ACTIONS, parse_fault
from .text import summary_text


def chaos_command(file: str, params: Mapping[str, str], **options: Any) -> bool:
    """Run a pipeline under faults, and print what came of each run.

    Args:
        file: ``FILE[:NAME]``.
        params: of the pipeline.
        options: of the command: a tuple of texts for each action; runs, seed, nodes, workers, no_replace, keep,
            out, steps, device.

    Returns:
        Whether all runs were as the clean one, and left nothing.
    """
    faults = [parse_fault(action, text) for action in ACTIONS for text in options[action]]
    plan = ChaosPlan(
        file,
        params,
        faults,
        options["runs"],
        options["seed"],
        options["nodes"],
        options["workers"],
        not options["no_replace"],
        steps=options["steps"],
        device=options["device"] or "auto",
    )
    folder = Path(options["keep"]).absolute() if options["keep"] else None
    runs: list[ChaosRun] = []
    for run in chaos_runs(plan, folder, _started):
        if not runs:
            clean = run.result.clean
            click.echo(f"clean: {seconds_text(clean.seconds)}")
            for name, digest in clean.digests.items():
                click.echo(f"    {name}: digest {digest}")
        runs.append(run)
        click.echo(run.text)
        _write(options["out"], runs)
    click.echo(summary_text([run.result for run in runs]))
    return all(run.result.ok for run in runs)


def _started(cluster: ChaosCluster) -> None:
    size = f"{plural(cluster.size, 'node')} of {plural(cluster.workers_per_node, 'worker')}"
    click.echo(f"cluster of {size} at {cluster.address}, in {cluster.folder}", err=True)


def _write(path: str | None, runs: list[ChaosRun]) -> None:
    """After each run, so that what is cut off has told what it knew."""
    if path is not None:
        Path(path).write_text(json.dumps([run.record() for run in runs], indent=2) + "\n")
