"""``graphlossy train``: the main job."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphlossy.cli._errors import user_errors
from graphlossy.cli._progress import ProgressBars
from graphlossy.cli._ranks import RankCommand
from graphlossy.cli._train_options import folder_name, setting_options
from graphlossy.datasets import DatasetError
from graphlossy.train import (
    Experiment,
    Interrupted,
    Observer,
    TrainConfig,
    TrainError,
    comparison_notes,
    comparison_rows,
)
from graphlossy.train._format import counted
from graphlossy.train.distributed import is_main

__all__ = ["command"]

NOT_SETTINGS = ("out", "resume", "as_json", "quiet", "checkpoint_seconds")


@click.command(name="train", cls=RankCommand)
@setting_options
@click.option(
    "--out",
    callback=folder_name,
    metavar="FOLDER",
    help="Run folder.  [default: runs/<dataset>-<model>-<time>]",
)
@click.option(
    "--resume",
    callback=folder_name,
    metavar="FOLDER",
    help="Continue the run in FOLDER, with its own settings.",
)
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Least time between checkpoints; 0 writes one after every epoch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Train a graph network, float32 and compressed side by side, over several seeds.

    Without options it trains on the embedded graph in at most three minutes on two cores. It ends with a table
    (accuracy, bytes saved for the backward pass, peak memory, time, with their ratio to the baseline) and leaves a run
    folder with config.json, metrics.jsonl, checkpoints, summary.json and report.html.

    \b
    Examples:
      graphlossy train
      graphlossy train --model sage --bits 4,2,1
      graphlossy train --dataset graph.npz --budget 200MiB
      graphlossy train --dataset cora --model gcn2 --layers 16 --hidden 64 --seeds 5
      graphlossy train --dataset ogbn-arxiv --preset ogb --model sage
      graphlossy train --dataset synth-products --scale 0.02 --preset ogb --model sage --sampler neighbor --seeds 1
      graphlossy train --dataset synth-arxiv --sparsify degree:0.5 --adj csr
      graphlossy train --device cuda --amp --json > summary.json
      graphlossy train --resume runs/wordnet-verbs-gcn-20260101-120000

    \b
    On several processes, GPUs (one each) or machines: torchrun. With --max-restarts they go on by themselves.
      torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m graphlossy.cli train --sampler neighbor
      torchrun --standalone --nproc-per-node 8 -m graphlossy.cli train --device cuda --gradient-bits 4
    """
    errors = Console(stderr=True, quiet=not is_main())
    with user_errors(TrainError, DatasetError):
        experiment = _experiment(ctx, options)
        try:
            if options["quiet"] or options["as_json"] or not is_main():
                summary = experiment.run(Observer())
            else:
                with ProgressBars(errors) as bars:
                    summary = experiment.run(bars)
        except Interrupted as stop:
            errors.print(str(stop), style="bold", markup=False, highlight=False, soft_wrap=True)
            ctx.exit(128 + stop.signal_number)
        except KeyboardInterrupt:
            folder = experiment.folder
            if folder.config_file.exists():
                again = f"graphlossy train --resume {shlex.quote(str(folder.path))}"
                errors.print(f"stopped; continue with: {again}", markup=False, highlight=False, soft_wrap=True)
            else:
                errors.print("stopped before training began; nothing was written")
            ctx.exit(130)
    if experiment.rank.is_main:
        _show(summary, experiment, options["as_json"])
    if not any(scheme["seeds"] for scheme in summary["schemes"]):
        raise click.UsageError(
            "no run was finished: every scheme ran out of memory; give a smaller --hidden or --layers"
        )


def _show(summary: dict[str, Any], experiment: Experiment, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to fit into
    console.print(_table(summary))
    for note in comparison_notes(summary):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {experiment.folder.report_file}", markup=False, highlight=False, soft_wrap=True)


def _experiment(ctx: click.Context, options: dict[str, Any]) -> Experiment:
    settings = {name: value for name, value in options.items() if name not in NOT_SETTINGS}
    if options["budget"] is not None and _given(ctx, "bits"):
        raise TrainError("give --bits or --budget, not both")
    if options["resume"] is None:
        return Experiment(_config(ctx, settings), options["out"], options["checkpoint_seconds"])
    given = [name for name in (*settings, "out") if _given(ctx, name)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise TrainError(f"--resume takes its settings from the run folder; leave out {names}")
    return Experiment.resume(options["resume"], options["checkpoint_seconds"])


def _config(ctx: click.Context, settings: dict[str, Any]) -> TrainConfig:
    preset = settings.pop("preset")
    if preset is None:
        return TrainConfig(**settings)
    dataset = settings.pop("dataset")
    given = {name: value for name, value in settings.items() if _given(ctx, name)}
    return TrainConfig.from_preset(preset, dataset, **given)


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _table(summary: dict[str, Any]) -> Table:
    head, *rows = comparison_rows(summary)
    data, settings = summary["data"], summary["settings"]
    mark = " (synthetic stand-in)" if data["synthetic"] and data["reference"] else ""
    what = f"{escape(str(data['name']))}{mark}, {settings['model']}"
    ranks = f", {summary['world_size']} processes" if summary.get("world_size", 1) > 1 else ""
    title = f"{what}, {counted(settings['seeds'], 'seed')}{ranks} (in brackets: ratio to the baseline)"
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
