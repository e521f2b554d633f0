"""``graphlossy outliers``: the benchmark of detectors of outlying nodes, its tables, and scores of a user's graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from graphlossy.cli._errors import user_errors
from graphlossy.cli._options import path_of, with_root
from graphlossy.cli._outliers_lists import datasets_command, methods_command
from graphlossy.cli._outliers_options import jobs_of, names_of, options_of, statuses_of
from graphlossy.cli._outliers_results import compare_command, report_command, table_command, write_report
from graphlossy.cli._outliers_score import score_command
from graphlossy.cli._subcommands import CommandGroup

__all__ = ["command"]

# What `run` does where neither data sets nor methods are given: minutes, not hours.
QUICK: dict[str, Any] = {
    "datasets": ["inj_wordnet"],
    "methods": ["lof", "if", "scan", "mlpae", "gcnae", "dominant"],
    "trials": 2,
    "options": {"*": {"epoch": 20}},
}


@click.group(name="outliers", cls=CommandGroup, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Benchmark detectors of outlying nodes as BOND does, reproducibly, and score graphs of your own.

    \b
    Examples:
      graphlossy outliers run
      graphlossy outliers run --datasets books,inj_cora --methods lof,gcnae,dominant --trials 20 --out study
      graphlossy outliers table study --metric recall --format markdown
      graphlossy outliers report study
      graphlossy outliers compare study
      graphlossy outliers score mine.npz --method dominant --out scores.csv
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command(name="run", short_help="Run methods on data sets, trial by trial.")
@click.option("--datasets", callback=names_of, metavar="NAME|PATH[,...]",
              help="Data sets: names (see `graphlossy outliers datasets`), files or folders.  "
              "[default: inj_wordnet]")  # fmt: skip
@click.option("--methods", callback=names_of, metavar="NAME[,...]",
              help="Methods (see `graphlossy outliers methods`) or package.module:Class.  [default: all]")  # fmt: skip
@click.option("--trials", type=click.IntRange(1, 100_000), metavar="N",
              help="Trials of each method on each data set.  [default: 20]")  # fmt: skip
@click.option("--protocol", type=click.Choice(["bond", "fixed"]), default="bond", show_default=True,
              help="Hyper-parameters: drawn anew in every trial, or the published defaults.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the whole run.")
@click.option("--out", callback=path_of, metavar="DIR", help="Results; trials that are there already are not run again."
              "  [default: runs/outliers]")  # fmt: skip
@click.option("--jobs", callback=jobs_of, metavar="N|auto|ray[:N]", help="Processes; ray: a Ray cluster, if Ray is "
              "installed.  [default: 1]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True,
              help="Of each process; scores may differ between numbers of threads.")  # fmt: skip
@click.option("--time-limit", type=float, metavar="SECONDS", help="Of one fit; beyond it: TLE.")
@click.option("--memory-limit", metavar="SIZE", help="Of one fit, such as 4GiB; beyond it: OOM.")
@click.option("--engine", callback=names_of, default="native", show_default=True, metavar="NAME[,...]",
              help="Whose implementations: native, pygod, pyod; of several, each runs what it has.")  # fmt: skip
@click.option("--bits", type=click.Choice(["8", "4", "3", "2", "1"]), help="Width of saved activations, of the methods "
              "that have them.")  # fmt: skip
@click.option("--device", metavar="cpu|cuda[:N]", help="Where the methods that can choose run.  [default: cpu]")
@click.option("--set", "options", multiple=True, callback=options_of, metavar="[METHOD.]NAME=VALUE",
              help="A constructor argument, instead of what the protocol says; may be repeated.")  # fmt: skip
@click.option(
    "--retry", callback=statuses_of, metavar="STATUS[,...]", help="Run trials again that are failed, TLE, OOM."
)
@click.option("--save-scores", is_flag=True, help="Keep the scores of every trial, DIR/scores/*.npy.")
@with_root
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON and nothing else on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.pass_context
def run_command(
    ctx: click.Context, as_json: bool, quiet: bool, bits: str | None, device: str | None, **given: Any
) -> None:
    """Run methods on data sets, trial by trial, each in a worker process; a record of each is kept in DIR.

    Hyper-parameters and seed of a trial follow from --seed and its place in the grid, so the scores do not depend on
    --jobs, on the rest of the grid, or on a run that was stopped and taken up again. Five rows that need no model
    (degree, feature norm, the higher of both ranks, copies of features, random) are always added. Ends with 1 where
    nothing but those five rows was done.

    Without --datasets and --methods it is a quick look, in minutes: lof, if, scan, mlpae, gcnae and dominant on the
    embedded graph inj_wordnet, with --trials 2, --set epoch=20, --jobs auto and --out runs/outliers-quick where these
    are not given. With --methods alone the data set is inj_wordnet as well, and all else is as usual.

    \b
    DIR has:
      trials.jsonl    a line for each trial: parameters, AUC, AP, recall@k, seconds, bytes, or why there are none
      run.json        settings, versions, data sets
      report.html     tables and pictures
      scores/         with --save-scores

    \b
    Examples:
      graphlossy outliers run
      graphlossy outliers run --datasets books,inj_cora,inj_amazon,gen_1000 --jobs auto --out bond
      graphlossy outliers run --datasets synth_1000,synth_10000,synth_100000 --protocol fixed --trials 1
          --time-limit 600 --memory-limit 4GiB --out scaling
      graphlossy outliers run --datasets gen_1000 --methods dominant --engine native,pyod --out peers
      graphlossy outliers run --datasets shop.npz#fraud --methods gcnae,dominant --bits 2 --set epoch=100
    """
    from graphlossy.outliers.runner import BenchmarkError, Results, benchmark
    from graphlossy.outliers.runner.bars import GridBars
    from graphlossy.outliers.runner.methods import LEAK_ROWS

    errors = Console(stderr=True)
    for name, value in (("bits", None if bits is None else int(bits)), ("device", device)):
        if value is not None:
            given["options"].setdefault("*", {})[name] = value
    if given["datasets"] is None and given["methods"] is None:
        _quick(given, errors, quiet or as_json)
    elif given["datasets"] is None:
        given["datasets"] = QUICK["datasets"]
    given["trials"], given["jobs"] = given["trials"] or 20, given["jobs"] or 1
    folder = given["out"] = given["out"] or Path("runs") / "outliers"
    with user_errors(BenchmarkError):
        try:
            if quiet or as_json:
                results = benchmark(progress=False, **given)
            else:
                with GridBars(errors) as bars:
                    results = benchmark(progress=bars, **given)
        except KeyboardInterrupt:
            done = f"what is done is in {folder}; " if folder.exists() else ""
            _say(errors, f"stopped; {done}the same command goes on from there")
            ctx.exit(130)
        if as_json:
            content = {"settings": results.settings, "datasets": results.datasets, "trials": results.records}
            click.echo(json.dumps(content, indent=2, allow_nan=False))
        else:
            click.echo(results.table(), nl=False)
            # Of all that the folder holds, of which this grid may be a part.
            click.echo(f"\nreport: {write_report(Results.read(folder), folder / 'report.html')}")
    asked = {record["method"] for record in results.records if record["method"] not in LEAK_ROWS}
    if asked and not any(record["status"] == "done" and record["method"] in asked for record in results.records):
        _say(errors, "none of the methods that were asked for was done; the notes say why")
        ctx.exit(1)


def _quick(given: dict[str, Any], errors: Console, silent: bool) -> None:
    """A small real run for a first look."""
    given["datasets"], given["methods"] = QUICK["datasets"], QUICK["methods"]
    if given["trials"] is None:
        given["trials"] = QUICK["trials"]
    general = given["options"].setdefault("*", {})
    given["options"]["*"] = {**QUICK["options"]["*"], **general}
    given["jobs"] = given["jobs"] or "auto"
    given["out"] = given["out"] or Path("runs") / "outliers-quick"
    if not silent:
        _say(
            errors,
            f"a quick look: {', '.join(QUICK['methods'])} on {QUICK['datasets'][0]}, {given['trials']} trials of "
            f"{given['options']['*']['epoch']} epochs; give --datasets and --methods for the benchmark",
        )


for _other in (
    table_command,
    report_command,
    compare_command,
    score_command,
    datasets_command,
    methods_command,
):
    command.add_command(_other)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
