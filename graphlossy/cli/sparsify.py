"""``graphlossy sparsify``: thin a graph once, look at what that did, and keep the result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from graphlossy.cli._errors import user_errors
from graphlossy.sparsify import METHODS

__all__ = ["command"]

TARGETS = ("ratio", "epsilon", "num_samples", "k", "alpha")


def _path(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    if value is not None and (not value or "\0" in value):
        raise click.BadParameter(f"expected a path, got {value!r}")
    return None if value is None else Path(value)


@click.command(name="sparsify")
@click.option(
    "--dataset",
    metavar="NAME|FILE|FOLDER",
    default="wordnet-verbs",
    show_default=True,
    help="What `graphlossy train` takes.",
)
@click.option(
    "--method", default="degree", show_default=True, metavar="|".join(METHODS), help="How edges are chosen; see below."
)
@click.option("--ratio", type=float, metavar="SHARE", help="Share of the edges to keep, above 0 and at most 1.")
@click.option("--epsilon", type=float, metavar="E", help="degree, resistance: 0.16 N ln N / E^2 draws.")
@click.option("--num-samples", type=int, metavar="Q", help="degree, resistance: the number of draws.")
@click.option("--k", type=float, metavar="K", help="k-neighbor: edges that every node chooses.")
@click.option("--alpha", type=float, metavar="A", help="local-degree: a node of degree d keeps ceil(d^A) edges.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--reweight/--no-reweight", default=True, help="Weights that keep the expected graph, or none.")
@click.option("--out", callback=_path, metavar="FOLDER", help="Write the thinned graph, for --dataset to read again.")
@click.option("--picture", callback=_path, metavar="FILE", help="Draw the degrees before and after (.png, .svg, .pdf).")
@click.option(
    "--spectral/--no-spectral",
    default=None,
    help="Compare the Laplacians, with dense matrices.  [default: up to 1500 nodes]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON and nothing else on stdout.")
def command(**options: Any) -> None:
    """Thin a graph once: keep a share of its edges, with weights under which the expected graph is the original.

    \b
    Methods:
      degree        draws with probability ~ 1/d_u + 1/d_v (DSpar): unbiased
      random        a uniformly random share: unbiased
      k-neighbor    every node chooses k of its edges: unbiased
      local-degree  every node keeps its neighbours of highest degree: biased
      resistance    draws by exact effective resistance, up to 5000 nodes: unbiased

    \b
    Examples:
      graphlossy sparsify --ratio 0.5
      graphlossy sparsify --dataset cora --method k-neighbor --k 3 --picture degrees.png
      graphlossy sparsify --dataset ogbn-arxiv --epsilon 0.5 --out thin-arxiv
      graphlossy train --dataset thin-arxiv
      graphlossy sparsify --dataset graph.npz --ratio 0.25 --no-reweight --json
    """
    with user_errors(ValueError, TypeError, ModuleNotFoundError), _in_words_of_the_options():
        summary, text = _run(options)
        shown = json.dumps(summary, indent=2, allow_nan=False) if options["as_json"] else text
    click.echo(shown)


def _run(options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from graphlossy.datasets import DatasetError, load, save_folder
    from graphlossy.sparsify import report
    from graphlossy.sparsify._choice import columns, graph_of
    from graphlossy.sparsify._edges import read_edges
    from graphlossy.sparsify._methods import check_targets
    from graphlossy.sparsify._picture import check_picture

    method, out, picture = options["method"], options["out"], options["picture"]
    target = {name: options[name] for name in TARGETS if options[name] is not None}
    chosen = check_targets(method, target)
    if len(target) != 1:
        raise ValueError(f"give exactly one of {', '.join(chosen.targets)}; got {', '.join(target) or 'none'}")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: exists already and is no empty folder; give another path or remove it first")
    if picture is not None:
        check_picture(picture)
    steps = Console(stderr=True)
    with steps.status("reading the graph") as status:
        data = load(options["dataset"], split=None)
        status.update(f"choosing among {data.num_edges:,} edges")
        weight = data["edge_weight"] if "edge_weight" in data else None
        begin = time.perf_counter()
        edges = read_edges(data.edge_index, data.num_nodes, weight)
        choice = chosen.choose(edges, options["seed"], **target)
        edge_index, edge_weight = graph_of(edges, choice, options["reweight"])
        seconds = time.perf_counter() - begin
        status.update("comparing the two graphs")
        before = (data.edge_index, weight)
        found = report(before, (edge_index, edge_weight), data.num_nodes, options["spectral"])
        if picture is not None:
            found.picture(picture)
        if out is not None:
            status.update(f"writing {out}")
            names = [name for name in data.edge_attrs() if name not in ("edge_index", "edge_weight")]
            at = columns(edges, choice) if names else None
            order = (edge_index[0] * data.num_nodes + edge_index[1]).argsort(stable=True)
            for name in names:
                data[name] = data[name][at[order]]  # type: ignore[index]
            data.edge_index = edge_index[:, order]
            if edge_weight is not None:
                data.edge_weight = edge_weight[order]
            save_folder(data, out)
    summary = {
        "dataset": data.name, "method": method, "target": target, "seed": options["seed"], "facts": choice.facts,
        "reweighted": options["reweight"], "unbiased": choice.unbiased and options["reweight"],
        "seconds": seconds, "report": found.to_dict(),
        "out": None if out is None else str(out), "picture": None if picture is None else str(picture),
    }  # fmt: skip
    return summary, _text(summary, found)


def _text(summary: dict[str, Any], found: Any) -> str:
    target = ", ".join(f"{name} {value:g}" for name, value in summary["target"].items())
    facts = "".join(
        f", {name} {value:,.6g}" for name, value in summary["facts"].items() if name not in summary["target"]
    )
    law = "unbiased" if summary["unbiased"] else "biased"
    lines = [
        f"{summary['dataset']}, {summary['method']}, {target}{facts}: {law}, {summary['seconds']:.2f} s",
        str(found),
    ]
    lines += [f"{name}: {summary[name]}" for name in ("out", "picture") if summary[name]]
    return "\n".join(lines)


@contextmanager
def _in_words_of_the_options() -> Iterator[None]:
    """Says so in one line if memory is used up or a file cannot be written."""
    try:
        yield
    except MemoryError:
        raise ValueError("not enough memory for this graph") from None
    except OSError as error:
        raise ValueError(
            f"{error.filename or 'a file'}: cannot be read or written ({error.strerror or error})"
        ) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ValueError("not enough memory for this graph") from None
