"""``graphlossy outliers table``, ``report`` and ``compare``: what a run has found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphlossy.cli._errors import user_errors
from graphlossy.cli._options import path_of
from graphlossy.cli._outliers_options import names_of

__all__ = ["compare_command", "report_command", "table_command", "write_report"]

DIRECTORY = click.argument("folder", metavar="DIR", callback=path_of)


@click.command(name="table", short_help="Mean±std (max) of a run.")
@DIRECTORY
@click.option("--metric", "metrics", callback=names_of, default="auc", show_default=True, metavar="NAME[,...]",
              help="auc, ap, recall, each also as auc:contextual and auc:structural; seconds, epoch_seconds, "
              "peak_bytes, saved_bytes, plain_bytes.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "markdown", "latex", "csv"]), default="text",
              show_default=True)  # fmt: skip
def table_command(folder: Path, metrics: list[str], form: str) -> None:
    """Print mean±std (max) of each method on each data set, as the paper does; DIR may be of a run that goes on.

    \b
    Examples:
      graphlossy outliers table study
      graphlossy outliers table study --metric auc:contextual,auc:structural --format markdown
      graphlossy outliers table study --metric seconds --format csv > seconds.csv
    """
    from graphlossy.outliers.runner import BenchmarkError, Results

    with user_errors(BenchmarkError):
        results = Results.read(folder)
        tables = [results.table(metric, form) for metric in metrics]
        if form == "csv":  # one file: each line has its metric
            tables = [tables[0], *(table.partition("\n")[2] for table in tables[1:])]
        click.echo(("" if form == "csv" else "\n").join(tables), nl=False)


@click.command(name="report", short_help="A page with tables and pictures.")
@DIRECTORY
@click.option("--out", callback=path_of, metavar="FILE", help="Where to write it.  [default: DIR/report.html]")
def report_command(folder: Path, out: Path | None) -> None:
    """Write a self-contained page: tables, critical-difference diagram, seconds and bytes against the number of nodes.

    \b
    Example:
      graphlossy outliers report study --out study.html
    """
    from graphlossy.outliers.runner import BenchmarkError, Results

    with user_errors(BenchmarkError):
        click.echo(f"report: {write_report(Results.read(folder), out or folder / 'report.html')}")


@click.command(name="compare", short_help="The paper's figures beside those of a run.")
@DIRECTORY
@click.option("--format", "form", type=click.Choice(["text", "markdown", "csv"]), default="text", show_default=True)
def compare_command(folder: Path, form: str) -> None:
    """Print the figures of the paper (BOND, arXiv 2206.10071) beside those of a run, and why they differ.

    \b
    Example:
      graphlossy outliers compare study --format markdown
    """
    from graphlossy.outliers.runner import BenchmarkError, Results

    with user_errors(BenchmarkError):
        click.echo(Results.read(folder).compare(form), nl=False)


def write_report(results: Any, path: Path) -> Path:
    """Writes the page; a file that cannot be written is the user's to change."""
    from graphlossy.outliers.runner import BenchmarkError

    try:
        return results.report(path)
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {error.strerror or error}") from None
