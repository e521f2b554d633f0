"""``graphlossy plan``: what fits a memory, answered before anything is trained."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphlossy._plan import KNOWN_GRAPHS, GraphShapes, Plan, Scheme, plan
from graphlossy._plan._shapes import as_shapes, known_graph
from graphlossy.cli._errors import user_errors
from graphlossy.core.budget import format_bytes, parse_bytes
from graphlossy.train import BITS, MODELS, TrainConfig, build_model

__all__ = ["command"]

DEFAULT = TrainConfig()
MOST, WIDEST = 10**12, 2**24  # beyond any graph; larger numbers would not fit torch's own sizes
TOO_LARGE = (
    "not enough memory for the model or for the small graphs it is tried on; give a smaller --hidden, --layers or "
    "--features"
)
SIZES = {"nodes": "num_nodes", "edges": "num_edges", "features": "num_features", "classes": "num_classes",
         "train_nodes": "num_train_nodes"}  # fmt: skip


def _bits(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        bits = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 2 or 8,4,2, got {value!r}") from None
    for width in bits:
        if width not in BITS:
            raise click.BadParameter(f"bits must be 1, 2, 3, 4 or 8, got {width}")
    return bits


@click.command(name="plan")
@click.option(
    "--dataset",
    metavar="NAME|FILE|FOLDER",
    help=f"{', '.join(KNOWN_GRAPHS)}, or what `graphlossy train` takes.  [default: {DEFAULT.dataset}]",
)
@click.option(
    "--nodes", type=click.IntRange(1, MOST), metavar="N", help="Nodes, without a data set or instead of its own."
)
@click.option(
    "--edges", type=click.IntRange(0, MOST), metavar="E", help="Columns of edge_index: an undirected edge counts twice."
)
@click.option("--features", type=click.IntRange(1, WIDEST), metavar="F", help="Width of the node features.")
@click.option("--classes", type=click.IntRange(1, WIDEST), metavar="C", help="Classes.")
@click.option(
    "--train-nodes", type=click.IntRange(1, MOST), metavar="T", help="Nodes whose loss is taken.  [default: all]"
)
@click.option("--model", default=DEFAULT.model, show_default=True, metavar="|".join(MODELS), help="Graph network.")
@click.option("--layers", type=int, default=DEFAULT.layers, show_default=True, help="Graph convolutions.")
@click.option("--hidden", type=int, default=DEFAULT.hidden, show_default=True, help="Width of the hidden layers.")
@click.option("--heads", type=int, default=DEFAULT.heads, show_default=True, help="Attention heads (gat).")
@click.option("--dropout", type=float, default=DEFAULT.dropout, show_default=True, help="Dropout probability.")
@click.option("--norm/--no-norm", default=DEFAULT.norm, show_default=True, help="BatchNorm between the layers.")
@click.option(
    "--adj",
    type=click.Choice(["edge_index", "csr"]),
    default=DEFAULT.adj,
    show_default=True,
    help="How the model is given the graph.",
)
@click.option(
    "--bits",
    callback=_bits,
    default="8,4,2,1",
    show_default=True,
    metavar="N[,N...]",
    help="Bits per stored number to plan for: 1, 2, 3, 4 or 8.",
)
@click.option("--budget", metavar="SIZE", help="Also compress to this many saved bytes, such as 1.5GiB.")
@click.option("--amp", is_flag=True, help="Also the low bits together with bfloat16 autocast.")
@click.option("--memory", metavar="SIZE", help="Memory there is, such as 8GiB: says what fits, and the largest graph.")
@click.option(
    "--optimizer",
    type=click.Choice(["adam", "momentum", "sgd"]),
    default="adam",
    show_default=True,
    help="Whose state is counted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, all figures in bytes.")
def command(dataset: str | None, memory: str | None, as_json: bool, **options: Any) -> None:
    """Predict the memory of training a graph network, scheme by scheme, without the data and in seconds.

    A few training steps on small random graphs show how every saved tensor grows with the nodes and edges. "saved" is
    what is kept for the backward pass, "peak" the most in use during a step beyond what is always there, and "in all"
    adds that: weights, gradients, optimizer state, features, graph and labels. Saved bytes are within 5 %; of the peak,
    scratch memory inside kernels is not known, so leave a fifth of the memory free.

    \b
    Examples:
      graphlossy plan --dataset ogbn-products --model sage --hidden 256 --memory 24GiB
      graphlossy plan --dataset ogbn-arxiv --edges 2315598 --model gat --bits 4,2
      graphlossy plan --nodes 1000000 --edges 20000000 --features 64 --classes 10 --memory 8GiB
      graphlossy plan --dataset graph.npz --model gcn2 --layers 16 --json
    """
    with user_errors(ValueError), _in_words_of_the_options():
        limit = None if memory is None else _positive("--memory", memory)
        budget = None if options["budget"] is None else _positive("--budget", options["budget"])
        shapes = _shapes(dataset, {ours: options[name] for name, ours in SIZES.items()})
        settings = {name: options[name] for name in ("model", "layers", "hidden", "heads", "dropout", "norm", "adj")}
        config = TrainConfig(**settings)
        found = plan(
            _model(config, shapes),
            shapes,
            schemes=_schemes(options["bits"], budget, options["amp"]),
            adj=config.adj,
            optimizer=options["optimizer"],
        )
        why = None if budget is None else found.left_out.get(Scheme(budget=budget).name)
        if why is not None:
            raise ValueError(f"--budget {options['budget']} {why}")
    name = dataset or ("these sizes" if options["nodes"] else DEFAULT.dataset)
    if as_json:
        click.echo(json.dumps(_as_dict(found, limit), indent=2, allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to fit into
    title = f"{name}, {config.layers}-layer {config.model}, {config.hidden} wide: predicted memory of a training step"
    console.print(_table(found, limit, escape(title)))
    for line in _notes(found, limit):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _in_words_of_the_options() -> Iterator[None]:
    """Errors name the options instead of the arguments of Python's functions, and say so if memory is used up."""
    try:
        yield
    except MemoryError:
        raise ValueError(TOO_LARGE) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ValueError(TOO_LARGE) from None
    except ValueError as error:
        if "can't allocate memory" in str(error):
            raise ValueError(TOO_LARGE) from None
        message = str(error).partition("; if it needs other arguments")[0]  # the models here are our own
        for option, argument in SIZES.items():
            message = message.replace(argument, f"--{option.replace('_', '-')}")
        raise ValueError(message) from error


def _positive(option: str, size: str) -> int:
    try:
        found = parse_bytes(size)
    except ValueError:
        found = 0
    if found <= 0:
        raise ValueError(f"{option} must be a positive size such as 800MiB or 8GiB, got {size!r}")
    return found


def _shapes(dataset: str | None, numbers: dict[str, int | None]) -> GraphShapes:
    if dataset is None and numbers["num_nodes"] is None:
        dataset = DEFAULT.dataset
    if dataset is None:
        missing = [name for name, ours in SIZES.items() if name != "train_nodes" and numbers[ours] is None]
        if missing:
            raise ValueError(f"without --dataset, give {', '.join('--' + name for name in missing)} too")
        return as_shapes(None, **numbers)
    if known_graph(dataset) is not None:
        return as_shapes(dataset, **numbers)
    from graphlossy.datasets import load, names

    near = difflib.get_close_matches(dataset, KNOWN_GRAPHS, 1, 0.8)
    if near and dataset.lower() not in map(str.lower, names()) and not Path(dataset).exists():
        raise ValueError(f"there is no data set {dataset!r}; did you mean {near[0]!r}?")

    return as_shapes(load(dataset), **numbers)


def _model(config: TrainConfig, shapes: GraphShapes) -> Any:
    import torch

    if shapes.num_classes is None:
        raise ValueError("the data set has no labels; give --classes")
    with torch.random.fork_rng([]):
        return build_model(config.model, shapes.num_features, config.hidden, shapes.num_classes, config.layers,
                           config.dropout, config.norm, config.heads)  # fmt: skip


def _schemes(bits: tuple[int, ...], budget: int | None, amp: bool) -> list[Scheme]:
    low = [Scheme(bits=width) for width in bits]
    low += [] if budget is None else [Scheme(budget=budget)]
    both = [replace(scheme, autocast=True) for scheme in low] if amp else []
    return [Scheme(autocast=True), Scheme(checkpointed=True), *low, *both]


def _as_dict(found: Plan, limit: int | None) -> dict[str, Any]:
    values = found.to_dict()
    if limit is not None:
        values["memory_bytes"] = limit
        fits = found.fits(limit)
        for row in values["schemes"]:
            row["fits"] = row["scheme"] in fits
            row["largest"] = found.largest(limit, row["scheme"])
    return values


def _table(found: Plan, limit: int | None, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("scheme")
    for name in ("saved", "less", "peak", "less", "in all"):
        table.add_column(name, justify="right")
    table.add_column("gradient")
    fits = [] if limit is None else found.fits(limit)
    if limit is not None:
        table.add_column("fits")
        table.add_column(f"most nodes in {format_bytes(limit)}", justify="right")
    for row in found.rows:
        cells = [row.scheme, format_bytes(row.saved_bytes), f"{row.ratio:.1f}x", format_bytes(row.peak_bytes),
                 f"{row.peak_ratio:.1f}x", format_bytes(row.total_bytes), row.gradient]  # fmt: skip
        if limit is not None:
            cells += ["yes" if row.scheme in fits else "no", f"{found.largest(limit, row.scheme)['nodes']:,}"]
        table.add_row(*cells)
    return table


def _notes(found: Plan, limit: int | None) -> list[str]:
    sizes = ", ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in found.sizes.items())
    notes = [f"sizes: {sizes}"]
    notes += [f"always there: {', '.join(f'{name} {format_bytes(size)}' for name, size in found.fixed.items())}"]
    notes += [f"{name} left out: {why}" for name, why in found.left_out.items()]
    if limit is None:
        return notes
    fits = found.fits(limit)
    least = min(found.rows, key=lambda row: row.total_bytes)
    if "float32" in fits:
        notes.append(f"{format_bytes(limit)}: float32 fits, nothing has to be given up")
    elif fits:
        need = format_bytes(found["float32"].total_bytes)
        notes.append(f"{format_bytes(limit)}: {', '.join(fits)} fit; float32 would need {need}")
    else:
        notes.append(
            f"{format_bytes(limit)}: nothing fits; the least is {format_bytes(least.total_bytes)} ({least.scheme})"
        )
    return notes
