"""``graphlossy outliers datasets`` and ``methods``: what there is."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graphlossy.cli._options import with_json, with_root

__all__ = ["datasets_command", "methods_command"]


@click.command(name="datasets", short_help="What there is, and whether it is here.")
@with_root
@with_json
def datasets_command(root: Path | None, as_json: bool) -> None:
    """List the data sets that are known by name, and where they were found.

    \b
    Examples:
      graphlossy outliers datasets
      graphlossy outliers datasets --root ~/pygod-data
    """
    from graphlossy.outliers.data import DESCRIPTIONS, find

    rows = []
    for name, text in DESCRIPTIONS.items():
        made = "generated" if name.startswith("synth_") else "embedded" if "wordnet" in name else None
        place = made or find(name, root)
        rows.append({"name": name, "here": None if place is None else str(place), "what": text})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _show(["name", "here", "what"], [[row["name"], row["here"] or "-", row["what"]] for row in rows])
    click.echo(
        "-: not here; put NAME.pt, NAME.pt.zip or NAME.npz into the folder of the data sets, or into outliers/ in it.\n"
        "Also: .npz and .pt files, OGB folders, and FILE#LABELS with labels of your own."
    )


@click.command(name="methods", short_help="All methods: memory, seed, engines.")
@with_json
def methods_command(as_json: bool) -> None:
    """List the methods: what they need of a graph and take of memory, whether they draw at random, and their engines.

    \b
    Example:
      graphlossy outliers methods --json
    """
    from graphlossy.outliers import engines
    from graphlossy.outliers.methods import METHODS

    here = engines.available()
    rows = []
    for name, cls in METHODS.items():
        having = [engine for engine in here if name in engines.METHODS[engine]]
        rows.append({"name": name, "title": cls.title, "needs": list(cls.needs), "memory": cls.memory,
                     "seeded": cls.seeded, "engines": having, "paper": cls.paper})  # fmt: skip
    if as_json:
        click.echo(json.dumps({"engines": here, "methods": rows}, indent=2))
        return
    lines = [
        [r["name"], r["title"], ", ".join(r["needs"]) or "-", r["memory"], "yes" if r["seeded"] else "no",
         ", ".join(r["engines"])]
        for r in rows
    ]  # fmt: skip
    _show(["name", "title", "needs", "memory", "random", "engines"], lines)
    told = ", ".join(f"{name} {version or 'not installed'}" for name, version in here.items())
    click.echo(f"x: features of nodes.  n: nodes, m: edges, d: features.  Engines: {told}.")


def _show(head: list[str], rows: list[list[str]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no width to fit into
    table = Table(show_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
