"""``graphlossy train``: the main job."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphlossy.cli._errors import user_errors
from graphlossy.cli._progress import ProgressBars
from graphlossy.datasets import DatasetError
from graphlossy.train import MODELS, Experiment, Interrupted, Observer, TrainConfig, TrainError, comparison_rows

__all__ = ["command"]

DEFAULT = TrainConfig()
NOT_SETTINGS = ("out", "resume", "as_json", "quiet", "checkpoint_seconds")


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 2 or 4,2,1, got {value!r}") from None


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(","))


def _split(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"expected a number or all, got {value!r}")
    return int(value)


def _folder(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    if value is not None and (not value or "\0" in value):
        raise click.BadParameter(f"expected the name of a folder, got {value!r}")
    return None if value is None else Path(value)


@click.command(name="train")
@click.option(
    "--dataset",
    metavar="NAME|FILE|FOLDER",
    default=DEFAULT.dataset,
    show_default=True,
    help="Embedded, Planetoid or PyG name, an .npz file, or a folder.",
)
@click.option("--model", default=DEFAULT.model, show_default=True, metavar="|".join(MODELS), help="Graph network.")
@click.option("--layers", type=int, default=DEFAULT.layers, show_default=True, help="Graph convolutions.")
@click.option("--hidden", type=int, default=DEFAULT.hidden, show_default=True, help="Width of the hidden layers.")
@click.option("--heads", type=int, default=DEFAULT.heads, show_default=True, help="Attention heads (gat).")
@click.option("--dropout", type=float, default=DEFAULT.dropout, show_default=True, help="Dropout probability.")
@click.option("--norm/--no-norm", default=DEFAULT.norm, show_default=True, help="BatchNorm between the layers.")
@click.option(
    "--bits",
    callback=_numbers,
    default="2",
    show_default=True,
    metavar="N[,N...]",
    help="Bits per stored number: 1, 2, 3, 4 or 8; several make several compressed runs.",
)
@click.option("--budget", metavar="SIZE", help="Bytes for all saved tensors, such as 800MiB, instead of --bits.")
@click.option(
    "--schemes",
    callback=_names,
    default="baseline,compressed",
    show_default=True,
    metavar="NAME[,NAME]",
    help="What to train: baseline, compressed or both.",
)
@click.option("--epochs", type=int, default=DEFAULT.epochs, show_default=True, help="Full-batch steps of each run.")
@click.option("--seeds", type=int, default=DEFAULT.seeds, show_default=True, help="Runs of each scheme.")
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True, help="The first seed.")
@click.option(
    "--split", callback=_split, default="0", show_default=True, metavar="N|all", help="Split; all: one for each seed."
)
@click.option("--lr", type=float, default=DEFAULT.lr, show_default=True, help="Adam's learning rate.")
@click.option("--weight-decay", type=float, default=DEFAULT.weight_decay, show_default=True, help="L2 penalty.")
@click.option(
    "--device",
    default=DEFAULT.device,
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    help="Where to train; auto takes CUDA where there is one.",
)
@click.option("--amp", is_flag=True, help="bfloat16 autocast in the forward pass of every run.")
@click.option(
    "--adj",
    default=DEFAULT.adj,
    show_default=True,
    metavar="edge_index|csr",
    help="How the model is given the graph: plain edge_index or a sparse CSR matrix.",
)
@click.option("--threads", type=int, help="CPU threads.  [default: torch's choice]")
@click.option(
    "--out",
    callback=_folder,
    metavar="FOLDER",
    help="Run folder.  [default: runs/<dataset>-<model>-<time>]",
)
@click.option(
    "--resume",
    callback=_folder,
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
      graphlossy train --device cuda --amp --json > summary.json
      graphlossy train --resume runs/wordnet-verbs-gcn-20260101-120000
    """
    errors = Console(stderr=True)
    with user_errors(TrainError, DatasetError):
        experiment = _experiment(ctx, options)
        try:
            if options["quiet"] or options["as_json"]:
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
    console.print(f"report: {experiment.folder.report_file}", markup=False, highlight=False, soft_wrap=True)


def _experiment(ctx: click.Context, options: dict[str, Any]) -> Experiment:
    settings = {name: value for name, value in options.items() if name not in NOT_SETTINGS}
    if options["budget"] is not None and _given(ctx, "bits"):
        raise TrainError("give --bits or --budget, not both")
    if options["resume"] is None:
        return Experiment(TrainConfig(**settings), options["out"], options["checkpoint_seconds"])
    given = [name for name in (*settings, "out") if _given(ctx, name)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise TrainError(f"--resume takes its settings from the run folder; leave out {names}")
    return Experiment.resume(options["resume"], options["checkpoint_seconds"])


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _table(summary: dict[str, Any]) -> Table:
    head, *rows = comparison_rows(summary)
    data, settings = summary["data"], summary["settings"]
    what = f"{escape(str(data['name']))}, {settings['model']}"
    title = f"{what}, {settings['seeds']} seeds (in brackets: ratio to the baseline)"
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
